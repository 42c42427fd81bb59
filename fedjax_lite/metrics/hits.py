"""Shares of labels that are answered rightly: by the first answer, or among the first k."""

from __future__ import annotations

import functools
from typing import Any

import jax.numpy as jnp

from fedjax_lite.checks.arguments import check_count
from fedjax_lite.checks.made import made
from fedjax_lite.metrics.answers import answers_of, per_example
from fedjax_lite.metrics.metric import Metric
from fedjax_lite.types import Array, PyTree


@made
def accuracy() -> Metric:
    """The share of labels that the largest output answers: what evaluations report anyway.

    Under a name of your own it can be compared with others; see `top_k_accuracy`.

    Returns:
      A `Metric`: one number.

    Example:
      >>> logits, y = jnp.array([[2.0, 1.0], [2.0, 1.0]]), jnp.array([0, 1])
      >>> accuracy().measure(logits, {"y": y})["hits"].tolist()
      [1, 0]
    """
    return _top(1)


@made
def top_k_accuracy(k: int) -> Metric:
    r"""The share of labels whose class is among the `k` largest outputs.

    .. math::  \frac{1}{n} \sum_j \big[\, |\{c : z_{jc} > z_{j y_j}\}| < k \,\big]

    Among equal outputs the first classes come first, as in ``argmax``: ``top_k_accuracy(1)`` is the
    accuracy.

    Args:
      k: at least 1; from the number of classes on every label is a hit.

    Returns:
      A `Metric`: one number.

    Raises:
      ValueError: if `k` is below 1; from an evaluation, if labels are no classes.

    Example:
      >>> logits, y = jnp.array([[3.0, 2.0, 1.0]] * 3), jnp.array([0, 1, 2])
      >>> top_k_accuracy(2).measure(logits, {"y": y})["hits"].tolist()
      [1, 1, 0]
    """
    check_count(k, "k", minimum=1)
    return _top(int(k))


@functools.cache  # one metric, one compiled program, however often it is asked for
def _top(k: int) -> Metric:
    def measure(outputs: Array, examples: Any) -> PyTree:
        logits, labels, valid = answers_of(outputs, examples)
        own = jnp.take_along_axis(logits, jnp.maximum(labels, 0)[..., None], axis=-1)
        before = jnp.arange(logits.shape[-1]) < labels[..., None]
        rank = ((logits > own) | ((logits == own) & before)).sum(-1)
        return {
            "hits": per_example(valid & (rank < k), labels.ndim),
            "labels": per_example(valid, labels.ndim),
        }

    return Metric(measure, lambda sums: sums["hits"] / sums["labels"])
