"""ternary(): -1, 0, 1 at random, times the largest; sparse_ternary(): top-k with one magnitude."""

from __future__ import annotations

import jax.numpy as jnp

from fedjax_lite.checks.made import made
from fedjax_lite.transforms.flat import by_code, over_tree
from fedjax_lite.transforms.random_words import uniforms
from fedjax_lite.transforms.sign import is_negative
from fedjax_lite.transforms.top_k import kept_indices, largest_magnitudes
from fedjax_lite.transforms.wire import (
    Code,
    Field,
    Symbols,
    check_kept,
    code_length,
    counts_of,
    kept_count,
    log2_binomial,
    packed_bits,
    real,
    width_of,
)
from fedjax_lite.types import Array, Key, Transform, Wire


@made
def ternary(*, per_leaf: bool = False) -> Transform:
    r"""TernGrad: every coordinate becomes the largest magnitude, its negative, or zero: unbiased.

    .. math::
        C(v)_i = m \operatorname{sign}(v_i)\, b_i, \qquad m = \max_j |v_j|, \qquad
        b_i \sim \text{Bernoulli}(|v_i| / m)

    with variance :math:`\sum_i |v_i| (m - |v_i|)`; ``2 d + 32`` bits. The paper does it layer by
    layer, which is ``per_leaf=True``, and clips to 2.5 standard deviations first, which this does
    not.

    Args:
      per_leaf: a largest magnitude for each leaf instead of one for the whole tree.

    Returns:
      A stateless `Transform`. Zero stays zero; a value that is not finite is sent as zero.

    Example:
      >>> import jax
      >>> value = jnp.array([3.0, -4.0, 1.0, 2.0])
      >>> _, out, wire = ternary().send(jax.random.key(0), (), value)
      >>> out[1].item(), set(out.tolist()) <= {-4.0, 0.0, 4.0}, float(wire.bits)
      (-4.0, True, 40.0)

    Reference: Wen, Xu, Yan, Wu, Wang, Chen, Li, "TernGrad", 2017, arXiv:1705.07878.
    """
    return over_tree(by_code(ternary_code()), per_leaf=per_leaf)


def ternary_code() -> Code:
    """The format of `ternary`: a magnitude, and 0, 1 (plus) or 2 (minus) a coordinate.

    Example:
      >>> [field.width for field in ternary_code().fields(4, jnp.float32)]
      [32, 2]
    """

    def encode(seed: Array, vector: Array) -> Symbols:
        size = jnp.abs(vector)
        largest = size.max()
        taken = uniforms(seed, vector.shape[0]) < size / jnp.where(largest > 0, largest, 1)
        return {"largest": largest, "digit": taken * (1 + is_negative(vector).astype(jnp.int32))}

    def decode(seed: Array, symbols: Symbols, size: int) -> Array:
        largest, digit = symbols["largest"].reshape(()), symbols["digit"]
        return jnp.where(digit == 1, largest, jnp.where(digit == 2, -largest, 0))

    def fields(size: int, dtype: jnp.dtype) -> tuple[Field, ...]:
        return real("largest", 1, dtype), Field("digit", size, 2)

    def entropy(symbols: Symbols, size: int) -> Array:
        side = real("largest", 1, symbols["largest"].dtype).width
        return code_length(counts_of(symbols["digit"], 3)) + side

    return Code(encode, decode, fields, entropy)


@made
def sparse_ternary(k: int | float, *, per_leaf: bool = False) -> Transform:
    r"""Sparse ternary compression: the k largest coordinates, all with their mean magnitude.

    .. math::
        C(v)_i = \mu \operatorname{sign}(v_i) \;\text{ for } i \in \operatorname{top}_k(v),
        \qquad \mu = \tfrac1k \textstyle\sum_{i \in \operatorname{top}_k} |v_i|

    ``k (1 + ceil(log2 d)) + 32`` bits. Biased: use it under `error_feedback`, as the paper does.

    Args:
      k: how many are kept: an int is a count (at most `d`), a float a fraction of `d`; over the
        whole tree unless `per_leaf`. Ties go to the lowest index.
      per_leaf: `k` and a magnitude for each leaf.

    Returns:
      A stateless `Transform`. Zero stays zero; a value that is not finite is sent as zero.

    Raises:
      TypeError, ValueError: if `k` is neither a positive count nor a fraction.

    Example:
      >>> import jax
      >>> value = jnp.array([3.0, -4.0, 1.0, 2.0])
      >>> sparse_ternary(2).update(jax.random.key(0), (), value)[1].tolist()
      [3.5, -3.5, 0.0, 0.0]

    Reference: Sattler, Wiedemann, Müller, Samek, "Robust and Communication-Efficient Federated
    Learning from Non-IID Data", 2019, arXiv:1903.02891.
    """
    code = sparse_ternary_code(k)

    def compress(key: Key, vector: Array) -> tuple[Array, Wire]:
        # As code.decode(code.encode(v)), without the indices, whose compaction is slow.
        size = vector.shape[0]
        mask = largest_magnitudes(vector, kept_count(k, size))
        scale = _mean_magnitude(vector, mask, kept_count(k, size))
        bits = packed_bits(code.fields(size, vector.dtype))
        negative = mask & is_negative(vector)
        entropy = _entropy(negative.sum(), kept_count(k, size), size, vector.dtype)
        signed = jnp.where(negative, -scale, scale)
        return jnp.where(mask, signed, 0), Wire(jnp.float32(bits), entropy)

    return over_tree(compress, per_leaf=per_leaf)


def sparse_ternary_code(k: int | float) -> Code:
    """The format of `sparse_ternary`: a magnitude, indices, signs.

    Example:
      >>> [field.width for field in sparse_ternary_code(2).fields(1000, jnp.float32)]
      [32, 10, 1]
    """
    check_kept(k)

    def encode(seed: Array, vector: Array) -> Symbols:
        kept = kept_count(k, vector.shape[0])
        mask = largest_magnitudes(vector, kept)
        index = kept_indices(mask, kept)
        scale = _mean_magnitude(vector, mask, kept)
        return {"scale": scale, "index": index, "negative": is_negative(vector[index])}

    def decode(seed: Array, symbols: Symbols, size: int) -> Array:
        scale = symbols["scale"].reshape(())
        signed = jnp.where(symbols["negative"] > 0, -scale, scale)
        return jnp.zeros(size, scale.dtype).at[symbols["index"]].set(signed)

    def fields(size: int, dtype: jnp.dtype) -> tuple[Field, ...]:
        kept = kept_count(k, size)
        index = Field("index", kept, width_of(size))
        return real("scale", 1, dtype), index, Field("negative", kept, 1)

    def entropy(symbols: Symbols, size: int) -> Array:
        negative = (symbols["negative"] > 0).sum()
        return _entropy(negative, kept_count(k, size), size, symbols["scale"].dtype)

    return Code(encode, decode, fields, entropy)


def _mean_magnitude(vector: Array, mask: Array, kept: int) -> Array:
    return jnp.where(mask, jnp.abs(vector), 0).sum() / kept


def _entropy(num_negative: Array, kept: int, size: int, dtype: jnp.dtype) -> Array:
    signs = code_length(jnp.stack([num_negative, kept - num_negative]))
    return signs + log2_binomial(size, kept) + real("scale", 1, dtype).width
