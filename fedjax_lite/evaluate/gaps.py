"""group_gaps(): how far groups lie apart, figure by figure."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from fedjax_lite.checks.arguments import shown

ODDS = ("true_positive_rate", "false_positive_rate")
"""Equalised odds asks both to be equal."""


def group_gaps(figures: Mapping[str, Any]) -> dict[str, float]:
    """The largest less the smallest figure of the groups, of every figure that is one number.

    Of `positive_rate` it is the parity gap, of `true_positive_rate` the gap of opportunities; where
    both rates are there, ``equalised_odds`` is the larger of their gaps. Of
    `expected_calibration_error` it compares how well calibrated the model is for each. Groups
    without an example that counts have NaN, and are not compared.

    Args:
      figures: arrays `[G]`, the ``groups`` of `evaluate_clients`; ``size`` and arrays `[G, K]` are
        left out.

    Returns:
      A number a figure; NaN where fewer than two groups have one.

    Raises:
      TypeError: if it is no dict of figures.

    Example:
      >>> group_gaps({"accuracy": np.array([0.75, np.nan, 0.5]), "size": np.array([4, 0, 4])})
      {'accuracy': 0.25}
      >>> group_gaps({name: np.array([0.5, 1.0]) for name in ODDS})["equalised_odds"]
      0.5
    """
    if not isinstance(figures, Mapping):
        raise TypeError(
            f"figures must be a dict of arrays [G], got {shown(figures)}; give "
            'evaluate_clients(..., groups=groups)["groups"]'
        )
    gaps = {}
    for name, given in figures.items():
        values = np.asarray(given, np.float64)
        if name == "size" or values.ndim != 1:
            continue
        known = values[~np.isnan(values)]
        gaps[name] = float(np.ptp(known)) if len(known) > 1 else float("nan")
    if all(name in gaps for name in ODDS):
        gaps["equalised_odds"] = float(np.max([gaps[name] for name in ODDS]))  # NaN stays
    return gaps
