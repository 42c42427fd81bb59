"""Train and test of every client: the same population twice, over the same examples."""

from __future__ import annotations

import dataclasses
import threading
from typing import Any

import jax.numpy as jnp
import numpy as np

from fedjax_lite.checks.arguments import shown
from fedjax_lite.data.partition.checks import check_real, check_seed
from fedjax_lite.data.partition.keyed import keyed_uniform, keyed_words
from fedjax_lite.data.population.dataset import CohortDataset, FederatedDataset
from fedjax_lite.data.population.sharded import ShardedDataset
from fedjax_lite.data.stores.store import Arrays, ExampleStore, Leaf, offsets_of


def split_clients(data: Any, fraction: float, *, seed: int) -> tuple[Any, Any]:
    r"""Splits the data of every client into a part to train on and a part to test on.

    Client `i` with `n_i` examples tests on

    .. math::  t_i = \lfloor f\, n_i + u_i \rfloor, \qquad u_i \sim U[0, 1),
               \qquad \mathrm{E}[t_i] = f\, n_i

    of them, which are drawn without replacement, and trains on the others. So small clients are
    neither favoured nor left out: one with a single example has it in the test part with
    probability `f`, else in the train part, never in both and never in neither; it then trains
    without being tested, or is tested without having trained. Both parts have all clients, with
    the numbers that they had. The split of a client is a function of `seed`, of its number and of
    how many examples it has: other clients and the order in which they are read change nothing,
    and the test part of a smaller fraction lies within that of a larger one.

    Nothing is copied: both parts hold the same ``examples``, and their ``order`` says who owns
    which. So ``test.examples`` are everybody's, to train and to test on; hand the whole part to
    `client_evaluator` or `evaluate_clients`, or take ``test.owned_examples()``.

    Args:
      data: a `FederatedDataset`, or a `StreamedDataset`, whose parts are cut out of its store as
        they are read (each read is of the whole clients).
      fraction: `f`, the expected share of the test part, in (0, 1).
      seed: of who tests on what. A part that is split a second time (for validation) needs
        another one.

    Returns:
      ``(train, test)``, of the type of `data`, without splits beside them. Client rows of a stream
      stay with the train part.

    Raises:
      TypeError: if `data` is another kind of population, with what to split instead.
      ValueError: if `fraction` lies outside (0, 1), or one part would be empty.

    Example:
      >>> from fedjax_lite.data.population.dataset import from_arrays
      >>> data = from_arrays({"x": np.arange(8.0)}, [0, 0, 0, 0, 1, 1, 1, 1])
      >>> train, test = split_clients(data, 0.25, seed=0)
      >>> train.sizes.tolist(), test.sizes.tolist()
      ([3, 3], [1, 1])
      >>> train.examples is test.examples
      True
    """
    remedy = "give the share of the test part, such as 0.25"
    fraction = check_real("fraction", fraction, above=0.0, remedy=remedy)
    if fraction >= 1:
        raise ValueError(f"fraction must be below 1, got {fraction}; {remedy}")
    check_seed(seed)
    if isinstance(data, FederatedDataset):
        return _in_memory(data, fraction, seed)
    store = getattr(data, "store", None)
    if store is not None and dataclasses.is_dataclass(data) and hasattr(store, "read"):
        return _outside(data, store, fraction, seed)
    remedy = "build one with fl.data.from_arrays(examples, client_ids) or fl.data.partition(...)"
    if isinstance(data, ShardedDataset):
        remedy = "split the data set that shard_population was given, then shard the train part"
    elif isinstance(data, CohortDataset):
        remedy = "split the StreamedDataset that the cohort comes from"
    elif hasattr(data, "read") and hasattr(data, "sizes"):
        remedy = "a store is split as a population: split_clients(fl.StreamedDataset(store), ...)"
    raise TypeError(
        f"data must be a FederatedDataset or a StreamedDataset, got {shown(data)}; {remedy}"
    )


def held_out_sizes(
    sizes: np.ndarray, clients: np.ndarray, fraction: float, seed: int
) -> np.ndarray:
    """How many examples of each client are for testing: rounded up or down, right in the mean.

    Args:
      sizes: integers `[n]`, examples of each client.
      clients: integers `[n]`, their numbers in the population.
      fraction: the expected share.
      seed: of the split.

    Returns:
      int64 `[n]`.

    Example:
      >>> found = held_out_sizes(np.full(1000, 3), np.arange(1000), 0.5, 0)
      >>> sorted(set(found.tolist())), bool(1.45 < found.mean() < 1.55)
      ([1, 2], True)
    """
    sizes = np.asarray(sizes, np.int64)
    share = np.floor(fraction * sizes + keyed_uniform(seed, clients, 0)).astype(np.int64)
    return np.minimum(share, sizes)


def held_out(sizes: np.ndarray, clients: np.ndarray, fraction: float, seed: int) -> np.ndarray:
    """Which examples are for testing: of each client those with its smallest keyed words.

    Args:
      sizes: integers `[n]`, examples of each client.
      clients: integers `[n]`, their numbers in the population.
      fraction: the expected share.
      seed: of the split.

    Returns:
      bool `[sum(sizes)]`, client after client.

    Example:
      >>> held_out(np.array([4, 8]), np.array([7, 2]), 0.25, 0).sum()
      np.int64(3)
    """
    sizes, clients = np.asarray(sizes, np.int64), np.asarray(clients)
    blocks = np.repeat(np.arange(len(sizes)), sizes)
    places = np.arange(len(blocks)) - np.repeat(offsets_of(sizes)[:-1], sizes)
    words = keyed_words(seed, clients[blocks], places + 1)
    ranked = np.lexsort((words, blocks))  # within each client's block, by word
    chosen = np.zeros(len(blocks), bool)
    chosen[ranked] = places < held_out_sizes(sizes, clients, fraction, seed)[blocks]
    return chosen


class SplitStore:
    """One part of every client's examples of another store, cut out as they are read.

    Args:
      store: where the examples lie.
      fraction: expected share of the test part.
      seed: of the split.
      test: whether this is the test part.
      lock: held while the other store is read, which one thread at a time may do.

    Example:
      >>> from fedjax_lite.data.stores.store import ArrayStore
      >>> store = ArrayStore({"x": np.arange(6.0)}, [4, 2])
      >>> parts = [SplitStore(store, 0.5, 0, test, threading.Lock()) for test in (False, True)]
      >>> [part.sizes.tolist() for part in parts]
      [[2, 1], [2, 1]]
    """

    def __init__(
        self, store: ExampleStore, fraction: float, seed: int, test: bool, lock: threading.Lock
    ) -> None:
        self._store, self._lock, self._split, self._test = store, lock, (fraction, seed), test
        sizes = np.asarray(store.sizes)
        tested = held_out_sizes(sizes, np.arange(len(sizes)), fraction, seed)
        self.sizes = (tested if test else sizes - tested).astype(np.int32)

    @property
    def leaves(self) -> dict[str, Leaf]:
        """See `ExampleStore`."""
        return dict(self._store.leaves)

    def read(self, ids: np.ndarray, out: Arrays) -> None:
        """See `ExampleStore`."""
        ids = np.asarray(ids)
        whole = np.asarray(self._store.sizes)[ids].astype(np.int64)
        total = int(whole.sum())
        both = {
            name: np.zeros((total, *leaf.shape), leaf.dtype) for name, leaf in self.leaves.items()
        }
        with self._lock:
            self._store.read(ids[whole > 0], both)
        rows = np.flatnonzero(held_out(whole, ids, *self._split) == self._test)
        for name, array in both.items():
            np.take(array, rows, axis=0, out=out[name][: len(rows)], mode="clip")


def _in_memory(
    data: FederatedDataset, fraction: float, seed: int
) -> tuple[FederatedDataset, FederatedDataset]:
    offsets = np.asarray(data.offsets).astype(np.int64)
    order = np.arange(offsets[-1], dtype=np.int32) if data.order is None else np.asarray(data.order)
    sizes = np.diff(offsets)
    flags = held_out(sizes, np.arange(len(sizes)), fraction, seed)
    owned = order[offsets[0] : offsets[-1]]
    tested = held_out_sizes(sizes, np.arange(len(sizes)), fraction, seed)
    _check_both(int(tested.sum()), len(owned), fraction)
    return tuple(  # type: ignore[return-value]
        FederatedDataset(
            examples=data.examples,
            offsets=jnp.asarray(offsets_of(part).astype(np.int32)),
            order=jnp.asarray(owned[flags == test]),
            max_client_size=int(part.max()),
        )
        for test, part in ((False, sizes - tested), (True, tested))
    )


def _outside(data: Any, store: ExampleStore, fraction: float, seed: int) -> tuple[Any, Any]:
    lock = threading.Lock()
    train, test = (SplitStore(store, fraction, seed, test, lock) for test in (False, True))
    total = int(np.sum(store.sizes, dtype=np.int64))
    _check_both(int(test.sizes.sum(dtype=np.int64)), total, fraction)
    return (
        dataclasses.replace(data, store=train, splits={}),
        dataclasses.replace(data, store=test, state="device", state_dir=None, splits={}),
    )


def _check_both(num_test: int, num_examples: int, fraction: float) -> None:
    if 0 < num_test < num_examples:
        return
    empty, change = ("test", "raise") if num_test == 0 else ("train", "lower")
    raise ValueError(
        f"fraction must leave examples to both parts, but {fraction:g} of {num_examples} examples "
        f"leaves none to the {empty} part; {change} it, or take another seed"
    )
