"""Valid arguments of what learns one task after the other."""

from typing import Any

import numpy as np
from fuzz_world import DATA, KEY, MODEL, PARAMS, PLAN, SGD

import fedjax_lite as fl

OLD = fl.no_old_tasks(PARAMS)
REMEMBERING = fl.ewc(MODEL.loss, SGD, lam=0.5, plan=PLAN, sampler=fl.uniform(2))
SCORES = {"scores": np.eye(2)}

LIFELONG: dict[str, dict[str, Any]] = {
    "ewc": {"lam": 0.5},
    "ewc_penalty": {"lam": 0.5, "old": OLD},
    "exact_fisher": {"predict": MODEL.predict},
    "data.split_tasks": {"data": DATA, "tasks": np.arange(DATA.num_examples) % 2},
    "data.task_stream": {"stages": [DATA, DATA], "starts": [0, 2]},
    "fedcurv": {"lam": 0.5},
    "fisher_information": {"fisher": fl.empirical_fisher(MODEL.loss)},
    "lifelong.average_accuracy": SCORES,
    "lifelong.backward_transfer": SCORES,
    "lifelong.forgetting": SCORES,
    "lifelong.forward_transfer": {**SCORES, "untrained": np.zeros(2)},
    "lifelong.learning_accuracy": SCORES,
    "remember": {"old": OLD, "fisher": PARAMS, "optimum": PARAMS},
    "three_way": {"lam": 0.5, "mu": 0.5},
    "with_old_tasks": {"state": REMEMBERING.init(KEY, PARAMS, DATA), "old": OLD},
}
