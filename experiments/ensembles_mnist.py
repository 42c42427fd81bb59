"""Deep ensembles on MNIST: what more networks, and training on moved inputs, do to probabilities.

    python experiments/ensembles_mnist.py                  # short: minutes on two cores
    python experiments/ensembles_mnist.py --preset published
    python experiments/ensembles_mnist.py --smoke          # seconds

Lakshminarayanan, Pritzel, Blundell (2017), arXiv:1612.01474, figures 2(a) and 3(a): perceptrons of
three hidden layers of 200 ReLUs with batch normalisation, Adam in batches of 100; M networks of
different starts, whose probabilities are averaged; alone, on inputs moved at random (R), or against
the network (AT), by 0.01 of each pixel's range. The paper prints curves, no numbers, and not how
long it trained: so this shows orders. Error, NLL and Brier score are to fall with M and with AT,
and the entropy on images of other things is to rise with M; they are CIFAR-10's here, grey, their
middles, for NotMNIST is not at hand. "federated" is the same ensemble where each network is trained
by FedAvg, images dealt to clients at random.

The networks of an ensemble are one program. Prints the table and the orders; writes results.json.
"""

from __future__ import annotations

import dataclasses
import time
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from shared.moved_inputs import moved_inputs
from shared.script import script
from shared.smoke import chosen_preset

import fedjax_lite as fl
from fedjax_lite.models.layers import dense, init_affine
from fedjax_lite.run.files import save_json_atomic
from fedjax_lite.run.settings import versions

CLASSES, SIDE, HIDDEN = 10, 28, (200, 200, 200)
WAYS = PLAIN, RANDOM, ADVERSARIAL, FEDERATED = (
    "ensemble", "ensemble + R", "ensemble + AT", "federated"
)  # fmt: skip


@dataclasses.dataclass(frozen=True)
class DataFlags:
    """The images."""

    data_dir: Path | None = None
    """Folder of MNIST and CIFAR-10 (else FEDJAX_LITE_DATA, the cache, network)."""
    num_images: int = 0
    """Training images, the first ones; 0: the preset's."""
    num_clients: int = 10
    """Clients of the federated ensemble, equal parts at random."""


@dataclasses.dataclass(frozen=True)
class TrainingFlags:
    """The networks."""

    ways: tuple[str, ...] = WAYS
    """How networks are trained, by the names of the table."""
    num_members: int = 0
    """Networks of an ensemble; its first 1, 2, 5, 10 ... are scored. 0: the preset's."""
    epochs: int = 0
    """Passes over the images; of the federated ensemble rounds of one. 0: the preset's."""
    batch_size: int = 100
    """Examples in a step."""
    learning_rate: float = 0.1
    """Rate of Adam; the paper says 0.1."""


@dataclasses.dataclass(frozen=True)
class RunFlags:
    """Preset, seed, and where results go."""

    preset: str = "short"
    """short, published or smoke."""
    num_seeds: int = 0
    """Number of seeds: ensembles of each way, of other networks each. 0: the preset's."""
    output_dir: Path = Path("outputs/ensembles_mnist")
    """Where results.json goes."""
    overwrite: bool = False
    """Replace the results of an earlier run."""
    smoke: bool = False
    """The preset smoke."""


@dataclasses.dataclass(frozen=True)
class Flags(DataFlags, TrainingFlags, RunFlags):
    """Images, networks and where results go."""


PRESETS: dict[str, dict[str, int]] = {
    "published": {"num_images": 60000, "num_members": 10, "epochs": 40, "num_seeds": 3},
    "short": {"num_images": 6000, "num_members": 5, "epochs": 5, "num_seeds": 2},
    "smoke": {"num_images": 200, "num_members": 2, "epochs": 1, "num_seeds": 1},
}


def main(flags: Flags) -> dict[str, Any]:
    """Trains every way, prints and writes the scores by size of the ensemble."""
    flags = settled(flags)
    target = flags.output_dir / "results.json"
    if target.exists() and not flags.overwrite:
        raise FileExistsError(f"{target} is there from an earlier run; give --overwrite")
    began = time.perf_counter()
    train, test = (flat(part) for part in fl.data.load("mnist", data_dir=flags.data_dir))
    train = {name: leaf[: flags.num_images] for name, leaf in train.items()}
    others = unfamiliar(flags)
    print(f"{'way':16s}{'M':>4s}" + "".join(f"{name:>18s}" for name in COLUMNS))
    results: dict[str, Any] = {
        "settings": {k: list(v) if isinstance(v, tuple) else v for k, v in vars(flags).items()
                     if isinstance(v, int | float | str | tuple)},
        "rows": [], "versions": versions(),
    }  # fmt: skip
    flags.output_dir.mkdir(parents=True, exist_ok=True)
    for way in flags.ways:
        members = trained(flags, way, train)
        for size in sizes(flags.num_members):
            row = {"way": way, "size": size, **scored(flags, members, size, test, others)}
            results["rows"].append(row)
            print(line(row), flush=True)
        results["orders"] = orders(results["rows"])
        results["seconds"] = round(time.perf_counter() - began, 1)
        save_json_atomic(target, results)  # what is done is kept
    for order in results["orders"]:
        print(f"  {'holds' if order['holds'] else 'does not hold':14s} {order['statement']}")
    return results


def settled(flags: Flags) -> Flags:
    """The flags with the preset's values where none were given.

    Raises:
      ValueError: for a preset, a way or a number that there cannot be.
    """
    preset = chosen_preset(flags)
    if preset not in PRESETS:
        raise ValueError(f"--preset must be one of {', '.join(PRESETS)}, got {preset!r}")
    free = {name: value for name, value in PRESETS[preset].items() if not getattr(flags, name)}
    flags = dataclasses.replace(flags, preset=preset, smoke=False, **free)
    if preset == "smoke" and flags.ways == WAYS:
        flags = dataclasses.replace(flags, ways=(PLAIN, ADVERSARIAL))
    for way in flags.ways:
        if way not in WAYS:
            raise ValueError(f"--ways must be among {', '.join(WAYS)}, got {way!r}")
    for name in ("num_images", "num_clients", "num_members", "epochs", "batch_size", "num_seeds"):
        if getattr(flags, name) < 1:
            flag = f"--{name.replace('_', '-')}"
            raise ValueError(f"{flag} must be at least 1, got {getattr(flags, name)}")
    if not 0 < flags.learning_rate < float("inf"):
        raise ValueError(f"--learning-rate must be positive, got {flags.learning_rate}")
    return flags


def flat(part: dict[str, Any]) -> dict[str, np.ndarray]:
    """Images as rows of floats in [0, 1], `[E, 784]`."""
    x = np.asarray(part["x"]).reshape(len(part["y"]), -1)
    return {"x": x.astype(np.float32) / 255, "y": np.asarray(part["y"], np.int32)}


def unfamiliar(flags: Flags) -> dict[str, np.ndarray]:
    """CIFAR-10's test images, grey, their middle 28 by 28; none where they are not at hand."""
    try:
        _, test = fl.data.load("cifar10", data_dir=flags.data_dir)
    except FileNotFoundError:
        return {}
    grey = np.asarray(test["x"][:2000], np.float32).mean(-1)[:, 2:-2, 2:-2]
    return flat({"x": grey, "y": np.zeros(len(grey), np.int32)})


def sizes(num_members: int) -> list[int]:
    """Sizes of ensembles that are scored.

    Example:
      >>> sizes(10), sizes(7)
      ([1, 2, 5, 10], [1, 2, 5, 7])
    """
    return [*(n for n in (1, 2, 5, 10) if n < num_members), num_members]


def network() -> fl.models.Model:
    """Three hidden layers, normalised before the ReLU; begins as Torch's layers by default."""

    def init(key: jax.Array) -> Any:
        keys = jax.random.split(key, len(HIDDEN) + 1)
        shapes = zip((SIDE**2, *HIDDEN), (*HIDDEN, CLASSES), strict=True)
        return {
            "dense": [
                init_affine(k, shape, init="torch") for k, shape in zip(keys, shapes, strict=True)
            ],
            "norm": [fl.models.init_batch_norm(n, statistics="averaged") for n in HIDDEN],
        }

    def apply(params: Any, x: jax.Array, key: Any) -> jax.Array:
        *inner, last = params["dense"]
        for layer, norm in zip(inner, params["norm"], strict=True):
            x = jax.nn.relu(fl.models.batch_norm(norm, dense(layer, x), training=key is not None))
        return dense(last, x)

    return fl.models.from_functions(init, apply)


def trained(flags: Flags, way: str, train: dict[str, np.ndarray]) -> Any:
    """Networks side by side, leaves ``[num_seeds * num_members, ...]``."""
    model = network()
    loss: Any = model.loss
    if way in (RANDOM, ADVERSARIAL):
        step = 0.01 * (train["x"].max(0) - train["x"].min(0))
        loss = moved_inputs(loss, step, "random" if way == RANDOM else "gradient")
    adam = fl.models.with_statistics(optax.adam(flags.learning_rate))
    clients = flags.num_clients if way == FEDERATED else 1
    data = fl.data.partition(train, fl.data.iid(num_clients=clients, seed=0))
    plan = fl.Plan(batch_size=flags.batch_size, epochs=1)
    algo = fl.centralised(loss, adam, plan=plan)
    if way == FEDERATED:
        algo = fl.fedavg(loss, adam, plan=plan, sampler=fl.everyone())
    found = fl.ensemble(
        algo, init=model.init, data=data, num_rounds=flags.epochs, progress=False,
        seeds=range(flags.num_seeds * flags.num_members),
    )  # fmt: skip
    return found.members


def scored(
    flags: Flags, members: Any, size: int, test: dict[str, Any], others: dict[str, Any]
) -> dict[str, list[float]]:
    """Scores of the first `size` networks of every ensemble, one value an ensemble."""
    model, rows = network(), []
    for seed in range(flags.num_seeds):
        first = seed * flags.num_members
        mine = jax.tree.map(lambda leaf, i=first: leaf[i : i + size], members)
        scores = fl.uncertainty.ensemble_scores(model, mine, test)
        row = {
            "error": 100 * (1 - scores["accuracy"]), "nll": scores["nll"],
            # The paper's is the mean over the classes, too.
            "brier": scores["brier"] / CLASSES, "entropy": scores["total"],
        }  # fmt: skip
        if others:
            found = [
                fl.uncertainty.decompose(fl.uncertainty.member_probabilities(model, mine, part))
                for part in (test, others)
            ]
            row["entropy_unfamiliar"] = float(jnp.mean(found[1].total))
            row["auroc"] = fl.uncertainty.ood_auroc(*(np.asarray(one.total) for one in found))
        rows.append(row)
    return {name: [round(row[name], 6) for row in rows] for name in rows[0]}


def orders(rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """The paper's orders, of means over ensembles."""
    mean = {(r["way"], r["size"]): {k: np.mean(v) for k, v in r.items() if k not in ("way", "size")}
            for r in rows}  # fmt: skip
    largest = max(size for _, size in mean)
    parts = []

    def add(statement: str, low: float, high: float) -> None:
        parts.append(
            {"statement": f"{statement}: {low:.4g} and {high:.4g}", "holds": bool(low < high)}
        )

    for way in dict.fromkeys(way for way, _ in mean):
        one, all_of = mean[way, 1], mean[way, largest]
        for name in ("error", "nll", "brier"):
            add(
                f"{way}: {TITLES[name]} of {largest} networks below that of one",
                all_of[name],
                one[name],
            )
        if "entropy_unfamiliar" in one:
            add(f"{way}: entropy on other things of one network below that of {largest}",
                one["entropy_unfamiliar"], all_of["entropy_unfamiliar"])  # fmt: skip
    for other in (PLAIN, RANDOM):
        if {(other, 1), (ADVERSARIAL, 1)} <= set(mean):
            for size in (1, largest):
                low, high = mean[ADVERSARIAL, size]["nll"], mean[other, size]["nll"]
                add(f"M = {size}: NLL of {ADVERSARIAL} below that of {other}", low, high)
    return parts


TITLES = {"error": "error", "nll": "NLL", "brier": "Brier score"}
COLUMNS = ("error, %", "NLL", "Brier score", "entropy", "on other things", "AUROC")


def line(row: dict[str, Any]) -> str:
    """A row of the table."""
    cells = []
    for name in ("error", "nll", "brier", "entropy", "entropy_unfamiliar", "auroc"):
        if name not in row:
            cells.append("-")
            continue
        spread = f" +- {np.std(row[name], ddof=1):.4f}" if len(row[name]) > 1 else ""
        cells.append(f"{np.mean(row[name]):.4f}{spread}")
    return f"{row['way']:16s}{row['size']:4d}" + "".join(f"{cell:>18s}" for cell in cells)


if __name__ == "__main__":
    script(main, Flags, __doc__)
