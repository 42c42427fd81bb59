"""What a comparison draws into one pair of axes; a colour, a dash and a marker a group."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np

from fedjax_lite.evaluate import summarize_clients
from fedjax_lite.report.groups import Group
from fedjax_lite.report.statistics import Curve, Interval, curve, ends, t_interval
from fedjax_lite.report.style import GREY, line_style, logarithmic, plain, text
from fedjax_lite.report.summary import Metric

X_LABELS = {
    "round": "Communication round",
    "bytes": "Bytes on the wire, up and down",
    "seconds": "Wall-clock time",
    "simulated_seconds": "Simulated time",
    "epsilon": "Epsilon spent",
}
BYTES = ((1e12, "TB"), (1e9, "GB"), (1e6, "MB"), (1e3, "kB"), (1.0, "B"))
TIMES = ((3600.0, "h"), (60.0, "min"), (1.0, "s"))
SIMULATED_TIMES = ((86400.0, "d"), *TIMES)
MANY = 6
"""Labels beyond this number would hide what is drawn: they stand below the figure."""
LOG_SPAN = 8.0
"""Groups whose ends lie further apart than this factor get a logarithmic axis."""


class Scene(NamedTuple):
    """What is compared."""

    groups: Sequence[Group]
    metric: Metric
    table: Sequence[dict[str, Any]]
    target: float | None
    confidence: float


def unit_of(quantity: str, largest: float) -> tuple[float, str]:
    """Divisor and name of the unit in which a quantity reads best.

    Example:
      >>> unit_of("bytes", 2.5e6), unit_of("round", 10)
      ((1000000.0, 'MB'), (1.0, ''))
    """
    units = {"bytes": BYTES, "seconds": TIMES, "simulated_seconds": SIMULATED_TIMES}
    units = units.get(quantity, ())
    margin = 3.0 if quantity.endswith("seconds") else 1.0
    fitting = [unit for unit in units if largest >= margin * unit[0]]
    return fitting[0] if fitting else (units[-1] if units else (1.0, ""))


def y_label(name: str) -> str:
    """A column as the label of an axis, with its unit."""
    words = text(name.replace("_", " ").capitalize(), length=36)
    if name.endswith("accuracy"):
        return f"{words} (fraction of labels)"
    return f"{words} (mean per example)" if name.endswith("loss") else words


def _x_label(scene: Scene, x: str) -> str:
    columns = {name for group in scene.groups for run in group.runs for name in run.columns}
    if x == "bytes" and not any(name.startswith("downlink_bits") for name in columns):
        return "Bytes on the wire, up"
    return X_LABELS.get(x, text(x.replace("_", " ").capitalize()))


def draw_curves(axes: Any, scene: Scene, metric: str, *, x: str = "round") -> list[str]:
    """Means over seeds with their bands; returns the labels of the groups that have the data."""
    found: list[tuple[int, Curve]] = []
    for position, group in enumerate(scene.groups):
        line = curve(group.runs, metric, x=x, confidence=scene.confidence)
        # An infinite epsilon has no place on the axis, nor has what was there before it.
        if line is not None and np.isfinite(line.mean).any() and np.isfinite(line.x[-1]):
            found.append((position, line))
    if not found:
        return []
    last = [float(line.x[-1]) for _, line in found]
    scale, unit = unit_of(x, max(last))
    for position, line in found:
        style = line_style(position)
        every = max(1, len(line.x) // 8)
        over, name = line.x / scale, text(scene.groups[position].label)
        axes.plot(over, line.mean, lw=1.7, markersize=4.2, label=name,
                  markevery=(min(position, every - 1), every), **style)  # fmt: skip
        if np.isfinite(line.half).any():
            fraction = metric.endswith(("accuracy", "fraction"))
            axes.fill_between(over, *ends(line.mean, line.half, fraction=fraction),
                              color=style["color"], alpha=0.16, lw=0)  # fmt: skip
    label = _x_label(scene, x)
    if x != "round" and min(last) > 0 and max(last) > LOG_SPAN * min(last):
        logarithmic(axes)
    axes.set(xlabel=f"{label} ({unit})" if unit else label, ylabel=y_label(metric))
    _limit(axes, [line for _, line in found], fraction=metric.endswith("accuracy"))
    if x == "round":
        axes.xaxis.get_major_locator().set_params(integer=True)
    if scene.target is not None and metric == scene.metric.name:
        axes.axhline(scene.target, color=GREY, lw=0.9, ls=(0, (1, 2)))
    plain(axes)
    return [scene.groups[position].label for position, _ in found]


def _limit(axes: Any, lines: Sequence[Curve], *, fraction: bool) -> None:
    """An interval of few seeds may be far wider than what it is about: the means decide."""
    means = np.concatenate([line.mean[np.isfinite(line.mean)] for line in lines])
    low, high = float(means.min()), float(means.max())
    if not fraction and low > 0 and high > 50 * low:
        axes.set_yscale("log")
        return
    room = 0.35 * (high - low) or 0.05
    bottom, top = axes.get_ylim()
    bottom, top = max(bottom, low - room), min(top, high + room)
    if fraction:
        bottom, top = max(bottom, -0.02), min(top, 1.02)
    axes.set_ylim(bottom, top)


def draw_to_target(axes: Any, scene: Scene, cost: str) -> bool:
    """Rounds, bytes or seconds to the target: a point a group, its interval over seeds."""
    values: list[Interval | None] = [row.get(f"to_{cost}") for row in scene.table]
    known = [value.mean for value in values if value is not None]
    if not known:
        return False
    scale, unit = unit_of(cost, max(known))
    log = cost != "round" and max(known) > LOG_SPAN * min(known) > 0
    for position, (value, row) in enumerate(zip(values, scene.table, strict=True)):
        if value is None:
            reached = f"reached by {row['num_reached']} of {row['num_seeds']}"
            place = min(known) / scale if log else 0.0
            axes.text(place, position, f" {reached}", va="center", fontsize="small", color=GREY)
            continue
        style = line_style(position)
        half = 0.0 if math.isnan(value.half) else value.half / scale
        low = min(half, value.mean / scale)  # nothing costs less than nothing
        axes.errorbar(value.mean / scale, position, xerr=[[low], [half]], capsize=3, lw=1.6,
                      color=style["color"], marker=style["marker"], markersize=6)  # fmt: skip
    if log:
        logarithmic(axes)
    else:
        axes.set_xlim(left=0)
    label = _x_label(scene, cost) if cost != "round" else "Communication rounds"
    axes.set(xlabel=f"{label} ({unit})" if unit else label)
    _name_rows(axes, scene)
    return True


def draw_cdf(axes: Any, scene: Scene, figure: str) -> bool:
    """The share of clients up to a value, those of all seeds together; accuracy or size."""
    found: list[tuple[dict[str, Any], np.ndarray]] = []
    for position, group in enumerate(scene.groups):
        tables = [run.clients[figure] for run in group.runs if figure in run.clients]
        values = np.concatenate(tables) if tables else np.zeros(0)
        values = np.sort(values[np.isfinite(values)])
        if len(values):
            found.append(({**line_style(position), "label": text(group.label)}, values))
    if len(found) > 1 and all(np.array_equal(found[0][1], values) for _, values in found):
        axes.set_title("the same for all", fontsize="medium")
        found = [({"color": "black", "linestyle": "-"}, found[0][1])]
    for style, values in found:
        shares = np.arange(1, len(values) + 1) / len(values)
        axes.plot(np.append(values[0], values), np.append(0.0, shares), drawstyle="steps-post",
                  lw=1.7, markersize=4.2, markevery=max(1, len(values) // 6), **style)  # fmt: skip
    names = {
        "accuracy": f"Accuracy of a client (fraction of its {_of_split(scene)}labels)",
        "size": "Examples of a client (count)",
    }
    axes.set(xlabel=names[figure], ylabel="Share of clients up to it", ylim=(0, 1.02))
    plain(axes)
    return bool(found)


def splits_of(scene: Scene) -> dict[str, list[str]]:
    """Labels of the groups by the split that their clients were scored on; "" where unrecorded."""
    found: dict[str, list[str]] = {}
    for group in scene.groups:
        for run in group.runs:
            if "accuracy" in run.clients:
                names = found.setdefault(run.split or "", [])
                if group.label not in names:
                    names.append(group.label)
    return found


def _of_split(scene: Scene) -> str:
    splits = list(splits_of(scene))
    return f"{text(splits[0], length=20)} " if len(splits) == 1 and splits[0] else ""


def draw_fairness(axes: Any, scene: Scene) -> bool:
    """Mean over clients (filled) and mean of the worst 10 % (hollow), with intervals."""
    drawn = False
    for position, group in enumerate(scene.groups):
        found = [run.clients["accuracy"] for run in group.runs if "accuracy" in run.clients]
        if not found:
            continue
        drawn, style = True, line_style(position)
        summaries = [summarize_clients(a, np.ones(len(a))) for a in found]
        for offset, name, face in ((-0.12, "mean", style["color"]), (0.12, "worst", "white")):
            value = t_interval([s[name] for s in summaries], confidence=scene.confidence)
            half = 0.0 if math.isnan(value.half) else value.half
            low, high = ends(value.mean, half, fraction=True)
            error = [[value.mean - low], [high - value.mean]]
            axes.errorbar(value.mean, position + offset, xerr=error, capsize=3, lw=1.6,
                          color=style["color"], marker=style["marker"], markersize=6,
                          markerfacecolor=face)  # fmt: skip
    axes.set(
        xlabel=f"Accuracy (fraction of {_of_split(scene)}labels)\n"
        "filled: mean of clients, hollow: worst 10 %"
    )
    left, right = axes.get_xlim()
    axes.set_xlim(max(left, -0.02), min(right, 1.02))
    _name_rows(axes, scene)
    return drawn


def draw_privacy(axes: Any, scene: Scene) -> bool:
    """The metric against epsilon; a faint line at the end of groups that spend none."""
    drawn = draw_curves(axes, scene, scene.metric.name, x="epsilon")
    if not drawn:
        return False
    finals: list[float] = []
    for position, (group, row) in enumerate(zip(scene.groups, scene.table, strict=True)):
        if group.label not in drawn and row["final"] is not None:
            style = line_style(position)
            spent = "no epsilon" if row["epsilon"] is None else "epsilon infinite"
            label = text(f"{group.label} ({spent}, at its end)")
            line = {"color": style["color"], "ls": style["linestyle"], "alpha": 0.7}
            axes.axhline(row["final"].mean, lw=1.2, label=label, **line)
            finals.append(row["final"].mean)
    bottom, top = axes.get_ylim()
    finals = [end for end in finals if math.isfinite(end)]
    above = (end + 0.03 * (top - bottom) for end in finals)
    axes.set_ylim(min([bottom, *finals]), max([top, *above]))
    if len(axes.get_legend_handles_labels()[1]) <= MANY:  # else it is below the figure
        axes.legend(frameon=False, fontsize="small", loc="lower right")
    return True


def _name_rows(axes: Any, scene: Scene) -> None:
    names = [text(group.label, length=26) for group in scene.groups]
    axes.set_yticks(range(len(names)), names)
    axes.set_ylim(len(names) - 0.5, -0.5)
    plain(axes, "x")
