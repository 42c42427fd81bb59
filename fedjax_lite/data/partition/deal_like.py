"""Test data for every client out of a common test set: dealt by the clients' own label shares."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from fedjax_lite.data.partition.checks import check_seed, class_index
from fedjax_lite.data.partition.partition import label_counts
from fedjax_lite.data.population.dataset import FederatedDataset, check_examples
from fedjax_lite.data.stores.store import offsets_of


def deal_like(
    examples: Mapping[str, Any], data: FederatedDataset, *, seed: int, label: str = "y"
) -> FederatedDataset:
    r"""Deals common test examples to clients, to each with the labels of its training data.

    Where a data set has a test split of its own, this gives every client test data like its
    training data, and takes nothing from the latter. With `n_{ic}` training examples of class `c`
    at client `i` and `m_c` test examples, client `i` is dealt `m_{ic}` of them at random,

    .. math::  m_{ic} = \lfloor S_{ic} + u_c \rfloor - \lfloor S_{(i-1)c} + u_c \rfloor, \qquad
               S_{ic} = m_c \frac{\sum_{j \le i} n_{jc}}{\sum_j n_{jc}}, \qquad u_c \sim U[0, 1)

    which adds up to `m_c`, is off its share by less than 1, and is right in the mean. Every test
    example is dealt once; those of a class that nobody trains on belong to nobody. Only labels are
    matched: where clients differ in their features, hold out their own with `split_clients`.

    Args:
      examples: dict of arrays, leaves `[E', ...]`, with integer labels; the test split.
      data: the population that trains, `N` clients.
      seed: of `u` and of who is dealt which.
      label: the key of the labels, in both.

    Returns:
      A `FederatedDataset` of `N` clients in the same order; a client may be without test data.

    Raises:
      TypeError: if labels are no integers, or `data` is no `FederatedDataset`.
      ValueError: if a label is missing or negative, or nobody trains on any of the classes.

    Example:
      >>> from fedjax_lite.data.population.dataset import from_arrays
      >>> data = from_arrays({"y": np.array([0, 0, 0, 1, 1, 0])}, [0, 0, 0, 0, 1, 1])
      >>> test = deal_like({"y": np.array([0, 0, 0, 0, 1, 1])}, data, seed=0)
      >>> label_counts(test).tolist()
      [[3, 1], [1, 1]]
    """
    check_seed(seed)
    if not isinstance(data, FederatedDataset):
        raise TypeError(
            f"data must be a FederatedDataset, got {type(data).__name__}; the order is "
            "deal_like(test, data, seed=0)"
        )
    classes, index = class_index(examples, label)
    check_examples(examples)
    trained, _ = class_index(data.examples, label)
    counts = label_counts(data, int(max(classes[-1], trained[-1])) + 1, label=label)
    rng = np.random.default_rng(seed)
    owners = np.full(len(index), -1)
    for number, name in enumerate(classes):
        theirs = np.cumsum(counts[:, name], dtype=np.float64)
        rows = rng.permutation(np.flatnonzero(index == number))
        ends = np.floor(theirs / max(theirs[-1], 1) * len(rows) + rng.random()).astype(np.int64)
        if theirs[-1]:
            owners[rows] = np.searchsorted(ends, np.arange(len(rows)), side="right")
    if (owners < 0).all():
        raise ValueError(
            f"examples must hold a class that somebody trains on, got {classes.tolist()} beside "
            f"{trained.tolist()}"
        )
    sizes = np.bincount(owners[owners >= 0], minlength=data.num_clients)
    order = np.argsort(owners, kind="stable")[len(owners) - sizes.sum() :]
    return FederatedDataset(
        examples=jax.tree.map(jnp.asarray, dict(examples)),
        offsets=jnp.asarray(offsets_of(sizes).astype(np.int32)),
        order=jnp.asarray(order.astype(np.int32)),
        max_client_size=int(sizes.max()),
    )
