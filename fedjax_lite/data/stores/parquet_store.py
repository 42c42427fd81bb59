"""Parquet shards: one row an example, sorted by a column that names its client.

What Spark, DuckDB or pandas write. Parquet is read in row groups, so a client costs the decoding
of the whole group that it lies in: good for exchange, slow for cohorts drawn at random. To train
for long, convert once: ``write_streamed(folder, chunks(ParquetStore(paths)))``. Needs ``pyarrow``.
"""

from __future__ import annotations

import logging
import os
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from fedjax_lite.checks.arguments import as_path, check_count
from fedjax_lite.data.population.dataset import check_values
from fedjax_lite.data.stores.digests import SUMS
from fedjax_lite.data.stores.new_folder import new_folder
from fedjax_lite.data.stores.npy_store import check_same_leaves
from fedjax_lite.data.stores.parquet_owners import count_rows
from fedjax_lite.data.stores.parquet_sums import MANIFEST, FileSums, read_sums, write_sums
from fedjax_lite.data.stores.store import (
    Arrays,
    Leaf,
    check_chunk,
    check_sizes,
    leaves_of,
    offsets_of,
)
from fedjax_lite.data.stores.store_files import bad_file

_LOG = logging.getLogger("fedjax_lite")

MADE_OF = ("part-*.parquet", SUMS, MANIFEST)
"""Files of such a folder."""


class ParquetStore:
    """The examples of Parquet files; opening reads the column of clients only.

    Arrays of one axis are columns of numbers; `[E, d]` is a column of fixed-size lists. Deeper
    arrays (images) come flat, ``[E, H * W * C]``: reshape them in the loss, where it costs nothing.

    Files of `write_parquet` have digests: of what opening reads, compared then, and of each row
    group, compared when it is decoded for the first time; a file below 2^20 bytes is compared when
    it is opened, and all by `verify`. Files of others have none, which the log says.

    Args:
      paths: the files in order, or a folder whose ``*.parquet`` files are taken by name.
      client_column: the column of clients: integers ``0 .. N - 1`` that never fall from row to row.
      num_clients: `N`, where the last clients have no examples.

    Raises:
      ImportError: if ``pyarrow`` is not installed.
      FileNotFoundError: if there is no such file.
      ValueError: if a file is damaged, the column is absent or not sorted, or files differ.

    Example:
      >>> import tempfile
      >>> with tempfile.TemporaryDirectory() as place:
      ...     chunk = ([1, 2], {"x": np.arange(3.0)})
      ...     store = ParquetStore(write_parquet(f"{place}/data", [chunk]))
      ...     out = {"x": np.zeros(2)}
      ...     store.read(np.array([1]), out)
      >>> out["x"].tolist()
      [1.0, 2.0]
    """

    def __init__(
        self,
        paths: str | os.PathLike[str] | Sequence[str | os.PathLike[str]],
        *,
        client_column: str = "client",
        num_clients: int | None = None,
    ) -> None:
        if num_clients is not None:
            check_count(num_clients, "num_clients", minimum=1)
        self.paths = _paths(paths)
        self._sums = _sums(self.paths)
        self._files = [_open(path) for path in self.paths]
        self.leaves: dict[str, Leaf] = {}
        for path, file in zip(self.paths, self._files):
            leaves = _leaves(path, file, client_column)
            self.leaves = self.leaves or leaves
            if leaves != self.leaves:
                raise ValueError(
                    f"{path} has other columns than {self.paths[0]}; give the files of one table"
                )
        for path, file in zip(self.paths, self._files):
            for group in range(file.metadata.num_row_groups):
                self._compare(path, file, group, [client_column])
        self.sizes = count_rows(self.paths, self._files, client_column, num_clients)
        self.offsets = offsets_of(self.sizes)
        self._groups = [
            (path, file, group, file.metadata.row_group(group).num_rows)
            for path, file in zip(self.paths, self._files)
            for group in range(file.metadata.num_row_groups)
        ]
        self._starts = offsets_of(np.array([rows for *_, rows in self._groups], np.int64))
        if self._starts[-1] != self.offsets[-1]:
            raise bad_file(
                self.paths[0],
                f"{self._starts[-1]:,} rows, as the files say",
                f"{self.offsets[-1]:,}",
            )

    def verify(self) -> None:
        """Reads all files and compares them with their digests.

        Raises:
          DatasetFormatError: if a file is damaged; a `ValueError`.
          ValueError: if a file has no digests.
        """
        for path in self.paths:
            if path not in self._sums:
                raise ValueError(
                    f"{path} must have digests to be verified, got a file of others, which has "
                    "none; write it again: write_parquet(folder, chunks(store))"
                )
            self._sums[path].check_all()

    def _compare(self, path: Path, file: Any, group: int, columns: list[str]) -> None:
        if path in self._sums:
            names = file.schema_arrow.names
            self._sums[path].check(group, [names.index(name) for name in columns], len(names))

    def read(self, ids: np.ndarray, out: Arrays) -> None:
        """See `ExampleStore`: every row group that holds one of the clients is decoded once."""
        ids = np.asarray(ids)
        lows, highs = self.offsets[ids], self.offsets[ids + 1]
        places = np.cumsum(highs - lows) - (highs - lows)
        first = np.searchsorted(self._starts, lows, side="right") - 1
        last = np.searchsorted(self._starts, highs, side="left")
        wanted: dict[int, list[int]] = {}
        for slot in np.flatnonzero(highs > lows).tolist():
            for group in range(int(first[slot]), int(last[slot])):
                wanted.setdefault(group, []).append(slot)
        for group, slots in sorted(wanted.items()):
            arrays = self._decode(group)
            begin, end = self._starts[group], self._starts[group + 1]
            for slot in slots:
                low, high = max(lows[slot], begin), min(highs[slot], end)
                place = places[slot] + low - lows[slot]
                for name, array in arrays.items():
                    out[name][place : place + high - low] = array[low - begin : high - begin]

    def _decode(self, group: int) -> dict[str, np.ndarray]:
        path, file, number, rows = self._groups[group]
        arrays = {}
        self._compare(path, file, number, list(self.leaves))
        try:
            table = file.read_row_group(number, columns=list(self.leaves), use_threads=False)
            for name, leaf in self.leaves.items():
                column = table.column(name).combine_chunks()
                flat = column.flatten() if leaf.shape else column
                if column.null_count or flat.null_count:
                    raise _Nulls(
                        f"{path}: the column {name!r} holds nulls in row group {number}; drop them"
                    )
                arrays[name] = np.asarray(flat.to_numpy(zero_copy_only=False))
                arrays[name] = arrays[name].reshape(rows, *leaf.shape)
        except _Nulls:
            raise
        except (_pyarrow()[0].ArrowException, OSError, ValueError) as error:
            raise bad_file(path, "a whole Parquet file", f"{error!s:.200}") from None
        for name, stored in arrays.items():
            check_values(stored, f"[{name!r}] of row group {number} of {path}")
            arrays[name] = stored.astype(self.leaves[name].dtype, copy=False)
        return arrays


class _Nulls(ValueError):
    """A value is missing: the file is whole, its table is no array."""


def write_parquet(
    folder: str | os.PathLike[str],
    chunks: Iterable[tuple[Any, Mapping[str, Any]]],
    *,
    rows_per_group: int = 4096,
    overwrite: bool = False,
) -> Path:
    """Writes a population as Parquet files, one a chunk; memory O(one chunk).

    Args:
      folder: the folder to make; it appears when it is complete.
      chunks: ``(sizes [k], {name: [sum(sizes), ...]})``, as for `write_streamed`. Arrays of three
        axes and more are stored flat, ``[E, d]``.
      rows_per_group: examples in a row group: what a client costs at least to read.
      overwrite: replace an earlier folder.

    Returns:
      The folder, for `ParquetStore`.

    Raises:
      ImportError: if ``pyarrow`` is not installed.
      FileExistsError: if the folder exists and `overwrite` is False.
      TypeError, ValueError: if a chunk does not fit the first, or values are not finite.

    Example:
      >>> import tempfile
      >>> with tempfile.TemporaryDirectory() as place:
      ...     folder = write_parquet(f"{place}/data", [([2], {"x": np.zeros(2)})])
      ...     sorted(path.name for path in folder.iterdir())
      ['manifest.json', 'part-00000.parquet', 'sums.npy']
    """
    check_count(rows_per_group, "rows_per_group", minimum=1)
    pa, pq = _pyarrow()
    with new_folder(folder, overwrite=overwrite, made_of=MADE_OF) as writing:
        leaves: dict[str, Leaf] = {}
        done, names = 0, []
        for number, (part, examples) in enumerate(chunks):
            part = check_sizes(part)
            arrays = check_chunk(examples, part)
            if "client" in arrays:
                raise ValueError("no array can be named 'client', the column of clients")
            leaves = leaves or leaves_of(arrays)
            check_same_leaves(leaves, leaves_of(arrays), number)
            columns = {"client": pa.array(np.repeat(np.arange(done, done + len(part)), part))}
            for name, array in arrays.items():
                flat = pa.array(np.ascontiguousarray(array).reshape(-1))
                width = int(np.prod(array.shape[1:], dtype=np.int64))
                columns[name] = (
                    flat if array.ndim == 1 else pa.FixedSizeListArray.from_arrays(flat, width)
                )
            names.append(f"part-{number:05d}.parquet")
            pq.write_table(pa.table(columns), writing / names[-1], row_group_size=rows_per_group)
            done += len(part)
        if not done:
            raise ValueError("chunks must hold at least one client, got an empty iterable")
        write_sums(writing, names, [pq.read_metadata(writing / name) for name in names])
    return as_path(folder, "folder")


def _paths(paths: Any) -> list[Path]:
    if isinstance(paths, str | bytes | os.PathLike):
        one = as_path(paths, "paths")
        found = sorted(one.glob("*.parquet")) if one.is_dir() else [one]
    else:
        found = [as_path(path, f"paths[{number}]") for number, path in enumerate(paths)]
    for path in found or [Path(str(paths), "*.parquet")]:
        if not path.is_file():
            raise FileNotFoundError(
                f"paths: {path} does not exist; give Parquet files, or a folder of some"
            )
    return found


def _open(path: Path) -> Any:
    pa, pq = _pyarrow()
    try:
        return pq.ParquetFile(path, memory_map=True)
    except (pa.ArrowException, OSError, ValueError) as error:
        found = f"that {path.name} is truncated or not a Parquet file: {error!s:.200}"
        raise bad_file(path, "a whole Parquet file", found) from None


def _sums(paths: Sequence[Path]) -> dict[Path, FileSums]:
    """The digests of the files that have some."""
    folders = {folder: read_sums(folder) for folder in {path.parent for path in paths}}
    for path in paths:
        if path.name not in folders[path.parent]:
            _LOG.info("%s has no digests: damage of its values can pass unnoticed", path)
    return {
        path: FileSums(path, folders[path.parent][path.name])
        for path in paths
        if path.name in folders[path.parent]
    }


def _leaves(path: Path, file: Any, client_column: str) -> dict[str, Leaf]:
    schema = file.schema_arrow
    if client_column not in schema.names:
        raise ValueError(
            f"{path} has no column {client_column!r}, only {schema.names}; name it as client_column"
        )
    leaves = {}
    for name in schema.names:
        kind, shape = schema.field(name).type, ()
        if hasattr(kind, "list_size"):
            kind, shape = kind.value_type, (kind.list_size,)
        try:
            dtype = np.dtype(kind.to_pandas_dtype())
        except (NotImplementedError, TypeError):
            dtype = np.dtype(object)
        if name != client_column:
            if dtype.kind not in "biuf" or min(shape, default=1) < 1:
                raise ValueError(
                    f"{path}: the column {name!r} is {kind}; arrays must be numbers or lists of "
                    "fixed size; cast it, or leave it out"
                )
            leaves[name] = Leaf(dtype, shape)
    if not leaves:
        raise ValueError(f"{path} has no column but {client_column!r}")
    return leaves


def _pyarrow() -> tuple[Any, Any]:
    try:
        import pyarrow
        import pyarrow.parquet
    except ImportError as error:
        raise ImportError("Parquet shards need: pip install pyarrow") from error
    return pyarrow, pyarrow.parquet
