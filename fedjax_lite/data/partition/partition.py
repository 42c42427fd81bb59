"""Partitions: who owns which pooled example. The contract, and the partitions without skew.

A partitioner answers with the owner of every example, int `[E]`. An example has one owner, so
that nothing is lost or dealt twice is true by construction, and the partition is one array to
save, compare or plot. Label skew is in `label_skew` and `pachinko`, quantity skew in
`quantity_skew`, feature skew (which changes the examples, not their owners) in `feature_skew`.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import jax
import numpy as np

from fedjax_lite.checks.arguments import shown
from fedjax_lite.checks.made import Made, made
from fedjax_lite.data.partition.apportion import even_sizes
from fedjax_lite.data.partition.checks import check_capacity, check_count, check_seed, column
from fedjax_lite.data.population.dataset import FederatedDataset, check_examples, from_owners
from fedjax_lite.data.population.owner_ids import as_ids, check_unmasked, number_ids
from fedjax_lite.types import PyTree


class Partitioner(NamedTuple):
    """How pooled examples are dealt to clients: one pure numpy function and what it promises."""

    assign: Callable[[Mapping[str, Any]], np.ndarray]
    """``(examples) -> owners``, int `[E]` in `[0, num_clients)`; deterministic."""
    num_clients: int | None
    """The population's size `N`; None where the examples tell (`by_key`)."""
    name: str
    """For reports, e.g. ``"dirichlet(alpha=0.3, num_clients=100, seed=0)"``."""
    drops: tuple[str, ...] = ()
    """Keys that identify clients and do not stay among the examples."""
    made: Made | None = None
    """Which factory made it; None: your own."""


class FeatureSkew(NamedTuple):
    """A change of the examples that differs between clients."""

    apply: Callable[[Mapping[str, Any], np.ndarray, int], Mapping[str, Any]]
    """``(examples, owners [E], num_clients) -> examples``; its input is left as it is."""
    name: str
    made: Made | None = None
    """Which factory made it; None: your own."""


def partition(
    examples: Mapping[str, Any], partitioner: Partitioner, *skews: FeatureSkew
) -> FederatedDataset:
    """Deals pooled examples to clients.

    Args:
      examples: dict of arrays, leaves `[E, ...]`; may be memory-mapped.
      partitioner: who owns what, e.g. ``dirichlet(alpha=0.3, num_clients=100, seed=0)``.
      *skews: changes per client, e.g. ``rotation(angles=(0, 90))``, applied in this order.

    Returns:
      A `FederatedDataset` on the default device, examples in their given order and dtype.

    Raises:
      TypeError: if the examples are not a dict of numeric arrays, or `partitioner` is not one.
      ValueError: if they are empty, uneven or not finite, or do not suit the partitioner.

    Example:
      >>> train = {"x": np.zeros((6, 2)), "y": np.array([0, 1, 0, 1, 0, 1])}
      >>> partition(train, iid(num_clients=3, seed=0)).sizes.tolist()
      [2, 2, 2]
    """
    for skew in skews:
        if not isinstance(skew, FeatureSkew):
            raise TypeError(
                "skews, what follows the partitioner, must be FeatureSkews such as "
                f"noise(level=0.1), got {shown(skew)}; a second partitioner cannot follow"
            )
    owner, num_clients = _assign(examples, partitioner)
    kept: Mapping[str, Any] = {k: v for k, v in examples.items() if k not in partitioner.drops}
    if not kept:
        raise ValueError(
            f"examples must hold an array besides the client keys {list(partitioner.drops)}"
        )
    for skew in skews:
        kept = skew.apply(kept, owner, num_clients)
    return from_owners(dict(kept), owner, num_clients)


def owners(examples: Mapping[str, Any], partitioner: Partitioner) -> np.ndarray:
    """The owner of each example, without a device: for numpy users and for saving a partition.

    Args:
      examples: dict of arrays, leaves `[E, ...]`.
      partitioner: who owns what.

    Returns:
      int64 `[E]`; ``np.flatnonzero(owners == i)`` are the examples of client `i`.

    Raises:
      TypeError: if the examples are not a dict of numeric arrays.
      ValueError: if they are empty, uneven or not finite, or do not suit the partitioner.

    Example:
      >>> owners({"y": np.array([2, 0, 1, 0])}, by_key("y")).tolist()
      [2, 0, 1, 0]
    """
    return _assign(examples, partitioner)[0]


def label_counts(
    data: FederatedDataset, num_classes: int | None = None, *, label: str = "y"
) -> np.ndarray:
    """Counts labels by client: the picture of a partition.

    Args:
      data: a federated data set whose examples are a dict.
      num_classes: number of columns; None: the largest label and one.
      label: the key of the integer labels `[E]`.

    Returns:
      int64 `[N, num_classes]`; rows sum to the clients' sizes. Of a part of a population
      (`split_clients`) only what clients own there counts.

    Raises:
      ValueError: if the key is absent, or a label is negative or ``>= num_classes``.

    Example:
      >>> train = {"y": np.array([0, 1, 1, 2])}
      >>> label_counts(partition(train, by_key("y", keep=True))).tolist()
      [[1, 0, 0], [0, 2, 0], [0, 0, 1]]
    """
    labels = column(data.examples, label, keyword="label")
    if labels.dtype.kind not in "iub":
        raise TypeError(f"examples[{label!r}] must be integer labels, got {labels.dtype}")
    labels = labels.astype(np.int64)
    if num_classes is None:
        num_classes = int(labels.max()) + 1
    check_count("num_classes", num_classes)
    if labels.min() < 0 or labels.max() >= num_classes:
        raise ValueError(
            f"labels must lie in [0, num_classes={num_classes}), got {labels.min()}.."
            f"{labels.max()}; raise num_classes or renumber the labels"
        )
    owners = np.asarray(data.client_of_example).astype(np.int64)
    cell = (owners * num_classes + labels)[owners >= 0]
    counts = np.bincount(cell, minlength=data.num_clients * num_classes)
    return counts.reshape(data.num_clients, num_classes)


@made
def iid(*, num_clients: int, seed: int = 0) -> Partitioner:
    """Shuffles, then cuts into sizes equal to within one (the larger first).

    Args:
      num_clients: the population's size `N`, at most `E`.
      seed: of the shuffle, ``np.random.default_rng(seed).permutation(E)``.

    Returns:
      A `Partitioner`.

    Raises:
      ValueError: if `num_clients` is below 1, or (when it is used) above `E`.

    Example:
      >>> owned = owners({"y": np.zeros(7, int)}, iid(num_clients=3, seed=0))
      >>> np.bincount(owned).tolist()
      [3, 2, 2]

    Reference: McMahan et al., "Communication-Efficient Learning of Deep Networks from
    Decentralized Data", 2017, arXiv:1602.05629.
    """
    check_count("num_clients", num_clients)
    check_seed(seed)

    def assign(examples: Mapping[str, Any]) -> np.ndarray:
        num_examples = np.shape(jax.tree.leaves(examples)[0])[0]
        check_capacity(num_examples, num_clients, 1)
        owner = np.empty(num_examples, np.int64)
        owner[np.random.default_rng(seed).permutation(num_examples)] = np.repeat(
            np.arange(num_clients), even_sizes(num_examples, num_clients)
        )
        return owner

    return Partitioner(assign, num_clients, f"iid(num_clients={num_clients}, seed={seed})")


@made
def by_key(key: str, *, keep: bool = False) -> Partitioner:
    """Natural clients: one per distinct value of an array, such as the writer or the hospital.

    Clients are numbered in the sorted order of the values, as ``np.unique`` gives them.

    Args:
      key: the key of the array `[E]` of sortable values, integers or strings.
      keep: leave that array among the examples; it must be numeric then.

    Returns:
      A `Partitioner`; its `num_clients` is None, because the examples tell.

    Raises:
      ValueError: (when it is used) if the key is absent, its array is not `[E]`, or a value is
        missing or rounded, as in `from_arrays`.
      TypeError: (when it is used) if a string array is to be kept.

    Example:
      >>> train = {"x": np.arange(3.0), "writer": np.array(["bo", "al", "bo"])}
      >>> data = partition(train, by_key("writer"))
      >>> data.sizes.tolist(), sorted(data.examples)
      ([1, 2], ['x'])

    Reference: Caldas et al., "LEAF: A Benchmark for Federated Settings", 2018, arXiv:1812.01097.
    """

    def assign(examples: Mapping[str, Any]) -> np.ndarray:
        name = f"examples[{key!r}]"
        column(examples, key, keyword="key", convert=lambda ids: as_ids(ids, name))
        return number_ids(examples[key], name)[0]

    return Partitioner(assign, None, f"by_key({key!r})", drops=() if keep else (key,))


def _assign(examples: Mapping[str, Any], partitioner: Partitioner) -> tuple[np.ndarray, int]:
    """Runs the partitioner and checks its answer, which may be a user's own function's."""
    if not isinstance(examples, Mapping):
        raise TypeError(
            "examples must be a dict of arrays such as {'x': ..., 'y': ...}, "
            f"got {type(examples).__name__}"
        )
    if not isinstance(partitioner, Partitioner):
        example = "fl.data.dirichlet(alpha=0.3, num_clients=100, seed=0)"
        called = "; was a factory not called?" if callable(partitioner) else ""
        found = repr(partitioner) if isinstance(partitioner, str) else type(partitioner).__name__
        raise TypeError(
            f"partitioner must be a Partitioner, got {found}{called}; for example {example}"
        )
    rest: PyTree = {k: v for k, v in examples.items() if k not in partitioner.drops}
    num_examples = check_examples(rest) if rest else None
    answer = partitioner.assign(examples)
    check_unmasked(answer, f"the answer of {partitioner.name}")
    owner = np.asarray(answer)
    if num_examples is not None and owner.shape != (num_examples,):
        raise ValueError(
            f"{partitioner.name} must name one owner per example, [{num_examples}], "
            f"got shape {list(owner.shape)}"
        )
    if owner.dtype.kind not in "iu":
        raise TypeError(f"{partitioner.name} must answer with integer owners, got {owner.dtype}")
    population = partitioner.num_clients
    num_clients = int(owner.max()) + 1 if population is None else population
    if owner.min() < 0 or owner.max() >= num_clients:
        raise ValueError(
            f"{partitioner.name} must answer with owners in [0, {num_clients}), "
            f"got {owner.min()}..{owner.max()}"
        )
    return owner.astype(np.int64), num_clients
