"""Where a run begins: at the state it was given, or at the newest checkpoint of its folder."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

from fedjax_lite.hosts import distributed
from fedjax_lite.run import checkpoint
from fedjax_lite.run.folder import check_folder
from fedjax_lite.run.history import Row, parse_rows, read_rows
from fedjax_lite.run.settings import check_settings
from fedjax_lite.types import RoundState


class Start(NamedTuple):
    """Where a run begins."""

    state: RoundState
    rows: list[Row]
    """Of the rounds before, where they are known."""
    restored: bool
    """From a checkpoint."""


def start_of(
    folder: Path | None,
    state: RoundState,
    settings: dict[str, Any],
    *,
    resume: bool,
    overwrite: bool,
    may_change: Sequence[str],
    first_saved: int,
    num_clients: int | None,
    notices: list[str],
) -> Start:
    """Checks the folder, and takes from it what a run that is resumed goes on from.

    Args:
      folder: of the run; None: there is nothing to check.
      state: given; in a resumed run its structure only.
      settings: of this run.
      resume: go on, where there is a checkpoint.
      overwrite: an earlier run may be replaced.
      may_change: keys of the config that may differ from those of the earlier run.
      first_saved: see `check_folder`.
      num_clients: `N`, where known.
      notices: what to tell the user is added.

    Raises:
      OSError, ValueError: as `check_folder` and `resume_from` say; in several processes also where
        not all of them see the same folder.

    Example:
      >>> start_of(None, None, {}, resume=False, overwrite=False, may_change=(), first_saved=10,
      ...          num_clients=None, notices=[])
      Start(state=None, rows=[], restored=False)
    """
    if folder is None:
        return Start(state, [], False)
    saved = check_folder(folder, settings, resume, overwrite, may_change, notices, first_saved)
    # Also a barrier: process 0 changes the folder from here on.
    if distributed.agree(saved) != saved or -distributed.agree(-saved) != saved:
        raise ValueError(
            f"output_dir must be a folder that all processes see, but {folder} holds a "
            "checkpoint for some of them only"
        )
    if not saved:
        return Start(state, [], False)
    state, rows = resume_from(folder, state, settings, may_change, num_clients, notices)
    unknown = "; without config= settings are not compared" if settings["config"] is None else ""
    notices.append(f"resuming {folder} after round {int(state.round)}{unknown}")
    return Start(state, rows, True)


def texts_of(settings: dict[str, Any], history: str) -> dict[str, str]:
    """What a checkpoint of a run keeps beside the state: who ran, and all rows so far.

    Example:
      >>> sorted(texts_of({"config": None, "key": [0, 1], "versions": {}}, ""))
      ['history.jsonl', 'run.json']
    """
    return {"history.jsonl": history, "run.json": json.dumps(settings) + "\n"}


def resume_from(
    folder: Path,
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
      folder: of the run.
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
    loaded = checkpoint.load(folder / "checkpoints", state, num_clients=num_clients)
    notices += loaded.notices
    path, done = folder / "metrics.jsonl", int(loaded.state.round)
    if "run.json" in loaded.texts:
        kept = json.loads(loaded.texts["run.json"])
        if (folder / "config.json").exists():
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
            aside = checkpoint.set_aside(folder / "checkpoints", step)
            notices.append(f"the damaged checkpoint of step {step} is kept as {aside.name}")
    return loaded.state, rows


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
