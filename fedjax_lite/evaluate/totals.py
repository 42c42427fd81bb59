"""Sums of scores and metrics on the host, by client, group and all together, and their figures."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any, NamedTuple

import jax
import numpy as np

from fedjax_lite.evaluate.groups import Groups
from fedjax_lite.evaluate.programs import Scores
from fedjax_lite.metrics.metric import HostMetric, Metric, Named
from fedjax_lite.types import PyTree


class Examples(NamedTuple):
    """What was found of single examples `[P]`, on the host."""

    owners: np.ndarray
    """int64: the client of each."""
    groups: np.ndarray | None
    """int64: the group of each, where examples have groups; negative: none."""
    scores: Scores
    kept: dict[str, PyTree]
    """Quantities of host metrics, leaves `[P, ...]`."""


class Part(NamedTuple):
    """What was found of some clients; parts follow each other in the order of clients."""

    ids: np.ndarray
    """Integers `[n]`."""
    scores: np.ndarray
    """float64 `[5, n]`: sums, as `Scores` names them."""
    sums: dict[str, PyTree]
    """Of metrics, leaves `[n, ...]`."""
    examples: Examples | None = None
    group_sums: dict[str, PyTree] | None = None
    """Of metrics by groups of examples, leaves `[G, ...]` or more."""


def as_table(scores: Scores) -> np.ndarray:
    """Scores as float64 `[5, n]`."""
    return np.stack([np.asarray(values, np.float64) for values in scores])


def first_of(tree: PyTree, count: int) -> PyTree:
    """The first rows of all leaves.

    Example:
      >>> first_of({"a": np.arange(3)}, 2)["a"].tolist()
      [0, 1]
    """
    return jax.tree.map(lambda leaf: leaf[:count], tree)


class Totals:
    """Sums of `n` units, which grow where a larger unit comes.

    Example:
      >>> totals = Totals({}, 1)
      >>> totals.add(np.array([0, 2, -1]), np.ones((5, 3)), {})
      >>> totals.scores[0].tolist()
      [1.0, 0.0, 1.0]
    """

    def __init__(self, shapes: dict[str, PyTree], num_units: int) -> None:
        self.scores = np.zeros((5, num_units))
        self.sums = jax.tree.map(
            lambda leaf: np.zeros((num_units, *leaf.shape[1:]), _wide(leaf.dtype)), shapes
        )

    @property
    def num_units(self) -> int:
        """`n`."""
        return self.scores.shape[1]

    def add(self, units: np.ndarray, scores: np.ndarray | None, sums: dict[str, PyTree]) -> None:
        """Adds scores `[5, m]` and sums, leaves `[m, ...]`, to their units `[m]`; -1: to none."""
        real = units >= 0
        units = units[real]
        self._grow(int(units.max(initial=-1)) + 1)
        if scores is not None:
            for total, values in zip(self.scores, scores, strict=True):
                total += np.bincount(units, values[real], self.num_units)
        for name, tree in sums.items():
            jax.tree.map(
                lambda total, new: np.add.at(total, units, np.asarray(new)[real]),
                self.sums[name],
                tree,
            )

    def _grow(self, num_units: int) -> None:
        more = num_units - self.num_units
        if more > 0:
            self.scores = np.pad(self.scores, ((0, 0), (0, more)))
            self.sums = jax.tree.map(
                lambda leaf: np.pad(leaf, ((0, more), *((0, 0),) * (leaf.ndim - 1))), self.sums
            )


def figures_of(
    parts: Iterable[Part],
    shapes: dict[str, PyTree],
    metrics: Named,
    groups: Groups | None,
    has_accuracy: bool,
) -> tuple[dict[str, np.ndarray], dict[str, np.ndarray], dict[str, np.ndarray] | None]:
    """The figures of clients `[N]`, of all examples `[1]` and of groups `[G]`.

    Args:
      parts: of all clients, in order.
      shapes: of the quantities of metrics.
      metrics: names and metrics.
      groups: of clients or of examples; None: there are none.
      has_accuracy: labels are classes.
    """
    everyone, by_client, seen = Totals(shapes, 1), [], []
    numbers = None if groups is None else groups.numbers
    by_group = Totals(shapes, 0 if numbers is None else int(numbers.max()) + 1)
    for part in parts:
        count = len(part.ids)
        own = Totals(shapes, count)
        own.add(np.arange(count), part.scores, part.sums)
        by_client.append((own.scores, _results(own, metrics)))
        everyone.add(np.zeros(count, np.int64), part.scores, part.sums)
        if numbers is not None:
            by_group.add(numbers[part.ids], part.scores, part.sums)
        if part.examples is None:
            continue
        if any(isinstance(metric, HostMetric) for _, metric in metrics):
            seen.append(part.examples)
        if groups is not None and numbers is None:
            of = part.examples.groups
            assert of is not None
            assert part.group_sums is not None
            by_group.add(of, as_table(part.examples.scores), {})
            for_real = np.arange(int(of.max(initial=-1)) + 1)
            trimmed = first_of(part.group_sums, len(for_real))
            by_group.add(for_real, None, trimmed)
    scores = np.concatenate([one for one, _ in by_client], axis=1)
    values = {
        name: np.concatenate([found[name] for _, found in by_client])
        for name in (by_client[0][1] if by_client else {})
    }
    joined = _joined(seen)

    def finish(scores: np.ndarray, values: dict[str, Any], units: np.ndarray | None) -> Any:
        ranked = _host_results(metrics, joined, units, scores.shape[1])
        order = [name for name, _ in metrics]
        both = {**values, **ranked}
        return _figures(scores, {name: both[name] for name in order}, has_accuracy)

    owners = None if joined is None else joined.owners
    nobody = None if owners is None else np.zeros_like(owners)
    clients = finish(scores, values, owners)
    total = finish(everyone.scores, _results(everyone, metrics), nobody)
    if groups is None:
        return clients, total, None
    of_examples = None
    if joined is not None:
        of_examples = joined.groups if numbers is None else numbers[joined.owners]
    return clients, total, finish(by_group.scores, _results(by_group, metrics), of_examples)


def _wide(dtype: Any) -> Any:
    return np.float64 if np.issubdtype(dtype, np.floating) else np.int64


def _results(totals: Totals, metrics: Named) -> dict[str, np.ndarray]:
    """What metrics make of the sums of `n` units: `[n, ...]`."""
    found = {}
    for name, metric in metrics:
        if isinstance(metric, Metric):
            with np.errstate(divide="ignore", invalid="ignore"):
                found[name] = _checked(metric.result(totals.sums[name]), name, totals.num_units)
    return found


def _host_results(
    metrics: Named, seen: Examples | None, units: np.ndarray | None, num_units: int
) -> dict[str, np.ndarray]:
    found = {}
    for name, metric in metrics:
        if not isinstance(metric, HostMetric):
            continue
        if seen is None or units is None:
            found[name] = np.full(num_units, np.nan)
            continue
        counts = (np.asarray(seen.scores.counted) > 0) & (units >= 0)
        values = jax.tree.map(lambda leaf, counts=counts: leaf[counts], seen.kept[name])
        with np.errstate(divide="ignore", invalid="ignore"):
            result = metric.result(values, units[counts], num_units)
        found[name] = _checked(result, name, num_units)
    return found


def _checked(result: Any, name: str, num_units: int) -> np.ndarray:
    values = np.asarray(result, np.float64)
    if values.shape[:1] != (num_units,):
        raise ValueError(
            f"metrics[{name!r}].result must return one figure a unit, [{num_units}, ...], got "
            f"{list(values.shape)}; sums have a leading axis of units: use axis=-1"
        )
    return values


def _joined(seen: list[Examples]) -> Examples | None:
    if not seen:
        return None
    if len(seen) == 1:
        return seen[0]
    return jax.tree.map(lambda *leaves: np.concatenate(leaves), *seen)


def _figures(
    scores: np.ndarray, values: dict[str, np.ndarray], has_accuracy: bool
) -> dict[str, np.ndarray]:
    """Loss, accuracy, metrics and size of `n` units, NaN where nothing counts or is answered."""
    loss, counted, hits, labels, unknown = scores
    figures = {"loss": _ratio(loss, counted)}
    if has_accuracy:
        figures["accuracy"] = np.where(unknown > 0, np.nan, _ratio(hits, labels))
    void = (counted == 0) | (unknown > 0)
    for name, value in values.items():
        figures[name] = np.where(void.reshape(-1, *(1,) * (value.ndim - 1)), np.nan, value)
    return figures | {"size": counted.astype(np.int64)}


def _ratio(total: np.ndarray, count: np.ndarray) -> np.ndarray:
    """``total / count``, NaN where the count is 0."""
    return np.divide(total, count, out=np.full(len(total), np.nan), where=count > 0)
