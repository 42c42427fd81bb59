"""Accuracy against megabytes: compressed uplinks on CIFAR-10.

    python experiments/compression.py            # CIFAR-10, minutes on two cores
    python experiments/compression.py --smoke    # seconds, scikit-learn's digits
    python experiments/compression.py --downlink qsgd8   # the broadcast compressed, too

FedAvg with the same seed, partition, cohorts and batches under every uplink: plain float32; QSGD
at 8, 4 and 2 bits a coordinate (a norm for each leaf); signs, top 1 % and PowerSGD of rank 2 with
error feedback; a random 10 %; DRIVE; EF21 with top 1 %. Megabytes are what all clients together
have sent up, fields of fixed width packed, without headers; beside them the bound of an ideal
entropy coder for the same symbols. Writes results.json and curves.png.
"""

from __future__ import annotations

if __name__ == "compression":  # jax looks for the standard library's package of this name
    raise ImportError("experiments/compression.py is a script")

import dataclasses
from pathlib import Path
from typing import Any, Literal

import jax
import numpy as np
import optax
from shared.flags import schedule, with_labels
from shared.script import script

import fedjax_lite as fl
from fedjax_lite import transforms as tr
from fedjax_lite.run.files import save_json_atomic
from fedjax_lite.run.settings import versions

MEGABYTE = 8e6
"""Bits."""
UPLINKS: dict[str, fl.Transform | None] = {
    "plain": None,
    "qsgd 8 bit": tr.qsgd(127, per_leaf=True),
    "qsgd 4 bit": tr.qsgd(7, per_leaf=True),
    "qsgd 2 bit": tr.qsgd(1, per_leaf=True),
    "sign + EF": tr.error_feedback(tr.scaled_sign(per_leaf=True)),
    "top 1% + EF": tr.error_feedback(tr.top_k(0.01)),
    "random 10%": tr.random_k(0.1),
    "DRIVE": tr.drive(),
    "PowerSGD 2 + EF": tr.error_feedback(tr.powersgd(2)),
    "EF21 top 1%": tr.ef21(tr.top_k(0.01)),
}
STYLES = {
    "plain": ("#000000", "-", "o"),
    "qsgd 8 bit": ("#0072B2", "-", "s"),
    "qsgd 4 bit": ("#0072B2", "--", "^"),
    "qsgd 2 bit": ("#0072B2", ":", "v"),
    "sign + EF": ("#D55E00", "-", "D"),
    "top 1% + EF": ("#009E73", "-", "P"),
    "random 10%": ("#CC79A7", "-.", "X"),
    "DRIVE": ("#E69F00", "-", "*"),
    "PowerSGD 2 + EF": ("#56B4E9", "-", "h"),
    "EF21 top 1%": ("#009E73", "--", "p"),
}
"""Colours of Okabe and Ito; line and marker tell the runs apart without colour, too."""


@dataclasses.dataclass(frozen=True)
class ComparisonFlags:
    """The uplinks that are compared."""

    uplinks: tuple[str, ...] = ()
    """Uplinks to compare, names out of the table; none given: all."""
    downlink: Literal["plain", "qsgd8", "top-k"] = "plain"
    """The broadcast, the same for all runs: whole, 8 bits a coordinate of the change, top 10 %."""
    target: float = 0.4
    """Test accuracy, in [0, 1], whose price in megabytes is told."""


@dataclasses.dataclass(frozen=True)
class DataFlags:
    """The data and how they are dealt to clients."""

    train_size: int = 4000
    """Training images to take."""
    test_size: int = 2000
    """Test images to take."""
    num_clients: int = 20
    """Clients in the population; error feedback and EF21 keep a residual of the model's size for
    each."""
    alpha: float = 1.0
    """Concentration of the Dirichlet partition of labels."""
    data_dir: Path | None = None
    """Folder that holds CIFAR-10 (else FEDJAX_LITE_DATA, the cache, a download)."""


@dataclasses.dataclass(frozen=True)
class TrainingFlags:
    """Models, local training and rounds."""

    cohort_size: int = 10
    """Clients that train in a round."""
    num_rounds: int = 60
    """Rounds of each run."""
    epochs: int = 1
    """Passes of a client over its data in a round."""
    batch_size: int = 20
    """Examples in a local step."""
    learning_rate: float = 0.1
    """Local learning rate, decayed by a cosine to a tenth."""


@dataclasses.dataclass(frozen=True)
class RunFlags:
    """Preset, seeds and length of the run, and where results go."""

    every: int = 4
    """Rounds between evaluations."""
    seed: int = 0
    """Seed of partition, parameters, cohorts, batches and compressors."""
    smoke: bool = False
    """A run of seconds: digits, few rounds."""
    output_dir: Path = Path("outputs/compression")
    """Where results.json and curves.png go."""
    overwrite: bool = False
    """Replace an earlier run's results in --output-dir."""


@dataclasses.dataclass(frozen=True)
class Flags(ComparisonFlags, DataFlags, TrainingFlags, RunFlags):
    """The problem, and which uplinks are compared."""


def problem(flags: Flags) -> tuple[fl.models.Model, Any, dict]:
    """The model, the clients' data and the test examples."""
    name = "digits" if flags.smoke else "cifar10"
    train, test = map(with_labels, fl.data.load(name, data_dir=flags.data_dir))
    rows = np.random.default_rng(0).permutation(len(train["y"]))[: flags.train_size]
    train = {k: v[rows] for k, v in train.items()}
    test = {k: v[: flags.test_size] for k, v in test.items()}
    shape = train["x"].shape[1:]
    if flags.smoke:
        model = fl.models.mlp((32,), num_classes=10, input_shape=shape)
    else:
        channels: dict[str, Any] = {"mean": (0.491, 0.482, 0.447), "std": (0.247, 0.243, 0.262)}
        model = fl.models.lenet(input_shape=shape, **channels)
    deal = fl.data.dirichlet(
        alpha=flags.alpha, num_clients=flags.num_clients, seed=flags.seed, min_size=10
    )
    return model, fl.data.partition(train, deal), test


def downlink(name: str) -> fl.Transform | None:
    """The compressor of the broadcast."""
    return {"plain": None, "qsgd8": tr.qsgd(127), "top-k": tr.top_k(0.1)}[name]


def main(flags: Flags) -> list[dict[str, Any]]:
    """Runs every uplink, prints the table and returns its rows."""
    if flags.smoke:
        small: dict[str, Any] = {"train_size": 400, "test_size": 200, "num_clients": 5}
        small |= {"cohort_size": 3, "num_rounds": 4, "every": 2}
        flags = dataclasses.replace(flags, **small)
    path = flags.output_dir / "results.json"
    check(flags, path)
    model, data, test = problem(flags)
    key = jax.random.key(flags.seed)
    params = model.init(key)
    evaluate = fl.evaluator(model, test)
    size = sum(leaf.size for leaf in jax.tree.leaves(params))
    print(f"{len(test['y'])} test images, {size} parameters, {flags.num_rounds} rounds")
    rate: Any = schedule("cosine", flags.learning_rate, 0.1, flags.num_rounds)
    rows: list[dict[str, Any]] = []
    settings = {k: v for k, v in vars(flags).items() if k not in ("output_dir", "overwrite")}
    settings |= {"data_dir": None, "num_parameters": size}
    flags.output_dir.mkdir(parents=True, exist_ok=True)
    for name in flags.uplinks or tuple(UPLINKS):
        algo = fl.fedavg(
            model.loss,
            lambda round: optax.sgd(rate(round)),
            plan=fl.Plan(batch_size=flags.batch_size, epochs=flags.epochs),
            sampler=fl.uniform(flags.cohort_size),
            uplink=UPLINKS[name],
            downlink=downlink(flags.downlink),
        )
        state = algo.init(key, params, data)
        how: dict[str, Any] = {"evaluate": evaluate, "every": flags.every, "progress": False}
        how["stop_if_diverged"] = False  # the table says which compressor failed
        _, history = fl.run(algo, key, state, data, num_rounds=flags.num_rounds, **how)
        rows.append(summarise(name, history, flags.target))
        save_json_atomic(path, {"versions": versions(), "settings": settings, "rows": rows})
        print(f"{name}: {rows[-1]['final_accuracy']:.2%}", flush=True)
    print_table(rows, flags.target)
    plot(rows, flags, flags.output_dir / "curves.png")
    return rows


def check(flags: Flags, path: Path) -> None:
    """Raises before anything runs where flags do not fit or results would be lost."""
    unknown = [name for name in flags.uplinks if name not in UPLINKS]
    if unknown:
        raise ValueError(f"--uplinks must be out of {sorted(UPLINKS)}, got {unknown}")
    if not 0 < flags.target < 1:
        raise ValueError(f"--target must lie in (0, 1), got {flags.target}")
    if path.exists() and not flags.overwrite:
        raise FileExistsError(f"{path} is there already; give --overwrite or another --output-dir")


def summarise(name: str, history: list[dict[str, Any]], target: float) -> dict[str, Any]:
    """Figures of a run from its history."""
    points = [row for row in history if "test_accuracy" in row and row["round"] > 0]
    sent = [row["uplink_bits_total"] / MEGABYTE for row in points]
    accuracies = [row["test_accuracy"] for row in points]
    last = history[-1]
    return {
        "uplink": name,
        "final_accuracy": accuracies[-1],
        "best_accuracy": max(accuracies),
        "uplink_megabytes": sent[-1],
        "downlink_megabytes": last["downlink_bits_total"] / MEGABYTE,
        "packed_over_entropy": last["uplink_bits_total"] / last["uplink_entropy_bits_total"],
        "megabytes_to_target": next(
            (mb for mb, got in zip(sent, accuracies, strict=True) if got >= target), None
        ),
        "rounds": [row["round"] for row in points],
        "megabytes": sent,
        "accuracies": accuracies,
    }


def print_table(rows: list[dict[str, Any]], target: float) -> None:
    """Final accuracy, megabytes, and how far packing is from an ideal entropy coder."""
    from rich.console import Console
    from rich.table import Table

    table = Table(title="Accuracy and what the clients sent")
    columns = ("final acc. %", "best %", "uplink MB", "x fewer", f"MB to {target:.0%}")
    for column in ("uplink", *columns, "packed / entropy", "downlink MB"):
        table.add_column(column, justify="left" if column == "uplink" else "right")
    whole = next((row["uplink_megabytes"] for row in rows if row["uplink"] == "plain"), None)
    for row in rows:
        price, sent = row["megabytes_to_target"], row["uplink_megabytes"]
        table.add_row(
            row["uplink"],
            f"{100 * row['final_accuracy']:.2f}",
            f"{100 * row['best_accuracy']:.2f}",
            f"{sent:.3f}",
            "-" if whole is None else f"{whole / sent:.1f}",
            "-" if price is None else f"{price:.3f}",
            f"{row['packed_over_entropy']:.2f}",
            f"{row['downlink_megabytes']:.2f}",
        )
    console = Console()
    Console(width=max(110, console.width)).print(table)


def plot(rows: list[dict[str, Any]], flags: Flags, path: Path) -> None:
    """Test accuracy over the megabytes sent so far, on a logarithmic axis."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(8, 5), layout="constrained")
    axes = figure.subplots()
    for row in rows:
        colour, dash, marker = STYLES[row["uplink"]]
        style = {"color": colour, "linestyle": dash, "marker": marker, "markersize": 4}
        axes.plot(
            row["megabytes"], np.multiply(100, row["accuracies"]), label=row["uplink"], **style
        )
    axes.set_xscale("log")
    axes.set_xlabel("sent by all clients so far (MB, packed)")
    axes.set_ylabel("test accuracy (%)")
    data = "digits" if flags.smoke else "CIFAR-10"
    axes.set_title(
        f"FedAvg on {data}: {flags.num_clients} clients, Dirichlet({flags.alpha:g}), "
        f"{flags.num_rounds} rounds"
    )
    axes.grid(alpha=0.3)
    axes.legend(fontsize=8, loc="center left", bbox_to_anchor=(1.0, 0.5))
    temporary = path.with_suffix(".tmp.png")
    figure.savefig(temporary, dpi=120)
    temporary.replace(path)


if __name__ == "__main__":
    script(main, Flags, __doc__)
