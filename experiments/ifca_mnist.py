"""IFCA's table on rotated MNIST: four models that clients choose from, one for all, one each.

    python experiments/ifca_mnist.py                        # short: minutes on two CPU cores
    python experiments/ifca_mnist.py --preset published     # 4,800 clients of 50 images, 300 rounds
    python experiments/ifca_mnist.py --preset published --num-clients 1200 --images 200
    python experiments/ifca_mnist.py --smoke                # seconds

Ghosh, Chung, Yin, Ramchandran (2020), arXiv:2006.04088, as the authors' code has it
(github.com/jichan3751/ifca, mnist/): all training images are dealt four times, each time anew, to a
quarter of the clients, which see them turned by 0, 90, 180 or 270 degrees; a network of 200 hidden
units; in every of 300 rounds every client takes 10 steps of gradient descent at rate 0.1 on all of
its images, and models are averaged with equal weights. Nothing decays; no start is chosen.

IFCA is scored on test clients that were not trained: the 10,000 test images by each angle, in the
files' order, as many a client as clients train on; each takes the model of the least loss on its
own. One model for all is scored on the same images. A client alone takes 10 times 10 steps, and
its model is scored on all test images by its angle.

Descent goes by inner products (ifca_mnist_descent.py), which are equal but for rounding and cost a
third of the time. Rows are added to results.json; a killed run goes on from its last checkpoint.
"""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Any, Literal, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from ifca_mnist_descent import descent_of, pixels, whole_descent
from shared.script import script
from shared.smoke import chosen_preset

import fedjax_lite as fl
from fedjax_lite.aggregation.mean import mean
from fedjax_lite.algorithms.clusters.ifca import best_of_several
from fedjax_lite.algorithms.clusters.in_clusters import cluster_server, in_clusters
from fedjax_lite.run.files import save_json_atomic
from fedjax_lite.run.settings import versions
from fedjax_lite.types import Array, Params

METHODS = ("IFCA", "global", "local")
NUM_ANGLES, NUM_STEPS, RATE, HIDDEN, ALONE = 4, 10, 0.1, 200, 10
"""Angles; steps of a client in a round, their rate; hidden units; rounds of a client alone."""


class Setting(NamedTuple):
    """What a preset fixes."""

    num_clients: int
    images: int
    num_rounds: int


PRESETS = {
    "short": Setting(400, 50, 60),
    "published": Setting(4800, 50, 300),
    "smoke": Setting(8, 25, 2),
}


@dataclasses.dataclass(frozen=True)
class DataFlags:
    """Images and clients."""

    data_dir: Path | None = None
    """Folder of MNIST (else FEDJAX_LITE_DATA, the cache, /usr/share/datasets, network)."""
    num_clients: int = 0
    """Clients, a quarter of them for each angle; 0: the preset's."""
    images: int = 0
    """Training images of a client; 0: the preset's."""


@dataclasses.dataclass(frozen=True)
class TrainingFlags:
    """Methods and rounds."""

    methods: tuple[str, ...] = METHODS
    """Methods: IFCA, global (one model for all), local (one each)."""
    num_rounds: int = 0
    """Rounds of IFCA and of the global model; 0: the preset's."""


@dataclasses.dataclass(frozen=True)
class RunFlags:
    """Preset, seeds, and where results go."""

    preset: Literal["short", "published", "smoke"] = "short"
    """short: 20,000 turned images; published: 240,000, as the paper; smoke: seconds."""
    smoke: bool = False
    """The same as --preset smoke."""
    seeds: tuple[int, ...] = (0,)
    """Seeds of the deal and of the parameters; the authors have five."""
    output_dir: Path = Path("outputs/ifca_mnist")
    """Where results.json and checkpoints go."""
    overwrite: bool = False
    """Replace the rows of an earlier run and start anew."""


@dataclasses.dataclass(frozen=True)
class Flags(DataFlags, TrainingFlags, RunFlags):
    """Rotated MNIST and the methods."""


def main(flags: Flags) -> list[dict[str, Any]]:
    """Runs what results.json has no row of, prints and writes; returns all rows."""
    setting = setting_of(flags)
    train, test = fl.data.load("mnist", data_dir=flags.data_dir)
    test_images = turned({name: np.asarray(test[name]) for name in ("x", "y")})
    target = flags.output_dir / "results.json"
    rows = json.loads(target.read_text())["rows"] if target.exists() else []
    for seed in flags.seeds:
        data = dealt(train, setting, seed)
        for method in flags.methods:
            num_rounds = ALONE if method == "local" else setting.num_rounds
            row = {
                "method": method, "num_clients": setting.num_clients, "images": setting.images,
                "num_rounds": num_rounds, "seed": seed,
            }  # fmt: skip
            known = [old for old in rows if row.items() <= old.items()]
            if known and not flags.overwrite:
                print(line(known[0]))
                continue
            name = f"{method}-{setting.num_clients}x{setting.images}-seed{seed}"
            row |= scored(method, data, test_images, num_rounds, seed, flags.output_dir / name,
                          overwrite=flags.overwrite)  # fmt: skip
            print(line(row))
            rows = [old for old in rows if old not in known] + [row]
            flags.output_dir.mkdir(parents=True, exist_ok=True)
            settings = {"num_steps": NUM_STEPS, "learning_rate": RATE, "hidden": HIDDEN}
            save_json_atomic(target, {"versions": versions(), "settings": settings, "rows": rows})
    return rows


def setting_of(flags: Flags) -> Setting:
    """The preset's setting with what was given instead.

    Raises:
      ValueError: if a method is unknown, or the clients are no multiple of the angles or need more
        images than there are.
    """
    if unknown := sorted(set(flags.methods) - set(METHODS)):
        raise ValueError(f"--methods must be among {METHODS}, got {unknown}; e.g. --methods IFCA")
    preset = PRESETS[chosen_preset(flags)]
    found = Setting(
        flags.num_clients or preset.num_clients, flags.images or preset.images,
        flags.num_rounds or preset.num_rounds,
    )  # fmt: skip
    if found.num_clients < NUM_ANGLES or found.num_clients % NUM_ANGLES:
        raise ValueError(
            f"--num-clients must be a multiple of the {NUM_ANGLES} angles, got "
            f"{found.num_clients}; e.g. {NUM_ANGLES * 300}"
        )
    if found.images < 1 or found.num_clients // NUM_ANGLES * found.images > 60_000:
        raise ValueError(
            f"--images must be at least 1 and at most 60,000 over the clients of an angle, got "
            f"{found.images} for {found.num_clients // NUM_ANGLES} clients; give fewer"
        )
    return found


def turned(examples: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    """Images `[B, 28, 28, ...]` by each of the angles: leaves `[4, B, ...]`."""
    x, y = examples["x"], examples["y"]
    images = [np.rot90(x, k, axes=(1, 2)) for k in range(NUM_ANGLES)]
    return {"x": np.stack(images), "y": np.stack([y] * NUM_ANGLES)}


def dealt(train: Any, setting: Setting, seed: int) -> fl.data.FederatedDataset:
    """Clients in the order of their angles; for each angle the images are drawn anew."""
    draw = np.random.default_rng(seed)
    x, y = (np.asarray(train[name]) for name in ("x", "y"))
    share = setting.num_clients // NUM_ANGLES * setting.images
    orders = [draw.permutation(len(y))[:share] for _ in range(NUM_ANGLES)]
    images = [np.rot90(x[order], k, axes=(1, 2)) for k, order in enumerate(orders)]
    examples = {"x": np.concatenate(images), "y": np.concatenate([y[order] for order in orders])}
    return fl.data.from_arrays(examples, np.repeat(np.arange(setting.num_clients), setting.images))


def scored(
    method: str,
    data: fl.data.FederatedDataset,
    test: dict[str, np.ndarray],
    num_rounds: int,
    seed: int,
    folder: Path,
    *,
    overwrite: bool = False,
) -> dict[str, Any]:
    """Accuracy on test images after the last round, and what else there is to tell."""
    model = fl.models.mlp((HIDDEN,), num_classes=10, input_shape=(28, 28, 1), init="torch")
    key = jax.random.key(seed)
    images = int(data.max_client_size)
    if method == "local":
        return {"accuracy": alone(model, data, test, num_rounds, key)}
    algo = several(model, images) if method == "IFCA" else one_for_all(images)
    start = fl.several_models(model.init, key, NUM_ANGLES) if method == "IFCA" else model.init(key)

    def evaluate(state: Any) -> dict[str, float]:
        models = state.server.params
        if method != "IFCA":
            models = jax.tree.map(lambda leaf: leaf[None], models)
        return {"test_accuracy": of_test_clients(models, test, images)}

    every = min(10, num_rounds)
    state, history = fl.run(
        algo, key, algo.init(key, start, data), data, num_rounds=num_rounds, evaluate=evaluate,
        every=every, output_dir=folder, resume=not overwrite, overwrite=overwrite, progress=False,
        config={"images": images, "clients": data.num_clients, "seed": seed},
    )  # fmt: skip
    curve = [row["test_accuracy"] for row in history if "test_accuracy" in row]
    told: dict[str, Any] = {"accuracy": curve[-1], "every": every, "curve": curve}
    if method == "IFCA":
        groups = np.repeat(np.arange(NUM_ANGLES), data.num_clients // NUM_ANGLES)
        told["purity"] = float(fl.cluster_purity(fl.cluster_assignments(state), groups))
    return told


def one_for_all(images: int) -> fl.FederatedAlgorithm:
    """FedAvg of all clients with equal weights."""
    return fl.federated_algorithm(
        whole_descent(NUM_STEPS, RATE), plan=fl.Plan(images), sampler=fl.everyone(),
        server=fl.optimizer_server(optax.sgd(1.0)), strategy=fl.sequential(),
    )  # fmt: skip


def several(model: fl.models.Model, images: int) -> fl.FederatedAlgorithm:
    """`fedjax_lite.ifca` with descent by inner products in the place of local SGD."""
    plan = fl.Plan(images)
    client = whole_descent(NUM_STEPS, RATE)
    return fl.federated_algorithm(
        best_of_several(client, model.loss, plan, NUM_ANGLES), plan=plan, sampler=fl.everyone(),
        server=cluster_server(fl.optimizer_server(optax.sgd(1.0)), NUM_ANGLES, "model"),
        aggregator=in_clusters(mean(), NUM_ANGLES), strategy=fl.sequential(),
    )  # fmt: skip


def logits_of(params: Params, x: Array) -> Array:
    """Of rows of pixels, `[B, 10]`."""
    hidden = jax.nn.relu(x @ params["dense1"]["kernel"] + params["dense1"]["bias"])
    return hidden @ params["head"]["kernel"] + params["head"]["bias"]


def of_test_clients(models: Params, test: dict[str, np.ndarray], images: int) -> float:
    """Share of right answers where each test client takes the model that fits its images best.

    Args:
      models: leaves `[K, ...]`.
      test: leaves `[4, B, ...]`.
      images: of a test client; what is left over at the end of an angle is a client, too.
    """
    right = total = 0
    for x, y in zip(test["x"], test["y"], strict=True):
        losses, hits = _of_models(models, jnp.asarray(x), jnp.asarray(y))
        ends = range(0, len(y), images)
        fits = np.add.reduceat(np.asarray(losses, float), ends, axis=1)
        counts = np.add.reduceat(np.asarray(hits, int), ends, axis=1)
        right += counts[fits.argmin(0), np.arange(len(ends))].sum()
        total += len(y)
    return float(right / total)


@jax.jit
def _of_models(models: Params, x: Array, y: Array) -> tuple[Array, Array]:
    """Losses `[K, B]` and right answers `[K, B]`."""
    rows = pixels(x)

    def of(model: Params) -> tuple[Array, Array]:
        logits = logits_of(model, rows)
        loss = optax.softmax_cross_entropy_with_integer_labels(logits, y)
        return loss, logits.argmax(-1) == y

    return jax.lax.map(of, models)


def alone(
    model: fl.models.Model,
    data: fl.data.FederatedDataset,
    test: dict[str, np.ndarray],
    num_rounds: int,
    key: jax.Array,
) -> float:
    """Mean share of right answers of clients that train alone, each on all images by its angle."""
    images, num_clients = int(data.max_client_size), data.num_clients
    share = num_clients // NUM_ANGLES

    @jax.jit
    def of_angle(mine: Any, x: Array, y: Array, keys: jax.Array) -> Array:
        rows = pixels(x)

        def of_client(given: Any) -> Array:
            examples, key = given
            params = model.init(key)
            batch = fl.Batch(examples, jnp.ones(images, bool), key)
            update, _ = descent_of(params, batch, num_rounds * NUM_STEPS, RATE)
            params = jax.tree.map(jnp.subtract, params, update)
            return (logits_of(params, rows).argmax(-1) == y).mean()

        return jax.lax.map(of_client, (mine, keys)).sum()

    whole = data.examples
    total = 0.0
    for k in range(NUM_ANGLES):
        part = slice(k * share * images, (k + 1) * share * images)
        mine = jax.tree.map(lambda leaf: leaf[part].reshape(share, images, *leaf.shape[1:]), whole)  # noqa: B023
        keys = jax.random.split(jax.random.fold_in(key, k), share)
        total += float(of_angle(mine, test["x"][k], test["y"][k], keys))
    return total / num_clients


def line(row: dict[str, Any]) -> str:
    """A row in words."""
    purity = f", purity {row['purity']:.3f}" if "purity" in row else ""
    return (
        f"{row['method']:7} {row['num_clients']} clients of {row['images']} images, round "
        f"{row['num_rounds']}, seed {row['seed']}: accuracy {100 * row['accuracy']:.2f} %{purity}"
    )


if __name__ == "__main__":
    script(main, Flags, __doc__)
