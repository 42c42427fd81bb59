"""ShardedDataset: a population split over devices, each with the examples of its own clients."""

from __future__ import annotations

import dataclasses

import jax

from fedjax_lite.data.population.one_line import leaf_words, length, length_of_all
from fedjax_lite.data.population.population import Found
from fedjax_lite.types import Array, PyTree


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class ShardedDataset:
    r"""Clients in blocks, one a device; what `shard_population` makes and `sharded` trains on.

    With `N` clients on `D` devices, device `d` owns the ``n = ceil(N / D)`` clients from ``d n`` on
    (the last devices may own fewer), their examples and their rows of the client table, which has
    ``D n`` rows; those behind the `N`-th belong to nobody. With the largest block's `E_d` examples
    of `b` bytes, and rows of `r` bytes, a device holds

    .. math::  b E_d + 4 (n + 1) + 4 N + r n \;\; \text{bytes}

    beside the model and the lanes.

    Attributes:
      examples: leaves `[D * E_d, ...]`, split over devices along the first axis; within a block
        client by client, padded with zeros at its end.
      block_offsets: int32 `[D * (n + 1)]`, split likewise: where a block's clients lie in it.
      sizes: int32 `[N]`, examples per client, whole on every device: samplers see them.
      num_blocks: `D`. Static.
      max_client_size: size of the largest client. Static.
      splits: other data of the same clients, by name, dealt to the same devices.
    """

    examples: PyTree
    block_offsets: Array
    sizes: Array
    num_blocks: int = dataclasses.field(metadata={"static": True})
    max_client_size: int = dataclasses.field(metadata={"static": True})
    order: None = dataclasses.field(default=None, metadata={"static": True})
    splits: dict[str, ShardedDataset] = dataclasses.field(default_factory=dict)

    def __repr__(self) -> str:
        """Counts, names and types; no values."""
        counts = f"{length(self.sizes)} clients in {self.num_blocks} blocks, "
        rows = f"{length_of_all(self.examples)} rows with padding"
        return f"ShardedDataset({counts}{rows}{leaf_words(self.examples)})"

    @property
    def num_clients(self) -> int:
        """The size `N` of the population."""
        return self.sizes.shape[0]

    @property
    def num_examples(self) -> int:
        """Rows of `examples`, padding included."""
        return jax.tree.leaves(self.examples)[0].shape[0]

    @property
    def block_size(self) -> int:
        """Clients of a block, `n`."""
        return self.block_offsets.shape[0] // self.num_blocks - 1

    @property
    def num_rows(self) -> int:
        """Rows of the table of client state, ``D n``."""
        return self.num_blocks * self.block_size

    @property
    def offsets(self) -> Array:
        """Raises TypeError: only a block has offsets, and only `sharded` knows which."""
        raise TypeError(
            "strategy must be sharded(mesh) for a population that shard_population split over "
            f"the {self.num_blocks} devices of a mesh"
        )

    def find(self, ids: Array, slots: Array) -> Found:
        """A client's number in the population; its owner makes a place in the block of it."""
        return Found(ids, ids, self.sizes[ids])
