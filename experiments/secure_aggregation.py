"""What secure aggregation costs: accuracy by bits, masks in jit, the protocol's bytes, CKKS.

    python experiments/secure_aggregation.py
    python experiments/secure_aggregation.py --smoke   # seconds, scikit-learn's digits

FedAvg with the plain mean against the same runs (same seeds) with `secure_mean` at several widths,
with and without a level at zero;
the time of its masks inside jit; the protocol of Bonawitz et al. (2017) and its sparse form (Bell
et al. 2020) between objects in one process: seconds a round and bytes that a client sends in each
phase; bytes a float under CKKS. Prints tables, checks what can be claimed from them, and writes
results.json and secure_aggregation.png. Times are of this machine: run it alone.
"""

from __future__ import annotations

import dataclasses
import itertools
from pathlib import Path
from typing import Any, Literal

import jax
import jax.numpy as jnp
import numpy as np
import optax
import tyro
from secure_aggregation_costs import CostFlags, ckks, masks, protocol, show
from shared.script import script

import fedjax_lite as fl
from fedjax_lite import crypto
from fedjax_lite.aggregation.secure import secure_mean
from fedjax_lite.run.files import save_json_atomic
from fedjax_lite.run.settings import versions


@dataclasses.dataclass(frozen=True)
class TrainFlags:
    """The runs whose accuracy is compared."""

    dataset: Literal["mnist", "fashion_mnist", "digits"] = "mnist"
    """Data set, dealt at random (IID)."""
    data_dir: Path | None = None
    """Folder that holds the data; else FEDJAX_LITE_DATA, then the cache, then a download."""
    num_clients: int = 100
    """Clients in the population."""
    cohort_size: int = 10
    """Clients that train in a round."""
    dropout_rate: float = 0.1
    """Probability that a client drops out of its round."""
    num_rounds: int = 50
    """Rounds of each run."""
    batch_size: int = 20
    """Examples in a local step."""
    learning_rate: float = 0.1
    """Local learning rate, per step."""
    bits: tuple[int, ...] = (8, 12, 16, 20)
    """Widths of a fixed-point number, in bits."""
    clip: float = 0.5
    """Entries of an update are clipped to plus or minus this."""


@dataclasses.dataclass(frozen=True)
class RunFlags:
    """Where results go."""

    seed: int = 0
    """Seed of everything random but cryptographic keys."""
    output_dir: Path = Path("outputs/secure_aggregation")
    """Where results.json and secure_aggregation.png go."""
    overwrite: bool = False
    """Replace the results of an earlier run."""
    smoke: bool = False
    """A run of seconds: digits, everything small."""


@dataclasses.dataclass(frozen=True)
class Flags:
    """All settings."""

    train: tyro.conf.OmitArgPrefixes[TrainFlags] = dataclasses.field(default_factory=TrainFlags)
    cost: CostFlags = dataclasses.field(default_factory=CostFlags)
    run: tyro.conf.OmitArgPrefixes[RunFlags] = dataclasses.field(default_factory=RunFlags)


SMOKE: dict[str, dict[str, Any]] = {
    "train": {
        "dataset": "digits",
        "num_clients": 10,
        "cohort_size": 4,
        "num_rounds": 3,
        "bits": (8, 16),
    },
    "cost": {"num_clients": (4, 6), "dimension": 50, "degree": 4, "num_repeats": 2},
}


def main(flags: Flags) -> dict[str, Any]:
    """Runs all four parts and returns what was written."""
    if flags.run.smoke:
        flags = dataclasses.replace(
            flags,
            train=dataclasses.replace(flags.train, **SMOKE["train"]),
            cost=dataclasses.replace(flags.cost, **SMOKE["cost"]),
        )
    check(flags)
    settings = dataclasses.asdict(flags)
    settings["train"]["data_dir"] = str(flags.train.data_dir)
    del settings["run"]["output_dir"], settings["run"]["overwrite"]
    results: dict[str, Any] = {
        "versions": versions(),
        "settings": settings,
        "accuracy": accuracy(flags.train, flags.run.seed),
        "masks": masks(flags.cost, flags.train.cohort_size, flags.run.seed),
        "protocol": protocol(flags.cost, flags.run.seed),
        "ckks": ckks(flags.cost, flags.run.seed),
    }
    results["claims"] = claims(results)
    for text in results["claims"]:
        print(text)
    flags.run.output_dir.mkdir(parents=True, exist_ok=True)
    save_json_atomic(flags.run.output_dir / "results.json", results)
    plot(results, flags.run.output_dir / "secure_aggregation.png")
    return results


def check(flags: Flags) -> None:
    """Raises before anything runs where flags do not fit or results would be lost."""
    train, cost = flags.train, flags.cost
    for bits in train.bits:
        crypto.check_ring(train.cohort_size, bits=bits)
    if not cost.num_clients or min(cost.num_clients) < 3:
        raise ValueError(f"--cost.num-clients must be 3 or more each, got {cost.num_clients}")
    if not 0 <= cost.drop_fraction <= 0.2:
        raise ValueError(
            f"--cost.drop-fraction must lie in [0, 0.2], got {cost.drop_fraction}: a round needs "
            "more than half of its clients, and of every client's neighbours"
        )
    for name, value in (
        ("--train.num-rounds", train.num_rounds),
        ("--cost.num-repeats", cost.num_repeats),
        ("--cost.dimension", cost.dimension),
    ):
        if value < 1:
            raise ValueError(f"{name} must be at least 1, got {value}")
    path = flags.run.output_dir / "results.json"
    if path.exists() and not flags.run.overwrite:
        raise FileExistsError(
            f"{path} holds the results of an earlier run; --run.overwrite replaces them, or give "
            "another --run.output-dir"
        )


def accuracy(flags: TrainFlags, seed: int) -> list[dict[str, Any]]:
    """FedAvg with the plain mean, then with sums modulo 2**32 at each width, from one seed.

    A round's means differ by half a step at most; training then amplifies that, where a ReLU of
    one run is just on and of the other just off.
    """
    train, test = fl.data.load(flags.dataset, data_dir=flags.data_dir)
    examples, test = ({"x": part["x"], "y": part["y"]} for part in (train, test))
    data = fl.data.partition(examples, fl.data.iid(num_clients=flags.num_clients, seed=seed))
    model = fl.models.mlp(
        (64,) if flags.dataset == "digits" else (200, 200), input_shape=examples["x"].shape[1:]
    )
    sampler = fl.uniform(flags.cohort_size)
    if flags.dropout_rate:
        sampler = fl.dropout(sampler, flags.dropout_rate)
    key = jax.random.key(seed)

    def trained(aggregator: fl.Aggregator) -> tuple[Any, list[dict[str, Any]]]:
        algo = fl.fedavg(
            model.loss,
            optax.sgd(flags.learning_rate),
            plan=fl.Plan(batch_size=flags.batch_size, epochs=1),
            sampler=sampler,
            weighting="uniform",
            aggregator=aggregator,
        )
        state = algo.init(key, model.init(key), data)
        state, history = fl.run(
            algo,
            key,
            state,
            data,
            num_rounds=flags.num_rounds,
            evaluate=fl.evaluator(model, test),
            every=flags.num_rounds,
            progress=False,
        )
        return state.server.params, history

    reference, history = trained(fl.mean())
    rows = [{"bits": None, "accuracy": history[-1]["test_accuracy"]}]
    for bits, exact_zero in itertools.product(flags.bits, (False, True)):
        aggregator = secure_mean(max_abs=flags.clip, bits=bits, exact_zero=exact_zero)
        params, history = trained(aggregator)
        gaps = jax.tree.map(lambda a, b: jnp.abs(a - b).max(), params, reference)
        rows.append(
            {
                "bits": bits,
                "exact_zero": exact_zero,
                "accuracy": history[-1]["test_accuracy"],
                "accuracy_difference": history[-1]["test_accuracy"] - rows[0]["accuracy"],
                "model_difference": float(max(jax.tree.leaves(gaps))),
                "half_step": flags.clip / (2**bits - 1 - exact_zero),
                "clipped": float(np.mean([r["secure_clipped"] for r in history if r["round"]])),
            }
        )
    show(f"{flags.dataset}: FedAvg after {flags.num_rounds} rounds", rows)
    return rows


def claims(results: dict[str, Any]) -> list[str]:
    """What was claimed, a line each with PASS or FAIL, from the numbers of the tables."""
    secure = [row for row in results["accuracy"] if row["bits"] is not None]
    found = []
    for exact_zero in (False, True):
        gaps = [row["model_difference"] for row in secure if row["exact_zero"] == exact_zero]
        found.append(
            (
                gaps[-1] < gaps[0] or len(gaps) < 2,
                f"most bits, nearest to the plain mean's model (exact zero: {exact_zero}): "
                + ", ".join(f"{gap:.1e}" for gap in gaps),
            )
        )
    wide = [row for row in secure if row["bits"] >= 16]
    if wide:
        worst = max(abs(row["accuracy_difference"]) for row in wide)
        found.append((worst <= 0.01, f"16 bits and more cost at most 1 % accuracy: {worst:.2%}"))
    dense = {
        row["clients"]: row
        for row in results["protocol"]
        if row["neighbours"] + 1 == row["clients"]
    }
    for row in results["protocol"]:
        if row["neighbours"] + 1 < row["clients"]:
            other = dense[row["clients"]]
            found.append(
                (
                    row["sent"] < other["sent"],
                    f"{row['clients']} clients: {row['neighbours']} neighbours send "
                    f"{row['sent']:.0f} bytes each, all pairs {other['sent']:.0f}",
                )
            )
    for row in results["ckks"]:
        found.append(
            (row["error"] < 1e-6, f"CKKS, divided {row['divided']}: error {row['error']:.1e}")
        )
    return [f"{'PASS' if holds else 'FAIL'}  {text}" for holds, text in found]


def plot(results: dict[str, Any], path: Path) -> None:
    """The model's difference by bits; what a client sends by phase."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(10.5, 4.2), layout="constrained")
    left, right = figure.subplots(1, 2)
    secure = [row for row in results["accuracy"] if row["bits"] is not None]
    for exact_zero, colour in ((False, "#0072B2"), (True, "#D55E00")):
        line = [row for row in secure if row["exact_zero"] == exact_zero]
        bits, gaps = [r["bits"] for r in line], [r["model_difference"] for r in line]
        label = "largest difference, 0 is " + ("a level" if exact_zero else "no level")
        left.semilogy(bits, gaps, "o-", color=colour, label=label)
        for row in line:
            left.annotate(
                f"{row['accuracy']:.1%}",
                (row["bits"], row["model_difference"]),
                xytext=(6, 2) if exact_zero is False else (-6, -12),
                ha="left" if exact_zero is False else "right",
                textcoords="offset points",
                color=colour,
            )
        if not exact_zero:
            half = [row["half_step"] for row in line]
            left.semilogy(bits, half, "--", color="#999999", label="half a step, one round")
            left.set(xlabel="bits a number", ylabel="difference from the plain mean's model")
            left.set_xticks(bits)
    plain = results["accuracy"][0]["accuracy"]
    left.set_title(f"test accuracy at the points; plain mean: {plain:.1%}")
    left.margins(x=0.15, y=0.15)
    left.legend()
    rows = results["protocol"]
    names = ["all" if r["neighbours"] + 1 == r["clients"] else str(r["neighbours"]) for r in rows]
    labels = [f"{row['clients']}\n{name}" for row, name in zip(rows, names, strict=True)]
    colours = ("#0072B2", "#E69F00", "#009E73", "#CC79A7")
    base = np.zeros(len(rows))
    for phase, colour in zip(("mask", "share", "unmask", "advertise"), colours, strict=True):
        height = np.array([row[phase] for row in rows]) / 1e3
        right.bar(labels, height, bottom=base, color=colour, label=phase)
        base += height
    right.set(
        xlabel="clients, and neighbours of each",
        ylabel="sent by a client (kB)",
        title=f"{results['settings']['cost']['dimension']} numbers, by phase",
        ylim=(0, 1.35 * base.max()),
    )
    right.legend(ncols=2)
    temporary = path.with_suffix(".tmp.png")
    figure.savefig(temporary, dpi=120)
    temporary.replace(path)


if __name__ == "__main__":
    script(main, Flags, __doc__)
