"""How many published figures of folds are met at each rate."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

from tables.verdicts import judge

HALF_A_DIGIT = 0.005


def met_by_rate(
    rows: Sequence[Mapping[str, Any]], figures: Mapping[str, Any]
) -> dict[float, dict[str, tuple[int, int]]]:
    """By rate and figure: how many of how many means over folds the rule finds reproduced.

    Args:
      rows: of ensembles_uci.py: data set, method, rate, and an rmse and nll a fold.
      figures: published ones by data set and method.

    Example:
      >>> row = {"dataset": "d", "method": "m", "learning_rate": 0.1, "rmse": [1.0], "nll": [9.0]}
      >>> known = {"rmse": 1.0, "rmse_deviation": 0.1, "nll": 2.0, "nll_deviation": 0.1}
      >>> met_by_rate([row], {"d": {"m": known}})
      {0.1: {'rmse': (1, 1), 'nll': (0, 1)}}
    """
    found: dict[float, dict[str, tuple[int, int]]] = {}
    for row in rows:
        known = figures.get(row["dataset"], {}).get(row["method"])
        if known is None:
            continue
        counts = found.setdefault(row["learning_rate"], {})
        for name in ("rmse", "nll"):
            ours = row[name]
            spread = max(known[f"{name}_deviation"] / math.sqrt(len(ours)), HALF_A_DIGIT)
            kind = judge(known[name], spread, ours, folds=True).kind
            met, of = counts.get(name, (0, 0))
            counts[name] = (met + (kind == "reproduced"), of + 1)
    return found
