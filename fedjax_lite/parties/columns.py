"""ColumnDataset: a population of columns. Parties know other things about the same entities."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from fedjax_lite.checks.arguments import check_count, check_fraction, shown
from fedjax_lite.parties.alignment import Alignment
from fedjax_lite.types import Array, PyTree


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class ColumnDataset:
    """Features and labels of `n` entities, by the party that has them; an argument of a round.

    Row `j` is the same entity everywhere (see `align`). Parties are in the order of their names.

    Attributes:
      features: by party, leaves `[n, ...]`.
      labels: by the party that holds them, leaves `[n, ...]`; one party or several.
    """

    features: dict[str, PyTree]
    labels: dict[str, PyTree]

    def __repr__(self) -> str:
        """Counts and names; no values."""
        held = ", ".join(
            f"{party}: {', '.join(str(list(leaf.shape[1:])) for leaf in jax.tree.leaves(x))}"
            for party, x in self.features.items()
        )
        return f"ColumnDataset({self.num_entities} entities; {held}; labels: {list(self.labels)})"

    @property
    def parties(self) -> tuple[str, ...]:
        """Names of the parties with features, sorted."""
        return tuple(sorted(self.features))

    @property
    def num_parties(self) -> int:
        """How many parties have features."""
        return len(self.features)

    @property
    def num_entities(self) -> int:
        """Rows, `n`."""
        return jax.tree.leaves(self.features)[0].shape[0]

    @property
    def examples(self) -> dict[str, PyTree]:
        """``{"x": features, "y": labels}``, both by party; of one holder its labels alone."""
        (*_, last), several = self.labels.values(), len(self.labels) > 1
        return {"x": dict(self.features), "y": dict(self.labels) if several else last}

    def take(self, rows: Any) -> ColumnDataset:
        """The entities in some rows, for all parties alike: integers `[m]` or bools `[n]`."""
        rows = np.asarray(rows)
        return jax.tree.map(lambda leaf: leaf[rows], self)

    def examples_of(self, holder: str | None = None) -> dict[str, PyTree]:
        """Everything in one place, ``{"x": {party: ...}, "y": labels of one party}``.

        What an evaluator, or pooled training, is given. `holder` may be left out where only one
        party has labels.
        """
        return {"x": dict(self.features), "y": self.labels[holder_of(self.labels, holder)]}


def from_columns(
    features: Mapping[str, PyTree],
    labels: Mapping[str, PyTree],
    *,
    alignment: Alignment | None = None,
) -> ColumnDataset:
    """A population of columns from arrays.

    Args:
      features: by party, leaves `[n, ...]`; with an `alignment` `[n_p, ...]`, as the party has
        them.
      labels: by the party that holds them, likewise; ``{"time": ..., "event": ...}`` for survival.
      alignment: of `align` or `private_align`, for the same parties; None: row `j` is the same
        entity with everybody already.

    Returns:
      A `ColumnDataset` of arrays on the device.

    Raises:
      TypeError: if something is no array of numbers.
      ValueError: if lengths differ, nobody has labels, or the alignment is of other parties.

    Example:
      >>> import fedjax_lite as fl
      >>> both = fl.parties.align({"clinic": [3, 1, 2], "lab": [2, 3, 9]})
      >>> data = from_columns({"clinic": np.eye(3), "lab": np.ones((3, 2))},
      ...                     {"clinic": np.array([30, 10, 20])}, alignment=both)
      >>> data
      ColumnDataset(2 entities; clinic: [3], lab: [2]; labels: ['clinic'])
      >>> data.labels["clinic"].tolist()
      [20, 30]
    """
    if not isinstance(features, Mapping) or not features:
        raise TypeError(
            f'features must be arrays by party, got {shown(features)}; {{"clinic": x, "lab": x}}'
        )
    if not isinstance(labels, Mapping) or not labels:
        raise TypeError(
            f'labels must be given by the party that holds them, got {shown(labels)}; {{"clinic": '
            "y}"
        )
    sizes: dict[str, int] = {}
    held: list[dict[str, PyTree]] = []
    for name, given in (("features", features), ("labels", labels)):
        arrays = {party: _arrays(given[party], f"{name}[{party!r}]") for party in sorted(given)}
        if alignment is not None:
            arrays = {party: _rows(x, party, alignment, name) for party, x in arrays.items()}
        for party, tree in arrays.items():
            sizes |= {
                f"{name}[{party!r}]{jax.tree_util.keystr(path)}": leaf.shape[0]
                for path, leaf in jax.tree_util.tree_leaves_with_path(tree)
            }
        held.append(jax.tree.map(jnp.asarray, arrays))
    if len(set(sizes.values())) > 1:
        told = ", ".join(f"{name}: {size}" for name, size in sizes.items())
        raise ValueError(
            f"features and labels must have one row for each entity, got {told} rows; with ids, "
            "give alignment=fl.parties.align({party: ids, ...})"
        )
    return ColumnDataset(*held)


def cut_columns(
    examples: Mapping[str, Any],
    cut: Mapping[str, Sequence[int]],
    *,
    holder: str,
    axis: int = 1,
) -> ColumnDataset:
    """A data set cut by columns: each party has some of them.

    Args:
      examples: ``{"x": [n, ...], "y": ...}``, such as `fl.data.load` gives.
      cut: which indices along `axis` of "x" a party has; a column may be with several.
      holder: the party that has "y".
      axis: of "x" that is cut: 1 for tables and the height of images `[n, H, W, C]`, 2 their width.

    Returns:
      A `ColumnDataset`.

    Raises:
      TypeError: if `examples` is no dict with "x" and "y".
      ValueError: if an index lies outside, a party has none, or the holder is none of them.

    Example:
      >>> table = {"x": np.arange(6.0).reshape(2, 3), "y": np.array([0, 1])}
      >>> data = cut_columns(table, {"clinic": [0, 2], "lab": [1]}, holder="lab")
      >>> data.features["clinic"].tolist()
      [[0.0, 2.0], [3.0, 5.0]]
    """
    if not isinstance(examples, Mapping) or not {"x", "y"} <= set(examples):
        raise TypeError(f'examples must be a dict with "x" and "y", got {shown(examples)}')
    x = np.asarray(examples["x"])
    if not 0 < axis < x.ndim:
        raise ValueError(f"axis must be in [1, {x.ndim}), got {axis}; axis 0 are the entities")
    features = {}
    for party, indices in cut.items():
        wanted = np.asarray(indices)
        bad = wanted.size and (wanted.dtype.kind not in "iu" or wanted.ndim != 1)
        if bad or not wanted.size or wanted.min() < 0 or wanted.max() >= x.shape[axis]:
            raise ValueError(
                f"cut[{party!r}] must be indices in [0, {x.shape[axis]}), got "
                f"{np.asarray(indices).tolist()!r:.60}; range(0, {x.shape[axis] // 2})"
            )
        features[party] = np.take(x, wanted, axis=axis)
    if holder not in features:
        raise ValueError(f"holder must be one of {sorted(features)}, got {holder!r}; it has labels")
    return from_columns(features, {holder: examples["y"]})


def split_rows(
    data: ColumnDataset, fraction: float, *, seed: int
) -> tuple[ColumnDataset, ColumnDataset]:
    """Train and test: the same entities with all parties.

    Args:
      data: aligned columns.
      fraction: of the entities, for the second part.
      seed: of the draw.

    Returns:
      ``(train, test)``; at least one entity each.

    Raises:
      ValueError: if a part would be empty.

    Example:
      >>> data = from_columns({"a": np.zeros((8, 1)), "b": np.zeros((8, 2))}, {"a": np.zeros(8)})
      >>> [part.num_entities for part in split_rows(data, 0.25, seed=0)]
      [6, 2]
    """
    check_fraction(fraction, "fraction")
    check_count(seed, "seed", minimum=0)
    size = data.num_entities
    held_out = round(fraction * size)
    if not 0 < held_out < size:
        raise ValueError(
            f"fraction must leave entities in both parts, got {fraction} of {size}; give 0.25"
        )
    order = np.random.default_rng(seed).permutation(size)
    return data.take(np.sort(order[held_out:])), data.take(np.sort(order[:held_out]))


def holder_of(holders: Any, holder: str | None) -> str:
    """The party whose labels are meant.

    Raises:
      ValueError: if several have some and none was named, or the named one has none.

    Example:
      >>> holder_of({"clinic": 1}, None)
      'clinic'
    """
    names = sorted(holders)
    if holder is None and len(names) == 1:
        return names[0]
    if holder is None or holder not in names:
        raise ValueError(
            f"holder must be a party with labels, one of {names}, got {holder!r}; give "
            f"holder={names[0]!r}"
        )
    return holder


def _arrays(tree: PyTree, name: str) -> PyTree:
    def one(leaf: Any) -> Array | np.ndarray:
        array = leaf if isinstance(leaf, jax.Array) else np.asarray(leaf)
        if array.dtype.kind not in "biufV" or not array.ndim:
            raise TypeError(
                f"{name} must be numbers [n, ...], got {shown(leaf)} of {array.dtype}; encode "
                "words as numbers first"
            )
        return array

    tree = jax.tree.map(one, tree, is_leaf=lambda leaf: isinstance(leaf, list))
    if not jax.tree.leaves(tree):
        raise TypeError(f"{name} must be an array [n, ...], got nothing; leave the party out")
    return tree


def _rows(tree: PyTree, party: str, alignment: Alignment, name: str) -> PyTree:
    if party not in alignment.rows:
        raise ValueError(
            f"alignment must know the party {party!r} of {name}, got {sorted(alignment.rows)}; "
            "align the ids of all of them"
        )
    expected = alignment.report[party].num_rows
    for leaf in jax.tree.leaves(tree):
        if leaf.shape[0] != expected:
            raise ValueError(
                f"{name}[{party!r}] must have a row for each of its {expected} ids, got "
                f"{leaf.shape[0]}; give all rows, the alignment chooses among them"
            )
    return jax.tree.map(lambda leaf: leaf[alignment.rows[party]], tree)
