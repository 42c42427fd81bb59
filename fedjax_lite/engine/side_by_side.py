"""Metrics of clients side by side in few arrays: one write stores those of a client at once.

A round has about ten numbers for each client. XLA compiles every write into an array of its own to
a loop of its own.
"""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp

from fedjax_lite import trees
from fedjax_lite.types import Array, PyTree


def side_by_side(rows: PyTree) -> list[Array]:
    """Leaves `[C, ...]` of equal shape and type as one array `[C, k, ...]` each.

    Example:
      >>> [array.shape for array in side_by_side({"a": jnp.ones(4), "b": jnp.ones(4)})]
      [(4, 2)]
    """
    leaves = jax.tree.leaves(rows)
    return [jnp.stack([leaves[i] for i in alike], axis=1) for alike in _alike(leaves)]


def apart(columns: list[Array], rows: PyTree) -> PyTree:
    """The leaves out of `side_by_side`, which had the tree, shapes and types of `rows`.

    Example:
      >>> rows = {"a": jnp.zeros(2), "b": jnp.ones(2)}
      >>> apart(side_by_side(rows), rows)["b"].tolist()
      [1.0, 1.0]
    """
    leaves, structure = jax.tree.flatten(rows)
    for column, alike in zip(columns, _alike(leaves), strict=True):
        for place, i in enumerate(alike):
            leaves[i] = column[:, place]
    return jax.tree.unflatten(structure, leaves)


def placed(rows: PyTree, slots: Array, mask: Array, size: int) -> PyTree:
    """Rows `[L, ...]` at their slots of `[size, ...]` where the mask holds, zeros elsewhere."""
    columns = side_by_side(rows)
    empty = [jnp.zeros((size, *column.shape[1:]), column.dtype) for column in columns]
    return apart(trees.scatter_rows(empty, slots, mask, columns), rows)


def _alike(leaves: list[Array]) -> list[list[int]]:
    groups: dict[Any, list[int]] = {}
    for i, leaf in enumerate(leaves):
        groups.setdefault((leaf.dtype, leaf.shape), []).append(i)
    return list(groups.values())
