"""The panels of a comparison: figures of their own for a page, or one picture of the main ones."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from fedjax_lite.report.clients import plot_partition
from fedjax_lite.report.drawing import (
    Scene,
    draw_cdf,
    draw_curves,
    draw_fairness,
    draw_privacy,
    draw_to_target,
    splits_of,
)
from fedjax_lite.report.groups import Group, dataset_of, seed_of
from fedjax_lite.report.style import make_figure, percent, text
from fedjax_lite.report.summary import SIMULATED, costs_of

if TYPE_CHECKING:
    from matplotlib.figure import Figure

MAX_PARTITIONS = 3
DRIFT = (
    ("drift_cosine_mean", "Mean cosine of a client's\nupdate and the mean update"),
    ("drift_variance", "Variance of the updates\n(squared l2 distance)"),
    ("drift_diversity", "Gradient diversity\n(1/cohort: equal, 1: orthogonal)"),
)


class Panel(NamedTuple):
    """One part of the page."""

    name: str
    title: str
    figures: list[Figure]
    caption: str
    remedy: str
    """How to record what it shows, where no run did; empty where figures are there."""


Draw = Callable[[Any], Any]


def make_panels(scene: Scene) -> list[Panel]:
    """All panels; those whose data no run recorded have no figure but a remedy."""
    losses = [name for name in _columns(scene.groups) if name.endswith("_loss")]
    loss = "test_loss" if "test_loss" in losses else (losses or [""])[0]
    level = percent(scene.confidence)
    band = f"bands: {level} confidence interval of the mean over seeds (Student t)"
    panels = [
        _panel(
            "metric", f"{_words(scene.metric.name)}: by round, by bytes, by time",
            _curves(scene, scene.metric.name),
            f"Lines: mean over seeds; {band}, none for one seed. Bytes: all clients together, up "
            "and down, packed size. Seconds include compiling and evaluation."
            + _of_the_clock(scene),
            "hand evaluate=fl.evaluator(model, test) to fl.run", scene,
        ),
    ]  # fmt: skip
    if loss and loss != scene.metric.name:
        panels.append(
            _panel(
                "loss", f"{_words(loss)}: by round, by bytes, by time", _curves(scene, loss),
                f"As above; {band}.", "", scene,
            )
        )  # fmt: skip
    goal = f"{scene.target:g}" if scene.target is not None else "a target"
    panels += [
        _panel(
            "target", f"What it costs to reach {_words(scene.metric.name).lower()} {goal}",
            [] if scene.target is None
            else [lambda axes, c=cost: draw_to_target(axes, scene, c)
                  for cost in costs_of(scene.groups)],
            "Each run's curve is made monotone (best so far) and joined by straight lines between "
            "evaluations; points are means over seeds where every seed got there, bars "
            f"{level} intervals of the mean, cut at 0.",
            "no method gets there with all its seeds; train longer, or name a lower target "
            "(--target-accuracy)", scene, legend=False,
        ),
        _panel(
            "clients", f"Clients: accuracy of the final model on each client's own {_split(scene)}",
            [lambda axes: draw_cdf(axes, scene, "accuracy"),
             lambda axes: draw_fairness(axes, scene),
             lambda axes: draw_cdf(axes, scene, "size")],
            "Distributions: clients of all seeds together. Worst 10 %: the mean over that tenth "
            f"of the clients; bars: {level} intervals of the mean over seeds.",
            "after a run call fl.report.save_clients(output_dir, fl.evaluate_clients(model, "
            'state, test), dataset=..., split="test")', scene,
        ),
        _partition(scene),
        _panel(
            "privacy", "Privacy and utility", [lambda axes: draw_privacy(axes, scene)],
            "Along each private run, from its first evaluation to its last. Epsilons are only "
            "comparable at equal delta and equal unit of privacy. " + _claims(scene.groups),
            "train with privacy=fl.privacy.central_gaussian(...) or another mechanism", scene,
        ),
        _panel(
            "drift", "Client drift",
            [lambda axes, n=name, t=title: _drift(axes, scene, n, t) for name, title in DRIFT],
            f"Of the updates as the server gets them, by round; {band}.",
            "train with aggregator=fl.diagnosed(fl.mean())", scene,
        ),
    ]  # fmt: skip
    return panels


def make_overview(scene: Scene, title: str) -> Figure:
    """One picture of the main panels, three in a row."""
    name = scene.metric.name
    draws = _curves(scene, name)
    losses = [c for c in _columns(scene.groups) if c.endswith("_loss") and c != name]
    if losses:
        loss = "test_loss" if "test_loss" in losses else losses[0]
        draws.append(lambda axes: draw_curves(axes, scene, loss))
    if scene.target is not None:
        draws.append(lambda axes: _titled_target(axes, scene))
    draws += [
        lambda axes: draw_cdf(axes, scene, "accuracy"),
        lambda axes: draw_privacy(axes, scene),
        lambda axes: _drift(axes, scene, *DRIFT[0]),
    ]
    figure = _row(draws, legend=True)
    if figure is None:  # choose_metric found the column, so there is at least one curve
        raise ValueError(f"no run has a finite value of {name}")
    figure.suptitle(text(title, length=120), fontsize=12)
    return figure


def _titled_target(axes: Any, scene: Scene) -> bool:
    order = (SIMULATED, "bytes", "round")
    cost = next((c for c in order if any(r.get(f"to_{c}") for r in scene.table)), None)
    if cost is None:
        return False
    axes.set_title(f"To {_words(scene.metric.name).lower()} {scene.target:g}", fontsize="medium")
    return draw_to_target(axes, scene, cost)


def _panel(
    name: str, title: str, draws: Sequence[Draw], caption: str, remedy: str, scene: Scene,
    legend: bool = True,
) -> Panel:  # fmt: skip
    figure = _row(draws, legend=legend and len(scene.groups) > 1)
    return Panel(name, title, [] if figure is None else [figure], caption, "" if figure else remedy)


def _row(draws: Sequence[Draw], *, legend: bool, columns: int = 3) -> Figure | None:
    """Axes side by side; what has nothing to draw takes no place."""
    figure = make_figure(1, 1)
    useful, entries = [], {}
    for draw in draws:
        axes = figure.add_axes((0, 0, 1, 1))
        if not draw(axes):
            axes.remove()
            continue
        useful.append(axes)
        if axes.get_legend() is None:
            entries |= {k: h for h, k in zip(*axes.get_legend_handles_labels()) if k not in entries}
    if not useful:
        return None
    columns = min(columns, len(useful))
    rows = -(-len(useful) // columns)
    width = {1: 6.2, 2: 8.6, 3: 12.4}[columns]
    longest = max(map(len, entries), default=0)  # inches of an entry: a line, and its letters
    across = max(1, min(len(entries), 4, int(width / (0.8 + 0.075 * longest))))
    below = max(0, -(-len(entries) // across) - 2) if legend else 0
    figure.set_size_inches(width, 3.5 * rows + 0.35 + 0.18 * below)
    grid = figure.add_gridspec(rows, columns)
    for position, axes in enumerate(useful):
        axes.set_subplotspec(grid[position // columns, position % columns])
    if legend and entries:
        figure.legend(
            entries.values(), entries.keys(), loc="outside lower center", frameon=False,
            ncols=across, handlelength=3.2,
        )  # fmt: skip
    return figure


def _curves(scene: Scene, metric: str) -> list[Draw]:
    costs = costs_of(scene.groups)
    return [lambda axes, x=x: draw_curves(axes, scene, metric, x=x) for x in costs]


def _of_the_clock(scene: Scene) -> str:
    """What simulated time is, where a panel shows some."""
    if SIMULATED not in costs_of(scene.groups):
        return ""
    return " Simulated time: what the clock of the run's latencies says, not this machine."


def _drift(axes: Any, scene: Scene, name: str, title: str) -> list[str]:
    drawn = draw_curves(axes, scene, name)
    axes.set_ylabel(title)
    return drawn


def _partition(scene: Scene) -> Panel:
    """Label counts of the first seed of each group, equal ones once."""
    found: list[tuple[np.ndarray, list[str], Any, str]] = []
    for group in scene.groups:
        run = next((run for run in group.runs if "label_counts" in run.clients), None)
        if run is None:
            continue
        counts = run.clients["label_counts"]
        twin = next((names for other, names, *_ in found if np.array_equal(other, counts)), None)
        if twin is not None:
            twin.append(group.label)
        elif counts.sum() > 0 and not (counts < 0).any():
            found.append(
                (counts, [group.label], seed_of(run), dataset_of(run) or "data set unknown")
            )
    figures = []
    for counts, names, seed, dataset in found[:MAX_PARTITIONS]:
        who = ", ".join(names) if len(names) < len(scene.groups) else "all methods"
        at = f", seed {seed}" if isinstance(seed, int) else ""
        title = f"Labels by client: {who[:50]}{at}"
        figures.append(plot_partition(counts, dataset=dataset, title=title))
    more = len(found) - len(figures)
    caption = "Of the first seed of each method; equal partitions are shown once."
    return Panel(
        "partition", "Which client holds which labels", figures,
        caption + (f" {more} more are not shown." if more > 0 else ""),
        "" if figures else "hand label_counts=fl.data.label_counts(data) to fl.report.save_clients",
    )  # fmt: skip


def _split(scene: Scene) -> str:
    """Which of the clients' data were scored, as far as the runs say it."""
    splits = splits_of(scene)
    if len(splits) < 2:
        name = next(iter(splits), "")
        if name:
            return f"{name[:20]} data"
        return "data" + (" (which split was not recorded)" if splits else "")
    parts = [
        f"{name[:20] or 'not recorded'} for {', '.join(groups)[:60]}"
        for name, groups in splits.items()
    ]
    return f"data (splits: {'; '.join(parts)})"


def _claims(groups: Sequence[Group]) -> str:
    claims = [f"{g.label}: {g.settings['privacy']}." for g in groups if g.settings.get("privacy")]
    return " ".join(claims)


def _columns(groups: Sequence[Group]) -> list[str]:
    return list(dict.fromkeys(name for g in groups for run in g.runs for name in run.columns))


def _words(name: str) -> str:
    return name.replace("_", " ").capitalize()
