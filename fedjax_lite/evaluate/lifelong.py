"""Figures of a life of tasks: what was forgotten, what was gained, how well each was learnt.

All are read off one matrix `R`, `[T, T]`: ``R[i, j]`` is the score (an accuracy, say) on task `j`
after training up to task `i`.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from fedjax_lite.checks.arguments import shown
from fedjax_lite.checks.calls import check_calls

__all__ = [
    "average_accuracy",
    "backward_transfer",
    "forgetting",
    "forward_transfer",
    "learning_accuracy",
]


def average_accuracy(scores: Any) -> float:
    r"""The mean over all tasks after the last one, :math:`\tfrac1T \sum_j R_{T,j}`.

    Args:
      scores: `R`, `[T, T]`.

    Returns:
      A number on the scale of the scores.

    Raises:
      ValueError: if `scores` are no square matrix, or an entry that is needed is NaN.

    Example:
      >>> average_accuracy([[0.9, 0.1], [0.5, 0.7]])
      0.6

    Reference: Lopez-Paz, Ranzato, "Gradient Episodic Memory for Continual Learning", 2017,
    arXiv:1706.08840.
    """
    return float(_needed(_square(scores)[-1]).mean())


def learning_accuracy(scores: Any) -> float:
    r"""Plasticity: the mean score of each task just after it was learnt.

    .. math::  \frac1T \sum_j R_{j,j}

    Args:
      scores: `R`, `[T, T]`.

    Returns:
      A number on the scale of the scores.

    Raises:
      ValueError: if `scores` are no square matrix, or an entry that is needed is NaN.

    Example:
      >>> learning_accuracy([[0.9, 0.1], [0.5, 0.7]])
      0.8
    """
    return float(_needed(np.diag(_square(scores))).mean())


def backward_transfer(scores: Any) -> float:
    r"""What later tasks did to earlier ones: negative where they were forgotten.

    .. math::  \frac{1}{T-1} \sum_{j<T} (R_{T,j} - R_{j,j})

    Args:
      scores: `R`, `[T, T]`, of two tasks at least.

    Returns:
      A difference of scores.

    Raises:
      ValueError: if `scores` are no square matrix of two tasks at least, or an entry that is needed
        is NaN.

    Example:
      >>> round(backward_transfer([[0.9, 0.1], [0.5, 0.7]]), 4)
      -0.4

    Reference: Lopez-Paz, Ranzato, "Gradient Episodic Memory for Continual Learning", 2017,
    arXiv:1706.08840.
    """
    matrix = _square(scores, minimum=2)
    return float((_needed(matrix[-1, :-1]) - _needed(np.diag(matrix)[:-1])).mean())


def forward_transfer(scores: Any, untrained: Any) -> float:
    r"""What earlier tasks did for ones that were not begun.

    .. math::  \frac{1}{T-1} \sum_{j>1} (R_{j-1,j} - b_j)

    Args:
      scores: `R`, `[T, T]`, of two tasks at least.
      untrained: `b`, `[T]`, the scores of the model before the first task.

    Returns:
      A difference of scores.

    Raises:
      ValueError: if `scores` are no square matrix of two tasks at least, `untrained` has another
        length, or an entry that is needed is NaN.

    Example:
      >>> round(forward_transfer([[0.9, 0.3], [0.5, 0.7]], [0.2, 0.1]), 4)
      0.2

    Reference: Lopez-Paz, Ranzato, "Gradient Episodic Memory for Continual Learning", 2017,
    arXiv:1706.08840.
    """
    matrix, start = _square(scores, minimum=2), np.asarray(untrained, float)
    if start.shape != matrix.shape[:1]:
        raise ValueError(
            f"untrained must be one score a task, [{len(matrix)}], got {list(start.shape)}; score "
            "the initial model on all tasks"
        )
    return float((_needed(np.diag(matrix, 1)) - _needed(start[1:])).mean())


def forgetting(scores: Any) -> float:
    r"""How far each earlier task has fallen from the best that it ever had.

    .. math::  \frac{1}{T-1} \sum_{j<T} \Bigl( \max_{j \le i < T} R_{i,j} - R_{T,j} \Bigr)

    At least minus the backward transfer; more where a task was better some time after it was
    learnt. Negative where the last task improved the earlier ones.

    Args:
      scores: `R`, `[T, T]`, of two tasks at least.

    Returns:
      A difference of scores.

    Raises:
      ValueError: if `scores` are no square matrix of two tasks at least, or an entry that is needed
        is NaN.

    Example:
      >>> round(forgetting([[0.7, 0.0, 0.0], [0.9, 0.8, 0.0], [0.5, 0.7, 0.9]]), 4)
      0.25

    Reference: Chaudhry, Dokania, Ajanthan, Torr, "Riemannian Walk for Incremental Learning:
    Understanding Forgetting and Intransigence", 2018, arXiv:1801.10112.
    """
    matrix = _square(scores, minimum=2)
    best = [_needed(matrix[j:-1, j]).max() for j in range(len(matrix) - 1)]
    return float((np.array(best) - _needed(matrix[-1, :-1])).mean())


def _square(scores: Any, minimum: int = 1) -> np.ndarray:
    matrix = np.asarray(scores)
    if matrix.ndim != 2 or matrix.shape[0] != matrix.shape[1] or matrix.dtype.kind not in "fiu":
        raise ValueError(
            f"scores must be numbers [T, T], one row a task trained to and one column a task "
            f"scored, got {shown(scores)}; score all tasks after each of them"
        )
    if len(matrix) < minimum:
        raise ValueError(
            f"scores must be of {minimum} tasks at least, got {len(matrix)}; score all tasks after "
            "each of them"
        )
    return matrix.astype(float)


def _needed(values: np.ndarray) -> np.ndarray:
    if np.isnan(values).any():
        raise ValueError(
            "scores must be known where they are needed, got NaN: a task without examples to score "
            "has no score; leave it out"
        )
    return values


check_calls(globals())
