"""random_k(): k coordinates drawn at random; a shared seed says which."""

from __future__ import annotations

import jax
import jax.numpy as jnp

from fedjax_lite.checks.made import made
from fedjax_lite.transforms.chain import send
from fedjax_lite.transforms.flat import over_tree
from fedjax_lite.transforms.random_words import random_words, seed_of
from fedjax_lite.transforms.selection import largest
from fedjax_lite.transforms.top_k import check_values, kept_indices
from fedjax_lite.transforms.wire import (
    Code,
    Field,
    Symbols,
    check_kept,
    kept_count,
    packed_bits,
    real,
)
from fedjax_lite.types import Array, Key, Transform, Wire


@made
def random_k(
    k: int | float,
    *,
    unbiased: bool = True,
    values: Transform | None = None,
    per_leaf: bool = False,
) -> Transform:
    r"""Keeps `k` coordinates, a uniformly random subset.

    .. math::
        C(v)_i = \tfrac dk v_i \;\text{ for } i \in S,\ |S| = k, \qquad
        \mathbb E C(v) = v, \qquad
        \mathbb E \lVert C(v) - v \rVert^2 = (d / k - 1) \lVert v \rVert^2

    ``32 k`` bits: the receiver draws the same subset from the same key (a seed that follows from
    the run's seed, the round and the client), so no index is sent. With ``unbiased=False`` the
    factor `d/k` is left out: a contraction with :math:`\delta = k / d`, which is what
    `error_feedback` needs: with the factor, feedback would diverge for `k` below `d / 2`.

    Args:
      k: how many are kept: an int is a count (at most `d`), a float a fraction of `d`; over the
        whole tree unless `per_leaf`.
      unbiased: scale by `d/k`.
      values: a stateless compressor for the kept values, e.g. ``qsgd(15)``; default raw floats.
        Costs a compaction of the vector.
      per_leaf: `k` for each leaf.

    Returns:
      A stateless `Transform`. A value that is not finite is sent as zero. A subset is where the
      `k` largest of `d` distinct random words are.

    Raises:
      TypeError: if `k` is not a number, or `values` not a `Transform`.
      ValueError: if `k` is neither a positive count nor a fraction, or `values` does something
        else than compress.

    Example:
      >>> value = jnp.array([3.0, -4.0, 1.0, 2.0])
      >>> _, out, wire = random_k(2).send(jax.random.key(0), (), value)
      >>> int((out != 0).sum()), float(wire.bits)
      (2, 64.0)

    Reference: Stich, Cordonnier, Jaggi, "Sparsified SGD with Memory", 2018, arXiv:1809.07599.
    """
    code = random_k_code(k, unbiased=unbiased)
    if values is not None:
        check_values(values)

    def compress(key: Key, vector: Array) -> tuple[Array, Wire]:
        size = vector.shape[0]
        kept = kept_count(k, size)
        vector = vector * (size / kept) if unbiased else vector
        if values is None:
            mask = random_subset(seed_of(key), kept, size)
            bits = jnp.float32(packed_bits(code.fields(size, vector.dtype)))
            return jnp.where(mask, vector, 0), Wire(bits, bits)
        key, key_values = jax.random.split(key)
        index = kept_indices(random_subset(seed_of(key), kept, size), kept)
        _, coded, wire = send(values, key_values, (), vector[index])
        return jnp.zeros_like(vector).at[index].set(coded), wire

    return over_tree(compress, per_leaf=per_leaf)


def random_k_code(k: int | float, *, unbiased: bool = True) -> Code:
    """The format of `random_k`: raw values (already scaled), in the order of their places.

    Example:
      >>> packed_bits(random_k_code(10).fields(1000, jnp.float32))
      320
    """
    check_kept(k)

    def encode(seed: Array, vector: Array) -> Symbols:
        size = vector.shape[0]
        kept = kept_count(k, size)
        vector = vector * (size / kept) if unbiased else vector
        return {"value": vector[kept_indices(random_subset(seed, kept, size), kept)]}

    def decode(seed: Array, symbols: Symbols, size: int) -> Array:
        kept = kept_count(k, size)
        value = jnp.asarray(symbols["value"])
        index = kept_indices(random_subset(seed, kept, size), kept)
        return jnp.zeros(size, value.dtype).at[index].set(value)

    def fields(size: int, dtype: jnp.dtype) -> tuple[Field, ...]:
        return (real("value", kept_count(k, size), dtype),)

    def entropy(symbols: Symbols, size: int) -> Array:
        return jnp.float32(packed_bits(fields(size, symbols["value"].dtype)))

    return Code(encode, decode, fields, entropy)


def random_subset(seed: Array, k: int, size: int) -> Array:
    """A random subset of `k` out of `size`, bool `[size]`.

    Example:
      >>> int(random_subset(seed_of(jax.random.key(0)), 3, 10).sum())
      3
    """
    if k == size:
        return jnp.ones(size, bool)
    return largest(random_words(seed, size), k, num_bits=32)
