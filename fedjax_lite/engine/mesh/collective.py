"""What the devices of a mesh say to each other at the end of a round: one sum."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp

from fedjax_lite.engine.side_by_side import placed
from fedjax_lite.types import Array, PyTree

AXIS = "clients"
"""The axis of a mesh that cohorts are dealt over."""


def add_devices(tree: PyTree) -> PyTree:
    """The sum over devices, one message for all leaves of a dtype; of flags, whether one is set.

    Between processes every message costs its latency: six of them took 16 ms over gloo on
    loopback, one 0.3 ms.
    """
    leaves, structure = jax.tree.flatten(tree)
    dtypes = [leaf.dtype for leaf in leaves]
    leaves = [leaf.astype(jnp.int32) if leaf.dtype == bool else leaf for leaf in leaves]
    groups: dict[Any, list[int]] = {}
    for i, leaf in enumerate(leaves):
        groups.setdefault(leaf.dtype, []).append(i)
    for members in groups.values():
        flat = jnp.concatenate([leaves[i].reshape(-1) for i in members])
        total, low = jax.lax.psum(flat, AXIS), 0
        for i in members:
            shape, size = leaves[i].shape, leaves[i].size
            leaves[i] = total[low : low + size].reshape(shape).astype(dtypes[i])
            low += size
    return jax.tree.unflatten(structure, leaves)


def spread_metrics(
    metrics: dict[str, Any], slots: Array, mask: Array, cohort_size: int
) -> dict[str, Any]:
    """A device's metrics at their places `[C]` and zeros elsewhere, so that devices' add up."""
    return placed(metrics, slots, mask, cohort_size)
