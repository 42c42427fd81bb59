"""Heart disease in four hospitals: FLamby's table of federated strategies, on real patients.

    python experiments/heart_disease.py              # seconds on two cores
    python experiments/heart_disease.py --num-seeds 2 --num-rounds 5

Fed-Heart-Disease of FLamby (Ogier du Terrail et al. 2022, arXiv:2210.04620): 740 patients, 13
features standardised in each hospital, logistic regression, batches of 4, 100 local steps in each
of 15 rounds, all hospitals in every round, weights by examples. Accuracy on the held-out patients
of each hospital, its plain mean over the four, and on all held-out patients together.

Differences: seeds draw parameters and batches, the split is the benchmark's one. "pooled" trains on
rows that are standardised by hospital, "pooled together" as there on rows that are standardised
together, and meets rows that are standardised by hospital, as there (but for its accuracy on all
patients, which is not compared). One hospital's 30 training patients are all ill.
"majority" gives everyone the answer that prevails among the hospital's patients trained on: what a
method has to beat.

With an epsilon, `dp_sgd` draws each patient for a step with probability 0.05 and clips at 1.1, and
the guarantee is the same for each patient of each hospital (there, batches of 4 by hospital).

A method is one compiled program for all seeds. Prints the table beside the published one, checks
the bars, and writes results.json and curves.png.
"""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from heart_disease_together import together
from shared.script import script
from shared.smoke import shrunk
from tables.published import figures

import fedjax_lite as fl
from fedjax_lite.algorithms import client_models
from fedjax_lite.data.sources.heart import FEATURES, HOSPITALS
from fedjax_lite.run.files import save_json_atomic
from fedjax_lite.run.settings import versions

BATCH_SIZE, EPOCHS = 4, 50
"""Of all methods; of those that train on whole data sets instead of rounds."""


@dataclasses.dataclass(frozen=True)
class DataFlags:
    """The data and how they are dealt to clients."""

    data_dir: Path | None = None
    """Folder with heart_disease/processed.*.data (else FEDJAX_LITE_DATA, the cache)."""


@dataclasses.dataclass(frozen=True)
class TrainingFlags:
    """Methods, local training and rounds."""

    methods: tuple[str, ...] = ()
    """Methods to run, by the names of the table, such as "fedavg 0.01"; none given: all."""
    num_rounds: int = 15
    """Rounds of each federated run."""
    steps: int = 100
    """Local steps of a hospital in a round."""


@dataclasses.dataclass(frozen=True)
class RunFlags:
    """Preset, seeds and length of the run, and where results go."""

    num_seeds: int = 10
    """Number of seeds, 0, 1 and so on, of parameters and batches."""
    output_dir: Path = Path("outputs/heart_disease")
    """Where results.json and curves.png go."""
    overwrite: bool = False
    """Replace the results of an earlier run."""
    smoke: bool = False
    """A try in seconds: one round, one seed; it needs the data."""


@dataclasses.dataclass(frozen=True)
class Flags(DataFlags, TrainingFlags, RunFlags):
    """Methods, length of the runs and where results go."""


class Published(NamedTuple):
    """Means over seeds 42 to 46 and, as `own`, an independent numpy rerun over ten seeds."""

    hospitals: list[float] | None
    mean: float | None
    own: float | None = None


PUBLISHED = {
    method: Published(found.get("hospitals"), found.get("mean"), found.get("own"))
    for method, found in figures("heart").items()
}
TUNED = "fedavg 0.01, tuned"
PRIVATE = {"fedavg 0.01, epsilon 1": (1.0, 1e-3), "fedavg 0.01, epsilon 0.1": (0.1, 1e-4)}
"""Epsilon and delta of each patient, after all rounds, also towards the server."""
CLIP, SAMPLING_RATE = 1.1, 0.05
"""Of `dp_sgd`: the longest gradient of a patient, and who is drawn for a step."""
METHODS = (
    *("pooled", "pooled together", "local", "fedavg 0.001", "fedavg 0.01", "fedprox 0.001"),
    *("scaffold 0.001", "scaffold 0.01", "fedadam", "fedadagrad", "fedyogi", TUNED),
    *PRIVATE,
)
"""Rows of the table; the number is the local rate, tuned: 100 more local steps by each hospital."""
BAR, GAP = 0.71, 0.03
"""FedAvg at 0.01 and FedAdagrad reach this mean; pooled is at most this far below them."""


def model() -> fl.models.Model:
    """Logistic regression, started as PyTorch starts a linear layer; logits `[B]`."""
    width = 1 / len(FEATURES) ** 0.5

    def init(key: jax.Array) -> dict[str, jax.Array]:
        w, b = jax.random.split(key)
        return {
            "w": jax.random.uniform(w, (len(FEATURES),), minval=-width, maxval=width),
            "b": jax.random.uniform(b, (), minval=-width, maxval=width),
        }

    return fl.models.from_functions(
        init,
        lambda params, x, key: x @ params["w"] + params["b"],
        loss=lambda logits, y: optax.sigmoid_binary_cross_entropy(logits, y.astype(logits.dtype)),
    )


def federated(loss: Any, steps: int) -> dict[str, fl.FederatedAlgorithm]:
    """FLamby's strategies with their tuned rates."""
    slots: dict[str, Any] = {
        "plan": fl.Plan(batch_size=BATCH_SIZE, steps=steps),
        "sampler": fl.everyone(),
    }
    slow, fast, adaptive = optax.sgd(0.001), optax.sgd(0.01), optax.sgd(10**-2.5)
    moments: dict[str, Any] = {"tau": 1e-8, **slots}
    return {
        "fedavg 0.001": fl.fedavg(loss, slow, **slots),
        "fedavg 0.01": fl.fedavg(loss, fast, **slots),
        "fedprox 0.001": fl.fedprox(loss, slow, mu=0.01, **slots),
        "scaffold 0.001": fl.scaffold(loss, 0.001, weighting="examples", **slots),
        "scaffold 0.01": fl.scaffold(loss, 0.01, weighting="examples", **slots),
        "fedadam": fl.fedadam(loss, fast, server_learning_rate=0.01, b2=0.999, **moments),
        "fedadagrad": fl.fedadagrad(
            loss, adaptive, server_learning_rate=10**-0.5, b1=0.9, **moments
        ),
        "fedyogi": fl.fedyogi(loss, adaptive, server_learning_rate=0.01, b2=0.999, **moments),
    }


def private(loss: Any, name: str, flags: Flags) -> fl.FederatedAlgorithm:
    """FedAvg whose patients are hidden: noise in every step, by Poisson batches."""
    epsilon, delta = PRIVATE[name]
    z = fl.privacy.noise_multiplier(
        epsilon=epsilon,
        delta=delta,
        sampling_rate=SAMPLING_RATE,
        num_rounds=flags.steps * flags.num_rounds,
    )
    client = fl.privacy.dp_sgd(
        loss, 0.01, clip=CLIP, noise_multiplier=z, sampling_rate=SAMPLING_RATE
    )
    plan = fl.Plan(batch_size=None, steps=flags.steps)
    server = fl.optimizer_server(optax.sgd(1.0))
    return fl.federated_algorithm(client, plan=plan, sampler=fl.everyone(), server=server)


class Problem(NamedTuple):
    """The patients: clients to train on, and held-out rows with their hospital."""

    data: fl.data.FederatedDataset
    test: dict[str, jax.Array]


def load(data_dir: Path | None) -> Problem:
    """Four clients."""
    train, test = fl.data.load("heart_disease", data_dir=data_dir)
    arrays = {name: train[name] for name in ("x", "y")}
    return Problem(
        fl.data.from_arrays(arrays, train["hospital"]),
        {name: jnp.asarray(leaf) for name, leaf in test.items()},
    )


def accuracies(right: jax.Array, hospital: jax.Array) -> jax.Array:
    """Shares of right answers `[5]`: in each hospital, then of all patients."""
    of = jnp.arange(len(HOSPITALS))[:, None] == hospital
    return jnp.append((right * of).sum(1) / of.sum(1), right.mean())


def program(
    name: str, net: fl.models.Model, problem: Problem, flags: Flags
) -> Callable[[jax.Array], jax.Array]:
    """``seeds [S] -> accuracies [S, R, 5]`` of a method after each of its rounds."""

    def right(params: Any, test: Any) -> jax.Array:
        return (net.predict(params, test) > 0) == test["y"]

    def rounds(algo: fl.FederatedAlgorithm, num_rounds: int) -> Callable[..., Any]:
        def run(seed: jax.Array, data: Any, test: Any) -> tuple[jax.Array, Any]:
            key = jax.random.key(seed)
            state = algo.init(key, net.init(key), data)

            def one(state: Any, _: Any) -> tuple[Any, jax.Array]:
                state, _ = algo.round(key, state, data)
                return state, accuracies(right(state.server.params, test), test["hospital"])

            state, curve = jax.lax.scan(one, state, None, length=num_rounds)
            return curve, state.server.params

        return run

    def alone(optimizer: Any, plan: fl.Plan, start: Callable[..., Any]) -> Callable[..., Any]:
        """Every hospital for itself from one start; its model meets its own patients."""
        algo = fl.local_only(net.loss, optimizer, plan=plan, sampler=fl.everyone())

        def run(seed: jax.Array, data: Any, test: Any) -> tuple[jax.Array, None]:
            key = jax.random.key(seed)
            state = algo.init(key, start(seed, data, test), data)
            state, _ = algo.round(jax.random.fold_in(key, 1), state, data)
            answers = jax.vmap(right, (0, None))(client_models(state), test)
            mine = answers[test["hospital"], jnp.arange(len(test["y"]))]
            return accuracies(mine, test["hospital"])[None], None

        return run

    epochs = fl.Plan(batch_size=BATCH_SIZE, epochs=EPOCHS)
    algos = federated(net.loss, flags.steps)
    if name.startswith("pooled"):
        run = rounds(fl.centralised(net.loss, optax.adam(0.001), plan=epochs), 1)
    elif name == "local":
        run = alone(optax.adam(0.001), epochs, lambda seed, *_: net.init(jax.random.key(seed)))
    elif name == TUNED:
        average = rounds(algos["fedavg 0.01"], flags.num_rounds)
        some = fl.Plan(batch_size=BATCH_SIZE, steps=flags.steps)
        run = alone(optax.sgd(0.01), some, lambda *given: average(*given)[1])
    else:
        algo = private(net.loss, name, flags) if name in PRIVATE else algos[name]
        run = rounds(algo, flags.num_rounds)
    compiled = jax.jit(jax.vmap(lambda *given: run(*given)[0], (0, None, None)))
    data = together(flags.data_dir) if name == "pooled together" else problem.data
    return lambda seeds: compiled(seeds, data, problem.test)


def majority(problem: Problem) -> list[float]:
    """Accuracies of the answer that prevails in each hospital's training rows."""
    y, offsets = np.asarray(problem.data.examples["y"]), np.asarray(problem.data.offsets)
    share = np.add.reduceat(y, offsets[:-1]) / np.diff(offsets)
    hospital = np.asarray(problem.test["hospital"])
    answers = (share[hospital] > 0.5) == np.asarray(problem.test["y"])
    return np.asarray(accuracies(jnp.asarray(answers), problem.test["hospital"])).tolist()


def main(flags: Flags) -> list[dict[str, Any]]:
    """Runs every method over all seeds and prints the table."""
    flags = shrunk(flags, num_rounds=1, steps=2, num_seeds=1) if flags.smoke else flags
    check(flags)
    began = time.perf_counter()
    problem, seeds = load(flags.data_dir), jnp.arange(flags.num_seeds)
    print(HEADER)
    flat = np.array(majority(problem))[None, None].repeat(flags.num_seeds, 0)
    rows = [summary("majority", flat, flags)]
    print(line(rows[-1]))
    for name in flags.methods or METHODS:
        values = program(name, model(), problem, flags)(seeds)
        rows.append(summary(name, np.asarray(values), flags))
        print(line(rows[-1]), flush=True)
    bars = verdicts(rows, flags)
    for text in bars:
        print(text)
    flags.output_dir.mkdir(parents=True, exist_ok=True)
    settings = {name: getattr(flags, name) for name in ("num_rounds", "steps", "num_seeds")}
    record = {
        "versions": versions(),
        "settings": settings,
        "seconds": round(time.perf_counter() - began, 1),
        "bars": bars,
        "rows": rows,
    }
    save_json_atomic(flags.output_dir / "results.json", record)
    plot(rows, flags.output_dir / "curves.png")
    return rows


def check(flags: Flags) -> None:
    """Raises before anything runs where flags do not fit or results would be lost."""
    for name in ("num_rounds", "steps", "num_seeds"):
        if getattr(flags, name) < 1:
            flag = f"--{name.replace('_', '-')}"
            raise ValueError(f"{flag} must be at least 1, got {getattr(flags, name)}")
    for name in flags.methods:
        if name not in METHODS:
            raise ValueError(f"--methods must be among {METHODS}, got {name!r}")
    path = flags.output_dir / "results.json"
    if path.exists() and not flags.overwrite:
        raise FileExistsError(
            f"{path} holds the results of an earlier run; --overwrite replaces them, or give "
            "another --output-dir"
        )


def summary(name: str, values: np.ndarray, flags: Flags) -> dict[str, Any]:
    """A row of the table from accuracies `[S, R, 5]`; standard deviations are over seeds."""
    means = values[:, -1, :4].mean(axis=1)
    default = (flags.num_rounds, flags.steps) == (Flags.num_rounds, Flags.steps)
    known = PUBLISHED.get(name) if default else None
    return {
        "method": name,
        "test_by_hospital": values[:, -1, :4].mean(axis=0).tolist(),
        "mean": float(means.mean()),
        "mean_std": float(means.std(ddof=1)) if len(means) > 1 else None,
        "mean_by_seed": [round(float(value), 5) for value in means],
        "pooled_test": float(values[:, -1, 4].mean()),
        "published": known and known._asdict(),
        "curve": values[..., :4].mean(axis=(0, 2)).round(5).tolist(),
    }


HEADER = f"{'held-out accuracy':26s}" + "".join(
    f"{name:>13s}"
    for name in (
        *(name.capitalize() for name in HOSPITALS[:3]),
        *("VA", "mean of four", "published", "numpy rerun", "all patients"),
    )
)


def line(row: dict[str, Any]) -> str:
    """A row of the table; a dash where nothing is published."""
    known = row["published"] or {}
    columns = [*row["test_by_hospital"], row["mean"], known.get("mean"), known.get("own")]
    cells = ["-" if v is None else f"{v:.3f}" for v in (*columns, row["pooled_test"])]
    return f"{row['method']:26s}" + "".join(f"{cell:>13s}" for cell in cells)


def verdicts(rows: list[dict[str, Any]], flags: Flags) -> list[str]:
    """The bars, a line each with PASS or FAIL; none where settings or methods differ."""
    if (flags.num_rounds, flags.steps) != (Flags.num_rounds, Flags.steps):
        return []
    mean = {row["method"]: row["mean"] for row in rows}
    if not {"pooled", "fedavg 0.01", "fedadagrad"} <= set(mean):
        return []
    texts = []
    for name in ("fedavg 0.01", "fedadagrad"):
        says = "PASS" if mean[name] >= BAR else "FAIL"
        texts.append(f"{says}  {name}: mean of four hospitals {mean[name]:.3f}, at least {BAR}")
    best = max(mean["fedavg 0.01"], mean["fedadagrad"])
    says = "PASS" if mean["pooled"] >= best - GAP else "FAIL"
    texts.append(
        f"{says}  pooled: {mean['pooled']:.3f}, at most {GAP} below the federated {best:.3f}"
    )
    return texts


STYLES = {
    "fedavg 0.001": ("#D55E00", ":", ""),
    "fedavg 0.01": ("#D55E00", "-", "o"),
    "scaffold 0.01": ("#009E73", "--", "s"),
    "fedadam": ("#CC79A7", "-.", "^"),
    "fedadagrad": ("#0072B2", "-", "v"),
}


def plot(rows: list[dict[str, Any]], path: Path) -> None:
    """Mean accuracy of the four hospitals by round, baselines as level lines."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(7.5, 4.5), layout="constrained")
    axes = figure.subplots()
    for row in rows:
        if row["method"] in STYLES:
            colour, dash, marker = STYLES[row["method"]]
            rounds = range(1, len(row["curve"]) + 1)
            axes.plot(
                rounds, row["curve"], dash, marker=marker, markersize=4, color=colour,
                label=row["method"],
            )  # fmt: skip
        elif row["method"] in ("pooled", "local", "majority"):
            dash = {"pooled": "-", "local": "--", "majority": ":"}[row["method"]]
            axes.axhline(
                row["mean"], color="#555555", linestyle=dash, linewidth=1, label=row["method"]
            )
    axes.set(xlabel="round", ylabel="held-out accuracy, mean of four hospitals")
    axes.legend(fontsize=8, frameon=False, ncols=2)
    temporary = path.with_suffix(".tmp.png")
    figure.savefig(temporary, dpi=120)
    temporary.replace(path)


if __name__ == "__main__":
    script(main, Flags, __doc__)
