"""The output folder of a run: one writer at a time, and checked before anything is compiled."""

from __future__ import annotations

import contextlib
import json
import os
import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from fedjax_lite.hosts import distributed
from fedjax_lite.run import checkpoint
from fedjax_lite.run.folder_lock import FolderLock
from fedjax_lite.run.history import Row, parse_rows, read_rows
from fedjax_lite.run.settings import check_settings, read_settings
from fedjax_lite.types import RoundState

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
        what="a run of ",
        remedy="wait for its end, stop it, or give another output_dir; overwrite and resume are "
        "for runs that have ended",
    )
    with lock:
        if lock.notice is not None:
            notices.append(lock.notice)
        yield


def check_directory(
    directory: Path,
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
    names = ["metrics.jsonl", "metrics.csv", "checkpoints"]
    names += ["config.json"] * (settings["config"] is not None)
    found = [name for name in names if (directory / name).exists()]
    if found and not (resume or overwrite):
        raise FileExistsError(
            f"{directory} already holds a run ({', '.join(found)}); give resume=True to go on "
            "with it, overwrite=True to replace it, or another output_dir"
        )
    if not resume:
        return False
    path = directory / "config.json"
    if settings["config"] is not None and path.exists():  # also where it starts anew in its files
        notices += check_settings(read_settings(path), settings, may_change=may_change)
    if not checkpoint.steps(directory / "checkpoints"):
        _check_replaceable(directory / "metrics.jsonl", first_saved)
        notices.append(f"nothing to resume in {directory}: starting anew")
        return False
    return True


def texts_of(settings: dict[str, Any], history: str) -> dict[str, str]:
    """What a checkpoint of a run keeps beside the state: who ran, and all rows so far.

    Example:
      >>> sorted(texts_of({"config": None, "key": [0, 1], "versions": {}}, ""))
      ['history.jsonl', 'run.json']
    """
    return {"history.jsonl": history, "run.json": json.dumps(settings) + "\n"}


def resume_from(
    directory: Path,
    state: RoundState,
    settings: dict[str, Any],
    may_change: Sequence[str],
    num_clients: int | None,
    notices: list[str],
) -> tuple[RoundState, list[Row]]:
    """The newest whole state of a folder and the rows that belong to it.

    Rows come from the checkpoint, with their totals; ``metrics.jsonl`` is compared with them and
    what differs is said. Newer steps that are damaged are renamed, so that they are not in the way.

    Args:
      directory: of the run.
      state: gives the structure.
      settings: of this run, compared with those that the checkpoint kept.
      may_change: keys of the config that may differ.
      num_clients: `N`.
      notices: what to tell the user is added.

    Raises:
      CheckpointDamaged: (a ValueError) if no checkpoint is whole.
      ValueError: if the state or the settings do not fit, or an earlier version's checkpoint kept
        no rows and ``metrics.jsonl`` does not hold them.
    """
    loaded = checkpoint.load(directory / "checkpoints", state, num_clients=num_clients)
    notices += loaded.notices
    path, done = directory / "metrics.jsonl", int(loaded.state.round)
    if "run.json" in loaded.texts:
        kept = json.loads(loaded.texts["run.json"])
        if (directory / "config.json").exists():
            kept["versions"] = {}  # said already; the rest tells whether the two are of one run
        notices += check_settings(kept, settings, may_change=may_change)
    if "history.jsonl" in loaded.texts:
        text = loaded.texts["history.jsonl"]
        rows = parse_rows(text, path)
        found = path.read_text(encoding="utf-8", errors="replace") if path.exists() else None
        if found is None or not found.startswith(text):
            what = "was missing" if found is None else "was not what the run had written"
            notices.append(f"{path} {what}: its {len(rows)} rows are those of the checkpoint")
    else:
        rows = _earlier_rows(path, done)
    if distributed.is_coordinator():
        for step in loaded.damaged:
            aside = checkpoint.set_aside(directory / "checkpoints", step)
            notices.append(f"the damaged checkpoint of step {step} is kept as {aside.name}")
    return loaded.state, rows


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


def _earlier_rows(path: Path, done: int) -> list[Row]:
    """Rows for a checkpoint that kept none: those of the file, if no round is lacking."""
    rows = [row for row in read_rows(path) if row["round"] <= done]
    rounds = [row["round"] for row in rows]
    if done and (not rounds or rounds != list(range(rounds[0], done + 1))):
        raise ValueError(
            f"{path} does not hold one row for each round up to {done}, and the checkpoint of an "
            "earlier version has no copy of them: totals would be wrong. Put the file back, or go "
            "on in another output_dir from fl.checkpoint.restore(...)"
        )
    return rows


def _make(directory: Path) -> None:
    if os.path.exists(directory) and not directory.is_dir():
        raise NotADirectoryError(
            f"output_dir must be a folder to write to, got the file {directory}"
        )
    try:
        directory.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        why = f"output_dir cannot be made ({error.strerror}); give a folder that you may write to"
        raise OSError(error.errno, why, str(directory)) from error
