"""Tables 1 and 2 of McMahan et al. 2017 on MNIST: rounds of FedAvg to a target accuracy.

    python experiments/mcmahan_mnist.py                  # the three 2NN cells, best rate of a few
    python experiments/mcmahan_mnist.py --cells cnn-iid-b10-e1
    python experiments/mcmahan_mnist.py --smoke

All learning rates and seeds of a cell run as one vmapped program. Rounds are counted as in the
paper: the accuracy curve is made monotone and interpolated between evaluations, the rate is the
best of a few for each cell; ours is the median over seeds. Prints the table beside the published
one, and writes results.json and curves.png.
"""

from __future__ import annotations

import dataclasses
import functools
import json
import math
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from shared.script import script
from tables.published import figures

import fedjax_lite as fl
from fedjax_lite.run.files import save_json_atomic
from fedjax_lite.run.settings import versions


class Cell(NamedTuple):
    """One cell of the tables: its setting and what we try."""

    model: str
    iid: bool
    batch_size: int | None
    epochs: int
    target: float
    bar: float
    learning_rates: tuple[float, ...]
    max_rounds: int
    every: int


CELLS = {
    "2nn-iid-b10-e1": Cell("2nn", True, 10, 1, 0.97, 105, (0.05, 0.1, 0.2), 240, 4),
    "2nn-shards-b10-e1": Cell("2nn", False, 10, 1, 0.97, 800, (0.05, 0.1, 0.2), 1200, 20),
    "2nn-iid-binf-e1": Cell("2nn", True, None, 1, 0.97, math.inf, (0.2, 0.4, 0.8), 3000, 50),
    "cnn-iid-b10-e1": Cell("cnn", True, 10, 1, 0.99, 42, (0.1, 0.2), 60, 2),
    "cnn-iid-b10-e5": Cell("cnn", True, 10, 5, 0.99, 25, (0.1, 0.2), 30, 1),
}
PUBLISHED = figures("mnist")


@dataclasses.dataclass(frozen=True)
class ComparisonFlags:
    """The cells of the tables."""

    cells: tuple[str, ...] = ("2nn-iid-b10-e1", "2nn-shards-b10-e1", "2nn-iid-binf-e1")
    """Cells of the tables to run; all: every cell (the CNN takes long on a CPU)."""


@dataclasses.dataclass(frozen=True)
class DataFlags:
    """The data and how they are dealt to clients."""

    data_dir: Path | None = None
    """Folder of the MNIST idx files (else FEDJAX_LITE_DATA, the cache, a download)."""


@dataclasses.dataclass(frozen=True)
class TrainingFlags:
    """Models, local training and rounds."""

    learning_rates: tuple[float, ...] = ()
    """Learning rates to try, instead of each cell's own."""
    max_rounds: int = 0
    """Limit of rounds, instead of each cell's own; 0: that one."""


@dataclasses.dataclass(frozen=True)
class RunFlags:
    """Preset, seeds and length of the run, and where results go."""

    num_seeds: int = 3
    """Seeds for each learning rate; the median counts."""
    output_dir: Path = Path("outputs/mcmahan_mnist")
    """Where results.json and curves.png go."""
    overwrite: bool = False
    """Run cells again that results.json already has; else they are kept and only added to."""
    smoke: bool = False
    """A run of seconds: one cell, one rate, one seed, a few rounds."""


@dataclasses.dataclass(frozen=True)
class Flags(ComparisonFlags, DataFlags, TrainingFlags, RunFlags):
    """Which cells to run, and how."""


def build(loss: Callable[..., Any], plan: fl.Plan, learning_rate: Any) -> fl.FederatedAlgorithm:
    """FedAvg as in the paper: C = 0.1 of 100 clients, SGD, weights by examples."""
    return fl.fedavg(
        loss,
        optax.sgd(learning_rate),
        plan=plan,
        sampler=fl.uniform(10),
        strategy=fl.auto(),
    )


def run_cell(
    cell: Cell,
    train: dict,
    test: dict,
    *,
    rates: tuple[float, ...],
    num_seeds: int,
    max_rounds: int,
    model: fl.models.Model | None = None,
    fixed_batches: bool = False,
) -> dict[str, Any]:
    """Trains every (rate, seed) side by side until all have reached the target.

    A model of one's own takes the place of the cell's; fixed batches are dealt once.
    """
    shape = train["x"].shape[1:]
    if model is None:
        model = (
            fl.models.mlp((200, 200), input_shape=shape)
            if cell.model == "2nn"
            else fl.models.mcmahan_cnn()
        )
    plan, loss = fl.Plan(batch_size=cell.batch_size, epochs=cell.epochs), model.loss
    deal = (
        fl.data.iid(num_clients=100, seed=0)
        if cell.iid
        else fl.data.shards(num_clients=100, seed=0)
    )
    data = fl.data.partition(train, deal)
    if fixed_batches:
        assert cell.batch_size is not None
        data, loss = in_batches(data, cell.batch_size), on_batches(model.loss)
        plan = fl.Plan(batch_size=1, epochs=cell.epochs)
    held_out = jax.tree.map(jnp.asarray, test)
    grid = [(rate, seed) for rate in rates for seed in range(num_seeds)]
    member_rates = jnp.array([rate for rate, _ in grid])
    keys = jax.vmap(jax.random.key)(jnp.array([seed for _, seed in grid]))

    def accuracy(params: Any, held_out: dict) -> jax.Array:
        batches = jax.tree.map(lambda leaf: leaf.reshape(10, -1, *leaf.shape[1:]), held_out)
        right = jax.lax.map(
            lambda batch: (model.predict(params, batch).argmax(-1) == batch["y"]).mean(), batches
        )
        return right.mean()

    def first(rate: jax.Array, key: jax.Array, data: fl.data.FederatedDataset) -> fl.RoundState:
        return build(loss, plan, rate).init(key, model.init(key), data)

    # Data, rates and states are arguments: one compilation serves the whole cell.
    @functools.partial(jax.jit, donate_argnums=2)
    def block(rates, keys, states, data, held_out):
        def one(rate, key, state):
            algo = build(loss, plan, rate)
            state, _ = jax.lax.scan(
                lambda s, _: algo.round(key, s, data), state, None, length=cell.every
            )
            return state, accuracy(state.server.params, held_out)

        return jax.vmap(one)(rates, keys, states)

    states = jax.vmap(first, in_axes=(0, 0, None))(member_rates, keys, data)
    curve, began = [np.zeros(len(grid))], time.perf_counter()
    for done in range(cell.every, max_rounds + 1, cell.every):
        states, reached = block(member_rates, keys, states, data, held_out)
        curve.append(np.asarray(reached))
        best = np.maximum.reduce(curve)
        if (done // cell.every) % 10 == 0 or done == cell.every:
            print(
                f"  round {done}: best {best.max():.4f}, worst {best.min():.4f}, "
                f"{time.perf_counter() - began:.0f} s",
                flush=True,
            )
        if enough(best >= cell.target, num_seeds):
            break
    curves = np.stack(curve)
    crossings = [rounds_to(curves[:, i], cell.every, cell.target) for i in range(len(grid))]
    by_rate = {
        str(rate): crossings[i * num_seeds : (i + 1) * num_seeds] for i, rate in enumerate(rates)
    }
    medians = {rate: float(np.median(values)) for rate, values in by_rate.items()}
    best_rate = min(medians, key=lambda rate: medians[rate])
    return {
        "ours": medians[best_rate],
        "best_learning_rate": float(best_rate),
        "rounds_by_learning_rate": by_rate,
        "seconds": round(time.perf_counter() - began, 1),
        "every": cell.every,
        "curves": {
            f"{rate}/{seed}": curves[:, i].round(5).tolist() for i, (rate, seed) in enumerate(grid)
        },
    }


def in_batches(data: fl.data.FederatedDataset, size: int) -> fl.data.FederatedDataset:
    """Each client's examples as whole batches, in the order in which the client holds them.

    Raises:
      ValueError: if a client's examples are no multiple of the size.
    """
    sizes = np.asarray(data.sizes)
    if (sizes % size).any():
        raise ValueError(f"size must divide the examples of every client, {size} does not")
    clients = [jax.tree.map(np.asarray, data.client(i)) for i in range(len(sizes))]
    examples = jax.tree.map(lambda *leaves: np.concatenate(leaves), *clients)
    batches = jax.tree.map(lambda leaf: leaf.reshape(-1, size, *leaf.shape[1:]), examples)
    return fl.data.from_arrays(batches, np.repeat(np.arange(len(sizes)), sizes // size))


def on_batches(loss: Callable[..., jax.Array]) -> Callable[..., jax.Array]:
    """The mean loss of each example that is a batch: leaves `[n, size, ...]` to `[n]`."""

    def means(params: Any, examples: Any, key: Any) -> jax.Array:
        num, size = jax.tree.leaves(examples)[0].shape[:2]
        rows = jax.tree.map(lambda leaf: leaf.reshape(-1, *leaf.shape[2:]), examples)
        return loss(params, rows, key).reshape(num, size).mean(1)

    return means


def enough(reached: np.ndarray, num_seeds: int) -> bool:
    """Whether the best rate is settled: all seeds of one rate are there.

    A rate of which fewer than half of the seeds have arrived has a median that lies later.
    """
    return bool(reached.reshape(-1, num_seeds).all(1).any())


def rounds_to(curve: np.ndarray, every: int, target: float) -> float:
    """Rounds until the monotone, interpolated accuracy curve reaches `target`; inf if never."""
    monotone = np.maximum.accumulate(curve)
    above = np.flatnonzero(monotone >= target)
    if not len(above):
        return math.inf
    i = int(above[0])
    if i == 0:
        return 0.0
    low, high = monotone[i - 1], monotone[i]
    return every * (i - 1 + (target - low) / (high - low))


def read_results(path: Path) -> dict[str, Any]:
    """Cells of an earlier run; JSON has no infinity, so null stands for a target not reached."""
    cells = json.loads(path.read_text())["cells"]
    for row in cells.values():
        row["ours"] = math.inf if row["ours"] is None else row["ours"]
        row["rounds_by_learning_rate"] = {
            rate: [math.inf if r is None else r for r in rounds]
            for rate, rounds in row["rounds_by_learning_rate"].items()
        }
    return cells


def print_table(results: dict[str, Any]) -> None:
    """Ours beside the published rounds, and the ratio that local steps buy."""
    print(f"\n{'cell':22s} {'published':>10s} {'ours':>8s} {'bar':>6s}  best rate  all seeds")
    for name, row in results.items():
        bar, best = CELLS[name].bar, row["best_learning_rate"]
        seeds = ", ".join(f"{r:.0f}" for r in row["rounds_by_learning_rate"][str(best)])
        limit = "" if math.isinf(bar) else f"{bar:.0f}"
        print(
            f"{name:22s} {row['published']:10d} {row['ours']:8.1f} {limit:>6s}  {best:<9g}  {seeds}"
        )
    many, one = results.get("2nn-iid-b10-e1"), results.get("2nn-iid-binf-e1")
    if many and one:
        print(
            f"local steps pay: {one['ours'] / many['ours']:.1f} times fewer rounds "
            f"(published {one['published'] / many['published']:.1f}, bar 12)"
        )


def plot(results: dict[str, Any], path: Path) -> None:
    """Accuracy by round: each cell's best rate, a line a seed."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(8, 5), layout="constrained")
    axes = figure.subplots()
    colours = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00")
    for colour, (name, row) in zip(colours, results.items(), strict=False):
        for key, curve in row["curves"].items():
            if key.startswith(f"{row['best_learning_rate']}/"):
                label = (
                    f"{name}, rate {row['best_learning_rate']:g}" if key.endswith("/0") else None
                )
                rounds = row["every"] * np.arange(len(curve))
                axes.plot(rounds[1:], curve[1:], color=colour, label=label, linewidth=1)
    axes.axhline(0.97, color="grey", linestyle=":", linewidth=1)
    axes.set(
        xlabel="round",
        ylabel="test accuracy",
        xscale="log",
        ylim=(0.8, 1.0),
        title="FedAvg on MNIST, 10 of 100 clients a round (McMahan et al. 2017)",
    )
    axes.legend(loc="lower right")
    temporary = path.with_suffix(".tmp.png")
    figure.savefig(temporary, dpi=120)
    temporary.replace(path)


def main(flags: Flags) -> dict[str, Any]:
    """Runs the cells that are asked for and prints the table."""
    names = tuple(CELLS) if flags.cells == ("all",) else flags.cells
    unknown = [name for name in names if name not in CELLS]
    if unknown:
        raise ValueError(f"--cells must be among {sorted(CELLS)}, got {unknown}")
    if flags.smoke:
        flags = dataclasses.replace(flags, num_seeds=1, learning_rates=(0.1,), max_rounds=8)
        names = names[:1]
    flags.output_dir.mkdir(parents=True, exist_ok=True)
    path = flags.output_dir / "results.json"
    results = read_results(path) if path.exists() else {}
    train, test = fl.data.load("mnist", data_dir=flags.data_dir)
    train, test = ({k: split[k] for k in ("x", "y")} for split in (train, test))
    for name in names:
        if name in results and not flags.overwrite:
            print(f"{name}: kept from {path}; --overwrite runs it again")
            continue
        cell = CELLS[name]
        rates = flags.learning_rates or cell.learning_rates
        print(f"{name}: rates {rates}, {flags.num_seeds} seeds")
        results[name] = {"published": PUBLISHED[name]["value"]} | run_cell(
            cell,
            train,
            test,
            rates=rates,
            num_seeds=flags.num_seeds,
            max_rounds=flags.max_rounds or cell.max_rounds,
        )
        save_json_atomic(path, {"versions": versions(), "cells": results})
        plot(results, flags.output_dir / "curves.png")
    print_table(results)
    return results


if __name__ == "__main__":
    script(main, Flags, __doc__)
