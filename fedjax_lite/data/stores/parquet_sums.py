"""Digests of the Parquet files of a folder, column chunk by column chunk.

    folder/manifest.json    {"layout": 2, "parts": [names], "files": {"sums.npy": ..}, "digest": ..}
    folder/sums.npy         int64 [spans, 3]: number of the file, first byte, CRC-32 up to the next

A file is its magic number, the column chunks of each row group, and the footer: spans without gaps.
What opening reads (ends, the column of clients) is compared then, a row group's other columns when
the group is decoded for the first time.
"""

from __future__ import annotations

import json
import zlib
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from fedjax_lite.data.formats.npy_file import open_npy
from fedjax_lite.data.stores.digests import SMALL, SUMS, check_files, file_digest
from fedjax_lite.data.stores.store_files import LAYOUT, REWRITE, bad_file, manifest_digest

MANIFEST = "manifest.json"
_MAX_MANIFEST = 1 << 24


class FileSums:
    """The sums of one file, and what of it was compared; its ends are, before anyone parses them.

    Args:
      path: the file.
      rows: int64 `[spans, 2]`, first byte and CRC-32 of each span.

    Raises:
      DatasetFormatError: if its ends, or a file below 2^20 bytes, are not what was written.
    """

    def __init__(self, path: Path, rows: np.ndarray) -> None:
        size = path.stat().st_size
        self.path, self._bounds = path, np.append(rows[:, 0], size)
        self._sums, self._checked = rows[:, 1], np.zeros(len(rows), bool)
        if len(rows) < 2 or (np.diff(self._bounds) < 0).any():
            raise self._changed()
        self._mapped: Any = np.memmap(path, np.uint8, "r")
        self._check([0, len(rows) - 1])
        if size <= SMALL:
            self.check_all()

    def check(self, group: int, columns: Sequence[int], num_columns: int) -> None:
        """Compares columns of a row group, if they were not compared before.

        Raises:
          DatasetFormatError: if they have other bytes.
        """
        self._check([1 + group * num_columns + column for column in columns])

    def check_all(self) -> None:
        """Compares all of the file.

        Raises:
          DatasetFormatError: if it has other bytes.
        """
        self._check(range(len(self._sums)))

    def _check(self, spans: Sequence[int]) -> None:
        for span in spans:
            if self._checked[span]:
                continue
            low, high = self._bounds[span : span + 2].tolist()
            if zlib.crc32(self._mapped[low:high]) != self._sums[span]:
                raise self._changed(f", between the bytes {low:,} and {high:,}")
            self._checked[span] = True

    def _changed(self, where: str = "") -> Exception:
        found = f"that {self.path.name} is truncated or has changed since{where}"
        return bad_file(self.path, "a Parquet file as it was written", found)


def write_sums(folder: Path, names: Sequence[str], metadata: Sequence[Any]) -> None:
    """Writes the digests of a folder's files, last of all.

    Args:
      folder: that holds them.
      names: of the files.
      metadata: of each, ``pyarrow.parquet.FileMetaData``.
    """
    rows = []
    for number, (name, described) in enumerate(zip(names, metadata)):
        mapped: Any = np.memmap(folder / name, np.uint8, "r")
        bounds = [0, *_chunk_starts(described), len(mapped) - 8 - described.serialized_size]
        for low, high in zip(bounds, [*bounds[1:], len(mapped)]):
            rows.append([number, low, zlib.crc32(mapped[low:high])])
        del mapped
    np.save(folder / SUMS, np.array(rows, np.int64))
    size = (folder / SUMS).stat().st_size
    manifest: dict[str, Any] = {"layout": LAYOUT, "parts": list(names)}
    manifest["files"] = {SUMS: [size, file_digest(folder / SUMS)]}
    manifest["digest"] = manifest_digest(manifest)
    (folder / MANIFEST).write_text(json.dumps(manifest, indent=1) + "\n")


def _chunk_starts(metadata: Any) -> list[int]:
    """Where the column chunks of all row groups begin, in the order of the file."""
    starts = []
    for group in range(metadata.num_row_groups):
        for number in range(metadata.num_columns):
            column = metadata.row_group(group).column(number)
            first = column.has_dictionary_page and column.dictionary_page_offset
            # A chunk without pages begins nowhere: 0. It takes no bytes of the next one.
            starts.append(max(first or column.data_page_offset, *starts[-1:], 4))
    return starts


def read_sums(folder: Path) -> dict[str, np.ndarray]:
    """The sums of a folder's files, by name; none where others wrote the folder.

    Args:
      folder: that holds Parquet files.

    Returns:
      ``{name: int64 [spans, 2]}``.

    Raises:
      DatasetFormatError: if the manifest or the sums are not what was written.
    """
    path = folder / MANIFEST
    if not path.exists():
        return {}
    try:
        if path.stat().st_size > _MAX_MANIFEST:
            raise ValueError("it is too long")
        manifest = json.loads(path.read_text(encoding="utf-8"))
        if manifest.pop("digest", None) != manifest_digest(manifest):
            raise ValueError("it does not have the digest that it was written with")
        if manifest["layout"] != LAYOUT:
            raise ValueError(f"layout {manifest['layout']!r:.40}, this version reads {LAYOUT}")
        names = list(map(str, manifest["parts"]))
        manifest["files"].items()
    except (OSError, KeyError, TypeError, AttributeError, ValueError, RecursionError) as error:
        found = f"that {path.name} is not such a manifest: {str(error) or repr(error):.200}"
        raise bad_file(path, "the manifest of write_parquet", found) from None
    table = open_npy(folder / SUMS, expected="int64 sums [spans, 3]", remedy=REWRITE)
    if table.dtype != np.int64 or table.ndim != 2 or table.shape[1] != 3:
        found = f"{table.dtype}{list(table.shape)}"
        raise bad_file(folder / SUMS, "int64 sums [spans, 3]", found)
    check_files(folder, manifest, [SUMS])
    table = np.array(table)
    return {name: table[table[:, 0] == number, 1:] for number, name in enumerate(names)}
