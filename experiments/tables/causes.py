"""What chance alone makes of a figure that was published of one run."""

from __future__ import annotations

import math
import statistics
from collections.abc import Sequence

from tables.words import number

ORDINARY = 0.05
"""Share of runs as far off from which on chance is a cause."""


def one_run(value: float, ours: Sequence[float]) -> str:
    """The cause where one run was published: how rarely one more of ours would be as far off.

    If theirs is drawn as ours are, ``(value - mean) / (s sqrt(1 + 1/n))`` has Student's t
    distribution with n - 1 degrees of freedom.

    Args:
      value: the published figure.
      ours: one value a seed; below two, or all alike, nothing can be said, and the text is empty.

    Example:
      >>> one_run(4.0, [1.0, 2.0, 3.0])  # t = 2 / sqrt(4 / 3) with 2 degrees of freedom
      'theirs is one run without a seed: of runs like these 3 one in 4.4 would be as far off'
    """
    if len(ours) < 2 or not statistics.stdev(ours):
        return ""
    off = abs(value - statistics.fmean(ours)) / statistics.stdev(ours)
    share = beyond(off, len(ours))
    text = (
        f"theirs is one run without a seed: of runs like these {len(ours)} one in "
        f"{number(1 / share, 1)} would be as far off"
    )
    return text if share >= ORDINARY else f"cause unknown; {text}"


def missed_by_chance(num_seeds: int) -> float:
    """The share of single runs, drawn as ours are, that lie over a deviation from our mean.

    The rule finds these not reproduced, though nothing differs.

    Args:
      num_seeds: of ours, at least 2.

    Example:
      >>> round(missed_by_chance(5), 3), round(missed_by_chance(10_000), 3)
      (0.413, 0.317)
    """
    return beyond(1.0, num_seeds)


def beyond(deviations: float, num_seeds: int) -> float:
    """The share of single runs that lie farther from the mean of so many of ours.

    Args:
      deviations: in sample deviations of ours.
      num_seeds: of ours, at least 2.
    """
    from scipy.stats import t

    return 2 * float(t.sf(deviations / math.sqrt(1 + 1 / num_seeds), num_seeds - 1))
