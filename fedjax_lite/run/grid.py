"""The points of a sweep: every combination of its settings and seeds."""

from __future__ import annotations

import itertools
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

Row = dict[str, Any]


def points_of(grid: Mapping[str, Sequence[float]], seeds: Sequence[int]) -> list[Row]:
    """Every combination of a grid and seeds, the seed last and fastest.

    Args:
      grid: numbers by the name of what they set.
      seeds: integers.

    Raises:
      TypeError, ValueError: if an axis holds no numbers, one of them twice, or is called "seed".

    Example:
      >>> points_of({"mu": [0.0, 1.0]}, [3])
      [{'mu': 0.0, 'seed': 3}, {'mu': 1.0, 'seed': 3}]
    """
    for name in ("seed", "round"):
        if name in grid:
            raise ValueError(f"grid must not hold {name!r}; hand seeds and num_rounds to sweep")
    axes = {name: _numbers(name, values) for name, values in {**grid, "seed": seeds}.items()}
    return [dict(zip(axes, values, strict=True)) for values in itertools.product(*axes.values())]


def _numbers(name: str, values: Any) -> list[float]:
    """The values of one axis as Python numbers, all different."""
    shown = "seeds" if name == "seed" else f"grid[{name!r}]"
    if np.ndim(values) != 1 or not len(values):
        raise ValueError(f"{shown} must be a list of numbers, not empty, got {values!r}")
    array = np.asarray(values)
    wanted = np.integer if name == "seed" else np.number
    if not np.issubdtype(array.dtype, wanted) or np.issubdtype(array.dtype, np.complexfloating):
        raise TypeError(
            f"{shown} must hold {'integers' if name == 'seed' else 'numbers'}, got {values!r}; a "
            "choice of code or shape belongs into a Python loop around sweep"
        )
    numbers = array.tolist()
    if len(set(numbers)) < len(numbers):
        raise ValueError(f"{shown} must hold each value once, got {values!r}")
    if name == "seed" and not -(2**31) <= min(numbers) <= max(numbers) < 2**31:
        raise ValueError(f"seeds must lie in [-2**31, 2**31), got {values!r}")
    return numbers
