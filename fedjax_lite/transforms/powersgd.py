"""powersgd(): low-rank factors of every matrix, warm-started."""

from __future__ import annotations

from typing import NamedTuple

import jax
import jax.numpy as jnp

from fedjax_lite import trees
from fedjax_lite.checks.arguments import check_count
from fedjax_lite.checks.made import made
from fedjax_lite.transforms.flat import compressor, magnitude
from fedjax_lite.types import Array, Key, PyTree, Transform, Wire

START = 0x70737764
"""Seed of the first factors: the same for all clients, known to the server."""


class LowRank(NamedTuple):
    """What is sent of a matrix `[n, m]`: ``left @ right.T``."""

    left: Array
    """`[n, r]`, orthonormal columns (or zero ones)."""
    right: Array
    """`[m, r]`."""


@made
def powersgd(rank: int) -> Transform:
    r"""PowerSGD: one step of subspace iteration a message.

    .. math::
        P = \operatorname{orth}(M Q), \qquad Q \leftarrow M^\top P, \qquad
        C(M) = P Q^\top = P P^\top M,

    starting from the client's last `Q`, so that it follows the best approximation of that rank
    over rounds. A leaf of two and more dimensions is one matrix ``[n, m]``, `m` its last
    dimension (output channels); other leaves, and matrices with ``r (n + m) >= n m``, are sent as
    they are. ``32 r (n + m)`` bits a matrix; the entropy bound is the same.

    A projection, so a contraction; biased: use it under `error_feedback`, as the paper does.
    Here each client compresses its own update, so `P` and `Q` differ between clients (the paper
    averages `P` over the workers before `Q`, which needs two rounds of communication).

    Args:
      rank: `r` at least 1.

    Returns:
      A `Transform` whose state is the list of the factors `Q`, float32 `[m, r]` each, one a
      matrix. Zero stays zero; a value that is not finite is sent as zero and leaves `Q` alone.

    Raises:
      TypeError, ValueError: if `rank` is not an int of at least 1.

    Example:
      >>> value = {"w": jnp.outer(jnp.arange(1.0, 5.0), jnp.ones(6)), "b": jnp.ones(6)}
      >>> transform = powersgd(1)
      >>> state = transform.init(value)
      >>> _, out, wire = transform.send(jax.random.key(0), state, value)
      >>> bool(jnp.allclose(out["w"], value["w"], atol=1e-5)), float(wire.bits)  # 32 (10 + 6)
      (True, 512.0)

    Reference: Vogels, Karimireddy, Jaggi, "PowerSGD", 2019, arXiv:1905.13727.
    """
    check_count(rank, "rank", minimum=1)

    def init(value: PyTree) -> list[Array]:
        matrices = [leaf for leaf in jax.tree.leaves(value) if _is_low_rank(leaf, rank)]
        keys = jax.random.split(jax.random.key(START), len(matrices)) if matrices else []
        return [
            jax.random.normal(keys[i], (leaf.shape[-1], rank), trees.wide_dtype(leaf))
            for i, leaf in enumerate(matrices)
        ]

    def send(key: Key, state: list[Array], value: PyTree) -> tuple[list[Array], PyTree, Wire]:
        leaves, treedef = jax.tree.flatten(value)
        ok, unit = magnitude(leaves)
        new, decoded, bits = [], [], 0
        for leaf in leaves:
            if not _is_low_rank(leaf, rank):
                decoded.append(jnp.where(ok, leaf, 0))
                bits += trees.num_bits(leaf)
                continue
            q = state[len(new)]
            scale = unit.astype(q.dtype)
            matrix = jnp.where(ok, leaf, 0).astype(q.dtype).reshape(-1, leaf.shape[-1]) * scale
            factors = low_rank(matrix, q)
            product = jnp.matmul(factors.left, factors.right.T, precision="highest") / scale
            decoded.append(product.reshape(leaf.shape).astype(leaf.dtype))
            # A column that vanished (a matrix of lower rank) would stay zero for ever.
            found = (factors.right != 0).any(0)
            new.append(jnp.where(found, factors.right, q))
            bits += sum(factor.size * factor.dtype.itemsize * 8 for factor in factors)
        cost = jnp.float32(bits)
        return new, jax.tree.unflatten(treedef, decoded), Wire(cost, cost)

    return compressor(init, send)


def low_rank(matrix: Array, q: Array) -> LowRank:
    """One step of subspace iteration.

    Args:
      matrix: `[n, m]`.
      q: the factor of the last step, `[m, r]`.

    Returns:
      `LowRank`: the new factors, the right one being the next `q`.

    Example:
      >>> left, right = low_rank(jnp.diag(jnp.array([3.0, 1.0])), jnp.ones((2, 1)))
      >>> [f"{x:.4f}" for x in (left @ right.T).ravel()]
      ['2.7000', '0.3000', '0.9000', '0.1000']
    """
    left = orthonormal(jnp.matmul(matrix, q, precision="highest"))
    return LowRank(left, jnp.matmul(matrix.T, left, precision="highest"))


def orthonormal(columns: Array) -> Array:
    """Gram-Schmidt, twice for accuracy; a column that depends on those before it becomes zero.

    Args:
      columns: `[n, r]`, few columns.

    Returns:
      `[n, r]`.

    Example:
      >>> orthonormal(jnp.array([[3.0, 3.0], [4.0, 4.0]])).tolist()
      [[0.6000000238418579, 0.0], [0.800000011920929, 0.0]]
    """
    found = jnp.zeros_like(columns)
    noise = 8 * jnp.finfo(columns.dtype).eps
    for i in range(columns.shape[1]):
        column = columns[:, i]
        length = jnp.sqrt(column @ column)
        rest = column
        for _ in range(2):
            inner = jnp.matmul(found.T, rest, precision="highest")
            rest = rest - jnp.matmul(found, inner, precision="highest")
        left = jnp.sqrt(rest @ rest)
        independent = left > noise * length
        column = jnp.where(independent, rest / jnp.where(independent, left, 1), 0)
        found = found.at[:, i].set(column)
    return found


def _is_low_rank(leaf: Array, rank: int) -> bool:
    if leaf.ndim < 2 or not leaf.size:
        return False
    columns = leaf.shape[-1]
    rows = leaf.size // columns
    return rank * (rows + columns) < rows * columns
