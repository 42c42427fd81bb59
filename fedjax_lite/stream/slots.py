"""Slots of equal size for records, in host memory or in a file."""

from __future__ import annotations

import os
import threading
import zlib
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
    kill the process. The CRC-32 of each record is kept in memory, for checkpoints, which tell by it
    whether a row is still the one that was written: it finds every burst of up to 32 wrong bits,
    and of other damage all but one in four thousand millions.

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
        self.sums = np.zeros(self.count(), np.uint32)
        """CRC-32 of records, by slot; of those that this process has written or adopted."""

    def count(self) -> int:
        """Slots that the file is long enough for."""
        return self.path.stat().st_size // self.num_bytes

    def grow(self, count: int) -> None:
        """See `Slots`; the file itself grows as it is written."""
        if count > len(self.sums):
            self.sums = np.concatenate([self.sums, np.zeros(count - len(self.sums), np.uint32)])

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
        if len(slots):
            self.grow(int(slots.max()) + 1)
        with self._lock:
            for record, slot in zip(np.ascontiguousarray(records), slots.tolist()):
                self._file.seek(slot * self.num_bytes)
                view = memoryview(record)
                try:
                    while view:
                        view = view[self._file.write(view) :]
                except OSError as error:  # of a full disk, which names no file
                    raise OSError(error.errno, error.strerror, str(self.path)) from error
                self.sums[slot] = zlib.crc32(memoryview(record))

    def adopt(self, slots: np.ndarray, sums: np.ndarray | None) -> None:
        """Takes over records that another process wrote, if they are what it wrote.

        Args:
          slots: where they lie, int `[n]`.
          sums: their CRC-32, uint32 `[n]`; None where none were kept.

        Raises:
          ValueError: if a record is missing or has other bytes.
        """
        found = np.empty(len(slots), np.uint32)
        for place in range(len(slots)):
            found[place] = zlib.crc32(self.read(slots[place : place + 1]).data)
        wrong = [] if sums is None else np.flatnonzero(found != sums)
        if len(wrong):
            raise ValueError(
                f"{self.path} does not hold the rows that were saved: {len(wrong)} of {len(slots)} "
                f"have other bytes, the first in slot {slots[wrong[0]]}"
            )
        if len(slots):
            self.grow(int(slots.max()) + 1)
        self.sums[slots] = found

    def sync(self) -> None:
        """Returns when all records are on the disk."""
        os.fsync(self._file.fileno())

    def close(self) -> None:
        """Closes the file."""
        self._file.close()
