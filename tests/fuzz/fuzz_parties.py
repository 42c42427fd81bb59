"""Valid arguments of what works on columns."""

from typing import Any

import numpy as np

import fedjax_lite as fl

IDS = {"a": [1, 2, 3, 4], "b": [4, 3, 2, 1]}
FEATURES = {"a": np.linspace(-1, 1, 8).reshape(4, 2), "b": np.linspace(1, -1, 12).reshape(4, 3)}
LABELS = {"a": np.array([0, 1, 1, 0])}
COLUMNS = fl.parties.from_columns(FEATURES, LABELS)
TABLES = {"a": {"id": [1, 2], "x": [0.5, 1.5], "y": [0, 1]}, "b": {"id": [2, 1], "x": [1.0, 2.0]}}

PARTIES: dict[str, dict[str, Any]] = {
    "parties.align": {"ids": IDS},
    "parties.cut_columns": {
        "examples": {"x": np.zeros((4, 3)), "y": np.zeros(4)},
        "cut": {"a": [0], "b": [1, 2]},
        "holder": "a",
    },
    "parties.from_columns": {"features": FEATURES, "labels": LABELS},
    "parties.from_tables": {"tables": TABLES, "id_column": "id", "labels": {"a": "y"}},
    "parties.split_rows": {"data": COLUMNS, "fraction": 0.25, "seed": 0},
}
