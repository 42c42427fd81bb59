"""StreamedDataset: a population whose examples stay on the host and reach the device by cohort."""

from __future__ import annotations

import dataclasses
import os
from pathlib import Path
from typing import Any, Literal

import jax
import numpy as np

from fedjax_lite import trees
from fedjax_lite.checks.arguments import as_path
from fedjax_lite.data.population.dataset import CohortDataset
from fedjax_lite.data.stores.npy_store import NpyStore
from fedjax_lite.data.stores.store import ExampleStore, check_sizes
from fedjax_lite.run.rounds import Rounds
from fedjax_lite.stream.host_table import make_table
from fedjax_lite.stream.memory import bucket
from fedjax_lite.stream.prefetch import StreamedRounds, Timings
from fedjax_lite.types import FederatedAlgorithm, Key, PyTree

Place = Literal["device", "host", "disk"]


@dataclasses.dataclass(frozen=True, eq=False)
class StreamedDataset:
    """All clients' data, outside of the device; `run` takes it where it takes a `FederatedDataset`.

    The host draws the cohort that the round would draw (``algo.sample``), reads its examples and
    sends them, while the round before computes. So a sampler must be a function of key, sizes and
    its own state, not of what training gave; every sampler of this library is. Cohorts and local
    steps are those of the same run in memory; parameters agree to rounding.

    Attributes:
      store: where the examples lie.
      state: where client rows of stateful methods lie. "device": a table `[N, ...]` there, as in
        memory. "host": in host memory, "disk": in files under `state_dir`; both grow with the
        clients that have taken part, and ``state.clients`` is a `HostTable`.
      state_dir: for "disk": a folder for the rows of one run at a time. A checkpoint on disk
        needs it.
      splits: other data of the same clients, by name, which are read with them; see
        `fedjax_lite.data.with_splits`.

    Raises:
      ValueError: if `state` is unknown, or "disk" has no `state_dir`.

    Example:
      >>> import optax, fedjax_lite as fl
      >>> from fedjax_lite.data.stores.store import ArrayStore
      >>> data = StreamedDataset(ArrayStore({"b": np.array([-1.0, 2.0], np.float32)}, [1, 1]))
      >>> algo = fl.fedavg(lambda w, e, key: 0.5 * (w - e["b"]) ** 2, optax.sgd(1.0),
      ...                  plan=fl.Plan(batch_size=1), sampler=fl.everyone())
      >>> key = jax.random.key(0)
      >>> state = algo.init(key, jax.numpy.array(0.0), data)
      >>> state, _ = fl.run(algo, key, state, data, num_rounds=2, progress=False)
      >>> float(state.server.params)
      0.5
    """

    store: ExampleStore
    state: Place = "device"
    state_dir: Path | None = None
    splits: dict[str, StreamedDataset] = dataclasses.field(default_factory=dict)
    timings: Timings = dataclasses.field(default_factory=Timings, init=False, repr=False)
    """How long rounds took, and how much of that they waited for data."""

    def __post_init__(self) -> None:
        """Checks the place of rows."""
        if self.state not in ("device", "host", "disk"):
            raise ValueError(f"state must be 'device', 'host' or 'disk', got {self.state!r}")
        if (self.state == "disk") != (self.state_dir is not None):
            raise ValueError(
                f"state_dir goes with state='disk' and only with it, got state={self.state!r}, "
                f"state_dir={self.state_dir!r}"
            )
        if self.state_dir is not None:
            place = as_path(self.state_dir, "state_dir").absolute()
            object.__setattr__(self, "state_dir", place)
        check_sizes(np.asarray(self.store.sizes))
        if self.num_examples == 0:
            raise ValueError("store must hold examples, got none: the population has no data")

    def __repr__(self) -> str:
        """Counts and places; no values."""
        place = f"{type(self.store).__name__}, client rows: {self.state}"
        return f"StreamedDataset({self.num_clients} clients, {self.num_examples} examples, {place})"

    @property
    def num_clients(self) -> int:
        """The size `N` of the population."""
        return len(self.store.sizes)

    @property
    def sizes(self) -> np.ndarray:
        """int32 `[N]`, examples per client, in host memory."""
        return self.store.sizes

    @property
    def num_examples(self) -> int:
        """The number `E` of examples, which may be beyond int32."""
        return int(self.sizes.sum(dtype=np.int64))

    @property
    def max_client_size(self) -> int:
        """Size of the largest client."""
        return int(self.sizes.max())

    @property
    def num_rows(self) -> int:
        """Rows of a table of client state on the device: `N`, or 0 where the host keeps it."""
        return self.num_clients if self.state == "device" else 0

    def cohort(
        self, ids: Any, mask: Any, *, sharding: jax.sharding.Sharding | None = None
    ) -> CohortDataset:
        """The data of some clients on the device, in the order of the slots.

        Args:
          ids: int `[C]`; one outside of the population is an empty slot.
          mask: bool `[C]`, False for an empty slot, whose data are not read.
          sharding: where to put the arrays; default: the default device.

        Returns:
          A `CohortDataset`; its arrays have ``bucket(examples of the cohort)`` rows.

        Raises:
          ValueError: if the cohort has more examples than int32 can count.
        """
        ids, mask = np.asarray(ids), np.asarray(mask)
        present = mask & (ids >= 0) & (ids < self.num_clients)
        ids = np.where(present, ids, 0)
        sizes = np.where(present, self.sizes[ids], 0).astype(np.int64)
        offsets = np.zeros(len(ids) + 1, np.int64)
        np.cumsum(sizes, out=offsets[1:])
        if offsets[-1] >= 2**31 - 1:
            raise ValueError(
                f"the cohort has {offsets[-1]:,} examples, more than int32 can count; take a "
                "smaller cohort"
            )
        num_rows = bucket(int(offsets[-1]))
        out = {
            name: np.zeros((num_rows, *leaf.shape), leaf.dtype)
            for name, leaf in self.store.leaves.items()
        }
        self.store.read(ids[sizes > 0], out)
        examples, offsets = jax.device_put((out, offsets.astype(np.int32)), sharding)
        return CohortDataset(
            examples=examples,
            offsets=offsets,
            num_clients=self.num_clients,
            num_examples=self.num_examples,
            max_client_size=self.max_client_size,
            splits={
                name: split.cohort(ids, present, sharding=sharding)
                for name, split in self.splits.items()
            },
        )

    def make_table(self, name: str, row: PyTree) -> PyTree:
        """The table of client rows that `algo.init` puts into the state, as `state` has it.

        Args:
          name: "clients" or "uplink".
          row: the row that every client begins with.

        Raises:
          ValueError: if the rows of all clients cannot fit into host memory.
        """
        if self.state == "device" or trees.num_bits(row) == 0:
            return trees.repeat_rows(row, self.num_clients)
        folder = None if self.state_dir is None else self.state_dir / name
        return make_table(self.state, row, self.num_clients, folder)

    def rounds(self, algo: FederatedAlgorithm, key: Key, *, capacity: int) -> Rounds:
        """How `run` does its rounds here; see `StreamedRounds`.

        Raises:
          ValueError: if the algorithm cannot say whom a round would draw.
        """
        rounds = StreamedRounds(algo, key, self, capacity=capacity)
        return Rounds(rounds.start, rounds.advance)


def open_streamed(
    folder: str | os.PathLike[str],
    *,
    state: Place = "device",
    state_dir: str | os.PathLike[str] | None = None,
) -> StreamedDataset:
    """Opens a population that `write_streamed` wrote, memory-mapped.

    Args:
      folder: the folder.
      state: where client rows lie, see `StreamedDataset`.
      state_dir: for ``state="disk"``.

    Returns:
      A `StreamedDataset`.

    Raises:
      FileNotFoundError, ValueError: if a file is absent, damaged or does not fit the others.

    Example:
      >>> import tempfile
      >>> from fedjax_lite.data.stores.npy_store import write_streamed
      >>> with tempfile.TemporaryDirectory() as place:
      ...     _ = write_streamed(f"{place}/data", [([1, 2], {"x": np.arange(3.0)})])
      ...     open_streamed(f"{place}/data").num_clients
      2
    """
    rows = None if state_dir is None else as_path(state_dir, "state_dir")
    return StreamedDataset(NpyStore(folder), state, rows)
