"""Memory-mapped .npy files, one an array: the format that streams fastest, and its writer.

folder/manifest.json     {"layout": 2, "leaves": {"x": ["|u1", [32]], ...}, ...}, digests
folder/offsets.npy       int64 [N + 1]: client i owns the rows offsets[i] .. offsets[i+1] - 1
folder/sums.npy          uint32 [arrays, N]: CRC-32 of each client's rows in each array
folder/examples.x.npy    [E, ...], client after client, in its own dtype
"""

from __future__ import annotations

import contextlib
import mmap
import os
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from fedjax_lite.checks.arguments import as_path
from fedjax_lite.data.formats.npy_file import open_npy
from fedjax_lite.data.stores.digests import SMALL, SUMS, ClientSums, sums_of, write_manifest
from fedjax_lite.data.stores.new_folder import new_folder
from fedjax_lite.data.stores.store import (
    Arrays,
    Leaf,
    check_chunk,
    check_sizes,
    example_bytes,
    leaves_of,
    take_clients,
)
from fedjax_lite.data.stores.store_files import (
    REWRITE,
    bad_file,
    check_name,
    read_manifest,
    read_offsets,
)

_HEADER_BYTES = 192

MADE_OF = ("examples.*.npy", "offsets.npy", SUMS, "manifest.json", "population.json")
"""Files of such a folder."""


class NpyStore:
    """The examples of a folder that `write_streamed` wrote; nothing is read before it is asked for.

    What is read of a client for the first time is compared with its digest; a population below
    2^20 bytes when it is opened. `verify` compares all. A folder of an earlier version has no
    digests; it is opened, and the log says so.

    Args:
      folder: the folder.

    Raises:
      FileNotFoundError: if it or one of its files does not exist.
      DatasetFormatError: if a file is damaged or does not fit the others; a `ValueError`.

    Example:
      >>> import tempfile
      >>> with tempfile.TemporaryDirectory() as place:
      ...     _ = write_streamed(f"{place}/data", [([1, 2], {"x": np.arange(3.0)})])
      ...     NpyStore(f"{place}/data").sizes.tolist()
      [1, 2]
    """

    def __init__(self, folder: str | os.PathLike[str]) -> None:
        self.folder = as_path(folder, "folder").absolute()
        self.leaves, manifest = read_manifest(
            self.folder / "manifest.json", writer="write_streamed"
        )
        self.offsets, self.sizes = read_offsets(self.folder / "offsets.npy")
        self._arrays: dict[str, np.ndarray] = {}
        for name, leaf in self.leaves.items():
            path = self._path(name)
            self._arrays[name] = array = _open_array(path, leaf.dtype, leaf.shape)
            if len(array) != self.offsets[-1]:
                raise bad_file(
                    path,
                    "the examples that offsets.npy counts",
                    f"that it holds {len(array):,} examples, but offsets.npy counts "
                    f"{self.offsets[-1]:,}",
                )
        self._sums = ClientSums(self.folder, manifest, (len(self.leaves), len(self.sizes)))
        if self._sums.table is not None:
            for name, leaf in self.leaves.items():
                _check_header(self._path(name), _header(leaf, int(self.offsets[-1])))
            if self.offsets[-1] * example_bytes(self.leaves) <= SMALL:
                self.verify()

    def verify(self) -> None:
        """Reads all examples and compares them with their digests.

        Raises:
          DatasetFormatError: if a file is damaged; a `ValueError`.
          ValueError: if the folder is of an earlier version, which has no digests.
        """
        self._sums.needed().check(np.arange(len(self.sizes)), self._parts)

    def _path(self, name: str) -> Path:
        return self.folder / f"examples.{name}.npy"

    def _parts(self, client: int) -> Iterator[tuple[Path, Any]]:
        low, high = int(self.offsets[client]), int(self.offsets[client + 1])
        for name, array in self._arrays.items():
            yield self._path(name), array[low:high] if array[low:high].size else b""

    def read(self, ids: np.ndarray, out: Arrays) -> None:
        """See `ExampleStore`."""
        self._announce(ids)
        self._sums.check(ids, self._parts)
        take_clients(self._arrays, self.offsets, ids, out)

    def _announce(self, ids: np.ndarray) -> None:
        """Tells the system which pages come next, so that it reads them all at once."""
        if not hasattr(mmap, "MADV_WILLNEED"):  # not every system can be told
            return
        page = mmap.ALLOCATIONGRANULARITY
        for name, array in self._arrays.items():
            mapped = getattr(array, "_mmap", None)
            if mapped is None:  # a numpy that keeps its map elsewhere
                continue
            first = array.offset  # type: ignore[attr-defined]
            width = self.leaves[name].num_bytes
            # numpy maps from the page that holds the data's beginning.
            first -= first - first % page
            lows = (first + self.offsets[ids] * width) // page * page
            lengths = first + self.offsets[ids + 1] * width - lows
            for low, length in zip(lows.tolist(), lengths.tolist()):
                if length > 0:
                    mapped.madvise(mmap.MADV_WILLNEED, low, length)


def write_streamed(
    folder: str | os.PathLike[str],
    chunks: Iterable[tuple[Any, Mapping[str, Any]]],
    *,
    overwrite: bool = False,
) -> Path:
    """Writes a population chunk by chunk; memory O(one chunk + (8 + 4 arrays) N bytes).

    The folder appears under its name when it is complete.

    Args:
      folder: the folder to make.
      chunks: an iterable (a generator, as a rule) of ``(sizes [k], examples)``: the next `k`
        whole clients, and a dict of their examples ``{name: [sum(sizes), ...]}``, client after
        client. All chunks have the same names, dtypes and shapes of one example. ``chunks(store)``
        makes them of another store.
      overwrite: replace an earlier folder.

    Returns:
      The folder, for `open_streamed`.

    Raises:
      FileExistsError: if the folder exists and `overwrite` is False.
      TypeError, ValueError: if a chunk does not fit the first, or values are not finite.

    Example:
      >>> import tempfile
      >>> with tempfile.TemporaryDirectory() as place:
      ...     one = ([1, 2], {"x": np.arange(3.0), "y": np.array([0, 1, 1], np.int32)})
      ...     two = ([1], {"x": np.array([7.0]), "y": np.array([0], np.int32)})
      ...     write_streamed(f"{place}/data", [one, two]).name
      'data'
    """
    with (
        new_folder(folder, overwrite=overwrite, made_of=MADE_OF) as writing,
        contextlib.ExitStack() as files,
    ):
        leaves: dict[str, Leaf] = {}
        sinks: dict[str, Any] = {}
        sizes: list[np.ndarray] = []
        sums: list[np.ndarray] = []
        for number, (part, examples) in enumerate(chunks):
            part = check_sizes(part)
            arrays = check_chunk(examples, part)
            sizes.append(part)
            if not sinks:
                leaves = leaves_of(arrays)
                for name in leaves:
                    check_name(name)
                    sinks[name] = files.enter_context(open(writing / f"examples.{name}.npy", "wb"))
                    sinks[name].write(bytes(_HEADER_BYTES))
            check_same_leaves(leaves, leaves_of(arrays), number)
            sums.append(sums_of((arrays[name] for name in sinks), part))
            for name, sink in sinks.items():
                sink.write(np.ascontiguousarray(arrays[name]).data)
        if not sizes:
            raise ValueError("chunks must hold at least one client, got an empty iterable")
        offsets = np.zeros(1 + sum(map(len, sizes)), np.int64)
        np.cumsum(np.concatenate(sizes), out=offsets[1:], dtype=np.int64)
        for name, sink in sinks.items():
            sink.seek(0)
            sink.write(_header(leaves[name], int(offsets[-1])))
        np.save(writing / "offsets.npy", offsets)
        np.save(writing / SUMS, np.concatenate(sums, axis=1))
        write_manifest(writing, leaves, ["offsets.npy", SUMS])
        files.close()
    return as_path(folder, "folder")


def check_same_leaves(first: Mapping[str, Leaf], now: Mapping[str, Leaf], number: int) -> None:
    """Raises ValueError where a chunk's examples are not like those of the first chunk."""
    if dict(first) != dict(now):
        raise ValueError(
            f"chunk {number} must be like the first, got {_describe(now)} after {_describe(first)}"
        )


def _describe(leaves: Mapping[str, Leaf]) -> dict[str, str]:
    return {name: f"{leaf.dtype}{list(leaf.shape)}" for name, leaf in leaves.items()}


def _header(leaf: Leaf, length: int) -> bytes:
    """A .npy header of fixed size, so that it can be written when the length is known."""
    text = f"{{'descr': {leaf.dtype.str!r}, 'fortran_order': False, 'shape': "
    text += f"{(length, *leaf.shape)!r}, }}"
    space = _HEADER_BYTES - 10
    if len(text) >= space:
        raise ValueError(f"examples have too many axes for this writer: {leaf.shape}")
    return b"\x93NUMPY\x01\x00" + space.to_bytes(2, "little") + f"{text:<{space - 1}}\n".encode()


def _check_header(path: Path, header: bytes) -> None:
    with path.open("rb") as file:
        if file.read(len(header)) != header:
            raise bad_file(path, "the header that was written", "another: bits have changed since")


def _open_array(path: Path, dtype: np.dtype, shape: tuple[int, ...]) -> np.ndarray:
    """A memory map of an array `[E, *shape]`; an ordinary array where `E` is 0."""
    array = open_npy(path, remedy=REWRITE)
    if array.dtype != dtype or array.shape[1:] != shape or array.ndim == 0:
        raise bad_file(
            path,
            f"{dtype}{['E', *shape]}, as the manifest says",
            f"that it holds {array.dtype}{list(array.shape)}",
        )
    return array
