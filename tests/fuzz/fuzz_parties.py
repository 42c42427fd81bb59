"""Valid arguments of what works on columns."""

from typing import Any

import numpy as np
from fuzz_world import MODEL, PLAN, SGD

import fedjax_lite as fl

IDS = {"a": [1, 2, 3, 4], "b": [4, 3, 2, 1]}
FEATURES = {"a": np.linspace(-1, 1, 8).reshape(4, 2), "b": np.linspace(1, -1, 12).reshape(4, 3)}
LABELS = {"a": np.array([0, 1, 1, 0])}
COLUMNS = fl.parties.from_columns(FEATURES, LABELS)
TABLES = {"a": {"id": [1, 2], "x": [0.5, 1.5], "y": [0, 1]}, "b": {"id": [2, 1], "x": [1.0, 2.0]}}
REGRESSION = fl.parties.regression("logistic", COLUMNS)
TRAINING = {"model": REGRESSION, "optimizer": SGD, "plan": PLAN}
ON_COLUMNS = ("parties.fedbcd", "parties.vertical_sgd")
"""Algorithms whose population are columns."""

PARTIES: dict[str, dict[str, Any]] = {
    "parties.align": {"ids": IDS},
    "parties.cut_columns": {
        "examples": {"x": np.zeros((4, 3)), "y": np.zeros(4)},
        "cut": {"a": [0], "b": [1, 2]},
        "holder": "a",
    },
    "parties.fedbcd": {**TRAINING, "local_steps": 2},
    "parties.from_columns": {"features": FEATURES, "labels": LABELS},
    "parties.from_tables": {"tables": TABLES, "id_column": "id", "labels": {"a": "y"}},
    "parties.joint": {"model": REGRESSION},
    "parties.regression": {"kind": "linear", "data": COLUMNS},
    "parties.vertical_model": {"bottoms": {"a": MODEL}, "head": MODEL, "holder": "a"},
    "parties.vertical_sgd": TRAINING,
    "parties.split_rows": {"data": COLUMNS, "fraction": 0.25, "seed": 0},
}
