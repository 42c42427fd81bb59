"""Digests of a folder of examples, by which bits that changed since are noticed.

The manifest has a SHA-256 of itself and of the small files, which are compared whenever the folder
is opened. Of the examples every client has a CRC-32 in each array, compared when the client is read
for the first time: just the bytes that are read anyway, so a cohort costs the sum of its bytes and
nothing of the rest of the file. CRC-32 finds every burst of up to 32 wrong bits and of other damage
all but one in four thousand millions. It is no protection against someone who wants to deceive.
"""

from __future__ import annotations

import hashlib
import json
import logging
import zlib
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from fedjax_lite.data.formats.npy_file import open_npy
from fedjax_lite.data.stores.store import Leaf
from fedjax_lite.data.stores.store_files import (
    LAYOUT,
    REWRITE,
    bad_file,
    described_leaves,
    manifest_digest,
)

SUMS = "sums.npy"
"""uint32 `[files, N]`: CRC-32 of what each client holds in each file."""
SMALL = 1 << 20
"""Bytes; what is smaller is compared when it is opened."""

_LOG = logging.getLogger("fedjax_lite")


class ClientSums:
    """The sums of a folder's clients, and whose were compared.

    Args:
      folder: the folder.
      manifest: of it; one of the first layout has no sums, which is said in the log.
      shape: ``(files, N)``.

    Raises:
      DatasetFormatError: if ``sums.npy`` or ``offsets.npy`` are not what was written.
    """

    def __init__(self, folder: Path, manifest: Mapping[str, Any], shape: tuple[int, int]) -> None:
        self.folder = folder
        self.table: np.ndarray | None = None
        self._checked = np.zeros(shape[1], bool)
        if manifest["layout"] != LAYOUT:
            _LOG.warning(
                "%s was written before examples had digests, so damage of its files can pass "
                "unnoticed; write it again: write_streamed(folder, chunks(store))",
                folder,
            )
            return
        path = folder / SUMS
        table = open_npy(path, expected="uint32 sums [files, N]", remedy=REWRITE)
        if table.dtype != np.uint32 or table.shape != shape:
            found = f"{table.dtype}{list(table.shape)}"
            raise bad_file(path, f"uint32{list(shape)}, as the manifest says", found)
        check_files(folder, manifest, ["offsets.npy", SUMS])
        self.table = np.array(table)

    def check(self, ids: np.ndarray, parts: Callable[[int], Iterable[tuple[Path, Any]]]) -> None:
        """Compares clients that were not compared before.

        Args:
          ids: the clients.
          parts: ``(client) -> (path, bytes)`` for each file.

        Raises:
          DatasetFormatError: naming the first file and client that differ.
        """
        if self.table is None:
            return
        for client in dict.fromkeys(ids[~self._checked[ids]].tolist()):
            for row, (path, content) in enumerate(parts(client)):
                if zlib.crc32(content) != self.table[row, client]:
                    raise bad_file(
                        path,
                        f"the examples of client {client} as they were written",
                        "others: bits have changed since",
                    )
            self._checked[client] = True

    def needed(self) -> ClientSums:
        """Itself, where there are sums to compare with.

        Raises:
          ValueError: if there are none.
        """
        if self.table is None:
            raise ValueError(
                f"{self.folder} must have digests to be verified, got a folder of the first "
                "layout, which has none; write it again: write_streamed(folder, chunks(store))"
            )
        return self


def sums_of(arrays: Iterable[np.ndarray], sizes: np.ndarray) -> np.ndarray:
    """CRC-32 of what each client holds of each array.

    Args:
      arrays: `[sum(sizes), ...]`, client after client.
      sizes: `[k]`.

    Returns:
      uint32 `[arrays, k]`.

    Example:
      >>> sums_of([np.array([1, 2, 3], np.uint8)], np.array([2, 0, 1])).tolist()
      [[3066839698, 0, 1259060791]]
    """
    ends = np.cumsum(sizes, dtype=np.int64)
    spans = list(zip((ends - sizes).tolist(), ends.tolist()))
    rows = []
    whole: Any
    for whole in map(np.ascontiguousarray, arrays):
        rows.append([zlib.crc32(whole[low:high]) for low, high in spans])
    return np.array(rows, np.uint32)


def write_manifest(
    folder: Path, leaves: Mapping[str, Leaf], names: Iterable[str], **more: Any
) -> None:
    """Writes ``manifest.json``, last of all files.

    Args:
      folder: that holds the other files.
      leaves: what one example holds of each array.
      names: of files that get a SHA-256.
      more: what else it says.
    """
    files = {name: [(folder / name).stat().st_size, file_digest(folder / name)] for name in names}
    manifest = {"layout": LAYOUT, "leaves": described_leaves(leaves), **more, "files": files}
    manifest["digest"] = manifest_digest(manifest)
    (folder / "manifest.json").write_text(json.dumps(manifest, indent=1) + "\n")


def check_files(
    folder: Path, manifest: Mapping[str, Any], names: Iterable[str], *, limit: int | None = None
) -> None:
    """Compares files with the sizes and the SHA-256 in a manifest.

    Args:
      folder: that holds them.
      manifest: of it.
      names: of the files.
      limit: of larger ones only the size is compared.

    Raises:
      DatasetFormatError: naming the first that is not what was written.
    """
    for name in names:
        path, described = folder / name, manifest["files"].get(name)
        if not isinstance(described, list) or len(described) != 2:
            raise bad_file(folder / "manifest.json", f"the digest of {name}", "none")
        size = path.stat().st_size
        if size != described[0]:
            raise bad_file(path, f"{described[0]:,} bytes, as were written", f"{size:,}")
        if (limit is None or size <= limit) and file_digest(path) != described[1]:
            raise bad_file(path, "the bytes that were written", "others: bits have changed since")


def file_digest(path: Path) -> str:
    """SHA-256 of a file's bytes."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
