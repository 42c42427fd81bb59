"""Audited against accounted epsilon of DP-FedAvg on MNIST by writer, and planted bugs caught.

    python experiments/privacy_audit.py            # minutes on two cores
    python experiments/privacy_audit.py --smoke    # seconds, scikit-learn's digits

Canary clients join the writers (one-run audit, Steinke, Nasr, Jagielski 2023, arXiv:2305.08846):
each sends, by a fair coin, its own direction or nothing; the observer of the last model guesses the
coins. Shown by noise multiplier: the accounted epsilon, the bound that holds for any mechanism
("one run"), where everyone takes part in every round the bound for Gaussian scores, and the point
estimate of Andrew et al. (2023, arXiv:2302.03098). A correct method has audited <= accounted. Then
defects are planted into the same mechanism, with its accountant left as it is: each must be caught.
Bounds hold with 95 % each, so that one correct point in twenty may fail; all points share one seed,
so that they err alike, and differ in what is set only. Writes results.json and epsilon.png.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from shared.flags import with_labels
from shared.script import script

import fedjax_lite as fl
from fedjax_lite.aggregation.mean import mean
from fedjax_lite.privacy import audit, central_gaussian, gaussian_sum
from fedjax_lite.privacy.clipping import clip_clients
from fedjax_lite.run.files import save_json_atomic
from fedjax_lite.run.settings import versions
from fedjax_lite.types import Aggregator, Array, Mechanism, Message, PyTree


@dataclasses.dataclass(frozen=True)
class ComparisonFlags:
    """The noise that is audited, and how."""

    noise_multipliers: tuple[float, ...] = (1.0, 2.0, 4.0, 8.0, 16.0)
    """Standard deviations of the noise over the clip, a point each."""
    sampling_rates: tuple[float, ...] = (1.0, 0.2)
    """Probability that a client takes part in a round."""
    num_canaries: int = 600
    """Canary clients; the strongest provable epsilon grows with their logarithm."""
    delta: float = 1e-5
    """Probability that the privacy bound may fail."""
    bug_noise: float = 6.0
    """Noise multiplier of the runs with planted bugs."""


@dataclasses.dataclass(frozen=True)
class DataFlags:
    """The data and how they are dealt to clients."""

    num_writers: int = 100
    """Honest clients, writers of MNIST."""
    data_dir: Path | None = None
    """Folder that holds MNIST (else FEDJAX_LITE_DATA, the cache, a download)."""


@dataclasses.dataclass(frozen=True)
class TrainingFlags:
    """Models, local training and rounds."""

    num_rounds: int = 10
    """Rounds of each run."""
    clip: float = 0.5
    """Largest norm of a client's update."""


@dataclasses.dataclass(frozen=True)
class RunFlags:
    """Preset, seeds and length of the run, and where results go."""

    seed: int = 0
    """Seed of everything random."""
    output_dir: Path = Path("outputs/privacy_audit")
    """Where results.json and epsilon.png go."""
    overwrite: bool = False
    """Replace the results of an earlier run."""
    smoke: bool = False
    """A run of seconds: digits, one point, two bugs."""


@dataclasses.dataclass(frozen=True)
class Flags(ComparisonFlags, DataFlags, TrainingFlags, RunFlags):
    """The run that is audited."""


class Problem(NamedTuple):
    """What is trained."""

    data: fl.data.FederatedDataset
    model: fl.models.Model
    mean_size: float
    dataset: str


def load(flags: Flags) -> Problem:
    """The honest clients: MNIST's first writers, or digits at random."""
    if flags.smoke:
        train, _ = map(with_labels, fl.data.load("digits"))
        data = fl.data.partition(train, fl.data.iid(num_clients=10, seed=0))
        model = fl.models.linear(10, train["x"].shape[1:])
        return Problem(data, model, len(train["y"]) / 10, "digits")
    train, _ = fl.data.load("mnist", data_dir=flags.data_dir)
    writers = np.unique(train["writer"])[: flags.num_writers]
    rows = np.isin(train["writer"], writers)
    examples = {name: train[name][rows] for name in ("x", "y")}
    data = fl.data.from_arrays(examples, train["writer"][rows])
    return Problem(data, fl.models.mlp((64,)), rows.sum() / len(writers), "mnist")


def mechanism(flags: Flags, problem: Problem, *, noise: float, rate: float) -> Mechanism:
    """DP-FedAvg of the library, on honest clients and canaries."""
    return central_gaussian(
        clip=flags.clip,
        num_clients=problem.data.num_clients + flags.num_canaries,
        sampling_rate=rate,
        noise_multiplier=noise,
        delta=flags.delta,
    )


def planted(flags: Flags, problem: Problem) -> dict[str, tuple[Mechanism, str, int]]:
    """Broken mechanisms that claim what the correct one spends: and the bound that tells.

    Returns:
      ``name -> (mechanism, bound, examples of a canary)``.
    """
    clip, noise = flags.clip, flags.bug_noise
    right = mechanism(flags, problem, noise=noise, rate=1.0)
    total = problem.data.num_clients + flags.num_canaries

    def summed(clip: float, noise: float) -> Mechanism:
        aggregator = gaussian_sum(clip=clip, noise_multiplier=noise, denominator=total)
        return right._replace(aggregator=aggregator)

    rare = mechanism(flags, problem, noise=noise, rate=0.2)
    everyone = rare._replace(
        sampler=right.sampler,
        aggregator=gaussian_sum(clip=clip, noise_multiplier=noise, denominator=total),
    )
    heavy = round(4 * problem.mean_size)
    weighted = right._replace(
        aggregator=example_weighted(right.aggregator, problem.mean_size, clip)
    )
    return {
        "none (correct)": (right, "gaussian", 1),
        "noise switched off": (summed(clip, 0.0), "one_run", 1),
        "half the noise": (summed(clip, noise / 2), "gaussian", 1),
        "no clip": (summed(1e6 * clip, noise / 1e6), "one_run", 1),
        "clip, then times examples": (weighted, "gaussian", heavy),
        "sampling accounted for, but everyone takes part": (everyone, "gaussian", 1),
    }


def example_weighted(inner: Aggregator, mean_size: float, clip: float) -> Aggregator:
    """Clips, then weighs by ``n_i / mean n``: what frameworks did (known answers, defect 4)."""
    plain = mean()

    def add(acc: PyTree, messages: Message, slots: Array, mask: Array) -> PyTree:
        rows = clip_clients(messages.value, clip)
        weights = jnp.where(mask, messages.weight / mean_size, 0.0)
        sums = plain.add(plain.init(Message(acc, jnp.zeros(())), 0), Message(rows, weights), slots,
                         mask).values  # fmt: skip
        return jax.tree.map(jnp.add, acc, sums)

    return inner._replace(add=add)


def run_audit(
    flags: Flags, problem: Problem, private: Mechanism, *, bound: Any, canary_size: int = 1
) -> audit.AuditReport:
    """One run of FedAvg with canaries."""
    key = jax.random.key(flags.seed)

    def make(uplink: fl.Transform) -> fl.FederatedAlgorithm:
        return fl.fedavg(
            problem.model.loss,
            optax.sgd(0.1),
            plan=fl.Plan(batch_size=32, steps=2),
            uplink=uplink,
            privacy=private,
        )

    return audit.audit(
        make,
        problem.model.init(key),
        data=problem.data,
        num_rounds=flags.num_rounds,
        num_canaries=flags.num_canaries,
        delta=flags.delta,
        key=key,
        bound=bound,
        canary="coordinate",
        canary_norm=30 * flags.clip,
        canary_size=canary_size,
        strict=False,
    )


def main(flags: Flags) -> dict[str, Any]:
    """Audits every point and every planted bug, prints both tables, writes both files."""
    if flags.smoke:
        flags = dataclasses.replace(
            flags, noise_multipliers=(2.0,), sampling_rates=(1.0,), num_canaries=600,
            num_rounds=3, bug_noise=2.0,
        )  # fmt: skip
    path = flags.output_dir / "results.json"
    if path.exists() and not flags.overwrite:
        raise FileExistsError(f"{path} is there already; give --overwrite or another --output-dir")
    if not flags.noise_multipliers or min(flags.noise_multipliers) <= 0:
        raise ValueError(f"--noise-multipliers must be positive, got {flags.noise_multipliers}")
    problem = load(flags)
    rows = [point(flags, problem, z, q) for q in flags.sampling_rates
            for z in flags.noise_multipliers]  # fmt: skip
    bugs = []
    broken = planted(flags, problem)
    for name in list(broken)[: 3 if flags.smoke else None]:
        private, bound, size = broken[name]
        report = run_audit(flags, problem, private, bound=bound, canary_size=size)
        bugs.append({"bug": name, "bound": bound, **figures(report), "passed": report.passed})
        print(
            f"planted: {name}: {'caught' if report.passed is False else report.verdict}", flush=True
        )
    settings = {k: v for k, v in vars(flags).items() if k not in ("output_dir", "overwrite")}
    saved = {"versions": versions(), "dataset": problem.dataset, "settings": settings}
    results = {**jsonable(saved), "rows": rows, "bugs": bugs}
    flags.output_dir.mkdir(parents=True, exist_ok=True)
    save_json_atomic(path, results)
    print_tables(rows, bugs)
    plot(rows, flags, problem, flags.output_dir / "epsilon.png")
    return results


def point(flags: Flags, problem: Problem, noise: float, rate: float) -> dict[str, Any]:
    """One noise multiplier and sampling rate, judged by every bound that holds for it."""
    private = mechanism(flags, problem, noise=noise, rate=rate)
    report = run_audit(flags, problem, private, bound="one_run")
    row = {"noise_multiplier": noise, "sampling_rate": rate, **figures(report)}
    row["one_run"] = row.pop("audited")
    row["gaussian"] = math.nan
    if rate == 1.0:
        judged = audit.judge(
            report.scores, report.present, delta=flags.delta, bound="gaussian",
            accounted_epsilon=report.accounted_epsilon, strict=False,
        )  # fmt: skip
        row["gaussian"] = judged.epsilon_lower_bound
    row["passed"] = bool(np.nanmax([row["one_run"], row["gaussian"]]) <= row["accounted"])
    print(f"noise {noise:g}, rate {rate:g}: accounted {row['accounted']:.3g}", flush=True)
    return row


def figures(report: audit.AuditReport) -> dict[str, float]:
    """The numbers of a report that go on record."""
    return {
        "accounted": report.accounted_epsilon,
        "audited": report.epsilon_lower_bound,
        "estimate": report.epsilon_estimate,
        "guesses": report.guesses,
        "correct": report.correct,
    }


def jsonable(tree: Any) -> Any:
    """Paths as text."""
    return jax.tree.map(lambda leaf: str(leaf) if isinstance(leaf, Path) else leaf, tree)


def print_tables(rows: list[dict[str, Any]], bugs: list[dict[str, Any]]) -> None:
    """Both tables."""
    from rich.console import Console
    from rich.table import Table

    def build(title: str, columns: dict[str, Callable[[dict[str, Any]], str]], data: list) -> Table:
        table = Table(*columns, title=title)
        for row in data:
            table.add_row(*(show(row) for show in columns.values()))
        return table

    def number(name: str) -> Callable[[dict[str, Any]], str]:
        return lambda row: "-" if math.isnan(row[name]) else f"{row[name]:.3g}"

    shared = {"accounted": number("accounted")}
    points = {
        "noise": number("noise_multiplier"), "rate": number("sampling_rate"), **shared,
        "one run": number("one_run"), "Gaussian": number("gaussian"),
        "estimate": number("estimate"),
        "verdict": lambda row: "pass" if row["passed"] else "FAIL",
    }  # fmt: skip
    planted_bugs = {
        "planted bug": lambda row: row["bug"], **shared, "audited": number("audited"),
        "estimate": number("estimate"), "by": lambda row: row["bound"],
        "verdict": lambda row: "pass" if row["passed"] else "caught",
    }  # fmt: skip
    console = Console(width=110)
    console.print(build("epsilon: accounted and audited, 95 %", points, rows))
    console.print(build("planted bugs, accountant unchanged", planted_bugs, bugs))


def plot(rows: list[dict[str, Any]], flags: Flags, problem: Problem, path: Path) -> None:
    """Epsilon by noise multiplier: a panel a sampling rate."""
    from matplotlib.figure import Figure

    rates = flags.sampling_rates
    figure = Figure(figsize=(5 * len(rates) + 0.5, 4.2), layout="constrained")
    panels = figure.subplots(1, len(rates), sharey=True, squeeze=False)[0]
    styles = {
        "accounted": ("#000000", "-", "o", "accounted"),
        "estimate": ("#E69F00", ":", "D", "Gaussian estimate (no bound)"),
        "gaussian": ("#D55E00", "--", "s", "audited, Gaussian scores (95 %)"),
        "one_run": ("#0072B2", "-.", "^", "audited, one run (95 %)"),
    }
    for axes, rate in zip(panels, rates, strict=True):
        chosen = [row for row in rows if row["sampling_rate"] == rate]
        x = [row["noise_multiplier"] for row in chosen]
        for name, (colour, dash, marker, label) in styles.items():
            y = np.array([row[name] for row in chosen], float)
            if np.isfinite(y).any():
                style = {"color": colour, "linestyle": dash, "marker": marker, "markersize": 4}
                axes.plot(x, y, label=label, **style)
        axes.set_xscale("log", base=2)
        axes.set_yscale("symlog", linthresh=0.1)
        axes.set_ylim(0, 3 * max(row["accounted"] for row in rows))
        axes.set(xlabel="noise multiplier (sigma / clip)", title=f"sampling rate {rate:g}")
        axes.legend(fontsize=8, loc="upper right")
    panels[0].set_ylabel(f"epsilon of one client (delta = {flags.delta:g})")
    figure.suptitle(
        f"{problem.dataset}: {problem.data.num_clients} clients and {flags.num_canaries} canaries, "
        f"{flags.num_rounds} rounds"
    )
    temporary = path.with_suffix(".tmp.png")
    figure.savefig(temporary, dpi=120)
    temporary.replace(path)


if __name__ == "__main__":
    script(main, Flags, __doc__)
