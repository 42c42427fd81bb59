"""What a compressed vector consists of: fields of fixed width, and what they cost in bits."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any, NamedTuple

import jax.numpy as jnp
import numpy as np

from fedjax_lite.checks.arguments import check_count
from fedjax_lite.transforms.random_words import seed_of
from fedjax_lite.types import Array, Key, Wire

Symbols = dict[str, Array]
"""The numbers that are sent, by the names of their fields."""


class Field(NamedTuple):
    """Numbers of one kind in a packed message."""

    name: str
    count: int
    width: int
    """Bits of each number."""
    real: bool = False
    """Floating point: the raw bits are sent. Else unsigned integers below ``2**width``."""


class Code(NamedTuple):
    """How one vector `[D]` is written and read; both sides know the seed, uint32 `[2]`."""

    encode: Callable[[Array, Array], Symbols]
    """``(seed, vector) -> symbols``."""
    decode: Callable[[Array, Symbols, int], Array]
    """``(seed, symbols, D) -> vector [D]``."""
    fields: Callable[[int, Any], tuple[Field, ...]]
    """``(D, dtype) -> fields``, static."""
    entropy: Callable[[Symbols, int], Array]
    """``(symbols, D) ->`` bits that an ideal entropy coder would write."""


def transmit(code: Code, key: Key, vector: Array) -> tuple[Array, Wire]:
    """Writes and reads a vector.

    Args:
      code: the format.
      key: of the seed, which both sides draw.
      vector: floats `[D]`.

    Returns:
      The vector as it is decoded, and its `Wire`.

    Example:
      >>> import jax
      >>> from fedjax_lite.transforms.sign import sign_code
      >>> decoded, wire = transmit(sign_code(), jax.random.key(0), jnp.array([3.0, -4.0, 1.0, 2.0]))
      >>> decoded.tolist(), float(wire.bits)
      ([2.5, -2.5, 2.5, 2.5], 36.0)
    """
    size = vector.shape[0]
    seed = seed_of(key)
    symbols = code.encode(seed, vector)
    bits = packed_bits(code.fields(size, vector.dtype))
    wire = Wire(jnp.float32(bits), code.entropy(symbols, size).astype(jnp.float32))
    return code.decode(seed, symbols, size), wire


def packed_bits(fields: tuple[Field, ...]) -> int:
    """Bits of a packed message.

    Example:
      >>> packed_bits((Field("scale", 1, 32, real=True), Field("negative", 10, 1)))
      42
    """
    return sum(field.count * field.width for field in fields)


def real(name: str, count: int, dtype: Any) -> Field:
    """A field of raw floats: 32 bits each, or what a wider dtype takes.

    Example:
      >>> real("norm", 1, jnp.float32).width
      32
    """
    return Field(name, count, max(32, jnp.dtype(dtype).itemsize * 8), real=True)


def width_of(num_symbols: int) -> int:
    """Bits that tell `num_symbols` symbols apart, ``ceil(log2(num_symbols))``.

    Example:
      >>> [width_of(n) for n in (1, 2, 3, 1000, 1024)]
      [0, 1, 2, 10, 10]
    """
    return (num_symbols - 1).bit_length()


def kept_count(k: int | float, size: int) -> int:
    """How many of `size` coordinates are kept: an int is a count, a float a fraction.

    NumPy's integers and floats are as good as Python's.

    Example:
      >>> kept_count(5, 100), kept_count(0.01, 1000), kept_count(0.01, 3), kept_count(5, 3)
      (5, 10, 1, 3)
    """
    if isinstance(k, int | np.integer):
        return min(int(k), size)
    return max(1, round(float(k) * size))


def check_kept(k: Any, name: str = "k") -> None:
    """Raises where `k` is neither a positive count (int) nor a fraction (float) in (0, 1].

    Example:
      >>> check_kept(0.01)
    """
    if isinstance(k, float | np.floating):
        if not 0 < k <= 1:
            raise ValueError(
                f"{name} as a float is a fraction in (0, 1], got {k}; give an int for a count"
            )
    else:
        check_count(k, name, minimum=1)


def counts_of(symbols: Array, num_symbols: int) -> Array:
    """How often each symbol occurs, int32 `[num_symbols]`.

    Example:
      >>> counts_of(jnp.array([0, 2, 2]), 3).tolist()
      [1, 0, 2]
    """
    symbols = symbols.ravel().astype(jnp.int32)
    return jnp.zeros(num_symbols, jnp.int32).at[symbols].add(1, mode="drop")


def code_length(counts: Array) -> Array:
    r"""The ideal code length for the frequencies of the symbols themselves, in bits.

    .. math::  \sum_s n_s \log_2 (n / n_s), \qquad n = \textstyle\sum_s n_s

    Args:
      counts: how often each symbol occurs, `[S]`.

    Returns:
      A float32 scalar; the table of frequencies is not counted.

    Example:
      >>> float(code_length(jnp.array([2, 2, 4, 0])))
      12.0
    """
    counts = counts.astype(jnp.float32)
    share = jnp.where(counts > 0, counts.sum() / jnp.maximum(counts, 1.0), 1.0)
    return (counts * jnp.log2(share)).sum()


def log2_binomial(size: int, k: int) -> float:
    """``log2`` of the number of subsets of `k` out of `size`: what positions cost at least.

    Example:
      >>> round(log2_binomial(4, 2), 6)  # 6 subsets
      2.584963
    """
    total = math.lgamma(size + 1) - math.lgamma(k + 1) - math.lgamma(size - k + 1)
    return max(0.0, total / math.log(2))
