"""The guide's figures of results: one picture a world, drawn from the same JSON as the tables."""

from __future__ import annotations

import hashlib
import io
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from shared.time_servers import SERVERS


def name_of(world: str) -> str:
    """The file of a world's figure."""
    return f"time_{world.replace(' ', '_')}.svg"


def time_figures(documents: Mapping[str, Any]) -> dict[str, tuple[str, str]]:
    """Accuracy against simulated seconds in each world: (digest of the data, picture) by file.

    Pictures differ between versions of matplotlib, so what is compared is the digest, which the
    picture holds as its description.
    """
    document = documents.get("time_to_accuracy")
    if document is None:
        return {}
    worlds: dict[str, list[Any]] = {}
    for row in document["rows"]:
        worlds.setdefault(row["world"], []).append(row)
    target = document["settings"]["target"]
    made = {}
    for world, rows in worlds.items():
        shown = [[row["server"], row["curve"]["seconds"], row["curve"]["accuracy"]] for row in rows]
        told = hashlib.sha256(json.dumps([world, target, shown]).encode()).hexdigest()
        made[name_of(world)] = told, picture(world, rows, target, told)
    return made


def picture(world: str, rows: list[Any], target: float, told: str) -> str:
    """One world as SVG."""
    import matplotlib
    from matplotlib.figure import Figure

    figure = Figure(figsize=(6.4, 3.4), layout="constrained")
    axes = figure.subplots()
    named: set[str] = set()
    for row in rows:  # a line a seed
        colour, dash = SERVERS[row["server"]]
        accuracy = [100 * a for a in row["curve"]["accuracy"]]
        label = None if row["server"] in named else row["server"]
        axes.plot(row["curve"]["seconds"], accuracy, dash, color=colour, label=label)
        named.add(row["server"])
    axes.axhline(100 * target, color="#BBBBBB", linewidth=0.8)
    axes.set(xscale="log", title=world, xlabel="simulated seconds", ylabel="test accuracy (%)")
    figure.legend(fontsize=8, loc="outside right center")
    file = io.StringIO()
    with matplotlib.rc_context({"svg.fonttype": "none", "svg.hashsalt": "fedjax_lite"}):
        figure.savefig(file, format="svg", metadata={"Date": None, "Description": told})
    return file.getvalue()


def stale_figures(folder: Path, made: Mapping[str, tuple[str, str]]) -> list[Path]:
    """The files that are not drawn from these data."""
    paths = {folder / name: told for name, (told, _) in made.items()}
    return [p for p, told in paths.items() if not p.exists() or told not in p.read_text()]
