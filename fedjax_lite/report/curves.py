"""Pictures of one run or one sweep: curves by round, a metric by hyper-parameter."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from fedjax_lite.checks.arguments import shown
from fedjax_lite.report.style import (
    BLUE,
    GREEN,
    GREY,
    ORANGE,
    finish,
    line_style,
    make_figure,
    plain,
    text,
)

if TYPE_CHECKING:
    from matplotlib.figure import Figure

_LABELS = {
    "round": "Communication round",
    "seconds": "Wall-clock time (s)",
    "simulated_seconds": "Simulated time (s)",
}
_COLOURS = {"train": BLUE, "test": ORANGE}


def plot_curves(
    history: Sequence[Mapping[str, Any]],
    *,
    dataset: str,
    x: str = "round",
    title: str | None = None,
    path: str | os.PathLike[str] | None = None,
) -> Figure:
    """Draws accuracy and loss by round or by time, train and test.

    Args:
      history: rows of `run`; columns named ``*_loss`` and ``*_accuracy`` are drawn.
      dataset: the data set really used, for the title.
      x: the column to draw over: "round", "seconds", or "simulated_seconds" of a run with a clock;
        rows without it are left out.
      title: what comes before it in the title, such as the method's name.
      path: PNG file to write; None writes nothing.

    Returns:
      The figure.

    Raises:
      ValueError: if no row has a loss or an accuracy, or `x` is no column of them.

    Example:
      >>> rows = [{"round": r, "train_loss": 1 / r, "test_accuracy": 1 - 1 / r} for r in (1, 2, 3)]
      >>> len(plot_curves(rows, dataset="digits").axes)
      2
    """
    columns = list(dict.fromkeys(name for row in history for name in row))
    panels = [
        (kind, found)
        for kind in ("accuracy", "loss")
        if (found := [name for name in columns if name.endswith(f"_{kind}")])
    ]
    if not panels:
        raise ValueError(f"history has no column named *_loss or *_accuracy, got {columns}")
    with_x = [row for row in history if x in row]
    panels = [(kind, [n for n in names if any(n in row for row in with_x)])
              for kind, names in panels]  # fmt: skip
    panels = [(kind, names) for kind, names in panels if names]
    if not panels:
        raise ValueError(f"x must be a column beside those drawn, among {columns}, got {x!r}")
    figure = make_figure(4.6 * len(panels) + 0.4, 3.6)
    for position, (kind, names) in enumerate(panels, start=1):
        axes = figure.add_subplot(1, len(panels), position)
        spare = iter([GREEN, GREY, "#CC79A7", "#E69F00", "#56B4E9"] * len(names))
        for position_of_line, name in enumerate(names):
            rows = [(row[x], row[name]) for row in with_x if name in row]
            prefix = name.removesuffix(f"_{kind}")
            colour = _COLOURS.get(prefix) or next(spare)
            over, y = np.array(rows, np.float64).T
            style: dict[str, Any] = {**line_style(position_of_line), "color": colour}
            if len(rows) > 30:
                style["marker"] = None
            axes.plot(over, y, label=text(prefix), markersize=3.5, lw=1.6, **style)
        axes.set(xlabel=_LABELS.get(x, text(x.replace("_", " ").capitalize())))
        axes.locator_params(axis="x", integer=x == "round")
        if kind == "loss":
            axes.set_ylabel("Loss (mean per example)")
        else:
            axes.set_ylabel("Accuracy (fraction of labels)")
        axes.legend(frameon=False)
        plain(axes)
    return finish(figure, title or "Training", dataset, path)


def plot_sweep(
    table: Sequence[Mapping[str, Any]],
    *,
    x: str,
    metric: str,
    dataset: str,
    path: str | os.PathLike[str] | None = None,
) -> Figure:
    """Draws a metric against one hyper-parameter of a sweep, a line for each setting of the others.

    Args:
      table: rows of ``Sweep.table(metric)``; bars show the standard deviation over seeds.
      x: the hyper-parameter; its axis is logarithmic where all its values are positive and span a
        factor of ten.
      metric: what `table` holds, for the label.
      dataset: the data set really used, for the title.
      path: PNG file to write; None writes nothing.

    Returns:
      The figure.

    Raises:
      ValueError: if `x` is no hyper-parameter of the table.

    Example:
      >>> rows = [{"mu": m, "mean": 1 - m, "std": 0.1, "num_seeds": 3} for m in (0.01, 0.1, 0.5)]
      >>> plot_sweep(rows, x="mu", metric="test_accuracy", dataset="digits").axes[0].get_xscale()
      'log'
    """
    if not len(table) or not all(isinstance(row, Mapping) for row in table):
        raise TypeError(
            f"table must be rows of a sweep, dicts, one at least, got {shown(table)}; give "
            "Sweep.table(metric)"
        )
    figures = {"mean", "std", "num_seeds"}
    names = [name for name in table[0] if name not in figures]
    if x not in names:
        raise ValueError(f"x must be a hyper-parameter of the sweep, among {names}, got {x!r}")
    lines: dict[str, list[Mapping[str, Any]]] = {}
    for row in table:
        label = ", ".join(f"{name} = {row[name]:g}" for name in names if name != x)
        lines.setdefault(label, []).append(row)
    figure = make_figure(5.4, 3.8)
    axes = figure.add_subplot(1, 1, 1)
    for position, (label, rows) in enumerate(lines.items()):
        rows = sorted(rows, key=lambda row: row[x])
        values, mean, std = (np.array([row[k] for row in rows], float) for k in (x, "mean", "std"))
        style: dict[str, Any] = {**line_style(position), "label": text(label)}
        axes.errorbar(values, mean, np.nan_to_num(std), capsize=2.5, lw=1.4, markersize=4, **style)
    values = np.array([row[x] for row in table], float)
    if values.min() > 0 and values.max() >= 10 * values.min():
        axes.set_xscale("log")
        ticks = sorted(set(values.tolist()))  # the values themselves, not powers of ten
        if len(ticks) <= 9:
            axes.set_xticks(ticks, [f"{value:g}" for value in ticks])
            axes.minorticks_off()
    seeds = max(row["num_seeds"] for row in table)
    label = f"{text(metric.replace('_', ' ').capitalize())} (mean and s.d. of {seeds} seeds)"
    axes.set(xlabel=text(x.replace("_", " ")), ylabel=label)
    if list(lines) != [""]:
        axes.legend(frameon=False, fontsize="small")
    plain(axes)
    return finish(figure, "Sweep", dataset, path)
