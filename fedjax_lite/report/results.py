"""What experiments write: results in one JSON file, of which those with curves become runs."""

from __future__ import annotations

import json
import math
import os
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from fedjax_lite.checks.arguments import as_path
from fedjax_lite.report.runs import Run
from fedjax_lite.run.history import read_rows

IDENTITY = (
    *("method", "algorithm", "uplink", "rule", "attack", "bucket_size", "cell", "deal", "split"),
    *("alpha", "stragglers", "mu", "epsilon", "effective_rate", "learning_rate", "dataset"),
)
"""Columns of a row that say what was run; the others say what came out."""
MEGABYTE = 8e6
"""Bits."""
OF_A_RUN = ("config.json", "clients.json", "gap.json", "layout.json")
TABLES = "experiments/tables puts the committed ones into colab/guide/results.md"


def read_results(path: str | os.PathLike[str]) -> list[Run]:
    """Reads the results of an experiment as runs: one for each row of its table and each seed.

    Args:
      path: ``results.json`` of a script in experiments/, whatever its name now is; or the
        ``metrics.jsonl`` of a run under another name, which is one run.

    Returns:
      The runs, with ``round`` and ``test_accuracy`` (or what the curve is named after) in their
      rows, what tells the rows of the table apart as their config, and the settings of the file.
      Where a script tried several learning rates, those of the best one.

    Raises:
      FileNotFoundError: if there is no such file.
      ValueError: if it holds no curves over rounds; the message says what it is.

    Example:
      >>> import tempfile
      >>> table = {"rows": [{"method": "fedavg", "rounds": [0, 5], "curves": {"0": [0.1, 0.5]}}]}
      >>> with tempfile.TemporaryDirectory() as folder:
      ...     file = Path(folder, "results.json")
      ...     _ = file.write_text(json.dumps(table))
      ...     read_results(file)[0].rows
      [{'round': 0, 'test_accuracy': 0.1}, {'round': 5, 'test_accuracy': 0.5}]
    """
    path = as_path(path, "path")
    if not path.is_file():
        raise FileNotFoundError(f"there is no file {path}")
    if path.suffix == ".jsonl":
        rows = read_rows(path)
        if not rows:
            raise ValueError(f"{path} holds no complete row of a run's metrics")
        return [Run(path.stem, rows, path=path)]
    try:
        document = json.loads(path.read_text(encoding="utf-8"))
    except (ValueError, RecursionError) as error:
        raise ValueError(f"{path} is no JSON: {error}") from error
    notes: list[str] = []
    table = _best(_table(document), document, path, notes)
    found = [(row, seed, rows) for row in table for seed, rows in _curves(row, document)]
    if not found:
        raise ValueError(f"{path} holds no curves over rounds: {_what(document, path)}")
    with_curves = {id(row) for row, _, _ in found}
    if len(with_curves) < len(table):
        notes.append(f"{path}: {len(table) - len(with_curves)} rows without a curve are left out")
    if any("megabytes" in row for row in table):
        notes.append(f"{path}: what went down is recorded only in all, so bytes are those sent up")
    settings = document.get("settings")
    num_seeds = settings.get("num_seeds", 1) if isinstance(settings, Mapping) else 1
    if isinstance(num_seeds, int) and num_seeds > 1 and len(found) == len(with_curves):
        notes.append(
            f"{path}: one curve a row is recorded, of {num_seeds} seeds (the first or their mean), "
            "so curves have no intervals here"
        )
    versions = document.get("versions")
    varying = _varying([row for row in table if id(row) in with_curves])
    runs = []
    for row, seed, rows in found:
        known = {key: row[key] for key in IDENTITY if key in row}
        called = _called(row, varying)
        of_file = _settings(settings, row)
        config = {**of_file, **known, **({"name": called} if called else {}), "seed": seed}
        runs.append(
            Run(
                name=f"{called or path.stem}, seed {seed}",
                rows=rows,
                config=config,
                versions=dict(versions) if isinstance(versions, Mapping) else {},
                path=path,
                notes=() if runs else tuple(notes),
            )
        )
    return runs


def _table(document: Any) -> list[dict[str, Any]]:
    """The rows of the table; cells by name are rows with that name."""
    if not isinstance(document, Mapping):
        return []
    rows, cells = document.get("rows"), document.get("cells")
    if isinstance(cells, Mapping):
        rows = [{"cell": name, **cell} for name, cell in cells.items() if isinstance(cell, Mapping)]
    return [dict(row) for row in rows if isinstance(row, Mapping)] if isinstance(rows, list) else []


def _best(
    table: list[dict[str, Any]], document: Any, path: Path, notes: list[str]
) -> list[dict[str, Any]]:
    """The rows that a summary in the file chose: of several learning rates the best."""
    summary = document.get("summary") if isinstance(document, Mapping) else None
    if not isinstance(summary, list) or not table:
        return table
    keys = [k for k in IDENTITY if k in table[0] and all(k in chosen for chosen in summary)]
    chosen = {tuple(row[k] for k in keys) for row in summary}
    kept = [row for row in table if tuple(row.get(k) for k in keys) in chosen]
    if not keys or not 0 < len(kept) < len(table):
        return table
    notes.append(
        f"{path}: {len(kept)} of {len(table)} rows are shown, those that its summary chose (the "
        "best learning rates, by the test data)"
    )
    return kept


def _curves(row: Mapping[str, Any], document: Any) -> Iterator[tuple[Any, list[dict[str, Any]]]]:
    """The histories of a row, by seed."""
    settings = _settings(document.get("settings"), row)
    seeds = settings.get("seeds")
    given: dict[Any, dict[str, Any]] = {}
    for name, value in row.items():
        if name == "curves" and isinstance(value, Mapping):
            best = str(row.get("best_learning_rate"))
            for key, curve in value.items():
                rate, _, seed = str(key).rpartition("/")
                if not rate or rate == best:
                    given.setdefault(_number(seed), {})["test_accuracy"] = curve
        elif name == "curves" and isinstance(value, list):
            known = seeds if isinstance(seeds, list) and len(seeds) == len(value) else None
            for seed, curve in zip(range(len(value)) if known is None else known, value):
                given.setdefault(seed, {})["test_accuracy"] = curve
        elif name == "curve" and isinstance(value, Mapping):
            given.setdefault(_seed(row, settings), {}).update(value)
        elif name == "curve" or (name == "accuracies" and isinstance(row.get("rounds"), list)):
            given.setdefault(_seed(row, settings), {})["test_accuracy"] = value
        elif name.endswith("_curve"):
            given.setdefault(_seed(row, settings), {})[name.removesuffix("_curve")] = value
    for seed, columns in given.items():
        columns = {k: v for k, v in columns.items() if _is_curve(v)}
        rows = _rows(columns, row, settings)
        if rows:
            yield seed, rows


def _rows(
    columns: dict[str, list[Any]], row: Mapping[str, Any], settings: Mapping[str, Any]
) -> list[dict[str, Any]]:
    """Columns of equal length as rows with their rounds; none where the rounds are not known."""
    scores = [one for one in columns.get("test_accuracy", ()) if one is not None]
    if any(one < 0 or one > 1 for one in scores):  # a loss, or per cent: the file does not say
        columns["curve"] = columns.pop("test_accuracy")
    length = max(map(len, columns.values()), default=0)
    columns = {name: values for name, values in columns.items() if len(values) == length}
    rounds = columns.pop("round", row.get("rounds"))
    every = row.get("every", settings.get("every"))
    last = row.get("num_rounds", settings.get("num_rounds"))
    last = last if isinstance(last, int) else None
    if not isinstance(rounds, list) or len(rounds) != length:
        if isinstance(every, int):
            rounds = [every * i if last is None else min(every * i, last) for i in range(length)]
        elif last == length:
            rounds = list(range(1, length + 1))
        else:
            return []
    sent = row.get("megabytes")
    if isinstance(sent, list) and len(sent) == length and _is_curve(sent):
        columns["uplink_bits_total"] = [MEGABYTE * value for value in sent]
    rows = [
        {"round": at} | {name: _or_nan(values[i]) for name, values in columns.items()}
        for i, at in enumerate(rounds)
    ]
    if rows and rows[0]["round"] == 0 and rows[0].get("test_accuracy") == 0 and length > 1:
        rows = rows[1:]  # a zero that stands for the model before it was ever scored
    if rows and "epsilon_spent" in row:
        rows[-1]["epsilon"] = _or_nan(row["epsilon_spent"])
    return rows if columns else []


def _settings(settings: Any, row: Mapping[str, Any]) -> dict[str, Any]:
    """Settings of the file; those of a row's data set where they are by data set."""
    if not isinstance(settings, Mapping):
        return {}
    own = settings.get(row.get("dataset", ""))
    return dict(own) if isinstance(own, Mapping) else dict(settings)


def _varying(table: list[dict[str, Any]]) -> list[str]:
    """As few columns as tell the rows of a table apart."""

    def kinds(keys: list[str]) -> int:
        return len({json.dumps([row.get(key) for key in keys]) for row in table})

    keys = [key for key in IDENTITY if kinds([key]) > 1]
    for key in reversed(keys):  # a number that follows from the others says no more
        rest = [other for other in keys if other != key]
        if key != "dataset" and rest and kinds(rest) == kinds(keys):
            keys = rest
    return keys


def _called(row: Mapping[str, Any], varying: list[str]) -> str:
    """A row by what tells it apart, such as "fedprox (alpha 0.5)"."""
    words = [row[key] for key in varying if isinstance(row.get(key), str)]
    numbers = [f"{key.replace('_', ' ')} {_figure(key, row.get(key))}"
               for key in varying if not isinstance(row.get(key), str)]  # fmt: skip
    behind = ", ".join(numbers)
    return " ".join([*words, f"({behind})" if words and numbers else behind]).strip()


def _figure(key: str, value: Any) -> str:
    if isinstance(value, int | float):
        return f"{value:g}"
    return "infinite" if key == "epsilon" else "none"  # JSON has no infinity


def _seed(row: Mapping[str, Any], settings: Mapping[str, Any]) -> Any:
    return row.get("seed", settings.get("seed", 0))


def _number(word: str) -> Any:
    return int(word) if word.isdecimal() else word


def _or_nan(value: Any) -> Any:
    return math.nan if value is None else value


def _is_curve(value: Any) -> bool:
    return isinstance(value, list) and all(
        one is None or (isinstance(one, int | float) and not isinstance(one, bool)) for one in value
    )


def _what(document: Any, path: Path) -> str:
    """What a file without curves is, and what to do with it."""
    if path.name in OF_A_RUN:
        return f"it is a file that belongs to a run; give the folder {path.parent}"
    if not isinstance(document, Mapping):
        return f"it is a JSON {type(document).__name__}, not the results of an experiment"
    table = _table(document)
    if "workloads" in document:
        names = ", ".join(document["workloads"])
        return f"it is a benchmark's timings, by workload ({names}); {TABLES}"
    if table:
        return f"it is a table of {len(table)} final figures ({', '.join(table[0])}); {TABLES}"
    return f"it is a JSON object with {', '.join(map(str, list(document)[:8]))}; {TABLES}"
