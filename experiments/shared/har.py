"""UCI HAR as experiments take it: all windows, their statistics, and a split in time."""

from __future__ import annotations

from pathlib import Path
from typing import NamedTuple

import numpy as np

import fedjax_lite as fl

NUM_PEOPLE = 30
NUM_ACTIVITIES = 6
FOLDS = 3
"""Blocks of time by which settings are chosen."""


def recordings(data_dir: Path | None = None) -> dict[str, np.ndarray]:
    """Everybody's windows in order of time: the published train and test parts, which are people.

    Args:
      data_dir: where `fedjax_lite.data.load` looks first.

    Returns:
      ``x`` float32 `[E, 128, 9]`, ``y`` and ``subject`` int32 `[E]`.
    """
    parts = fl.data.load("uci_har", data_dir=data_dir)
    return {name: np.concatenate([part[name] for part in parts]) for name in parts[0]}


def statistics(x: np.ndarray) -> np.ndarray:
    """Six statistics of each of the nine signals.

    Args:
      x: windows `[E, 128, 9]`.

    Returns:
      float32 `[E, 54]`: means, standard deviations, smallest and largest values, mean absolute
      differences in time and medians.

    Example:
      >>> statistics(np.arange(128.0)[None, :, None] * np.ones(9))[0, ::9].tolist()
      [63.5, 36.94928283272231, 0.0, 127.0, 1.0, 63.5]
    """
    steps = np.abs(np.diff(x, axis=1)).mean(1)
    found = (x.mean(1), x.std(1), x.min(1), x.max(1), steps, np.median(x, 1))
    return np.concatenate(found, axis=1)


def later(y: np.ndarray, subject: np.ndarray, *, share: float = 0.25) -> np.ndarray:
    """Which windows are held out: the last of each activity of each person.

    Neighbours share half of their samples, so the window before the first of them is nobody's.

    Args:
      y: activities `[E]`, in order of time.
      subject: people `[E]`.
      share: of each person's windows of an activity.

    Returns:
      int8 `[E]`: 0 before, 1 held out, -1 left out.

    Example:
      >>> later(np.zeros(8, int), np.zeros(8, int)).tolist()
      [0, 0, 0, 0, 0, -1, 1, 1]
    """
    part = np.zeros(len(y), np.int8)
    kinds = subject.astype(np.int64) * (int(y.max(initial=0)) + 1) + y
    for kind in np.unique(kinds):
        rows = np.flatnonzero(kinds == kind)
        count = round(share * len(rows))
        if count:
            part[rows[-count:]] = 1
            part[rows[-count - 1 : -count]] = -1
    return part


class Windows(NamedTuple):
    """All windows, and what each is for."""

    x: np.ndarray
    """Statistics `[E, 54]`."""
    y: np.ndarray
    subject: np.ndarray
    test: np.ndarray
    """bool `[E]`: held out."""
    block: np.ndarray
    """int `[E]`: of what the test leaves the block in time of its activity; -1: of none."""

    def fold(self, number: int) -> tuple[np.ndarray, np.ndarray]:
        """What is trained on and what is scored, bool `[E]`, where a block is for validation."""
        scored = self.block == number
        near = np.zeros(len(self.y), bool)
        kinds = self.subject * NUM_ACTIVITIES + self.y
        for kind in np.unique(kinds):
            rows = np.flatnonzero(kinds == kind)
            mine = scored[rows]
            near[rows[1:]] |= mine[:-1]
            near[rows[:-1]] |= mine[1:]
        return (self.block >= 0) & ~scored & ~near, scored


def load(data_dir: Path | None) -> Windows:
    """UCI HAR, split in time."""
    found = recordings(data_dir)
    y, subject = found["y"], found["subject"]
    part = later(y, subject)
    block = np.full(len(y), -1)
    kinds = subject * NUM_ACTIVITIES + y
    for kind in np.unique(kinds):
        for number, rows in enumerate(
            np.array_split(np.flatnonzero((kinds == kind) & (part == 0)), FOLDS)
        ):
            block[rows] = number
    return Windows(statistics(found["x"]), y, subject, part == 1, block)
