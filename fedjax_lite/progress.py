"""Progress of a run: a bar on a terminal or in a notebook, a few plain lines elsewhere."""

from __future__ import annotations

import contextlib
import math
import sys
import time
from collections.abc import Mapping
from typing import Any

_MOST_LINES = 40


class Progress:
    """Shows how far a run is; whatever goes wrong in showing never reaches the run.

    Args:
      total: rounds at the end of the run.
      start: rounds done when it begins.
      enabled: False shows nothing but notices.
      notices: False hides those, too, as all processes but one do.

    Example:
      >>> progress = Progress(4, enabled=True)
      >>> progress.update(4, {"train_loss": 0.25}, evaluated=True)  # doctest: +ELLIPSIS
      round 4/4  train_loss 0.2500  ...
      >>> progress.close()
    """

    def __init__(
        self, total: int, start: int = 0, *, enabled: bool = True, notices: bool = True
    ) -> None:
        self._total, self._start, self._enabled = total, start, enabled
        self._notices = notices
        self._metrics: dict[str, float] = {}
        self._clock: tuple[float, int] | None = None  # set after the first call: compiling is over
        self._began = time.perf_counter()
        self._last_line: int | None = None
        self._bar: Any = None
        self._task: Any = None
        if enabled:
            with contextlib.suppress(Exception):
                self._start_bar()

    def update(self, round_: int, metrics: Mapping[str, Any], *, evaluated: bool = False) -> None:
        """Shows the state after a round.

        Args:
          round_: rounds done.
          metrics: the round's row; those named loss or accuracy are shown.
          evaluated: whether the row holds an evaluation; plain lines are printed only then.
        """
        if self._enabled:
            with contextlib.suppress(Exception):
                self._show(round_, metrics, evaluated)

    def notice(self, text: str) -> None:
        """Prints a message to standard error, also when progress is switched off."""
        if not self._notices:
            return
        with contextlib.suppress(Exception):
            print(text, file=sys.stderr, flush=True)

    def close(self) -> None:
        """Leaves the bar as it is and gives the terminal back."""
        with contextlib.suppress(Exception):
            if self._bar is not None:
                self._bar.stop()

    def _start_bar(self) -> None:
        from rich.console import Console

        console = Console()
        if console.is_jupyter:
            import ipywidgets  # noqa: F401  # rich cannot redraw in a notebook without it
        elif not console.is_terminal:
            return
        from rich.progress import BarColumn, TextColumn
        from rich.progress import Progress as Bar

        bar = Bar(
            TextColumn("round {task.completed:.0f}/{task.total:.0f}"),
            BarColumn(bar_width=20),
            TextColumn("{task.fields[text]}"),
            console=console,
        )
        self._task = bar.add_task("", total=self._total, completed=self._start, text="compiling")
        bar.start()
        self._bar = bar

    def _show(self, round_: int, metrics: Mapping[str, Any], evaluated: bool) -> None:
        shown = {
            name: float(value)
            for name, value in metrics.items()
            if name.endswith(("loss", "accuracy")) and isinstance(value, int | float)
        }
        self._metrics |= shown
        pace = self._pace(round_)
        if self._bar is not None:
            text = "  ".join([*(f"{n} {v:.4f}" for n, v in self._metrics.items()), *pace])
            self._bar.update(self._task, completed=round_, text=text)
            return
        last, total = self._last_line, self._total
        due = last is None or round_ - last >= (total - self._start) / _MOST_LINES
        if (evaluated and due) or round_ >= total:
            self._last_line = round_
            width = len(str(total))
            parts = [
                f"round {round_:{width}d}/{total}",
                *(f"{n} {v:.4f}" for n, v in shown.items()),
            ]
            print("  ".join([*parts, *pace]), flush=True)

    def _pace(self, round_: int) -> list[str]:
        now = time.perf_counter()
        if round_ <= self._start:
            return []
        if self._clock is None:
            self._clock = (now, round_)
            return [f"{format_seconds(now - self._began)} so far"]
        since, first = self._clock
        rate = (round_ - first) / max(now - since, 1e-9)
        if rate <= 0:
            return []
        left = format_seconds((self._total - round_) / rate)
        return [f"{rate:.3g} rounds/s", f"{left} left"]


def format_seconds(seconds: float) -> str:
    """A duration in words of at most two units.

    Args:
      seconds: at least 0.

    Returns:
      Text such as ``"1 h 05 min"``.

    Example:
      >>> format_seconds(12.3), format_seconds(125), format_seconds(3900)
      ('12 s', '2 min 05 s', '1 h 05 min')
    """
    if not math.isfinite(seconds):
        return "?"
    whole = round(seconds)
    if whole < 60:
        return f"{whole} s"
    if whole < 3600:
        return f"{whole // 60} min {whole % 60:02d} s"
    return f"{whole // 3600} h {whole % 3600 // 60:02d} min"
