"""label_flip(): hostile clients train honestly, on wrong labels."""

from __future__ import annotations

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from fedjax_lite.checks.arguments import check_count, check_whole
from fedjax_lite.data.population.dataset import FederatedDataset
from fedjax_lite.types import Array


def label_flip(
    data: FederatedDataset,
    clients: Any,
    *,
    num_classes: int,
    source: int | None = None,
    target: int | None = None,
    label: str = "y",
) -> FederatedDataset:
    r"""Flips the labels of some clients.

    .. math::  y \leftarrow C - 1 - y

    or, with `source` and `target`, only ``source -> target``. The shapes stay, so a compiled round
    runs on the result as it is. Nobody else's data change. Splits of the population
    (`fedjax_lite.data.with_splits`), which phases of local work read, are flipped likewise; keep a
    population that is to be evaluated apart.

    Args:
      data: the population; its examples are a dict.
      clients: ids of the hostile clients, e.g. of `byzantine_clients`.
      num_classes: `C`.
      source: only labels of this class are changed ...
      target: ... to this one.
      label: the labels' name in the examples.

    Returns:
      A `FederatedDataset` that shares all arrays but the labels.

    Raises:
      ValueError: if ids, classes or labels are out of range, or only one of `source` and `target`
        is given.
      TypeError: if there are no labels of that name, or they are not integers.

    Example:
      >>> from fedjax_lite.data import from_arrays
      >>> data = from_arrays({"y": np.array([0, 1, 2, 0])}, np.array([0, 0, 1, 1]), num_clients=2)
      >>> label_flip(data, [1], num_classes=3).examples["y"].tolist()
      [0, 1, 0, 2]

    Reference: Tolpegin, Truex, Gursoy, Liu, "Data Poisoning Attacks Against Federated Learning
    Systems", 2020, arXiv:2007.08432.
    """
    theirs = owned_by(data, clients)
    labels = labels_of(data.examples, label)
    new = flip_labels(labels, num_classes=num_classes, source=source, target=target)
    examples = {**data.examples, label: jnp.where(theirs, new, labels)}
    classes: dict[str, Any] = {"num_classes": num_classes, "source": source, "target": target}
    splits = {
        name: label_flip(split, clients, **classes, label=label)
        for name, split in data.splits.items()
    }
    return dataclasses.replace(data, examples=examples, splits=splits)


def flip_labels(
    labels: Any, *, num_classes: int, source: int | None = None, target: int | None = None
) -> Array:
    """``C - 1 - y``, or ``source -> target``; negative labels (padding) stay.

    Args:
      labels: integers of any shape, below `num_classes`.
      num_classes: `C`. Classes that are looked for or written must fit into the labels' dtype.
      source: only labels of this class are changed ...
      target: ... to this one.

    Returns:
      The flipped labels, of the same shape and dtype.

    Raises:
      ValueError: if a class or a label is out of range, or only one of `source` and `target` is
        given.

    Example:
      >>> flip_labels(np.array([0, 7, 9]), num_classes=10).tolist()
      [9, 2, 0]
      >>> flip_labels(np.array([0, 7, 9]), num_classes=10, source=7, target=1).tolist()
      [0, 1, 9]
    """
    check_count(num_classes, "num_classes", minimum=2)
    if (source is None) != (target is None):
        raise ValueError(
            f"give both source and target or neither, got source={source}, target={target}"
        )
    for name, value in (("source", source), ("target", target)):
        if value is not None and not 0 <= value < num_classes:
            raise ValueError(f"{name} must lie in [0, {num_classes}), got {value}")
    check_whole(labels, "labels")
    labels = jnp.asarray(labels)
    if source is None or target is None:
        check_fits(num_classes - 1, labels, "the largest class")
    else:
        check_fits(source, labels, "source")
        check_fits(target, labels, "target")
    largest = -1 if isinstance(labels, jax.core.Tracer) or not labels.size else int(labels.max())
    if largest >= num_classes:
        raise ValueError(
            f"labels must lie below num_classes={num_classes}, got {largest}; give the number of "
            "classes of the data"
        )
    if source is None:
        flipped = num_classes - 1 - labels
    else:
        flipped = jnp.where(labels == source, target, labels)
    return jnp.where(labels < 0, labels, flipped).astype(labels.dtype)


def owned_by(data: FederatedDataset, clients: Any) -> Array:
    """Which pooled examples belong to `clients`, bool `[E]`.

    Raises:
      ValueError: if an id lies outside the population.
      TypeError: if `data` is not a `FederatedDataset` or ids are not integers.

    Example:
      >>> from fedjax_lite.data import from_arrays
      >>> data = from_arrays({"y": np.array([0, 1, 2])}, np.array([1, 0, 1]), num_clients=2)
      >>> owned_by(data, [1]).tolist()
      [True, False, True]
    """
    if not isinstance(data, FederatedDataset):
        raise TypeError(f"data must be a FederatedDataset, got {type(data).__name__}")
    ids = np.asarray(clients).reshape(-1)
    if ids.size and ids.dtype.kind not in "iu":
        raise TypeError(f"clients must be integer ids, got {ids.dtype}")
    if ids.size and (ids.min() < 0 or ids.max() >= data.num_clients):
        raise ValueError(
            f"clients must lie in [0, {data.num_clients}), got {int(ids.min())}..{int(ids.max())}"
        )
    hostile = np.zeros(data.num_clients, bool)
    hostile[ids.astype(np.int64)] = True
    owners = data.client_of_example
    return jnp.asarray(hostile)[owners] & (owners >= 0)


def check_fits(value: int, labels: Array, name: str) -> None:
    """Raises ValueError where the labels' dtype cannot hold `value`: it would wrap.

    Example:
      >>> check_fits(255, jnp.zeros(1, jnp.uint8), "target")
    """
    largest = jnp.iinfo(labels.dtype).max
    if value > largest:
        raise ValueError(
            f"{name} must be at most {largest} for labels of {labels.dtype}, got {value}; use "
            "labels of a wider dtype"
        )


def labels_of(examples: Any, label: str) -> Array:
    """The labels in a dict of examples.

    Raises:
      TypeError: if there are none of that name, or they are not integers.
    """
    if not isinstance(examples, dict) or label not in examples:
        raise TypeError(f"examples must be a dict with labels {label!r}, got {type(examples)}")
    labels = jnp.asarray(examples[label])
    if not jnp.issubdtype(labels.dtype, jnp.integer):
        raise TypeError(f"labels {label!r} must be integers, got {labels.dtype}")
    return labels
