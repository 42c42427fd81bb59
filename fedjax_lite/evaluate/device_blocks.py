"""A population that is split over devices, one device's clients at a time."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from fedjax_lite.data.population.dataset import FederatedDataset
from fedjax_lite.data.population.sharded import ShardedDataset
from fedjax_lite.types import PyTree


class DeviceBlock(NamedTuple):
    """The clients of one device."""

    device: Any
    ids: np.ndarray
    """Integers `[n]`."""
    offsets: np.ndarray
    """Integers `[n + 1]`: where their examples lie in the block."""
    examples: PyTree
    """Leaves `[E_d, ...]` on the device, with padding at the end."""


def at_hand(data: ShardedDataset) -> bool:
    """Whether all devices of a population are those of this process."""
    return all(leaf.is_fully_addressable for leaf in jax.tree.leaves(data.examples))


def device_blocks(data: ShardedDataset) -> Iterator[DeviceBlock]:
    """The blocks that have clients, in order; nothing is moved.

    Args:
      data: a population whose devices are all of this process.
    """
    ends = np.asarray(data.block_offsets).reshape(data.num_blocks, -1)
    leaves, structure = jax.tree.flatten(data.examples)
    shards = [sorted(leaf.addressable_shards, key=_start) for leaf in leaves]
    for number, parts in enumerate(zip(*shards, strict=True)):
        low = number * data.block_size
        ids = np.arange(low, min(low + data.block_size, data.num_clients))
        if len(ids):
            examples = jax.tree.unflatten(structure, [part.data for part in parts])
            yield DeviceBlock(parts[0].device, ids, ends[number][: len(ids) + 1], examples)


def on_its_device(data: ShardedDataset, block: DeviceBlock) -> FederatedDataset:
    """The population as the device of a block sees it: whom it does not own is without examples.

    Clients keep their numbers, and their keys with them; nothing but 4 (N + 1) bytes is made.
    """
    local = np.clip(np.arange(data.num_clients + 1) - block.ids[0], 0, len(block.ids))
    offsets = jax.device_put(jnp.asarray(block.offsets[local], jnp.int32), block.device)
    size = data.max_client_size
    return FederatedDataset(block.examples, offsets, order=None, max_client_size=size)


def _start(shard: Any) -> int:
    return shard.index[0].start or 0
