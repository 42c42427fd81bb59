"""Pathological label skew: shards of the sorted examples, and exactly `k` classes a client."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from fedjax_lite.checks.made import made
from fedjax_lite.data.partition.apportion import even_sizes, owners_from_table
from fedjax_lite.data.partition.checks import check_count, check_seed, class_index
from fedjax_lite.data.partition.partition import Partitioner


@made
def shards(
    *, num_clients: int, shards_per_client: int = 2, seed: int = 0, label: str = "y"
) -> Partitioner:
    """Sorts by label, cuts into equal shards, deals the same number of shards to each client.

    With ``M = num_clients * shards_per_client`` shards of ``E / M`` examples (the first ``E mod M``
    are one larger). MNIST in the published setting: 100 clients, 200 shards of 300, most clients
    with two digits. A shard may straddle two classes where class sizes are no multiple of it.
    Sizes are exactly equal where `M` divides `E`, else within `shards_per_client`.

    The sort is stable and the deal is ``np.random.default_rng(seed).permutation(M)``, row by row.

    Args:
      num_clients: the population's size `N`.
      shards_per_client: how many each client gets; the fewer, the more skew.
      seed: of the deal.
      label: the key of the integer labels `[E]`.

    Returns:
      A `Partitioner`.

    Raises:
      ValueError: if a count is below 1, or (when it is used) labels are missing or negative, or
        there are more shards than examples.

    Example:
      >>> from fedjax_lite.data.partition.partition import owners
      >>> train = {"y": np.repeat(np.arange(10), 60)}
      >>> owned = owners(train, shards(num_clients=10, seed=0))
      >>> max(len(set(train["y"][owned == i])) for i in range(10)) <= 2
      True

    Reference: McMahan et al., "Communication-Efficient Learning of Deep Networks from
    Decentralized Data", 2017, arXiv:1602.05629.
    """
    check_count("num_clients", num_clients)
    check_count("shards_per_client", shards_per_client)
    check_seed(seed)
    num_shards = num_clients * shards_per_client

    def assign(examples: Mapping[str, Any]) -> np.ndarray:
        _, index = class_index(examples, label)
        if num_shards > len(index):
            raise ValueError(
                f"num_clients * shards_per_client = {num_shards} shards cannot be cut from "
                f"{len(index)} examples; lower one of the two"
            )
        client_of_shard = np.empty(num_shards, np.int64)
        client_of_shard[np.random.default_rng(seed).permutation(num_shards)] = np.repeat(
            np.arange(num_clients), shards_per_client
        )
        owner = np.empty(len(index), np.int64)
        owner[np.argsort(index, kind="stable")] = np.repeat(
            client_of_shard, even_sizes(len(index), num_shards)
        )
        return owner

    name = f"shards(num_clients={num_clients}, shards_per_client={shards_per_client}, seed={seed})"
    return Partitioner(assign, num_clients, name)


@made
def classes_per_client(
    *, num_classes: int, num_clients: int, seed: int = 0, label: str = "y"
) -> Partitioner:
    """Gives every client `k` classes and splits each class evenly over those who hold it.

    "#C = k". Client `i` holds class ``i mod K`` (classes in random order) and ``k - 1`` others at
    random; where there are fewer clients than classes, the others come first from the classes
    that nobody holds, so that every example has an owner. A class with fewer examples than
    holders reaches only some of them.

    Args:
      num_classes: `k`, classes per client, at most the number `K` of classes present.
      num_clients: the population's size `N`, ``N k >= K``.
      seed: the same seed gives the same partition.
      label: the key of the integer labels `[E]`.

    Returns:
      A `Partitioner`.

    Raises:
      ValueError: if a count is below 1, or (when it is used) labels are missing or negative,
        ``k > K``, or ``N k < K``, which would leave a class without owner.

    Example:
      >>> from fedjax_lite.data.partition.partition import owners
      >>> train = {"y": np.repeat(np.arange(10), 60)}
      >>> owned = owners(train, classes_per_client(num_classes=3, num_clients=10, seed=0))
      >>> {len(set(train["y"][owned == i])) for i in range(10)}
      {3}

    Reference: Li, Diao, Chen and He, "Federated Learning on Non-IID Data Silos", 2021,
    arXiv:2102.02079.
    """
    check_count("num_classes", num_classes)
    check_count("num_clients", num_clients)
    check_seed(seed)

    def assign(examples: Mapping[str, Any]) -> np.ndarray:
        classes, index = class_index(examples, label)
        present = len(classes)
        if num_classes > present:
            raise ValueError(
                f"num_classes must be at most the {present} classes present, got {num_classes}"
            )
        if num_clients * num_classes < present:
            raise ValueError(
                f"num_clients * num_classes = {num_clients * num_classes} leaves some of the "
                f"{present} classes without an owner; raise one of the two"
            )
        rng = np.random.default_rng(seed)
        holds = _holdings(rng, num_clients, present, num_classes)
        table = np.zeros(holds.shape, np.int64)
        for k, count in enumerate(np.bincount(index)):
            holders = rng.permutation(np.flatnonzero(holds[:, k]))
            table[holders, k] = even_sizes(int(count), len(holders))
        return owners_from_table(rng, table, index)

    name = f"classes_per_client(num_classes={num_classes}, num_clients={num_clients}, seed={seed})"
    return Partitioner(assign, num_clients, name)


def _holdings(
    rng: np.random.Generator, num_clients: int, present: int, num_classes: int
) -> np.ndarray:
    """Bool `[N, K]` with `num_classes` True a row and at least one a column."""
    classes = rng.permutation(present)
    holds = np.zeros((num_clients, present), bool)
    holds[np.arange(num_clients), classes[np.arange(num_clients) % present]] = True
    if present > num_clients:  # classes nobody holds go to distinct free places, at random
        places = np.repeat(np.arange(num_clients), num_classes - 1)
        unheld = classes[num_clients:]
        holds[rng.permutation(places)[: len(unheld)], unheld] = True
    # The rest at random among what a client lacks: rank random numbers, the held ones first.
    rank = np.argsort(np.argsort(np.where(holds, -1.0, rng.random(holds.shape)), axis=1), axis=1)
    return holds | (rank < num_classes)
