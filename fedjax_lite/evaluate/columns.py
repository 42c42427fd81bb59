"""Figures as columns of a history: one number a name."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from fedjax_lite.evaluate.gaps import group_gaps


def columns_of(prefix: str, figures: Mapping[str, Any], *, suffix: str = "") -> dict[str, float]:
    """Figures of one unit under flat names; their size is left out.

    Args:
      prefix: what names begin with, "test".
      figures: numbers, or arrays `[K]`, whose entries are numbered.
      suffix: what names end with.

    Example:
      >>> columns_of("test", {"loss": 0.5, "f1": np.array([0.25, 1.0]), "size": 3})
      {'test_loss': 0.5, 'test_f1_0': 0.25, 'test_f1_1': 1.0}
    """
    found = {}
    for name, value in figures.items():
        if name == "size":
            continue
        values = np.asarray(value, np.float64)
        for place in np.ndindex(values.shape):
            number = "".join(f"_{one}" for one in place)
            found[f"{prefix}_{name}{number}{suffix}"] = float(values[place])
    return found


def group_columns(prefix: str, figures: Mapping[str, Any]) -> dict[str, float]:
    """Figures of groups, arrays `[G, ...]`, under names that end with the group's number; gaps.

    Example:
      >>> group_columns("test", {"loss": np.array([0.5, 1.0]), "size": np.array([2, 1])})
      {'test_loss_group_0': 0.5, 'test_loss_group_1': 1.0, 'test_loss_gap': 0.5}
    """
    found = {}
    for group in range(len(figures["size"])):
        mine = {name: values[group] for name, values in figures.items()}
        found |= columns_of(prefix, mine, suffix=f"_group_{group}")
    gaps = group_gaps(figures).items()
    return found | {f"{prefix}_{name}_gap": gap for name, gap in gaps}
