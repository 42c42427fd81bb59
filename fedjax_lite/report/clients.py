"""Pictures of the clients of one run: their accuracies and who holds which labels."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING, Any

import numpy as np

from fedjax_lite.evaluate import summarize_clients
from fedjax_lite.report.record import checked_split
from fedjax_lite.report.style import BLUE, GREEN, ORANGE, finish, make_figure, plain, text

if TYPE_CHECKING:
    from matplotlib.figure import Figure


def plot_client_accuracies(
    values: Any,
    *,
    dataset: str,
    split: str | None = None,
    title: str | None = None,
    path: str | os.PathLike[str] | None = None,
) -> Figure:
    """Draws how the accuracy is distributed over clients.

    Args:
      values: `[N]`, one accuracy a client, in [0, 1]; NaN (no data) is left out.
      dataset: the data set really used, for the title.
      split: which part of the clients' data was scored, "train" or "test"; the axis says it.
      title: what comes before it in the title.
      path: PNG file to write; None writes nothing.

    Returns:
      The figure.

    Raises:
      ValueError: if `values` is not `[N]` or no client has an accuracy.

    Example:
      >>> figure = plot_client_accuracies([0.2, 0.8, 0.9], dataset="digits", split="test")
      >>> figure.axes[0].get_xlabel()
      'Accuracy of a client (fraction of its test labels)'
    """
    split = checked_split(split)
    of_split = f"{text(split, length=20)} " if split else ""
    values = np.asarray(values, np.float64)
    if values.ndim != 1 or np.isnan(values).all():
        raise ValueError(f"values must be [N] with at least one number, got {values!r}")
    summary = summarize_clients(values, np.ones(len(values)))
    counts, edges = summary["histogram_counts"], summary["histogram_edges"]
    figure = make_figure(5.6, 3.8)
    axes = figure.add_subplot()
    axes.bar(
        edges[:-1], counts, np.diff(edges), align="edge", color=BLUE, edgecolor="white", lw=0.5
    )
    lines = [("mean", "-", ORANGE), ("worst", "--", GREEN)]
    for name, style, colour in lines:
        label = {"mean": "mean", "worst": "mean of the worst 10 %"}[name]
        value = summary[name]
        axes.axvline(value, ymax=0.8, color=colour, ls=style, lw=2, label=f"{label}: {value:.3f}")
    axes.set(
        xlabel=f"Accuracy of a client (fraction of its {of_split}labels)",
        ylabel="Clients (count)",
        ylim=(0, 1.28 * counts.max()),
    )
    axes.yaxis.get_major_locator().set_params(integer=True)
    axes.legend(frameon=False, loc="upper left")
    plain(axes)
    heading = f"{title or 'Accuracy by client'} ({summary['num_clients']} clients)"
    return finish(figure, heading, dataset, path)


def plot_partition(
    counts: Any,
    *,
    dataset: str,
    title: str | None = None,
    path: str | os.PathLike[str] | None = None,
) -> Figure:
    """Draws which client holds which labels.

    Up to 60 clients: a stacked bar a client, a colour a label (a heat map where there are more
    than 20 labels). More clients: a heat map of every client's label shares, over its size.

    Args:
      counts: `[N, classes]`, see `fedjax_lite.data.label_counts`.
      dataset: the data set really used, for the title.
      title: what comes before it in the title.
      path: PNG file to write; None writes nothing.

    Returns:
      The figure.

    Raises:
      ValueError: if `counts` is not a table of counts with at least one example.

    Example:
      >>> figure = plot_partition([[5, 0], [1, 4]], dataset="digits")
      >>> figure.axes[0].get_ylabel()
      'Examples (count)'
    """
    counts = np.asarray(counts)
    if counts.ndim != 2 or not counts.size or (counts < 0).any() or counts.sum() == 0:
        raise ValueError(
            f"counts must be [N, classes] of counts, got shape {counts.shape}; make them with "
            "fl.data.label_counts"
        )
    num_clients, num_classes = counts.shape
    clients = np.arange(num_clients)
    heading = f"{title or 'Labels by client'} ({num_clients} clients)"
    if num_clients <= 60 and num_classes <= 20:
        figure = make_figure(min(12.0, 4.5 + 0.14 * num_clients), 4.0)
        axes = figure.add_subplot()
        bottom = np.zeros(num_clients)
        for label in range(num_classes):
            colour = _label_colours(num_classes)[label]
            axes.bar(clients, counts[:, label], 0.9, bottom, color=colour, label=str(label), lw=0)
            bottom += counts[:, label]
        axes.set(xlabel="Client", ylabel="Examples (count)", xlim=(-0.7, num_clients - 0.3))
        axes.xaxis.get_major_locator().set_params(integer=True)
        axes.legend(
            title="Label", frameon=False, loc="center left", bbox_to_anchor=(1.0, 0.5), reverse=True
        )
        plain(axes)
        return finish(figure, heading, dataset, path)
    figure = make_figure(8.5, 5.0)
    grid = figure.add_gridspec(2, 2, height_ratios=[1, 2.6], width_ratios=[40, 1])
    top = figure.add_subplot(grid[0, 0])
    sizes = counts.sum(1)
    top.bar(clients, sizes, 1.0, color=BLUE, lw=0)
    top.set(ylabel="Examples\n(count)", xlim=(-0.5, num_clients - 0.5), xticklabels=[])
    plain(top)
    axes = figure.add_subplot(grid[1, 0])
    shares = np.divide(
        counts, sizes[:, None], where=sizes[:, None] > 0, out=np.full(counts.shape, np.nan)
    )
    picture = axes.imshow(
        shares.T, aspect="auto", origin="lower", cmap="cividis", vmin=0, vmax=1,
        interpolation="nearest" if num_clients <= 700 else "antialiased",
    )  # fmt: skip
    axes.set(xlabel="Client", ylabel="Label")
    axes.yaxis.get_major_locator().set_params(integer=True)
    if num_classes <= 20:
        axes.set_yticks(range(num_classes))
    bar = figure.colorbar(picture, cax=figure.add_subplot(grid[1, 1]))
    bar.set_label("Share of the client's examples")
    return finish(figure, heading, dataset, path)


def _label_colours(num_classes: int) -> list[Any]:
    from matplotlib import colormaps

    okabe = ["#000000", "#E69F00", "#56B4E9", "#009E73", "#F0E442", "#0072B2", "#D55E00", "#CC79A7"]
    if num_classes <= len(okabe):
        return okabe[::-1][:num_classes]
    return [colormaps["viridis"](x) for x in np.linspace(0, 1, num_classes)]
