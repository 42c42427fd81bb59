"""RowStore: the rows that clients have written, shared by all versions of a table.

A version of a table is an index, int32 `[N]`: which slot holds the client's row, -1 for a client
that never took part, whose row is the initial one and is stored nowhere. A row that another
version still needs is never overwritten: its new value goes into a free slot (copy on write). So
a checkpoint of a table on disk is its index alone, and whenever the process is killed the rows of
every checkpoint that exists are whole.

A slot is free when no version needs it: none that is alive in this process, and none of a
checkpoint. What checkpoints there are, pins say: ``pins/<token>.json`` holds the folders where one
was saved or restored from, and counts as long as one of them exists and holds the same token.
"""

from __future__ import annotations

import contextlib
import json
import os
import uuid
import weakref
from pathlib import Path
from typing import Any

import numpy as np

from fedjax_lite.run.checkpoint.manifest import CheckpointDamaged
from fedjax_lite.run.files import save_text_atomic
from fedjax_lite.stream.layout import RowLayout
from fedjax_lite.stream.slots import FileSlots, MemorySlots
from fedjax_lite.stream.table_files import read_index, read_note

_open: weakref.WeakValueDictionary[Path, RowStore] = weakref.WeakValueDictionary()


class RowStore:
    """Slots for rows, in host memory or in a folder that one process uses at a time.

    Args:
      layout: of a row.
      folder: where the rows lie; None for host memory.

    Raises:
      ValueError: if another process uses the folder, or it holds rows of another layout that
        checkpoints still need.
      OSError: if the folder cannot be written.

    Example:
      >>> store = RowStore(RowLayout(np.zeros(2, np.float32)), None)
      >>> store.allocate(2).tolist()
      [0, 1]
    """

    def __init__(self, layout: RowLayout, folder: Path | None) -> None:
        self.layout, self.folder = layout, folder
        self.holders: weakref.WeakSet[Any] = weakref.WeakSet()
        """Live versions: objects with an `index`."""
        self._pinned: dict[str, np.ndarray] = {}
        self._capacity = 0
        self._free = np.zeros(0, np.int32)
        self._locked: int | None = None
        if folder is None:
            self.slots: MemorySlots | FileSlots = MemorySlots(layout.num_bytes)
            return
        (folder / "pins").mkdir(parents=True, exist_ok=True)
        self._locked = _lock(folder / "lock")
        weakref.finalize(self, _unlock, self._locked)
        self._check_layout()
        self.slots = FileSlots(folder / "rows.bin", layout.num_bytes)
        weakref.finalize(self, self.slots.close)
        # What a killed process left behind its last checkpoint is in no index, hence free. That
        # is found out by the first write: until then no pin is dropped, so that a checkpoint which
        # was moved together with its run is found.
        self._capacity = self.slots.count()

    @staticmethod
    def open(layout: RowLayout, folder: Path | None) -> RowStore:
        """The store of a folder; within a process all tables of a folder share one."""
        if folder is None:
            return RowStore(layout, None)
        folder = folder.absolute()
        store = _open.get(folder)
        if store is None:
            store = RowStore(layout, folder)
            _open[folder] = store
        elif store.layout.describe() != layout.describe():
            raise ValueError(
                f"{folder} is in use for rows of {store.layout.describe()}, not "
                f"{layout.describe()}; give each run a state_dir of its own"
            )
        return store

    @property
    def num_bytes(self) -> int:
        """Bytes that all slots take."""
        return self._capacity * self.layout.num_bytes

    def allocate(self, count: int) -> np.ndarray:
        """Free slots, int32 `[count]`, that no version needs."""
        if count > len(self._free):
            self.collect()
            # Room for more, so that looking for free slots stays rare: with `n` rows in use there
            # are never more than 1.25 n + 4 count slots.
            wanted = max(4 * count, self._capacity // 5)
            if len(self._free) < wanted // 2:
                end = self._capacity + wanted - len(self._free)
                new = np.arange(self._capacity, end, dtype=np.int32)
                self._free = np.concatenate([self._free, new])
                self._capacity = end
                self.slots.grow(end)
        taken, self._free = self._free[:count], self._free[count:]
        return taken

    def collect(self) -> None:
        """Finds the slots that no version needs, alive or in a checkpoint."""
        self._drop_pins()
        for index in self._pinned.values():
            self._check_length(index)
        indexes = [holder.index for holder in list(self.holders)] + list(self._pinned.values())
        needed = np.zeros(self._capacity, bool)
        for index in indexes:
            if index is not None:
                needed[index[index >= 0]] = True
        self._free = np.flatnonzero(~needed).astype(np.int32)

    def pin(self, index: np.ndarray, token: str, final: Path) -> None:
        """Keeps the rows of an index as long as the checkpoint folder `final` exists."""
        assert self.folder is not None
        assert isinstance(self.slots, FileSlots)
        self.slots.sync()
        path = self.folder / "pins" / f"{token}.json"
        # A damaged note is not written over: it may name other copies of the checkpoint.
        found = _places(path) if path.exists() else []
        places = sorted({str(place) for place in [*found, final]})
        save_text_atomic(path, json.dumps({"checkpoints": places}))
        self._pinned[token] = index

    def pinned(self, token: str, found: Path) -> bool:
        """Whether the rows of a checkpoint, found at `found`, are still here; notes that place."""
        assert self.folder is not None
        if not (self.folder / "pins" / f"{token}.json").exists():
            return False
        index = read_index(found / "index.npy", limit=2**31)
        self._check_length(index)
        self.pin(index, token, found)
        return True

    def sums(self, index: np.ndarray) -> np.ndarray:
        """CRC-32 of the rows of an index, uint32, in the order of the clients that have one."""
        assert isinstance(self.slots, FileSlots)
        return self.slots.sums[index[index >= 0]]

    def adopt(self, index: np.ndarray, sums: np.ndarray | None) -> None:
        """Takes over the rows of a checkpoint, if they are what was saved.

        Raises:
          CheckpointDamaged: if they are not.
        """
        assert isinstance(self.slots, FileSlots)
        try:
            self.slots.adopt(index[index >= 0], sums)
        except ValueError as error:
            raise CheckpointDamaged(str(error)) from error

    def _drop_pins(self) -> None:
        """Forgets checkpoints that were deleted; reads the indexes of those new to this process."""
        if self.folder is None:
            return
        for path in (self.folder / "pins").glob("*.json"):
            token = path.stem
            alive = [place for place in _places(path) if token_of(place) == token]
            if not alive:
                path.unlink()
                self._pinned.pop(token, None)
            elif token not in self._pinned:
                self._pinned[token] = read_index(alive[0] / "index.npy", limit=2**31)

    def _check_length(self, index: np.ndarray) -> None:
        if index.max(initial=-1) >= self._capacity:
            raise CheckpointDamaged(
                f"{self.folder}/rows.bin is truncated: it has {self._capacity} rows, and a "
                f"checkpoint needs number {index.max()}"
            )

    def _check_layout(self) -> None:
        """Writes down what a row is; rows of another kind may go where no checkpoint needs them."""
        assert self.folder is not None
        path, mine = self.folder / "layout.json", {"row": self.layout.describe()}
        row = read_note(path, "row", str) if path.exists() else mine["row"]
        if row != mine["row"]:
            self._drop_pins()
            if self._pinned:
                raise ValueError(
                    f"{self.folder} holds rows of {row} that "
                    f"checkpoints need, not of {self.layout.describe()}; choose another state_dir"
                )
            (self.folder / "rows.bin").unlink(missing_ok=True)
        writing = path.with_suffix(".writing")
        writing.write_text(json.dumps(mine) + "\n")
        os.replace(writing, path)


def new_token() -> str:
    """A name that no other checkpoint of a table has."""
    return uuid.uuid4().hex


def token_of(checkpoint: Path) -> str | None:
    """The token in a table's folder of a checkpoint; None where there is no such folder.

    Example:
      >>> token_of(Path("/nowhere")) is None
      True
    """
    try:
        return json.loads((checkpoint / "table.json").read_text())["token"]
    except (OSError, ValueError, KeyError, TypeError, RecursionError):
        return None


def _places(pin: Path) -> list[Path]:
    return [Path(str(place)) for place in read_note(pin, "checkpoints", list)]


def _lock(path: Path) -> int:
    descriptor = os.open(path, os.O_RDWR | os.O_CREAT, 0o644)
    try:
        import fcntl
    except ImportError:  # not on this system: one must not run two processes on one folder
        return descriptor
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as error:
        os.close(descriptor)
        raise ValueError(
            f"{path.parent} is in use by another process; give each run a state_dir of its own"
        ) from error
    return descriptor


def _unlock(descriptor: int) -> None:
    with contextlib.suppress(OSError):
        os.close(descriptor)
