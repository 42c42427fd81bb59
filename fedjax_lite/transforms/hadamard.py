"""The randomised Hadamard rotation, block by block: random signs, then Walsh-Hadamard."""

from __future__ import annotations

import math

import jax.numpy as jnp
import numpy as np

from fedjax_lite.checks.arguments import check_count
from fedjax_lite.transforms.random_words import random_words
from fedjax_lite.types import Array

FACTOR = 64
"""The largest Hadamard matrix that is multiplied with; longer blocks are Kronecker products."""


def walsh_hadamard(blocks: Array) -> Array:
    r"""The orthonormal Walsh-Hadamard transform of each row, its own inverse.

    .. math::  z = H v / \sqrt P, \qquad H_{ij} = (-1)^{\operatorname{popcount}(i \wedge j)}

    As products with matrices of at most 64 rows, :math:`H_{ab} = H_a \otimes H_b`, which is
    faster than ``log2 P`` butterflies.

    Args:
      blocks: `[..., P]`, `P` a power of two.

    Returns:
      The same shape.

    Raises:
      ValueError: if `P` is not a power of two.

    Example:
      >>> walsh_hadamard(jnp.array([3.0, -4.0, 1.0, 2.0])).tolist()
      [1.0, 3.0, -2.0, 4.0]
    """
    size = blocks.shape[-1]
    if size < 1 or size & (size - 1):
        raise ValueError(f"blocks must have a power of two of columns, got {size}")
    return _products(blocks) / math.sqrt(size)


def rotate(seed: Array, vector: Array, *, block_size: int) -> Array:
    """Random signs, then Walsh-Hadamard, for each block of a vector.

    Args:
      seed: of the signs, uint32 `[2]`; both sides know it.
      vector: `[D]`.
      block_size: see `block_shape`.

    Returns:
      `[num_blocks, P]`, of the same norm.

    Example:
      >>> z = rotate(jnp.arange(2, dtype=jnp.uint32), jnp.array([3.0, -4.0, 1.0]), block_size=4096)
      >>> z.shape, round(float((z**2).sum()), 4)
      ((1, 4), 26.0)
    """
    shape = block_shape(vector.shape[0], block_size)
    vector = padded(vector, math.prod(shape)).reshape(shape)
    return walsh_hadamard(vector * random_signs(seed, shape).astype(vector.dtype))


def rotate_back(seed: Array, blocks: Array, *, size: int) -> Array:
    """The inverse of `rotate`.

    Args:
      seed: the same.
      blocks: `[num_blocks, P]`.
      size: `D`.

    Returns:
      `[D]`.

    Example:
      >>> seed, vector = jnp.arange(2, dtype=jnp.uint32), jnp.array([3.0, -4.0, 1.0])
      >>> rotate_back(seed, rotate(seed, vector, block_size=4), size=3).tolist()
      [3.0, -4.0, 1.0]
    """
    signs = random_signs(seed, blocks.shape).astype(blocks.dtype)
    return (walsh_hadamard(blocks) * signs).ravel()[:size]


def padded(vector: Array, size: int) -> Array:
    """A vector with zeros up to `size` behind it.

    Example:
      >>> padded(jnp.ones(2), 3).tolist()
      [1.0, 1.0, 0.0]
    """
    missing = size - vector.shape[0]
    return jnp.pad(vector, (0, missing)) if missing else vector


def padded_size(size: int, block_size: int) -> int:
    """Numbers in all blocks of a vector.

    Example:
      >>> padded_size(5, 4096), padded_size(5000, 4096)
      (8, 8192)
    """
    return math.prod(block_shape(size, block_size))


def block_shape(size: int, block_size: int) -> tuple[int, int]:
    """Into how many blocks of how many numbers a vector is cut.

    One block of the next power of two up to `block_size`, blocks of `block_size` beyond, so that
    at most a block is padding: a single one for a million numbers could double them.

    Example:
      >>> block_shape(5, 4096), block_shape(1_626_442, 4096)
      ((1, 8), (398, 4096))
    """
    width = min(1 << (size - 1).bit_length(), block_size)
    return -(-size // width), width


def random_signs(seed: Array, shape: tuple[int, ...]) -> Array:
    """Independent signs, 1 and -1 as float32.

    Example:
      >>> signs = random_signs(jnp.arange(2, dtype=jnp.uint32), (2, 64))
      >>> signs.shape, sorted(set(signs.ravel().tolist()))
      ((2, 64), [-1.0, 1.0])
    """
    bits = random_words(seed, math.prod(shape)) >> 31
    return (1.0 - 2.0 * bits.astype(jnp.float32)).reshape(shape)


def check_block_size(block_size: int) -> None:
    """Raises where `block_size` is not a power of two.

    Example:
      >>> check_block_size(4096)
    """
    check_count(block_size, "block_size", minimum=1)
    if block_size & (block_size - 1):
        raise ValueError(f"block_size must be a power of two, got {block_size}")


def _products(rows: Array) -> Array:
    """Each row `[..., P]` times the Hadamard matrix, as one product for every factor of 64."""
    size = rows.shape[-1]
    width = min(FACTOR, size)
    # TF32 would leave 3 digits on a GPU.
    right = jnp.asarray(_matrix(width), rows.dtype)
    folded = rows.reshape(*rows.shape[:-1], size // width, width)
    folded = jnp.matmul(folded, right, precision="highest")
    if size // width <= FACTOR:
        left = jnp.asarray(_matrix(size // width), rows.dtype)
        folded = jnp.matmul(left, folded, precision="highest")
    else:
        folded = jnp.swapaxes(_products(jnp.swapaxes(folded, -1, -2)), -1, -2)
    return folded.reshape(rows.shape)


def _matrix(size: int) -> np.ndarray:
    """The Hadamard matrix in Sylvester's order, entries 1 and -1."""
    matrix = np.ones((1, 1))
    while len(matrix) < size:
        matrix = np.block([[matrix, matrix], [matrix, -matrix]])
    return matrix
