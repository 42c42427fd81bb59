"""Runs as they lie in folders: finding them and reading them back."""

from __future__ import annotations

import dataclasses
import glob
import json
import math
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from fedjax_lite.checks.arguments import as_path
from fedjax_lite.run.history import Row, read_rows

REMEDY = (
    "give a folder that fl.run(..., output_dir=...) wrote, one that holds such folders, or the "
    "results.json of an experiment"
)


@dataclasses.dataclass(frozen=True)
class Run:
    """One run: its rows, and what is known of how they came about.

    Attributes:
      name: of the folder, or any other.
      rows: the history, as `fedjax_lite.run` returns it.
      config: the settings that were handed to `run`; empty where there were none.
      key: words of the run's key.
      versions: of the packages, and the device.
      clients: what `save_clients` wrote: ``accuracy``, ``size``, ``label_counts`` as arrays.
      path: the folder, or the file that holds it; None for a history in memory.
      dataset: its name, where `save_clients` was told.
      split: which of the clients' data `clients` was scored on, where `save_clients` was told.
      notes: what is odd about the files.
    """

    name: str
    rows: Sequence[Row]
    config: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    key: tuple[int, ...] | None = None
    versions: Mapping[str, str] = dataclasses.field(default_factory=dict)
    clients: Mapping[str, np.ndarray] = dataclasses.field(default_factory=dict)
    path: Path | None = None
    dataset: str | None = None
    notes: tuple[str, ...] = ()
    split: str | None = None

    @property
    def columns(self) -> list[str]:
        """Names of all columns, in order of first appearance."""
        return list(dict.fromkeys(name for row in self.rows for name in row))

    @property
    def num_rounds(self) -> int:
        """Rounds done."""
        return int(self.rows[-1]["round"])


def find_runs(paths: Sequence[str | os.PathLike[str]]) -> list[Path]:
    """The folders of runs that paths name, and files of results, without repetitions.

    Args:
      paths: folders of runs, folders that hold some at any depth, files for `read_results`, or
        patterns such as ``"outputs/*-seed?"``. A run inside the folder of another (a baseline that
        belongs to it) counts only where it is named itself.

    Returns:
      The folders that hold a ``metrics.jsonl``, and files, in the order given, sorted within a
      path. Of a folder without runs the ``results.json`` in it.

    Raises:
      FileNotFoundError: if a path does not exist, or there is no run in it.

    Example:
      >>> import tempfile
      >>> with tempfile.TemporaryDirectory() as folder:
      ...     for seed in range(2):
      ...         (Path(folder) / f"seed{seed}").mkdir()
      ...         _ = (Path(folder) / f"seed{seed}" / "metrics.jsonl").write_text("")
      ...     [path.name for path in find_runs([folder])]
      ['seed0', 'seed1']
    """
    found: dict[Path, Path] = {}
    for path in paths:
        path = str(as_path(path, "paths"))
        if os.path.exists(path):
            matches = [path]
        else:
            matches = sorted(glob.glob(path, recursive=True))
            if not matches:
                kind = "no folder matches" if glob.has_magic(path) else "there is no folder"
                raise FileNotFoundError(f"paths: {kind} {path!r}; {REMEDY}")
        here = [run for match in matches for run in _below(Path(match))]
        if not here:
            files = sorted(file.name for match in matches for file in Path(match).glob("*.json"))
            named = f" (it holds {', '.join(files[:5])}{', ...' * (len(files) > 5)})" * bool(files)
            raise FileNotFoundError(
                f"paths: {path!r} holds no run, no metrics.jsonl in or below; {REMEDY}{named}"
            )
        for run in here:
            found.setdefault(run.resolve(), run)
    return list(found.values())


def _below(path: Path) -> list[Path]:
    if path.name == "metrics.jsonl" and path.is_file():
        return [path.parent]
    if path.is_file():
        return [path]
    if (path / "metrics.jsonl").is_file():
        return [path]
    folders = sorted(file.parent for file in path.rglob("metrics.jsonl"))
    runs = set(folders)
    found = [folder for folder in folders if not runs & set(folder.parents)]
    results = path / "results.json"
    return found or ([results] if results.is_file() else [])


def read_run(output_dir: str | os.PathLike[str]) -> Run:
    r"""Reads a run back from its folder, also while it is still being written.

    Args:
      output_dir: of the run: ``metrics.jsonl``, and where they are there ``config.json`` and
        ``clients.json``. A torn last line is left out.

    Returns:
      The `Run`; ``notes`` say what was missing or could not be read.

    Raises:
      FileNotFoundError: if there is no such folder, or it holds no ``metrics.jsonl``.
      ValueError: if no row is complete, or a line before the last is damaged.

    Example:
      >>> import tempfile
      >>> with tempfile.TemporaryDirectory() as folder:
      ...     file = Path(folder, "metrics.jsonl")
      ...     _ = file.write_text('{"round": 1, "test_accuracy": 0.5}\n{"round": 2, "te')
      ...     read_run(folder).rows
      [{'round': 1, 'test_accuracy': 0.5}]
    """
    output_dir = as_path(output_dir, "output_dir")
    if not output_dir.is_dir():
        raise FileNotFoundError(f"output_dir: there is no folder {str(output_dir)!r}; {REMEDY}")
    if not (output_dir / "metrics.jsonl").is_file():
        raise FileNotFoundError(f"{output_dir} holds no metrics.jsonl; {REMEDY}")
    rows = read_rows(output_dir / "metrics.jsonl")
    if not rows:
        raise ValueError(
            f"{output_dir / 'metrics.jsonl'} holds no complete row yet; leave this run out, or "
            "wait for its first evaluation"
        )
    name, notes = output_dir.resolve().name, []
    settings = _read_json(output_dir / "config.json", notes)
    config, versions = settings.get("config"), settings.get("versions")
    if not isinstance(config, Mapping):
        config = {}
        if not (output_dir / "config.json").exists():
            notes.append(
                f"{name} has no config.json, so it forms a group of its own; hand "
                "config={'method': ..., 'seed': ...} to fl.run"
            )
    words = settings.get("key")
    clients = _read_json(output_dir / "clients.json", notes)
    dataset, split = clients.get("dataset"), clients.get("split")
    return Run(
        name=name,
        rows=rows,
        config=config,
        key=tuple(words) if isinstance(words, list) else None,
        versions=dict(versions) if isinstance(versions, Mapping) else {},
        clients=_clients(clients.get("per_client"), output_dir / "clients.json", notes),
        path=output_dir,
        dataset=dataset if isinstance(dataset, str) else None,
        notes=tuple(notes),
        split=split if isinstance(split, str) else None,
    )


def _read_json(path: Path, notes: list[str]) -> Mapping[str, Any]:
    if not path.exists():
        return {}
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
        if not isinstance(value, Mapping):
            raise ValueError(f"expected an object, got {type(value).__name__}")
    except (ValueError, OSError, RecursionError) as error:
        notes.append(f"{path} could not be read and is left out: {error}")
        return {}
    return value


def _clients(figures: Any, path: Path, notes: list[str]) -> dict[str, np.ndarray]:
    """Figures of single clients; what has not the shape that it should have is left out."""
    if not isinstance(figures, Mapping):
        return {}
    tables: dict[str, np.ndarray] = {}
    for name, ndim in (("accuracy", 1), ("size", 1), ("label_counts", 2)):
        try:
            values = figures.get(name)
            if values is None:
                continue
            table = np.asarray(_with_nan(values), np.float64)
            if table.ndim != ndim or not table.size:
                raise ValueError(f"shape {table.shape}")
            tables[name] = table
        except (ValueError, TypeError) as error:
            notes.append(f"{path}: {name} is damaged and left out: {error}")
    if len({len(table) for table in tables.values()}) > 1:
        notes.append(f"{path}: figures of different numbers of clients are left out")
        return {}
    return tables


def _with_nan(values: Any) -> Any:
    if isinstance(values, list):
        return [_with_nan(value) for value in values]
    return math.nan if values is None else values
