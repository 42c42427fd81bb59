"""The compiled passes over examples: sums of losses, hits and labels that count."""

from __future__ import annotations

import functools
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from fedjax_lite.counting import counted as counted_by
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


def score(model: Model, params: Params, batch: PyTree, kind: Kind, inside: Array) -> Scores:
    """Scores of one batch `[B]`.

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
        return Scores(loss, counted.astype(jnp.int32), none, none, none)
    labels, logits = batch["y"], model.predict(params, batch)
    if kind == "sign":
        logits = logits.reshape(labels.shape)
        answer, no_answer = logits > 0, _is_nan(logits)
    else:
        answer, no_answer = jnp.argmax(logits, axis=-1), _is_nan(logits).any(axis=-1)
    valid = _valid(labels) & counted.reshape(-1, *(1,) * (labels.ndim - 1))
    axes = tuple(range(1, labels.ndim))

    def count(which: Array) -> Array:
        return jnp.sum(valid & which, axis=axes, dtype=jnp.int32)

    right = answer == labels
    return Scores(loss, counted.astype(jnp.int32), count(right), count(valid), count(no_answer))


@functools.partial(jax.jit, static_argnums=(2, 3, 4))
def score_examples(
    params: Params, examples: PyTree, model: Model, kind: Kind, batch_size: int
) -> Scores:
    """Scores `[E]` of one model, in batches of one shape.

    The last batch reaches back over examples that were scored already; the repeated ones are
    dropped, so no padding ever goes through the model.
    """
    num_examples = jax.tree.leaves(examples)[0].shape[0]
    starts = np.minimum(
        np.arange(0, num_examples, batch_size, dtype=np.int32), num_examples - batch_size
    )

    def one_batch(start: Array) -> Scores:
        batch = jax.tree.map(
            lambda leaf: jax.lax.dynamic_slice_in_dim(leaf, start, batch_size), examples
        )
        return score(model, params, batch, kind, jnp.ones(batch_size, bool))

    results = jax.lax.map(one_batch, jnp.asarray(starts))
    whole = num_examples // batch_size * batch_size
    overlap = (batch_size - (num_examples - whole)) % batch_size

    def join(table: Array) -> Array:
        flat = table.reshape(-1)
        return jnp.concatenate([flat[:whole], flat[whole + overlap :]])

    return jax.tree.map(join, results)


@functools.partial(jax.jit, static_argnums=(5, 6, 7))
def score_own(
    models: Params,
    examples: PyTree,
    order: Array | None,
    starts: Array,
    sizes: Array,
    model: Model,
    kind: Kind,
    batch_size: int,
) -> Scores:
    """Sums `[n]` of the scores of clients' own models on their own examples, in own batches.

    Client `i` owns the examples ``order[starts[i]:starts[i] + sizes[i]]``.
    """

    def one_client(client: tuple[Params, Array, Array]) -> Scores:
        params, low, size = client

        def one_batch(i: Array, sums: Scores) -> Scores:
            position = i * batch_size + jnp.arange(batch_size, dtype=jnp.int32)
            rows = low + position % jnp.maximum(size, 1)
            rows = rows if order is None else order[rows]
            batch = jax.tree.map(lambda leaf: leaf[rows], examples)
            new = score(model, params, batch, kind, position < size)
            return Scores(*(s + n.sum(dtype=s.dtype) for s, n in zip(sums, new, strict=True)))

        none = Scores(jnp.zeros(()), *(jnp.int32(0),) * 4)
        return jax.lax.fori_loop(0, (size + batch_size - 1) // batch_size, one_batch, none)

    return jax.lax.map(one_client, (models, starts, sizes))


def _is_nan(logits: Array) -> Array:
    return jnp.isnan(logits) if jnp.issubdtype(logits.dtype, jnp.inexact) else logits != logits


def _valid(labels: Array) -> Array:
    if labels.dtype == bool or jnp.issubdtype(labels.dtype, jnp.unsignedinteger):
        return jnp.ones(labels.shape, bool)
    return labels >= 0
