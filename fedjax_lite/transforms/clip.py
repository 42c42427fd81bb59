"""clip(): the whole update scaled into a ball."""

from __future__ import annotations

import jax
import jax.numpy as jnp

from fedjax_lite import trees
from fedjax_lite.checks.arguments import check_positive
from fedjax_lite.checks.made import made
from fedjax_lite.types import Array, Key, PyTree, Transform


@made
def clip(max_norm: float | Array) -> Transform:
    r"""Scales a value whose global norm exceeds `max_norm` down to it.

    .. math::  \Delta \leftarrow \Delta \cdot \min(1, S / \lVert \Delta \rVert_2)

    with one l2 norm over the whole pytree.

    Args:
      max_norm: `S` > 0, may be traced; infinity leaves every finite value as it is.

    Returns:
      A stateless `Transform`.

    Raises:
      ValueError: if `max_norm` is not positive.

    Guarantees:
      The norm of the result is at most `max_norm` up to rounding, for every input: a value
      that holds NaN or infinity has no direction and becomes zero. A zero value stays zero.

    Example:
      >>> value = {"a": jnp.array([3.0]), "b": jnp.array([4.0])}
      >>> _, out = clip(1.0).update(jax.random.key(0), (), value)
      >>> round(float(out["a"][0]), 4), round(float(out["b"][0]), 4)
      (0.6, 0.8)

    Reference: McMahan et al., "Learning Differentially Private Recurrent Language Models", 2018,
    arXiv:1710.06963.
    """
    check_positive(max_norm, "max_norm")

    def update(key: Key, state: PyTree, value: PyTree) -> tuple[PyTree, PyTree]:
        return state, clip_by_global_norm(value, max_norm)

    return Transform(lambda value: (), update, kinds=("clip",))


def clip_by_global_norm(value: PyTree, max_norm: float | Array) -> PyTree:
    """The function under `clip`; for values whose squares overflow see its guarantee."""
    wide = trees.wide(value)
    leaves = jax.tree.leaves(wide)
    if not leaves:
        return value
    largest = jnp.max(jnp.stack([jnp.max(jnp.abs(leaf), initial=0.0) for leaf in leaves]))
    finite = jnp.isfinite(largest)
    # Scaled by a power of two: squares of 1e30 overflow, and 1 / 3e38 is flushed to zero.
    unit = jnp.where(largest > 2.0**40, 2.0**-100, jnp.where(largest < 2.0**-40, 2.0**80, 1.0))
    scaled = jax.tree.map(lambda leaf: jnp.where(finite, leaf, 0) * unit, wide)
    norm = trees.global_norm(scaled)
    within = norm <= max_norm * unit
    factor = max_norm / jnp.where(within, 1.0, norm)

    def one(leaf: Array, small: Array) -> Array:
        return jnp.where(within, jnp.where(finite, leaf, 0), (small * factor).astype(leaf.dtype))

    return jax.tree.map(one, value, scaled)
