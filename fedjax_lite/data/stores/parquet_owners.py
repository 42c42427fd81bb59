"""How many rows each client has in Parquet files: the column of clients, a few rows at a time."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from fedjax_lite.data.stores.store import check_sizes
from fedjax_lite.data.stores.store_files import bad_file

_ROWS = 1 << 16
_SPARSE = 64
"""Clients a row; beyond that, numbers are a mistake whose sizes would fill the memory."""


def count_rows(
    paths: Sequence[Path], files: Sequence[Any], column: str, num_clients: int | None
) -> np.ndarray:
    """The sizes of the clients, in memory of their number and not of the rows'.

    Args:
      paths: of the files, for errors.
      files: ``pyarrow.parquet.ParquetFile`` each.
      column: of clients: integers that never fall.
      num_clients: `N`; None for the last client's number and one.

    Returns:
      int32 `[N]`.

    Raises:
      ValueError: if a client is missing, outside of the population or out of order.
      DatasetFormatError: if a file is damaged.
    """
    limit = num_clients or 2**31 - 1
    clients, counts = [np.zeros(0, np.int64)], [np.zeros(0, np.int64)]
    last, total = 0, 0
    for path, file in zip(paths, files):
        name, done = f"{path}: the column {column!r}", 0
        for part in _parts(path, file, column):
            values = _values(part, file, column, name, done)
            outside = (values < 0) | (values >= limit)
            if outside.any():
                row = int(np.argmax(outside))
                raise ValueError(
                    f"{name} must lie in [0, num_clients={limit}), got {values[row]} in row "
                    f"{done + row}; raise num_clients, or number the clients anew from 0"
                )
            values = np.concatenate([[last], values.astype(np.int64)])
            falls = np.flatnonzero(values[1:] < values[:-1])
            if len(falls):
                raise ValueError(
                    f"{name} must hold integers 0 .. N - 1, sorted over all files, got "
                    f"{values[falls[0] + 1]} after {values[falls[0]]} in row {done + falls[0]}; "
                    "number the clients and sort by them"
                )
            last, done = int(values[-1]), done + len(values) - 1
            some, each = np.unique(values[1:], return_counts=True)
            clients.append(some)
            counts.append(each)
        total += done
    size = num_clients or (last + 1 if total else 0)
    if num_clients is None and size > 1024 + _SPARSE * total:
        raise ValueError(
            f"{paths[-1]}: the column {column!r} must hold integers 0 .. N - 1, got {last} among "
            f"{total:,} rows; number the clients anew from 0, or say num_clients={size}"
        )
    sizes = np.zeros(size, np.int64)
    np.add.at(sizes, np.concatenate(clients), np.concatenate(counts))
    return check_sizes(sizes)


def _parts(path: Path, file: Any, column: str) -> Iterator[Any]:
    """The column, piece by piece; what the reader raises names the file."""
    import pyarrow

    parts = file.iter_batches(batch_size=_ROWS, columns=[column], use_threads=False)
    while True:
        try:
            part = next(parts, None)
        except (pyarrow.ArrowException, OSError, ValueError) as error:
            raise bad_file(path, "a whole Parquet file", f"{error!s:.200}") from None
        if part is None:
            return
        yield part.column(0)


def _values(part: Any, file: Any, column: str, name: str, done: int) -> np.ndarray:
    kind = part.type
    if part.null_count:
        row = done + int(np.argmax(part.is_null().to_numpy(zero_copy_only=False)))
        rest = file.read(columns=[column]).column(0).null_count
        raise ValueError(
            f"{name} must name the owner of every example, got null in row {row} ({rest} in "
            "all); drop such rows"
        )
    values = np.asarray(part.to_numpy(zero_copy_only=False))
    if values.dtype.kind not in "iu":
        raise ValueError(
            f"{name} must hold integers 0 .. N - 1, got {kind}; number the clients and sort by them"
        )
    return values
