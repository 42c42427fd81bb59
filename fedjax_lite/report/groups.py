"""Runs that differ only in the seed belong together: grouping, names, differences."""

from __future__ import annotations

import dataclasses
import itertools
import json
import re
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from fedjax_lite.report.runs import Run

IGNORED = (
    *("seed", "output_dir", "resume", "overwrite", "progress", "tensorboard"),
    *("data_dir", "schedule_rounds"),
)
"""Settings that change no result but by rounding, or that the others imply, at any depth."""
IGNORED_OF_RUNS = (
    *("key", "devices", "num_devices", "strategy", "layout", "num_lanes", "lanes"),
    *("every", "eval_every", "evaluate_every", "per_client_every"),
    *("checkpoint_every", "stop_if_diverged", "config_may_change"),
)
"""The same, but only at the top or under "run": the key of a partition counts."""
NAMES = ("method", "algorithm", "name")
DATASETS = ("dataset_used", "dataset")
ABSENT = "absent"
MAX_LABEL = 44


@dataclasses.dataclass(frozen=True)
class Group:
    """Runs of one setting, one a seed.

    Attributes:
      label: what the figures and the table call it.
      runs: sorted by seed.
      settings: the config that they share, nested names joined by dots.
    """

    label: str
    runs: tuple[Run, ...]
    settings: Mapping[str, Any]


def settings_of(run: Run, keep: Sequence[str] = ()) -> dict[str, Any]:
    """The config of a run without seed, folder and the like (but with `keep`), flat.

    Example:
      >>> settings_of(Run("a", [], config={"seed": 1, "client": {"epochs": 5}}))
      {'client.epochs': 5}
    """
    flat = _flat(run.config)
    return {name: value for name, value in flat.items() if name in keep or not _ignored(name)}


def _ignored(name: str) -> bool:
    *groups, last = name.split(".")
    return last in IGNORED or (last in IGNORED_OF_RUNS and groups in ([], ["run"]))


def seed_of(run: Run) -> Any:
    """The seed by the config (several as a tuple), else the words of the key, else None.

    Example:
      >>> seed_of(Run("a", [], config={"seed": 3})), seed_of(Run("b", [], key=(0, 7)))
      (3, (0, 7))
      >>> seed_of(Run("c", [], config={"data": {"seed": 0}, "seed": 3}))
      (0, 3)
    """
    seeds = [value for name, value in _flat(run.config).items() if name.split(".")[-1] == "seed"]
    return (seeds[0] if len(seeds) == 1 else tuple(seeds)) if seeds else run.key


def dataset_of(run: Run) -> str | None:
    """The data set that a run really used, where it says so."""
    flat = _flat(run.config)
    return next((str(flat[name]) for name in DATASETS if flat.get(name)), run.dataset)


def group_runs(
    runs: Sequence[Run], *, group_by: Sequence[str] | str | Callable[[Run], str] | None = None
) -> tuple[list[Group], list[str]]:
    """Puts runs together that differ only in the seed.

    Args:
      runs: from `read_run`.
      group_by: None: by the config without the seed (and without what changes no result, such as
        the output folder); a run without a config stays alone. "folder": every run alone. Names of
        settings, nested ones with dots: runs that agree on these are one group. A function of the
        run: by the label that it returns.

    Returns:
      The groups in order of first appearance, labelled by method, else by the settings in which
      they differ, else by their folders; and notes on what a reader should know.

    Raises:
      ValueError: if there is no run, or no run has a setting named in `group_by`.

    Example:
      >>> runs = [Run(f"a{s}{m}", [{"round": 0}], config={"mu": m, "seed": s})
      ...         for m in (0, 1) for s in (0, 1, 2)]
      >>> groups, notes = group_runs(runs)
      >>> [(group.label, len(group.runs)) for group in groups]
      [('mu=0', 3), ('mu=1', 3)]
    """
    if not runs:
        raise ValueError("runs must name at least one run, got none")
    chosen = _chosen(runs, group_by)
    table: dict[str, list[Run]] = {}
    for position, run in enumerate(runs):
        if callable(group_by):
            name = str(group_by(run))
        elif group_by == "folder" or (group_by is None and not run.config):
            name = f"{position}"
        elif chosen:
            flat = settings_of(run, chosen)
            name = _json({key: flat.get(key, ABSENT) for key in chosen})
        else:
            name = _json(settings_of(run))
        table.setdefault(name, []).append(run)
    if group_by is None:
        table = _by_dataset(table)
    notes: list[str] = []
    members = [_one_a_seed(found, notes) for found in table.values()]
    shared = [_shared(found, chosen) for found in members]
    labels = list(table) if callable(group_by) else _labels(members, shared, chosen)
    groups = [Group(*triple) for triple in zip(labels, members, shared, strict=True)]
    if group_by is not None:
        notes += [_mixed(group) for group in groups if _mixed(group)]
    return groups, notes


def differences(groups: Sequence[Group]) -> dict[str, list[Any]]:
    """The settings in which groups differ: a value a group, "absent" where it has none.

    Example:
      >>> groups, _ = group_runs([Run("a", [], config={"mu": m, "epochs": 1}) for m in (0, 1)])
      >>> differences(groups)
      {'mu': [0, 1]}
    """
    names = list(dict.fromkeys(name for group in groups for name in group.settings))
    values = {name: [group.settings.get(name, ABSENT) for group in groups] for name in names}
    return {name: row for name, row in values.items() if len({_json(value) for value in row}) > 1}


def _chosen(runs: Sequence[Run], group_by: Any) -> list[str]:
    if group_by is None or callable(group_by) or group_by == "folder":
        return []
    chosen = [group_by] if isinstance(group_by, str) else list(group_by)
    known = sorted({name for run in runs for name in _flat(run.config)})
    unknown = [name for name in chosen if name not in known]
    if unknown:
        raise ValueError(
            f"group_by names {unknown}, which no run has set; give 'folder' or some of {known}"
        )
    return chosen


def _by_dataset(table: Mapping[str, list[Run]]) -> dict[str, list[Run]]:
    """Parts groups whose runs used different data sets, whatever their settings say."""
    parted: dict[str, list[Run]] = {}
    for name, runs in table.items():
        several = len({dataset_of(run) for run in runs} - {None}) > 1
        for run in runs:
            key = f"{name} {dataset_of(run)}" if several else name
            parted.setdefault(key, []).append(run)
    return parted


def _one_a_seed(runs: Sequence[Run], notes: list[str]) -> tuple[Run, ...]:
    """A second run of the same seed would count twice: the longer one stays."""
    best: dict[str, Run] = {}
    for run in runs:
        # One seed in the config may be that of the data, say, while keys tell runs apart.
        same = [seed_of(run), run.key, dataset_of(run), settings_of(run)]
        name = f"{id(run)}" if seed_of(run) is None else _json(same)
        other = best.get(name)
        if other is not None:
            keep, drop = (run, other) if run.num_rounds > other.num_rounds else (other, run)
            notes.append(
                f"{drop.name} is left out: it has the config and the seed of {keep.name}. If they "
                "are different methods, let config={'method': ...} of fl.run say so, or group by "
                "folder"
            )
            run = keep
        best[name] = run
    return tuple(sorted(best.values(), key=lambda run: _order(seed_of(run))))


def _order(seed: Any) -> tuple:
    if isinstance(seed, int | float):
        return (0, seed, "")
    plain = isinstance(seed, tuple) and all(isinstance(one, int | float) for one in seed)
    return (1, seed, "") if plain else (2, 0, str(seed))


def _shared(runs: Sequence[Run], keep: Sequence[str]) -> dict[str, Any]:
    """Settings of all runs; where they differ, the values side by side."""
    flats = [settings_of(run, keep) for run in runs]
    names = list(dict.fromkeys(name for flat in flats for name in flat))
    shared: dict[str, Any] = {}
    for name in names:
        values = {_json(flat.get(name, ABSENT)): flat.get(name, ABSENT) for flat in flats}
        shared[name] = (
            next(iter(values.values()))
            if len(values) == 1
            else " | ".join(show(value) for value in values.values())
        )
    return shared


def _mixed(group: Group) -> str:
    flats = [settings_of(run) for run in group.runs]
    names = list(dict.fromkeys(name for flat in flats for name in flat))
    mixed = [n for n in names if len({_json(flat.get(n, ABSENT)) for flat in flats}) > 1]
    if not mixed:
        return ""
    return (
        f"runs of {group.label} differ in more than the seed ({', '.join(mixed[:6])}), so its "
        "interval is not one over seeds"
    )


def _labels(
    members: Sequence[Sequence[Run]], shared: Sequence[Mapping[str, Any]], chosen: Sequence[str]
) -> list[str]:
    """Short names, all different."""
    groups = [Group("", tuple(m), s) for m, s in zip(members, shared, strict=True)]
    tries: list[list[str]] = []
    if not chosen:
        for name in NAMES:
            tries.append([str(group.settings.get(name) or "") for group in groups])
    names = list(chosen) or list(differences(groups))
    tries.append([", ".join(f"{n}={show(g.settings.get(n, ABSENT))}" for n in names)
                  for g in groups])  # fmt: skip
    tries.append([_common_name(group.runs) for group in groups])
    for labels in tries:
        if all(0 < len(label) <= MAX_LABEL for label in labels) and len(set(labels)) == len(labels):
            return labels
    return [
        f"{position + 1}: {_common_name(group.runs) or 'runs'}"[:MAX_LABEL]
        for position, group in enumerate(groups)
    ]


def _common_name(runs: Sequence[Run]) -> str:
    """What the folders' names begin with, without the seed's number."""
    if len(runs) == 1:
        return runs[0].name
    names = [run.name for run in runs]
    same = itertools.takewhile(lambda letters: len(set(letters)) == 1, zip(*names))
    start = "".join(letters[0] for letters in same).rstrip("0123456789-_. ")
    return re.sub(r"([-_. ](s|seed|run)|seed)$", "", start).rstrip("-_. ")


def show(value: Any) -> str:
    """A setting as short text.

    Example:
      >>> show(0.1), show(None), show([1, 2])
      ('0.1', 'none', '[1, 2]')
    """
    if value is None:
        return "none"
    if isinstance(value, float):
        return f"{value:g}"
    return value if isinstance(value, str) else _json(value)


def _flat(config: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    flat: dict[str, Any] = {}
    for name, value in config.items():
        if isinstance(value, Mapping):
            flat |= _flat(value, f"{prefix}{name}.")
        else:
            flat[f"{prefix}{name}"] = value
    return flat


def _json(value: Any) -> str:
    return json.dumps(value, sort_keys=True, default=str)
