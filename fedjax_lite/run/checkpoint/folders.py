"""The folders of steps: which there are, and how one goes without ever being half there."""

from __future__ import annotations

import contextlib
import os
import re
import shutil
import time
from pathlib import Path
from typing import Any

from fedjax_lite.checks.arguments import as_path

_STEP = re.compile(r"\d{8,}")
_LEFTOVER = re.compile(r"\d{8,}\.(saving|deleting)")


def as_folder(value: Any, name: str = "folder") -> Path:
    """The absolute path of a folder that checkpoints go to, with ``~`` expanded.

    Raises:
      TypeError, ValueError: if it is no path, or no text in UTF-8, which arrays need.

    Example:
      >>> as_folder("/runs/a").as_posix()
      '/runs/a'
    """
    path = as_path(value, name).absolute()
    try:
        str(path).encode()
    except UnicodeEncodeError as error:
        raise ValueError(
            f"{name} must be a name in UTF-8, got {str(path)!r}; rename the folder"
        ) from error
    return path


def steps(folder: str | os.PathLike[str]) -> list[int]:
    """The steps saved completely in a folder, in rising order; empty where it does not exist.

    Args:
      folder: as handed to `save`.

    Returns:
      Step numbers.

    Example:
      >>> steps("/nowhere")
      []
    """
    folder = as_folder(folder)
    if not folder.is_dir():
        return []
    entries = (entry for entry in folder.iterdir() if _STEP.fullmatch(entry.name))
    return sorted(
        int(entry.name)
        for entry in entries
        if entry.name == f"{int(entry.name):08d}" and entry.is_dir()
    )


def clear(folder: str | os.PathLike[str]) -> None:
    """Deletes all steps of a folder, and nothing that is not a step.

    Args:
      folder: as handed to `save`.

    Example:
      >>> clear("/nowhere")
    """
    for step in steps(folder):
        delete(as_folder(folder) / f"{step:08d}")


def set_aside(folder: Path, step: int) -> Path:
    """Renames a damaged step, so that it is neither read nor counted, and can be looked at.

    Example:
      >>> import tempfile
      >>> with tempfile.TemporaryDirectory() as folder:
      ...     Path(folder, "00000004").mkdir()
      ...     set_aside(Path(folder), 4).name
      '00000004.damaged'
    """
    place = folder / f"{step:08d}"
    aside = place.with_name(f"{place.name}.damaged")
    number = 2
    while aside.exists():
        aside = place.with_name(f"{place.name}.damaged-{number}")
        number += 1
    os.replace(place, aside)
    return aside


def clear_leftovers(folder: Path) -> None:
    """Deletes what a killed process left of steps."""
    for entry in list(folder.iterdir()):
        if _LEFTOVER.fullmatch(entry.name):
            remove(entry)


def delete(folder: Path) -> None:
    """Takes the step's name away first, so that a kill never leaves half a step under it."""
    if folder.exists():
        doomed = folder.with_name(folder.name + ".deleting")
        remove(doomed)
        os.replace(folder, doomed)
        remove(doomed)


def discard(path: Path) -> None:
    """Deletes what a failed save left, as far as it goes: the failure itself is what is told.

    Threads of a writer that failed may still make files there; the next save removes what stays.
    """
    for _ in range(3):
        with contextlib.suppress(OSError):
            return remove(path)
        time.sleep(0.05)


def remove(path: Path) -> None:
    """Deletes a folder, a file or a link; nothing where there is none."""
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)
