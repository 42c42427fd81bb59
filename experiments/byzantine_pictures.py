"""What `byzantine.py` shows: its table, with the published cells, and its heat map."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
from byzantine_settings import Flags
from tables.published import figures

PUBLISHED = figures("bucketing")
"""Per cent at s = 1 and 2, worker momentum 0.9, by rule and attack."""


def cells(rows: list[dict[str, Any]]) -> dict[tuple[str, int, str], tuple[float, float]]:
    """Mean and standard deviation over seeds of each cell."""
    groups: dict[tuple[str, int, str], list[float]] = {}
    for row in rows:
        place = (row["rule"], row["bucket_size"], row["attack"])
        groups.setdefault(place, []).append(row["accuracy"])
    return {place: (float(np.mean(x)), float(np.std(x))) for place, x in groups.items()}


def published(name: str, bucket_size: int, attack: str) -> float | None:
    """The paper's accuracy in per cent, where it has one."""
    if attack not in PUBLISHED.get(name, ()) or bucket_size not in (1, 2):
        return None
    return PUBLISHED[name][attack][bucket_size - 1]


def print_table(rows: list[dict[str, Any]], flags: Flags, comparable: bool) -> None:
    """Test accuracies in per cent, the published one in brackets."""
    from rich.console import Console
    from rich.table import Table

    title = f"Test accuracy in per cent, {flags.num_byzantine} of {flags.num_clients} hostile"
    caption = "[published]" if comparable else "[published: other model or data]"
    table = Table(title=title, caption=caption.replace("[", r"\["))
    for column in ("rule", "s", *flags.attacks):
        table.add_column(column)
    means = cells(rows)
    for name, size in dict.fromkeys((row["rule"], row["bucket_size"]) for row in rows):
        texts = []
        for attack in flags.attacks:
            known = published(name, size, attack)
            found = means.get((name, size, attack))
            text = "-" if found is None else f"{found[0]:.1f}"
            texts.append(text if known is None else f"{text} \\[{known:.1f}]")
        table.add_row(name, str(size), *texts)
    Console().print(table)


def plot(rows: list[dict[str, Any]], flags: Flags, path: Path) -> None:
    """A heat map: rules by attacks."""
    from matplotlib.figure import Figure

    means = cells(rows)
    lines = list(dict.fromkeys((row["rule"], row["bucket_size"]) for row in rows))
    none = (np.nan, np.nan)
    grid = np.array([[means.get((n, s, a), none)[0] for a in flags.attacks] for n, s in lines])
    figure = Figure(
        figsize=(2.5 + len(flags.attacks), 1.6 + 0.42 * len(lines)), layout="constrained"
    )
    axes = figure.subplots()
    image = axes.imshow(grid, cmap="cividis", vmin=0, vmax=100, aspect="auto")
    for (i, j), value in np.ndenumerate(grid):
        axes.text(j, i, f"{value:.1f}", ha="center", va="center",
                  color="black" if value > 55 else "white")  # fmt: skip
    axes.set_xticks(range(len(flags.attacks)), flags.attacks)
    axes.set_yticks(range(len(lines)), [n if s == 1 else f"{n}, buckets of {s}" for n, s in lines])
    axes.set(xlabel="attack", ylabel="rule")
    axes.set_title(f"{flags.num_byzantine} of {flags.num_clients} workers hostile", fontsize=10)
    figure.colorbar(image, label="test accuracy (%)")
    temporary = path.with_suffix(".tmp.png")
    figure.savefig(temporary, dpi=120)
    temporary.replace(path)
