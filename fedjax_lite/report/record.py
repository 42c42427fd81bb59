"""clients.json: what a report wants to know of the clients of a run."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from fedjax_lite.checks.arguments import as_path, check_count
from fedjax_lite.evaluate import summarize_clients
from fedjax_lite.run.files import save_json_atomic, to_python


def save_clients(
    output_dir: str | os.PathLike[str],
    scores: Mapping[str, Any],
    *,
    dataset: str,
    split: str | None = None,
    round: int | None = None,
    label_counts: Any = None,
) -> Path:
    """Writes ``clients.json`` into the folder of a run, for `compare` to read.

    Args:
      output_dir: of the run; it must exist.
      scores: what `fedjax_lite.evaluate_clients` returns: ``accuracy`` `[N]` (fractions, NaN for a
        client without data) and ``size`` `[N]` (examples), perhaps ``loss`` `[N]`.
      dataset: the data set really used.
      split: which part of the clients' data was scored: "train", "test", "held out". It names the
        summary in the file (``test_accuracy``), and figures say it; None: they say that it was not
        recorded.
      round: rounds done when the model was scored.
      label_counts: `[N, classes]`, see `fedjax_lite.data.label_counts`; None leaves it out.

    Returns:
      The path of the file.

    Raises:
      ValueError: if `scores` lacks ``accuracy`` or ``size``, lengths differ, `round` is below 0, or
        `split` is not one line of text.
      FileNotFoundError: if `output_dir` is no folder.

    Example:
      >>> import tempfile
      >>> with tempfile.TemporaryDirectory() as folder:
      ...     scores = {"accuracy": [0.5, 1.0], "size": [10, 20]}
      ...     path = save_clients(folder, scores, dataset="digits", split="test")
      ...     path.name, "test_accuracy" in path.read_text()
      ('clients.json', True)
    """
    output_dir = as_path(output_dir, "output_dir")
    if not output_dir.is_dir():
        raise FileNotFoundError(
            f"output_dir must be the folder of a run, there is no {output_dir}; give the one that "
            "fl.run(..., output_dir=...) wrote"
        )
    split = checked_split(split)
    if round is not None:
        check_count(round, "round", minimum=0)
    lacking = [name for name in ("accuracy", "size") if name not in scores]
    if lacking:
        raise ValueError(
            f"scores must have accuracy and size, as evaluate_clients returns them; {lacking} is "
            f"missing, got {sorted(scores)}"
        )
    tables = {
        name: np.asarray(scores[name]) for name in ("accuracy", "loss", "size") if name in scores
    }
    if label_counts is not None:
        tables["label_counts"] = np.asarray(label_counts)
    lengths = {name: len(table) for name, table in tables.items()}
    if len(set(lengths.values())) != 1:
        raise ValueError(f"all figures must be of the same N clients, got lengths {lengths}")
    summary = summarize_clients(tables["accuracy"], tables["size"])
    path = output_dir / "clients.json"
    save_json_atomic(
        path,
        {
            "dataset": dataset,
            "round": round,
            "split": split,
            f"{split.replace(' ', '_')}_accuracy" if split else "accuracy": {
                name: to_python(value) for name, value in summary.items()
            },
            "per_client": {name: to_python(table) for name, table in tables.items()},
        },
    )
    return path


def checked_split(split: str | None) -> str | None:
    """The name of a split without spaces around it.

    Raises:
      ValueError: if it is not one short line of text.

    Example:
      >>> checked_split(" test ")
      'test'
    """
    if split is None:
        return None
    if not isinstance(split, str) or not split.strip() or not split.isprintable():
        raise ValueError(
            f'split must say which data were scored, such as "train" or "test", got {split!r}'
        )
    return split.strip()
