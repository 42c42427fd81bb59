"""mode_coverage(): which modes of the data a generator makes, and whose are forgotten."""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np

from fedjax_lite.checks.arguments import shown
from fedjax_lite.evaluate.generation.frechet import features
from fedjax_lite.evaluate.generation.manifold import distances


class Coverage(NamedTuple):
    """Of `K` modes."""

    shares: np.ndarray
    """float64 `[K]`: of all samples, those that are within `radius` of a mode and nearest to it."""
    covered: float
    """The share of modes that have at least `least` of an equal share of the samples."""
    quality: float
    """The share of samples within `radius` of a mode."""


def mode_coverage(made: Any, modes: Any, *, radius: float, least: float = 0.1) -> Coverage:
    """How many modes are made, of a mixture whose centres are known.

    Args:
      made: `[m, D]`, generated points.
      modes: `[K, D]`, the centres.
      radius: how far from a centre still counts; three deviations of a Gaussian, say.
      least: a mode is covered where its share is at least ``least / K``.

    Returns:
      `Coverage`.

    Raises:
      ValueError: if shapes do not fit, or a number is not positive.

    Example:
      >>> found = mode_coverage([[0.1], [0.2], [5.0]], [[0.0], [9.0]], radius=1.0)
      >>> found.covered, found.shares.round(2).tolist()
      (0.5, [0.67, 0.0])

    Reference: Rasouli, Sun, Rajagopal, 2020, arXiv:2006.07228.
    """
    made, modes = features(made, "made"), features(modes, "modes")
    if made.shape[1] != modes.shape[1]:
        raise ValueError(
            f"modes must be points of {made.shape[1]} numbers as made, got {modes.shape[1]}; "
            "give the centres [K, D]"
        )
    for name, value in (("radius", radius), ("least", least)):
        if not 0 < value < np.inf:
            raise ValueError(f"{name} must be positive, got {shown(value)}; give a number above 0")
    apart = distances(made, modes)
    nearest, near = apart.argmin(1), apart.min(1) <= radius
    shares = np.bincount(nearest[near], minlength=len(modes)) / len(made)
    covered = float((shares >= least / len(modes)).mean())
    return Coverage(shares, covered, float(near.mean()))


def client_coverage(shares: Any, counts: Any) -> np.ndarray:
    r"""How much of each client's data a generator makes, by client.

    .. math::  c_i = \sum_k q_{ik} \min\Bigl(1, \frac{p_k}{\bar q_k}\Bigr), \qquad
               q_{ik} = \frac{n_{ik}}{\sum_k n_{ik}}, \qquad
               \bar q_k = \frac{\sum_i n_{ik}}{\sum_{ik} n_{ik}}

    1 for a client whose modes (styles, classes) are made at least as often as they are in the data
    of all; 0 for one whose only mode is never made. A minority's is the first to fall.

    Args:
      shares: `[K]`, of what is made, `p`: `mode_coverage`'s, or of the classes that a classifier
        sees in generated images.
      counts: `[N, K]`, examples of each client by mode.

    Returns:
      float64 `[N]`; NaN for a client without examples.

    Raises:
      ValueError: if shapes do not fit, or a number is negative or not finite.

    Example:
      >>> client_coverage([1.0, 0.0], [[90, 0], [5, 5]]).tolist()
      [1.0, 0.5]
    """
    made, held = np.asarray(shares, np.float64), np.asarray(counts, np.float64)
    if held.ndim != 2 or made.shape != held.shape[1:]:
        raise ValueError(
            f"counts must be [N, K] beside shares [K], got {shown(counts)} and {shown(shares)}; "
            "one row a client, one column a mode"
        )
    for name, table, given in (("shares", made, shares), ("counts", held, counts)):
        if not (np.isfinite(table) & (table >= 0)).all():
            raise ValueError(f"{name} must be finite and not negative, got {shown(given)}; counts")
    whole = held.sum(0) / max(held.sum(), 1e-300)
    kept = np.where(whole > 0, np.minimum(1, made / np.where(whole > 0, whole, 1)), 0)
    with np.errstate(invalid="ignore", divide="ignore"):
        return (held @ kept) / held.sum(1)
