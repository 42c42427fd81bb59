"""Learning rates in words: numbers, and schedules by what they do."""

from __future__ import annotations

from typing import Any

import jax
import numpy as np

from fedjax_lite.checks.tried import tried
from fedjax_lite.describe.notes import called
from fedjax_lite.describe.numbers import LIBRARIES, figure, function_words

NEAR = 1024
TIMES = np.array([*range(NEAR), *(NEAR * 2**i for i in range(11))], np.int32)
"""When a schedule is looked at: at every early step, and at some up to a million."""


def rate_words(rate: Any) -> str:
    """A learning rate, or a function of the round, in words.

    Example:
      >>> import optax
      >>> rate_words(0.1), rate_words(optax.linear_schedule(1.0, 0.5, 10))
      ('0.1', 'by a schedule: linearly from 1 to 0.5 in 10 steps')
    """
    if not callable(rate):
        return figure(rate)
    whose = called(rate)[1].split(".")[0] in LIBRARIES
    name = "a schedule" if whose else f"the schedule {function_words(rate)}"
    try:
        both = [tried(jax.vmap(rate), TIMES, stand_in=stand_in) for stand_in in (0.5, 0.75)]
    except Exception:  # whatever a user's function raises: its values are left out
        return f"by {name}"
    (values, traced), (others, _) = both
    if np.ndim(values) != 1:
        return f"by {name}"
    if traced and not np.array_equal(values, others, equal_nan=True):
        return f"by {name} of traced values"
    return f"by {name}: {curve_words(values)}"


def curve_words(values: np.ndarray) -> str:
    """What a schedule does.

    Args:
      values: at `TIMES`, or at the first of every step on.

    Example:
      >>> import optax
      >>> curve_words(jax.vmap(optax.cosine_decay_schedule(0.5, 90))(TIMES))
      'along a cosine from 0.5 to 0 in 90 steps'
      >>> curve_words(jax.vmap(optax.piecewise_constant_schedule(0.5, {7: 0.5}))(TIMES))
      '0.5, 0.25 from step 7 on'
      >>> curve_words(jax.vmap(optax.warmup_cosine_decay_schedule(0.0, 0.5, 10, 100))(TIMES))
      'linearly from 0 to 0.5 in 10 steps, then along a cosine from 0.5 to 0 in 90 steps'
      >>> curve_words(0.5 * 0.75 ** np.arange(1100.0))
      'from 0.5 on, times 0.75 a step'
    """
    values = np.asarray(values, np.float64)
    words = _known(values) or _warmed_up(values)
    if words is not None:
        return words
    shown = [n for n in (0, 1, 10, 100, 1000) if n < len(values)]
    return ", ".join(f"{figure(values[n])} at step {n}" for n in shown)


def _known(values: np.ndarray) -> str | None:
    first, last, length = values[0], values[-1], len(values)
    early = values[: min(length, NEAR)]
    scale = np.abs(values).max()
    if not np.isfinite(values).all():
        return None

    def near(one: Any, other: Any) -> bool:
        return bool(np.allclose(one, other, rtol=1e-5, atol=2e-6 * scale))

    if near(values, first):
        return figure(first)
    end = int(np.flatnonzero(~np.isclose(values, last, rtol=1e-6, atol=2e-7 * scale))[-1]) + 1
    jumps = np.flatnonzero(np.abs(np.diff(early)) > 1e-6 * scale) + 1
    if len(jumps) <= 4 and near(early[-1], last):
        later = [f"{figure(early[n])} from step {n} on" for n in jumps]
        return ", ".join([figure(first), *later])
    if end < len(early):
        for about in range(max(end - 2, 2), end + 12):  # a cosine is flat where it ends
            part = np.minimum(np.arange(len(early)) / about, 1)
            turn = f"from {figure(first)} to {figure(last)} in {about} steps"
            if near(early, first + (last - first) * part):
                return f"linearly {turn}"
            if near(early, last + (first - last) * (1 + np.cos(np.pi * part)) / 2):
                return f"along a cosine {turn}"
    if first and near(early, first * (early[1] / first) ** np.arange(len(early))):
        return f"from {figure(first)} on, times {figure(early[1] / first)} a step"
    return None


def _warmed_up(values: np.ndarray) -> str | None:
    """A straight rise, then something known."""
    peak = int(np.argmax(values[:NEAR]))
    if not 1 < peak < NEAR - 2:
        return None
    line = np.linspace(values[0], values[peak], peak + 1)
    if not np.allclose(values[: peak + 1], line, rtol=1e-5, atol=2e-6 * values[peak]):
        return None
    rest = _known(values[peak:NEAR])
    rise = f"linearly from {figure(values[0])} to {figure(values[peak])} in {peak} steps"
    return None if rest is None else f"{rise}, then {rest}"
