"""The figure of lora_shakespeare.py: accuracy by megabytes sent, a line a method."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np


def plot(rows: list[dict[str, Any]], path: Path) -> None:
    """Mean accuracy by megabytes sent."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(7, 4.4), layout="constrained")
    axes = figure.subplots()
    for row in rows:
        mean = 100 * np.mean(row["accuracies"], axis=0)
        axes.plot(row["megabytes"], mean, marker="o", ms=4, lw=1.4, label=row["method"])
    axes.axhline(100 * rows[0]["before"], color="#666666", linestyle=":", lw=1)
    axes.set(xscale="log", xlabel="megabytes sent by all clients")
    axes.set(ylabel="test accuracy (% of characters)", title="pre-trained model dotted")
    axes.legend(frameon=False)
    temporary = path.with_suffix(".tmp.png")
    figure.savefig(temporary, dpi=120)
    temporary.replace(path)
