"""Whom to ask: seven ways to choose clients, on MNIST with label skew.

    python experiments/client_selection.py           # a perceptron, 150 rounds: 2 minutes
    python experiments/client_selection.py --smoke   # seconds

The setting is that of power-of-choice (Cho, Wang, Joshi 2020, arXiv:2010.01243): 100 clients with
Dirichlet label shares, of unequal size, 3 of them a round. All methods train the same perceptron
with the same rates, plan and number of clients that send a model:

* uniform: 3 at random, averaged by their examples.
* by data: 3 in proportion to their examples, averaged with equal weight.
* unbiased: 3 in proportion to their examples, weighed by the inverse of that probability.
* optimal: of 9 at random that all train about 3 send, those with large updates more likely
  (arXiv:2010.13723).
* power of choice: of 9 by data the 3 with the highest loss.
* active: by the softmax of the last loss (arXiv:1909.12641).
* oort: by utility, with exploration (arXiv:2010.06081); without times.

Fairness is that of participation (its Gini, 0 where all train equally often) and of the result (the
mean over the worst tenth of the clients, each scored on its share of the test split). Writes
results.json and client_selection.png and prints the table. Seeds differ in partition, parameters,
cohorts and batches.
"""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Any

import jax
import numpy as np
import optax
from shared.flags import with_labels
from shared.script import script
from shared.smoke import shrunk

import fedjax_lite as fl
from fedjax_lite.run.files import save_json_atomic
from fedjax_lite.run.settings import versions

STYLES = {
    "uniform": ("#000000", "-"),
    "by data": ("#0072B2", "-"),
    "unbiased": ("#0072B2", ":"),
    "optimal": ("#009E73", "-"),
    "power of choice": ("#D55E00", "-"),
    "active": ("#CC79A7", "--"),
    "oort": ("#E69F00", "-"),
}
METHODS = tuple(STYLES)


@dataclasses.dataclass(frozen=True)
class DataFlags:
    """Clients and examples."""

    data_dir: Path | None = None
    """Folder of MNIST (else FEDJAX_LITE_DATA, the cache, network)."""
    num_clients: int = 100
    """Clients in the population."""
    alpha: float = 0.3
    """Concentration of the clients' label shares; smaller is more skewed."""
    train_size: int = 20_000
    """Training examples to take."""
    test_size: int = 5_000
    """Test examples to take."""


@dataclasses.dataclass(frozen=True)
class TrainingFlags:
    """Rounds, rates and cohorts."""

    num_rounds: int = 150
    """Rounds of communication."""
    cohort_size: int = 3
    """Clients that send a model in a round."""
    candidates: int = 9
    """Clients that optimal sampling and power-of-choice ask first."""
    learning_rate: float = 0.03
    """Learning rate of local SGD."""
    batch_size: int = 32
    """Examples a local step; one epoch a round."""
    every: int = 5
    """Rounds between two evaluations."""
    target: float = 0.9
    """Test accuracy to reach, in (0, 1)."""
    num_seeds: int = 1
    """Runs for each method."""


@dataclasses.dataclass(frozen=True)
class RunFlags:
    """Where results go."""

    output_dir: Path = Path("outputs/client_selection")
    """Where results.json and client_selection.png go."""
    smoke: bool = False
    """Few rounds of few clients: seconds."""


@dataclasses.dataclass(frozen=True)
class Flags(DataFlags, TrainingFlags, RunFlags):
    """Everything that can be set."""


SMALL: dict[str, Any] = {
    "num_clients": 12, "train_size": 600, "test_size": 200, "num_rounds": 4, "every": 2,
    "cohort_size": 2, "candidates": 4, "num_seeds": 1, "target": 0.2,
}  # fmt: skip


def algorithm(name: str, model: fl.models.Model, flags: Flags) -> fl.FederatedAlgorithm:
    """FedAvg with one of the ways to choose; who trained is counted."""
    size, wide = flags.cohort_size, flags.candidates

    def averaging(sampler: fl.Sampler, weighting: str = "examples") -> fl.FederatedAlgorithm:
        return fl.fedavg(
            model.loss,
            optax.sgd(flags.learning_rate),
            plan=fl.Plan(batch_size=flags.batch_size),
            sampler=fl.selection.counted(sampler, of="trained"),
            weighting=weighting,
        )

    if name == "uniform":
        return averaging(fl.uniform(size))
    if name == "by data":
        return averaging(fl.weighted(size), "uniform")
    if name == "unbiased":
        return fl.selection.unbiased(averaging(fl.selection.importance(size)))
    if name == "optimal":
        return fl.selection.optimal(averaging(fl.uniform(wide)), cohort_size=size)
    if name == "power of choice":
        plain = averaging(fl.weighted(wide), "uniform")
        return fl.selection.power_of_choice(plain, model.loss, cohort_size=size)
    if name == "active":
        return averaging(fl.selection.active(size))
    return averaging(fl.selection.oort(size))


def load(flags: Flags, seed: int) -> tuple[Any, Any, dict]:
    """The clients' training data, what each is scored on, and the test split."""
    train, test = map(with_labels, fl.data.load("mnist", data_dir=flags.data_dir))
    rows = np.random.default_rng(seed).permutation(len(train["y"]))[: flags.train_size]
    test = {k: v[: flags.test_size] for k, v in test.items()}
    deal = fl.data.dirichlet(
        alpha=flags.alpha, num_clients=flags.num_clients, seed=seed, min_size=5
    )
    data = fl.data.partition({k: v[rows] for k, v in train.items()}, deal)
    return data, fl.data.deal_like(test, data, seed=seed), test


def one_run(name: str, seed: int, flags: Flags, loaded: tuple) -> dict[str, Any]:
    """A method's curve, and who took part, for one seed."""
    data, own, test = loaded
    model = fl.models.mlp((64,), input_shape=(28, 28, 1), mean=(0.131,), std=(0.308,))
    algo, key = algorithm(name, model, flags), jax.random.key(seed)
    state, history = fl.run(
        algo, key, algo.init(key, model.init(key), data), data,
        num_rounds=flags.num_rounds, every=flags.every, evaluate=fl.evaluator(model, test),
        progress=False,
    )  # fmt: skip
    scored = [row for row in history if "test_accuracy" in row]
    rounds = [row["round"] for row in scored]
    curve = [row["test_accuracy"] for row in scored]
    scores = fl.evaluate_clients(model, state, own)["accuracy"]
    scores = np.sort(np.asarray(scores)[np.asarray(own.sizes) > 0])
    times = np.asarray(state.sampler.times)
    reached = [r for r, accuracy in zip(rounds, curve, strict=True) if accuracy >= flags.target]
    return {
        "method": name, "seed": seed, "rounds": rounds, "curve": curve,
        "final": float(np.mean(curve[-3:])),
        "to_target": reached[0] if reached else None,
        "worst_tenth": float(scores[: max(1, len(scores) // 10)].mean()),
        "gini": float(history[-1]["participation_gini"]),
        "never": float((times == 0).mean()),
        "times": times.tolist(),
    }  # fmt: skip


def table(rows: list[dict[str, Any]], flags: Flags) -> list[dict[str, Any]]:
    """Means over seeds, a row each method; prints them."""
    print(
        f"{'method':16s} {'accuracy':>9s} {f'rounds to {flags.target:g}':>14s} "
        f"{'worst tenth':>12s} {'Gini':>6s} {'never sent':>12s}"
    )
    summary = []
    for name in METHODS:
        mine = [row for row in rows if row["method"] == name]
        means = {k: float(np.mean([r[k] for r in mine]))
                 for k in ("final", "worst_tenth", "gini", "never")}  # fmt: skip
        reached = [row["to_target"] for row in mine]
        to_target = None if None in reached else float(np.mean(reached))
        summary.append({"method": name, **means, "to_target": to_target})
        print(
            f"{name:16s} {means['final']:9.3f} "
            f"{'-' if to_target is None else f'{to_target:.0f}':>14s} "
            f"{means['worst_tenth']:12.3f} {means['gini']:6.2f} {means['never']:12.0%}"
        )
    return summary


def plot(rows: list[dict[str, Any]], flags: Flags, path: Path) -> None:
    """Accuracy by round, and how often each client trained, clients in order."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(10, 4.4), layout="constrained")
    left, right = figure.subplots(1, 2)
    for name in METHODS:
        mine = [row for row in rows if row["method"] == name]
        colour, dash = STYLES[name]
        style: dict[str, Any] = {"color": colour, "linestyle": dash, "label": name}
        left.plot(mine[0]["rounds"], 100 * np.mean([r["curve"] for r in mine], 0), **style)
        times = np.mean([np.sort(row["times"])[::-1] for row in mine], 0)
        right.plot(np.arange(1, len(times) + 1), times, **style)
    left.axhline(100 * flags.target, color="grey", lw=0.8)
    low = 100 * min(row["curve"][min(2, len(row["curve"]) - 1)] for row in rows)
    left.set(
        xlabel="round", ylabel="test accuracy (%)", title="MNIST, 64 hidden units", ylim=(low, None)
    )  # fmt: skip
    right.set(
        xlabel="clients, most often first", ylabel="rounds in which it sent a model",
        title=f"participation in {flags.num_rounds} rounds", yscale="symlog", ylim=(0, None),
    )  # fmt: skip
    figure.legend(
        *left.get_legend_handles_labels(), loc="outside lower center", ncols=4, frameon=False
    )
    temporary = path.with_suffix(".tmp.png")
    figure.savefig(temporary, dpi=110)
    temporary.replace(path)


def main(flags: Flags) -> list[dict[str, Any]]:
    """Runs all methods and seeds; returns the summary."""
    if flags.smoke:
        flags = shrunk(flags, **SMALL)
    if flags.candidates < flags.cohort_size:
        raise ValueError(
            f"candidates must be at least the cohort, got {flags.candidates} for cohorts of "
            f"{flags.cohort_size}; ask more"
        )
    if not 0 < flags.target < 1:
        raise ValueError(f"--target must lie in (0, 1), got {flags.target}")
    flags.output_dir.mkdir(parents=True, exist_ok=True)
    rows = []
    for seed in range(flags.num_seeds):
        loaded = load(flags, seed)
        rows += [one_run(name, seed, flags, loaded) for name in METHODS]
    summary = table(rows, flags)
    settings = {k: str(v) if isinstance(v, Path) else v for k, v in vars(flags).items()}
    kept = {"settings": settings, "versions": versions(), "rows": rows, "summary": summary}
    save_json_atomic(flags.output_dir / "results.json", json.loads(json.dumps(kept)))
    plot(rows, flags, flags.output_dir / "client_selection.png")
    return summary


if __name__ == "__main__":
    script(main, Flags, __doc__)
