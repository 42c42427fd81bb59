"""A population's examples, whole where they lie on the device, else a few clients at a time."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, NamedTuple, Protocol, TypeAlias

import jax
import jax.numpy as jnp
import numpy as np

from fedjax_lite.data.population.dataset import FederatedDataset
from fedjax_lite.data.population.sharded import ShardedDataset
from fedjax_lite.data.stores.store import example_bytes, offsets_of
from fedjax_lite.evaluate.device_blocks import device_blocks
from fedjax_lite.types import Array, PyTree

BYTES = 2**26
"""Of streamed examples at a time; a larger client comes alone."""


class Streamed(Protocol):
    """A population whose examples lie outside of the device, such as a `StreamedDataset`."""

    @property
    def store(self) -> Any:
        """Where they lie; its `leaves` say what one example holds."""
        ...

    @property
    def sizes(self) -> Any:
        """Integers `[N]`."""
        ...

    @property
    def num_clients(self) -> int:
        """`N`."""
        ...

    def cohort(self, ids: Any, mask: Any) -> Any:
        """The data of some clients on the device."""
        ...


Population: TypeAlias = FederatedDataset | ShardedDataset | Streamed


class Block(NamedTuple):
    """Some clients and the examples ``order[starts[i]:starts[i] + sizes[i]]`` of each."""

    ids: np.ndarray
    """Integers `[n]`; those behind the first `count` repeat the last and have no examples here."""
    count: int
    examples: PyTree
    order: Array | None
    starts: Array
    sizes: Array
    device: Any = None
    """Where the examples lie, and the models have to; None: the default device."""


def is_streamed(data: Any) -> bool:
    """Whether examples lie outside of the device: a `StreamedDataset`.

    Example:
      >>> is_streamed(None)
      False
    """
    return hasattr(data, "store") and callable(getattr(data, "cohort", None))


class Pool(NamedTuple):
    """Examples of clients that follow each other, to be scored in one pass with one model."""

    ids: np.ndarray
    """Integers `[n]`."""
    examples: PyTree
    rows: Array | None
    """int32 `[P]`, the examples that are owned; None: all as they lie."""
    owners: np.ndarray
    """int64 `[P]`, -1 for padding."""
    device: Any = None
    """Where the examples lie, and the model has to; None: the default device."""


def pooled_blocks(data: Population) -> Iterator[Pool]:
    """All clients in order: at once where the examples lie on the device, or on each of some."""
    if isinstance(data, ShardedDataset):
        for one in device_blocks(data):
            owners = np.full(jax.tree.leaves(one.examples)[0].shape[0], -1)
            owners[: one.offsets[-1]] = np.repeat(one.ids, np.diff(one.offsets))
            yield Pool(one.ids, one.examples, None, owners, one.device)
        return
    if isinstance(data, FederatedDataset):
        ids, owners = np.arange(data.num_clients), np.asarray(data.client_of_example)
        whole = len(owners) == data.num_examples and (owners >= 0).all()
        if whole:  # every example has one owner: as they lie, without a gather
            yield Pool(ids, data.examples, None, owners.astype(np.int64))
        else:
            owners = np.repeat(ids, np.asarray(data.sizes))
            yield Pool(ids, data.examples, data.order, owners)
        return
    for block in blocks_of(data, data.num_clients, padded=False):
        num_rows = jax.tree.leaves(block.examples)[0].shape[0]
        owners = np.full(num_rows, -1)
        found = np.repeat(block.ids, np.asarray(block.sizes))
        owners[: len(found)] = found
        yield Pool(block.ids, block.examples, None, owners)


def blocks_of(data: Population, num_clients: int, *, padded: bool = True) -> Iterator[Block]:
    """All clients in order, at most `num_clients` at a time.

    Args:
      data: a `FederatedDataset`, a `ShardedDataset` or a `StreamedDataset`.
      num_clients: of a block.
      padded: fill the last block up, so that all have one shape.
    """
    if isinstance(data, ShardedDataset):
        for one in device_blocks(data):
            for low in range(0, len(one.ids), num_clients):
                ids, starts = one.ids[low : low + num_clients], one.offsets[low:-1][:num_clients]
                sizes = np.diff(one.offsets)[low : low + num_clients]
                yield Block(ids, len(ids), one.examples, None, starts, sizes, one.device)
        return
    total, low = data.num_clients, 0
    num_clients = min(num_clients, total)
    ends, per_example = None, 1
    if not isinstance(data, FederatedDataset):
        ends, per_example = offsets_of(data.sizes), max(example_bytes(data.store.leaves), 1)
    while low < total:
        high = min(low + num_clients, total)
        if ends is not None:
            limit = ends[low] + BYTES // per_example
            high = min(high, max(low + 1, int(np.searchsorted(ends, limit, side="right")) - 1))
        count = high - low
        length = num_clients if padded else count
        ids = np.minimum(np.arange(low, low + length), high - 1)
        real = np.arange(length) < count
        if isinstance(data, FederatedDataset):
            sizes = jnp.where(jnp.asarray(real), data.sizes[ids], 0)
            yield Block(ids, count, data.examples, data.order, data.offsets[ids], sizes)
        else:
            part = data.cohort(ids, real)
            yield Block(ids, count, part.examples, None, part.offsets[:-1], jnp.diff(part.offsets))
        low = high
