"""fit_temperature(): one number that makes a model as sure as it is right."""

from __future__ import annotations

from typing import Any

import numpy as np

from fedjax_lite.checks.arguments import shown

HALVINGS = 60
"""Of the interval of inverse temperatures in logarithms: below the rounding of float64."""


def fit_temperature(
    logits: Any, labels: Any, *, lowest: float = 0.01, highest: float = 100.0
) -> float:
    r"""The temperature of least negative log-likelihood on held-out examples.

    .. math::
        T^* = \arg\min_T \sum_j -\ln \mathrm{softmax}(z_j / T)_{y_j}

    In ``b = 1 / T`` this is convex, with the derivative
    :math:`\sum_j (\mathbb{E}_{k \sim \mathrm{softmax}(b z_j)}[z_{jk}] - z_{j y_j})`, which
    grows with `b`; its zero is found by halving, in float64. Answers do not change, only their
    confidence. Fit it on examples that were not trained on.

    Args:
      logits: `[E, ..., K]`, of one model.
      labels: integers `[E, ...]`; those below 0 do not count.
      lowest: the least `T` that is given back: where all answers are right, the best is 0.
      highest: the largest: of a model that is right by chance only, the best is infinity.

    Returns:
      `T`: above 1 for a model that is too sure. Divide logits by it.

    Raises:
      ValueError: if shapes do not fit, logits are not finite, no label counts, labels are beyond
        the classes, or the bounds are not ``0 < lowest < highest``.

    Example:
      >>> import math
      >>> logits = np.array([[2.0, 0.0]] * 4)  # says 0.88, and is right three times in four
      >>> round(fit_temperature(logits, [0, 0, 0, 1]), 4), round(2 / math.log(3), 4)
      (1.8205, 1.8205)

    Reference: Guo, Pleiss, Sun, Weinberger, 2017, arXiv:1706.04599.
    """
    given, labels = np.asarray(logits, np.float64), np.asarray(labels)
    if given.ndim < 2 or given.shape[:-1] != labels.shape or labels.dtype.kind not in "iu":
        raise ValueError(
            f"logits must be [E, ..., K] and labels integers [E, ...], got {list(given.shape)} and "
            f"{labels.dtype} {list(labels.shape)}; give model.predict(params, examples)"
        )
    if not 0 < lowest < highest < np.inf:
        raise ValueError(
            f"lowest and highest must be 0 < lowest < highest, got {lowest} and {highest}; "
            "give lowest=0.01, highest=100"
        )
    counted = labels >= 0
    given, labels = given[counted], labels[counted].astype(int)
    if not len(labels) or labels.max() >= given.shape[-1]:
        raise ValueError(
            f"labels must be some classes of 0 to {given.shape[-1] - 1}, got {shown(labels)}; "
            "those below 0 do not count"
        )
    if not np.isfinite(given).all():
        raise ValueError(f"logits must be finite, got {shown(given)}; did the model diverge?")
    apart = given - given[np.arange(len(labels)), labels][:, None]

    def slope(inverse: float) -> float:
        scaled = inverse * apart
        shares = np.exp(scaled - scaled.max(-1, keepdims=True))
        return float(((shares * apart).sum(-1) / shares.sum(-1)).mean())

    low, high = np.log(1 / highest), np.log(1 / lowest)
    if slope(np.exp(low)) >= 0:
        return float(highest)
    if slope(np.exp(high)) <= 0:
        return float(lowest)
    for _ in range(HALVINGS):
        middle = (low + high) / 2
        low, high = (middle, high) if slope(np.exp(middle)) < 0 else (low, middle)
    return float(np.exp(-(low + high) / 2))
