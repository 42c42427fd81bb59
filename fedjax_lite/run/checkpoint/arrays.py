"""Arrays on disk, by Orbax: quiet, and with the disk's errors as OSError."""

from __future__ import annotations

import contextlib
import errno
import logging
import os
import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

_CODE = re.compile(r"os_error_code='(\d+)'")
_FULL = ("No space left", "quota exceeded")


def write_arrays(folder: Path, arrays: Mapping[str, Any]) -> None:
    """Writes arrays into a folder that does not exist; all processes together.

    Raises:
      OSError: if the disk does not take them.
    """
    with _quiet_orbax() as ocp, _checkpointer(ocp) as checkpointer:
        checkpointer.save(folder, args=ocp.args.StandardSave(arrays))


def read_arrays(folder: Path, wanted: Mapping[str, Any], *, strict: bool) -> dict[str, Any]:
    """Reads arrays back, onto the devices that `wanted` names.

    Args:
      folder: from `write_arrays`.
      wanted: shapes, dtypes and shardings by name.
      strict: False cuts rows off or adds zeros at the end where shapes differ.
    """
    with _quiet_orbax() as ocp, _checkpointer(ocp) as checkpointer:
        return dict(
            checkpointer.restore(folder, args=ocp.args.StandardRestore(wanted, strict=strict))
        )


@contextlib.contextmanager
def disk_errors(target: Path) -> Iterator[None]:
    """Errors of the disk as OSError with the path: Orbax raises them as ValueError."""
    try:
        yield
    except OSError as error:
        if error.filename is None:
            error.filename = str(target)
        raise
    except Exception as error:
        text = str(error)
        code = _CODE.search(text)
        if code is None and not any(sign in text for sign in _FULL):
            raise
        number = errno.ENOSPC if code is None else int(code.group(1))
        why = f"{os.strerror(number)}; the checkpoint cannot be written, earlier ones are whole"
        raise OSError(number, f"{why} ({text:.200})", str(target)) from error


def _checkpointer(ocp: Any) -> Any:
    return ocp.Checkpointer(ocp.StandardCheckpointHandler())


@contextlib.contextmanager
def _quiet_orbax() -> Iterator[Any]:
    """Imports Orbax and keeps its log lines from the terminal; its errors are still raised."""
    logger = logging.getLogger("absl")
    level = logger.level
    try:
        import orbax.checkpoint as ocp

        logger.setLevel(logging.CRITICAL)
        yield ocp
    except ImportError as error:
        raise ImportError("checkpoints need Orbax: pip install orbax-checkpoint") from error
    finally:
        logger.setLevel(level)
