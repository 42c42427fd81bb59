"""What ``jax.tree`` and ``optax.tree`` lack: selects by mask, weighted sums, rows of tables."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import optax

from fedjax_lite.types import Array, PyTree


def where(mask: Array, on_true: PyTree, on_false: PyTree) -> PyTree:
    """Selects leaf by leaf; `mask` is broadcast from the left, as an axis of clients.

    A select, not a product: a NaN on the side that is not taken leaves no trace. Leaves may be
    typed keys.

    Example:
      >>> where(jnp.array([True, False]), jnp.ones((2, 3)), jnp.zeros((2, 3))).sum(1).tolist()
      [3.0, 0.0]
    """

    def one(a: Any, b: Any) -> Any:
        if isinstance(a, jax.Array) and jnp.issubdtype(a.dtype, jax.dtypes.prng_key):
            data = one(jax.random.key_data(a), jax.random.key_data(b))
            return jax.random.wrap_key_data(data, impl=jax.random.key_impl(a))
        return jnp.where(_align(mask, a), a, b)

    return jax.tree.map(one, on_true, on_false)


def settled(tree: PyTree) -> PyTree:
    """The same tree, computed once for all who read it.

    XLA may compute a value anew inside of each operation that reads it, and round the copies
    differently. Where one copy is kept and another is sent, so that the two must agree, or where
    one decides what becomes of the other (a threshold), that error is no rounding any more.

    Example:
      >>> settled({"w": jnp.ones(2)})["w"].tolist()
      [1.0, 1.0]
    """
    return jax.lax.optimization_barrier(tree)


def subtract(left: PyTree, right: PyTree) -> PyTree:
    """``left - right`` leaf by leaf."""
    return jax.tree.map(jnp.subtract, left, right)


def cast_like(tree: PyTree, like: PyTree) -> PyTree:
    """Casts each leaf to the dtype of its counterpart."""
    return jax.tree.map(lambda leaf, other: leaf.astype(other.dtype), tree, like)


def broadcast_prefix(prefix: PyTree, tree: PyTree) -> PyTree:
    """Repeats the leaves of a tree prefix until it has the structure of `tree`."""
    return jax.tree.map(lambda leaf, sub: jax.tree.map(lambda _: leaf, sub), prefix, tree)


_FEW_ROWS = 16
"""Rows that are added one by one; more would make programs long."""


def sum_rows(rows: Array) -> Array:
    """Sums `[L, ...]` over the leading axis, a row at a time where there are few.

    It is the same sum in the same order, but XLA's CPU backend reduces rows that were selected by a
    mask one number at a time, which takes twenty times as long as to add them.

    Example:
      >>> sum_rows(jnp.array([[1.0, 2.0], [3.0, 4.0]])).tolist()
      [4.0, 6.0]
    """
    if not 0 < rows.shape[0] <= _FEW_ROWS:
        return rows.sum(0)
    return functools.reduce(jnp.add, rows)


def weighted_sum(values: PyTree, weights: PyTree) -> PyTree:
    """Sums `values` `[L, ...]` with `weights`, a broadcastable prefix, over the leading axis.

    Sums are in float32 or wider, so that low-precision and integer inputs lose nothing. A value
    whose weight is 0 is left out even where it is NaN.
    """

    def one(value: Array, weight: Array) -> Array:
        weight = _align(weight, value)
        dtype = jnp.promote_types(jnp.promote_types(value.dtype, weight.dtype), jnp.float32)
        counted = jnp.where(weight == 0, 0, value.astype(dtype) * weight.astype(dtype))
        return sum_rows(counted)

    return jax.tree.map(one, values, broadcast_prefix(weights, values))


def gather_rows(table: PyTree, rows: Array) -> PyTree:
    """Rows `[L, ...]` of a table `[N, ...]`."""
    return jax.tree.map(lambda leaf: leaf[rows], table)


def scatter_rows(table: PyTree, rows: Array, mask: Array, values: PyTree) -> PyTree:
    """Writes `values` `[L, ...]` into `rows` `[L]` of `table` `[N, ...]` where `mask` holds.

    Masked rows are sent to index `N` and dropped, so that they cannot overwrite a real one.
    """

    def one(leaf: Array, value: Array) -> Array:
        return leaf.at[jnp.where(mask, rows, leaf.shape[0])].set(value, mode="drop")

    return jax.tree.map(one, table, values)


def repeat_rows(row: PyTree, num_rows: int) -> PyTree:
    """A table `[N, ...]` of equal rows."""
    return jax.tree.map(lambda leaf: jnp.repeat(jnp.asarray(leaf)[None], num_rows, axis=0), row)


def halves(mask: PyTree, tree: PyTree) -> tuple[PyTree, PyTree]:
    """The leaves where a mask holds, and the others; None stands where the other half has a leaf.

    Args:
      mask: bools, a prefix of `tree`.
      tree: leaves that may be None.

    Example:
      >>> halves({"body": False, "head": True}, {"body": 1.0, "head": {"w": 2.0}})
      ({'body': None, 'head': {'w': 2.0}}, {'body': 1.0, 'head': {'w': None}})
    """
    mask = broadcast_prefix(mask, tree)
    chosen = jax.tree.map(lambda mine, leaf: leaf if mine else None, mask, tree)
    return chosen, jax.tree.map(lambda mine, leaf: None if mine else leaf, mask, tree)


def whole(first: PyTree, second: PyTree) -> PyTree:
    """The tree out of its `halves`.

    Example:
      >>> whole({"body": None, "head": 2.0}, {"body": 1.0, "head": None})
      {'body': 1.0, 'head': 2.0}
    """
    return jax.tree.map(lambda a, b: b if a is None else a, first, second, is_leaf=_is_none)


def _is_none(leaf: Any) -> bool:
    return leaf is None


def zeros(shapes: PyTree) -> PyTree:
    """Zeros for a tree of arrays or of ``jax.ShapeDtypeStruct``."""
    return jax.tree.map(lambda leaf: jnp.zeros(leaf.shape, leaf.dtype), shapes)


def wide_dtype(leaf: Any) -> Any:
    """What values of a dtype are summed in: float32, or wider where they are."""
    return jnp.promote_types(leaf.dtype, jnp.float32)


def wide(tree: PyTree) -> PyTree:
    """The same values in float32 or wider.

    Example:
      >>> wide(jnp.ones(2, jnp.bfloat16)).dtype
      dtype('float32')
    """
    return jax.tree.map(lambda leaf: leaf.astype(wide_dtype(leaf)), tree)


def wide_zeros(tree: PyTree, *rows: int) -> PyTree:
    """Zeros in float32 or wider like each leaf, or so many of them, `[*rows, ...]`.

    Example:
      >>> wide_zeros(jnp.ones(2, jnp.bfloat16), 3)
      Array([[0., 0.],
             [0., 0.],
             [0., 0.]], dtype=float32)
    """
    return jax.tree.map(lambda leaf: jnp.zeros((*rows, *leaf.shape), wide_dtype(leaf)), tree)


def unaliased(tree: PyTree) -> PyTree:
    """The tree with every array held once: an array in two places cannot be donated.

    Example:
      >>> zero = jnp.float32(0)
      >>> first, second = unaliased((zero, zero))
      >>> first is zero, second is zero
      (True, False)
    """
    seen: set[int] = set()

    def one(leaf: Any) -> Any:
        if id(leaf) in seen:
            return jnp.copy(leaf)
        seen.add(id(leaf))
        return leaf

    return jax.tree.map(one, tree)


def num_bits(tree: PyTree) -> int:
    """Bits that the leaves take uncompressed, from their shapes and dtypes."""
    return sum(leaf.size * leaf.dtype.itemsize * 8 for leaf in jax.tree.leaves(tree))


def global_norm(tree: PyTree) -> Array:
    """The l2 norm over the whole tree; its gradient at zero is zero, not NaN."""
    squares = optax.tree.norm(tree, squared=True)
    positive = squares > 0
    return jnp.where(positive, jnp.sqrt(jnp.where(positive, squares, 1.0)), 0.0)


def check_floating(tree: PyTree, name: str) -> None:
    """Raises TypeError where a leaf is not floating point: such a leaf must not be averaged."""
    for path, leaf in jax.tree_util.tree_leaves_with_path(tree):
        if not jnp.issubdtype(jnp.asarray(leaf).dtype, jnp.floating):
            raise TypeError(
                f"{name}{jax.tree_util.keystr(path)} must be floating point, got "
                f"{jnp.asarray(leaf).dtype}; keep counters and flags out of the parameters"
            )


def map_lanes(function: Callable, num_lanes: int) -> Callable:
    """``vmap`` over lanes; with one lane the function itself on a leading axis of 1.

    One lane runs unbatched code: XLA keeps a convolution a convolution, a matmul a matmul.
    """
    if num_lanes > 1:
        return jax.vmap(function)

    def one(*args: PyTree) -> PyTree:
        out = function(*jax.tree.map(lambda leaf: leaf[0], args))
        return jax.tree.map(lambda leaf: leaf[None], out)

    return one


def _align(mask: Array, leaf: Array) -> Array:
    return mask.reshape(mask.shape + (1,) * (leaf.ndim - mask.ndim))
