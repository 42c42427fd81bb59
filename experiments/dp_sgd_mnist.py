"""DP-SGD on MNIST as TensorFlow Privacy and Opacus publish it: accuracy and epsilon of examples.

    python experiments/dp_sgd_mnist.py                    # short: two epochs of two runs
    python experiments/dp_sgd_mnist.py --preset published # whole runs, of 15 epochs
    python experiments/dp_sgd_mnist.py --preset epsilons  # no training: all epsilons, a minute
    python experiments/dp_sgd_mnist.py --smoke            # seconds

Their READMEs have tables of a small CNN (26,010 parameters) under plain SGD: rate, noise, clip and
epochs, the epsilon of every training image at delta 1e-5, and the accuracy of the last epoch on the
10,000 test images, mean of 10 runs. Read in their tutorials:

* TensorFlow Privacy (`tutorials/mnist_dpsgd_tutorial.py`): batches of 256 from a shuffled epoch
  whose rest of 96 images is left out, Glorot's weights, pixels in [0, 1]. Here one client has all
  images and trains by `fl.privacy.dp_sgd` with ordinary batches. The epsilon is that of Poisson
  batches, which these are not, there as here; `shuffled` is the bound that holds for them.
* Opacus (`examples/mnist.py`): Poisson batches of 240 expected, PyTorch's weights, pixels of mean 0
  and deviation 1. Here every image is a client of its own and a round is a step: Poisson cohorts by
  `fl.privacy.central_gaussian`, the update of one step at rate 1 is the gradient.

Both print an epsilon by Renyi divergences and the conversion of Mironov 2017, `epsilon_2017`; ours
by privacy loss distributions is tighter. Runs without noise or clip are baselines. Each run goes
into results.json as it is done and is kept by a later run; one that was stopped goes on from its
last epoch.
"""

from __future__ import annotations

import dataclasses
import json
import math
import statistics
import time
from pathlib import Path
from typing import Any, Literal, NamedTuple

import jax
import numpy as np
import optax
from shared.mnist_flags import DataFlags
from shared.script import script
from shared.smoke import chosen_preset
from tables.published import figures

import fedjax_lite as fl
from fedjax_lite import privacy
from fedjax_lite.models.layers import conv_layer, dense, init_affine
from fedjax_lite.models.pooling import max_pool
from fedjax_lite.run.files import save_json_atomic
from fedjax_lite.run.settings import versions

DELTA = 1e-5
PUBLISHED: dict[str, dict[str, float]] = figures("dp_sgd")


class Setting(NamedTuple):
    """A row of one of the tables."""

    source: Literal["tf-privacy", "opacus"]
    learning_rate: float
    noise_multiplier: float | None
    """None: plain SGD without clip."""
    clip: float
    epochs: int

    @property
    def batch_size(self) -> int:
        """Images in a step."""
        return 256 if self.source == "tf-privacy" else 240


RUNS = {
    "tf-privacy 1.3": Setting("tf-privacy", 0.25, 1.3, 1.5, 15),
    "opacus 1.3": Setting("opacus", 0.25, 1.3, 1.5, 15),
    "tf-privacy none": Setting("tf-privacy", 0.1, None, math.inf, 20),
    "opacus none": Setting("opacus", 0.1, None, math.inf, 20),
    "tf-privacy 0.7": Setting("tf-privacy", 0.25, 0.7, 1.5, 45),
    "opacus 0.7": Setting("opacus", 0.25, 0.7, 1.5, 45),
    "tf-privacy 1.1": Setting("tf-privacy", 0.15, 1.1, 1.0, 60),
    "opacus 1.1": Setting("opacus", 0.15, 1.1, 1.0, 60),
}
"""The tables' rows by source and noise multiplier, the cheapest first."""


class Preset(NamedTuple):
    """What is run of them."""

    runs: tuple[str, ...]
    seeds: tuple[int, ...]
    max_epochs: int = 60
    num_images: int = 0
    """Training images, and test images at most; 0: all."""


PRESETS = {
    "published": Preset(tuple(RUNS)[:4], (0, 1, 2)),
    "short": Preset(tuple(RUNS)[:2], (0,), 2),
    "smoke": Preset(tuple(RUNS)[:3], (0,), 1, 720),
    "epsilons": Preset(tuple(name for name in RUNS if "none" not in name), ()),
}


@dataclasses.dataclass(frozen=True)
class ComparisonFlags:
    """The rows."""

    runs: tuple[str, ...] = ()
    """Library and noise multiplier, as "opacus 1.3" or "opacus none"; none given: the preset's."""


@dataclasses.dataclass(frozen=True)
class RunFlags:
    """Preset, seeds and length of the runs, and where results go."""

    preset: Literal["short", "published", "smoke", "epsilons"] = "short"
    """short: minutes on two CPU cores; published: whole runs; smoke: seconds; epsilons: the budgets
    of whole runs, nothing is trained."""
    seeds: tuple[int, ...] = ()
    """Seeds of the parameters, batches and noise; none given: the preset's."""
    max_epochs: int = 0
    """Passes over the images after which a run is cut; 0: the preset's."""
    output_dir: Path = Path("outputs/dp_sgd_mnist")
    """Where results.json and the folders of runs go."""
    overwrite: bool = False
    """Run everything again; else what results.json has is kept and only added to."""
    smoke: bool = False
    """The same as --preset smoke."""


@dataclasses.dataclass(frozen=True)
class Flags(ComparisonFlags, DataFlags, RunFlags):
    """A preset, and what to change of it."""


def tutorial_cnn(source: str) -> fl.models.Model:
    """The tutorials' CNN: conv 16 of 8x8 and conv 32 of 4x4, both by 2; pools 2 by 1; dense 32.

    Args:
      source: whose weights and pixels.

    Example:
      >>> params = tutorial_cnn("opacus").init(jax.random.key(0))
      >>> sum(leaf.size for leaf in jax.tree.leaves(params))
      26010
    """
    shapes = {"conv1": (8, 8, 1, 16), "conv2": (4, 4, 16, 32), "dense": (512, 32), "head": (32, 10)}
    torch = source == "opacus"
    scale: dict[str, Any] = {"mean": (0.1307,), "std": (0.3081,)} if torch else {}

    def init(key: jax.Array) -> Any:
        keys = jax.random.split(key, len(shapes))
        return {
            name: init_affine(each, shape, init="torch" if torch else "glorot")
            for each, (name, shape) in zip(keys, shapes.items(), strict=True)
        }

    def apply(params: Any, x: Any, key: Any) -> Any:
        del key
        # Three pixels on each side: "same" of TensorFlow, padding=3 of PyTorch.
        x = conv_layer(params["conv1"], x.reshape(-1, 28, 28, 1), strides=2, padding=3)
        x = max_pool(jax.nn.relu(x), 2, strides=1)
        x = jax.nn.relu(conv_layer(params["conv2"], x, strides=2, padding="VALID"))
        x = max_pool(x, 2, strides=1).reshape(-1, 512)
        return dense(params["head"], jax.nn.relu(dense(params["dense"], x)))

    return fl.models.from_functions(init, apply, **scale)


class Trainable(NamedTuple):
    """How a row is run: an algorithm, the clients, rounds of an epoch."""

    algorithm: fl.FederatedAlgorithm
    data: fl.data.FederatedDataset
    rounds: int


def trainable(setting: Setting, model: fl.models.Model, images: Any) -> Trainable:
    """The row as a federation: of one client with ordinary batches, or of single images."""
    num, size = len(images["y"]), setting.batch_size
    steps = num // size  # of an epoch; the rest is left out
    whole = np.zeros(num, int)
    if setting.noise_multiplier is None:
        plan = fl.Plan(size, steps=steps)
        algo = fl.centralised(model.loss, optax.sgd(setting.learning_rate), plan=plan)
        return Trainable(algo, fl.data.from_arrays(images, whole), 1)
    noise: dict[str, Any] = {"clip": setting.clip, "noise_multiplier": setting.noise_multiplier}
    if setting.source == "tf-privacy":
        client = privacy.dp_sgd(model.loss, setting.learning_rate, **noise)
        algo = fl.federated_algorithm(
            client, plan=fl.Plan(size, steps=steps), sampler=fl.everyone(),
            server=fl.optimizer_server(optax.sgd(1.0)),
        )  # fmt: skip
        return Trainable(algo, fl.data.from_arrays(images, whole), 1)
    mechanism = privacy.central_gaussian(
        num_clients=num, sampling_rate=size / num, delta=DELTA, unit="image", **noise
    )
    algo = fl.fedavg(
        model.loss, optax.sgd(1.0), plan=fl.Plan(1), privacy=mechanism,
        server_optimizer=optax.sgd(setting.learning_rate),
    )  # fmt: skip
    return Trainable(algo, fl.data.from_arrays(images, np.arange(num)), steps)


def budgets(setting: Setting, epochs: int, num_images: int) -> dict[str, float] | None:
    """Epsilons of an image after so many epochs: Poisson batches by three bounds, and shuffled.

    Example:
      >>> found = budgets(RUNS["tf-privacy 1.3"], 15, 60_000)
      >>> round(found["epsilon_2017"], 2)
      1.19
    """
    if setting.noise_multiplier is None:
        return None
    from dp_accounting.rdp import RdpAccountant

    steps = num_images // setting.batch_size * epochs
    poisson: dict[str, Any] = {
        "noise_multiplier": setting.noise_multiplier,
        "sampling_rate": setting.batch_size / num_images,
        "num_rounds": steps,
    }
    orders = [1 + tenth / 10 for tenth in range(1, 100)] + [*range(12, 64)]  # of both libraries
    renyi = RdpAccountant(orders).compose(privacy.event(**poisson))
    old = [loss + math.log(1 / DELTA) / (a - 1) for a, loss in zip(renyi._orders, renyi._rdp)]
    return {
        "epsilon": privacy.epsilon(**poisson, delta=DELTA),
        "epsilon_rdp": privacy.epsilon(**poisson, delta=DELTA, method="rdp"),
        "epsilon_2017": float(min(old)),
        "shuffled": privacy.dp_sgd_epsilon(
            noise_multiplier=setting.noise_multiplier, delta=DELTA, steps=steps // epochs,
            num_rounds=epochs, size=num_images, batch_size=setting.batch_size,
        ),
    }  # fmt: skip


def run_one(name: str, seed: int, epochs: int, images: Any, test: Any, folder: Path) -> list[float]:
    """Test accuracy after each epoch."""
    model = tutorial_cnn(RUNS[name].source)
    algo, data, rounds = trainable(RUNS[name], model, images)
    key = jax.random.key(seed)
    _, history = fl.run(
        algo, key, algo.init(key, model.init(key), data), data, num_rounds=epochs * rounds,
        every=rounds, evaluate=fl.evaluator(model, test), progress=False, resume=True,
        output_dir=folder, config={"run": name, "seed": seed, "num_images": len(images["y"])},
    )  # fmt: skip
    return [round(row["test_accuracy"], 5) for row in history[1:] if "test_accuracy" in row]


def main(flags: Flags) -> list[dict[str, Any]]:
    """Runs what is missing, prints the table and returns its rows."""
    preset = choose(flags)
    path = flags.output_dir / "results.json"
    settings = {"max_epochs": preset.max_epochs, "num_images": preset.num_images}
    if chosen_preset(flags) == "epsilons":
        return epsilons(preset, path)
    done = [] if flags.overwrite else earlier(path, settings)
    train, test = fl.data.load("mnist", data_dir=flags.data_dir)
    images = {name: np.asarray(train[name][: preset.num_images or None]) for name in ("x", "y")}
    test = {name: test[name][: preset.num_images or None] for name in ("x", "y")}
    flags.output_dir.mkdir(parents=True, exist_ok=True)
    for seed in preset.seeds:
        for name in preset.runs:
            if any((one["run"], one["seed"]) == (name, seed) for one in done):
                continue
            began, epochs = time.perf_counter(), min(RUNS[name].epochs, preset.max_epochs)
            folder = flags.output_dir / f"{name.replace(' ', '_')}_{seed}"
            curve = run_one(name, seed, epochs, images, test, folder)
            seconds = round(time.perf_counter() - began, 1)
            done.append({"run": name, "seed": seed, "curve": curve, "seconds": seconds})
            print(f"{name}, seed {seed}: {curve[-1]:.2%}, {seconds:.0f} s", flush=True)
            rows = summarise(done, len(images["y"]))
            record = {"versions": versions(), "settings": settings, "rows": rows, "runs": done}
            save_json_atomic(path, record)
    rows = summarise(done, len(images["y"]))
    print(table(rows))
    return rows


def epsilons(preset: Preset, path: Path) -> list[dict[str, Any]]:
    """A row for each of the runs with noise: epsilons after all of its epochs."""
    rows = []
    for name in preset.runs:
        spent = budgets(RUNS[name], RUNS[name].epochs, 60_000)
        rows.append({"run": name, "epochs": RUNS[name].epochs, "budgets": spent})
        if spent:
            known = f"published {PUBLISHED[name]['epsilon']:.2f}"
            print(f"{name}: {known}, the same bound {spent['epsilon_2017']:.3f}", flush=True)
    path.parent.mkdir(parents=True, exist_ok=True)
    save_json_atomic(path, {"versions": versions(), "rows": rows})
    return rows


def choose(flags: Flags) -> Preset:
    """The preset with what the flags change; raises where a run is unknown."""
    for name in flags.runs:
        if name not in RUNS:
            raise ValueError(f"--runs must be among {sorted(RUNS)}, got {name!r}")
    given = {name: getattr(flags, name) for name in ("runs", "seeds", "max_epochs")}
    return PRESETS[chosen_preset(flags)]._replace(**{k: v for k, v in given.items() if v})


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


def summarise(done: list[dict[str, Any]], num_images: int) -> list[dict[str, Any]]:
    """A row for each setting: accuracies by seed after the last epoch, epsilons, the published."""
    rows = []
    for name in (name for name in RUNS if any(one["run"] == name for one in done)):
        mine = sorted((one for one in done if one["run"] == name), key=lambda one: one["seed"])
        values, epochs = [one["curve"][-1] for one in mine], len(mine[0]["curve"])
        rows.append(
            {
                "run": name,
                **RUNS[name]._asdict(),
                "clip": RUNS[name].clip if RUNS[name].noise_multiplier else None,
                "epochs_run": epochs,
                "accuracy": values,
                "mean": statistics.fmean(values),
                "std": statistics.stdev(values) if len(values) > 1 else None,
                "seeds": [one["seed"] for one in mine],
                "budgets": budgets(RUNS[name], epochs, num_images),
                "published": PUBLISHED[name],
            }
        )
    return rows


def table(rows: list[dict[str, Any]]) -> str:
    """Ours beside the published accuracies (per cent) and epsilons."""
    lines = [f"{'run':16s} epochs  published    ours  +-       published epsilon   PLD  as theirs"]
    for row in rows:
        known, spent = row["published"], row["budgets"] or {}
        spread = "-" if row["std"] is None else f"{100 * row['std']:.2f}"
        epsilons = [known.get("epsilon"), spent.get("epsilon"), spent.get("epsilon_2017")]
        shown = ["-" if value is None else f"{value:.2f}" for value in epsilons]
        lines.append(
            f"{row['run']:16s} {row['epochs_run']:3d}/{row['epochs']:2d}  {known['accuracy']:9.2f}"
            f"  {100 * row['mean']:6.2f}  {spread:>5s} ({len(row['seeds'])})"
            f"  {shown[0]:>15s}  {shown[1]:>6s}  {shown[2]:>6s}"
        )
    return "\n".join(lines)


if __name__ == "__main__":
    script(main, Flags, __doc__)
