"""Algorithms, one file a method."""

from fedjax_lite.algorithms.baselines import (
    centralised,
    client_models,
    gap_to_baseline,
    local_only,
    pooled,
)
from fedjax_lite.algorithms.fedavg import fedavg
from fedjax_lite.algorithms.feddyn import feddyn
from fedjax_lite.algorithms.fednova import fednova
from fedjax_lite.algorithms.fedopt import fedadagrad, fedadam, fedavgm, fedyogi
from fedjax_lite.algorithms.fedprox import fedprox
from fedjax_lite.algorithms.fedsgd import fedsgd
from fedjax_lite.algorithms.hierfavg import hierfavg
from fedjax_lite.algorithms.mime import mime, mimelite
from fedjax_lite.algorithms.personal.ditto import ditto
from fedjax_lite.algorithms.personal.local_leaves import (
    evaluate_personal,
    fedbn,
    local_leaves,
    personal_models,
)
from fedjax_lite.algorithms.scaffold import scaffold
from fedjax_lite.checks.calls import check_calls

__all__ = [
    "centralised",
    "client_models",
    "ditto",
    "evaluate_personal",
    "fedadagrad",
    "fedadam",
    "fedavg",
    "fedavgm",
    "fedbn",
    "feddyn",
    "fednova",
    "fedprox",
    "fedsgd",
    "fedyogi",
    "gap_to_baseline",
    "hierfavg",
    "local_leaves",
    "local_only",
    "mime",
    "mimelite",
    "personal_models",
    "pooled",
    "scaffold",
]

check_calls(globals())
