"""Clipping of a stack of messages: what one client can contribute is bounded, whatever it sends."""

from __future__ import annotations

import math

import jax
import jax.numpy as jnp

from fedjax_lite import trees
from fedjax_lite.checks.arguments import check_positive
from fedjax_lite.transforms.clip import clip_by_global_norm
from fedjax_lite.types import Array, PyTree


def clip_clients(values: PyTree, clip: float | Array, *, per_layer: bool = False) -> PyTree:
    r"""Clips each client's value to norm `clip`.

    Whole (the default): :math:`\Delta \min(1, S / \lVert\Delta\rVert)`, one norm over the pytree.
    Per layer: each of the `n` leaves to :math:`S / \sqrt n`, so that the whole has at most norm `S`
    again; a client with one large layer keeps the others.

    Args:
      values: leaves `[L, ...]`.
      clip: `S` > 0, may be traced; infinity leaves finite values as they are.
      per_layer: clip leaf by leaf.

    Returns:
      Values of the same shapes, in float32 or wider: rounding to less would lengthen them.

    Guarantees:
      Every row's norm is at most `clip` up to float32 rounding, for every input. A row with a NaN
      or an infinity anywhere becomes zero altogether.

    Example:
      >>> rows = {"a": jnp.array([[3.0], [jnp.nan]]), "b": jnp.array([[4.0], [1.0]])}
      >>> whole = clip_clients(rows, 1.0)
      >>> [[round(x, 4) for x in whole[name].ravel().tolist()] for name in "ab"]
      [[0.6, 0.0], [0.8, 0.0]]
    """
    check_positive(clip, "clip")
    values = trees.wide(values)
    values = trees.where(finite_clients(values), values, jax.tree.map(jnp.zeros_like, values))
    if not per_layer:
        return jax.vmap(lambda value: clip_by_global_norm(value, clip))(values)
    each = clip / math.sqrt(len(jax.tree.leaves(values)))
    return jax.tree.map(jax.vmap(lambda leaf: clip_by_global_norm(leaf, each)), values)


def finite_clients(values: PyTree) -> Array:
    """Whether all that a client sent is finite, `[L]`.

    Example:
      >>> finite_clients({"a": jnp.array([[1.0], [jnp.inf]])}).tolist()
      [True, False]
    """

    def one(leaf: Array) -> Array:
        return jnp.isfinite(leaf.reshape(leaf.shape[0], -1)).all(1)

    return jnp.stack([one(leaf) for leaf in jax.tree.leaves(values)]).all(0)


def within(values: PyTree, clip: Array) -> Array:
    """Whether a client's norm is at most `clip`, `[L]`; False for what is not finite.

    Example:
      >>> within(jnp.array([[3.0, 4.0], [1.0, 0.0]]), jnp.float32(2.0)).tolist()
      [False, True]
    """
    # In units of the clip: squares of small clips and of huge updates stay in range.
    scaled = jax.tree.map(lambda leaf: leaf.astype(jnp.float32) / clip, values)
    return finite_clients(values) & (jax.vmap(trees.global_norm)(scaled) <= 1)
