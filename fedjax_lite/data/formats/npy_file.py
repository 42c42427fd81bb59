"""Opening .npy files that others may have damaged: the header is compared, never evaluated.

numpy's reader takes objects, structures, any size that the header claims and errors of ten kinds.
Here a file is an array of numbers or text in C order, as long as its header says, or an error.
"""

from __future__ import annotations

import math
import os
import re
from pathlib import Path
from typing import IO

import numpy as np

from fedjax_lite.data.formats.errors import DatasetFormatError

_HEADER = re.compile(
    r"\{'descr': '([<>|=]?[A-Za-z][0-9]{0,9})', 'fortran_order': (True|False), "
    r"'shape': \(([0-9L, ]{0,640})\),? ?\}[ \n]*"
)
_SIZE = re.compile(r"([0-9]{1,18})L?")
_MAX_HEADER = 1 << 16
_EXPECTED = "a whole .npy file of numbers"


def open_npy(
    path: Path, *, kinds: str = "biuf", expected: str = _EXPECTED, remedy: str | None = None
) -> np.ndarray:
    """Maps an array of a .npy file into memory; nothing but its header is read.

    Args:
      path: the file.
      kinds: of dtypes that may be there, as ``numpy.dtype.kind`` calls them.
      expected: what the file should be, for the error.
      remedy: what to do about a bad file, for the error.

    Returns:
      A read-only map; an ordinary array where there are no elements.

    Raises:
      FileNotFoundError: if there is no such file.
      DatasetFormatError: if it is truncated, too long, of another kind, or not a .npy file.

    Example:
      >>> import tempfile
      >>> path = Path(tempfile.mkdtemp()) / "a.npy"
      >>> np.save(path, np.arange(3))
      >>> open_npy(path).tolist()
      [0, 1, 2]
    """
    try:
        with path.open("rb") as file:
            return map_npy(file, path, kinds=kinds, expected=expected, remedy=remedy)
    except FileNotFoundError:
        raise
    except OSError as error:  # a folder, for instance
        raise _damaged(path, error, expected, remedy) from None


def map_npy(
    file: IO[bytes],
    path: Path,
    *,
    kinds: str = "biuf",
    expected: str = _EXPECTED,
    remedy: str | None = None,
) -> np.ndarray:
    """As `open_npy`, of a file that is open: what was read of it is what is mapped.

    Example:
      >>> import tempfile
      >>> path = Path(tempfile.mkdtemp()) / "a.npy"
      >>> np.save(path, np.arange(3))
      >>> with path.open("rb") as file:
      ...     map_npy(file, path).tolist()
      [0, 1, 2]
    """
    try:
        dtype, shape, offset = _read_header(file, kinds)
        size = os.fstat(file.fileno()).st_size
        needed = offset + math.prod(shape) * dtype.itemsize
        if size < needed:
            raise ValueError(f"{size:,} bytes where its header needs {needed:,}")
        if size > needed:
            raise ValueError(f"{size - needed:,} bytes more than its header says")
        if not math.prod(shape):
            return np.zeros(shape, dtype)
        return np.memmap(file, dtype, "r", offset, shape)  # type: ignore[arg-type]
    except (OSError, ValueError, TypeError, OverflowError) as error:
        raise _damaged(path, error, expected, remedy) from None


def _damaged(path: Path, error: Exception, expected: str, remedy: str | None) -> DatasetFormatError:
    return DatasetFormatError(
        path,
        expected=expected,
        found=f"that {path.name} is truncated or not such a file: {error!s:.200}",
        remedy=remedy,
    )


def _read_header(file: IO[bytes], kinds: str) -> tuple[np.dtype, tuple[int, ...], int]:
    """The dtype, the shape, and where the values begin."""
    file.seek(0)
    start = file.read(8)
    if start[:6] != b"\x93NUMPY" or start[6:] not in (b"\1\0", b"\2\0", b"\3\0"):
        raise ValueError("it does not begin as such files do")
    length = int.from_bytes(file.read(2 if start[6] == 1 else 4), "little")
    text = file.read(min(length, _MAX_HEADER)).decode("latin-1")
    offset = file.tell()
    match = _HEADER.fullmatch(text)
    if len(text) != length or match is None:
        raise ValueError("its header is not one of a plain array")
    name, fortran, sizes = match.groups()
    if name.lstrip("<>|=")[:1] not in kinds:
        raise ValueError(f"it holds values of the kind {name!r}")
    dtype = np.dtype(name)
    parts = [part.strip() for part in sizes.split(",")]
    found = [_SIZE.fullmatch(part) for part in (parts if parts[-1] else parts[:-1])]
    shape = tuple(int(size.group(1)) if size else -1 for size in found)
    if min(shape, default=0) < 0 or len(shape) > 32 or dtype.itemsize == 0:
        raise ValueError(f"its header has no shape: ({sizes:.80})")
    if math.prod(size or 1 for size in shape) * dtype.itemsize >= 2**62:
        raise ValueError(f"its header has an impossible shape: ({sizes:.80})")
    if fortran == "True":
        raise ValueError("it is in Fortran order; np.ascontiguousarray and save it again")
    return dtype, shape, offset
