"""The figure of split_cifar.py: accuracy by bytes, and reconstructions by where it is cut."""

from __future__ import annotations

from pathlib import Path
from typing import Any

STYLES = {"splitfed 1": ("-", "o"), "splitfed 2": ("--", "s"), "in turn": (":", "^")}


def plot(results: dict[str, Any], path: Path) -> None:
    """Accuracy by bytes, of every cut and of FedAvg; and PSNR by cut."""
    from matplotlib.figure import Figure
    from matplotlib.ticker import LogLocator, NullFormatter, ScalarFormatter

    figure = Figure(figsize=(11, 5), layout="constrained")
    left, right = figure.subplots(1, 2)
    rows = results["rows"]
    megabytes, accuracy = (
        [point[name] for point in results["fedavg"]] for name in ("megabytes", "accuracy")
    )
    left.plot(megabytes, accuracy, color="black", linewidth=2, label="FedAvg")
    for way, line in (("centralised", "-."), ("edge", (0, (1, 4)))):
        (found,) = (row for row in results["ways"] if row["way"] == way)
        left.axhline(found["accuracy"], color="grey", linestyle=line, label=way)
    for row in rows:
        line, _ = STYLES[row["method"]]
        left.plot(
            *([point[name] for point in row["curve"]] for name in ("megabytes", "accuracy")),
            color=f"C{row['cut'] - 1}", linestyle=line, label=f"{row['method']}, cut {row['cut']}",
        )  # fmt: skip
    left.set(xscale="log", xlabel="megabytes on the wire, both ways", ylabel="test accuracy")
    left.xaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
    left.xaxis.set_major_formatter(ScalarFormatter())
    left.xaxis.set_minor_formatter(NullFormatter())
    for method in dict.fromkeys(row["method"] for row in rows):
        mine = [row for row in rows if row["method"] == method]
        _, mark = STYLES[method]
        for name, label, color in (("psnr", "as sent", "C3"), ("psnr_with_noise", "noised", "C4")):
            right.plot(
                [row["cut"] for row in mine], [row[name] for row in mine], mark, color=color,
                fillstyle="none", label=f"{method}, {label}",
            )  # fmt: skip
    begun = {row["cut"]: row["psnr_before_training"] for row in rows}
    right.plot(*zip(*begun.items(), strict=True), ".-", color="black", label="before training")
    right.axhline(
        results["psnr_of_the_mean_image"],
        color="grey",
        linestyle=":",
        label="mean image, no attack",
    )
    right.set(xlabel="layers at the clients", ylabel="PSNR of reconstructions, dB")
    right.set_xticks(sorted({row["cut"] for row in rows}))
    for axes in (left, right):
        axes.legend(fontsize="x-small", ncols=4, loc="upper center", bbox_to_anchor=(0.5, -0.14))
    figure.savefig(path, dpi=120)
