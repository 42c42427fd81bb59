"""The shapes of what metrics measure, found without computing: checks, and zeros to add to."""

from __future__ import annotations

import functools
import math
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

from fedjax_lite.metrics.metric import Metric, Named
from fedjax_lite.types import Array, PyTree


def metric_shapes(
    predict: Callable[..., Any], params: PyTree, examples: PyTree, batch_size: int, metrics: Named
) -> dict[str, PyTree]:
    """What each metric measures of a batch, as shapes; remembered by what is asked.

    Args:
      predict: of the model.
      params: arrays, or their shapes.
      examples: leaves `[E, ...]`, or their shapes.
      batch_size: examples at a time.
      metrics: names and metrics.

    Returns:
      By name the quantities of a `Metric`, `ShapeDtypeStruct` `[B, ...]`.

    Raises:
      ValueError: if a metric does not suit the model, or measures no quantity per example.
    """
    if not metrics:
        return {}
    batch = jax.tree.map(
        lambda leaf: jax.ShapeDtypeStruct((batch_size, *leaf.shape[1:]), leaf.dtype), examples
    )
    arguments, structure = jax.tree.flatten((params, batch))
    shapes = tuple((tuple(jnp.shape(leaf)), jnp.result_type(leaf)) for leaf in arguments)
    return _shapes(predict, structure, shapes, batch_size, metrics)


@functools.lru_cache(maxsize=32)
def _shapes(
    predict: Callable[..., Any], structure: Any, shapes: Any, batch_size: int, metrics: Named
) -> dict[str, PyTree]:
    leaves = [jax.ShapeDtypeStruct(shape, dtype) for shape, dtype in shapes]
    params, batch = jax.tree.unflatten(structure, leaves)
    outputs = jax.eval_shape(predict, params, batch)
    found = {}
    for name, metric in metrics:
        values = jax.eval_shape(metric.measure, outputs, batch)
        for path, leaf in jax.tree_util.tree_leaves_with_path(values):
            if leaf.shape[:1] != (batch_size,):
                raise ValueError(
                    f"metrics[{name!r}] must measure one quantity per example, [B, ...], got "
                    f"{list(leaf.shape)} of {batch_size} examples{jax.tree_util.keystr(path)}; the "
                    "evaluation adds them up"
                )
        if isinstance(metric, Metric):
            found[name] = jax.tree.map(
                lambda leaf: jax.ShapeDtypeStruct(leaf.shape, stored_type(leaf.dtype)), values
            )
    return found


def stored_type(dtype: Any) -> Any:
    """How sums of a type are kept on the device.

    Example:
      >>> stored_type(bool).__name__, stored_type(jnp.bfloat16).__name__
      ('int32', 'float32')
    """
    return jnp.float32 if jnp.issubdtype(dtype, jnp.inexact) else jnp.int32


def no_sums(shapes: dict[str, PyTree], num_units: int) -> dict[str, PyTree]:
    """Zeros `[num_units, ...]` on the device."""
    return jax.tree.map(lambda leaf: jnp.zeros((num_units, *leaf.shape[1:]), leaf.dtype), shapes)


def unit_bytes(shapes: dict[str, PyTree]) -> int:
    """Bytes of the sums of one client or group."""
    return sum(4 * math.prod(leaf.shape[1:]) for leaf in jax.tree.leaves(shapes))


def add_by_unit(sums: PyTree, values: PyTree, units: Array) -> PyTree:
    """Adds quantities `[B, ...]` to the sums `[n, ...]` of the units that they belong to.

    Args:
      sums: leaves `[n, ...]`.
      values: leaves `[B, ...]`.
      units: int32 `[B]`; one outside of `[0, n)` takes no part.

    Example:
      >>> add_by_unit(jnp.zeros(2), jnp.array([1.0, 2.0, 4.0]), jnp.array([1, -1, 1])).tolist()
      [0.0, 5.0]
    """

    def add(total: Array, value: Array) -> Array:
        places = jnp.where(units < 0, total.shape[0], units)  # a negative index would wrap around
        return total.at[places].add(value, mode="drop")

    return jax.tree.map(add, sums, values)
