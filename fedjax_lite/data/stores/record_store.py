"""ArrayRecord shards: one record a client, its arrays one after the other as raw bytes.

    folder/manifest.json                       {"layout": 2, "leaves": ..., "clients": [k0, k1, ..]}
    folder/offsets.npy                         int64 [N + 1]
    folder/sums.npy                            uint32 [1, N]: CRC-32 of each client's record
    folder/examples-00000-of-00002.array_record

A record a client and not one an example, because a cohort wants whole clients: one look-up each.
Shard `s` holds the next ``clients[s]`` clients. Needs the package ``array_record`` (pip install
array-record; wheels for Linux and macOS).
"""

from __future__ import annotations

import contextlib
import os
import zlib
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from fedjax_lite.checks.arguments import as_path, check_count
from fedjax_lite.data.stores.digests import (
    SMALL,
    SUMS,
    ClientSums,
    check_files,
    write_manifest,
)
from fedjax_lite.data.stores.new_folder import new_folder
from fedjax_lite.data.stores.npy_store import check_same_leaves
from fedjax_lite.data.stores.store import (
    Arrays,
    Leaf,
    check_chunk,
    check_sizes,
    example_bytes,
    leaves_of,
    offsets_of,
)
from fedjax_lite.data.stores.store_files import bad_file, read_manifest, read_offsets

MADE_OF = ("*.array_record", "offsets.npy", SUMS, "manifest.json", "population.json")
"""Files of such a folder."""


class RecordStore:
    """The examples of a folder that `write_records` wrote.

    A client's record is compared with its digest when it is read for the first time, a shard below
    2^20 bytes when it is opened, and all files by `verify`.

    Args:
      folder: the folder.

    Raises:
      ImportError: if ``array_record`` is not installed.
      FileNotFoundError: if the folder or one of its files does not exist.
      DatasetFormatError: if a file is damaged or does not fit the others; a `ValueError`.

    Example:
      >>> import tempfile
      >>> with tempfile.TemporaryDirectory() as place:
      ...     chunk = ([1, 2], {"x": np.arange(3.0)})
      ...     store = RecordStore(write_records(f"{place}/data", [chunk]))
      ...     out = {"x": np.zeros(2)}
      ...     store.read(np.array([1]), out)
      >>> out["x"].tolist()
      [1.0, 2.0]
    """

    def __init__(self, folder: str | os.PathLike[str]) -> None:
        self.folder = as_path(folder, "folder").absolute()
        path = self.folder / "manifest.json"
        self.leaves, manifest = read_manifest(path, writer="write_records")
        self.offsets, self.sizes = read_offsets(self.folder / "offsets.npy")
        clients = manifest.get("clients")
        if not isinstance(clients, list) or not all(
            type(count) is int and 0 < count < 2**31 for count in clients
        ):
            raise bad_file(path, "the clients of each shard", f"{clients!r:.60}")
        self._shards = offsets_of(np.asarray(clients, np.int64))
        if len(self.sizes) != self._shards[-1]:
            raise bad_file(
                self.folder / "offsets.npy",
                f"{self._shards[-1]:,} clients, as {path.name} says",
                f"{len(self.sizes):,}",
            )
        names = _shard_names(len(clients))
        self._manifest = manifest
        self._readers = [_open_shard(self.folder / name) for name in names]
        for name, reader, count in zip(names, self._readers, clients):
            if reader.num_records() != count:
                raise bad_file(
                    self.folder / name,
                    f"{count} clients, as {path.name} says",
                    f"{reader.num_records()}",
                )
        self._sums = ClientSums(self.folder, manifest, (1, len(self.sizes)))
        if self._sums.table is not None:
            check_files(self.folder, manifest, names, limit=SMALL)

    def verify(self) -> None:
        """Reads all files and compares them with their digests.

        Raises:
          DatasetFormatError: if a file is damaged; a `ValueError`.
          ValueError: if the folder is of an earlier version, which has no digests.
        """
        self._sums.needed()
        check_files(self.folder, self._manifest, _shard_names(len(self._readers)))

    def read(self, ids: np.ndarray, out: Arrays) -> None:
        """See `ExampleStore`."""
        ids = np.asarray(ids)
        shards = np.searchsorted(self._shards, ids, side="right") - 1
        places = np.cumsum(self.sizes[ids], dtype=np.int64) - self.sizes[ids]
        for shard in np.unique(shards):
            chosen = np.flatnonzero((shards == shard) & (self.sizes[ids] > 0))
            if not len(chosen):
                continue
            records = self._records(int(shard), (ids[chosen] - self._shards[shard]).tolist())
            path = self.folder / _shard_names(len(self._readers))[shard]
            for slot, record in zip(chosen, records):
                self._sums.check(ids[slot : slot + 1], lambda _, p=path, r=record: [(p, r)])
                self._unpack(int(ids[slot]), record, out, int(places[slot]))

    def _records(self, shard: int, numbers: list[int]) -> list[bytes]:
        path = self.folder / _shard_names(len(self._readers))[shard]
        try:
            records = self._readers[shard].read(numbers)
        except Exception as error:  # bare RuntimeErrors and the like
            raise bad_file(path, "a whole ArrayRecord file", f"{error!s:.200}") from None
        if len(records) != len(numbers):
            raise bad_file(path, f"{len(numbers)} records", f"{len(records)}")
        return records

    def _unpack(self, client: int, record: bytes, out: Arrays, place: int) -> None:
        size = int(self.sizes[client])
        if len(record) != size * example_bytes(self.leaves):
            raise bad_file(
                self.folder,
                f"{size * example_bytes(self.leaves)} bytes of client {client}",
                f"{len(record)}",
            )
        begin = 0
        for name, leaf in self.leaves.items():
            end = begin + size * leaf.num_bytes
            part = np.frombuffer(record[begin:end], leaf.dtype)
            out[name][place : place + size] = part.reshape(size, *leaf.shape)
            begin = end


def write_records(
    folder: str | os.PathLike[str],
    chunks: Iterable[tuple[Any, Mapping[str, Any]]],
    *,
    clients_per_shard: int = 100_000,
    overwrite: bool = False,
) -> Path:
    """Writes a population as ArrayRecord shards; memory O(one chunk).

    Args:
      folder: the folder to make; it appears when it is complete.
      chunks: ``(sizes [k], {name: [sum(sizes), ...]})``, as for `write_streamed`.
      clients_per_shard: clients in a file.
      overwrite: replace an earlier folder.

    Returns:
      The folder, for `RecordStore`.

    Raises:
      ImportError: if ``array_record`` is not installed.
      FileExistsError: if the folder exists and `overwrite` is False.
      TypeError, ValueError: if a chunk does not fit the first, or values are not finite.

    Example:
      >>> import tempfile
      >>> with tempfile.TemporaryDirectory() as place:
      ...     folder = write_records(f"{place}/data", [([2], {"x": np.zeros(2)})])
      ...     sorted(path.name for path in folder.iterdir())[0]
      'examples-00000-of-00001.array_record'
    """
    check_count(clients_per_shard, "clients_per_shard", minimum=1)
    module = _array_record()
    with (
        new_folder(folder, overwrite=overwrite, made_of=MADE_OF) as writing,
        contextlib.ExitStack() as files,
    ):
        leaves: dict[str, Leaf] = {}
        sizes: list[int] = []
        sums: list[int] = []
        writer, counts = None, []
        for number, (part, examples) in enumerate(chunks):
            part = check_sizes(part)
            arrays = check_chunk(examples, part)
            leaves = leaves or leaves_of(arrays)
            check_same_leaves(leaves, leaves_of(arrays), number)
            ends = np.cumsum(part, dtype=np.int64)
            for low, high in zip((ends - part).tolist(), ends.tolist()):
                if writer is None or counts[-1] == clients_per_shard:
                    files.close()
                    # group_size 1: a client is found without reading its neighbours.
                    path = writing / f"{len(counts):05d}.array_record"
                    writer = module.ArrayRecordWriter(str(path), "group_size:1")
                    files.callback(writer.close)
                    counts.append(0)
                record = b"".join(
                    np.ascontiguousarray(arrays[name][low:high]).tobytes() for name in leaves
                )
                writer.write(record)
                sums.append(zlib.crc32(record))
                counts[-1] += 1
            sizes.extend(part.tolist())
        files.close()
        if not sizes:
            raise ValueError("chunks must hold at least one client, got an empty iterable")
        for shard, name in enumerate(_shard_names(len(counts))):
            os.replace(writing / f"{shard:05d}.array_record", writing / name)
        np.save(writing / "offsets.npy", offsets_of(np.asarray(sizes, np.int32)))
        np.save(writing / SUMS, np.array([sums], np.uint32))
        names = ["offsets.npy", SUMS, *_shard_names(len(counts))]
        write_manifest(writing, leaves, names, clients=counts)
    return as_path(folder, "folder")


def _shard_names(count: int) -> list[str]:
    return [f"examples-{shard:05d}-of-{count:05d}.array_record" for shard in range(count)]


def _open_shard(path: Path) -> Any:
    if not path.is_file():
        raise FileNotFoundError(f"folder lacks {path}; restore it, or write the folder again")
    try:
        # No read-ahead: clients are drawn at random.
        options = "readahead_buffer_size:0,max_parallelism:0"
        reader = _array_record().ArrayRecordReader(str(path), options)
        reader.num_records()
        return reader
    except ImportError:
        raise
    except Exception as error:  # the reader's own errors are bare RuntimeErrors and the like
        found = f"that {path.name} is truncated or not such a file: {error!s:.200}"
        raise bad_file(path, "a whole ArrayRecord file", found) from None


def _array_record() -> Any:
    try:
        from array_record.python import array_record_module
    except ImportError as error:
        raise ImportError("ArrayRecord shards need: pip install array-record") from error
    return array_record_module
