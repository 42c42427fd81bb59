"""A signal that ends a run between two compiled calls, not inside one, and what is told then."""

from __future__ import annotations

import os
import signal
import sys
import threading
from pathlib import Path
from types import FrameType
from typing import Any

from fedjax_lite.hosts import distributed
from fedjax_lite.types import RoundState


class Interrupt:
    """Notes a signal instead of dying of it, in the main thread only."""

    def __init__(self) -> None:
        self.number = 0
        self._old: dict[int, Any] = {}

    def agreed(self) -> int:
        """The signal that one of the processes got, in all of them; 0: none.

        All have to ask alike, or some would wait for others for ever.
        """
        return distributed.agree(self.number)

    def __enter__(self) -> Interrupt:
        if threading.current_thread() is threading.main_thread():
            for number in (signal.SIGINT, signal.SIGTERM):
                old = signal.getsignal(number)
                if old is not None:  # None: installed by C code, which we could not restore
                    self._old[number] = old
                    signal.signal(number, self._note)
        return self

    def __exit__(self, *_: object) -> None:
        for number, old in self._old.items():
            signal.signal(number, old)

    def _note(self, number: int, frame: FrameType | None) -> None:
        self.number = self.number or number
        # A notebook's kernel must survive a second Ctrl-C, a script must not survive it.
        again = signal.default_int_handler if "IPython" in sys.modules else signal.SIG_DFL
        signal.signal(signal.SIGINT, again)
        text = f"{signal.Signals(number).name}: finishing the running rounds (Ctrl-C again kills)\n"
        os.write(2, text.encode())


class RunInterrupted(KeyboardInterrupt):
    """Ctrl-C during `run`: carries what had been reached.

    Attributes:
      state: the state after the last complete call.
      history: its rows.
    """

    def __init__(self, message: str, state: RoundState, history: list[dict[str, Any]]) -> None:
        super().__init__(message)
        self.state, self.history = state, history


def stopped(number: int, done: int, num_rounds: int, folder: Path | None) -> str:
    """What is told of a run that a signal has ended, and how to go on with it.

    Example:
      >>> stopped(signal.SIGINT, 20, 40, Path("out")).partition("; ")[0]
      'stopped by SIGINT after round 20 of 40'
    """
    where = "nothing is on disk: give output_dir to keep checkpoints"
    if folder is not None:
        where = f"to go on: the same call or command with resume, output_dir={folder}"
    return f"stopped by {signal.Signals(number).name} after round {done} of {num_rounds}; {where}"
