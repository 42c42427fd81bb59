"""Laws of the metrics of evaluations."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from fedjax_lite.metrics import HostMetric, Metric
from fedjax_lite.testing.algorithm_laws import run_laws, same
from fedjax_lite.testing.slot_laws import compiled
from fedjax_lite.types import PyTree


class Measured(NamedTuple):
    """A metric, and what it is tried on."""

    metric: Metric | HostMetric
    outputs: PyTree
    """Leaves `[E, ...]`, what a model answers."""
    examples: PyTree
    """Leaves `[E, ...]`."""

    @property
    def size(self) -> int:
        """`E`."""
        return jax.tree.leaves(self.outputs)[0].shape[0]

    def values(self, rows: np.ndarray | None = None) -> PyTree:
        """What is measured of some examples."""
        rows = np.arange(self.size) if rows is None else rows
        some = jax.tree.map(lambda leaf: np.asarray(leaf)[rows], (self.outputs, self.examples))
        return jax.tree.map(np.asarray, compiled(self.metric.measure)(*some))

    def result(self, values: PyTree, units: np.ndarray, num_units: int) -> np.ndarray:
        """The figures of units, of what was measured of their examples."""
        with np.errstate(divide="ignore", invalid="ignore"):
            if isinstance(self.metric, HostMetric):
                return np.asarray(self.metric.result(values, units, num_units), np.float64)
            return np.asarray(self.metric.result(_sums(values, units, num_units)), np.float64)


def examples_are_measured_alone(subject: Measured) -> None:
    """What is measured of an example depends on no other: batches of any size add up alike."""
    together = subject.values()
    for i in range(subject.size):
        alone = subject.values(np.array([i]))
        same(alone, jax.tree.map(lambda leaf, i=i: leaf[i : i + 1], together), message=f"of {i}")


def measuring_is_pure(subject: Measured) -> None:
    """Compiled, it measures the same."""
    plain = subject.metric.measure(*jax.tree.map(jnp.asarray, (subject.outputs, subject.examples)))
    same(jax.tree.map(np.asarray, plain), subject.values())


def units_are_told_apart(subject: Measured) -> None:
    """Several clients at once have the figures that each has alone."""
    units = np.arange(subject.size) % 3
    together = subject.result(subject.values(), units, 3)
    assert together.shape[:1] == (3,), f"results must be [n, ...], got {list(together.shape)}"
    for unit in range(3):
        rows = np.flatnonzero(units == unit)
        alone = subject.result(subject.values(rows), np.zeros(len(rows), np.int64), 1)
        same(alone[0], together[unit], message=f"of unit {unit}")


def order_of_examples_does_not_matter(subject: Measured) -> None:
    """Streams, shards and partitions read examples in orders of their own."""
    rows, units = np.arange(subject.size)[::-1], np.zeros(subject.size, np.int64)
    turned = subject.result(subject.values(rows), units, 1)
    same(turned, subject.result(subject.values(), units, 1))


METRIC_LAWS: dict[str, Callable[[Measured], None]] = {
    law.__name__: law
    for law in (
        examples_are_measured_alone,
        measuring_is_pure,
        units_are_told_apart,
        order_of_examples_does_not_matter,
    )
}


def check_metric(
    metric: Metric | HostMetric,
    outputs: PyTree,
    examples: PyTree,
    *,
    laws: Iterable[str] | None = None,
) -> None:
    """Runs the laws of metrics on one of one's own.

    Args:
      metric: a `fedjax_lite.metrics.Metric` or a `HostMetric`.
      outputs: leaves `[E, ...]`, as the model's `predict` returns them; six examples or more.
      examples: leaves `[E, ...]`.
      laws: names of some; None: all of them.

    Example:
      >>> import fedjax_lite as fl
      >>> logits = jnp.array([[2.0, 0.0], [0.0, 1.0], [1.0, 3.0]] * 3)
      >>> check_metric(fl.metrics.f1(2), logits, {"y": jnp.array([0, 1, 0] * 3)})
    """
    run_laws(METRIC_LAWS, Measured(metric, outputs, examples), laws)


def _sums(values: Any, units: np.ndarray, num_units: int) -> Any:
    def add(leaf: np.ndarray) -> np.ndarray:
        wide = np.float64 if np.issubdtype(leaf.dtype, np.floating) else np.int64
        total = np.zeros((num_units, *leaf.shape[1:]), wide)
        np.add.at(total, units, leaf)
        return total

    return jax.tree.map(add, values)
