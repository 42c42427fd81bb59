"""Logistic regression on MNIST dealt by a power law: the setting of FedProx, FedML and FLUTE.

    python experiments/power_law_mnist.py                    # short: one seed
    python experiments/power_law_mnist.py --preset published # five seeds, minutes
    python experiments/power_law_mnist.py --smoke            # seconds

FLUTE's README compares itself with FedML on this task: about 81 % each after 100 rounds. Read in
their code: 1,000 clients of two neighbouring digits each, 10 a round, one epoch in batches of 10,
SGD at 0.03, weights by examples; a linear layer with PyTorch's weights whose outputs go through a
sigmoid before the cross-entropy, which takes them for logits. The images are a file that FedProx's
`generate_niid.py` once wrote, by a seed that nobody recorded: all 70,000 images, each pixel
standardised over them, five of each digit to every client, the rest by log-normal shares
(deviation 2), and a tenth of every client's for the test. Here the deal is drawn by the same steps,
anew for each seed. "plain" is the same without the sigmoid.
"""

from __future__ import annotations

import dataclasses
import json
import statistics
import time
from pathlib import Path
from typing import Any, Literal

import jax
import jax.numpy as jnp
import numpy as np
import optax
from shared.mnist_flags import DataFlags
from shared.script import script
from shared.smoke import chosen_preset
from tables.published import figures

import fedjax_lite as fl
from fedjax_lite.models.layers import dense, init_affine
from fedjax_lite.run.files import save_json_atomic
from fedjax_lite.run.settings import versions

NUM_CLIENTS, COHORT, BATCH_SIZE, RATE, EACH = 1000, 10, 10, 0.03, 5
MODELS = ("sigmoid", "plain")
PRESETS = {"published": ((0, 1, 2, 3, 4), 100), "short": ((0,), 100), "smoke": ((0,), 2)}
"""Seeds and rounds."""
PUBLISHED: dict[str, float] = figures("power_law")


@dataclasses.dataclass(frozen=True)
class ComparisonFlags:
    """The models."""

    models: tuple[str, ...] = MODELS
    """sigmoid: as published; plain: softmax regression."""


@dataclasses.dataclass(frozen=True)
class RunFlags:
    """Preset, seeds and length of the runs, and where results go."""

    preset: Literal["short", "published", "smoke"] = "short"
    """short: one seed; published: five; smoke: two rounds."""
    seeds: tuple[int, ...] = ()
    """Seeds of the deal, the parameters, cohorts and batches; none given: the preset's."""
    num_rounds: int = 0
    """Rounds of each run; 0: the preset's."""
    output_dir: Path = Path("outputs/power_law_mnist")
    """Where results.json goes."""
    overwrite: bool = False
    """Run everything again; else what results.json has is kept and only added to."""
    smoke: bool = False
    """The same as --preset smoke."""


@dataclasses.dataclass(frozen=True)
class Flags(ComparisonFlags, DataFlags, RunFlags):
    """A preset, and what to change of it."""


def power_law(labels: np.ndarray, seed: int) -> np.ndarray:
    """The owner of each image, -1 where nobody has it, by the steps of FedProx's script.

    Client `k` has the digits ``k % 10`` and ``(k + 1) % 10``: five images of each, then a share of
    the rest that is log-normal among the 200 places of a digit, cut where the digit runs out.

    Args:
      labels: of the images, `[E]`.
      seed: of the shares.

    Example:
      >>> owner = power_law(np.repeat(np.arange(10), 3000), seed=0)
      >>> int(np.bincount(owner[owner >= 0]).min()) >= 10
      True
    """
    places = [(client, place) for client in range(NUM_CLIENTS) for place in range(2)]
    rows = [np.flatnonzero(labels == digit) for digit in range(10)]
    left = np.array([len(mine) for mine in rows]) - 2 * EACH * NUM_CLIENTS // 10
    if left.min() < 0:
        raise ValueError(
            f"labels must hold {EACH * NUM_CLIENTS // 5} images of each digit at least"
        )
    shares = np.random.default_rng(seed).lognormal(0.0, 2.0, (10, NUM_CLIENTS // 10, 2))
    shares *= left[:, None, None] / shares.sum((1, 2), keepdims=True)
    owner, taken = np.full(len(labels), -1), np.zeros(10, int)
    for few in (True, False):
        for client, place in places:
            digit = (client + place) % 10
            amount = EACH if few else int(shares[digit, client // 10, place])
            if few or taken[digit] + amount < len(rows[digit]):
                owner[rows[digit][taken[digit] : taken[digit] + amount]] = client
                taken[digit] += amount
    return owner


def held_out(owner: np.ndarray, seed: int) -> np.ndarray:
    """Which images are for the test: of each client those after the first nine tenths, at random.

    Example:
      >>> held_out(np.repeat([0, 1], [10, 25]), seed=0).sum()
      np.int64(4)
    """
    rng, test = np.random.default_rng([seed, 1]), np.zeros(len(owner), bool)
    for client in range(owner.max() + 1):
        mine = rng.permutation(np.flatnonzero(owner == client))
        test[mine[int(0.9 * len(mine)) :]] = True
    return test


def regression(kind: str, mean: np.ndarray, deviation: np.ndarray) -> fl.models.Model:
    """A linear layer on pixels that are standardised one by one.

    Args:
      kind: sigmoid or plain.
      mean: of each pixel, `[784]`.
      deviation: of each pixel; a thousandth is added.
    """

    def apply(params: Any, x: Any, key: Any) -> Any:
        x = (x.reshape(-1, 784).astype(jnp.float32) - mean) / (deviation + 0.001)
        logits = dense(params, x)
        return jax.nn.sigmoid(logits) if kind == "sigmoid" else logits

    init = lambda key: init_affine(key, (784, 10), init="torch")  # noqa: E731
    return fl.models.from_functions(init, apply, raw_inputs=True)


def run_one(kind: str, images: Any, seed: int, num_rounds: int) -> dict[str, Any]:
    """One run: test accuracy every 20 rounds, and the clients' sizes."""
    owner = power_law(images["y"], seed)
    test = held_out(owner, seed)
    mine = (owner >= 0) & ~test
    pixels = images["x"].reshape(-1, 784)
    model = regression(kind, pixels.mean(0, dtype="f8"), pixels.std(0, dtype="f8"))
    data = fl.data.from_arrays({name: leaf[mine] for name, leaf in images.items()}, owner[mine])
    algo = fl.fedavg(
        model.loss, optax.sgd(RATE), plan=fl.Plan(BATCH_SIZE), sampler=fl.uniform(COHORT)
    )
    key = jax.random.key(seed)
    scored = fl.evaluator(model, {name: leaf[test] for name, leaf in images.items()})
    _, history = fl.run(
        algo, key, algo.init(key, model.init(key), data), data, num_rounds=num_rounds, every=20,
        evaluate=scored, progress=False,
    )  # fmt: skip
    sizes = np.asarray(data.sizes)
    return {
        "curve": [round(row["test_accuracy"], 5) for row in history if "test_accuracy" in row],
        "num_train": int(mine.sum()),
        "num_test": int(test.sum()),
        "sizes": [int(sizes.min()), int(np.median(sizes)), int(sizes.max())],
    }


def main(flags: Flags) -> list[dict[str, Any]]:
    """Runs what is missing, prints the table and returns its rows."""
    seeds, num_rounds = choose(flags)
    path = flags.output_dir / "results.json"
    runs = [] if flags.overwrite else earlier(path, num_rounds)
    parts = fl.data.load("mnist", data_dir=flags.data_dir)
    images = {name: np.concatenate([np.asarray(p[name]) for p in parts]) for name in ("x", "y")}
    flags.output_dir.mkdir(parents=True, exist_ok=True)
    for kind in flags.models:
        for seed in seeds:
            if any((run["model"], run["seed"]) == (kind, seed) for run in runs):
                continue
            began = time.perf_counter()
            run = {"model": kind, "seed": seed, **run_one(kind, images, seed, num_rounds)}
            runs.append({**run, "seconds": round(time.perf_counter() - began, 1)})
            print(f"{kind}, seed {seed}: {run['curve'][-1]:.2%}", flush=True)
            settings = {"num_rounds": num_rounds}
            record = {"versions": versions(), "settings": settings, "rows": summarise(runs)}
            save_json_atomic(path, {**record, "runs": runs})
    rows = summarise(runs)
    for row in rows:
        known = "-" if row["published"] is None else f"about {row['published']:.0f}"
        spread = "" if row["std"] is None else f" +- {100 * row['std']:.1f}"
        print(f"{row['model']}: {100 * row['mean']:.1f}{spread} %, published {known}")
    return rows


def choose(flags: Flags) -> tuple[tuple[int, ...], int]:
    """Seeds and rounds of the preset, or what the flags say; raises where a model is unknown."""
    if unknown := set(flags.models) - set(MODELS):
        raise ValueError(f"--models must be among {MODELS}, got {sorted(unknown)}")
    seeds, num_rounds = PRESETS[chosen_preset(flags)]
    return flags.seeds or seeds, flags.num_rounds or num_rounds


def earlier(path: Path, num_rounds: int) -> list[dict[str, Any]]:
    """The runs of an earlier call of as many rounds; raises where it had others."""
    if not path.exists():
        return []
    saved = json.loads(path.read_text())
    if saved["settings"]["num_rounds"] != num_rounds:
        raise FileExistsError(
            f"{path} holds runs of {saved['settings']['num_rounds']} rounds; --overwrite replaces "
            "them, or give another --output-dir"
        )
    return saved["runs"]


def summarise(runs: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """A row for each model: accuracies by seed after the last round, and the published one."""
    rows = []
    for kind in (kind for kind in MODELS if any(run["model"] == kind for run in runs)):
        mine = sorted((run for run in runs if run["model"] == kind), key=lambda run: run["seed"])
        values = [run["curve"][-1] for run in mine]
        rows.append(
            {
                "model": kind,
                "accuracy": values,
                "mean": statistics.fmean(values),
                "std": statistics.stdev(values) if len(values) > 1 else None,
                "seeds": [run["seed"] for run in mine],
                "published": PUBLISHED.get(kind),
            }
        )
    return rows


if __name__ == "__main__":
    script(main, Flags, __doc__)
