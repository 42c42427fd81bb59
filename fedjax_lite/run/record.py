"""Record: what a run leaves in its folder, and at which round that was whole."""

from __future__ import annotations

import contextlib
from collections.abc import Sequence
from pathlib import Path
from types import TracebackType
from typing import Any

from fedjax_lite.hosts import distributed
from fedjax_lite.run import checkpoint
from fedjax_lite.run.files import save_json_atomic
from fedjax_lite.run.history import History, Row
from fedjax_lite.run.resuming import texts_of
from fedjax_lite.types import RoundState


class Record:
    """The history, ``config.json`` and the checkpoints of one run; rows only, without a folder.

    It replaces what an earlier run has left, unless it goes on with that run. Left as a context
    it closes the files; an error of the disk is told from where the run can go on.

    Args:
      folder: the run's, locked and checked; None keeps rows in memory.
      settings: see `make_settings`.
      rows: to go on from.
      restored: the round of the checkpoint that the run goes on from; None: it begins.
      tensorboard: also write event files.
      keep: how many checkpoints stay.
      num_clients: `N`, where known.

    Raises:
      OSError: if a file cannot be written; also from the methods.

    Example:
      >>> with Record(None, {"config": None}) as record:
      ...     record.add([{"round": 1, "train_loss": 0.5}])
      ...     record.rows[-1]["train_loss"], record.saved
      (0.5, -1)
    """

    def __init__(
        self,
        folder: Path | None,
        settings: dict[str, Any],
        *,
        rows: Sequence[Row] = (),
        restored: int | None = None,
        tensorboard: bool = False,
        keep: int = 2,
        num_clients: int | None = None,
    ) -> None:
        self._folder, self._settings = folder, settings
        self._keep, self._num_clients = keep, num_clients
        self.saved = -1 if restored is None else restored
        """The round of the last checkpoint; -1: none."""
        writes = distributed.is_coordinator()
        if folder is not None and restored is None and writes:
            checkpoint.clear(folder / "checkpoints")
        self._history = History(
            folder,
            rows=rows,
            resumed=restored is not None,
            tensorboard=tensorboard,
            read_only=not writes,
        )
        if folder is not None and settings["config"] is not None and writes:
            save_json_atomic(folder / "config.json", settings)

    @property
    def rows(self) -> list[Row]:
        """All so far."""
        return self._history.rows

    def add(self, rows: Sequence[Row]) -> None:
        """Writes new rows down."""
        self._history.append(rows)

    def save(self, state: RoundState, done: int) -> None:
        """Saves the state after round `done`, with the rows up to it."""
        if self._folder is not None:
            self._history.sync()
            checkpoint.save(
                self._folder / "checkpoints",
                state,
                step=done,
                keep=self._keep,
                num_clients=self._num_clients,
                texts=texts_of(self._settings, self._history.text()),
            )
            self.saved = done

    def __enter__(self) -> Record:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        if error is None:
            self._history.close()
            return
        with contextlib.suppress(OSError):  # not in place of what is being raised
            self._history.close()
        if isinstance(error, OSError) and self.saved >= 0:
            error.add_note(f"round {self.saved} is saved: resume=True goes on from there")
