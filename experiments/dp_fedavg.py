"""Accuracy against epsilon: DP-FedAvg on MNIST by writer and on CIFAR-10.

    python experiments/dp_fedavg.py                       # both, minutes on two cores
    python experiments/dp_fedavg.py --datasets mnist --epsilons 0.5 2 inf
    python experiments/dp_fedavg.py --smoke               # seconds, scikit-learn's digits

Central DP per client (McMahan et al. 2018, arXiv:1710.06963): Poisson cohorts, clipped updates,
noise once on the sum, a fixed denominator. The noise of each epsilon is calibrated by dp-accounting
for the whole run, with the population that is there: 539 writers, or --num-clients parts of
CIFAR-10. One hides in a crowd, and these crowds are small: that is what the curves show. All
epsilons have the same hyper-parameters; inf has the clipping and no noise. That they were tuned on
the test data, as usual in such figures, is not accounted for.

--noise-cohort-size is the trick of pfl-research: the noise on the mean is what cohorts of that size
out of --noise-num-clients clients would need, so epsilon is that of an imagined deployment; the
clients that are simulated do not have it, and the table says so.

One program a data set is compiled: the noise is an argument. Prints z, q, T, delta and both
accountants' epsilons, and writes results.json and accuracy.png.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from dp_fedavg_settings import Flags
from shared.script import script

import fedjax_lite as fl
from fedjax_lite import privacy
from fedjax_lite.run.files import save_json_atomic
from fedjax_lite.run.settings import versions
from fedjax_lite.types import Mechanism

COLOURS = {"mnist": ("#0072B2", "o"), "cifar10": ("#D55E00", "s"), "digits": ("#009E73", "^")}
TITLES = {"mnist": "MNIST by writer", "cifar10": "CIFAR-10, Dirichlet", "digits": "digits, iid"}


class Setting(NamedTuple):
    """What is trained on a data set, when flags say nothing else."""

    num_clients: int
    expected_cohort_size: int
    num_rounds: int
    clip: float
    learning_rate: float
    epochs: int
    hidden: int
    batch_size: int = 10
    every: int = 10


SETTINGS = {
    "mnist": Setting(539, 100, 100, 0.5, 0.05, 2, 32),
    "cifar10": Setting(500, 100, 100, 0.5, 0.05, 2, 32),
    "digits": Setting(40, 20, 6, 0.5, 0.1, 2, 8, every=3),
}


class Problem(NamedTuple):
    """What a round is given: the data and the noise, as arguments of one program."""

    clients: fl.data.FederatedDataset
    noise_multiplier: Any


def main(flags: Flags) -> list[dict[str, Any]]:
    """Runs every epsilon and seed on every data set, prints the table and returns its rows."""
    if flags.smoke:
        flags = dataclasses.replace(
            flags, epsilons=(2.0, math.inf), num_seeds=2, method="rdp", num_rounds=6
        )
    check(flags)
    flags.output_dir.mkdir(parents=True, exist_ok=True)
    rows: list[dict[str, Any]] = []
    names = ("digits",) if flags.smoke else flags.datasets
    settings = {name: chosen(name, flags) for name in names}
    saved = {
        "versions": versions(),
        "flags": {k: v for k, v in vars(flags).items() if k not in ("output_dir", "data_dir")},
        "settings": {name: setting._asdict() for name, setting in settings.items()},
        "rows": rows,
    }
    for name, setting in settings.items():
        print(f"{TITLES[name]}: {setting}", flush=True)
        for row in curve(name, setting, flags):
            rows.append(row)
            save_json_atomic(flags.output_dir / "results.json", saved)
    print_table(rows)
    plot(rows, flags.output_dir / "accuracy.png")
    return rows


def check(flags: Flags) -> None:
    """Raises before anything runs where flags do not fit or results would be lost."""
    if not flags.epsilons or not all(epsilon > 0 for epsilon in flags.epsilons):
        raise ValueError(f"--epsilons must be positive numbers, got {flags.epsilons}")
    if flags.num_seeds < 1:
        raise ValueError(f"--num-seeds must be at least 1, got {flags.num_seeds}")
    if not 0 <= flags.server_momentum < 1:
        raise ValueError(f"--server-momentum must lie in [0, 1), got {flags.server_momentum}")
    path = flags.output_dir / "results.json"
    if path.exists() and not flags.overwrite:
        raise FileExistsError(
            f"{path} holds the results of an earlier run; --overwrite replaces them, or give "
            "another --output-dir"
        )


def chosen(name: str, flags: Flags) -> Setting:
    """The data set's setting with what the flags say instead."""
    asked = {
        field: getattr(flags, field)
        for field in Setting._fields
        if field != "hidden" and getattr(flags, field, 0)
    }
    if name == "mnist":
        asked.pop("num_clients", None)
    setting = SETTINGS[name]._replace(**asked)
    return setting._replace(hidden=flags.hidden) if flags.hidden >= 0 else setting


def load(
    name: str, setting: Setting, flags: Flags
) -> tuple[fl.data.FederatedDataset, dict[str, Any], fl.models.Model]:
    """The population, the test data and a small model, on images pooled to a quarter or so."""
    train, test = fl.data.load(name, data_dir=flags.data_dir)
    factor = {"mnist": 2, "cifar10": 4, "digits": 1}[name]
    deal: Any = fl.data.iid(num_clients=setting.num_clients, seed=0)
    if name == "mnist":
        if "writer" not in train:
            raise ValueError(
                "--datasets mnist needs the writers of the digits, train-writers.npy and "
                "t10k-writers.npy, beside the images; or leave mnist out"
            )
        deal = fl.data.by_key("writer")
    elif name == "cifar10":
        deal = fl.data.dirichlet(
            alpha=flags.alpha, num_clients=setting.num_clients, seed=0, min_size=5, balanced=True
        )
    owners = {} if name != "mnist" else {"writer": train["writer"]}
    data = fl.data.partition({"x": pooled(train["x"], factor), "y": train["y"], **owners}, deal)
    examples = {"x": data.examples["x"], "y": data.examples["y"]}
    data = dataclasses.replace(data, examples=examples)
    held_out = {"x": pooled(test["x"], factor), "y": test["y"]}
    shape = held_out["x"].shape[1:]
    channels: dict[str, Any] = {"mean": (0.13,), "std": (0.28,)}
    if name == "cifar10":
        channels = {"mean": (0.491, 0.482, 0.447), "std": (0.22, 0.218, 0.237)}
    elif name == "digits":
        channels = {}
    hidden = (setting.hidden,) if setting.hidden else ()
    return data, held_out, fl.models.mlp(hidden, input_shape=shape, **channels)


def pooled(x: np.ndarray, factor: int) -> np.ndarray:
    """Images shrunk by averaging squares, in their own dtype."""
    if factor == 1:
        return x
    size, height, width, channels = x.shape
    squares = x.reshape(size, height // factor, factor, width // factor, factor, channels)
    return np.round(squares.mean((2, 4))).astype(x.dtype)


def mechanism(
    noise_multiplier: float, cohort: float, population: int, setting: Setting, flags: Flags
) -> Mechanism:
    """Central DP of Poisson cohorts out of a population."""
    return privacy.central_gaussian(
        clip=setting.clip,
        num_clients=population,
        expected_cohort_size=cohort,
        delta=flags.delta,
        noise_multiplier=noise_multiplier,
        method=flags.method,
    )


def curve(name: str, setting: Setting, flags: Flags) -> Iterator[dict[str, Any]]:
    """A row an epsilon."""
    data, held_out, model = load(name, setting, flags)
    evaluate = fl.evaluator(model, held_out)
    momentum = flags.server_momentum
    server = optax.sgd(1 - momentum, momentum=momentum or None)
    size, cohort = data.num_clients, setting.expected_cohort_size
    scaled = flags.noise_cohort_size
    crowd = (scaled, flags.noise_num_clients) if scaled else (cohort, size)
    base = mechanism(0.0, cohort, size, setting, flags)

    def algorithm(noise_multiplier: Any) -> fl.FederatedAlgorithm:
        aggregator = privacy.gaussian_sum(
            clip=setting.clip, noise_multiplier=noise_multiplier, denominator=float(cohort)
        )
        return fl.fedavg(
            model.loss,
            optax.sgd(setting.learning_rate),
            plan=fl.Plan(batch_size=setting.batch_size, epochs=setting.epochs),
            server_optimizer=server,
            privacy=base._replace(aggregator=aggregator),
        )

    def round(key: Any, state: Any, problem: Problem, cohort: Any = None) -> tuple[Any, Any]:
        algo = algorithm(problem.noise_multiplier)
        return algo.round(key, state, problem.clients, cohort)

    algo = fl.FederatedAlgorithm(lambda k, x, p: algorithm(0.0).init(k, x, p.clients), round)
    for epsilon in flags.epsilons:
        z = privacy.noise_multiplier(
            epsilon=epsilon,
            delta=0.999 * flags.delta,  # the rest pays for cohorts that find no room
            sampling_rate=crowd[0] / crowd[1],
            num_rounds=setting.num_rounds,
            method=flags.method,
        )
        on_sum = z * cohort / crowd[0]
        accountant = mechanism(z, *crowd, setting, flags).accountant
        spent = accountant.spent(setting.num_rounds)
        assert spent["epsilon"] <= epsilon
        curves = []
        for seed in range(flags.num_seeds):
            key, problem = jax.random.key(seed), Problem(data, jnp.float32(on_sum))
            state = algo.init(key, model.init(key), problem)
            state, history = fl.run(
                algo,
                key,
                state,
                problem,
                num_rounds=setting.num_rounds,
                evaluate=evaluate,
                every=setting.every,
                progress=False,
            )
            overflow = int(state.sampler.overflow)
            if overflow:
                raise RuntimeError(f"{overflow} clients found no place: the bound does not hold")
            curves.append([row["test_accuracy"] for row in history if "test_accuracy" in row])
        final = [accuracies[-1] for accuracies in curves]
        row = {
            "dataset": name,
            "epsilon": epsilon,
            "epsilon_spent": spent["epsilon"],
            "epsilon_rdp": spent["epsilon_rdp"],
            "description": accountant.description,
            "delta": flags.delta,
            "noise_multiplier": z,
            "noise_multiplier_simulated": on_sum,
            "sampling_rate": crowd[0] / crowd[1],
            "num_rounds": setting.num_rounds,
            "num_clients": size,
            "num_clients_accounted": crowd[1],
            "num_parameters": sum(leaf.size for leaf in jax.tree.leaves(model.init(key))),
            "guarantee": "of an imagined deployment" if scaled else "of the simulated clients",
            "accuracies": final,
            "accuracy": float(np.mean(final)),
            "half_width": half_width(final),
            "curves": curves,
        }
        print(
            f"  epsilon {epsilon:g}: z={z:.4g}, accuracy {row['accuracy']:.2%} "
            f"+- {row['half_width']:.2%}",
            flush=True,
        )
        yield row


def half_width(values: list[float]) -> float:
    """Half of Student's 95 % interval of the mean; NaN for one value."""
    from scipy.stats import t

    if len(values) < 2:
        return math.nan
    return float(t.ppf(0.975, len(values) - 1) * np.std(values, ddof=1) / math.sqrt(len(values)))


def print_table(rows: list[dict[str, Any]]) -> None:
    """The guarantee and the accuracy, a line an epsilon."""
    from rich.console import Console
    from rich.table import Table

    table = Table(title="DP-FedAvg: last test accuracy, mean and 95 % interval over seeds")
    head = ("data", "epsilon", "by RDP", "delta", "z", "q", "T", "N", "accuracy (%)", "guarantee")
    for name in head:
        table.add_column(name, no_wrap=True)
    for row in rows:
        table.add_row(
            row["dataset"],
            f"{row['epsilon']:g}",
            f"{row['epsilon_rdp']:.3g}",
            f"{row['delta']:g}",
            f"{row['noise_multiplier']:.4f}",
            f"{row['sampling_rate']:.4g}",
            str(row["num_rounds"]),
            str(row["num_clients_accounted"]),
            f"{100 * row['accuracy']:.2f} +- {100 * row['half_width']:.2f}",
            row["guarantee"],
        )
    console = Console(width=140)
    console.print(table)
    console.print(
        "epsilon = inf: clipped, NOT PRIVATE. The settings are ours: nothing published "
        "is comparable one to one."
    )


def plot(rows: list[dict[str, Any]], path: Path) -> None:
    """Accuracy by epsilon with intervals; without noise as the last tick."""
    from matplotlib.figure import Figure

    names = list(dict.fromkeys(row["dataset"] for row in rows))
    figure = Figure(figsize=(4.6 * len(names), 4.0), layout="constrained")
    panels = figure.subplots(1, len(names), squeeze=False)[0]
    for axes, name in zip(panels, names, strict=True):
        mine = sorted((r for r in rows if r["dataset"] == name), key=lambda r: r["epsilon"])
        colour, marker = COLOURS[name]
        # Equal steps on a scale of epsilons, as the last of them is infinite.
        places = np.arange(len(mine))
        means = np.array([100 * row["accuracy"] for row in mine])
        bars = np.nan_to_num([100 * row["half_width"] for row in mine])
        axes.errorbar(places, means, bars, color=colour, marker=marker, capsize=4)
        for place, row in zip(places, mine, strict=True):
            points = 100 * np.array(row["accuracies"])
            axes.plot(np.full(len(points), place), points, ".", color="black", alpha=0.35, ms=5)
        labels = [r"$\infty$" if math.isinf(r["epsilon"]) else f"{r['epsilon']:g}" for r in mine]
        axes.set_xticks(places, labels)
        low, high = axes.get_ylim()  # intervals of few seeds are wider than what can be
        axes.set_ylim(max(low, 0.0), min(high, 100.0))
        first = mine[0]
        axes.set(
            xlabel=f"epsilon of the whole run, delta = {first['delta']:g}",
            ylabel="test accuracy (%)",
            title=f"{TITLES[name]}: N = {first['num_clients_accounted']}, "
            f"q = {first['sampling_rate']:.3g}, T = {first['num_rounds']}",
        )
        axes.grid(alpha=0.3)
    if any(row["guarantee"] != "of the simulated clients" for row in rows):
        figure.suptitle("noise of an imagined deployment", fontsize=10)
    temporary = path.with_suffix(".tmp.png")
    figure.savefig(temporary, dpi=120)
    temporary.replace(path)


if __name__ == "__main__":
    script(main, Flags, __doc__)
