"""top_k(): the k largest coordinates and their places."""

from __future__ import annotations

import jax
import jax.numpy as jnp

from fedjax_lite.checks.made import made
from fedjax_lite.transforms.chain import send
from fedjax_lite.transforms.flat import over_tree
from fedjax_lite.transforms.selection import largest, magnitude_keys
from fedjax_lite.transforms.wire import (
    Code,
    Field,
    Symbols,
    check_kept,
    kept_count,
    log2_binomial,
    packed_bits,
    real,
    width_of,
)
from fedjax_lite.types import Array, Key, Transform, Wire


@made
def top_k(k: int | float, *, values: Transform | None = None, per_leaf: bool = False) -> Transform:
    r"""Keeps the `k` coordinates of largest magnitude.

    .. math::
        \lVert C(v) - v \rVert^2 \le (1 - k / d) \lVert v \rVert^2

    ``k (32 + ceil(log2 d))`` bits: values and indices. The entropy bound counts
    ``log2 binomial(d, k)`` for the places. Biased: use it under `error_feedback`.

    Args:
      k: how many are kept: an int is a count (at most `d`), a float a fraction of `d`; over the
        whole tree unless `per_leaf`. Ties go to the lowest index.
      values: a stateless compressor for the kept values (a vector `[k]`, in the order of their
        places), e.g. ``qsgd(15)``; default raw floats. Costs a compaction of the vector.
      per_leaf: `k` for each leaf: a fraction of it, or a count.

    Returns:
      A stateless `Transform`. A value that is not finite is sent as zero.

    Raises:
      TypeError: if `k` is not a number, or `values` not a `Transform`.
      ValueError: if `k` is neither a positive count nor a fraction, or `values` does something
        else than compress.

    Example:
      >>> value = jnp.array([3.0, -4.0, 1.0, 2.0])
      >>> _, out, wire = top_k(2).send(jax.random.key(0), (), value)
      >>> out.tolist(), float(wire.bits)
      ([3.0, -4.0, 0.0, 0.0], 68.0)

    Reference: Stich, Cordonnier, Jaggi, "Sparsified SGD with Memory", 2018, arXiv:1809.07599.
    """
    code = top_k_code(k)
    if values is not None:
        check_values(values)

    def compress(key: Key, vector: Array) -> tuple[Array, Wire]:
        size = vector.shape[0]
        kept = kept_count(k, size)
        # As code.decode(code.encode(v)), without the indices, whose compaction is slow.
        mask = largest_magnitudes(vector, kept)
        if values is None:
            entropy = log2_binomial(size, kept) + kept * real("value", 1, vector.dtype).width
            bits = packed_bits(code.fields(size, vector.dtype))
            return jnp.where(mask, vector, 0), Wire(jnp.float32(bits), jnp.float32(entropy))
        index = kept_indices(mask, kept)
        _, coded, wire = send(values, key, (), vector[index])
        decoded = jnp.zeros_like(vector).at[index].set(coded)
        bits, entropy = kept * width_of(size), log2_binomial(size, kept)
        return decoded, Wire(wire.bits + bits, wire.entropy + entropy)

    return over_tree(compress, per_leaf=per_leaf)


def top_k_code(k: int | float) -> Code:
    """The format of `top_k`: indices and raw values.

    Example:
      >>> packed_bits(top_k_code(10).fields(1000, jnp.float32))
      420
    """
    check_kept(k)

    def encode(seed: Array, vector: Array) -> Symbols:
        kept = kept_count(k, vector.shape[0])
        index = kept_indices(largest_magnitudes(vector, kept), kept)
        return {"index": index, "value": vector[index]}

    def decode(seed: Array, symbols: Symbols, size: int) -> Array:
        value = jnp.asarray(symbols["value"])
        return jnp.zeros(size, value.dtype).at[symbols["index"]].set(value)

    def fields(size: int, dtype: jnp.dtype) -> tuple[Field, ...]:
        kept = kept_count(k, size)
        return Field("index", kept, width_of(size)), real("value", kept, dtype)

    def entropy(symbols: Symbols, size: int) -> Array:
        kept = kept_count(k, size)
        raw = kept * real("value", 1, symbols["value"].dtype).width
        return jnp.float32(log2_binomial(size, kept) + raw)

    return Code(encode, decode, fields, entropy)


def largest_magnitudes(vector: Array, k: int) -> Array:
    """Where the `k` largest magnitudes are, bool `[D]`; ties go to the lowest index.

    Example:
      >>> largest_magnitudes(jnp.array([1.0, -2.0, 2.0, 2.0]), 2).tolist()
      [False, True, True, False]
    """
    if k == vector.shape[0]:
        return jnp.ones(k, bool)
    keys, num_bits = magnitude_keys(vector)
    return largest(keys, k, num_bits=num_bits)


def kept_indices(mask: Array, k: int) -> Array:
    """The places where `mask`, True `k` times, holds: int32 `[k]`, ascending.

    Example:
      >>> kept_indices(jnp.array([False, True, True, False]), 2).tolist()
      [1, 2]
    """
    return jnp.nonzero(mask, size=k)[0].astype(jnp.int32)


def check_values(values: Transform, name: str = "values") -> None:
    """Raises where `values` is not a plain compressor of the values that are kept.

    Example:
      >>> from fedjax_lite.transforms.qsgd import qsgd
      >>> check_values(qsgd(15))
    """
    if not isinstance(values, Transform):
        raise TypeError(f"{name} must be a Transform, got {values!r}; was a factory not called?")
    if values.kinds != ("compress",) or jax.tree.leaves(values.init(jnp.zeros(2))):
        raise ValueError(
            f"{name} must be a stateless compressor such as qsgd(15), got one of kinds "
            f"{values.kinds}; put clipping and noise before it, error_feedback around it"
        )
