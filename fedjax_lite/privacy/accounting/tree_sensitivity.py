"""How far one client can move the nodes of DP-FTRL's tree: exact, by enumeration."""

from __future__ import annotations

import numpy as np

from fedjax_lite.checks.arguments import check_count


def tree_levels(num_rounds: int) -> int:
    """``floor(log2 T) + 1``: the most nodes that one round is part of.

    Example:
      >>> [tree_levels(rounds) for rounds in (1, 8, 1000, 1024)]
      [1, 4, 10, 11]
    """
    check_count(num_rounds, "num_rounds", minimum=1)
    return num_rounds.bit_length()


def tree_sensitivity(num_rounds: int, separation: int) -> float:
    """How far one client can move all nodes together, in units of `clip`.

    A client takes part in the rounds ``i, i + b, i + 2b ...``; a node that spans `c` of them moves
    by at most `c`. Only nodes that some prefix uses count: at every level each other block.

    Args:
      num_rounds: `T`.
      separation: `b`, rounds between two turns of a client.

    Returns:
      The largest l2 norm over `i`: exact, by enumeration.

    Example:
      >>> tree_sensitivity(8, 8) == 4**0.5, tree_sensitivity(1, 1)
      (True, 1.0)
    """
    return float(tree_sensitivities(num_rounds, separation)[-1])


def tree_sensitivities(num_rounds: int, separation: int) -> np.ndarray:
    """`tree_sensitivity` after each of `num_rounds` rounds, float64 `[T]`.

    Example:
      >>> (tree_sensitivities(4, 4) ** 2).round(9).tolist()
      [1.0, 2.0, 2.0, 3.0]
    """
    check_count(num_rounds, "num_rounds", minimum=1)
    check_count(separation, "separation", minimum=1)
    starts = np.arange(min(separation, num_rounds))
    squares = np.zeros(len(starts))
    largest = np.zeros(num_rounds)
    for last in range(1, num_rounds + 1):
        # One node that prefixes use is complete after each round: as wide as its lowest digit.
        first = last - (last & -last)
        # Turns i + k b in [first, last).
        low = -(-(first - starts) // separation)
        high = -(-(last - starts) // separation)
        squares += (np.maximum(high, 0) - np.maximum(low, 0)) ** 2.0
        largest[last - 1] = squares.max()
    return np.sqrt(largest)
