"""FedAvg and FedAvgM (server momentum) under growing label skew, on Fashion-MNIST.

    python experiments/fashion_dirichlet.py                    # short: a perceptron, 300 rounds
    python experiments/fashion_dirichlet.py --preset published # CNN, 1,000 rounds; a GPU
    python experiments/fashion_dirichlet.py --smoke            # seconds

Hsu, Qi, Brown 2019 (arXiv:1909.06335): 100 clients of equal size, each with a class mixture
q ~ Dirichlet(alpha p), 5 of them a round, one epoch, batches of 64, Nesterov momentum 0.97 on the
server. Published figures are Flower's rerun on Fashion-MNIST, read off a plot (about a point).
Learning rates are compared at the same effective rate, eta / (1 - momentum): Flower's 0.003 with
momentum 0.97 is 0.1. Both methods choose from the same effective rates, for each alpha, by the mean
over seeds of the test accuracy, as the paper does. Differences:

* A seed draws partition, parameters, cohorts and batches; error bars are the sample's standard
  deviation over seeds.
* Accuracy is the mean of the evaluations in the last tenth of the rounds, not the last one.
* published has McMahan's MNIST CNN; the network of the rerun is not on our record.
* short (minutes on two CPU cores) has a perceptron of 64 hidden units (50,890 parameters) and
  300 rounds: compare the gap between the methods, not accuracies.

All rates and both methods of an (alpha, seed) are one program (`fl.sweep`). Each goes into
results.json as it is done and is kept by a later run. Writes results.json and accuracy.png and
prints the table.
"""

from __future__ import annotations

import dataclasses
import functools
import itertools
import json
import math
import time
from pathlib import Path
from typing import Any, Literal, NamedTuple

import numpy as np
import optax
import tyro
from shared.flags import with_labels
from shared.script import script
from shared.smoke import chosen_preset
from tables.published import figures

import fedjax_lite as fl
from fedjax_lite.run.files import save_json_atomic
from fedjax_lite.run.settings import versions

PUBLISHED = {float(alpha): tuple(pair.values()) for alpha, pair in figures("fashion").items()}
"""Test accuracy of FedAvg and FedAvgM by alpha: Flower's rerun of FedAvgM, read off its plot."""
STYLES = {"fedavg": ("#D55E00", "-", "o"), "fedavgm": ("#0072B2", "--", "s")}
METHODS = tuple(STYLES)


class Setting(NamedTuple):
    """What a preset fixes; sizes of 0 mean all examples."""

    model: str = "cnn"
    train_size: int = 0
    test_size: int = 0
    num_clients: int = 100
    cohort_size: int = 5
    batch_size: int = 64
    momentum: float = 0.97
    num_rounds: int = 1000
    alphas: tuple[float, ...] = tuple(PUBLISHED)
    seeds: tuple[int, ...] = (0, 1, 2)
    effective_rates: tuple[float, ...] = (0.003, 0.01, 0.03, 0.1, 0.3)


PRESETS = {
    "published": Setting(),
    "short": Setting(
        model="mlp", num_rounds=300, alphas=(100.0, 1.0, 0.1, 0.01),
        effective_rates=(0.01, 0.03, 0.1, 0.3),
    ),
    "smoke": Setting(
        model="mlp", train_size=2000, test_size=500, num_clients=20, cohort_size=4, num_rounds=20,
        alphas=(100.0, 0.01), seeds=(0, 1), effective_rates=(0.1,),
    ),
}  # fmt: skip


@dataclasses.dataclass(frozen=True)
class DataFlags:
    """Clients and examples; what is 0 or empty is the preset's."""

    data_dir: Path | None = None
    """Folder of Fashion-MNIST (else FEDJAX_LITE_DATA, the cache, /usr/share/datasets, network)."""
    alphas: tuple[float, ...] = ()
    """Concentrations of the clients' class mixtures; smaller is more skewed."""
    num_clients: int = 0
    """Clients in the population."""
    train_size: int = 0
    """Training examples to take; 0: the preset's."""
    test_size: int = 0
    """Test examples to take; 0: the preset's."""


@dataclasses.dataclass(frozen=True)
class TrainingFlags:
    """Rounds and rates; what is 0 or empty is the preset's."""

    num_rounds: int = 0
    """Rounds of communication."""
    cohort_size: int = 0
    """Clients that train in a round."""
    batch_size: int = 0
    """Examples a local step; one epoch a round."""
    momentum: float = 0.0
    """FedAvgM's momentum, in (0, 1)."""
    effective_rates: tuple[float, ...] = ()
    """Local learning rate over (1 - momentum), to choose from."""
    seeds: tuple[int, ...] = ()
    """Seeds of partition, parameters, cohorts and batches."""


@dataclasses.dataclass(frozen=True)
class RunFlags:
    """Preset, and where results go."""

    preset: Literal["short", "published", "smoke"] = "short"
    """short: minutes on two CPU cores; published: the whole setting; smoke: seconds."""
    model: Literal["", "mlp", "cnn"] = ""
    """mlp: 64 hidden units; cnn: McMahan's MNIST CNN; empty: the preset's."""
    output_dir: Path = Path("outputs/fashion_dirichlet")
    """Where results.json and accuracy.png go."""
    overwrite: bool = False
    """Run everything again; else what results.json has is kept and only added to."""
    smoke: bool = False
    """The same as --preset smoke."""


@dataclasses.dataclass(frozen=True)
class Flags:
    """A preset, and what to change of it."""

    data: tyro.conf.OmitArgPrefixes[DataFlags] = dataclasses.field(default_factory=DataFlags)
    training: tyro.conf.OmitArgPrefixes[TrainingFlags] = dataclasses.field(
        default_factory=TrainingFlags
    )
    run: tyro.conf.OmitArgPrefixes[RunFlags] = dataclasses.field(default_factory=RunFlags)


def choose(flags: Flags) -> Setting:
    """The preset with what the flags change; raises where that cannot be run."""
    setting = PRESETS[chosen_preset(flags.run)]
    groups = (flags.data, flags.training, flags.run)
    given = {k: v for group in groups for k, v in vars(group).items() if k in Setting._fields and v}
    setting = setting._replace(**given)
    if min(setting.alphas) <= 0 or min(setting.effective_rates) <= 0:
        raise ValueError(f"--alphas and --effective-rates must be positive, got {given}")
    if not 0 < setting.momentum < 1:
        raise ValueError(f"--momentum must lie in (0, 1), got {setting.momentum}")
    return setting


def algorithm(
    model: fl.models.Model, setting: Setting, *, momentum: Any, effective_rate: Any
) -> fl.FederatedAlgorithm:
    """FedAvgM at the local rate ``effective_rate (1 - momentum)``; momentum 0 is FedAvg."""
    return fl.fedavgm(
        model.loss,
        optax.sgd(effective_rate * (1 - momentum)),
        momentum=momentum,
        nesterov=True,
        plan=fl.Plan(batch_size=setting.batch_size),
        sampler=fl.uniform(setting.cohort_size),
    )


def load(data_dir: Path | None, setting: Setting) -> tuple[dict, dict]:
    """Training and test examples, as many as the setting says."""
    train, test = map(with_labels, fl.data.load("fashion_mnist", data_dir=data_dir))
    rows = np.random.default_rng(0).permutation(len(train["y"]))[: setting.train_size or None]
    test = {k: v[: setting.test_size or None] for k, v in test.items()}
    return {k: v[rows] for k, v in train.items()}, test


def run_cell(
    train: dict, test: dict, *, alpha: float, seed: int, setting: Setting
) -> list[dict[str, Any]]:
    """Both methods at all rates on one draw; a row each with its curve."""
    deal = fl.data.dirichlet_mixture(alpha=alpha, num_clients=setting.num_clients, seed=seed)
    # The scaling that most code for Fashion-MNIST has: mean .286, standard deviation .353.
    scale: dict[str, Any] = {"mean": (0.286,), "std": (0.353,)}
    if setting.model == "mlp":
        model = fl.models.mlp((64,), input_shape=train["x"].shape[1:], **scale)
    else:
        model = fl.models.mcmahan_cnn(**scale)
    began = time.perf_counter()
    result = fl.sweep(
        functools.partial(algorithm, model, setting),
        {"momentum": (0.0, setting.momentum), "effective_rate": setting.effective_rates},
        init=model.init,
        data=fl.data.partition(train, deal),
        num_rounds=setting.num_rounds,
        seeds=(seed,),
        evaluate=fl.evaluator(model, test),
        every=max(1, setting.num_rounds // 20),
    )
    seconds = round(time.perf_counter() - began, 1)
    rows = []
    for point in result.points:
        history = [
            row
            for row in result.rows
            if "test_accuracy" in row and all(row[k] == v for k, v in point.items())
        ]
        curve = [row["test_accuracy"] for row in history]
        rounds = [row["round"] for row in history]
        rows.append(
            {
                "method": "fedavgm" if point["momentum"] else "fedavg",
                "alpha": alpha,
                "seed": seed,
                "effective_rate": point["effective_rate"],
                "accuracy": last_tenth(rounds, curve),
                "rounds": rounds,
                "curve": np.round(curve, 5).tolist(),
                "seconds_of_cell": seconds,
            }
        )
    return rows


def last_tenth(rounds: list[int], curve: list[float]) -> float:
    """Mean of the evaluations in the last tenth of the rounds."""
    late = [value for at, value in zip(rounds, curve, strict=True) if at > 0.9 * rounds[-1]]
    return float(np.mean(late))


def summarise(rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """For each alpha and method the best rate: mean and standard deviation over seeds."""
    summary = []
    for alpha, method in itertools.product(dict.fromkeys(r["alpha"] for r in rows), METHODS):
        by_rate: dict[float, list[float]] = {}
        for row in rows:
            if (row["alpha"], row["method"]) == (alpha, method):
                by_rate.setdefault(row["effective_rate"], []).append(row["accuracy"])
        best = max(by_rate, key=lambda rate: float(np.mean(by_rate[rate])))
        values = by_rate[best]
        known = PUBLISHED.get(alpha)
        summary.append(
            {
                "alpha": alpha,
                "method": method,
                "effective_rate": best,
                "mean": float(np.mean(values)),
                "std": float(np.std(values, ddof=1)) if len(values) > 1 else math.nan,
                "num_seeds": len(values),
                "mean_by_rate": {f"{rate:g}": float(np.mean(v)) for rate, v in by_rate.items()},
                "published": known[METHODS.index(method)] if known else None,
            }
        )
    return summary


def print_table(summary: list[dict[str, Any]], setting: Setting) -> None:
    """Ours beside the published accuracies in per cent, and the gap between the methods."""
    from rich.console import Console
    from rich.table import Table

    whole = setting._replace(alphas=(), seeds=()) == Setting(alphas=(), seeds=())
    table = Table(
        title="Fashion-MNIST, test accuracy (%): published / ours",
        caption=None if whole else "Another model and fewer rounds than published.",
    )
    for column in ("alpha", "FedAvg", "FedAvgM", "gain", "rates"):
        table.add_column(column)
    cells = {(row["alpha"], row["method"]): row for row in summary}
    for alpha in dict.fromkeys(row["alpha"] for row in summary):
        pair = [cells[alpha, method] for method in METHODS]
        known = [row["published"] for row in pair]
        papers = ["-" if value is None else f"{100 * value:.1f}" for value in known]
        texts = [
            f"{paper} / {100 * row['mean']:.1f}"
            + (f" ± {100 * row['std']:.1f}" if row["num_seeds"] > 1 else "")
            for paper, row in zip(papers, pair, strict=True)
        ]
        gain = "-" if None in known else f"{100 * (known[1] - known[0]):+.1f}"
        table.add_row(
            f"{alpha:g}",
            *texts,
            f"{gain} / {100 * (pair[1]['mean'] - pair[0]['mean']):+.1f}",
            ", ".join(f"{row['effective_rate']:g}" for row in pair),
        )
    Console().print(table)


def plot(summary: list[dict[str, Any]], setting: Setting, path: Path) -> None:
    """Accuracy by alpha with error bars over seeds; the published points are hollow."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(6.4, 4.8), layout="constrained")
    axes = figure.subplots()
    for method, shift in zip(METHODS, (0.96, 1.04), strict=True):
        colour, dash, marker = STYLES[method]
        rows = sorted((r for r in summary if r["method"] == method), key=lambda r: r["alpha"])
        alphas = np.array([row["alpha"] for row in rows])
        means, spreads = (100 * np.array([row[k] for row in rows]) for k in ("mean", "std"))
        axes.errorbar(
            alphas * shift, means, np.nan_to_num(spreads), color=colour, linestyle=dash,
            marker=marker, capsize=3, label={"fedavg": "FedAvg", "fedavgm": "FedAvgM"}[method],
        )  # fmt: skip
        known = [(a, 100 * r["published"]) for a, r in zip(alphas, rows, strict=True)
                 if r["published"] is not None]  # fmt: skip
        if known:
            at, values = zip(*known, strict=True)
            axes.plot(
                np.array(at) * shift, values, color=colour, linestyle="none", marker=marker,
                markerfacecolor="none", ms=9, label=f"{method}, published (1,000 rounds)"
                .replace("fedavgm", "FedAvgM").replace("fedavg", "FedAvg"),
            )  # fmt: skip
    counts = sorted({row["num_seeds"] for row in summary})
    axes.set(
        xscale="log",
        xlabel="Dirichlet concentration alpha (left: more skewed)",
        ylabel="test accuracy (%)",
        title=f"Fashion-MNIST, {setting.model}, {setting.num_rounds} rounds, "
        f"{' to '.join(map(str, counts))} seed{'s' * (counts[-1] > 1)}",
    )
    figure.legend(loc="outside lower center", ncols=2, frameon=False)
    temporary = path.with_suffix(".tmp.png")
    figure.savefig(temporary, dpi=120)
    temporary.replace(path)


def earlier_rows(path: Path, settings: dict[str, Any]) -> list[dict[str, Any]]:
    """What an earlier run of the same setting has left."""
    saved = json.loads(path.read_text())
    now = json.loads(json.dumps(settings))
    free = ("alphas", "seeds")
    differ = [k for k, v in saved["settings"].items() if k not in free and v != now.get(k)]
    if differ:
        raise ValueError(
            f"{path} holds results of another setting ({', '.join(differ)} differ); give another "
            "--output-dir or --overwrite"
        )
    return saved["rows"]


def main(flags: Flags) -> list[dict[str, Any]]:
    """Runs every alpha and seed, prints the table and returns its rows."""
    setting = choose(flags)
    path = flags.run.output_dir / "results.json"
    preset = chosen_preset(flags.run)
    settings = {"preset": preset, **setting._asdict()}
    rows = earlier_rows(path, settings) if path.exists() and not flags.run.overwrite else []
    train, test = load(flags.data.data_dir, setting)
    print(f"{preset} preset: {len(train['y'])} training and {len(test['y'])} test images")
    flags.run.output_dir.mkdir(parents=True, exist_ok=True)
    # Seeds outside: an interrupted run has whole columns of alphas.
    for seed, alpha in itertools.product(setting.seeds, setting.alphas):
        if any((row["alpha"], row["seed"]) == (alpha, seed) for row in rows):
            print(f"alpha {alpha:g}, seed {seed}: kept from {path}; --overwrite runs it again")
            continue
        done = run_cell(train, test, alpha=alpha, seed=seed, setting=setting)
        rows += done
        best = {m: max(r["accuracy"] for r in done if r["method"] == m) for m in METHODS}
        texts = ", ".join(f"{method} {value:.1%}" for method, value in best.items())
        print(f"alpha {alpha:g}, seed {seed}: {texts}, {done[0]['seconds_of_cell']} s", flush=True)
        summary = summarise(rows)
        # An earlier run's alphas and seeds are in the summary, too.
        settings |= {
            f"{k}s": list(dict.fromkeys(row[k] for row in rows)) for k in ("alpha", "seed")
        }
        saved = {"versions": versions(), "settings": settings, "summary": summary, "rows": rows}
        save_json_atomic(path, saved)
        plot(summary, setting, flags.run.output_dir / "accuracy.png")
    summary = summarise(rows)
    print_table(summary, setting)
    return summary


if __name__ == "__main__":
    script(main, Flags, __doc__)
