"""What tables of client rows keep beside the rows: indexes and notes, each checked when read."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np

from fedjax_lite.data.formats.errors import DatasetFormatError
from fedjax_lite.data.formats.npy_file import open_npy

_EARLIER = "restore an earlier checkpoint"
_MAX_NOTE = 1 << 22


def read_index(path: Path, *, limit: int, length: int | None = None) -> np.ndarray:
    """Integers `[N]` below `limit`, -1 for none, that `numpy.save` wrote.

    Raises:
      FileNotFoundError: if there is no such file.
      DatasetFormatError: if it is damaged or of another length.

    Example:
      >>> import tempfile
      >>> path = Path(tempfile.mkdtemp()) / "index.npy"
      >>> np.save(path, np.array([1, -1], np.int32))
      >>> read_index(path, limit=2).tolist()
      [1, -1]
    """
    expected = f"integers [{'N' if length is None else length}] from -1 to {limit - 1}"
    index = open_npy(path, kinds="i", expected=expected, remedy=_EARLIER)
    fits = index.ndim == 1 and length in (None, len(index))
    if not fits or index.min(initial=-1) < -1 or index.max(initial=-1) >= limit:
        found = f"{index.dtype}{list(index.shape)}" + " beyond them" * fits
        raise DatasetFormatError(path, expected=expected, found=found, remedy=_EARLIER)
    return np.array(index)


def read_note(path: Path, key: str, kind: type) -> Any:
    """The value of a key in a small JSON file of a folder for rows.

    Raises:
      FileNotFoundError: if there is no such file.
      DatasetFormatError: if it is damaged.

    Example:
      >>> import tempfile
      >>> path = Path(tempfile.mkdtemp()) / "pin.json"
      >>> _ = path.write_text('{"checkpoints": ["a"]}')
      >>> read_note(path, "checkpoints", list)
      ['a']
    """
    try:
        if path.stat().st_size > _MAX_NOTE:
            raise ValueError("it is too long")
        value = json.loads(path.read_text(encoding="utf-8"))[key]
        if not isinstance(value, kind):
            raise ValueError(f"{key} is a {type(value).__name__}")
    except FileNotFoundError:
        raise
    except (OSError, ValueError, KeyError, TypeError, RecursionError) as error:
        raise DatasetFormatError(
            path,
            expected=f"a note with the {key!r}",
            found=f"a damaged one ({str(error) or repr(error):.100})",
            remedy="begin the run anew with another state_dir, or restore both from a copy",
        ) from None
    return value
