"""Valid arguments of what works on columns."""

from typing import Any

import numpy as np
from flax import linen, nnx
from fuzz_world import KEY, MODEL, PLAN, SGD

import fedjax_lite as fl

IDS = {"a": [1, 2, 3, 4], "b": [4, 3, 2, 1]}
FEATURES = {"a": np.linspace(-1, 1, 8).reshape(4, 2), "b": np.linspace(1, -1, 12).reshape(4, 3)}
LABELS = {"a": np.array([0, 1, 1, 0])}
COLUMNS = fl.parties.from_columns(FEATURES, LABELS)
TABLES = {"a": {"id": [1, 2], "x": [0.5, 1.5], "y": [0, 1]}, "b": {"id": [2, 1], "x": [1.0, 2.0]}}
REGRESSION = fl.parties.regression("logistic", COLUMNS)
TRAINING = {"model": REGRESSION, "optimizer": SGD, "plan": PLAN}
PART = fl.parties.Part(lambda key: np.ones((4, 3)), lambda w, x, key: x @ w)
TOP = fl.parties.Part(lambda key: np.ones((3, 3)), lambda w, x, key: x @ w)
CUT = fl.parties.cut_layers([PART, TOP], at=1)
SPLIT = {"cut": CUT, "optimizer": SGD, "plan": PLAN, "sampler": fl.uniform(2)}
ON_COLUMNS = ("parties.fedbcd", "parties.vertical_sgd")
"""Algorithms whose population are columns."""
OF_HALVES = ("parties.split_learning", "parties.splitfed")
"""Algorithms whose network is cut."""

PARTIES: dict[str, dict[str, Any]] = {
    "parties.align": {"ids": IDS},
    "parties.cut_columns": {
        "examples": {"x": np.zeros((4, 3)), "y": np.zeros(4)},
        "cut": {"a": [0], "b": [1, 2]},
        "holder": "a",
    },
    "parties.cut_layers": {"layers": [PART, TOP], "at": 1},
    "parties.cut_linen": {
        "module": linen.Sequential([linen.Dense(3), linen.Dense(3)]),
        "example_x": np.ones((1, 4), np.float32),
        "at": 1,
    },
    "parties.cut_nnx": {
        "factory": lambda rngs: nnx.Sequential(
            nnx.Linear(4, 3, rngs=rngs), nnx.Linear(3, 3, rngs=rngs)
        ),
        "example_x": np.ones((1, 4), np.float32),
        "at": 1,
    },
    "parties.split_learning": SPLIT,
    "parties.splitfed": SPLIT,
    "parties.fedbcd": {**TRAINING, "local_steps": 2},
    "parties.from_columns": {"features": FEATURES, "labels": LABELS},
    "parties.from_tables": {"tables": TABLES, "id_column": "id", "labels": {"a": "y"}},
    "parties.joint": {"model": REGRESSION},
    "crypto.PsiParty": {"ids": [1, 2]},
    "crypto.private_intersection": {"mine": [1, 2], "theirs": [2, 3]},
    "parties.private_align": {"ids": IDS, "holder": "a"},
    "parties.regression": {"kind": "linear", "data": COLUMNS},
    "attacks.leakage.label_leakage": {"gradients": [[0.1], [-0.2], [0.3]], "labels": [1, 0, 1]},
    "parties.wiretap": {
        "model": REGRESSION,
        "params": REGRESSION.init(KEY),
        "examples": COLUMNS,
        "key": KEY,
    },
    "parties.vertical_model": {"bottoms": {"a": MODEL}, "head": MODEL, "holder": "a"},
    "parties.vertical_sgd": TRAINING,
    "parties.split_rows": {"data": COLUMNS, "fraction": 0.25, "seed": 0},
}
