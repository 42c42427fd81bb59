"""The reliability diagram: accuracy against confidence, models side by side."""

from __future__ import annotations

import os
from collections.abc import Mapping
from typing import TYPE_CHECKING

import numpy as np

from fedjax_lite.checks.arguments import shown
from fedjax_lite.evaluate.uncertainty.reliability import Reliability
from fedjax_lite.report.style import BLUE, GREY, ORANGE, finish, make_figure, plain, text

if TYPE_CHECKING:
    from matplotlib.figure import Figure

COLUMNS = 4


def plot_reliability(
    models: Mapping[str, Reliability],
    *,
    dataset: str,
    title: str | None = None,
    path: str | os.PathLike[str] | None = None,
) -> Figure:
    """Draws how often models are right against how sure they are.

    A panel a model: a bar a bin, its height the accuracy, the distance to the mean confidence of
    that bin in orange (below the diagonal a model is too sure), and below it how many answers fall
    into each bin.

    Args:
      models: what `fedjax_lite.uncertainty.reliability` returns, by name.
      dataset: the data set really used, for the title.
      title: what comes before the data set in the title.
      path: PNG file to write; None writes nothing.

    Returns:
      The figure.

    Raises:
      ValueError: if `models` is empty.
      TypeError: if a value is no `Reliability`.

    Example:
      >>> import fedjax_lite as fl
      >>> found = fl.uncertainty.reliability([[0.9, 0.1], [0.2, 0.8]], [0, 0], bins=5)
      >>> plot_reliability({"one": found}, dataset="digits").axes[0].get_title()
      'one: ECE 0.450, largest 0.800'
    """
    if not isinstance(models, Mapping) or not models:
        raise ValueError(
            f"models must be a dict of at least one model, got {shown(models)}; "
            '{"mean": fl.uncertainty.reliability(probabilities, labels)}'
        )
    for name, found in models.items():
        if not isinstance(found, Reliability):
            raise TypeError(
                f"models[{name!r}] must be a Reliability, got {shown(found)}; "
                "fl.uncertainty.reliability(probabilities, labels) makes it"
            )
    columns = min(COLUMNS, len(models))
    lines = -(-len(models) // columns)
    figure = make_figure(max(2.8 * columns, 4.0), 3.6 * lines + 0.5)
    grid = figure.add_gridspec(2 * lines, columns, height_ratios=[3, 1] * lines)
    for place, (name, found) in enumerate(models.items()):
        line, column = divmod(place, columns)
        upper = figure.add_subplot(grid[2 * line, column])
        lower = figure.add_subplot(grid[2 * line + 1, column], sharex=upper)
        middle, width = (found.edges[:-1] + found.edges[1:]) / 2, np.diff(found.edges)
        upper.plot([0, 1], [0, 1], color=GREY, lw=0.8, ls="--")
        upper.bar(middle, found.accuracy, width, color=BLUE, edgecolor="white", lw=0.5)
        gap = found.confidence - found.accuracy
        upper.bar(middle, gap, width, found.accuracy, color=ORANGE, alpha=0.45, lw=0)
        upper.set(xlim=(0, 1), ylim=(0, 1), ylabel="accuracy")
        upper.set_title(
            f"{text(name, length=22)}: ECE {found.error:.3f}, largest {found.largest:.3f}",
            fontsize=8,
        )
        lower.bar(middle, found.counts, width, color=GREY, edgecolor="white", lw=0.5)
        lower.set(xlabel="confidence", ylabel="answers")
        for axes in (upper, lower):
            axes.tick_params(labelsize=7)
            plain(axes)
    return finish(figure, title or "Reliability", dataset, path)
