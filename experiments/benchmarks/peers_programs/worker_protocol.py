"""How a worker process talks to `peers.py`: JSON lines in, JSON lines out. Needs numpy alone.

Commands are ``{"rounds": k}`` (answer: seconds), ``{"weights": path}`` (the server's model is
written there) and the end of input, which ends the worker. What a framework prints goes to the
worker's log instead of the answers.
"""

from __future__ import annotations

import dataclasses
import json
import os
import sys
import time
from collections.abc import Callable, Iterator
from importlib import metadata
from pathlib import Path
from typing import Any

import numpy as np


@dataclasses.dataclass(frozen=True)
class Task:
    """What to train: the folder that `exports.write` made, memory-mapped."""

    folder: Path
    settings: dict[str, Any]
    """``net, batch_size, epochs, learning_rate, weighting, num_threads, variant``."""

    def array(self, name: str) -> np.ndarray:
        """An exported array; mapped copy-on-write, so that nothing is read before it is used."""
        return np.load(self.folder / f"{name}.npy", mmap_mode="c")

    def weights(self) -> dict[str, np.ndarray]:
        """The initial model, by names such as ``conv1/kernel``."""
        with np.load(self.folder / "weights.npz") as file:
            return dict(file)

    def __getattr__(self, name: str) -> Any:
        try:
            return self.settings[name]
        except KeyError:
            raise AttributeError(name) from None


class Answers:
    """Where answers go."""

    def __init__(self) -> None:
        # The framework's own prints must not mix with the answers: they go to standard error.
        self._stream = os.fdopen(os.dup(1), "w")
        os.dup2(2, 1)

    def send(self, **answer: Any) -> None:
        """Writes one line."""
        self._stream.write(json.dumps(answer) + "\n")
        self._stream.flush()


def begin() -> tuple[Task, Answers]:
    """The task named on the command line, and where to answer."""
    folder, variant = Path(sys.argv[1]), sys.argv[2]
    return read_task(folder, variant), Answers()


def read_task(folder: Path, variant: str = "") -> Task:
    """The task in a folder of `exports.write`."""
    settings = json.loads((folder / "task.json").read_text(encoding="utf-8"))
    return Task(folder, {**settings, "variant": variant})


def commands() -> Iterator[dict[str, Any]]:
    """The commands as they come; ends with the input."""
    for line in iter(sys.stdin.readline, ""):
        yield json.loads(line)


def deal(loads: list[int], num_workers: int) -> list[list[int]]:
    """Places dealt to workers, the largest first, each to the one with the least load so far.

    Example:
      >>> deal([1, 5, 3, 2], 2)
      [[1], [2, 3, 0]]
    """
    hands: list[list[int]] = [[] for _ in range(num_workers)]
    totals = [0] * num_workers
    for place in sorted(range(len(loads)), key=lambda place: -loads[place]):
        worker = totals.index(min(totals))
        hands[worker].append(place)
        totals[worker] += loads[place]
    return hands


def workers_and_threads(variant: str) -> tuple[int, int]:
    """Processes or threads that train side by side, and PyTorch's threads in each.

    Example:
      >>> workers_and_threads("2x1"), workers_and_threads("threads-2x1"), workers_and_threads("2")
      ((2, 1), (2, 1), (1, 2))
    """
    workers, _, threads = variant.rpartition("-")[2].rpartition("x")
    return int(workers or 1), int(threads)


def serve(
    answers: Answers,
    run_rounds: Callable[[int], None],
    weights: Callable[[], dict[str, np.ndarray]],
    packages: tuple[str, ...],
    warm_up: Callable[[], None] = lambda: None,
) -> None:
    """Answers commands until the input ends.

    Args:
      answers: of `begin`.
      run_rounds: trains that many further rounds, until the server's model is there.
      weights: the server's model by the names of the export.
      packages: whose versions the first answer carries.
      warm_up: called once, untimed, after the first rounds were answered.
    """
    is_warm = False
    answers.send(versions={name: metadata.version(name) for name in packages})
    for command in commands():
        if "rounds" in command:
            began = time.perf_counter()
            run_rounds(command["rounds"])
            answers.send(seconds=time.perf_counter() - began)
            if not is_warm:
                warm_up()
                is_warm = True
        else:
            np.savez(command["weights"], **weights())  # pyright: ignore[reportArgumentType]
            answers.send(written=command["weights"])
