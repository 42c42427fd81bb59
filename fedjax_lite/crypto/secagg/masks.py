"""Double masks: what a client adds to its vector, and what the server takes off the sum."""

from __future__ import annotations

from collections.abc import Iterable, Mapping

import numpy as np

from fedjax_lite.checks.arguments import check_whole


def add_masks(
    vector: np.ndarray, *, client: int, own: np.ndarray, pairs: Mapping[int, np.ndarray]
) -> np.ndarray:
    r"""A vector under its own mask and those of its pairs, modulo 2**32.

    .. math::  y_u = x_u + b_u + \sum_{v > u} s_{uv} - \sum_{v < u} s_{uv}

    Args:
      vector: `x_u`, uint32 `[D]`.
      client: `u`.
      own: `b_u`, stretched to uint32 `[D]`.
      pairs: `s_uv` by peer `v`.

    Returns:
      uint32 `[D]`.

    Example:
      >>> word = lambda number: np.array([number], np.uint32)
      >>> pairs = {1: word(7), 3: word(11)}
      >>> add_masks(word(9), client=2, own=word(2), pairs=pairs).tolist()
      [15]
    """
    check_whole(vector, "vector")
    check_whole(own, "own")
    masked = vector + own
    for peer, stream in pairs.items():
        masked = masked + stream if peer > client else masked - stream
    return masked


def remove_masks(
    total: np.ndarray,
    *,
    own: Iterable[np.ndarray],
    pairs: Mapping[tuple[int, int], np.ndarray],
) -> np.ndarray:
    """The sum of the survivors' vectors from the sum of what they sent, modulo 2**32.

    Args:
      total: uint32 `[D]`: masks between two survivors have cancelled.
      own: the survivors' own masks.
      pairs: masks by ``(survivor, dropped)``, as survivors added them for those who sent nothing.

    Returns:
      uint32 `[D]`.

    Example:
      >>> word = lambda number: np.array([number], np.uint32)
      >>> remove_masks(word(31), own=[word(1), word(2)],
      ...              pairs={(1, 3): word(3), (2, 3): word(11)}).tolist()
      [14]
    """
    check_whole(total, "total")
    for stream in own:
        check_whole(stream, "own")
        total = total - stream
    for (survivor, dropped), stream in pairs.items():
        total = total - stream if dropped > survivor else total + stream
    return total
