"""The clusters of a run, round by round: their shares, who moves, and how pure they are."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from fedjax_lite.report.style import finish, line_style, make_figure, plain

if TYPE_CHECKING:
    from matplotlib.figure import Figure

LINES = {"cluster_changes": "left its cluster", "cluster_purity": "purity, of all who ever chose"}


def plot_clusters(
    history: Sequence[Mapping[str, Any]],
    *,
    dataset: str,
    title: str | None = None,
    path: str | os.PathLike[str] | None = None,
) -> Figure:
    """Draws which part of the cohort is in which cluster, and below it who moves.

    Args:
      history: rows of a run of `fedjax_lite.ifca`, with ``round``, ``cluster_0`` ... and
        ``cluster_changes``; ``cluster_purity`` is drawn where its true groups were given.
      dataset: the data set really used, for the title.
      title: what comes before the data set in the title.
      path: PNG file to write; None writes nothing.

    Returns:
      The figure.

    Raises:
      ValueError: if no row has ``cluster_0``.

    Example:
      >>> rows = [{"round": r, "cluster_0": 0.25 * r, "cluster_1": 1 - 0.25 * r,
      ...          "cluster_changes": 0.1} for r in (1, 2)]
      >>> [axes.get_ylabel() for axes in plot_clusters(rows, dataset="digits").axes]
      ['share of the cohort', 'share of the clients']
    """
    rows = [row for row in history if "cluster_0" in row]
    if not rows:
        raise ValueError(
            "history must hold the shares of clusters, cluster_0 ..., got none; it is that of a "
            "run of fl.ifca: state, history = fl.run(...)"
        )
    rounds = np.array([row["round"] for row in rows])
    number = next(k for k in range(len(rows[0]) + 1) if f"cluster_{k}" not in rows[0])
    shares = np.array([[row[f"cluster_{k}"] for row in rows] for k in range(number)], float)
    figure = make_figure(6.2, 4.6)
    upper, lower = figure.subplots(2, 1, sharex=True, height_ratios=[3, 2])
    colors = [line_style(k)["color"] for k in range(number)]
    labels = [f"cluster {k}" for k in range(number)]
    upper.stackplot(rounds, shares, colors=colors, labels=labels, alpha=0.75, lw=0)
    upper.set(ylim=(0, 1), ylabel="share of the cohort")
    for position, (column, label) in enumerate(LINES.items()):
        found = np.array([row.get(column, np.nan) for row in rows], float)
        if np.isfinite(found).any():
            style = line_style(number + position)
            lower.plot(rounds, found, label=label, **style)
    lower.set(ylim=(-0.02, 1.02), xlabel="round", ylabel="share of the clients")
    for axes in (upper, lower):
        plain(axes)
        axes.legend(frameon=False, fontsize=8, loc="center left", bbox_to_anchor=(1, 0.5))
    return finish(figure, title or "Clusters", dataset, path)
