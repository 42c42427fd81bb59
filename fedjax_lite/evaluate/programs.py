"""The compiled passes over examples: losses, hits, labels that count, and sums of metrics."""

from __future__ import annotations

import functools
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh, PartitionSpec

from fedjax_lite.checks.labels import labels_of
from fedjax_lite.data.population.counting import counted as counted_by
from fedjax_lite.engine.mesh.collective import AXIS, add_devices
from fedjax_lite.evaluate.metric_shapes import add_by_unit, metric_shapes, no_sums, stored_type
from fedjax_lite.evaluate.what_counts import Kind
from fedjax_lite.metrics.answers import valid_labels
from fedjax_lite.metrics.metric import Metric, Named
from fedjax_lite.models.model import Model
from fedjax_lite.types import Array, Params, PyTree


class Scores(NamedTuple):
    """Of examples `[E]`, or their sums over the clients `[N]`."""

    loss: Array
    """0 where the example does not count."""
    counted: Array
    """Examples that count."""
    hits: Array
    """Labels that the model answers rightly."""
    labels: Array
    """Labels that count: those that are not negative."""
    unknown: Array
    """Labels to which the model answers NaN, which is no answer."""


class Measured(NamedTuple):
    """What one pass finds of examples `[B]`; dicts by the names of metrics."""

    scores: Scores
    sums: dict[str, PyTree]
    """Of each `Metric` its quantities, leaves `[B, ...]`, 0 where the example does not count."""
    kept: dict[str, PyTree]
    """The same of each `HostMetric`."""


def measure(
    model: Model, params: Params, batch: PyTree, kind: Kind, inside: Array, metrics: Named
) -> Measured:
    """Scores and the quantities of metrics, of one batch `[B]`.

    Args:
      model: the model.
      params: its parameters.
      batch: leaves `[B, ...]`.
      kind: how hits are found.
      inside: bool `[B]`, False for padding.
      metrics: names and metrics.
    """
    scores, outputs = _score(model, params, batch, kind, inside)
    if not metrics:
        return Measured(scores, {}, {})
    outputs = model.predict(params, batch) if outputs is None else outputs
    found: tuple[dict[str, PyTree], ...] = ({}, {})
    for name, metric in metrics:
        values = metric.measure(outputs, batch)
        which = found[0] if isinstance(metric, Metric) else found[1]
        which[name] = jax.tree.map(lambda leaf: _masked(leaf, scores.counted > 0), values)
    return Measured(scores, *found)


def _masked(leaf: Any, counted: Array) -> Array:
    """A quantity `[B, ...]` as it is summed, 0 where the example does not count."""
    leaf = jnp.asarray(leaf)
    where = counted.reshape(-1, *(1,) * (leaf.ndim - 1))
    return jnp.where(where, leaf.astype(stored_type(leaf.dtype)), 0)


def _score(
    model: Model, params: Params, batch: PyTree, kind: Kind, inside: Array
) -> tuple[Scores, Array | None]:
    """Scores of one batch `[B]`, and the model's outputs where it was asked for them.

    Args:
      model: the model.
      params: its parameters.
      batch: leaves `[B, ...]`.
      kind: how hits are found.
      inside: bool `[B]`, False for padding.
    """
    size = inside.shape[0]
    with labels_of(batch):  # a loss may have fewer outputs than predict: it is asked, too
        loss = model.loss(params, batch, None)
    if jnp.shape(loss) != (size,):
        raise ValueError(
            f"model.loss must return one loss per example, got {list(jnp.shape(loss))} for "
            f"{size} examples"
        )
    counted = counted_by(model.loss, batch, inside)
    loss = jnp.where(counted, loss, 0)
    none = jnp.zeros(size, jnp.int32)
    if kind is None:
        return Scores(loss, counted.astype(jnp.int32), none, none, none), None
    labels, outputs = batch["y"], model.predict(params, batch)
    logits = outputs
    if kind == "sign":
        logits = logits.reshape(labels.shape)
        answer, no_answer = logits > 0, _is_nan(logits)
    else:
        answer, no_answer = jnp.argmax(logits, axis=-1), _is_nan(logits).any(axis=-1)
    valid = valid_labels(labels) & counted.reshape(-1, *(1,) * (labels.ndim - 1))
    axes = tuple(range(1, labels.ndim))

    def count(which: Array) -> Array:
        return jnp.sum(valid & which, axis=axes, dtype=jnp.int32)

    right = answer == labels
    found = (count(right), count(valid), count(no_answer))
    return Scores(loss, counted.astype(jnp.int32), *found), outputs


@functools.partial(jax.jit, static_argnums=(4, 5, 6, 7, 8, 9))
def score_examples(
    params: Params,
    examples: PyTree,
    rows: Array | None,
    units: tuple[Array, ...],
    num_units: tuple[int, ...],
    model: Model,
    kind: Kind,
    batch_size: int,
    metrics: Named = (),
    mesh: Mesh | None = None,
) -> tuple[Scores, dict[str, PyTree], tuple[dict[str, PyTree], ...]]:
    """One model on examples, in batches of one shape.

    The last batch reaches back over examples that were scored already; the repeated ones are
    dropped, so no padding ever goes through the model.

    Args:
      params: of the model.
      examples: leaves `[E, ...]`.
      rows: int32 `[P]`, which of them to score; None: all, `P = E`.
      units: ways to divide the examples, each int32 `[P]`: the client, say, of each. A unit
        outside of `[0, num_units)` takes part in no sum.
      num_units: of each way.
      model: what is scored.
      kind: how hits are found.
      batch_size: examples at a time, at most `P`.
      metrics: names and metrics.
      mesh: devices that the batches are dealt to; None: one.

    Returns:
      Scores `[P]`, the quantities of host metrics, leaves `[P, ...]`, and for each way the sums of
      metrics, leaves `[num_units, ...]`.
    """
    num_examples = (jax.tree.leaves(examples)[0] if rows is None else rows).shape[0]
    starts = np.minimum(
        np.arange(0, num_examples, batch_size, dtype=np.int32), num_examples - batch_size
    )
    fresh = np.arange(0, num_examples, batch_size, dtype=np.int32) - starts

    def take(examples: PyTree, rows: Array | None, start: Array) -> PyTree:
        def cut(leaf: Array) -> Array:
            return jax.lax.dynamic_slice_in_dim(leaf, start, batch_size)

        if rows is None:
            return jax.tree.map(cut, examples)
        return jax.tree.map(lambda leaf: leaf[cut(rows)], examples)

    shapes = metric_shapes(model.predict, params, examples, batch_size, metrics)
    none = tuple(no_sums(shapes, number) for number in num_units)
    whole_batch = jnp.ones(batch_size, bool)

    def some(
        params: Params,
        examples: PyTree,
        rows: Array | None,
        units: tuple[Array, ...],
        starts: Array,
        fresh: Array,
    ) -> Any:
        def one_batch(sums: tuple[dict[str, PyTree], ...], at: tuple[Array, Array]) -> Any:
            start, first = at
            batch = take(examples, rows, start)
            found = measure(model, params, batch, kind, whole_batch, metrics)
            new = jnp.arange(batch_size, dtype=jnp.int32) >= first
            sums = tuple(
                add_by_unit(
                    total,
                    found.sums,
                    jnp.where(new, jax.lax.dynamic_slice_in_dim(unit, start, batch_size), -1),
                )
                for total, unit in zip(sums, units, strict=True)
            )
            return sums, (found.scores, found.kept)

        sums, results = jax.lax.scan(one_batch, none, (starts, fresh))
        return (sums if mesh is None else add_devices(sums)), results

    given = (params, examples, rows, units)
    if mesh is None:
        sums, results = some(*given, jnp.asarray(starts), jnp.asarray(fresh))
    else:
        # Batches that fill the devices up hold nothing new.
        more = -len(starts) % mesh.size
        at = np.pad(starts, (0, more), "edge"), np.pad(fresh, (0, more), constant_values=batch_size)
        whole, part = PartitionSpec(), PartitionSpec(AXIS)
        sums, results = jax.shard_map(
            some,
            mesh=mesh,
            in_specs=(whole, whole, whole, whole, part, part),
            out_specs=(whole, part),
            check_vma=False,
        )(*given, *map(jnp.asarray, at))
        results = jax.tree.map(lambda leaf: leaf[: len(starts)], results)
    whole = num_examples // batch_size * batch_size
    overlap = (batch_size - (num_examples - whole)) % batch_size

    def join(table: Array) -> Array:
        flat = table.reshape(-1, *table.shape[2:])
        return jnp.concatenate([flat[:whole], flat[whole + overlap :]])

    scores, kept = jax.tree.map(join, results)
    return scores, kept, sums


def _is_nan(logits: Array) -> Array:
    return jnp.isnan(logits) if jnp.issubdtype(logits.dtype, jnp.inexact) else logits != logits
