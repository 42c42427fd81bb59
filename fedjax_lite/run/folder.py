"""The output folder of a run: one writer at a time, and checked before anything is compiled."""

from __future__ import annotations

import contextlib
import os
import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from fedjax_lite.hosts import distributed
from fedjax_lite.run import checkpoint
from fedjax_lite.run.folder_lock import FolderLock
from fedjax_lite.run.history import read_rows
from fedjax_lite.run.settings import check_settings, read_settings

FILES = ("metrics.jsonl", "metrics.csv", "config.json")
FOLDERS = ("checkpoints", "tensorboard")


@contextlib.contextmanager
def writing(folder: Path | None, notices: list[str]) -> Iterator[None]:
    """Makes the folder and keeps other writers out of it; of several processes the first does.

    Args:
      folder: None does nothing.
      notices: gets a line where the file system has no locks.

    Raises:
      FolderInUse: (an OSError) if another run writes into it; the message says which.
      OSError: if it cannot be made or written.

    Example:
      >>> with writing(None, []):
      ...     pass
    """
    if folder is None or not distributed.is_coordinator():
        yield
        return
    _make(folder)
    lock = FolderLock(
        folder,
        what="a run of ",
        remedy="wait for its end, stop it, or give another output_dir; overwrite and resume are "
        "for runs that have ended",
    )
    with lock:
        if lock.notice is not None:
            notices.append(lock.notice)
        yield


def check_folder(
    folder: Path,
    settings: dict[str, Any],
    resume: bool,
    overwrite: bool,
    may_change: Sequence[str],
    notices: list[str],
    first_saved: int,
) -> bool:
    """Checks the folder before anything is compiled; True where there is a state to resume.

    Rows of rounds after `first_saved`, where this run would have its first checkpoint, are of a run
    whose checkpoints were lost: it is not replaced by one that starts anew.
    """
    _make(folder)
    for names, is_right, kind in ((FILES, Path.is_file, "file"), (FOLDERS, Path.is_dir, "folder")):
        for name in names:
            path = folder / name
            if (path.exists() or path.is_symlink()) and not is_right(path):
                wrong = NotADirectoryError if kind == "folder" else IsADirectoryError
                raise wrong(
                    f"{path} must be a {kind}, which a run writes, and is not; move it away, or "
                    "give another output_dir"
                )
    with tempfile.TemporaryFile(dir=folder):  # an OSError now, not after hours of training
        pass
    names = ["metrics.jsonl", "metrics.csv", "checkpoints"]
    names += ["config.json"] * (settings["config"] is not None)
    found = [name for name in names if (folder / name).exists()]
    if found and not (resume or overwrite):
        raise FileExistsError(
            f"{folder} already holds a run ({', '.join(found)}); give resume=True to go on "
            "with it, overwrite=True to replace it, or another output_dir"
        )
    if not resume:
        return False
    path = folder / "config.json"
    if settings["config"] is not None and path.exists():  # also where it starts anew in its files
        notices += check_settings(read_settings(path), settings, may_change=may_change)
    if not checkpoint.steps(folder / "checkpoints"):
        _check_replaceable(folder / "metrics.jsonl", first_saved)
        notices.append(f"nothing to resume in {folder}: starting anew")
        return False
    return True


def _check_replaceable(path: Path, first_saved: int) -> None:
    """Raises where the rows are of a run that had checkpoints; a killed one may have had none."""
    try:
        rows = read_rows(path)
    except ValueError as error:
        what = str(error)
    else:
        last = max((row["round"] for row in rows), default=0)
        if last <= first_saved:
            return
        what = f"{path} holds rows up to round {last}"
    raise FileExistsError(
        f"{what}, and no checkpoint is in {path.parent / 'checkpoints'}, so that there is nothing "
        "to go on from: put the checkpoints back, or give overwrite=True in place of resume, "
        "which replaces the run, or another output_dir"
    )


def _make(folder: Path) -> None:
    if os.path.exists(folder) and not folder.is_dir():
        raise NotADirectoryError(f"output_dir must be a folder to write to, got the file {folder}")
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        why = f"output_dir cannot be made ({error.strerror}); give a folder that you may write to"
        raise OSError(error.errno, why, str(folder)) from error
