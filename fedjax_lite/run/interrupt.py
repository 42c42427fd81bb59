"""Interrupt: a signal that ends a run between two compiled calls, not inside one."""

from __future__ import annotations

import os
import signal
import sys
import threading
from types import FrameType
from typing import Any


class Interrupt:
    """Notes a signal instead of dying of it, in the main thread only."""

    def __init__(self) -> None:
        self.number = 0
        self._old: dict[int, Any] = {}

    @property
    def name(self) -> str:
        """The signal's name, such as SIGINT."""
        return signal.Signals(self.number).name

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
