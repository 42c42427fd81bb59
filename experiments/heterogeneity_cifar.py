"""FedAvg, FedProx, SCAFFOLD and FedNova under label skew: NIID-Bench's CIFAR-10 table.

    python experiments/heterogeneity_cifar.py                      # short, minutes on two cores
    python experiments/heterogeneity_cifar.py --preset niid-bench  # the whole setting
    python experiments/heterogeneity_cifar.py --preset smoke       # seconds, scikit-learn's digits

NIID-Bench (Li et al. 2021, arXiv:2102.02079): 10 parties, all in every round, Dirichlet shares of
each label (balanced, at least 10 examples), LeNet, 50 rounds of 10 epochs, batches of 64, SGD at
0.01 with momentum 0.9 and weight decay 1e-5, reflected crops and flips, FedProx with the best mu
of four, weights by examples, accuracy after the last round, three seeds. Differences:

* SCAFFOLD's control variates presume plain SGD: no momentum, and the best of a few rates up to
  0.01 / (1 - 0.9), which is what momentum amounts to in many steps. The benchmark's code adds the
  correction behind a momentum step. `c` is the mean of the `c_i` by examples, there a plain one.
* Weight decay is a penalty in the loss, for all alike: the same gradient.
* mu and SCAFFOLD's rate are chosen by the first seed's last test accuracy, for all seeds.
* A draw with a party below 10 examples is repaired, not repeated.
* The short preset standardises the images: else LeNet hardly leaves chance in so few steps.

The centralised row is the same engine on the union of the parties, as many epochs a round; gap is
the distance to it in points. A method is compiled once: seeds, alphas, mu and rate are arguments
of its program. Writes results.json and curves.png.
"""

from __future__ import annotations

import dataclasses
import itertools
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any, Literal, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from shared.flags import with_labels
from shared.script import script
from shared.smoke import chosen_preset
from tables.published import figures

import fedjax_lite as fl
from fedjax_lite.algorithms import gap_to_baseline
from fedjax_lite.run.files import save_json_atomic
from fedjax_lite.run.settings import versions

NUM_CLIENTS = 10
STYLES = {
    "centralised": ("#666666", ":", ""),
    "fedavg": ("#D55E00", "-", "o"),
    "fedprox": ("#E69F00", "--", "s"),
    "scaffold": ("#0072B2", "-", "^"),
    "fednova": ("#009E73", "-.", "v"),
}
METHODS = tuple(STYLES)[1:]
PUBLISHED = {(method, 0.5): tuple(pair) for method, pair in figures("niid_bench").items()}
"""Test accuracy in per cent: NIID-Bench's leaderboard, and Flower's rerun of it. For alpha 0.1
there is none with LeNet (with VGG and 100 rounds: 84.0, 84.4, 85.5, 84.4)."""


class Setting(NamedTuple):
    """What a preset fixes (by default the published setting); sizes of 0 mean all examples."""

    dataset: str = "cifar10"
    train_size: int = 0
    test_size: int = 0
    standardise: bool = False
    num_rounds: int = 50
    epochs: int = 10
    batch_size: int = 64
    every: int = 1
    seeds: tuple[int, ...] = (0, 1, 2)
    mus: tuple[float, ...] = (0.001, 0.01, 0.1, 1.0)
    scaffold_rates: tuple[float, ...] = (0.01, 0.03, 0.1)


PRESETS = {
    "niid-bench": Setting(),
    "short": Setting("cifar10", 5000, 2000, True, 16, 1, 16, 4, (0, 1), (0.01, 0.1), (0.03, 0.1)),
    "smoke": Setting("digits", 600, 200, False, 4, 1, 16, 2, (0, 1), (0.01, 1.0), (0.1,)),
}


@dataclasses.dataclass(frozen=True)
class ComparisonFlags:
    """What each method may choose from."""

    mus: tuple[float, ...] = ()
    """FedProx's penalties to choose from."""
    scaffold_rates: tuple[float, ...] = ()
    """SCAFFOLD's learning rates to choose from."""


@dataclasses.dataclass(frozen=True)
class DataFlags:
    """The data and how they are dealt to clients."""

    alphas: tuple[float, ...] = (0.5, 0.1)
    """Concentrations of the Dirichlet partition; smaller is more skewed."""
    train_size: int = 0
    """Training examples to take; 0: the preset's."""
    data_dir: Path | None = None
    """Folder that holds CIFAR-10 (else FEDJAX_LITE_DATA, the cache, a download)."""


@dataclasses.dataclass(frozen=True)
class TrainingFlags:
    """Models, local training and rounds."""

    num_rounds: int = 0
    """Rounds of each run; 0: the preset's."""


@dataclasses.dataclass(frozen=True)
class RunFlags:
    """Preset, seeds and length of the run, and where results go."""

    preset: Literal["short", "niid-bench", "smoke"] = "short"
    """short: part of CIFAR-10, few rounds; niid-bench: the published setting; smoke: digits."""
    smoke: bool = False
    """The same as --preset smoke."""
    seeds: tuple[int, ...] = ()
    """Seeds of partition, parameters, batches; none given, as for mus and rates: the preset's."""
    output_dir: Path = Path("outputs/heterogeneity_cifar")
    """Where results.json and curves.png go."""
    overwrite: bool = False
    """Replace an earlier run's results in --output-dir."""


@dataclasses.dataclass(frozen=True)
class Flags(ComparisonFlags, DataFlags, TrainingFlags, RunFlags):
    """A preset, and what to change of it."""


class Problem(NamedTuple):
    """What a round is given: the data, and FedProx's mu or SCAFFOLD's rate, as arguments."""

    clients: fl.data.FederatedDataset
    tuned: Any


def parametrised(make: Callable[[Any], fl.FederatedAlgorithm]) -> fl.FederatedAlgorithm:
    """Turns ``tuned -> algorithm`` into one algorithm whose data is a `Problem`."""

    def round(key: Any, state: Any, problem: Problem, cohort: Any = None) -> tuple[Any, Any]:
        return make(problem.tuned).round(key, state, problem.clients, cohort)

    return fl.FederatedAlgorithm(lambda k, x, p: make(p.tuned).init(k, x, p.clients), round)


def penalised(loss: Callable, weight_decay: float) -> Callable:
    """Adds ``weight_decay / 2 |params|^2`` to every example's loss: works without an optimizer."""

    def total(params: Any, examples: Any, key: Any) -> jax.Array:
        squares = sum(jnp.vdot(leaf, leaf) for leaf in jax.tree.leaves(params))
        return loss(params, examples, key) + 0.5 * weight_decay * squares

    return total


def methods(loss: Callable, setting: Setting) -> dict[str, fl.FederatedAlgorithm]:
    """The centralised baseline and the four methods, each to be compiled once."""
    sgd = optax.sgd(0.01, momentum=0.9)
    plan = fl.Plan(batch_size=setting.batch_size, epochs=setting.epochs)
    slots: dict[str, Any] = {"plan": plan, "sampler": fl.everyone()}
    made = {
        "centralised": lambda _: fl.centralised(loss, sgd, plan=plan),
        "fedavg": lambda _: fl.fedavg(loss, sgd, **slots),
        "fedprox": lambda mu: fl.fedprox(loss, sgd, mu=mu, **slots),
        "scaffold": lambda rate: fl.scaffold(loss, rate, weighting="examples", **slots),
        "fednova": lambda _: fl.fednova(loss, 0.01, momentum=0.9, **slots),
    }
    return {name: parametrised(make) for name, make in made.items()}


def partitions(train: dict, flags: Flags, seeds: tuple[int, ...]) -> dict[tuple, Any]:
    """Every (alpha, seed) on the same examples and of the same static shape."""
    examples, dealt = jax.tree.map(jnp.asarray, train), {}
    parties: dict[str, Any] = {"num_clients": NUM_CLIENTS, "min_size": 10, "balanced": True}
    for alpha, seed in itertools.product(flags.alphas, seeds):
        data = fl.data.partition(train, fl.data.dirichlet(alpha=alpha, seed=seed, **parties))
        dealt[alpha, seed] = dataclasses.replace(data, examples=examples)
    # Batches are of a fixed size, so the static bound may be the largest of all partitions.
    largest = max(data.max_client_size for data in dealt.values())
    return {k: dataclasses.replace(d, max_client_size=largest) for k, d in dealt.items()}


def load(flags: Flags, setting: Setting) -> tuple[dict, dict, fl.models.Model, Callable]:
    """Training and test examples, the model, and the loss that is trained on."""
    train, test = map(with_labels, fl.data.load(setting.dataset, data_dir=flags.data_dir))
    rows = np.random.default_rng(0).permutation(len(train["y"]))[: setting.train_size or None]
    train = {k: v[rows] for k, v in train.items()}
    test = {k: v[: setting.test_size or None] for k, v in test.items()}
    if setting.dataset == "digits":
        model = fl.models.mlp((32,), num_classes=10, input_shape=train["x"].shape[1:])
        return train, test, model, penalised(model.loss, 1e-5)
    channels: dict[str, Any] = {"mean": (0.491, 0.482, 0.447), "std": (0.247, 0.243, 0.262)}
    model = fl.models.lenet(**(channels if setting.standardise else {}))
    return train, test, model, penalised(fl.models.augmented(model, pad_mode="reflect").loss, 1e-5)


def main(flags: Flags) -> list[dict[str, Any]]:
    """Runs every method at every alpha, prints the table and returns its rows."""
    path = flags.output_dir / "results.json"
    if path.exists() and not flags.overwrite:
        raise FileExistsError(f"{path} is there already; give --overwrite or another --output-dir")
    asked = {k: v for k, v in vars(flags).items() if k in Setting._fields and v}
    setting = PRESETS[chosen_preset(flags)]._replace(**asked)
    if min(setting.mus) < 0 or min(setting.scaffold_rates) <= 0:
        raise ValueError(f"--mus must be >= 0 and --scaffold-rates > 0, got {asked}")
    train, test, model, loss = load(flags, setting)
    datasets = partitions(train, flags, setting.seeds)
    algorithms, evaluate = methods(loss, setting), fl.evaluator(model, test)
    comparable = setting._replace(seeds=()) == Setting(seeds=())
    note = "the published setting" if comparable else "NOT comparable with the published one to one"
    print(f"{chosen_preset(flags)} preset ({note}): {setting}")

    def run(name: str, alpha: float, seed: int, tuned: float = 0.0) -> list[dict[str, Any]]:
        key, problem = jax.random.key(seed), Problem(datasets[alpha, seed], jnp.float32(tuned))
        state = algorithms[name].init(key, model.init(key), problem)
        how: dict[str, Any] = {"evaluate": evaluate, "every": setting.every, "progress": False}
        how["num_rounds"] = setting.num_rounds
        how["stop_if_diverged"] = False  # a rate out of the grid may be too large
        history = fl.run(algorithms[name], key, state, problem, **how)[1]
        return [row for row in history if "test_accuracy" in row]

    flags.output_dir.mkdir(parents=True, exist_ok=True)
    central = {seed: run("centralised", flags.alphas[0], seed) for seed in setting.seeds}
    rows = [summarise("centralised", None, central, central)]
    settings = {"preset": chosen_preset(flags), "num_clients": NUM_CLIENTS, **setting._asdict()}
    saved = {"versions": versions(), "comparable": comparable, "settings": settings, "rows": rows}
    candidates = {"fedprox": setting.mus, "scaffold": setting.scaffold_rates}
    for alpha in flags.alphas:
        for name in METHODS:
            tried = {v: run(name, alpha, setting.seeds[0], v) for v in candidates.get(name, (0.0,))}
            value = max(tried, key=lambda v: tried[v][-1]["test_accuracy"])
            others = {seed: run(name, alpha, seed, value) for seed in setting.seeds[1:]}
            row = summarise(name, alpha, {setting.seeds[0]: tried[value]} | others, central)
            if name in candidates:
                row["tuned"] = value
                row["tried"] = {str(v): h[-1]["test_accuracy"] for v, h in tried.items()}
            rows.append(row)
            save_json_atomic(path, saved)
            print(f"{name}, alpha {alpha:g}: {row['final_mean']:.2%}", flush=True)
    print(table(rows, published=setting.dataset == "cifar10", comparable=comparable))
    plot(rows, flags, setting, flags.output_dir / "curves.png")
    return rows


def summarise(name: str, alpha: float | None, histories: dict, central: dict) -> dict[str, Any]:
    """Figures over seeds of ``{seed: history}``; the spread is the sample's standard deviation."""
    curves = {str(s): [r["test_accuracy"] for r in h] for s, h in histories.items()}
    final = np.array([curve[-1] for curve in curves.values()])
    gaps = [gap_to_baseline(h, central[s])[-1] for s, h in histories.items()]
    rounds = [row["round"] for row in next(iter(histories.values()))]
    return {
        "method": name,
        "alpha": alpha,
        "final_mean": float(final.mean()),
        "final_std": float(final.std(ddof=1)) if len(final) > 1 else math.nan,
        "best_mean": float(np.mean([max(curve) for curve in curves.values()])),
        "num_rounds": rounds[-1],
        "gap": float(np.mean([gap["test_accuracy_gap"] for gap in gaps])),
        "rounds": rounds,
        "curves": curves,
    }


def remark(row: dict[str, Any]) -> str:
    """What was tuned, and who has no momentum."""
    if row["method"] == "scaffold":
        return f"no momentum, rate {row['tuned']:g}"
    return f"mu {row['tuned']:g}" if row["method"] == "fedprox" else ""


def table(rows: list[dict[str, Any]], *, published: bool, comparable: bool) -> str:
    """The results beside the published ones, in per cent."""
    lines = ["\nmethod      alpha     final acc.   best    gap rounds NIID-Bench Flower  remark"]
    for row in rows:
        known = PUBLISHED.get((row["method"], row["alpha"])) if published else None
        paper, rerun = (f"{value:g}" for value in known) if known else ("-", "-")
        alpha = "-" if row["alpha"] is None else f"{row['alpha']:g}"
        mean, std, best, gap = (
            100 * row[k] for k in ("final_mean", "final_std", "best_mean", "gap")
        )
        ours = f"{alpha:>5s} {f'{mean:.2f} +- {std:.2f}':>14s} {best:6.2f} {gap:6.2f}"
        known = f"{row['num_rounds']:6d} {paper:>10s} {rerun:>6s}  {remark(row)}"
        lines.append(f"{row['method']:11s} {ours} {known}".rstrip())
    if published and not comparable:
        lines.append("The published columns are of the whole setting, ours is cut: do not compare.")
    return "\n".join(lines)


def plot(rows: list[dict[str, Any]], flags: Flags, setting: Setting, path: Path) -> None:
    """Accuracy by round: a panel an alpha, a line the seeds' mean, a band their range."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(5 * len(flags.alphas), 4.2), layout="constrained")
    panels = figure.subplots(1, len(flags.alphas), sharey=True, squeeze=False)[0]
    for axes, alpha in zip(panels, flags.alphas, strict=True):
        for row in (row for row in rows if row["alpha"] in (None, alpha)):
            colour, dash, marker = STYLES[row["method"]]
            rounds, curves = row["rounds"], 100 * np.array(list(row["curves"].values()))
            axes.fill_between(rounds, curves.min(0), curves.max(0), color=colour, alpha=0.12, lw=0)
            style = {"color": colour, "linestyle": dash, "marker": marker, "markersize": 4}
            label = ", ".join(filter(None, (row["method"], remark(row))))
            axes.plot(rounds, curves.mean(0), label=label, **style)
        axes.set(xlabel="round", title=f"Dirichlet({alpha:g})")
        axes.legend(loc="upper center", bbox_to_anchor=(0.5, -0.14), fontsize=8, ncols=3)
    panels[0].set_ylabel("test accuracy (%)")
    figure.suptitle(f"{setting.dataset}, {chosen_preset(flags)} preset, {len(setting.seeds)} seeds")
    temporary = path.with_suffix(".tmp.png")
    figure.savefig(temporary, dpi=120)
    temporary.replace(path)


if __name__ == "__main__":
    script(main, Flags, __doc__)
