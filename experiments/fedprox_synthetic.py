"""FedProx on synthetic(1, 1) with stragglers: Figure 1 of Li et al. 2020, on a pinned draw.

    python experiments/fedprox_synthetic.py
    python experiments/fedprox_synthetic.py --num-rounds 50 --mu 0.1 --num-seeds 1

30 clients, 10 a round, 20 epochs, batches of 10, rate 0.01, softmax regression from zero, weights
by examples. Of each cohort exactly the given share are stragglers: FedAvg drops them, FedProx
takes the 1 to 19 epochs that they do. All methods see the same cohorts and the same stragglers.

Seed 0 has the cohorts of the authors' code, which seeds numpy with the round's number, and is what
the reference is compared with; the other seeds draw cohorts of their own. That matters where
FedAvg is left with one client of ten: its last model is that client's, so its loss is mostly a
matter of who came last. Prints the last rounds' means of seed 0 beside the reference and
the mean over all seeds, and writes results.json and curves.png.

Cohorts, penalties and seed are arguments of one compiled program a method. Runs share nothing,
so they go side by side in threads, one a core; a run is bound by the latency of its small steps,
which FedProx's two penalties therefore take together.
"""

from __future__ import annotations

import dataclasses
import itertools
import os
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from shared.script import script
from shared.smoke import shrunk
from tables.published import figures

import fedjax_lite as fl
from fedjax_lite.run.files import save_json_atomic
from fedjax_lite.run.settings import versions


class Reference(NamedTuple):
    """An independent numpy run on the same draw: mean and deviation over the last 20 rounds."""

    train_loss: float
    train_loss_std: float
    test_accuracy: float


REFERENCE = {
    (method, float(share)): Reference(**found)
    for method, by_share in figures("fedprox").items()
    for share, found in by_share.items()
}
"""At the default settings."""
METHODS = ("fedavg", "fedprox 0", "fedprox mu")
TOLERANCE, RATIO = 0.01, 1.6
"""Bars: FedProx's loss within this of its reference, FedAvg's at least this many times as much."""


@dataclasses.dataclass(frozen=True)
class ComparisonFlags:
    """How many clients are stragglers."""

    stragglers: tuple[float, ...] = (0.0, 0.5, 0.9)
    """Shares of a cohort that do less than all epochs."""


@dataclasses.dataclass(frozen=True)
class TrainingFlags:
    """Models, local training and rounds."""

    mu: float = 1.0
    """FedProx's penalty on the distance from the server's model."""
    num_rounds: int = 200
    """Rounds of each run."""
    cohort_size: int = 10
    """Clients that are asked in a round."""
    epochs: int = 20
    """Local epochs of a client that is no straggler."""


@dataclasses.dataclass(frozen=True)
class RunFlags:
    """Preset, seeds and length of the run, and where results go."""

    last: int = 20
    """Rounds at the end over which figures are averaged."""
    num_seeds: int = 5
    """Number of seeds, 0, 1 and so on, of cohorts, stragglers and batches; the data are pinned."""
    num_threads: int = os.cpu_count() or 1
    """Runs that go side by side, in threads."""
    output_dir: Path = Path("outputs/fedprox_synthetic")
    """Where results.json and curves.png go."""
    overwrite: bool = False
    """Replace the results of an earlier run."""
    smoke: bool = False
    """A try in seconds: a few rounds, one seed."""


@dataclasses.dataclass(frozen=True)
class Flags(ComparisonFlags, TrainingFlags, RunFlags):
    """Stragglers, penalty and size of the runs."""


SIZES = ("mu", "num_rounds", "cohort_size", "epochs", "last")


class Problem(NamedTuple):
    """What all runs share."""

    model: fl.models.Model
    data: fl.data.FederatedDataset
    test: dict[str, jax.Array]


def load() -> Problem:
    """The pinned draw and softmax regression."""
    train, test = fl.data.load("synthetic", alpha=1.0, beta=1.0)
    data = fl.data.from_arrays({k: train[k] for k in ("x", "y")}, train["client"])
    held_out = {k: jnp.asarray(test[k]) for k in ("x", "y")}
    return Problem(fl.models.linear(10, input_shape=(60,)), data, held_out)


class Rounds(NamedTuple):
    """Who takes part in each round and does how much, leaves `[R, C]`."""

    ids: np.ndarray
    epochs: np.ndarray
    slow: np.ndarray


def draw(seed: int, share: float, num_clients: int, flags: Flags) -> Rounds:
    """Cohorts and stragglers, in the order of the authors' code.

    It seeds numpy with the round's number before it chooses the cohort, and again before it
    chooses those of the cohort that are no stragglers. Seed 0 does the same; how many epochs a
    straggler does comes after them (there, other draws lie between).
    """
    drawn = []
    for round_number in range(flags.num_rounds):
        entropy: Any = [seed, round_number] if seed else round_number
        ids = np.random.RandomState(entropy).choice(num_clients, flags.cohort_size, replace=False)
        rng = np.random.RandomState(entropy)
        fast = rng.choice(ids, kept(share, flags.cohort_size), replace=False)
        slow = ~np.isin(ids, fast)
        some = rng.randint(1, max(flags.epochs, 2), len(ids))
        drawn.append(Rounds(ids, np.where(slow, some, flags.epochs), slow))
    return Rounds(*map(np.stack, zip(*drawn, strict=True)))


def compiled(method: str, problem: Problem, flags: Flags) -> Callable[..., Any]:
    """``(seed, mus, rounds) -> (training losses, test accuracies)``, one program.

    Curves `[P, R]` are of the global model after each round, for each of the `P` penalties; the
    loss is the mean over all training examples, without the penalty.
    """
    model, sampler = problem.model, fl.uniform(flags.cohort_size)

    def build(plan: fl.Plan, mu: Any) -> fl.FederatedAlgorithm:
        optimizer = optax.sgd(0.01)
        if method == "fedavg":
            return fl.fedavg(model.loss, optimizer, plan=plan, sampler=sampler)
        return fl.fedprox(model.loss, optimizer, mu=mu, plan=plan, sampler=sampler)

    def curves(seed: Any, mu: Any, rounds: Rounds, data: Any, test: Any) -> tuple[Any, Any]:
        key = jax.random.key(seed)
        state = build(fl.Plan(batch_size=10), mu).init(key, model.init(key), data)

        def one(state: fl.RoundState, now: Rounds) -> tuple[fl.RoundState, tuple[Any, Any]]:
            mask = ~now.slow if method == "fedavg" else jnp.ones_like(now.slow)
            epochs = jnp.zeros(data.num_clients, jnp.int32).at[now.ids].set(now.epochs)
            plan = fl.Plan(batch_size=10, epochs=lambda key, client: epochs[client])
            cohort = fl.Cohort(now.ids, mask)
            state, _ = build(plan, mu).round(key, state, data, cohort)
            params = state.server.params
            right = model.predict(params, test).argmax(-1) == test["y"]
            return state, (model.loss(params, data.examples, None).mean(), right.mean())

        return jax.lax.scan(one, state, rounds)[1]

    run = jax.jit(jax.vmap(curves, in_axes=(None, 0, None, None, None)))

    def arguments(seed: int, mus: Sequence[float], rounds: Rounds) -> tuple[Any, ...]:
        ids, epochs = (jnp.asarray(leaf, jnp.int32) for leaf in rounds[:2])
        rounds_ = Rounds(ids, epochs, jnp.asarray(rounds.slow))  # pyright: ignore[reportArgumentType]
        return jnp.int32(seed), jnp.asarray(mus, jnp.float32), rounds_, problem.data, problem.test

    # Ahead of time: threads that meet an uncompiled function each compile it.
    example = draw(0, 0.0, problem.data.num_clients, flags)
    program = run.lower(*arguments(0, penalties(method, flags), example)).compile()

    def call(seed: int, mus: Sequence[float], rounds: Rounds) -> tuple[np.ndarray, np.ndarray]:
        loss, accuracy = program(*arguments(seed, mus, rounds))
        return np.asarray(loss), np.asarray(accuracy)

    return call


def penalties(program: str, flags: Flags) -> tuple[float, ...]:
    """Values of mu that a program trains with, in the order of `METHODS`."""
    return (0.0,) if program == "fedavg" else (0.0, flags.mu)


def main(flags: Flags) -> list[dict[str, Any]]:
    """Runs every method at every share of stragglers and prints the table."""
    flags = shrunk(flags, num_rounds=3, epochs=2, last=2, num_seeds=1) if flags.smoke else flags
    check(flags)
    began = time.perf_counter()
    problem = load()
    programs = {name: compiled(name, problem, flags) for name in ("fedavg", "fedprox")}
    settings = list(itertools.product(flags.stragglers, programs))
    jobs = [(share, name, seed) for share, name in settings for seed in range(flags.num_seeds)]

    def train(job: tuple[float, str, int]) -> tuple[np.ndarray, np.ndarray]:
        share, name, seed = job
        rounds = draw(seed, share, problem.data.num_clients, flags)
        return programs[name](seed, penalties(name, flags), rounds)

    rows: list[dict[str, Any]] = []
    print(HEADER)
    with ThreadPoolExecutor(max(1, flags.num_threads)) as pool:
        results = pool.map(train, jobs)
        for share, program in settings:
            curves = [next(results) for _ in range(flags.num_seeds)]
            loss, accuracy = (np.stack(kind) for kind in zip(*curves, strict=True))
            methods = [name for name in METHODS if name.split()[0] == program]
            for i, name in enumerate(methods):
                rows.append(summary(name, share, loss[:, i], accuracy[:, i], flags))
                print(line(rows[-1]), flush=True)
    bars = verdicts(rows)
    for text in bars:
        print(text)
    flags.output_dir.mkdir(parents=True, exist_ok=True)
    record = {
        "versions": versions(),
        "settings": {k: v for k, v in dataclasses.asdict(flags).items() if k not in NOT_SETTINGS},
        "seconds": round(time.perf_counter() - began, 1),
        "bars": bars,
        "rows": rows,
    }
    save_json_atomic(flags.output_dir / "results.json", record)
    plot(rows, flags.output_dir / "curves.png")
    return rows


HEADER = (
    f"{'method':12s}{'stragglers':>11s}{'train loss, seed 0':>20s}{'test acc.':>11s}"
    f"{'reference':>18s}{'test acc.':>11s}{'all seeds: loss':>18s}{'test acc.':>11s}"
)
NOT_SETTINGS = ("output_dir", "overwrite", "num_threads", "smoke")


def check(flags: Flags) -> None:
    """Raises before anything runs where flags do not fit or results would be lost."""
    for name in ("num_rounds", "cohort_size", "epochs", "last", "num_seeds", "num_threads"):
        if getattr(flags, name) < 1:
            raise ValueError(f"--{name.replace('_', '-')} must be at least 1, got {flags}")
    if not flags.stragglers or not all(0 <= share <= 1 for share in flags.stragglers):
        raise ValueError(f"--stragglers must be shares in [0, 1], got {flags.stragglers}")
    path = flags.output_dir / "results.json"
    if path.exists() and not flags.overwrite:
        raise FileExistsError(
            f"{path} holds the results of an earlier run; --overwrite replaces them, or give "
            "another --output-dir"
        )


def kept(share: float, cohort_size: int) -> int:
    """Clients of a cohort that do all epochs, as the authors round; FedAvg needs one of them."""
    return max(1, round(cohort_size * (1 - share)))


def summary(
    name: str, share: float, loss: np.ndarray, accuracy: np.ndarray, flags: Flags
) -> dict[str, Any]:
    """A row of the table from curves `[seeds, rounds]`."""
    default = {f.name: f.default for f in dataclasses.fields(Flags)}
    known = all(getattr(flags, size) == default[size] for size in SIZES)
    reference = REFERENCE.get((name, share)) if known else None
    losses, accuracies = loss[:, -flags.last :], accuracy[:, -flags.last :].mean(axis=1)
    ends = losses.mean(axis=1)
    return {
        "method": name,
        "mu": flags.mu if name == "fedprox mu" else 0.0,
        "stragglers": share,
        "train_loss": float(ends[0]),
        "train_loss_std_over_rounds": float(losses[0].std()),
        "test_accuracy": float(accuracies[0]),
        "reference": reference and reference._asdict(),
        "train_loss_mean_of_seeds": float(ends.mean()),
        "train_loss_std_of_seeds": float(ends.std()),
        "test_accuracy_mean_of_seeds": float(accuracies.mean()),
        "train_loss_by_seed": [round(float(x), 5) for x in ends],
        "test_accuracy_by_seed": [round(float(x), 5) for x in accuracies],
        "train_loss_curve": [round(float(x), 5) for x in loss[0]],
    }


def line(row: dict[str, Any]) -> str:
    """A row of the table; +- is over the last rounds as in the reference, or over seeds."""
    known = Reference(**row["reference"]) if row["reference"] else None
    reference = (
        f"{known.train_loss:9.4f} +-{known.train_loss_std:.4f}{known.test_accuracy:11.4f}"
        if known
        else f"{'-':>18s}{'-':>11s}"
    )
    return (
        f"{row['method']:12s}{row['stragglers']:11.0%}"
        f"{row['train_loss']:11.4f} +-{row['train_loss_std_over_rounds']:.4f}"
        f"{row['test_accuracy']:11.4f}{reference}"
        f"{row['train_loss_mean_of_seeds']:9.4f} +-{row['train_loss_std_of_seeds']:.4f}"
        f"{row['test_accuracy_mean_of_seeds']:11.4f}"
    )


def verdicts(rows: list[dict[str, Any]]) -> list[str]:
    """The bars, a line each with PASS or FAIL; none where the settings have no reference."""
    found = {(row["method"], row["stragglers"]): row for row in rows if row["reference"]}
    texts = []
    for share in sorted({share for _, share in found}):
        prox, average = found.get(("fedprox mu", share)), found.get(("fedavg", share))
        if not prox or not average:
            continue
        ours, known = prox["train_loss"], prox["reference"]["train_loss"]
        near, ratio = abs(ours - known) <= TOLERANCE, average["train_loss"] / ours
        texts += [
            f"{'PASS' if near else 'FAIL'}  {share:.0%} stragglers: FedProx's loss {ours:.4f} "
            f"within {TOLERANCE} of {known}",
            f"{'PASS' if ratio >= RATIO else 'FAIL'}  {share:.0%} stragglers: FedAvg's is "
            f"{ratio:.2f} times as much, at least {RATIO}",
        ]
    return texts


def plot(rows: list[dict[str, Any]], path: Path) -> None:
    """Training loss of seed 0 by round; a panel a share of stragglers."""
    from matplotlib.figure import Figure

    shares = sorted({row["stragglers"] for row in rows})
    figure = Figure(figsize=(1 + 4 * len(shares), 4.5), layout="constrained")
    panels = figure.subplots(1, len(shares), sharey=True, squeeze=False)[0]
    styles = {
        "fedavg": ("#D55E00", "-"),
        "fedprox 0": ("#009E73", "--"),
        "fedprox mu": ("#0072B2", "-"),
    }
    for axes, share in zip(panels, shares, strict=True):
        for row in rows:
            if row["stragglers"] == share:
                colour, dash = styles[row["method"]]
                label = row["method"].replace("mu", f"mu={row['mu']:g}").replace(" 0", " mu=0")
                loss = row["train_loss_curve"]
                axes.plot(range(1, len(loss) + 1), loss, dash, color=colour, label=label)
        axes.set(xlabel="round", yscale="log", title=f"{share:.0%} stragglers")
        axes.legend(fontsize=8)
    panels[0].set_ylabel("training loss")
    temporary = path.with_suffix(".tmp.png")
    figure.savefig(temporary, dpi=120)
    temporary.replace(path)


if __name__ == "__main__":
    script(main, Flags, __doc__)
