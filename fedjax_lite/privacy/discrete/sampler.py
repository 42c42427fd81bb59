"""The discrete Gaussian: integers with probability proportional to ``exp(-k^2 / 2 sigma^2)``."""

from __future__ import annotations

import decimal
import functools
import math
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from fedjax_lite.types import Array, Key

MAX_STDDEV = 1e4
"""Its table has 20 entries a unit of the standard deviation."""
RADIUS = 9.6
"""Standard deviations that the table covers: beyond them lies less than 2**-64."""


class Thresholds(NamedTuple):
    """The distribution function in steps of 2**-64, as pairs of 32-bit words."""

    lowest: int
    high: np.ndarray
    low: np.ndarray


@functools.lru_cache(maxsize=16)
def thresholds(stddev: float) -> Thresholds:
    r"""``round(2**64 P(X <= k))`` for ``k = -R .. R - 1``, with ``R = ceil(9.6 sigma) + 1``.

    Computed with 45 decimal digits on the host.

    Args:
      stddev: the parameter sigma, above 0 and at most 1e4. (The variance is a little less than
        its square where sigma is below 1/2.)

    Raises:
      ValueError: if `stddev` lies outside.

    Example:
      >>> table = thresholds(1.0)
      >>> table.lowest, len(table.high)
      (-11, 22)
    """
    if not 0 < stddev <= MAX_STDDEV:
        raise ValueError(
            f"stddev must lie in (0, {MAX_STDDEV:g}], got {stddev}; use a coarser grid for more"
        )
    radius = math.ceil(RADIUS * stddev) + 1
    with decimal.localcontext() as context:
        context.prec = 45
        unit = -1 / (2 * decimal.Decimal(stddev) ** 2)
        half = [(unit * (k * k)).exp() for k in range(radius + 1)]
        total = 2 * sum(half[1:]) + half[0]
        below, words = decimal.Decimal(0), []
        for k in range(-radius, radius):
            below += half[abs(k)]
            words.append(min(int((below / total * 2**64).to_integral_value()), 2**64 - 1))
    table = np.array(words, np.uint64)
    high, low = table >> np.uint64(32), table & np.uint64(2**32 - 1)
    return Thresholds(-radius, high.astype(np.uint32), low.astype(np.uint32))


def discrete_gaussian(key: Key, shape: Any, *, stddev: float) -> Array:
    r"""Independent draws of the discrete Gaussian, inside jit.

    .. math::  P(X = k) \propto \exp\!\big(-k^2 / (2 \sigma^2)\big), \qquad k \in \mathbb{Z}

    By inversion: 64 random bits against a table of the distribution function.

    Args:
      key: a typed key.
      shape: of the result.
      stddev: sigma, a Python float (it fixes the table); 0 gives zeros.

    Returns:
      int32 of `shape`.

    Raises:
      ValueError: if `stddev` is negative or above 1e4.

    Guarantees:
      One draw's distribution differs from the discrete Gaussian by less than
      ``(20 sigma + 4) 2**-64`` in total variation (table rounding, and the tail beyond 9.6 sigma),
      given uniform bits; jax's generator is a pseudo-random one.

    Example:
      >>> draws = discrete_gaussian(jax.random.key(0), (10_000,), stddev=2.0)
      >>> draws.dtype, abs(float(draws.mean())) < 0.1, abs(float(draws.var()) - 4) < 0.3
      (dtype('int32'), True, True)

    Reference: Canonne, Kamath, Steinke, "The Discrete Gaussian for Differential Privacy", 2020,
    arXiv:2004.00010.
    """
    if stddev == 0:
        return jnp.zeros(shape, jnp.int32)
    table = thresholds(float(stddev))
    highs, lows = jnp.asarray(table.high), jnp.asarray(table.low)
    high, low = jax.random.bits(key, (2, *shape), jnp.uint32)
    start = jnp.zeros(shape, jnp.int32)

    def halve(_: Any, bounds: tuple[Array, Array]) -> tuple[Array, Array]:
        least, most = bounds
        middle = (least + most) // 2
        at_high, at_low = highs[middle], lows[middle]
        reached = (at_high < high) | ((at_high == high) & (at_low <= low))
        going = least < most
        return jnp.where(going & reached, middle + 1, least), jnp.where(
            going & ~reached, middle, most
        )

    # How many thresholds a draw reaches.
    count = len(table.high)
    steps = count.bit_length()
    reached, _ = jax.lax.fori_loop(0, steps, halve, (start, start + count))
    return reached + table.lowest
