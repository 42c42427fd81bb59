"""Progress of a run: a bar on a terminal or in a notebook, a few plain lines elsewhere."""

from __future__ import annotations

import contextlib
import html
import math
import sys
import time
from collections.abc import Mapping
from typing import Any

_MOST_LINES = 40
_SECONDS_BETWEEN_DRAWINGS = 0.1


class Progress:
    """Shows how far a run is; whatever goes wrong in showing never reaches the run.

    Args:
      total: rounds at the end of the run.
      start: rounds done when it begins.
      enabled: False shows nothing but notices.
      notices: False hides those, too, as all processes but one do.
      unit: what is counted, for the text.
      pause: least time between two plain lines, in seconds; the last one is always printed.

    Example:
      >>> progress = Progress(4, enabled=True)
      >>> progress.update(4, {"train_loss": 0.25}, evaluated=True)  # doctest: +ELLIPSIS
      round 4/4  train_loss 0.2500  ...
      >>> progress.close()
    """

    def __init__(
        self,
        total: int,
        start: int = 0,
        *,
        enabled: bool = True,
        notices: bool = True,
        unit: str = "round",
        pause: float = 0.0,
    ) -> None:
        self._pause, self._printed = pause, -math.inf
        self._total, self._start, self._enabled, self._unit = total, start, enabled, unit
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
          metrics: the round's row; those named loss or accuracy, and epsilon, are shown.
          evaluated: whether the row holds an evaluation; plain lines are printed only then.
        """
        if self._enabled:
            with contextlib.suppress(Exception):
                self._show(round_, metrics, evaluated)

    def notice(self, text: str) -> None:
        """Prints a message to standard error, also when progress is switched off.

        A notebook shows standard error in red, as an alarm, which a notice is not: there it goes
        to standard output.
        """
        if not self._notices:
            return
        with contextlib.suppress(Exception):
            print(text, file=sys.stdout if in_notebook() else sys.stderr, flush=True)

    def close(self) -> None:
        """Leaves the bar as it is and gives the terminal back."""
        with contextlib.suppress(Exception):
            if self._bar is not None:
                self._bar.stop()

    def _start_bar(self) -> None:
        if in_notebook():
            self._bar = NotebookBar(self._total, self._start, unit=self._unit)
            return
        from rich.console import Console

        console = Console()
        if not console.is_terminal:
            return
        from rich.progress import BarColumn, TextColumn
        from rich.progress import Progress as Bar

        bar = Bar(
            TextColumn(self._unit + " {task.completed:.0f}/{task.total:.0f}"),
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
            if (name.endswith(("loss", "accuracy")) or name == "epsilon")
            and isinstance(value, int | float)
        }
        self._metrics |= shown
        pace = self._pace(round_)
        if self._bar is not None:
            waiting = ["compiling"] if round_ <= self._start else []
            figures = (f"{n} {v:.4f}" for n, v in self._metrics.items())
            text = "  ".join([*figures, *pace, *waiting])
            self._bar.update(self._task, completed=round_, text=text)
            return
        last, total = self._last_line, self._total
        due = last is None or round_ - last >= (total - self._start) / _MOST_LINES
        due = due and time.perf_counter() - self._printed >= self._pause
        if (evaluated and due) or round_ >= total:
            self._last_line, self._printed = round_, time.perf_counter()
            width = len(str(total))
            parts = [
                f"{self._unit} {round_:{width}d}/{total}",
                *(f"{n} {v:.4f}" for n, v in shown.items()),
            ]
            print("  ".join([*parts, *pace]), flush=True)

    def _pace(self, round_: int) -> list[str]:
        now = time.perf_counter()
        if round_ <= self._start:
            return []
        if self._clock is None:
            self._clock = (now, round_)
            over = "so far" if round_ < self._total else "in all"
            return [f"{format_seconds(now - self._began)} {over}"]
        since, first = self._clock
        rate = (round_ - first) / max(now - since, 1e-9)
        if rate <= 0:
            return []
        if round_ >= self._total:
            return [_per_second(rate), f"{format_seconds(now - self._began)} in all"]
        left = format_seconds((self._total - round_) / rate)
        return [_per_second(rate), f"{left} left"]


class NotebookBar:
    """A bar in the output of a notebook's cell, redrawn in place and kept when the file is saved.

    One output of the cell is updated, which every front end can do without widgets (those of rich
    need ipywidgets, leave an empty output behind and are gone in a saved notebook).

    Args:
      total: rounds at the end of the run.
      completed: rounds done when it begins.
      unit: what is counted, for the text.

    Example:
      >>> NotebookBar.draw(1, 4, "train_loss 0.2500")["text/plain"]
      'round 1/4  train_loss 0.2500'
    """

    def __init__(self, total: int, completed: int = 0, *, unit: str = "round") -> None:
        from IPython.display import display  # type: ignore[import-not-found]

        self._unit = unit
        self._total, self._completed, self._text = total, completed, "compiling"
        self._drawn = -math.inf
        self._handle: Any = display(self._picture(), raw=True, display_id=True)

    @staticmethod
    def draw(completed: int, total: int, text: str, unit: str = "round") -> dict[str, str]:
        """The bar as HTML, and as text for what shows none, by MIME type."""
        count = f"{unit} {completed}/{total}"
        bar = f'<progress value="{completed}" max="{max(total, 1)}"></progress>'
        style = "font-family: monospace; white-space: pre-wrap"
        return {
            "text/html": f'<div style="{style}">{count} {bar} {html.escape(text)}</div>',
            "text/plain": f"{count}  {text}",
        }

    def update(self, task: Any, *, completed: int, text: str) -> None:
        """Shows the state after a round; called as rich's bar is.

        Args:
          task: not used.
          completed: rounds done.
          text: what stands behind the bar.
        """
        self._completed, self._text = completed, text
        # A fast run would send thousands of pictures; the last one is drawn by `stop`.
        if time.perf_counter() - self._drawn >= _SECONDS_BETWEEN_DRAWINGS:
            self._redraw()

    def stop(self) -> None:
        """Draws the last state, whatever was left out."""
        self._redraw()

    def _redraw(self) -> None:
        self._drawn = time.perf_counter()
        self._handle.update(self._picture(), raw=True)

    def _picture(self) -> dict[str, str]:
        return self.draw(self._completed, self._total, self._text, self._unit)


def in_notebook() -> bool:
    """Whether this process is the kernel of a notebook (Jupyter, Colab, VS Code).

    Example:
      >>> in_notebook()
      False
    """
    ipython = sys.modules.get("IPython")  # imported already where there is a kernel
    shell = ipython.get_ipython() if ipython is not None else None
    return getattr(shell, "kernel", None) is not None


def _per_second(rate: float) -> str:
    """Rounds a second, in three figures.

    Example:
      >>> _per_second(3111.1), _per_second(46.66), _per_second(0.01234)
      ('3,110 rounds/s', '46.7 rounds/s', '0.0123 rounds/s')
    """
    return f"{float(f'{rate:.3g}'):,g} rounds/s"


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
