"""The page: HTML that needs nothing beside itself. Whatever comes from a file is escaped."""

from __future__ import annotations

import base64
import io
import math
from collections.abc import Callable, Mapping, Sequence
from html import escape
from typing import TYPE_CHECKING, Any

from fedjax_lite.report.drawing import Scene, unit_of
from fedjax_lite.report.groups import ABSENT, differences, show
from fedjax_lite.report.panels import Panel
from fedjax_lite.report.statistics import Interval, ends
from fedjax_lite.report.style import line_style, percent
from fedjax_lite.report.summary import SIMULATED, costs_of

if TYPE_CHECKING:
    from matplotlib.figure import Figure

COST = {"round": "Rounds", "bytes": "Bytes", "seconds": "Time", SIMULATED: "Simulated time"}
STYLE = """
.fl-report { font: 15px/1.5 system-ui, sans-serif; color: #1a1a1a; background: #fff;
  max-width: 1180px; margin: 0 auto; padding: 1.2em; }
.fl-report h1 { font-size: 1.55em; line-height: 1.2; margin: .2em 0; }
.fl-report h2 { font-size: 1.12em; margin: 1.9em 0 .4em; border-bottom: 1px solid #ddd;
  padding-bottom: .2em; }
.fl-report .wide { overflow-x: auto; }
.fl-report table { border-collapse: collapse; font-size: .88em; margin: .4em 0; }
.fl-report th, .fl-report td { padding: .32em .7em; text-align: right; vertical-align: top;
  border-bottom: 1px solid #e4e4e4; color: inherit; background: none; }
.fl-report td { font-variant-numeric: tabular-nums; white-space: nowrap; }
.fl-report th { border-bottom: 2px solid #999; font-weight: 600; vertical-align: bottom; }
.fl-report th:first-child, .fl-report td:first-child { text-align: left; }
.fl-report table.settings th { white-space: nowrap; }
.fl-report table.settings td { white-space: normal; text-align: left; overflow-wrap: anywhere; }
.fl-report table.settings th { text-align: left; }
.fl-report table.settings td:first-child { white-space: nowrap; }
.fl-report td.differs { background: #fff3c9; }
.fl-report .best { font-weight: 700; }
.fl-report .swatch { vertical-align: middle; margin-right: .45em; }
.fl-report figure { margin: .5em 0; }
.fl-report figure img { max-width: 100%; height: auto; }
.fl-report figcaption, .fl-report .quiet { color: #555; font-size: .88em; }
.fl-report .notes { border-left: 4px solid #D55E00; padding: .1em 1em; background: #fdf4ef; }
.fl-report code { overflow-wrap: anywhere; font-size: .92em; }
@media print {
  .fl-report { font-size: 10pt; max-width: none; padding: 0; }
  .fl-report .wide { overflow: visible; }
  .fl-report table { font-size: 7.5pt; }
  .fl-report th, .fl-report td { padding: .2em .4em; }
  .fl-report h2 { break-after: avoid; }
  .fl-report figure, .fl-report table, .fl-report .notes { break-inside: avoid; }
  .fl-report td.differs { outline: 1px solid #999; outline-offset: -1px; }
}
"""


def body(
    scene: Scene,
    panels: Sequence[Panel],
    *,
    title: str,
    notes: Sequence[str],
    about: Mapping[str, str],
    target_note: str,
) -> str:
    """The report as one element with its style, to be put into any page or notebook."""
    parts = [f"<style>{STYLE}</style>", '<div class="fl-report">', f"<h1>{escape(title)}</h1>"]
    runs = sum(len(group.runs) for group in scene.groups)
    summary = f"{count(runs, 'run')} in {count(len(scene.groups), 'group')}. {about['data']}"
    parts.append(f'<p class="quiet">{escape(summary)} Made {escape(about["date"])}.</p>')
    if notes:
        items = "".join(f"<li>{escape(note)}</li>" for note in notes)
        parts.append(f'<div class="notes"><p><b>Before you compare</b></p><ul>{items}</ul></div>')
    parts += ["<h2>Summary</h2>", summary_table(scene), _key(scene, target_note)]
    for panel in panels:
        if panel.figures:
            parts.append(f"<h2>{escape(panel.title)}</h2>")
            pictures = "".join(_picture(figure, panel.title) for figure in panel.figures)
            caption = f"<figcaption>{escape(panel.caption)}</figcaption>"
            parts.append(f"<figure>{pictures}{caption}</figure>")
    parts += ["<h2>Settings</h2>", _settings(scene)]
    missing = [panel for panel in panels if panel.remedy]
    if missing:
        items = "".join(
            f"<li>{escape(panel.title)}: {escape(panel.remedy)}.</li>" for panel in missing
        )
        parts.append(f"<h2>Left out, and how to get it</h2><ul>{items}</ul>")
    parts.append("<h2>Where this comes from</h2><ul>")
    for group in scene.groups:
        places = ", ".join(dict.fromkeys(str(run.path or run.name) for run in group.runs))
        parts.append(f"<li>{escape(group.label)}: <code>{escape(places)}</code></li>")
    parts.append(f"<li>Versions: {escape(about['versions'])}</li>")
    parts.append(f"<li>Command: <code>{escape(about['command'])}</code></li></ul></div>")
    return "\n".join(parts)


def document(content: str, title: str) -> str:
    """A whole page around a body; it may load nothing and run nothing."""
    policy = "default-src 'none'; img-src data:; style-src 'unsafe-inline'"
    return (
        '<!DOCTYPE html>\n<html lang="en"><head><meta charset="utf-8">'
        f'<meta http-equiv="Content-Security-Policy" content="{policy}">'
        '<meta name="viewport" content="width=device-width, initial-scale=1">'
        f"<title>{escape(title)}</title></head><body>\n{content}\n</body></html>\n"
    )


def summary_table(scene: Scene) -> str:
    """Results and costs, a row a group each; columns that no group fills are left out."""
    metric, table = scene.metric, scene.table
    name = escape(metric.name.replace("_", " "))
    finals = [r["final"].mean if r["final"] else math.nan for r in table]
    known = [value for value in finals if math.isfinite(value)]
    top = (max if metric.largest else min)(known) if known else None
    names = [_swatch(i) + escape(row["label"]) for i, row in enumerate(table)]
    method = ("Method", names)
    cells = [_figure(row["final"], metric.percent) for row in table]
    if len(table) > 1:
        cells = [
            f'<span class="best">{cell}</span>' if value == top else cell
            for value, cell in zip(finals, cells, strict=True)
        ]
    results: list[tuple[str, list[str]]] = [
        method,
        ("Seeds n", [str(row["num_seeds"]) for row in table]),
        ("Rounds", ["-".join(map(str, sorted(set(row["rounds"])))) for row in table]),
        (f"Final {name}", cells),
        (f"Best {name}", [_figure(row["best"], metric.percent) for row in table]),
        ("Worst 10 % of clients", [_figure(row["worst"], True) for row in table]),
        ("Epsilon", [_figure(row["epsilon"], False) for row in table]),
    ]
    costs: list[tuple[str, list[str]]] = [method]
    if scene.target is not None:
        for cost in costs_of(scene.groups):
            costs.append((f"{COST[cost]} to {scene.target:g}", [_reach(r, cost) for r in table]))
    costs += [
        ("Sent up", [_cost(row["uplink"], "bytes") for row in table]),
        ("Sent down", [_cost(row["downlink"], "bytes") for row in table]),
        ("Time in all", [_cost(row["seconds"], "seconds") for row in table]),
        ("Simulated time in all", [_cost(row.get(SIMULATED), SIMULATED) for row in table]),
    ]
    return _table(results) + _table(costs)


def _table(columns: Sequence[tuple[str, list[str]]]) -> str:
    """Columns of cells that are HTML already."""
    columns = [column for column in columns if set(column[1]) != {""}]
    head = "".join(f"<th>{name}</th>" for name, _ in columns)
    rows = "".join(
        f"<tr>{''.join(f'<td>{cell}</td>' for cell in row)}</tr>"
        for row in zip(*(cells for _, cells in columns), strict=True)
    )
    return f'<div class="wide"><table><tr>{head}</tr>{rows}</table></div>'


def _reach(row: Mapping[str, Any], cost: str) -> str:
    """The cost of the target, or how many seeds got there where not all did."""
    if row["num_reached"] < row["num_seeds"]:
        return f"{row['num_reached']} of {row['num_seeds']} seeds"
    return _cost(row[f"to_{cost}"], cost)


def _key(scene: Scene, target_note: str) -> str:
    level = percent(scene.confidence)
    words = (
        f"Mean ± half width of the {level} confidence interval of the mean over seeds (Student t "
        "with n - 1 degrees of freedom; not the standard error), without ± for one seed and where "
        "all seeds agree; [low, high] where it would leave 0 to 100 %, which is cut off. "
        "Bold: the best mean, whether or not intervals overlap. Best: over the "
        "rounds, so it looks at the test data. Bytes: all clients together, decimal units, up and "
        f"down where not said. {target_note}"
    )
    return f'<p class="quiet">{escape(words)}</p>'


def _figure(value: Interval | None, in_percent: bool) -> str:
    if value is None:
        return ""
    if math.isnan(value.mean):
        return "not a number"
    if in_percent:
        low, high = (100 * float(end) for end in ends(value.mean, value.half, fraction=True))
        if high - low < 199.999 * value.half:  # clipped, so no longer symmetric
            return f"{100 * value.mean:.2f} [{low:.2f}, {high:.2f}] %"
        return f"{100 * value.mean:.2f}{_half(value, lambda half: f'{100 * half:.2f}')} %"
    return f"{value.mean:.4g}{_half(value, lambda half: f'{half:.2g}')}"


def _cost(value: Interval | None, quantity: str) -> str:
    if value is None:
        return ""
    scale, unit = unit_of(quantity, value.mean)
    half = _half(value, lambda half: _short(half / scale))
    return f"{_short(value.mean / scale)}{half} {unit}".strip()


def _half(value: Interval, write: Callable[[float], str]) -> str:
    """The half width, where seeds differ by more than rounding."""
    return f" ± {write(value.half)}" if value.half > 1e-9 * abs(value.mean) else ""


def _short(value: float) -> str:
    if value >= 100:
        return f"{value:.0f}"
    return f"{value:.1f}" if value >= 0.05 or value == 0 else f"{value:.1g}"


def _settings(scene: Scene) -> str:
    """Settings in which the groups differ, marked where they leave the commonest value."""
    differ = differences(scene.groups)
    parts = []
    if differ:
        head = "".join(
            f"<th>{_swatch(i)}{escape(g.label)}</th>" for i, g in enumerate(scene.groups)
        )
        rows = []
        for name, values in differ.items():
            shown = [show(value) for value in values]
            if name == "name" and shown == [group.label for group in scene.groups]:
                continue  # the heads say it
            common = max(shown, key=shown.count)
            marked = shown.count(common) > 1
            cells = "".join(
                f'<td class="differs">{escape(v)}</td>' if not marked or v != common
                else f"<td>{escape(v)}</td>"
                for v in shown
            )  # fmt: skip
            rows.append(f"<tr><td>{escape(name)}</td>{cells}</tr>")
        parts.append(
            '<p>What differs (shaded where it is not what most have):</p><div class="wide">'
            f'<table class="settings"><tr><th>Setting</th>{head}</tr>{"".join(rows)}</table></div>'
        )
    first = scene.groups[0].settings
    same = {n: v for n, v in first.items() if n not in differ and v != ABSENT}
    if same:
        listed = ", ".join(f"{name} = {show(value)}" for name, value in same.items())
        parts.append(f'<p class="quiet">The same for all: <code>{escape(listed)}</code></p>')
    return "".join(parts) or "<p>No run has a config.json.</p>"


def _swatch(position: int) -> str:
    """The line of a group, as in the figures."""
    style = line_style(position)
    pattern = style["linestyle"]
    named = {"-": "", "--": "6 3", "-.": "6 2 1 2", ":": "1.5 2"}
    dashes = named[pattern] if isinstance(pattern, str) else " ".join(map(str, pattern[1]))
    return (
        '<svg class="swatch" width="26" height="8" aria-hidden="true"><line x1="0" y1="4" x2="26" '
        f'y2="4" stroke="{style["color"]}" stroke-width="3" stroke-dasharray="{dashes}"/></svg>'
    )


def _picture(figure: Figure, title: str) -> str:
    """A figure as an image in the page: vectors, isolated, so nothing in it can run."""
    file = io.BytesIO()
    figure.savefig(file, format="svg", metadata={"Date": None})
    code = base64.b64encode(file.getvalue()).decode()
    width = round(92 * figure.get_size_inches()[0])
    return f'<img width="{width}" alt="{escape(title)}" src="data:image/svg+xml;base64,{code}">'


def count(number: int, word: str) -> str:
    """A number with its noun: "1 group", "2 groups"."""
    return f"{number} {word}{'' if number == 1 else 's'}"
