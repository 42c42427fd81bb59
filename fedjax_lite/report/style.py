"""How figures look: colours, line styles and markers that differ in colour and in grey."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING, Any

from fedjax_lite.checks.arguments import as_path

if TYPE_CHECKING:
    from matplotlib.figure import Figure

BLUE, ORANGE, GREEN, GREY = "#0072B2", "#D55E00", "#009E73", "#666666"
"""Of Okabe and Ito's colours, which colour-blind readers can tell apart."""
COLOURS = (BLUE, ORANGE, GREEN, "#CC79A7", "#E69F00", "#56B4E9", "#000000")
DASHES = ("-", "--", "-.", ":", (0, (6, 1, 1, 1, 1, 1)), (0, (8, 2)), (0, (1, 1)))
MARKERS = "os^vDPX*"


def make_figure(width: float, height: float) -> Figure:
    """An empty figure of the object interface, in inches: nothing global changes."""
    from fedjax_lite.report.figure import ReportFigure

    return ReportFigure(width, height)


def line_style(position: int) -> dict[str, Any]:
    """Colour, dashes and marker of the line at a position.

    Example:
      >>> line_style(0)["marker"], line_style(8)["marker"]
      ('o', 's')
    """
    return {
        "color": COLOURS[position % len(COLOURS)],
        "linestyle": DASHES[(position + position // len(COLOURS)) % len(DASHES)],
        "marker": MARKERS[position % len(MARKERS)] if position < 8 else MARKERS[(position + 1) % 8],
    }


def plain(axes: Any, grid: str = "y") -> None:
    """No frame above and right, a faint grid behind the data."""
    axes.spines[["top", "right"]].set_visible(False)
    axes.grid(axis=grid, color="#DDDDDD", lw=0.6)
    axes.set_axisbelow(True)


def percent(share: float) -> str:
    """A share as text.

    Example:
      >>> percent(0.95), percent(0.999)
      ('95 %', '99.9 %')
    """
    return f"{100 * share:g} %"


def text(value: Any, *, length: int = 60) -> str:
    r"""A string as a label: no mathematics, never hidden from a legend, not too long.

    Example:
      >>> text("_a$b$"), text("x" * 9, length=5)
      (' _a\\$b\\$', 'xxxx…')
    """
    words = " ".join(str(value).split())
    words = words if len(words) <= length else words[: length - 1] + "…"
    return (" " if words.startswith("_") else "") + words.replace("$", r"\$")


def finish(figure: Figure, title: str, dataset: str, path: str | os.PathLike[str] | None) -> Figure:
    """Puts the title over a figure and writes it where a path is given."""
    figure.suptitle(text(f"{title}, {dataset}", length=120), fontsize=11)
    if path is not None:
        save_png(figure, path)
    return figure


def save_png(figure: Figure, path: str | os.PathLike[str]) -> None:
    """Writes a PNG file under a temporary name and moves it into place."""
    path = as_path(path, "path")
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.tmp")
    figure.savefig(temporary, format="png")
    os.replace(temporary, path)


def logarithmic(axes: Any) -> None:
    """A logarithmic x axis whose ticks are plain numbers that do not overlap; call it last.

    Example:
      >>> axes = make_figure(4, 3).add_subplot()
      >>> _ = axes.plot([1, 20], [0, 1])
      >>> logarithmic(axes)
      >>> axes.xaxis.get_major_formatter()(0.5)
      '0.5'
    """
    from matplotlib.ticker import FuncFormatter, LogLocator, NullFormatter

    axes.set_xscale("log", nonpositive="mask")  # what is at 0 has no place there
    low, high = axes.get_xlim()
    wide = high > 300 * low
    axes.xaxis.set_major_locator(LogLocator(subs=(1.0,) if wide else (1.0, 2.0, 5.0)))
    axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
    axes.xaxis.set_minor_formatter(NullFormatter())
