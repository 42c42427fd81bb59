"""The compiled passes over examples: losses, hits, labels that count, and sums of metrics."""

from __future__ import annotations

import functools
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from fedjax_lite.counting import counted as counted_by
from fedjax_lite.evaluate.metrics.answers import valid_labels
from fedjax_lite.evaluate.metrics.metric import Metric, Named
from fedjax_lite.evaluate.metrics.shapes import add_by_unit, metric_shapes, no_sums, stored_type
from fedjax_lite.evaluate.what_counts import Kind
from fedjax_lite.label_checks import labels_of
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


@functools.partial(jax.jit, static_argnums=(4, 5, 6, 7, 8))
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

    Returns:
      Scores `[P]`, the quantities of host metrics, leaves `[P, ...]`, and for each way the sums of
      metrics, leaves `[num_units, ...]`.
    """
    num_examples = (jax.tree.leaves(examples)[0] if rows is None else rows).shape[0]
    starts = np.minimum(
        np.arange(0, num_examples, batch_size, dtype=np.int32), num_examples - batch_size
    )
    fresh = np.arange(0, num_examples, batch_size, dtype=np.int32) - starts

    def take(start: Array) -> PyTree:
        def cut(leaf: Array) -> Array:
            return jax.lax.dynamic_slice_in_dim(leaf, start, batch_size)

        if rows is None:
            return jax.tree.map(cut, examples)
        return jax.tree.map(lambda leaf: leaf[cut(rows)], examples)

    def one_batch(sums: tuple[dict[str, PyTree], ...], at: tuple[Array, Array]) -> Any:
        start, first = at
        found = measure(model, params, take(start), kind, jnp.ones(batch_size, bool), metrics)
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

    shapes = metric_shapes(model.predict, params, examples, batch_size, metrics)
    none = tuple(no_sums(shapes, number) for number in num_units)
    sums, results = jax.lax.scan(one_batch, none, (jnp.asarray(starts), jnp.asarray(fresh)))
    whole = num_examples // batch_size * batch_size
    overlap = (batch_size - (num_examples - whole)) % batch_size

    def join(table: Array) -> Array:
        flat = table.reshape(-1, *table.shape[2:])
        return jnp.concatenate([flat[:whole], flat[whole + overlap :]])

    scores, kept = jax.tree.map(join, results)
    return scores, kept, sums


class Own(NamedTuple):
    """What clients' own models make of their own examples."""

    scores: Scores
    """Sums `[n]`, by client."""
    sums: dict[str, PyTree]
    """Of metrics, leaves `[n, ...]`, by client."""
    group_sums: dict[str, PyTree]
    """Of metrics, leaves `[G, ...]`, by group of examples."""
    examples: tuple[Scores, dict[str, PyTree]] | tuple[()]
    """Scores and quantities of host metrics, leaves `[P, ...]`, client after client."""


@functools.partial(jax.jit, static_argnums=(6, 7, 8, 9, 10, 11))
def score_own(
    models: Params,
    examples: PyTree,
    order: Array | None,
    starts: Array,
    sizes: Array,
    groups: Array | None,
    model: Model,
    kind: Kind,
    batch_size: int,
    metrics: Named = (),
    num_groups: int = 0,
    keep: bool = False,
) -> Own:
    """Clients' own models on their own examples, in own batches.

    Client `i` owns the examples ``order[starts[i]:starts[i] + sizes[i]]``; the first of them
    follow each other.

    Args:
      models: leaves `[n, ...]`.
      examples: leaves `[E, ...]`.
      order: int32 `[P]`; None: all examples, as they lie.
      starts: int32 `[n]`.
      sizes: int32 `[n]`.
      groups: int32 `[E]`, the group of each example; None: there are none.
      model: what is scored.
      kind: how hits are found.
      batch_size: examples at a time.
      metrics: names and metrics.
      num_groups: `G`.
      keep: return what was found of each example, too.
    """
    one = jax.tree.map(lambda leaf: jax.ShapeDtypeStruct(leaf.shape[1:], leaf.dtype), models)
    shapes = metric_shapes(model.predict, one, examples, batch_size, metrics)
    num_places = (jax.tree.leaves(examples)[0] if order is None else order).shape[0]

    def one_batch(params: Params, low: Array, size: Array, i: Array, total: Own) -> Own:
        position = i * batch_size + jnp.arange(batch_size, dtype=jnp.int32)
        inside = position < size
        rows = low + position % jnp.maximum(size, 1)
        rows = rows if order is None else order[rows]
        batch = jax.tree.map(lambda leaf: leaf[rows], examples)
        new = measure(model, params, batch, kind, inside, metrics)
        scores = (s + n.sum(dtype=s.dtype) for s, n in zip(total.scores, new.scores, strict=True))
        sums = jax.tree.map(lambda s, n: s + n.sum(0, dtype=s.dtype), total.sums, new.sums)
        group_sums, kept = total.group_sums, total.examples
        if groups is not None:
            where = jnp.where(inside, groups[rows], -1)
            group_sums = add_by_unit(group_sums, new.sums, where)
        if keep:
            place = jnp.where(inside, low - starts[0] + position, num_places)
            kept = jax.tree.map(
                lambda table, value: table.at[place].set(value, mode="drop"),
                kept,
                (new.scores, new.kept),
            )
        return Own(Scores(*scores), sums, group_sums, kept)

    none = Scores(jnp.zeros(()), *(jnp.int32(0),) * 4)
    no_sum = jax.tree.map(lambda leaf: leaf[0], no_sums(shapes, 1))

    def one_client(carry: Any, client: tuple[Params, Array, Array]) -> Any:
        params, low, size = client
        found = jax.lax.fori_loop(
            0,
            (size + batch_size - 1) // batch_size,
            functools.partial(one_batch, params, low, size),
            Own(none, no_sum, *carry),
        )
        return (found.group_sums, found.examples), (found.scores, found.sums)

    places: Any = ()
    if keep:
        batch = jax.tree.map(
            lambda leaf: jax.ShapeDtypeStruct((batch_size, *leaf.shape[1:]), leaf.dtype), examples
        )
        mask = jax.ShapeDtypeStruct((batch_size,), bool)
        found = jax.eval_shape(
            lambda p, b, m: measure(model, p, b, kind, m, metrics), one, batch, mask
        )
        places = jax.tree.map(
            lambda leaf: jnp.zeros((num_places, *leaf.shape[1:]), leaf.dtype),
            (found.scores, found.kept),
        )
    carry = (no_sums(shapes if groups is not None else {}, num_groups), places)
    (group_sums, places), (scores, sums) = jax.lax.scan(one_client, carry, (models, starts, sizes))
    return Own(scores, sums, group_sums, places)


def _is_nan(logits: Array) -> Array:
    return jnp.isnan(logits) if jnp.issubdtype(logits.dtype, jnp.inexact) else logits != logits
