"""FedAvg on MNIST as two public repositories ran it, whose figures are in their READMEs.

    python experiments/replications_mnist.py                    # short: 10 rounds, one seed
    python experiments/replications_mnist.py --preset published # as published, five seeds
    python experiments/replications_mnist.py --smoke            # seconds

github.com/shaoxiongji/federated-learning (10 and 50 rounds) and
github.com/AshwinRJ/Federated-Learning-PyTorch (10 rounds, and training on all images): replications
of McMahan et al. 2017, not papers. Read in their code: 10 of 100 clients a round, batches of 10,
SGD at 0.01 with momentum 0.5 that restarts with each client and round, plain means, PyTorch's
weights, dropout, pixels of mean 0 and deviation 1; accuracy of the last round on the 10,000 test
images.

* shaoxiongji: 5 epochs on a client's 600 images; the perceptron has 200 hidden units.
* AshwinRJ: 10 epochs on the first 480 images of a client (the others are kept for tests that the
  README does not report), so that of a client's two shards one is whole and the other cut at 180;
  the perceptron has 64 hidden units, and its loss is minus the probability of the right class.
  Training on all images is in batches of 64.

Nothing is tuned. Deals, cohorts, weights and batches are drawn anew by each seed; theirs are of one
run. Each run goes into results.json as it is done and is kept by a later run.
"""

from __future__ import annotations

import dataclasses
import json
import statistics
import time
from pathlib import Path
from typing import Any, Literal, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from replications_mnist_models import perceptron, small_cnn
from shared.mnist_flags import DataFlags
from shared.script import script
from shared.smoke import chosen_preset
from tables.published import figures

import fedjax_lite as fl
from fedjax_lite.run.files import save_json_atomic
from fedjax_lite.run.settings import versions

NUM_CLIENTS, RATE, MOMENTUM, BATCH_SIZE, POOLED_BATCH_SIZE = 100, 0.01, 0.5, 10, 64


class Source(NamedTuple):
    """What the two repositories do not share."""

    epochs: int
    kept: float
    """Share of a client's images that it trains on, the first ones."""
    hidden: int
    minus_probability: bool
    rounds: tuple[int, ...]
    """After which the figures are."""


SOURCES = {
    "shaoxiongji": Source(5, 1.0, 200, False, (10, 50)),
    "AshwinRJ": Source(10, 0.8, 64, True, (10,)),
}


class Cell(NamedTuple):
    """One training; an entry of the READMEs' tables is its accuracy after some rounds."""

    source: str
    model: str
    deal: str
    """How images are dealt: iid, shards (two of one label each a client), or pooled: not at all."""

    @property
    def name(self) -> str:
        """As in results.json."""
        return " ".join(self)


FEDERATED = [
    Cell(source, model, deal)
    for model in ("mlp", "cnn")
    for source in SOURCES
    for deal in ("iid", "shards")
]
CELLS = {cell.name: cell for cell in FEDERATED} | {
    cell.name: cell
    for cell in (Cell("AshwinRJ", "mlp", "pooled"), Cell("AshwinRJ", "cnn", "pooled"))
}
PUBLISHED = figures("replications")


class Setting(NamedTuple):
    """What a preset fixes."""

    seeds: tuple[int, ...]
    max_rounds: int
    num_images: int = 0
    """Training images, and test images at most; 0: all."""


PRESETS = {
    "published": Setting((0, 1, 2, 3, 4), 50),
    "short": Setting((0,), 10),
    "smoke": Setting((0, 1), 1, 2000),
}


@dataclasses.dataclass(frozen=True)
class ComparisonFlags:
    """The figures."""

    cells: tuple[str, ...] = ()
    """Repository, model and deal, as "shaoxiongji mlp iid"; none given: all."""


@dataclasses.dataclass(frozen=True)
class RunFlags:
    """Preset, seeds and length of the runs, and where results go."""

    preset: Literal["short", "published", "smoke"] = "short"
    """short: minutes on two CPU cores; published: all rounds and seeds; smoke: seconds."""
    seeds: tuple[int, ...] = ()
    """Seeds of the deal, the parameters, cohorts and batches; none given: the preset's."""
    max_rounds: int = 0
    """Rounds after which no figure is sought; 0: the preset's."""
    output_dir: Path = Path("outputs/replications_mnist")
    """Where results.json goes."""
    overwrite: bool = False
    """Run everything again; else what results.json has is kept and only added to."""
    smoke: bool = False
    """The same as --preset smoke."""


@dataclasses.dataclass(frozen=True)
class Flags(ComparisonFlags, DataFlags, RunFlags):
    """A preset, and what to change of it."""


def order_of(labels: np.ndarray, deal: str, kept: float, seed: int) -> np.ndarray:
    """The rows of all images that clients own, client after client.

    Args:
      labels: of the images, `[E]`.
      deal: iid, shards or pooled.
      kept: share of a client's rows that it keeps, the first ones.
      seed: of the deal.

    Returns:
      int32; all clients own as many.

    Example:
      >>> order_of(np.arange(400) % 2, "shards", 1.0, seed=0).shape
      (400,)
    """
    rng = np.random.default_rng(seed)
    if deal == "pooled":
        return np.arange(len(labels), dtype=np.int32)
    if deal == "iid":
        rows = rng.permutation(len(labels)).reshape(NUM_CLIENTS, -1)
    else:
        shards = np.argsort(labels, kind="stable").reshape(2 * NUM_CLIENTS, -1)
        rows = shards[rng.permutation(2 * NUM_CLIENTS)].reshape(NUM_CLIENTS, -1)
    return rows[:, : int(kept * rows.shape[1])].ravel().astype(np.int32)


def model_of(cell: Cell) -> fl.models.Model:
    """The cell's network and loss."""
    source = SOURCES[cell.source]
    if cell.model == "cnn":
        return small_cnn()
    return perceptron(source.hidden, minus_probability=source.minus_probability)


def algorithm_of(cell: Cell, loss: Any) -> fl.FederatedAlgorithm:
    """One round of FedAvg, or an epoch over all images."""
    sgd = optax.sgd(RATE, momentum=MOMENTUM)
    if cell.deal == "pooled":
        return fl.centralised(loss, sgd, plan=fl.Plan(POOLED_BATCH_SIZE))
    plan = fl.Plan(BATCH_SIZE, epochs=SOURCES[cell.source].epochs)
    return fl.fedavg(loss, sgd, plan=plan, sampler=fl.uniform(10), weighting="uniform")


def program(cell: Cell, rounds: tuple[int, ...]) -> Any:
    """``keys [S], orders [S, E], images, test -> accuracies [S, R]`` after each of the rounds."""
    model = model_of(cell)
    algo = algorithm_of(cell, model.loss)
    clients = 1 if cell.deal == "pooled" else NUM_CLIENTS

    def accuracy(params: Any, test: Any) -> jax.Array:
        batches = jax.tree.map(lambda leaf: leaf.reshape(10, -1, *leaf.shape[1:]), test)
        right = lambda batch: (model.predict(params, batch).argmax(-1) == batch["y"]).mean()  # noqa: E731
        return jax.lax.map(right, batches).mean()

    def one(key: jax.Array, order: jax.Array, images: Any, test: Any) -> jax.Array:
        size = order.shape[0] // clients
        offsets = jnp.arange(clients + 1, dtype=jnp.int32) * size
        data = fl.data.FederatedDataset(images, offsets, order, size)
        state, reached = algo.init(key, model.init(key), data), []
        for before, after in zip((0, *rounds), rounds):
            state, _ = jax.lax.scan(
                lambda state, _: (algo.round(key, state, data)[0], None),
                state, None, length=after - before,
            )  # fmt: skip
            reached.append(accuracy(state.server.params, test))
        return jnp.stack(reached)

    return jax.jit(jax.vmap(one, (0, 0, None, None)))


def main(flags: Flags) -> list[dict[str, Any]]:
    """Runs what is missing, prints the table and returns its rows."""
    setting = choose(flags)
    path = flags.output_dir / "results.json"
    settings = {"num_images": setting.num_images}
    runs = [] if flags.overwrite else earlier(path, settings)
    train, test = fl.data.load("mnist", data_dir=flags.data_dir)
    images = {name: jnp.asarray(train[name][: setting.num_images or None]) for name in ("x", "y")}
    test = {name: jnp.asarray(test[name][: setting.num_images or None]) for name in ("x", "y")}
    flags.output_dir.mkdir(parents=True, exist_ok=True)
    for name in flags.cells or CELLS:
        cell = CELLS[name]
        source = SOURCES[cell.source]
        rounds = tuple(dict.fromkeys(min(r, setting.max_rounds) for r in source.rounds))
        missing = [seed for seed in setting.seeds if not is_done(runs, name, seed, rounds)]
        compiled = program(cell, rounds)
        # Small networks side by side; of the larger one a seed that is done is kept.
        for some in [missing] if cell.model == "mlp" else [[seed] for seed in missing]:
            if not some:
                continue
            began = time.perf_counter()
            orders = [order_of(np.asarray(images["y"]), cell.deal, source.kept, s) for s in some]
            keys = jax.vmap(jax.random.key)(jnp.array(some))
            found = np.asarray(compiled(keys, jnp.array(orders), images, test))
            seconds = (time.perf_counter() - began) / len(some)
            shorter = [run for run in runs if run["cell"] == name and run["seed"] in some]
            runs = [run for run in runs if run not in shorter]
            runs += [
                {"cell": name, "seed": seed, "rounds": list(rounds), "seconds": round(seconds, 1),
                 "accuracy": np.round(mine.astype(float), 5).tolist()}
                for seed, mine in zip(some, found, strict=True)
            ]  # fmt: skip
            shown = ", ".join(f"{100 * mine[-1]:.2f}" for mine in found)
            print(f"{name}, seeds {some}: {shown} % ({seconds:.0f} s a seed)", flush=True)
            rows = summarise(runs, whole=not setting.num_images)
            record = {"versions": versions(), "settings": settings, "rows": rows, "runs": runs}
            save_json_atomic(path, record)
    rows = summarise(runs, whole=not setting.num_images)
    print(table(rows))
    return rows


def choose(flags: Flags) -> Setting:
    """The preset with what the flags change; raises where a cell is unknown."""
    given = {name: getattr(flags, name) for name in ("seeds", "max_rounds")}
    for name in flags.cells:
        if name not in CELLS:
            raise ValueError(f"--cells must be among {sorted(CELLS)}, got {name!r}")
    return PRESETS[chosen_preset(flags)]._replace(**{k: v for k, v in given.items() if v})


def is_done(runs: list[dict[str, Any]], name: str, seed: int, rounds: tuple[int, ...]) -> bool:
    """Whether a run has been scored after all of these rounds."""
    mine = [run for run in runs if (run["cell"], run["seed"]) == (name, seed)]
    return any(set(rounds) <= set(run["rounds"]) for run in mine)


def earlier(path: Path, settings: dict[str, Any]) -> list[dict[str, Any]]:
    """The runs of an earlier call with the same settings; raises where they differ."""
    if not path.exists():
        return []
    saved = json.loads(path.read_text())
    if saved["settings"] != settings:
        raise FileExistsError(
            f"{path} holds runs with other settings, {saved['settings']}; --overwrite replaces "
            "them, or give another --output-dir"
        )
    return saved["runs"]


def summarise(runs: list[dict[str, Any]], *, whole: bool = True) -> list[dict[str, Any]]:
    """A row for each cell and number of rounds: accuracies by seed, and the published one.

    Published figures are of the whole of MNIST.
    """
    rows = []
    for name in (name for name in CELLS if any(run["cell"] == name for run in runs)):
        mine = sorted((run for run in runs if run["cell"] == name), key=lambda run: run["seed"])
        for rounds in sorted({rounds for run in mine for rounds in run["rounds"]}):
            there = [run for run in mine if rounds in run["rounds"]]
            values = [run["accuracy"][run["rounds"].index(rounds)] for run in there]
            rows.append(
                {
                    "cell": name,
                    "rounds": rounds,
                    "accuracy": values,
                    "mean": statistics.fmean(values),
                    "std": statistics.stdev(values) if len(values) > 1 else None,
                    "seeds": [run["seed"] for run in there],
                    "published": PUBLISHED.get(f"{name} {rounds}") if whole else None,
                }
            )
    return rows


def table(rows: list[dict[str, Any]]) -> str:
    """Ours beside the published accuracies in per cent."""
    lines = [f"{'cell':24s} rounds  published    ours  +- over seeds"]
    for row in rows:
        known = "-" if row["published"] is None else f"{row['published']:.2f}"
        spread = "-" if row["std"] is None else f"{100 * row['std']:.2f}"
        lines.append(
            f"{row['cell']:24s} {row['rounds']:6d}  {known:>9s}  {100 * row['mean']:6.2f}"
            f"  {spread:>6s} ({len(row['seeds'])})"
        )
    return "\n".join(lines)


if __name__ == "__main__":
    script(main, Flags, __doc__)
