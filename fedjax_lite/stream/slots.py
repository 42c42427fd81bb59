"""Slots of equal size for records, in host memory or in a file."""

from __future__ import annotations

import os
import threading
from pathlib import Path
from typing import Protocol

import numpy as np

BLOCK_BYTES = 2**24


class Slots(Protocol):
    """Numbered places for records of bytes."""

    def read(self, slots: np.ndarray) -> np.ndarray:
        """uint8 `[len(slots), num_bytes]`."""
        ...

    def write(self, slots: np.ndarray, records: np.ndarray) -> None:
        """Writes one record into each slot."""
        ...

    def grow(self, count: int) -> None:
        """Makes room for slots ``0 .. count - 1``."""
        ...


class MemorySlots:
    """Records in blocks of host memory, so that growing copies nothing.

    Args:
      num_bytes: of one record.

    Example:
      >>> slots = MemorySlots(2)
      >>> slots.grow(3)
      >>> slots.write(np.array([2]), np.array([[7, 8]], np.uint8))
      >>> slots.read(np.array([2])).tolist()
      [[7, 8]]
    """

    def __init__(self, num_bytes: int) -> None:
        self.num_bytes = num_bytes
        self._per_block = max(1, BLOCK_BYTES // num_bytes)
        self._blocks: list[np.ndarray] = []

    def grow(self, count: int) -> None:
        """See `Slots`."""
        while len(self._blocks) * self._per_block < count:
            self._blocks.append(np.empty((self._per_block, self.num_bytes), np.uint8))

    def read(self, slots: np.ndarray) -> np.ndarray:
        """See `Slots`."""
        out = np.empty((len(slots), self.num_bytes), np.uint8)
        for place, slot in enumerate(slots.tolist()):
            block, inside = divmod(slot, self._per_block)
            out[place] = self._blocks[block][inside]
        return out

    def write(self, slots: np.ndarray, records: np.ndarray) -> None:
        """See `Slots`."""
        for record, slot in zip(records, slots.tolist()):
            block, inside = divmod(slot, self._per_block)
            self._blocks[block][inside] = record


class FileSlots:
    """Records in a file that grows as they are written.

    Read and written, not mapped: on a full disk a write raises OSError, where a memory map would
    kill the process.

    Args:
      path: the file; made where it does not exist.
      num_bytes: of one record.

    Example:
      >>> import tempfile
      >>> with tempfile.TemporaryDirectory() as folder:
      ...     slots = FileSlots(Path(folder, "rows.bin"), 2)
      ...     slots.write(np.array([2]), np.array([[7, 8]], np.uint8))
      ...     slots.read(np.array([2])).tolist(), slots.count()
      ...     slots.close()
      ([[7, 8]], 3)
    """

    def __init__(self, path: Path, num_bytes: int) -> None:
        self.path, self.num_bytes = path, num_bytes
        path.touch()
        self._file = open(path, "r+b", buffering=0)  # noqa: SIM115
        self._lock = threading.Lock()  # a user may read rows while a round writes others

    def count(self) -> int:
        """Slots that the file is long enough for."""
        return self.path.stat().st_size // self.num_bytes

    def grow(self, count: int) -> None:
        """Nothing to do: writing makes room."""

    def read(self, slots: np.ndarray) -> np.ndarray:
        """See `Slots`; ValueError where the file is too short."""
        out = np.empty((len(slots), self.num_bytes), np.uint8)
        with self._lock:
            for place, slot in enumerate(slots.tolist()):
                self._file.seek(slot * self.num_bytes)
                view = memoryview(out[place])
                while view:
                    done = self._file.readinto(view)
                    if not done:
                        raise ValueError(f"{self.path} is truncated: no row in slot {slot}")
                    view = view[done:]
        return out

    def write(self, slots: np.ndarray, records: np.ndarray) -> None:
        """See `Slots`."""
        with self._lock:
            for record, slot in zip(np.ascontiguousarray(records), slots.tolist()):
                self._file.seek(slot * self.num_bytes)
                view = memoryview(record)
                while view:
                    view = view[self._file.write(view) :]

    def sync(self) -> None:
        """Returns when all records are on the disk."""
        os.fsync(self._file.fileno())

    def close(self) -> None:
        """Closes the file."""
        self._file.close()
