"""What a model answers, and which labels count: the same for all metrics of classes."""

from __future__ import annotations

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from fedjax_lite.types import Array


class Answers(NamedTuple):
    """Of one batch, with labels `[B, ...]`."""

    logits: Array
    """float32 `[B, ..., K]`; of a model with one output, K = 2: 0 and that output."""
    labels: Array
    """int32 `[B, ...]`."""
    valid: Array
    """bool `[B, ...]`: labels that count, those that are not negative."""


def answers_of(outputs: Array, examples: Any) -> Answers:
    """Logits beside their labels.

    Args:
      outputs: `[B, ..., K]`, or one output a label: `[B, ..., 1]` or `[B, ...]`, the log-odds of
        class 1.
      examples: with labels ``"y"``, integers `[B, ...]`.

    Raises:
      ValueError: if labels are no classes.

    Example:
      >>> found = answers_of(jnp.array([[2.0], [-1.0]]), {"y": jnp.array([1, -1])})
      >>> found.logits.tolist(), found.valid.tolist()
      ([[0.0, 2.0], [0.0, -1.0]], [True, False])
    """
    labels = examples["y"]
    if jnp.issubdtype(labels.dtype, jnp.inexact):
        raise ValueError(
            f"metrics of classes need labels that are integers, got y of {labels.dtype}; of real "
            "numbers take fl.metrics.mean_absolute_error(), or give y.astype(np.int32)"
        )
    outputs = outputs.astype(jnp.float32)
    if outputs.size == labels.size:
        odds = outputs.reshape(labels.shape)
        outputs = jnp.stack([jnp.zeros_like(odds), odds], axis=-1)
    return Answers(outputs, labels.astype(jnp.int32), valid_labels(labels))


def valid_labels(labels: Array) -> Array:
    """Which labels count: those that are not negative; bool, of the labels' shape.

    Example:
      >>> valid_labels(jnp.array([0, -1])).tolist()
      [True, False]
    """
    if labels.dtype == bool or jnp.issubdtype(labels.dtype, jnp.unsignedinteger):
        return jnp.ones(labels.shape, bool)
    return labels >= 0


def chosen(logits: Array) -> Array:
    """The class that is answered: the first of the largest; int32, without the last axis.

    Example:
      >>> chosen(jnp.array([1.0, 3.0, 3.0])).tolist()
      1
    """
    return jnp.argmax(logits, axis=-1).astype(jnp.int32)


def per_example(values: Array, num_axes: int) -> Array:
    """Sums of bools or numbers `[B, ..., K]` over the labels of each example.

    Args:
      values: with the axes of the labels first, `num_axes` of them.
      num_axes: axes of the labels, the batch's included.
    """
    axes = tuple(range(1, num_axes))
    dtype = jnp.int32 if values.dtype == bool else None
    return jnp.sum(values, axis=axes, dtype=dtype)


def one_hot(classes: Array, num_classes: int, where: Array) -> Array:
    """Which class each is, bool `[..., num_classes]`; none of them where `where` is False.

    Example:
      >>> one_hot(jnp.array([1, 0]), 2, jnp.array([True, False])).tolist()
      [[False, True], [False, False]]
    """
    return jax.nn.one_hot(classes, num_classes, dtype=bool) & where[..., None]
