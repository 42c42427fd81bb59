"""precision_recall(): how much of what is made is real, and how much of the real is made."""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np

from fedjax_lite.checks.arguments import check_count
from fedjax_lite.evaluate.generation.frechet import features


class PrecisionRecall(NamedTuple):
    """Two shares in [0, 1]."""

    precision: float
    """Of made examples, those that lie among real ones: quality."""
    recall: float
    """Of real examples, those that lie among made ones: variety."""


def precision_recall(real: Any, made: Any, *, neighbours: int = 3) -> PrecisionRecall:
    r"""Shares of each sample that lie within the other, as balls around its points say.

    .. math::
        \mathrm{precision} = \frac1m \sum_j \mathbf 1\bigl[\exists i:
        \lVert m_j - r_i \rVert \le \rho_k(r_i)\bigr]

    with :math:`\rho_k(r_i)` the distance of `r_i` to its `k`-th neighbour among the real; recall
    with the two exchanged.

    Args:
      real: `[n, D]`, features; see `frechet_distance`.
      made: `[m, D]`.
      neighbours: `k`, below `n` and `m`.

    Returns:
      `PrecisionRecall`.

    Raises:
      ValueError: if shapes do not fit, or there are not more points than neighbours.

    Example:
      >>> real = [[0.0], [1.0], [10.0], [11.0]]
      >>> precision_recall(real, [[0.4], [0.6], [0.5]], neighbours=1)  # true, but one mode of two
      PrecisionRecall(precision=1.0, recall=0.0)

    Reference: Kynkäänniemi, Karras, Laine, Lehtinen, Aila, "Improved Precision and Recall Metric
    for Assessing Generative Models", 2019, arXiv:1904.06991.
    """
    check_count(neighbours, "neighbours", minimum=1)
    real, made = features(real, "real"), features(made, "made")
    if real.shape[1] != made.shape[1] or min(len(real), len(made)) <= neighbours:
        raise ValueError(
            "neighbours must be below the number of points of real and of made, which have one "
            f"width, got {neighbours} for real of {list(real.shape)} and made of "
            f"{list(made.shape)}; give neighbours=1"
        )
    return PrecisionRecall(_within(made, real, neighbours), _within(real, made, neighbours))


def _within(points: np.ndarray, balls: np.ndarray, neighbours: int) -> float:
    """The share of points within a ball around one of `balls`."""
    own = np.sort(distances(balls, balls), 1)[:, neighbours]  # the nearest is the point itself
    return float((distances(points, balls) <= own[None]).any(1).mean())


def distances(left: np.ndarray, right: np.ndarray) -> np.ndarray:
    """Euclidean, `[n, m]`, row by row, so that equal points are 0 apart.

    Example:
      >>> distances(np.zeros((1, 2)), np.array([[3.0, 4.0]])).tolist()
      [[5.0]]
    """
    return np.stack([np.sqrt(((row - right) ** 2).sum(1)) for row in left])
