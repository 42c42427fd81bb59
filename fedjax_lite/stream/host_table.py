"""HostTable: the rows of all clients outside of the device, one immutable version of them."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any, Literal

import jax
import jax.numpy as jnp
import numpy as np

from fedjax_lite.checks.arguments import check_tree
from fedjax_lite.engine.table_memory import host_bytes
from fedjax_lite.run.checkpoint.manifest import CheckpointDamaged
from fedjax_lite.stream.layout import RowLayout
from fedjax_lite.stream.row_store import RowStore, new_token, token_of
from fedjax_lite.stream.table_files import read_index
from fedjax_lite.types import PyTree

Kind = Literal["host", "disk"]


class HostTable:
    """Client rows in host memory or on disk: what ``state.clients`` is on a streamed population.

    All clients begin with the same row, which is stored once; memory and disk grow with the
    clients that have taken part. A table never changes; a run makes the next version of it, and
    the versions share the rows that are equal. Like an array that is donated, the table in a state
    that a run hands from call to call is spent by the next call; the state that the caller gave,
    and the state that the run returns, stay usable.

    `checkpoint.save` asks it to save itself: a table in host memory writes its rows, a table on
    disk only where its rows are.

    Args:
      row: the row that every client begins with.
      num_clients: `N`.
      folder: where rows lie, or None for host memory.

    Raises:
      TypeError: if the row holds a typed key.

    Example:
      >>> table = HostTable({"w": np.array([1.0, 2.0])}, num_clients=10**6)
      >>> table.rows([5, 7])["w"].tolist(), table.num_touched
      ([[1.0, 2.0], [1.0, 2.0]], 0)
    """

    def __init__(self, row: PyTree, *, num_clients: int, folder: Path | None = None) -> None:
        check_tree(row, "row")
        self.row = jax.tree.map(np.asarray, jax.device_get(row))
        self.layout, self.folder = RowLayout(row), folder
        self.num_clients = num_clients
        self.index: np.ndarray | None = np.full(num_clients, -1, np.int32)
        self.not_finite: frozenset[int] = frozenset()
        """Clients whose own model held NaN or infinity when it was written."""
        self._store: RowStore | None = None

    @property
    def kind(self) -> Kind:
        """Where rows lie."""
        return "host" if self.folder is None else "disk"

    @property
    def num_touched(self) -> int:
        """Clients whose row was written."""
        return int((self._valid_index() >= 0).sum())

    @property
    def store(self) -> RowStore:
        """The rows; opened when they are first needed."""
        if self._store is None:
            self._store = RowStore.open(self.layout, self.folder)
            self._store.holders.add(self)
        return self._store

    def rows(self, ids: Any) -> PyTree:
        """The rows of some clients, leaves `[len(ids), ...]`, as numpy arrays.

        Args:
          ids: integers in `[0, N)`.

        Raises:
          IndexError: if an id lies outside of the population.
          RuntimeError: if a later call of a run has spent this version.
        """
        return self.layout.unpack(self._records(self._valid_index(), np.asarray(ids)))

    def describe(self) -> str:
        """What a checkpoint's manifest says of it."""
        return f"{self.num_clients} rows of {self.layout.describe()} ({self.kind})"

    def save_to(self, folder: Path, *, final: Path) -> None:
        """Writes what a checkpoint needs into `folder`, which is going to be renamed to `final`."""
        folder.mkdir(parents=True)
        index, token = self._valid_index(), new_token()
        if self.folder is None:
            ids = np.flatnonzero(index >= 0)
            np.save(folder / "ids.npy", ids)
            with open(folder / "rows.bin", "wb") as file:
                for part in _parts(ids, self.layout.num_bytes):
                    file.write(self._records(index, part).data)
        else:
            np.save(folder / "index.npy", index)
            np.save(folder / "sums.npy", self.store.sums(index))
        (folder / "table.json").write_text(json.dumps({"kind": self.kind, "token": token}))
        if self.folder is not None:
            self.store.pin(index, token, final)

    def restore_from(self, folder: Path) -> HostTable:
        """The table that `save_to` wrote; this one gives the initial row and the place.

        Rows on disk are all read once, and compared with what was written.

        Raises:
          CheckpointDamaged: (a ValueError) if rows have other bytes, or are missing at the end.
          ValueError: if the rows are not there any more.
        """
        table = HostTable(self.row, num_clients=self.num_clients, folder=self.folder)
        store = table.store
        if self.folder is not None:
            token = token_of(folder)
            if token is None or not store.pinned(token, folder):
                raise ValueError(
                    f"the rows of checkpoint {folder} are not in {self.folder} (any more); give "
                    "the state_dir of the run that saved it. Rows are kept as long as their "
                    "checkpoint exists where it was saved or restored: a copy does not keep them"
                )
            index = read_index(folder / "index.npy", limit=2**31, length=self.num_clients)
            sums = folder / "sums.npy"
            kept = np.load(sums, allow_pickle=False) if sums.exists() else None
            store.adopt(index, kept)
            table.index = index
            return table
        ids = read_index(folder / "ids.npy", limit=self.num_clients)
        if (ids < 0).any() or (ids[1:] <= ids[:-1]).any():
            raise ValueError(f"{folder / 'ids.npy'} is damaged; restore an earlier checkpoint")
        edit = TableEdit(table)
        with open(folder / "rows.bin", "rb") as file:
            for part in _parts(ids, self.layout.num_bytes):
                read = file.read(len(part) * self.layout.num_bytes)
                if len(read) < len(part) * self.layout.num_bytes:
                    raise CheckpointDamaged(
                        f"{folder / 'rows.bin'} is truncated; restore an earlier checkpoint"
                    )
                records = np.frombuffer(read, np.uint8).reshape(len(part), -1)
                edit.write(part, records)
        return edit.freeze()

    def spend(self) -> None:
        """Gives the version up, so that its rows may be replaced."""
        if self._store is not None:
            self._store.holders.discard(self)
        self.index = None

    def _valid_index(self) -> np.ndarray:
        if self.index is None:
            raise RuntimeError(
                "this table was spent: the run went on from its state; read the rows of the state "
                "that the run returns, or read them in evaluate"
            )
        return self.index

    def _records(self, index: np.ndarray, ids: np.ndarray) -> np.ndarray:
        if ids.size and (ids.min() < 0 or ids.max() >= self.num_clients):
            raise IndexError(f"ids must lie in [0, {self.num_clients}), got {ids}")
        initial = self.layout.pack(jax.tree.map(lambda leaf: leaf[None], self.row))
        slots = index[ids.astype(np.int64)]
        records = np.repeat(initial, len(slots), axis=0)
        written = slots >= 0
        if written.any():
            records[written] = self.store.slots.read(slots[written])
        return records


class TableEdit:
    """A table being changed: rows go in, and `freeze` gives the version that holds them.

    Args:
      table: the version to go on from; it is not changed.

    Example:
      >>> edit = TableEdit(HostTable(np.zeros(2), num_clients=3))
      >>> edit.scatter(np.array([2, 0]), np.array([True, False]), np.ones((2, 2)))
      >>> edit.freeze().rows([0, 2]).tolist()
      [[0.0, 0.0], [1.0, 1.0]]
    """

    def __init__(self, table: HostTable) -> None:
        self._table = HostTable(table.row, num_clients=table.num_clients, folder=table.folder)
        self._table._store = table.store
        self.index = table._valid_index().copy()
        self._mine = np.zeros(table.num_clients, bool)
        self._not_finite = table.not_finite
        table.store.holders.add(self)

    def gather(self, ids: np.ndarray) -> PyTree:
        """Rows `[C, ...]` of clients."""
        return self._table.layout.unpack(self._table._records(self.index, ids))

    def scatter(self, ids: np.ndarray, mask: np.ndarray, rows: PyTree) -> None:
        """Writes rows `[C, ...]` of the clients `ids` where `mask` holds."""
        if mask.any():
            self.write(ids[mask], self._table.layout.pack(rows)[mask])
            if hasattr(rows, "own_model"):
                bad = _not_finite(rows)
                rest = self._not_finite.difference(ids[mask].tolist())
                self._not_finite = rest.union(ids[mask & bad].tolist())

    def write(self, ids: np.ndarray, records: np.ndarray) -> None:
        """Writes packed rows."""
        store, slots = self._table.store, self.index[ids]
        new = ~self._mine[ids]  # their slots, if any, may belong to other versions
        slots[new] = store.allocate(int(new.sum()))
        store.slots.write(slots, records)
        self.index[ids] = slots
        self._mine[ids] = True

    def freeze(self) -> HostTable:
        """The version with all that was written; this edit goes on from it."""
        version = HostTable(
            self._table.row, num_clients=self._table.num_clients, folder=self._table.folder
        )
        version.index = self.index.copy()
        version._store = self._table.store
        version._store.holders.add(version)
        version.not_finite = self._not_finite
        self._mine[:] = False
        return version


def make_table(
    kind: Kind, row: PyTree, num_clients: int, folder: Path | None, available: int | None = None
) -> HostTable:
    """A new table, if it can grow to all clients.

    Args:
      kind: "host" or "disk".
      row: the row that every client begins with.
      num_clients: `N`.
      folder: for "disk".
      available: bytes of host memory; default: what is free.

    Raises:
      ValueError: if the rows of all clients do not fit into host memory.

    Example:
      >>> make_table("host", np.zeros(10), 100, None, available=1000)
      Traceback (most recent call last):
      ...
      ValueError: num_clients=100 rows of client state can grow to 8,000 bytes (80 a client), ...
    """
    table = HostTable(row, num_clients=num_clients, folder=folder)
    needed = num_clients * table.layout.num_bytes
    available = host_bytes() if available is None else available
    if kind == "host" and available is not None and needed > available:
        raise ValueError(
            f"num_clients={num_clients} rows of client state can grow to {needed:,} bytes "
            f"({table.layout.num_bytes:,} a client), but {available:,} bytes of host memory are "
            'available; keep them on disk: state="disk", state_dir=... (only clients that take '
            "part use space there), or take rows in bfloat16 (table_dtype=jnp.bfloat16 where the "
            "algorithm has it)"
        )
    return table


def _not_finite(rows: PyTree) -> np.ndarray:
    """Bool `[C]`: rows that hold NaN or infinity."""
    floats = [x for x in jax.tree.leaves(rows) if jnp.issubdtype(x.dtype, jnp.floating)]
    bad = [~np.isfinite(np.asarray(x)).reshape(len(x), -1).all(axis=1) for x in floats]
    return np.any(bad, axis=0) if bad else np.zeros(len(jax.tree.leaves(rows)[0]), bool)


def _parts(ids: np.ndarray, num_bytes: int, *, max_bytes: int = 2**26) -> list[np.ndarray]:
    """Slices of ids whose rows take at most `max_bytes`, or one row."""
    step = max(1, max_bytes // num_bytes)
    return [ids[low : low + step] for low in range(0, len(ids), step)]
