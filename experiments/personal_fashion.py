"""Models of the clients' own on Fashion-MNIST in the setting of PFLlib's leaderboard.

    python experiments/personal_fashion.py                    # short: a perceptron, minutes
    python experiments/personal_fashion.py --preset published # CNN, 2,000 rounds; a GPU
    python experiments/personal_fashion.py --smoke            # seconds

PFLlib puts training and test images together, deals each label to 20 clients by Dirichlet(0.1)
shares (who has a twentieth of all images gets no more), and splits every client's images 75/25. All
clients take part in every round: one epoch, batches of 10, SGD at 0.005, pixels in [-1, 1]. Its
score is the accuracy over everybody's held-out images, the best of all rounds, which flatters;
ours is shown beside the last one. Read in its code: data, plan, network, the default settings of
the methods (pFedMe: five inner steps at 0.01; FedRep: one epoch of the head, one of the body;
FedBABU: ten epochs of tuning; APFL: begins with the own model alone, gradients not scaled by its
share; Per-FedAvg: first order, one step of adaptation). Not on its record, and therefore round
numbers of ours: the pulls of Ditto and of pFedMe, and Per-FedAvg's meta-rate. Its adaptation step
takes a batch of the test images, ours a batch of the client's training images.

short has 8,000 images, a perceptron of 64 hidden units and 60 rounds at 0.02: compare ranks and
gaps, not accuracies. Each run goes into results.json as it is done and is kept by a later run.
Writes results.json and clients.png and prints the table.
"""

from __future__ import annotations

import dataclasses
import json
import time
from pathlib import Path
from typing import Any, Literal, NamedTuple

import jax
import numpy as np
import optax
from shared.flags import with_labels
from shared.script import script
from shared.smoke import chosen_preset
from tables.published import figures

import fedjax_lite as fl
from fedjax_lite.run.files import save_json_atomic
from fedjax_lite.run.settings import versions

PUBLISHED: dict[str, float] = figures("personal_fashion")
"""Accuracies of PFLlib's leaderboard by method, shares."""
ALONE = "local only"


class Setting(NamedTuple):
    """What a preset fixes; a size of 0 means all images."""

    model: str = "cnn"
    num_images: int = 0
    num_clients: int = 20
    alpha: float = 0.1
    held_out: float = 0.25
    num_rounds: int = 2000
    batch_size: int = 10
    learning_rate: float = 0.005
    every: int = 20
    seeds: tuple[int, ...] = (0, 1, 2)


PRESETS = {
    "published": Setting(),
    "short": Setting(
        model="mlp", num_images=8000, num_rounds=60, learning_rate=0.02, every=5, seeds=(0,)
    ),
    "smoke": Setting(
        model="mlp", num_images=400, num_clients=4, num_rounds=4, learning_rate=0.03, every=2,
        seeds=(0,),
    ),
}  # fmt: skip


@dataclasses.dataclass(frozen=True)
class DataFlags:
    """Clients and images; what is 0 or empty is the preset's."""

    data_dir: Path | None = None
    """Folder of Fashion-MNIST (else FEDJAX_LITE_DATA, the cache, /usr/share/datasets, network)."""
    num_images: int = 0
    """Images to deal, at random from training and test images together."""
    num_clients: int = 0
    """Clients in the population."""
    alpha: float = 0.0
    """Concentration of the Dirichlet partition; smaller is more skewed."""


@dataclasses.dataclass(frozen=True)
class TrainingFlags:
    """Rounds and local training; what is 0 or empty is the preset's."""

    num_rounds: int = 0
    """Rounds of each run, all clients in each."""
    batch_size: int = 0
    """Examples in a local step; one epoch a round."""
    learning_rate: float = 0.0
    """Local learning rate, per step, of all methods."""
    methods: tuple[str, ...] = ()
    """Some of the methods, as the table names them; none given: all."""


@dataclasses.dataclass(frozen=True)
class RunFlags:
    """Preset, seeds, and where results go."""

    preset: Literal["short", "published", "smoke"] = "short"
    """short: minutes on two CPU cores; published: the whole setting; smoke: seconds."""
    seeds: tuple[int, ...] = ()
    """Seeds of the deal, the split, the parameters and batches."""
    output_dir: Path = Path("outputs/personal_fashion")
    """Where results.json and clients.png go."""
    overwrite: bool = False
    """Run everything again; else what results.json has is kept and only added to."""
    smoke: bool = False
    """The same as --preset smoke."""


@dataclasses.dataclass(frozen=True)
class Flags(DataFlags, TrainingFlags, RunFlags):
    """A preset, and what to change of it."""


class Method(NamedTuple):
    """An algorithm, and what clients do with its model before they are scored."""

    algorithm: fl.FederatedAlgorithm
    adapt: Any = None


def methods(model: fl.models.Model, train: Any, setting: Setting) -> dict[str, Method]:
    """All methods by name."""
    loss, rate = model.loss, setting.learning_rate
    sgd = optax.sgd(rate)
    slots: dict[str, Any] = {"plan": fl.Plan(setting.batch_size), "sampler": fl.everyone()}
    # A batch is dealt to two parts, each as large as a batch of the other methods.
    twice = {**slots, "plan": fl.Plan(2 * setting.batch_size)}
    one_step = fl.Plan(setting.batch_size, steps=1)
    ten = fl.Plan(setting.batch_size, epochs=10)
    return {
        ALONE: Method(fl.local_only(loss, sgd, plan=slots["plan"])),
        "FedAvg": Method(fl.fedavg(loss, sgd, **slots)),
        "Per-FedAvg": Method(
            fl.per_fedavg(loss, sgd, alpha=rate, first_order=True, **twice),
            fl.fine_tuned(loss, sgd, train, plan=one_step),
        ),
        "pFedMe": Method(
            fl.pfedme(
                loss, optax.sgd(2 * rate), learning_rate=rate, pull=15.0, inner_steps=5,
                weighting="examples", **slots,
            )
        ),
        "Ditto": Method(fl.ditto(loss, sgd, pull=0.01, personal_plan=slots["plan"], **slots)),
        "APFL": Method(
            fl.apfl(loss, sgd, mixing=1.0, mixing_rate=rate, variant="unscaled", **slots)
        ),
        "FedPer": Method(fl.fedper(loss, sgd, **slots)),
        "FedRep": Method(fl.fedrep(loss, sgd, **slots)),
        "FedBABU": Method(
            fl.fedbabu(loss, sgd, **slots), fl.fine_tuned(loss, sgd, train, plan=ten)
        ),
    }  # fmt: skip


def choose(flags: Flags) -> Setting:
    """The preset with what the flags change; raises where that cannot be run."""
    given = {k: v for k, v in vars(flags).items() if k in Setting._fields and v}
    setting = PRESETS[chosen_preset(flags)]._replace(**given)
    for name in ("alpha", "learning_rate"):
        if not 0 < getattr(setting, name) < float("inf"):
            flag = f"--{name.replace('_', '-')}"
            raise ValueError(f"{flag} must be positive, got {getattr(setting, name)}")
    if unknown := set(flags.methods) - {*PUBLISHED, ALONE}:
        known = sorted({*PUBLISHED, ALONE})
        raise ValueError(f"--methods must be among {known}, got {sorted(unknown)}")
    return setting


def load(flags: Flags, setting: Setting) -> tuple[dict[str, np.ndarray], fl.models.Model]:
    """Training and test images in one, and the network."""
    parts = [with_labels(part) for part in fl.data.load("fashion_mnist", data_dir=flags.data_dir)]
    images = {name: np.concatenate([part[name] for part in parts]) for name in parts[0]}
    rows = np.random.default_rng(0).permutation(len(images["y"]))[: setting.num_images or None]
    scale: dict[str, Any] = {"mean": (0.5,), "std": (0.5,)}
    if setting.model == "mlp":
        model = fl.models.mlp((64,), input_shape=(28, 28, 1), **scale)
    else:
        shape: dict[str, Any] = {"input_shape": (28, 28, 1), "padding": "VALID"}
        model = fl.models.conv_net((32, 64), (512,), **shape, **scale)
    return {name: values[rows] for name, values in images.items()}, model


def deal(images: Any, setting: Setting, seed: int) -> tuple[Any, Any]:
    """Everybody's images to train on and to be scored on."""
    clients: dict[str, Any] = {"num_clients": setting.num_clients, "seed": seed}
    # Three at least: one for the test, and two parts for Per-FedAvg.
    dealt = fl.data.dirichlet(alpha=setting.alpha, min_size=3, balanced=True, **clients)
    return fl.data.split_clients(fl.data.partition(images, dealt), setting.held_out, seed=seed)


def run_one(
    method: Method, model: fl.models.Model, parts: tuple[Any, Any], setting: Setting, seed: int
) -> dict[str, Any]:
    """One run: its curve, and the clients' scores at the end."""
    train, test = parts
    algo, key = method.algorithm, jax.random.key(seed)
    evaluate = fl.client_evaluator(model, test, adapt=method.adapt)
    state, history = fl.run(
        algo, key, algo.init(key, model.init(key), train), train, num_rounds=setting.num_rounds,
        every=setting.every, evaluate=evaluate, progress=False,
    )  # fmt: skip
    curve = [row for row in history if "test_accuracy" in row]
    found = state if method.adapt is None else method.adapt(state)
    scores = fl.evaluate_clients(model, found, test)
    return {
        "accuracy": np.round(scores["accuracy"].astype(float), 5).tolist(),
        "size": np.asarray(scores["size"]).tolist(),
        "rounds": [row["round"] for row in curve],
        "curve": [round(row["test_accuracy"], 5) for row in curve],
        "best": max(row["test_accuracy"] for row in curve),
        "last": curve[-1]["test_accuracy"],
    }


def summarise(rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """For each method the means over seeds, and over clients of their scores."""
    found = []
    for name in dict.fromkeys(row["method"] for row in rows):
        mine = [row for row in rows if row["method"] == name]
        clients = [fl.summarize_clients(row["accuracy"], row["size"]) for row in mine]
        best = [row["best"] for row in mine]
        found.append(
            {
                "method": name,
                "best": float(np.mean(best)),
                "best_std": float(np.std(best, ddof=1)) if len(best) > 1 else None,
                "last": float(np.mean([row["last"] for row in mine])),
                "mean": float(np.mean([one["mean"] for one in clients])),
                "worst": float(np.mean([one["worst"] for one in clients])),
                "num_seeds": len(mine),
                "published": PUBLISHED.get(name),
            }
        )
    return found


def table(summary: list[dict[str, Any]]) -> str:
    """Ours beside the published accuracies in per cent."""
    lines = ["method      published  best round  last round  clients  worst tenth"]
    for row in summary:
        known = "-" if row["published"] is None else f"{100 * row['published']:.1f}"
        cells = (row[name] for name in ("best", "last", "mean", "worst"))
        ours = " ".join(f"{100 * cell:{width}.1f}" for cell, width in zip(cells, (11, 11, 8, 12)))
        lines.append(f"{row['method']:11s} {known:>9s} {ours}")
    return "\n".join(lines)


def main(flags: Flags) -> list[dict[str, Any]]:
    """Runs what is missing, prints the table and returns its rows."""
    setting = choose(flags)
    path = flags.output_dir / "results.json"
    settings = json.loads(
        json.dumps({"preset": chosen_preset(flags), **setting._asdict(), "seeds": None})
    )
    rows = [] if flags.overwrite else earlier(path, settings)
    images, model = load(flags, setting)
    flags.output_dir.mkdir(parents=True, exist_ok=True)
    summary: list[dict[str, Any]] = []
    for seed in setting.seeds:
        parts = deal(images, setting, seed)
        for name, method in methods(model, parts[0], setting).items():
            done = any((row["method"], row["seed"]) == (name, seed) for row in rows)
            if done or (flags.methods and name not in flags.methods):
                continue
            began = time.perf_counter()
            row = {"method": name, "seed": seed, **run_one(method, model, parts, setting, seed)}
            rows.append({**row, "seconds": round(time.perf_counter() - began, 1)})
            print(f"{name}, seed {seed}: {row['best']:.1%}", flush=True)
            summary = summarise(rows)
            record = {"versions": versions(), "settings": {**settings, "seeds": seeds_of(rows)}}
            save_json_atomic(path, record | {"summary": summary, "rows": rows})
    summary = summary or summarise(rows)
    print(table(summary))
    draw_clients(rows, setting, flags.output_dir / "clients.png")
    return summary


def seeds_of(rows: list[dict[str, Any]]) -> list[int]:
    """Those of all rows, in order."""
    return list(dict.fromkeys(row["seed"] for row in rows))


def earlier(path: Path, settings: dict[str, Any]) -> list[dict[str, Any]]:
    """The rows of an earlier run with the same settings; raises where they differ."""
    if not path.exists():
        return []
    saved = json.loads(path.read_text())
    differ = [k for k, v in settings.items() if k != "seeds" and saved["settings"].get(k) != v]
    if differ:
        names = ", ".join(f"--{name.replace('_', '-')}" for name in differ)
        raise FileExistsError(
            f"{path} holds runs with other settings ({names}); --overwrite replaces them, or give "
            "another --output-dir"
        )
    return saved["rows"]


def draw_clients(rows: list[dict[str, Any]], setting: Setting, path: Path) -> None:
    """Every client under each method against FedAvg, at the end of the first seed's runs."""
    mine = [row for row in rows if row["seed"] == rows[0]["seed"]]
    if len(mine) < 2:
        return
    scores = {}
    for row in sorted(mine, key=lambda row: row["method"] != "FedAvg"):
        found = fl.summarize_clients(row["accuracy"], row["size"])
        scores[row["method"]] = {
            "scores": np.array(row["accuracy"], float),
            "mean": found["mean"],
            "worst": found["worst"],
        }
    fl.report.plot_side_by_side(
        scores, dataset=f"Fashion-MNIST, Dirichlet({setting.alpha:g})", split="held out",
        title="Models of one's own", path=path,
    )  # fmt: skip


if __name__ == "__main__":
    script(main, Flags, __doc__)
