"""rotated(): another compressor, in a randomly rotated basis."""

from __future__ import annotations

import jax

from fedjax_lite.checks.made import made
from fedjax_lite.transforms.chain import send
from fedjax_lite.transforms.flat import over_tree
from fedjax_lite.transforms.hadamard import (
    check_block_size,
    padded_size,
    rotate,
    rotate_back,
)
from fedjax_lite.transforms.random_words import seed_of
from fedjax_lite.transforms.top_k import check_values
from fedjax_lite.types import Array, Key, Transform, Wire


@made
def rotated(inner: Transform, *, block_size: int = 4096, per_leaf: bool = False) -> Transform:
    r"""Rotates at random, compresses, rotates back.

    .. math::  C(v) = D H\, C_{\text{inner}}(z) / \sqrt P, \qquad z = H D v / \sqrt P

    with random signs `D` that both sides draw from the same key (no bits), and `H` Walsh-Hadamard
    on blocks of `block_size`. The rotation evens out the coordinates, which narrows the range that
    `stochastic_levels` has to cover. What is paid for is the padded vector: `d` up to the next
    power of two below `block_size`, up to the next multiple of it above.

    Args:
      inner: a stateless compressor; it is given the rotated vector as one leaf.
      block_size: a power of two.
      per_leaf: rotate each leaf by itself.

    Returns:
      A stateless `Transform`, unbiased where `inner` is. Zero stays zero where `inner` keeps it.

    Raises:
      TypeError: if `inner` is not a `Transform`, or `block_size` no int.
      ValueError: if `inner` has a state or does not only compress, or `block_size` is not a power
        of two.

    Example:
      >>> import jax.numpy as jnp
      >>> from fedjax_lite.transforms.top_k import top_k
      >>> everything = rotated(top_k(1.0))
      >>> value = jnp.array([3.0, -4.0, 1.0, 2.0])
      >>> everything.update(jax.random.key(0), (), value)[1].round(4).tolist()
      [3.0, -4.0, 1.0, 2.0]

    Reference: Suresh, Yu, Kumar, McMahan, "Distributed Mean Estimation with Limited
    Communication", 2017, arXiv:1611.00429.
    """
    check_values(inner, "inner")
    check_block_size(block_size)

    def compress(key: Key, vector: Array) -> tuple[Array, Wire]:
        key_signs, key_inner = jax.random.split(key)
        seed = seed_of(key_signs)
        blocks = rotate(seed, vector, block_size=block_size)
        _, decoded, wire = send(inner, key_inner, (), blocks.ravel())
        decoded = decoded.reshape(blocks.shape)
        return rotate_back(seed, decoded, size=vector.shape[0]), wire

    return over_tree(compress, per_leaf=per_leaf, pad_to=lambda size: padded_size(size, block_size))
