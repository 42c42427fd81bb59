"""compare: folders of runs in, one page or one picture out."""

from __future__ import annotations

import dataclasses
import datetime
import functools
import os
import shlex
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from fedjax_lite.checks.arguments import as_path
from fedjax_lite.report import page
from fedjax_lite.report.drawing import Scene
from fedjax_lite.report.groups import Group, dataset_of, group_runs
from fedjax_lite.report.panels import make_overview, make_panels
from fedjax_lite.report.results import read_results
from fedjax_lite.report.runs import Run, find_runs, read_run
from fedjax_lite.report.statistics import CONFIDENCE, points
from fedjax_lite.report.style import save_png
from fedjax_lite.report.summary import choose_metric, choose_target, summarize
from fedjax_lite.run.files import save_text_atomic
from fedjax_lite.version import __version__

if TYPE_CHECKING:
    from matplotlib.figure import Figure

MANY = 8


@dataclasses.dataclass(frozen=True, eq=False, repr=False)
class Comparison:
    """What `compare` found; a notebook shows it as the page.

    Attributes:
      groups: runs by setting.
      table: one row a group, see `fedjax_lite.report.summary.summarize`.
      figures: by panel: metric, loss, target, clients, partition, privacy, drift, as far as
        recorded; a list each.
      missing: by panel that is left out, how to record it.
      notes: what a reader should know before comparing.
      path: where it was written; None for nowhere.
    """

    groups: list[Group]
    table: list[dict[str, Any]]
    figures: Mapping[str, list[Figure]]
    missing: Mapping[str, str]
    notes: list[str]
    path: Path | None
    _title: str
    _content: Callable[[], str]
    _overview: Callable[[], Figure]

    @functools.cached_property
    def html(self) -> str:
        """The whole page."""
        return page.document(self._content(), self._title)

    @functools.cached_property
    def overview(self) -> Figure:
        """The main panels as one figure."""
        return self._overview()

    def _repr_html_(self) -> str:
        return self.html[self.html.index("<style>") : self.html.rindex("</body>")]

    def __repr__(self) -> str:
        return f"Comparison(groups={[g.label for g in self.groups]}, path={self.path})"


def compare(
    runs: Sequence[str | os.PathLike[str] | Run] | str | os.PathLike[str] | Run,
    *,
    path: str | os.PathLike[str] | None = None,
    group_by: Sequence[str] | str | Callable[[Run], str] | None = None,
    title: str | None = None,
    metric: str | None = None,
    target: float | None = None,
    confidence: float = CONFIDENCE,
    overwrite: bool = False,
    command: str | None = None,
) -> Comparison:
    """Compares runs: a table, curves with bands over seeds, costs, clients, privacy, drift.

    Runs that differ only in the seed form a group. Lines are means over its seeds, bands Student's
    confidence interval of the mean; a group of one run has no band. Panels whose data no run
    recorded are left out, and the page says how to record them.

    Args:
      runs: folders that `fedjax_lite.run` wrote, folders that hold some, patterns, the
        ``results.json`` of an experiment that records curves, or `Run`s of histories in memory;
        one, or a list.
      path: ``.html`` for a page that needs nothing beside itself, ``.png`` for the main panels as
        one picture; None writes nothing.
      group_by: None: all settings but the seed; "folder": each run alone; names of settings; or a
        function from a `Run` to a label. See `group_runs`.
      title: of the page; default from the data set.
      metric: the column to compare; default test accuracy, else another accuracy, else a loss.
      target: value of the metric for the costs to reach it (accuracies are fractions); default
        the highest multiple of 0.05 that every run reaches.
      confidence: of the intervals, in (0, 1).
      overwrite: replace an earlier file at `path`.
      command: what the page names as the command that made it; default this call.

    Returns:
      A `Comparison`.

    Raises:
      FileExistsError: if `path` exists and `overwrite` is False.
      FileNotFoundError: if a folder does not exist or holds no run.
      ValueError: if `path` ends in neither .html nor .png, a metric is no column, a target is no
        fraction, or a file is damaged.

    Example:
      >>> rows = [{"round": r, "test_accuracy": r / 4, "seconds": float(r)} for r in range(4)]
      >>> runs = [Run(f"{m}{s}", rows, config={"method": m, "seed": s})
      ...         for m in ("FedAvg", "SCAFFOLD") for s in range(3)]
      >>> comparison = compare(runs)
      >>> [(row["label"], row["num_seeds"], row["final"].mean) for row in comparison.table]
      [('FedAvg', 3, 0.75), ('SCAFFOLD', 3, 0.75)]
    """
    path = _check_path(path, overwrite)
    given = [runs] if isinstance(runs, str | os.PathLike | Run) else list(runs)
    found = _read(given)
    groups, notes = group_runs(found, group_by=group_by)
    chosen = choose_metric(groups, metric)
    if target is not None and chosen.percent and not 0 < target <= 1:
        raise ValueError(
            f"target must be a fraction in (0, 1] for {chosen.name} (60 % is 0.6), got "
            f"{target}; give a fraction"
        )
    aim = target if target is not None else choose_target(groups, chosen)
    table = summarize(groups, chosen, target=aim, confidence=confidence)
    scene = Scene(groups, chosen, table, aim, confidence)
    notes = [n for run in found for n in run.notes] + notes + _warnings(groups, chosen.name)
    panels = make_panels(scene)
    datasets = sorted({dataset_of(run) or "" for run in found} - {""})
    known = bool(datasets) and all(dataset_of(run) for run in found)
    title = title or f"Comparison of runs{' on ' if known else ''}{', '.join(datasets) * known}"
    about = {
        "date": datetime.datetime.now().astimezone().strftime("%Y-%m-%d %H:%M %Z"),
        "data": f"Data: {', '.join(datasets)}." if datasets else "",
        "versions": _versions(found),
        "command": command or _call(given, path),
    }
    if aim is None:
        target_note = ""
    elif target is None:
        target_note = f"Target {aim:g}: the highest multiple of 0.05 that every run reaches."
    else:
        target_note = f"Target {aim:g}, as asked for."
    comparison = Comparison(
        groups=groups,
        table=table,
        figures={panel.name: panel.figures for panel in panels if panel.figures},
        missing={panel.name: panel.remedy for panel in panels if panel.remedy},
        notes=notes,
        path=path,
        _title=title,
        _content=functools.partial(
            page.body, scene, panels, title=title, notes=notes, about=about, target_note=target_note
        ),
        _overview=functools.partial(make_overview, scene, title),
    )
    if path is not None:
        path.parent.mkdir(parents=True, exist_ok=True)
        if path.suffix.lower() == ".png":
            save_png(comparison.overview, path)
        else:
            save_text_atomic(path, comparison.html)
    return comparison


def _check_path(path: str | os.PathLike[str] | None, overwrite: bool) -> Path | None:
    if path is None:
        return None
    path = as_path(path, "path")
    if path.suffix.lower() not in (".html", ".htm", ".png"):
        raise ValueError(f"path must end in .html or .png, got {str(path)!r}")
    if path.is_dir():
        raise IsADirectoryError(f"path must be a file to write, {path} is a folder")
    if path.exists() and not overwrite:
        raise FileExistsError(
            f"{path} exists; give overwrite=True (--overwrite) to replace it, or another path"
        )
    return path


def _read(given: Sequence[Any]) -> list[Run]:
    """Runs as they are, and the folders that paths name."""
    found: list[Run] = []
    seen: set[Path] = set()
    for item in given:
        if isinstance(item, Run):
            if not item.rows:
                raise ValueError(f"runs must hold rows, but {item.name!r} has none")
            found.append(item)
            continue
        if not isinstance(item, str | os.PathLike):
            raise TypeError(
                f"runs must be folders or Runs, got {type(item).__name__} {item!r:.80}; a history "
                "in memory is fl.report.Run(name, rows, config={'seed': ...})"
            )
        for place in _places(item):
            if place.resolve() not in seen:
                seen.add(place.resolve())
                found += read_results(place) if place.is_file() else [read_run(place)]
    return found


def _places(item: str | os.PathLike[str]) -> list[Path]:
    """`find_runs` of one of `runs`, under that name where it finds none."""
    try:
        return find_runs([item])
    except FileNotFoundError as error:
        raise FileNotFoundError(str(error).replace("paths:", "runs:", 1)) from None


def _warnings(groups: Sequence[Group], metric: str) -> list[str]:
    """What makes groups hard to compare."""
    notes: list[str] = []
    runs = [run for group in groups for run in group.runs]
    datasets = sorted({dataset_of(run) or "unknown" for run in runs})
    if len(datasets) > 1:
        notes.append(f"the runs use different data sets: {', '.join(datasets)}")
    devices = sorted({f"{run.versions.get('num_devices', '?')} x {run.versions['device']}"
                      for run in runs if "device" in run.versions})  # fmt: skip
    if len(devices) > 1:
        notes.append(f"the runs were timed on different devices: {', '.join(devices)}")
    for group in groups:
        values = [points(run, metric, "round") for run in group.runs]
        lacking = sum(value is None for value in values)
        diverged = sum(value is not None and not np.isfinite(value[1][-1]) for value in values)
        of = f"{len(group.runs)} runs of {group.label}"
        if lacking:
            notes.append(f"{lacking} of {of} have no {metric}, so the group has no curve of it")
        if diverged:
            notes.append(f"{diverged} of {of} end in a {metric} that is not finite: they diverged")
        rounds = [run.num_rounds for run in group.runs]
        planned = group.settings.get("num_rounds")
        scored = [tuple(value[0]) for value in values if value is not None]
        if len(set(scored)) > 1 and len(set(rounds)) == 1:
            notes.append(
                f"runs of {group.label} were evaluated in different rounds: curves show the rounds "
                "that all have, and the best of a run is the best of its own evaluations"
            )
        if len(set(rounds)) > 1:
            notes.append(
                f"runs of {group.label} have different lengths ({min(rounds)} to {max(rounds)} "
                "rounds): curves end with the shortest, figures of the end mix them"
            )
        if isinstance(planned, int) and min(rounds) < planned:
            notes.append(f"runs of {group.label} have done {min(rounds)} of {planned} rounds")
    if len(groups) > MANY:
        notes.append(
            f"{len(groups)} groups are hard to tell apart; compare fewer, or name the settings "
            "that matter as group_by"
        )
    if any(len(group.runs) == 1 for group in groups):
        alone = [group.label for group in groups if len(group.runs) == 1]
        notes.append(
            f"one seed only, so no interval: {', '.join(alone[:6])}"
            + (f" and {len(alone) - 6} more" if len(alone) > 6 else "")
        )
    two = [group.label for group in groups if len(group.runs) == 2]
    if two:
        notes.append(
            "two seeds only, so intervals are very wide (at 95 % 9 times the standard deviation; "
            f"with three seeds 2.5 times): {', '.join(two[:6])}"
            + (f" and {len(two) - 6} more" if len(two) > 6 else "")
        )
    return notes


def _versions(runs: Sequence[Run]) -> str:
    """All values that occur, by package."""
    table: dict[str, list[str]] = {}
    for run in runs:
        for name, version in run.versions.items():
            table.setdefault(name, []).append(str(version))
    listed = [f"{name} {' / '.join(dict.fromkeys(values))}" for name, values in table.items()]
    return ", ".join([*listed, f"report by fedjax_lite {__version__}"])


def _call(given: Sequence[Any], path: Path | None) -> str:
    places = [item.name if isinstance(item, Run) else str(item) for item in given]
    if path is None or any(isinstance(item, Run) for item in given):
        return f"fl.report.compare({places})"
    return shlex.join(["python", "-m", "fedjax_lite.report", *places, "--output", str(path)])
