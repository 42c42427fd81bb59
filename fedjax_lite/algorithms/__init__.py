"""Algorithms, one file a method."""

from typing import TYPE_CHECKING

from fedjax_lite.checks.later import load_when_asked

if TYPE_CHECKING:
    from fedjax_lite.algorithms.baselines import (
        centralised,
        client_models,
        gap_to_baseline,
        local_only,
        pooled,
    )
    from fedjax_lite.algorithms.clusters.fedem import fedem
    from fedjax_lite.algorithms.clusters.ifca import ifca
    from fedjax_lite.algorithms.clusters.membership import cluster_assignments
    from fedjax_lite.algorithms.clusters.mixture_of_experts import mixture_of_experts
    from fedjax_lite.algorithms.clusters.several import several_models
    from fedjax_lite.algorithms.ewc import ewc, with_old_tasks
    from fedjax_lite.algorithms.factor_products import mean_of_products
    from fedjax_lite.algorithms.fair.afl import afl
    from fedjax_lite.algorithms.fair.debiasing import debiasing
    from fedjax_lite.algorithms.fair.fedmgda import fedmgda
    from fedjax_lite.algorithms.fair.q_fedavg import q_fedavg
    from fedjax_lite.algorithms.fair.q_fedsgd import q_fedsgd
    from fedjax_lite.algorithms.fair.term import term
    from fedjax_lite.algorithms.fedavg import fedavg
    from fedjax_lite.algorithms.fedcurv import fedcurv
    from fedjax_lite.algorithms.feddyn import feddyn
    from fedjax_lite.algorithms.fedgan import fedgan
    from fedjax_lite.algorithms.fedlora import fedlora
    from fedjax_lite.algorithms.fedma import fedma
    from fedjax_lite.algorithms.fednova import fednova
    from fedjax_lite.algorithms.fedopt import fedadagrad, fedadam, fedavgm, fedyogi
    from fedjax_lite.algorithms.fedprox import fedprox
    from fedjax_lite.algorithms.fedsgd import fedsgd
    from fedjax_lite.algorithms.frozen_leaves import frozen_leaves, with_frozen
    from fedjax_lite.algorithms.hierfavg import hierfavg
    from fedjax_lite.algorithms.mime import mime, mimelite
    from fedjax_lite.algorithms.personal.apfl import apfl
    from fedjax_lite.algorithms.personal.ditto import ditto
    from fedjax_lite.algorithms.personal.fedbabu import fedbabu
    from fedjax_lite.algorithms.personal.fedper import fedper, lg_fedavg
    from fedjax_lite.algorithms.personal.fedrep import fedrep
    from fedjax_lite.algorithms.personal.fomaml import fomaml
    from fedjax_lite.algorithms.personal.local_leaves import (
        evaluate_personal,
        fedbn,
        local_leaves,
        personal_models,
    )
    from fedjax_lite.algorithms.personal.per_fedavg import per_fedavg
    from fedjax_lite.algorithms.personal.pfedme import pfedme
    from fedjax_lite.algorithms.personal.reptile import reptile
    from fedjax_lite.algorithms.precision_weighted import precision_weighted
    from fedjax_lite.algorithms.scaffold import scaffold
    from fedjax_lite.algorithms.three_way import three_way

__all__ = [
    "afl",
    "apfl",
    "centralised",
    "client_models",
    "cluster_assignments",
    "debiasing",
    "ditto",
    "evaluate_personal",
    "ewc",
    "fedadagrad",
    "fedadam",
    "fedavg",
    "fedavgm",
    "fedbabu",
    "fedbn",
    "fedcurv",
    "feddyn",
    "fedem",
    "fedgan",
    "fedlora",
    "fedma",
    "fedmgda",
    "fednova",
    "fedper",
    "fedprox",
    "fedrep",
    "fedsgd",
    "fedyogi",
    "fomaml",
    "frozen_leaves",
    "gap_to_baseline",
    "hierfavg",
    "ifca",
    "lg_fedavg",
    "local_leaves",
    "local_only",
    "mean_of_products",
    "mime",
    "mimelite",
    "mixture_of_experts",
    "per_fedavg",
    "personal_models",
    "pfedme",
    "pooled",
    "precision_weighted",
    "q_fedavg",
    "q_fedsgd",
    "reptile",
    "scaffold",
    "several_models",
    "term",
    "three_way",
    "with_frozen",
    "with_old_tasks",
]

load_when_asked(__name__)
