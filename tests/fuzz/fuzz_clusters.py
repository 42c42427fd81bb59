"""Valid arguments of what trains several models."""

from typing import Any

import jax.numpy as jnp
from fuzz_world import DATA, KEY, MODEL, PLAN, SGD

import fedjax_lite as fl

BOTH = fl.several_models(MODEL.init, KEY, 2)
IFCA = fl.ifca(MODEL.loss, SGD, num_clusters=2, plan=PLAN, sampler=fl.uniform(2))
ROUTER = fl.models.linear(2, (4,))
THREE = fl.models.linear(3, (3,))
GATED = fl.models.gated_experts(MODEL, ROUTER, 2)

CLUSTERS: dict[str, dict[str, Any]] = {
    "cluster_assignments": {"state": IFCA.init(KEY, BOTH, DATA)},
    "cluster_purity": {"assignments": [0, 1, 1], "groups": [0, 1, 0]},
    "data.dealt_groups": {"num_clients": 6, "num_groups": 2},
    "data.label_permutation": {"permutations": [[0, 1, 2], [1, 2, 0]]},
    "data.label_sign": {"signs": [1, -1], "label": "sign"},
    "debiasing": {"parts": fl.models.adversarial(MODEL, THREE, THREE, group="y")},
    "fedem": {"num_models": 2},
    "ifca": {"num_clusters": 2},
    "mixture_of_experts": {"loss": GATED.loss, "router_optimizer": SGD},
    "models.adversarial": {"encoder": MODEL, "predictor": THREE, "adversary": THREE},
    "models.gated_experts": {"expert": MODEL, "router": ROUTER, "num_experts": 2},
    "models.gradient_reversal": {"features": jnp.ones(2)},
    "models.ramped_strength": {"most": 1.0},
    "models.weighted_models": {"num_models": 2},
    "report.plot_clusters": {"history": [{"round": 1, "cluster_0": 1.0, "cluster_changes": 0.0}]},
    "several_models": {"init": MODEL.init, "num_models": 2},
}
