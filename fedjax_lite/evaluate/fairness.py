"""A figure over clients, and how fair it is."""

from __future__ import annotations

import math
from typing import Any

import numpy as np

from fedjax_lite.checks.arguments import check_count

SHARES = ("gini", "jain", "cosine", "angle", "entropy", "kl_uniform")
"""Figures of each client's share of the sum."""
OF_CLIENTS = ("variance", "best", "gini", "jain", "angle", "entropy", "kl_uniform")
"""What `client_evaluator` adds to mean and worst, where fairness is asked for."""


def summarize_clients(
    values: Any, sizes: Any, *, fraction: float = 0.1, num_bins: int = 20
) -> dict[str, Any]:
    """Summarises a figure over clients, fairness included; clients with NaN are left out.

    With `N` clients counted, values `a_i`, sizes `n_i` and shares `p_i = a_i / sum a`:
    weighted mean `sum n_i a_i / sum n_i`; worst = mean of the `ceil(fraction N)` lowest values
    (not a percentile), best likewise; Gini `sum_ij |a_i - a_j| / (2 N^2 mean)`; Jain
    `(sum a)^2 / (N sum a^2)`; cosine to the uniform vector `sqrt(Jain)`, and
    the angle of that; entropy
    `-sum p_i ln p_i`; Kullback-Leibler divergence to uniform `ln N - entropy`.

    Args:
      values: `[N]`, accuracies as a rule.
      sizes: `[N]`, examples per client.
      fraction: share of clients that count as worst and best, in (0, 1].
      num_bins: bins of the histogram, over [0, 1] where all values lie in it.

    Returns:
      ``num_clients, mean, weighted_mean, std, variance`` (ddof 0), ``worst, best, gini, jain,
      cosine, angle`` (degrees), ``entropy, kl_uniform`` as floats, ``histogram_counts``
      `[num_bins]`, ``histogram_edges`` `[num_bins + 1]`. Share-based figures are NaN where a value
      is negative or all are 0;
      everything is NaN where no client is left.

    Raises:
      ValueError: if shapes differ or `fraction` is out of range.

    Example:
      >>> summary = summarize_clients([1.0, 0.5, 0.0], [1, 1, 2])
      >>> summary["mean"], summary["weighted_mean"], summary["worst"]
      (0.5, 0.375, 0.0)

    Reference: Jain, Chiu, Hawe, "A Quantitative Measure of Fairness", 1984, DEC-TR-301;
      Li, Sanjabi, Beirami, Smith, "Fair Resource Allocation in Federated Learning", 2019,
      arXiv:1905.10497.
    """
    values, sizes = np.asarray(values, np.float64), np.asarray(sizes, np.float64)
    if values.ndim != 1 or values.shape != sizes.shape:
        raise ValueError(
            f"values and sizes must both have shape [N], got {values.shape} and {sizes.shape}"
        )
    if not 0 < fraction <= 1:
        raise ValueError(f"fraction must lie in (0, 1], got {fraction}; give a share such as 0.1")
    check_count(num_bins, "num_bins", minimum=1)
    counted = ~np.isnan(values)
    values, sizes = np.sort(values[counted]), sizes[counted][np.argsort(values[counted])]
    num = len(values)
    inside = num == 0 or (values[0] >= 0 and values[-1] <= 1)
    counts, edges = np.histogram(values, bins=num_bins, range=(0.0, 1.0) if inside else None)
    tail = math.ceil(round(fraction * num, 9))  # 0.1 * 30 is a little more than 3
    summary = {
        "num_clients": num,
        "mean": values.mean() if num else math.nan,
        "weighted_mean": values @ sizes / sizes.sum() if sizes.sum() else math.nan,
        "std": values.std() if num else math.nan,
        "variance": values.var() if num else math.nan,
        "worst": values[:tail].mean() if num else math.nan,
        "best": values[num - tail :].mean() if num else math.nan,
        **_fairness(values),
    }
    plain = {n: value if n == "num_clients" else float(value) for n, value in summary.items()}
    return plain | {"histogram_counts": counts, "histogram_edges": edges}


def _fairness(values: np.ndarray) -> dict[str, float]:
    """Figures of the shares of sorted values `[N]`."""
    num, total = len(values), values.sum()
    if num == 0 or values[0] < 0 or total <= 0:
        return dict.fromkeys(SHARES, math.nan)
    ranks = np.arange(1, num + 1)
    shares = values / total
    positive = shares[shares > 0]
    entropy = -(positive * np.log(positive)).sum()
    jain = 1 / (num * (shares**2).sum())
    return {
        "gini": ((2 * ranks - num - 1) * shares).sum() / num,
        "jain": jain,
        "cosine": math.sqrt(jain),
        "angle": math.degrees(math.acos(min(1.0, math.sqrt(jain)))),
        "entropy": entropy,
        "kl_uniform": math.log(num) - entropy,
    }
