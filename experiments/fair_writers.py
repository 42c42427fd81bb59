"""Fair methods on real writers: most are census employees, one in ten is a high-school student.

    python experiments/fair_writers.py            # about five minutes on two CPU cores
    python experiments/fair_writers.py --smoke    # seconds

MNIST by who wrote each digit; every client is one writer, of whom 60 images are trained on and 40
are held out. NIST asked two kinds of people, so the minority is a real one, and what it loses is
measured, not made. Logistic regression, which cannot fit everybody, is trained by FedAvg, q-FedAvg,
AFL (a client, or a kind of writer, as its unit), TERM and FedMGDA+, at several strengths each, all
clients in every round. Writers are drawn anew a few times (`num_deals`), and each time all seeds
and strengths of a method are one vmapped sweep. A method is judged in pairs of the same deal
against what it would be without its leaning: FedAvg of as many rounds; and FedMGDA+ of deviation 0,
the mean of updates of one length, for FedMGDA+, since that mean already is another method than
FedAvg. "Long" has four times the rounds: q-FedAvg takes short steps, and what others gain early may
be haste. (Four times the rate is no way to longer steps: updates overshoot, their squares are in
q-FedAvg's denominators, and its mean accuracy was 66 to 80 % where FedAvg's was 93.) A method is
called fairer where the worst tenth of the clients gains, or the variance falls, by more than two
standard errors over the deals. Prints the table; writes results.json and fair.png.
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import optax
from shared.scene import gain
from shared.script import script
from shared.smoke import shrunk

import fedjax_lite as fl
from fedjax_lite.run.files import save_json_atomic
from fedjax_lite.run.settings import versions

FIRST_STUDENT = 2100
"""Writers from this number on are the high-school students of NIST's hsf_4."""
TRAINED, HELD_OUT = 60, 40
PLAIN, LONG = "FedAvg", "FedAvg, long"
CONTROLS = {
    **dict.fromkeys(("q-FedAvg, long", "AFL, long", "TERM, long", "FedMGDA+, long"), LONG),
    "FedMGDA+": "FedMGDA+ 0",
    "FedMGDA+, long": "FedMGDA+, long 0",
}
"""What a family of methods is without its leaning, where that is not FedAvg."""
FIGURES = ("mean", "worst", "best", "variance", "gini", "jain", "angle")


@dataclasses.dataclass(frozen=True)
class DataFlags:
    """Writers."""

    data_dir: Path | None = None
    """Folder of MNIST with its writers (else FEDJAX_LITE_DATA, the cache)."""
    num_clients: int = 80
    """Clients, that is writers, who have 100 images each."""
    minority: float = 0.1
    """The share of the clients that are students, in (0, 1)."""
    num_deals: int = 4
    """How often writers are drawn anew; errors are over these draws."""


@dataclasses.dataclass(frozen=True)
class TrainingFlags:
    """Rounds and local training."""

    num_rounds: int = 40
    """Rounds of each run, all clients in each; of the long ones four times as many."""
    batch_size: int = 20
    """Examples in a local step; an epoch a round."""
    learning_rate: float = 0.05
    """Client learning rate of every method."""
    num_seeds: int = 2
    """Number of seeds of batches and starts, 0, 1 and so on, side by side in a sweep."""


@dataclasses.dataclass(frozen=True)
class RunFlags:
    """Where results go."""

    output_dir: Path = Path("outputs/fair_writers")
    """Where results.json and fair.png go."""
    overwrite: bool = False
    """Replace the results of an earlier run."""
    smoke: bool = False
    """A run of seconds, to see that everything works."""


@dataclasses.dataclass(frozen=True)
class Flags(DataFlags, TrainingFlags, RunFlags):
    """Writers, methods, files."""


def main(flags: Flags) -> dict[str, Any]:
    """Sweeps each method over each deal, prints and writes figures and verdicts."""
    if flags.smoke:
        flags = shrunk(flags, num_clients=10, num_deals=2, num_rounds=2, num_seeds=1)
    if not 0 < flags.minority < 1:
        raise ValueError(f"minority must lie in (0, 1), got {flags.minority}; 0.1")
    target = flags.output_dir / "results.json"
    if target.exists() and not flags.overwrite:
        raise FileExistsError(f"{target} is there from an earlier run; give --overwrite")
    images, _ = fl.data.load("mnist", data_dir=flags.data_dir)
    if "writer" not in images:
        raise FileNotFoundError(
            "MNIST must have its writers beside it, train-writers.npy and t10k-writers.npy"
        )
    model = fl.models.linear(10, (28, 28, 1), mean=(0.13,), std=(0.31,))
    groups = (np.arange(flags.num_clients) < round(flags.minority * flags.num_clients)).astype(int)
    found: dict[str, list[dict[str, float]]] = {}
    for deal in range(flags.num_deals):
        train, test = writers(images, groups, deal)
        evaluate = fl.client_evaluator(model, test, groups=groups, fairness=True)
        each = methods(flags, model, groups)
        if flags.smoke:
            each = {name: each[name]._replace(strengths=(1.0,)) for name in (PLAIN, "TERM")}
        for name, (make, strengths, times) in each.items():
            swept = fl.sweep(
                make, {"strength": strengths}, init=model.init, data=train, evaluate=evaluate,
                num_rounds=times * flags.num_rounds, seeds=range(flags.num_seeds), progress=False,
            )  # fmt: skip
            for strength in strengths:
                label = name if name in (PLAIN, LONG) else f"{name} {strength:g}"
                same = [row for row in swept.rows if row["strength"] == strength]
                found.setdefault(label, []).append(means(same))
    results = {
        "rows": [judged(name, found) for name in found],
        "settings": {
            k: v if isinstance(v, int | float) else str(v) for k, v in vars(flags).items()
        },
        "num_minority": int(groups.sum()),
        "versions": versions(),
    }
    tell(results)
    flags.output_dir.mkdir(parents=True, exist_ok=True)
    save_json_atomic(target, results)
    plot(results, flags.output_dir / "fair.png")
    return results


def writers(images: dict[str, np.ndarray], groups: np.ndarray, deal: int) -> tuple[Any, Any]:
    """Train and test part of clients of both kinds, drawn among those with enough images."""
    rng, writer = np.random.default_rng(deal), np.asarray(images["writer"])
    names, counts = np.unique(writer, return_counts=True)
    names = names[counts >= TRAINED + HELD_OUT]
    kinds = (names >= FIRST_STUDENT).astype(int)
    parts: tuple[list[np.ndarray], list[np.ndarray]] = ([], [])
    chosen = np.zeros(len(groups), int)
    for kind in (0, 1):
        chosen[groups == kind] = rng.choice(names[kinds == kind], (groups == kind).sum(), False)
    for one in chosen:
        rows = rng.permutation(np.flatnonzero(writer == one))
        parts[0].append(rows[:TRAINED])
        parts[1].append(rows[TRAINED : TRAINED + HELD_OUT])

    def population(rows: list[np.ndarray]) -> fl.data.FederatedDataset:
        taken = np.concatenate(rows)
        arrays = {name: np.asarray(images[name])[taken] for name in ("x", "y")}
        return fl.data.from_arrays(arrays, np.repeat(np.arange(len(rows)), len(rows[0])))

    return population(parts[0]), population(parts[1])


class Method(NamedTuple):
    """One algorithm at several strengths."""

    make: Callable[..., fl.FederatedAlgorithm]
    """``(strength) -> algorithm``."""
    strengths: tuple[float, ...]
    times: int = 1
    """How many times the rounds."""


def methods(flags: Flags, model: fl.models.Model, groups: np.ndarray) -> dict[str, Method]:
    """What is compared, by name."""
    loss, rate, rounds = model.loss, flags.learning_rate, flags.num_rounds
    sgd = optax.sgd(rate)
    same: dict[str, Any] = {"plan": fl.Plan(flags.batch_size), "sampler": fl.everyone()}
    uniform: dict[str, Any] = {"weighting": "uniform", **same}

    def plain(strength: Any) -> fl.FederatedAlgorithm:
        return fl.fedavg(loss, sgd, **uniform)

    def q_fedavg(strength: Any) -> fl.FederatedAlgorithm:
        return fl.q_fedavg(loss, rate, q=strength, **same)

    def afl(strength: Any, groups: Any = None) -> fl.FederatedAlgorithm:
        return fl.afl(loss, sgd, mixture_rate=strength, groups=groups, **same)

    def term(strength: Any) -> fl.FederatedAlgorithm:
        return fl.term(loss, sgd, tilt=strength, **uniform)

    def fedmgda(strength: Any, times: int = 1) -> fl.FederatedAlgorithm:
        falling = optax.sgd(optax.cosine_decay_schedule(1.0, times * rounds))
        return fl.fedmgda(loss, sgd, deviation=strength, server_optimizer=falling, **uniform)

    return {
        PLAIN: Method(plain, (0.0,)),
        LONG: Method(plain, (0.0,), 4),
        "q-FedAvg": Method(q_fedavg, (0.5, 1.0, 2.0)),
        "q-FedAvg, long": Method(q_fedavg, (0.5, 2.0), 4),
        "AFL": Method(afl, (0.001, 0.01)),
        "AFL by kind": Method(functools.partial(afl, groups=groups), (0.05, 0.5)),
        "AFL, long": Method(afl, (0.001,), 4),
        "TERM": Method(term, (1.0, 5.0)),
        "TERM, long": Method(term, (5.0,), 4),
        "FedMGDA+": Method(fedmgda, (0.0, 0.01, 1.0)),
        "FedMGDA+, long": Method(functools.partial(fedmgda, times=4), (0.0, 1.0), 4),
    }


def means(rows: list[dict[str, float]]) -> dict[str, float]:
    """Of one deal: figures over its clients, averaged over seeds."""
    names = {figure: f"test_accuracy_{figure}" for figure in FIGURES}
    names |= {"employees": "test_accuracy_group_0", "students": "test_accuracy_group_1"}
    names |= {"train_loss": "train_loss"}
    found = {name: float(np.mean([row[key] for row in rows])) for name, key in names.items()}
    return found | {"gap": found["employees"] - found["students"]}


def over_deals(each: list[dict[str, float]]) -> dict[str, list[float]]:
    """Every figure, deal by deal."""
    return {name: [one[name] for one in each] for name in each[0]}


def judged(name: str, found: dict[str, list[dict[str, float]]]) -> dict[str, Any]:
    """Figures of a method, and what they say beside those of its control."""
    control = CONTROLS.get(family(name), PLAIN)
    if control == name:  # itself without a leaning
        control = LONG if "long" in name and name != LONG else PLAIN
    figures = over_deals(found[name])
    return {
        "method": name, "figures": figures, "control": control,
        "against": against(found[name], found[control]),
    }  # fmt: skip


def against(each: list[dict[str, float]], plain: list[dict[str, float]]) -> dict[str, Any]:
    """Differences to a control in the same deals: mean, standard error, where they surely go.

    Example:
      >>> mine, theirs = [{"worst": 0.8}, {"worst": 0.9}], [{"worst": 0.7}, {"worst": 0.7}]
      >>> against(mine, theirs)["worst"]["goes"]
      'up'
    """
    mine, theirs = over_deals(each), over_deals(plain)
    found = {}
    for name in mine:
        apart = gain(mine[name], theirs[name])
        falls = gain(theirs[name], mine[name]).sure
        goes = "up" if apart.sure else "down" if falls else "nowhere surely"
        found[name] = {"mean": apart.mean, "error": apart.error, "goes": goes}
    return found


def tell(results: dict[str, Any]) -> None:
    """The table, and a line of verdict a method."""
    shown = ("mean", "worst", "variance", "gini", "jain", "employees", "students", "gap")
    print(f"{'':18s}" + "".join(f"{name:>10s}" for name in shown))
    for row in results["rows"]:
        cells = [float(np.mean(row["figures"][name])) for name in shown]
        print(f"{row['method']:18s}" + "".join(f"{cell:10.4f}" for cell in cells))
    print("\nAgainst its control, in points, variance in squared points, +- a standard error:")
    for row in results["rows"][1:]:
        print(f"{row['method']:18s} {verdict(row)}")


def verdict(row: dict[str, Any]) -> str:
    """In words what the figures of a method say."""
    found, said = row["against"], []
    for name in ("worst", "variance", "gap", "mean"):
        one, points = found[name], 1e4 if name == "variance" else 100
        said.append(
            f"{name} {one['goes']} ({points * one['mean']:+.1f} +- {points * one['error']:.1f})"
        )
    fairer = found["worst"]["goes"] == "up" or found["variance"]["goes"] == "down"
    word = "fairer" if fairer else "not surely fairer"
    return f"{word} than {row['control']}: {', '.join(said)}"


def plot(results: dict[str, Any], path: Path) -> None:
    """Worst tenth against mean, and accuracy of both kinds of writers."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(13, 4.6), layout="constrained")
    left, right = figure.subplots(1, 2, width_ratios=(1, 1.5))
    names = [row["method"] for row in results["rows"]]
    marks = "osPXD^v<d*>hp"
    families = list(dict.fromkeys(family(name) for name in names))
    for number, row in enumerate(results["rows"]):
        kind = families.index(family(row["method"]))
        found = {name: 100 * np.array(row["figures"][name]) for name in ("mean", "worst")}
        error = {name: each.std(ddof=1) / np.sqrt(len(each)) for name, each in found.items()}
        left.errorbar(
            found["mean"].mean(), found["worst"].mean(), error["worst"], error["mean"],
            fmt=marks[kind % len(marks)], color=f"C{kind}", markersize=6, elinewidth=0.7,
            label=row["method"],
            alpha=1.0 if number == 0 or family(names[number - 1]) != families[kind] else 0.55,
        )  # fmt: skip
    left.set(
        xlabel="mean accuracy of clients, %", ylabel="mean of the worst tenth, %; errors over deals"
    )
    place = np.arange(len(names))
    for shift, kind, colour in ((-0.2, "employees", "#0072b2"), (0.2, "students", "#d55e00")):
        values = [100 * np.array(row["figures"][kind]) for row in results["rows"]]
        bars = right.bar(place + shift, [v.mean() for v in values], 0.4, label=kind, color=colour)
        right.bar_label(bars, fmt="%.1f", fontsize=7, rotation=90, label_type="center", color="w")
    lowest = min(np.mean(row["figures"]["students"]) for row in results["rows"])
    right.set_ylim(max(0.0, 100 * lowest - 8), None)
    right.margins(y=0.15)
    right.set_xticks(place, names, rotation=40, ha="right", fontsize=8)
    right.set_ylabel("accuracy, %; the axis does not begin at 0")
    right.legend(fontsize=8, frameon=False, ncols=2, loc="upper left")
    for axes in (left, right):
        axes.spines[["top", "right"]].set_visible(False)
    figure.legend(
        *left.get_legend_handles_labels(), loc="outside right upper", fontsize=8, frameon=False
    )
    temporary = path.with_suffix(".tmp.png")
    figure.savefig(temporary, dpi=120)
    temporary.replace(path)


def family(name: str) -> str:
    """The method without its strength."""
    return name.rstrip("0123456789.").strip()


if __name__ == "__main__":
    script(main, Flags, __doc__)
