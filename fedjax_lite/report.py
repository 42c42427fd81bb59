"""Pictures of a run: curves, the distribution over clients, the partition.

Matplotlib's object interface only, so nothing global changes and no display is needed. Colours
are Okabe and Ito's, which colour-blind readers can tell apart.
"""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    from matplotlib.figure import Figure

BLUE, ORANGE, GREEN, GREY = "#0072B2", "#D55E00", "#009E73", "#666666"
_COLOURS = {"train": BLUE, "test": ORANGE}


def plot_curves(
    history: Sequence[Mapping[str, Any]],
    *,
    dataset: str,
    title: str | None = None,
    path: str | os.PathLike[str] | None = None,
) -> Figure:
    """Draws accuracy and loss by round, train and test.

    Args:
      history: rows of `run`; columns named ``*_loss`` and ``*_accuracy`` are drawn.
      dataset: the data set really used, for the title.
      title: what comes before it in the title, such as the method's name.
      path: PNG file to write; None writes nothing.

    Returns:
      The figure.

    Raises:
      ValueError: if no row has a loss or an accuracy.

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
    figure = _figure(4.6 * len(panels) + 0.4, 3.6)
    for position, (kind, names) in enumerate(panels, start=1):
        axes = figure.add_subplot(1, len(panels), position)
        spare = iter([GREEN, GREY, "#CC79A7", "#E69F00", "#56B4E9"] * len(names))
        for name in names:
            rows = [(row["round"], row[name]) for row in history if name in row]
            prefix = name.removesuffix(f"_{kind}")
            colour = _COLOURS.get(prefix) or next(spare)
            x, y = np.array(rows, np.float64).T
            marker = "o" if len(rows) <= 30 else None
            axes.plot(x, y, color=colour, label=prefix, marker=marker, markersize=3.5, lw=1.6)
        axes.set(xlabel="Communication round", ylabel=kind.capitalize())
        if kind == "loss":
            axes.set_ylabel("Loss (mean per example)")
        else:
            axes.set_ylabel("Accuracy (fraction of labels)")
        axes.legend(frameon=False)
        _plain(axes)
    return _finish(figure, title or "Training", dataset, path)


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
    figures = {"mean", "std", "num_seeds"}
    names = [name for name in table[0] if name not in figures]
    if x not in names:
        raise ValueError(f"x must be a hyper-parameter of the sweep, among {names}, got {x!r}")
    lines: dict[str, list[Mapping[str, Any]]] = {}
    for row in table:
        label = ", ".join(f"{name} = {row[name]:g}" for name in names if name != x)
        lines.setdefault(label, []).append(row)
    figure = _figure(5.4, 3.8)
    axes = figure.add_subplot(1, 1, 1)
    colours = (BLUE, ORANGE, GREEN, "#CC79A7", "#E69F00", "#56B4E9", GREY)
    for position, (label, rows) in enumerate(lines.items()):
        rows = sorted(rows, key=lambda row: row[x])
        values, mean, std = (np.array([row[k] for row in rows], float) for k in (x, "mean", "std"))
        style = {"color": colours[position % 7], "marker": "os^vDP*"[position % 7], "label": label}
        axes.errorbar(values, mean, np.nan_to_num(std), capsize=2.5, lw=1.4, markersize=4, **style)
    values = np.array([row[x] for row in table], float)
    if values.min() > 0 and values.max() >= 10 * values.min():
        axes.set_xscale("log")
    seeds = max(row["num_seeds"] for row in table)
    axes.set(xlabel=x.replace("_", " "), ylabel=f"{metric} (mean and s.d. of {seeds} seeds)")
    if list(lines) != [""]:
        axes.legend(frameon=False, fontsize="small")
    _plain(axes)
    return _finish(figure, "Sweep", dataset, path)


def plot_client_accuracies(
    values: Any,
    *,
    dataset: str,
    title: str | None = None,
    path: str | os.PathLike[str] | None = None,
) -> Figure:
    """Draws how the accuracy is distributed over clients.

    Args:
      values: `[N]`, one accuracy a client, in [0, 1]; NaN (no data) is left out.
      dataset: the data set really used, for the title.
      title: what comes before it in the title.
      path: PNG file to write; None writes nothing.

    Returns:
      The figure.

    Raises:
      ValueError: if `values` is not `[N]` or no client has an accuracy.

    Example:
      >>> figure = plot_client_accuracies([0.2, 0.8, 0.9], dataset="digits")
      >>> figure.axes[0].get_xlabel()
      'Accuracy of a client (fraction of its labels)'
    """
    from fedjax_lite.evaluate import summarize_clients

    values = np.asarray(values, np.float64)
    if values.ndim != 1 or np.isnan(values).all():
        raise ValueError(f"values must be [N] with at least one number, got {values!r}")
    summary = summarize_clients(values, np.ones(len(values)))
    counts, edges = summary["histogram_counts"], summary["histogram_edges"]
    figure = _figure(5.6, 3.8)
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
        xlabel="Accuracy of a client (fraction of its labels)",
        ylabel="Clients (count)",
        ylim=(0, 1.28 * counts.max()),
    )
    axes.yaxis.get_major_locator().set_params(integer=True)
    axes.legend(frameon=False, loc="upper left")
    _plain(axes)
    heading = f"{title or 'Accuracy by client'} ({summary['num_clients']} clients)"
    return _finish(figure, heading, dataset, path)


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
        raise ValueError(f"counts must be [N, classes] of counts, got shape {counts.shape}")
    num_clients, num_classes = counts.shape
    clients = np.arange(num_clients)
    heading = f"{title or 'Labels by client'} ({num_clients} clients)"
    if num_clients <= 60 and num_classes <= 20:
        figure = _figure(min(12.0, 4.5 + 0.14 * num_clients), 4.0)
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
        _plain(axes)
        return _finish(figure, heading, dataset, path)
    figure = _figure(8.5, 5.0)
    grid = figure.add_gridspec(2, 2, height_ratios=[1, 2.6], width_ratios=[40, 1])
    top = figure.add_subplot(grid[0, 0])
    sizes = counts.sum(1)
    top.bar(clients, sizes, 1.0, color=BLUE, lw=0)
    top.set(ylabel="Examples\n(count)", xlim=(-0.5, num_clients - 0.5), xticklabels=[])
    _plain(top)
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
    return _finish(figure, heading, dataset, path)


def _figure(width: float, height: float) -> Figure:
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(width, height), dpi=150, layout="constrained")
    FigureCanvasAgg(figure)
    return figure


def _plain(axes: Any) -> None:
    axes.spines[["top", "right"]].set_visible(False)
    axes.grid(axis="y", color="#DDDDDD", lw=0.6)
    axes.set_axisbelow(True)


def _label_colours(num_classes: int) -> list[Any]:
    from matplotlib import colormaps

    okabe = ["#000000", "#E69F00", "#56B4E9", "#009E73", "#F0E442", "#0072B2", "#D55E00", "#CC79A7"]
    if num_classes <= len(okabe):
        return okabe[::-1][:num_classes]
    return [colormaps["viridis"](x) for x in np.linspace(0, 1, num_classes)]


def _finish(
    figure: Figure, title: str, dataset: str, path: str | os.PathLike[str] | None
) -> Figure:
    figure.suptitle(f"{title}, {dataset}", fontsize=11)
    if path is not None:
        path = Path(path)
        path.parent.mkdir(parents=True, exist_ok=True)
        temporary = path.with_name(f".{path.name}.tmp")
        figure.savefig(temporary, format="png")
        os.replace(temporary, path)
    return figure
