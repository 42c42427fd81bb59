"""Fixed point: floats as integers of a ring, the same integers on the host and inside jit."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from fedjax_lite.checks.arguments import check_bool, check_count, check_positive, check_whole, shown

RING_BITS = 32
"""Sums are taken modulo 2**32, which is what uint32 addition does by itself."""
MOST_ABS = float(np.finfo(np.float32).max)
MAX_BITS = 24
"""More levels than float32 has integers would not be told apart."""


def encode(values: Any, *, max_abs: Any, bits: int, exact_zero: bool = False) -> Any:
    r"""Floats in `[-c, c]` as integers of `r` bits.

    .. math::  q = \operatorname{round}\!\Big(\frac{v + c}{2c}\,(2^r - 1)\Big), \qquad v \in [-c, c]

    Ties go to the even integer. In float32 as ``(v + c) * ((2**r - 1) / (2c))``: an addition, one
    product and a rounding, which no compiler fuses or reorders, so numpy and jax agree in every
    bit. What lies outside the range is clipped to it, infinities included; NaN counts as 0.
    A code lies within half a step of the formula, and ``2**(r - 23)`` steps of float32's rounding.
    Zero is not among the ``2**r`` levels: it decodes to half a step, on the same side always, but
    for `exact_zero`, which takes one level away.

    Args:
      values: any shape; a numpy array (or a number) gives numpy, a jax array jax.
      max_abs: `c` > 0; may be traced where `values` is.
      bits: `r`, 1 to 24.
      exact_zero: use ``2**r - 2`` in place of ``2**r - 1``, so that 0 is a level (2 to 22 bits).

    Returns:
      uint32 of the shape of `values`, each below ``2**bits``.

    Raises:
      ValueError: if `max_abs` is not positive or `bits` lies outside 1 to 24.

    Example:
      >>> encode(np.array([-1.0, -0.4, 1.0, 9.0]), max_abs=1.0, bits=2).tolist()
      [0, 1, 3, 3]
    """
    check_grid(max_abs, bits, exact_zero)
    found = values if isinstance(values, jax.Array) else np.asarray(values)
    is_key = isinstance(values, jax.Array) and jnp.issubdtype(values.dtype, jax.dtypes.prng_key)
    if is_key or found.dtype.kind not in "biufV":
        raise TypeError(f"values must be numbers, got {shown(values)}; give an array of floats")
    on_device = isinstance(values, jax.Array) or isinstance(max_abs, jax.Array)
    xp: Any = jnp if on_device else np
    top = np.float32(2**bits - 1 - exact_zero)
    limit = xp.asarray(max_abs, np.float32)
    scale = top / (np.float32(2) * limit)
    with np.errstate(over="ignore"):  # float64 beyond float32 is infinite, and clipped
        values = xp.asarray(values).astype(np.float32)
    values = xp.where(xp.isnan(values), np.float32(0), values)
    # Clipping stands between a caller's product and the addition, which could be fused otherwise.
    values = xp.minimum(xp.maximum(values, -limit), limit)
    steps = xp.round((values + limit) * scale)
    return xp.minimum(xp.maximum(steps, np.float32(0)), top).astype(np.uint32)


def decode_mean(
    total: Any, count: Any, *, max_abs: Any, bits: int, exact_zero: bool = False
) -> Any:
    r"""The mean of what was encoded, from the ring's sum.

    .. math::  \bar v = \frac{2c}{2^r - 1}\,\frac{\sum_i w_i q_i}{\sum_i w_i} - c, \quad 0/0 := 0

    The division is done in integers first, so that a small mean of many clients keeps its digits.

    Args:
      total: uint32 sum of the codes (times integer weights), any shape; numpy or jax.
      count: uint32 scalar: how many survived (or the sum of their weights).
      max_abs: `c`.
      bits: `r`.
      exact_zero: as it was encoded.

    Returns:
      float32 (float64 on the host and under x64) of the shape of `total`.

    Example:
      >>> decode_mean(np.uint32([0 + 3, 3 + 3]), 2, max_abs=1.0, bits=2).tolist()
      [0.0, 1.0]
    """
    check_grid(max_abs, bits, exact_zero)
    on_device = any(isinstance(x, jax.Array) for x in (total, count, max_abs))
    xp: Any = jnp if on_device else np
    dtype: Any = jnp.result_type(float).type if on_device else np.float64
    check_whole(total, "total")
    check_whole(count, "count")
    total, count = xp.asarray(total, np.uint32), xp.asarray(count, np.uint32)
    whole = xp.maximum(count, np.uint32(1))
    quotient, rest = total // whole, total % whole
    top = 2**bits - 1 - exact_zero
    centred = (2 * quotient.astype(np.int32) - np.int32(top)).astype(dtype)
    share = rest.astype(dtype) / whole.astype(dtype)
    value = (centred + 2 * share) * (xp.asarray(max_abs, dtype) / dtype(top))
    return xp.where(count == 0, xp.zeros_like(value), value)


def check_grid(max_abs: Any, bits: int, exact_zero: bool = False) -> None:
    """Raises where `max_abs` or `bits` give no grid."""
    if not isinstance(max_abs, jax.core.Tracer) and np.ndim(max_abs):
        raise ValueError(f"max_abs must be one number, got shape {np.shape(max_abs)}; give 1.0")
    check_bool(exact_zero, "exact_zero")
    check_positive(max_abs, "max_abs")
    if not isinstance(max_abs, jax.core.Tracer) and not float(max_abs) <= MOST_ABS:
        raise ValueError(
            f"max_abs must be finite in float32, got {max_abs}: it is cut into steps; give 1.0"
        )
    check_count(bits, "bits", minimum=1)
    if bits > MAX_BITS:
        raise ValueError(
            f"bits must be at most {MAX_BITS}, got {bits}: values are float32, which does not "
            "tell more levels apart"
        )
    if exact_zero and not 2 <= bits <= MAX_BITS - 2:
        raise ValueError(
            f"bits must lie between 2 and {MAX_BITS - 2} with exact_zero, got {bits}: 0 has to be "
            "a level in float32, too"
        )


def check_ring(num_clients: int, *, max_weight: int = 1, bits: int) -> None:
    """Raises where a sum could wrap around: it must stay below 2**32.

    Args:
      num_clients: clients of a round, at most.
      max_weight: the largest integer weight of one client.
      bits: bits of a code.

    Raises:
      ValueError: if ``num_clients * max_weight * (2**bits - 1) >= 2**32``.

    Example:
      >>> check_ring(65_537, bits=16)
      >>> try:
      ...     check_ring(65_538, bits=16)
      ... except ValueError as error:
      ...     print(str(error)[:58])
      the sum of 65538 clients * weight 1 * (2**16 - 1) = 429503
    """
    check_count(num_clients, "num_clients", minimum=1)
    check_count(max_weight, "max_weight", minimum=1)
    check_count(bits, "bits", minimum=1)
    largest = num_clients * max_weight * (2**bits - 1)
    if largest >= 2**RING_BITS:
        fitting = max(((2**RING_BITS - 1) // (num_clients * max_weight) + 1).bit_length() - 1, 0)
        remedy = f"bits <= {fitting}, or " if fitting else ""
        raise ValueError(
            f"the sum of {num_clients} clients * weight {max_weight} * (2**{bits} - 1) = {largest} "
            f"would wrap around 2**{RING_BITS}; use {remedy}a smaller cohort or max_weight"
        )
