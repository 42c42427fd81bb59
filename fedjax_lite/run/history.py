"""The record of a run: one row a round in metrics.jsonl, metrics.csv and TensorBoard files.

Numbers are written by `repr`, so they read back bit for bit. JSON has no NaN and no infinity:
both are written as `null` and read back as NaN (epsilon: as infinity); CSV has `nan` and `inf` as
they are.
"""

from __future__ import annotations

import csv
import io
import json
import math
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, TypeAlias

from fedjax_lite.checks.arguments import as_path
from fedjax_lite.run.files import finite, naming, save_text_atomic

Row: TypeAlias = dict[str, Any]
"""``{"round": 10, "train_loss": 0.5, "test_accuracy": 0.8, "seconds": 3.1}``."""


class History:
    """Rows of a run, in memory and, with a folder, on disk.

    Rows are appended to ``metrics.jsonl`` and flushed at once; ``metrics.csv`` (the same rows, the
    union of their columns) is replaced as a whole by `sync`. A file is never read back: the rows
    that a resumed run goes on from are those that its checkpoint kept (`text`).

    Args:
      folder: where the files go; None keeps the rows in memory only.
      rows: to go on from; the file is made to hold them and nothing else.
      resumed: whether this goes on with a run, so that TensorBoard's files stay.
      tensorboard: also write event files under ``tensorboard/``.
      read_only: write nothing, as another process does.

    Raises:
      ImportError: if `tensorboard` is asked for and tensorboardX is not installed.
      OSError: if a file cannot be written, with its path; also from `append` and `sync`.

    Example:
      >>> history = History(None)
      >>> history.append([{"round": 1, "train_loss": 0.5}])
      >>> history.rows[-1]["train_loss"]
      0.5
    """

    def __init__(
        self,
        folder: str | os.PathLike[str] | None,
        *,
        rows: Sequence[Row] = (),
        resumed: bool = False,
        tensorboard: bool = False,
        read_only: bool = False,
    ) -> None:
        self.rows: list[Row] = list(rows)
        self._lines: list[str] = []
        self._folder = None if folder is None or read_only else Path(folder)
        self._file: io.FileIO | None = None
        self._events: Any = None
        if self._folder is None:
            return
        if tensorboard:
            last = (self.rows[-1]["round"] if self.rows else 0) if resumed else None
            self._events = _event_writer(self._folder / "tensorboard", last)
        self._lines = [to_line(row) for row in self.rows]
        path = self._folder / "metrics.jsonl"
        save_text_atomic(path, self.text())
        # Without a buffer: what a full disk did not take is not written again at the end.
        self._file = open(path, "ab", buffering=0)  # noqa: SIM115

    def append(self, rows: Sequence[Row]) -> None:
        """Adds rows and writes them to the file."""
        self.rows.extend(rows)
        if self._file is not None and self._folder is not None:
            lines = [to_line(row) for row in rows]
            self._lines += lines
            with naming(self._folder / "metrics.jsonl"):
                view = memoryview("".join(lines).encode())
                while view:
                    view = view[self._file.write(view) :]
        if self._events is not None:
            for row in rows:
                for name, value in row.items():
                    if name != "round" and isinstance(value, int | float):
                        self._events.add_scalar(name, value, row["round"])

    def text(self) -> str:
        """All rows as lines, for a checkpoint to keep; empty without a folder to write to."""
        return "".join(self._lines)

    def sync(self) -> None:
        """Puts the rows on the disk itself, before a checkpoint that relies on them."""
        if self._file is not None and self._folder is not None:
            with naming(self._folder / "metrics.jsonl"):
                os.fsync(self._file.fileno())
            save_text_atomic(self._folder / "metrics.csv", to_csv(self.rows))
        if self._events is not None:
            self._events.flush()

    def close(self) -> None:
        """Syncs and closes the files; rows stay in memory."""
        try:
            self.sync()
        finally:
            if self._file is not None:
                self._file.close()
                self._file = None
            if self._events is not None:
                self._events.close()
                self._events = None


def to_line(row: Mapping[str, Any]) -> str:
    r"""One row as a line of strict JSON.

    Args:
      row: numbers, strings, booleans or lists of them.

    Returns:
      The line with its newline; NaN and infinities are null.

    Example:
      >>> to_line({"round": 1, "train_loss": float("nan")})
      '{"round": 1, "train_loss": null}\n'
    """
    return json.dumps(finite(dict(row)), allow_nan=False) + "\n"


def read_rows(path: str | os.PathLike[str]) -> list[Row]:
    """Reads metrics.jsonl; null becomes NaN (infinity: epsilon), a torn last line is left out.

    Args:
      path: the file; no rows where it does not exist.

    Returns:
      The rows, oldest first.

    Raises:
      ValueError: if a line that is not the last one is damaged, or it is not a file.

    Example:
      >>> read_rows("/nowhere/metrics.jsonl")
      []
    """
    path = as_path(path, "path")
    if not path.exists():
        return []
    return parse_rows(path.read_text(encoding="utf-8", errors="replace"), path)


def parse_rows(text: str, path: Path) -> list[Row]:
    r"""The rows of a text, as `read_rows` reads them from a file.

    Args:
      text: what the file holds.
      path: for the message.

    Raises:
      ValueError: if a line that is not the last one is damaged.

    Example:
      >>> parse_rows('{"round": 1, "loss": null}\n{"rou', Path("metrics.jsonl"))
      [{'round': 1, 'loss': nan}]
    """
    lines = text.split("\n")  # not splitlines, which also splits within strings
    lines = [line + "\n" for line in lines[:-1]] + [lines[-1]] * bool(lines[-1])
    rows: list[Row] = []
    for number, line in enumerate(lines, start=1):
        try:
            row = json.loads(line)
            if not line.endswith("\n") or not isinstance(row, dict):
                raise ValueError("not a complete row")
            if not isinstance(row.get("round"), int):
                raise ValueError("not a row of a round")
        except (ValueError, RecursionError) as error:
            if number == len(lines):
                break
            raise ValueError(f"line {number} of {path} is damaged: {line[:80]!r}") from error
        rows.append({n: _lost(n) if value is None else value for n, value in row.items()})
    return rows


def _lost(name: str) -> float:
    """What a null was: an epsilon is never NaN, but infinite without noise."""
    return math.inf if name.startswith("epsilon") else math.nan


def to_csv(rows: Sequence[Mapping[str, Any]]) -> str:
    """Rows as CSV under the union of their columns, in order of first appearance.

    Args:
      rows: as `History.rows`; a row without a column leaves its cell empty.

    Returns:
      The text, lines ended by a newline.

    Example:
      >>> print(to_csv([{"round": 0, "test_loss": 2.5}, {"round": 1, "train_loss": 0.1}]))
      round,test_loss,train_loss
      0,2.5,
      1,,0.1
      <BLANKLINE>
    """
    columns = list(dict.fromkeys(name for row in rows for name in row))
    text = io.StringIO()
    writer = csv.DictWriter(text, columns, restval="", lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    return text.getvalue()


def _event_writer(folder: Path, resume_round: int | None) -> Any:
    try:
        from tensorboardX import SummaryWriter
    except ImportError as error:
        raise ImportError(
            "tensorboard=True needs tensorboardX: pip install 'fedjax_lite[tensorboard]'"
        ) from error
    if resume_round is None:
        for old in folder.glob("events.out.tfevents.*"):
            old.unlink()
        return SummaryWriter(str(folder))
    return SummaryWriter(str(folder), purge_step=resume_round + 1)
