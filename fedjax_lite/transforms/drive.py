"""drive(): signs in a randomly rotated basis, with the scale that makes the best of them."""

from __future__ import annotations

import math

import jax.numpy as jnp

from fedjax_lite.checks.made import made
from fedjax_lite.transforms.flat import by_code, over_tree
from fedjax_lite.transforms.hadamard import (
    block_shape,
    check_block_size,
    padded_size,
    rotate,
    rotate_back,
)
from fedjax_lite.transforms.sign import is_negative, sign_entropy
from fedjax_lite.transforms.wire import Code, Field, Symbols, real
from fedjax_lite.types import Array, Transform


@made
def drive(*, unbiased: bool = True, block_size: int = 4096, per_leaf: bool = False) -> Transform:
    r"""DRIVE: one bit a coordinate of the rotated vector, and a scale.

    .. math::
        z = H D v / \sqrt P, \qquad C(v) = D H\, S \operatorname{sign}(z) / \sqrt P, \qquad
        S = \lVert z \rVert_2^2 / \lVert z \rVert_1 \;\text{ or }\; \lVert z \rVert_1 / P

    for each block of `P` = `block_size` coordinates (a vector that is shorter is one block, padded
    to the next power of two). The first scale gives :math:`\langle C(v), v \rangle = \lVert v
    \rVert^2` always, and would be unbiased under a uniformly random rotation; under the Hadamard
    rotation it is nearly so. The second has the least error, and is a contraction: take it
    (``unbiased=False``) under `error_feedback`. The signs of `D` come from a shared key.

    ``d_padded + 32 num_blocks`` bits, where ``d_padded`` is `d` rounded up to whole blocks.

    Args:
      unbiased: which scale.
      block_size: a power of two.
      per_leaf: each leaf by itself instead of the whole tree.

    Returns:
      A stateless `Transform`. Zero stays zero; a value that is not finite is sent as zero.

    Raises:
      TypeError, ValueError: if `block_size` is not a power of two.

    Example:
      >>> import jax
      >>> value = jnp.array([3.0, -4.0, 1.0, 2.0])
      >>> _, out, wire = drive().send(jax.random.key(0), (), value)
      >>> round(float(out @ value), 4), float(wire.bits)
      (30.0, 36.0)

    Reference: Vargaftik, Ben-Basat, Portnoy, Mendelson, Ben-Itzhak, Mitzenmacher, "DRIVE: One-bit
    Distributed Mean Estimation", 2021, arXiv:2105.08339.
    """
    code = drive_code(unbiased=unbiased, block_size=block_size)
    return over_tree(
        by_code(code), per_leaf=per_leaf, pad_to=lambda size: padded_size(size, block_size)
    )


def drive_code(*, unbiased: bool = True, block_size: int = 4096) -> Code:
    """The format of `drive`: a scale a block, and a bit a coordinate of the padded vector.

    Example:
      >>> [field.count for field in drive_code().fields(5, jnp.float32)]
      [1, 8]
    """
    check_block_size(block_size)

    def encode(seed: Array, vector: Array) -> Symbols:
        blocks = rotate(seed, vector, block_size=block_size)
        scale = drive_scale(blocks, unbiased=unbiased)
        return {"scale": scale, "negative": is_negative(blocks)}

    def decode(seed: Array, symbols: Symbols, size: int) -> Array:
        shape = block_shape(size, block_size)
        scale = jnp.asarray(symbols["scale"]).reshape(-1, 1)
        negative = jnp.asarray(symbols["negative"]).reshape(shape) > 0
        return rotate_back(seed, jnp.where(negative, -scale, scale), size=size)

    def fields(size: int, dtype: jnp.dtype) -> tuple[Field, ...]:
        shape = block_shape(size, block_size)
        return real("scale", shape[0], dtype), Field("negative", math.prod(shape), 1)

    def entropy(symbols: Symbols, size: int) -> Array:
        scale = symbols["scale"]
        return sign_entropy(symbols["negative"]) + scale.size * real("", 1, scale.dtype).width

    return Code(encode, decode, fields, entropy)


def drive_scale(blocks: Array, *, unbiased: bool) -> Array:
    """The scale `S` of each block.

    Args:
      blocks: rotated, `[num_blocks, P]`.
      unbiased: the squared norm over the sum of magnitudes, else their mean.

    Returns:
      `[num_blocks]`; 0 for a zero block.

    Example:
      >>> z = jnp.array([[1.0, 3.0, -2.0, 4.0]])
      >>> drive_scale(z, unbiased=True).tolist(), drive_scale(z, unbiased=False).tolist()
      ([3.0], [2.5])
    """
    total = jnp.abs(blocks).sum(1)
    if not unbiased:
        return total / blocks.shape[1]
    return (blocks * blocks).sum(1) / jnp.where(total > 0, total, 1)
