"""The picture of models side by side: a point a client, who gains and who loses."""

from __future__ import annotations

import os
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import numpy as np

from fedjax_lite.checks.arguments import shown
from fedjax_lite.report.record import checked_split
from fedjax_lite.report.style import BLUE, GREY, ORANGE, finish, make_figure, percent, plain, text

if TYPE_CHECKING:
    from matplotlib.figure import Figure

COLUMNS = 4


def plot_side_by_side(
    scores: Mapping[str, Mapping[str, Any]],
    *,
    dataset: str,
    against: str | None = None,
    metric: str = "accuracy",
    worst: float = 0.1,
    split: str | None = None,
    title: str | None = None,
    path: str | os.PathLike[str] | None = None,
) -> Figure:
    """Draws every client's score under each model against its score under one of them.

    A panel a model, a point a client: above the diagonal of accuracies a client gains (of losses
    below it), in blue; who loses is orange. The last panel has the mean over clients and the mean
    of the worst of them, by model.

    Args:
      scores: what `side_by_side` returns, or ``baselines(...).scores``: at least two models.
      dataset: the data set really used, for the title.
      against: the name of the model that the others are held against; default the first.
      metric: "accuracy" or "loss": what was scored.
      worst: the share of clients that `side_by_side` was given, for the legend.
      split: which part of the clients' data was scored; the axes say it.
      title: what comes before the data set in the title.
      path: PNG file to write; None writes nothing.

    Returns:
      The figure.

    Raises:
      ValueError: if there are fewer than two models, or `against` or `metric` is none.

    Example:
      >>> import numpy as np
      >>> one = lambda *values: {"scores": np.array(values), "mean": 0.5, "worst": 0.4}
      >>> found = {"global": one(0.4, 0.6), "Ditto": one(0.5, 0.5)}
      >>> figure = plot_side_by_side(found, dataset="digits", split="test")
      >>> figure.axes[0].get_title()
      'Ditto: 1 gain, 1 lose'
    """
    if not isinstance(scores, Mapping) or len(scores) < 2:
        raise ValueError(
            f"scores must be a dict of two models or more, got {shown(scores)}; make it with "
            "fl.side_by_side(model, {'global': state, 'local': local_state}, test)"
        )
    if metric not in ("accuracy", "loss"):
        raise ValueError(f"metric must be 'accuracy' or 'loss', got {shown(metric)}")
    if not 0 < worst <= 1:
        raise ValueError(f"worst must lie in (0, 1], got {shown(worst)}; give 0.1")
    against = next(iter(scores)) if against is None else against
    if against not in scores:
        raise ValueError(f"against must be one of {list(scores)}, got {shown(against)}")
    split = checked_split(split)
    others = [name for name in scores if name != against]
    columns = min(COLUMNS, len(others))
    lines = -(-len(others) // columns)
    figure = make_figure(2.3 * columns + 3.6, max(2.3 * lines + 0.9, 3.6))
    grid = figure.add_gridspec(lines, columns + 1, width_ratios=[1] * columns + [1.4])
    base = np.asarray(scores[against]["scores"], np.float64)
    sign = 1 if metric == "accuracy" else -1
    first = None
    for place, name in enumerate(others):
        values = np.asarray(scores[name]["scores"], np.float64)
        axes = figure.add_subplot(grid[divmod(place, columns)], sharex=first, sharey=first)
        first = axes if first is None else first
        change = sign * (values - base)
        colours = np.where(change > 0, BLUE, np.where(change < 0, ORANGE, GREY))
        axes.axline((0, 0), slope=1, color="#999999", lw=0.8, zorder=0)
        axes.scatter(base, values, s=14, c=colours, alpha=0.75, linewidths=0)
        gains, losses = (int((sign * change > 0).sum()) for sign in (1, -1))
        name_here = text(name, length=22)
        axes.set_title(f"{name_here}: {gains} gain, {losses} lose", fontsize=8)
        axes.tick_params(labelsize=7)
    _limits(first, [scores[name]["scores"] for name in scores])
    of_split = f" ({text(split, length=20)})" if split else ""
    figure.supxlabel(f"{metric}{of_split} of a client with {text(against, length=30)}", fontsize=9)
    figure.supylabel(f"{metric} with the other model", fontsize=9)
    _summary(figure.add_subplot(grid[:, columns]), scores, metric, worst)
    clients = int(np.isfinite(base).sum())
    return finish(figure, f"{title or 'Models side by side'} ({clients} clients)", dataset, path)


def _limits(axes: Any, values: list[Any]) -> None:
    """One square for all panels, with a little room around the points."""
    known = np.concatenate([np.asarray(one, np.float64) for one in values])
    known = known[np.isfinite(known)]
    low, high = (known.min(), known.max()) if len(known) else (0.0, 1.0)
    room = 0.05 * max(high - low, 1e-3)
    axes.set(xlim=(low - room, high + room), ylim=(low - room, high + room))


def _summary(axes: Any, scores: Mapping[str, Mapping[str, Any]], metric: str, worst: float) -> None:
    """Mean over clients and over the worst of them, a line a model, the first on top."""
    heights = np.arange(len(scores))[::-1]
    means, tails = ([float(row[k]) for row in scores.values()] for k in ("mean", "worst"))
    axes.hlines(heights, tails, means, color="#BBBBBB", lw=1.5, zorder=1)
    axes.plot(tails, heights, "o", color=ORANGE, mfc="white", label=f"worst {percent(worst)}")
    axes.plot(means, heights, "o", color=BLUE, label="mean")
    axes.set_yticks(heights, [text(name, length=22) for name in scores], fontsize=8)
    axes.yaxis.tick_right()
    axes.set_title(f"{metric} over clients", fontsize=8)
    axes.tick_params(axis="x", labelsize=7)
    axes.set_ylim(-0.6, len(scores) + 0.4)
    axes.legend(frameon=False, fontsize=7, loc="upper left", ncols=2)
    plain(axes, grid="x")
