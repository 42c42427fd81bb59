"""stochastic_levels(): stochastic rounding to equal steps between the least and the largest."""

from __future__ import annotations

import jax.numpy as jnp

from fedjax_lite.checks.arguments import check_count
from fedjax_lite.checks.made import made
from fedjax_lite.transforms.flat import by_code, over_tree
from fedjax_lite.transforms.random_words import uniforms
from fedjax_lite.transforms.wire import (
    Code,
    Field,
    Symbols,
    code_length,
    counts_of,
    real,
    width_of,
)
from fedjax_lite.types import Array, Transform


@made
def stochastic_levels(levels: int, *, per_leaf: bool = False) -> Transform:
    r"""Stochastic k-level quantisation between the least and the largest coordinate: unbiased.

    .. math::
        C(v)_i = v_{\min} + \xi_i \Delta, \qquad \Delta = (v_{\max} - v_{\min}) / (k - 1), \qquad
        \mathbb E \xi_i = (v_i - v_{\min}) / \Delta

    with `xi` one of the two whole numbers beside that. ``d ceil(log2 k) + 64`` bits. Its error
    goes with the range, so `rotated` (arXiv:1611.00429, section 3) helps where few coordinates
    are large.

    Args:
      levels: `k` at least 2; fixes the width of the fields.
      per_leaf: a range for each leaf instead of one for the whole tree.

    Returns:
      A stateless `Transform`. Zero stays zero; a value that is not finite is sent as zero.
      Rounding probabilities are multiples of ``2**-24``.

    Raises:
      TypeError, ValueError: if `levels` is not an int of at least 2.

    Example:
      >>> import jax
      >>> value = jnp.array([3.0, -4.0, 1.0, 2.0])
      >>> _, out, wire = stochastic_levels(3).send(jax.random.key(0), (), value)
      >>> set(out.tolist()) <= {-4.0, -0.5, 3.0}, float(wire.bits)
      (True, 72.0)

    Reference: Suresh, Yu, Kumar, McMahan, "Distributed Mean Estimation with Limited
    Communication", 2017, arXiv:1611.00429.
    """
    return over_tree(by_code(levels_code(levels)), per_leaf=per_leaf)


def levels_code(levels: int) -> Code:
    """The format of `stochastic_levels`: both ends of the range, and a level a coordinate.

    Example:
      >>> [field.width for field in levels_code(3).fields(4, jnp.float32)]
      [32, 2]
    """
    check_count(levels, "levels", minimum=2)

    def encode(seed: Array, vector: Array) -> Symbols:
        low, high = vector.min(), vector.max()
        step = (high - low) / (levels - 1)
        scaled = (vector - low) / jnp.where(step > 0, step, 1)
        whole = jnp.floor(scaled)
        up = uniforms(seed, vector.shape[0]) < scaled - whole
        level = jnp.minimum(whole.astype(jnp.int32) + up, levels - 1)
        return {"range": jnp.stack([low, high]), "level": level}

    def decode(seed: Array, symbols: Symbols, size: int) -> Array:
        low, high = symbols["range"][0], symbols["range"][1]
        share = symbols["level"].astype(low.dtype) / (levels - 1)
        # Both ends are met exactly.
        return jnp.where(share < 1, low + share * (high - low), high)

    def fields(size: int, dtype: jnp.dtype) -> tuple[Field, ...]:
        return real("range", 2, dtype), Field("level", size, width_of(levels))

    def entropy(symbols: Symbols, size: int) -> Array:
        side = 2 * real("range", 2, symbols["range"].dtype).width
        return code_length(counts_of(symbols["level"], levels)) + side

    return Code(encode, decode, fields, entropy)
