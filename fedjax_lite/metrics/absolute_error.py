"""Mean absolute error of predictions that are numbers."""

from __future__ import annotations

import functools
from typing import Any

import jax.numpy as jnp

from fedjax_lite.checks.made import made
from fedjax_lite.metrics.answers import per_example, valid_labels
from fedjax_lite.metrics.metric import Metric
from fedjax_lite.types import Array, PyTree


@made
def mean_absolute_error() -> Metric:
    r"""Mean distance between what the model predicts and the targets, in the targets' unit.

    .. math::  \frac{1}{n} \sum_j |\hat y_j - y_j|

    Of targets `[B, ...]` all entries count; of targets that are integers those that are not
    negative, as everywhere.

    Returns:
      A `Metric`: one number, lower is better.

    Raises:
      ValueError: from an evaluation, if the outputs are not one number a target.

    Example:
      >>> outputs, y = jnp.array([[1.0], [2.0]]), jnp.array([0.5, 4.0])
      >>> mean_absolute_error().measure(outputs, {"y": y})["distance"].tolist()
      [0.5, 2.0]
    """
    return _absolute()


@functools.cache  # one metric, one compiled program, however often it is asked for
def _absolute() -> Metric:
    def measure(outputs: Array, examples: Any) -> PyTree:
        targets = examples["y"]
        if outputs.size != targets.size:
            raise ValueError(
                f"mean_absolute_error needs one output a target, got outputs "
                f"{list(outputs.shape)} for y {list(targets.shape)}; classes are scored by "
                "fl.metrics.f1(num_classes)"
            )
        numbers = jnp.issubdtype(targets.dtype, jnp.inexact)
        valid = jnp.ones(targets.shape, bool) if numbers else valid_labels(targets)
        outputs = outputs.reshape(targets.shape).astype(jnp.float32)
        distance = jnp.where(valid, jnp.abs(outputs - targets.astype(jnp.float32)), 0.0)
        return {
            "distance": per_example(distance, targets.ndim),
            "count": per_example(valid, targets.ndim),
        }

    return Metric(measure, lambda sums: sums["distance"] / sums["count"], higher_is_better=False)
