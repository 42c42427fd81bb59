"""Files that appear whole or not at all, and values as their JSON has them."""

from __future__ import annotations

import contextlib
import errno
import json
import math
import os
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from fedjax_lite.checks.arguments import as_path


def save_text_atomic(path: str | os.PathLike[str], text: str) -> None:
    """Writes a text file under a temporary name in the same folder and moves it into place.

    Args:
      path: the file; its folder must exist.
      text: what it is to hold, in UTF-8.

    Example:
      >>> import tempfile
      >>> with tempfile.TemporaryDirectory() as folder:
      ...     save_text_atomic(folder + "/note.txt", "done")
      ...     Path(folder, "note.txt").read_text()
      'done'
    """
    path = as_path(path, "path")
    temporary = path.with_name(f".{path.name}.tmp")
    with naming(path):
        try:
            with temporary.open("w", encoding="utf-8", newline="") as file:
                file.write(text)
                file.flush()
                os.fsync(file.fileno())
            os.replace(temporary, path)
        except OSError:
            with contextlib.suppress(OSError):  # a full disk needs the room
                temporary.unlink()
            raise


def save_json_atomic(path: str | os.PathLike[str], value: Any) -> None:
    """Writes strict, indented JSON atomically; NaN and infinities are null.

    Args:
      path: the file; its folder must exist.
      value: dicts, lists, strings, numbers, booleans, None.

    Raises:
      TypeError: if something in `value` has no JSON form; nothing is written then.

    Example:
      >>> import tempfile
      >>> with tempfile.TemporaryDirectory() as folder:
      ...     save_json_atomic(folder + "/config.json", {"num_rounds": 5})
      ...     json.loads(Path(folder, "config.json").read_text())
      {'num_rounds': 5}
    """
    save_text_atomic(path, json.dumps(finite(value), indent=2, allow_nan=False) + "\n")


def save_bytes_atomic(path: str | os.PathLike[str], data: bytes, *, mode: int = 0o666) -> None:
    """Writes a file as `save_text_atomic` does, and sees that its name, too, is on the disk.

    After a return the file survives a loss of power: what was to be remembered before a reply
    leaves is.

    Args:
      path: the file; its folder must exist.
      data: what it is to hold.
      mode: of the file from its first byte on, less the process's umask.

    Example:
      >>> import tempfile
      >>> with tempfile.TemporaryDirectory() as folder:
      ...     save_bytes_atomic(folder + "/secret", b"done", mode=0o600)
      ...     oct(Path(folder, "secret").stat().st_mode & 0o777)
      '0o600'
    """
    path = as_path(path, "path")
    temporary = path.with_name(f".{path.name}.tmp")
    with naming(path):
        try:
            temporary.unlink(missing_ok=True)  # of a process that was killed
            flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | getattr(os, "O_BINARY", 0)
            with os.fdopen(os.open(temporary, flags, mode), "wb") as file:
                file.write(data)
                file.flush()
                os.fsync(file.fileno())
            os.replace(temporary, path)
        finally:
            with contextlib.suppress(OSError):
                temporary.unlink()
        sync_folder(path.parent)


def sync_folder(folder: Path) -> None:
    """Puts the names in a folder on the disk: what was moved into it, what was removed.

    Example:
      >>> sync_folder(Path("."))
    """
    if os.name != "posix":  # nothing else opens folders
        return
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    except OSError as error:
        if error.errno not in (errno.EINVAL, errno.ENOTSUP):  # file systems that cannot
            raise
    finally:
        os.close(descriptor)


@contextlib.contextmanager
def naming(path: Path) -> Iterator[None]:
    """Errors of the disk that name no file, as those of a write on a full one, name this path.

    Example:
      >>> with naming(Path("metrics.csv")):
      ...     raise OSError(28, "No space left on device")
      Traceback (most recent call last):
      ...
      OSError: [Errno 28] No space left on device: 'metrics.csv'
    """
    try:
        yield
    except OSError as error:
        if error.filename is None:
            error.filename = str(path)
        raise


def finite(value: Any) -> Any:
    """A value with None for NaN and infinity, as JSON has it.

    Example:
      >>> finite({"a": [1.0, math.inf]})
      {'a': [1.0, None]}
    """
    if isinstance(value, Mapping):
        return {name: finite(item) for name, item in value.items()}
    if isinstance(value, list | tuple):
        return [finite(item) for item in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


def to_python(value: Any) -> Any:
    """A metric as a plain number, or as nested lists where it is no scalar.

    Args:
      value: a number or an array of any dtype; bfloat16 and float16 widen exactly.

    Returns:
      bool, int, float or a list of them.

    Example:
      >>> to_python(np.float32(0.5)), to_python(np.int32(3)), to_python(np.arange(2))
      (0.5, 3, [0, 1])
    """
    array = np.asarray(value)
    if array.dtype.kind not in "biuf":  # bfloat16 and other small floats have no Python twin
        array = array.astype(np.float64)
    return array.tolist()
