"""Learns the client learning rate and FedProx's mu by gradient descent through rounds.

    python experiments/meta_learning_rate.py
    python experiments/meta_learning_rate.py --mixing --num-corrupted 5

Digits dealt to clients by Dirichlet shares of the labels; a part of the training images stays with
the server for validation. Each meta step runs `--num-rounds` rounds of FedProx from new parameters
and cohorts, differentiates the validation loss of the result by log learning rate and log mu (with
--mixing also by each client's log weight in the mean), and takes a step of Adam. Prints validation
loss and test accuracy before and after, averaged over keys that the search has not seen, and the
best of a grid search scored the same way; writes results.json and path.png. With --num-corrupted,
the first clients' labels are random, and it says which weights they have learned.
"""

from __future__ import annotations

import dataclasses
import sys
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from shared.script import parse

import fedjax_lite as fl
from fedjax_lite.engine.differentiable import differentiable
from fedjax_lite.run.files import save_json_atomic
from fedjax_lite.run.settings import versions
from fedjax_lite.run.unroll import unroll


@dataclasses.dataclass(frozen=True)
class ComparisonFlags:
    """What is learnt, and the grid that it is compared with."""

    mixing: bool = False
    """Also learn the weights of the clients in the mean."""
    meta_steps: int = 60
    """Steps of the search for the rates."""
    meta_learning_rate: float = 0.15
    """Learning rate of Adam, on the logarithms of the rates."""
    grid_rates: tuple[float, ...] = (0.01, 0.03, 0.1, 0.2, 0.4, 0.8, 1.6)
    """Learning rates of the grid search."""
    grid_mus: tuple[float, ...] = (0.001, 0.01, 0.1, 1.0)
    """Penalties of the grid search."""


@dataclasses.dataclass(frozen=True)
class DataFlags:
    """The data and how they are dealt to clients."""

    num_clients: int = 20
    """Clients in the population."""
    alpha: float = 0.3
    """Concentration of the Dirichlet partition; smaller is more skewed."""
    num_corrupted: int = 0
    """Clients whose labels are drawn at random."""


@dataclasses.dataclass(frozen=True)
class TrainingFlags:
    """Models, local training and rounds."""

    cohort_size: int = 10
    """Clients that train in a round."""
    batch_size: int = 20
    """Examples in a local step."""
    epochs: int = 2
    """Passes of a client over its data in a round."""
    num_rounds: int = 5
    """Rounds that are differentiated through."""
    learning_rate: float = 0.01
    """Client learning rate to start from."""
    mu: float = 0.1
    """FedProx's penalty to start from."""


@dataclasses.dataclass(frozen=True)
class RunFlags:
    """Preset, seeds and length of the run, and where results go."""

    num_keys: int = 5
    """Random keys that scores are averaged over."""
    seed: int = 0
    """Seed of the partition and of the keys."""
    output_dir: Path = Path("outputs/meta_learning_rate")
    """Where results.json and path.png go."""
    overwrite: bool = False
    """Replace the results of an earlier run."""
    smoke: bool = False
    """A run of seconds, to see that everything works."""


@dataclasses.dataclass(frozen=True)
class Flags(ComparisonFlags, DataFlags, TrainingFlags, RunFlags):
    """The federated problem and the search."""


def main(flags: Flags) -> dict[str, Any]:
    """Runs the search and the grid, prints and writes what they gave."""
    check(flags)
    if flags.smoke:
        flags = dataclasses.replace(
            flags, num_rounds=2, meta_steps=3, num_keys=1, grid_rates=(0.05, 0.5), grid_mus=(0.01,)
        )
    data, validation, test = problem(flags)
    train = make_train(flags)
    key_search, key_score = jax.random.split(jax.random.key(flags.seed))

    def outer(theta: dict[str, Any], key: Any, data: Any) -> Any:
        return MODEL.loss(train(theta, key, data), validation, None).mean()

    def one(theta: dict[str, Any], key: Any, data: Any) -> dict[str, Any]:
        params = train(theta, key, data)
        right = fl.models.accuracy(MODEL.predict(params, test), test["y"])
        loss = MODEL.loss(params, validation, None).mean()
        return {"validation_loss": loss, "test_accuracy": right.mean()}

    @jax.jit
    def scores(theta: dict[str, Any], data: Any) -> dict[str, Any]:
        keys = jax.random.split(key_score, flags.num_keys)
        found = jax.lax.map(lambda key: one(theta, key, data), keys)
        return {name: values.mean() for name, values in found.items()}

    def score(theta: dict[str, Any]) -> dict[str, float]:
        return {name: float(value) for name, value in scores(theta, data).items()}

    optimizer = optax.adam(flags.meta_learning_rate)

    @jax.jit
    def meta_step(theta: dict[str, Any], opt_state: Any, step: Any, data: Any) -> Any:
        key = jax.random.fold_in(key_search, step)
        loss, grads = jax.value_and_grad(outer)(theta, key, data)
        updates, opt_state = optimizer.update(grads, opt_state)
        return optax.apply_updates(theta, updates), opt_state, loss

    theta = start = theta_of(flags, flags.learning_rate, flags.mu)
    opt_state, path = optimizer.init(theta), []
    for step in range(flags.meta_steps):
        row = {"step": step, "learning_rate": np.exp(theta["rate"]), "mu": np.exp(theta["mu"])}
        theta, opt_state, loss = meta_step(theta, opt_state, np.int32(step), data)
        path.append({k: float(v) for k, v in {**row, "validation_loss": loss}.items()})
        if step % 10 == 0 or step == flags.meta_steps - 1:
            last = path[-1]
            print(
                f"step {step:3d}: learning rate {last['learning_rate']:.4f}, mu {last['mu']:.4f}, "
                f"validation loss {last['validation_loss']:.4f}",
                flush=True,
            )

    grid = [
        {"learning_rate": rate, "mu": mu, **score(theta_of(flags, rate, mu))}
        for rate in flags.grid_rates
        for mu in flags.grid_mus
    ]
    results = {"before": described(start, score), "after": described(theta, score)}
    results["grid"] = min(grid, key=lambda row: row["validation_loss"])
    for name, row in results.items():
        print(
            f"{name:6s}: learning rate {row['learning_rate']:.4f}, mu {row['mu']:.4f}: "
            f"validation loss {row['validation_loss']:.4f}, test accuracy "
            f"{row['test_accuracy']:.4f}"
        )
    print(f"        ({flags.meta_steps} meta steps against a grid of {len(grid)} points)")
    weights = np.exp(np.asarray(theta["weights"]))
    if flags.mixing:
        print(
            f"mean weight of corrupted clients {mean_of(weights[: flags.num_corrupted])}, ", end=""
        )
        print(f"of the others {mean_of(weights[flags.num_corrupted :])}")
    settings = dataclasses.asdict(flags)
    del settings["output_dir"], settings["overwrite"]
    written = {
        "versions": versions(),
        "settings": settings,
        **results,
        "weights": weights.tolist(),
        "path": path,
        "grid_rows": grid,
    }
    flags.output_dir.mkdir(parents=True, exist_ok=True)
    save_json_atomic(flags.output_dir / "results.json", written)
    plot(path, grid, results, flags.output_dir / "path.png")
    return written


MODEL = fl.models.mlp((32,), num_classes=10, input_shape=(8, 8, 1))


def check(flags: Flags) -> None:
    """Raises before anything runs where flags do not fit or results would be lost."""
    rates = (flags.learning_rate, flags.mu, *flags.grid_rates, *flags.grid_mus)
    if not flags.grid_rates or not flags.grid_mus or not all(value > 0 for value in rates):
        raise ValueError(
            "--learning-rate, --mu, --grid-rates and --grid-mus must be positive (their "
            f"logarithms are searched), got {rates}"
        )
    for name in ("num_rounds", "meta_steps", "num_keys"):
        if getattr(flags, name) < 1:
            raise ValueError(
                f"--{name.replace('_', '-')} must be at least 1, got {getattr(flags, name)}"
            )
    if not 0 <= flags.num_corrupted <= flags.num_clients:
        raise ValueError(
            f"--num-corrupted must lie in [0, {flags.num_clients}], got {flags.num_corrupted}"
        )
    path = flags.output_dir / "results.json"
    if path.exists() and not flags.overwrite:
        raise FileExistsError(
            f"{path} holds the results of an earlier run; --overwrite replaces them, or give "
            "another --output-dir"
        )


def problem(flags: Flags) -> tuple[Any, dict[str, Any], dict[str, Any]]:
    """The clients' data, the server's validation images, and the test images."""
    train, test = fl.data.load("digits")
    rows = np.random.default_rng(flags.seed).permutation(len(train["y"]))
    held, kept = rows[: len(rows) // 5], rows[len(rows) // 5 :]
    partitioner = fl.data.dirichlet(
        alpha=flags.alpha, num_clients=flags.num_clients, seed=flags.seed
    )
    data = fl.data.partition({k: v[kept] for k, v in train.items()}, partitioner)
    if flags.num_corrupted:
        labels = np.random.default_rng(flags.seed + 1).integers(0, 10, data.num_examples)
        corrupted = np.asarray(data.client_of_example) < flags.num_corrupted
        y = jnp.where(corrupted, labels, data.examples["y"]).astype(data.examples["y"].dtype)
        data = dataclasses.replace(data, examples={**data.examples, "y": y})
    as_arrays = lambda split: {k: jnp.asarray(v) for k, v in split.items()}  # noqa: E731
    return data, as_arrays({k: v[held] for k, v in train.items()}), as_arrays(test)


def theta_of(flags: Flags, rate: float, mu: float) -> dict[str, Any]:
    """What is searched: logarithms, so that everything stays positive."""
    weights = jnp.zeros(flags.num_clients)
    return {"rate": jnp.log(jnp.float32(rate)), "mu": jnp.log(jnp.float32(mu)), "weights": weights}


def make_train(flags: Flags) -> Any:
    """``(theta, key, data) -> parameters`` after the rounds, from new ones."""

    def train(theta: dict[str, Any], key: Any, data: Any) -> Any:
        weighting: Any = "examples"
        if flags.mixing:
            weighting = lambda info: info.size * jnp.exp(theta["weights"])[info.id]  # noqa: E731
        algo = fl.fedprox(
            MODEL.loss,
            optax.sgd(jnp.exp(theta["rate"])),
            mu=jnp.exp(theta["mu"]),
            plan=fl.Plan(batch_size=flags.batch_size, epochs=flags.epochs),
            sampler=fl.uniform(flags.cohort_size),
            weighting=weighting,
            strategy=differentiable(),
        )
        state = algo.init(key, MODEL.init(key), data)
        return unroll(algo, key, state, data, num_rounds=flags.num_rounds)[0].server.params

    return train


def described(theta: dict[str, Any], score: Any) -> dict[str, float]:
    """Settings and scores of a point of the search."""
    rate, mu = (float(np.exp(theta[name])) for name in ("rate", "mu"))
    return {"learning_rate": rate, "mu": mu, **score(theta)}


def mean_of(weights: np.ndarray) -> str:
    """The mean, where there is something to average."""
    return f"{weights.mean():.3f}" if len(weights) else "-"


def plot(path: list, grid: list, results: dict[str, Any], file: Path) -> None:
    """Validation loss by meta step, and the way through the plane of rate and mu."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(10, 4.2), layout="constrained")
    left, right = figure.subplots(1, 2)
    steps = [row["step"] for row in path]
    left.plot(steps, [row["validation_loss"] for row in path], color="#0072B2", label="search")
    left.axhline(results["grid"]["validation_loss"], color="#D55E00", label="best of the grid")
    left.set(xlabel="meta step", ylabel="validation loss")
    left.legend()
    points = right.scatter(
        [row["learning_rate"] for row in grid],
        [row["mu"] for row in grid],
        c=[row["validation_loss"] for row in grid],
        cmap="viridis_r",
        marker="s",
        s=120,
    )
    figure.colorbar(points, ax=right, label="validation loss")
    way = [*path, results["after"]]
    right.plot(
        [row["learning_rate"] for row in way],
        [row["mu"] for row in way],
        color="#D55E00",
        marker=".",
    )
    right.set(xscale="log", yscale="log", xlabel="client learning rate", ylabel="mu")
    temporary = file.with_suffix(".tmp.png")
    figure.savefig(temporary, dpi=120)
    temporary.replace(file)


if __name__ == "__main__":
    try:
        main(parse(Flags, __doc__))
    except (ValueError, TypeError, OSError) as error:
        sys.exit(f"error: {error}")
