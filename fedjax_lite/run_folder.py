"""The output folder of a run: one writer at a time, and checked before anything is compiled."""

from __future__ import annotations

import contextlib
import json
import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from fedjax_lite import checkpoint, distributed
from fedjax_lite.folder_lock import FolderLock
from fedjax_lite.history import check_settings

FILES = ("metrics.jsonl", "metrics.csv", "config.json")
FOLDERS = ("checkpoints", "tensorboard")


@contextlib.contextmanager
def writing(directory: Path | None, notices: list[str]) -> Iterator[None]:
    """Makes the folder and keeps other writers out of it; of several processes the first does.

    Args:
      directory: None does nothing.
      notices: gets a line where the file system has no locks.

    Raises:
      FolderInUse: (an OSError) if another run writes into it; the message says which.
      OSError: if it cannot be made or written.

    Example:
      >>> with writing(None, []):
      ...     pass
    """
    if directory is None or not distributed.is_coordinator():
        yield
        return
    _make(directory)
    lock = FolderLock(
        directory,
        what="is the output_dir of a run that is",
        remedy="wait for its end, stop it, or give another output_dir; overwrite and resume are "
        "for runs that have ended",
    )
    with lock:
        if lock.notice is not None:
            notices.append(lock.notice)
        yield


def check_directory(
    directory: Path,
    settings: dict[str, Any] | None,
    resume: bool,
    overwrite: bool,
    may_change: Sequence[str],
    notices: list[str],
) -> bool:
    """Checks the folder before anything is compiled; True where there is a state to resume."""
    _make(directory)
    for names, is_right, kind in ((FILES, Path.is_file, "file"), (FOLDERS, Path.is_dir, "folder")):
        for name in names:
            path = directory / name
            if (path.exists() or path.is_symlink()) and not is_right(path):
                wrong = NotADirectoryError if kind == "folder" else IsADirectoryError
                raise wrong(
                    f"{path} must be a {kind}, which a run writes, and is not; move it away, or "
                    "give another output_dir"
                )
    with tempfile.TemporaryFile(dir=directory):  # an OSError now, not after hours of training
        pass
    names = ["metrics.jsonl", "metrics.csv", "checkpoints"] + ["config.json"] * bool(settings)
    found = [name for name in names if (directory / name).exists()]
    if found and not (resume or overwrite):
        raise FileExistsError(
            f"{directory} already holds a run ({', '.join(found)}); give resume=True to go on "
            "with it, overwrite=True to replace it, or another output_dir"
        )
    if not resume:
        return False
    path = directory / "config.json"
    if settings is not None and path.exists():  # also where it starts anew in the files of a run
        notices += check_settings(json.loads(path.read_text()), settings, may_change=may_change)
    if not checkpoint.steps(directory / "checkpoints"):
        notices.append(f"nothing to resume in {directory}: starting anew")
        return False
    return True


def _make(directory: Path) -> None:
    if directory.exists() and not directory.is_dir():
        raise NotADirectoryError(
            f"output_dir must be a folder to write to, got the file {directory}"
        )
    directory.mkdir(parents=True, exist_ok=True)
