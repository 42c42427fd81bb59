"""AFL and q-FFL on three kinds of Fashion-MNIST, one a client: accuracy of each, as published.

    python experiments/afl_fashion.py                   # as published
    python experiments/afl_fashion.py --preset short    # minutes
    python experiments/afl_fashion.py --smoke           # seconds

T-shirts, pullovers and shirts, 6,000 images each to train on and 1,000 to test, are three clients;
softmax regression on pixels standardised over all ten kinds (`--scaling`). Shirts are the hardest.

Two papers have numbers of it. Li et al. 2020 (q-FFL, arXiv:1905.10497), whose code is public, take
one gradient a client and round over all of its images, 6,000 rounds: q-FedSGD of q 0 and 15, and
AFL, whose model is the average over rounds. Mohri et al. 2019 (AFL, arXiv:1902.00146) have Adagrad
on small batches, for the uniform mixture and for the worst; neither rates nor batches are public.
Here a batch of 100 is a client of its own, one of each kind comes in a round, and kinds are AFL's
`groups`, so its mixture moves by the losses of the batches; rates are chosen in one run by 1,000
images of each kind kept from training, for the mean accuracy (uniform) or the worst (AFL), and the
chosen ones train on all. Seeds draw starts and batches. Prints the tables; writes results.json.
"""

from __future__ import annotations

import dataclasses
import functools
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, Literal, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from shared.flags import with_labels
from shared.script import script
from shared.smoke import chosen_preset
from tables.published import figures

import fedjax_lite as fl
from fedjax_lite.run.files import save_json_atomic
from fedjax_lite.run.settings import versions

KINDS = {"t-shirt": 0, "pullover": 2, "shirt": 6}
"""Labels of Fashion-MNIST."""
FIGURES = ("average", "shirt", "pullover", "t-shirt")


class Preset(NamedTuple):
    """How long, and how often."""

    num_rounds: int
    """Of the methods on whole gradients."""
    num_steps: int
    """Of those on batches."""
    num_seeds: int


PRESETS = {
    "published": Preset(6_000, 10_000, 5),
    "short": Preset(600, 2_000, 2),
    "smoke": Preset(2, 2, 2),
}
QS = (0.0, 15.0)
RATES, MIXTURE_RATES = (0.001, 0.01, 0.1), (0.001, 0.01, 0.1)
"""Of Adagrad, and of the mixture beside it."""


@dataclasses.dataclass(frozen=True)
class DataFlags:
    """Images."""

    data_dir: Path | None = None
    """Folder of Fashion-MNIST (else FEDJAX_LITE_DATA, the cache)."""
    scaling: Literal["standard", "unit"] = "standard"
    """Each pixel less its mean over its deviation, as q-FFL's code has it; or all in [0, 1]."""
    batch_size: int = 100
    """Images of a batch that is a client, for Adagrad; a divisor of 1,000."""


@dataclasses.dataclass(frozen=True)
class TrainingFlags:
    """Which methods, and rates of those on whole gradients."""

    gradients: Literal["both", "batches", "whole"] = "both"
    """Methods by what their gradients are of: Adagrad's batches, or all images."""
    learning_rate: float = 0.001
    """Rate of q-FedSGD and of AFL's model."""
    mixture_rate: float = 0.01
    """Rate of AFL's mixture."""


@dataclasses.dataclass(frozen=True)
class RunFlags:
    """Preset, and where results go."""

    preset: Literal["published", "short", "smoke"] = "published"
    """How long and how many seeds."""
    output_dir: Path = Path("outputs/afl_fashion")
    """Where results.json goes."""
    overwrite: bool = False
    """Replace the results of an earlier run."""
    smoke: bool = False
    """As `--preset smoke`: seconds; it needs the data."""


@dataclasses.dataclass(frozen=True)
class Flags(DataFlags, TrainingFlags, RunFlags):
    """Images, methods, files."""


Examples = dict[str, jax.Array]
"""``x`` `[E, 784]`, ``y`` `[E]` in the order of `KINDS`, sorted by kind."""
Rates = dict[str, Any]
"""A point of a grid, by name."""


class Models(NamedTuple):
    """Of all seeds, `[S, ...]`."""

    mean: Any
    """The average over rounds where it is AFL, whose guarantee is of that."""
    last: Any


def main(flags: Flags) -> dict[str, Any]:
    """Runs the methods, prints and writes their figures."""
    preset = PRESETS[chosen_preset(flags)]
    target = flags.output_dir / "results.json"
    if target.exists() and not flags.overwrite:
        raise FileExistsError(f"{target} is there from an earlier run; give --overwrite")
    began = time.perf_counter()
    train, test = load(flags)
    rows = []
    families = {"batches": (batched,), "whole": (whole,), "both": (batched, whole)}
    for family in families[flags.gradients]:
        for method, (models, rates) in family(train, flags, preset).items():
            last = {"last": accuracies(models.last, test)}
            rows.append({"method": method, **rates, **accuracies(models.mean, test), **last})
            print(line(rows[-1]), flush=True)
    results = {
        "rows": rows,
        "settings": {
            "preset": chosen_preset(flags), **preset._asdict(),
            **{k: getattr(flags, k) for k in ("scaling", "batch_size", "gradients",
                                              "learning_rate", "mixture_rate")},
        },
        "seconds": round(time.perf_counter() - began, 1),
        "versions": versions(),
    }  # fmt: skip
    tell(rows)
    flags.output_dir.mkdir(parents=True, exist_ok=True)
    save_json_atomic(target, results)
    return results


def load(flags: Flags) -> tuple[Examples, Examples]:
    """The three kinds; means and deviations of pixels are those of all training images."""
    parts = [with_labels(part) for part in fl.data.load("fashion_mnist", data_dir=flags.data_dir)]
    flat = [np.asarray(p["x"]).reshape(len(p["y"]), -1).astype(np.float32) for p in parts]
    if flags.scaling == "standard":
        shift, scale = flat[0].mean(0), flat[0].std(0) + 1e-3
    else:
        shift, scale = 0.0, 255.0
    found = []
    for part, x in zip(parts, flat, strict=True):
        label = np.asarray(part["y"])
        rows = np.concatenate([np.flatnonzero(label == kind) for kind in KINDS.values()])
        y = np.searchsorted(list(KINDS.values()), label[rows]).astype(np.int32)
        scaled = ((x[rows] - shift) / scale).astype(np.float32)
        found.append({"x": jnp.asarray(scaled), "y": jnp.asarray(y)})
    return found[0], found[1]


def model() -> fl.models.Model:
    """Softmax regression from Glorot's start."""
    return fl.models.linear(len(KINDS), (784,), init="glorot")


def whole(train: Examples, flags: Flags, preset: Preset) -> dict[str, tuple[Models, Rates]]:
    """One gradient of all images a client and round."""
    data = fl.data.from_arrays(train, np.asarray(train["y"]))
    loss, rate, mixture_rate = model().loss, flags.learning_rate, flags.mixture_rate

    def q_fedsgd(rates: Rates) -> fl.FederatedAlgorithm:
        return fl.q_fedsgd(loss, rate, q=rates["q"], sampler=fl.everyone())

    def afl(rates: Rates) -> fl.FederatedAlgorithm:
        plan, sgd = fl.Plan(batch_size=None, steps=1), optax.sgd(rates["learning_rate"])
        mixture_rate = rates["mixture_rate"]
        return fl.afl(loss, sgd, mixture_rate=mixture_rate, plan=plan, sampler=fl.everyone())

    found = {}
    plain = [{"learning_rate": rate, "q": q} for q in QS]
    for rates, models in zip(plain, rounds(q_fedsgd, plain, data, preset.num_rounds, preset)):
        found[f"q-FedSGD {rates['q']:g}"] = models, rates
    fair = {"learning_rate": rate, "mixture_rate": mixture_rate}
    (models,) = rounds(afl, [fair], data, preset.num_rounds, preset)
    return found | {"AFL": (models, fair)}


def batched(train: Examples, flags: Flags, preset: Preset) -> dict[str, tuple[Models, Rates]]:
    """Stochastic AFL: a batch of each kind a round; a mixture that does not move is uniform."""
    kept = np.arange(len(train["y"])) % 6 == 0  # of each kind, to choose the rates by
    some, rest = ({k: v[mask] for k, v in train.items()} for mask in (~kept, kept))

    def fitted(examples: Examples, grid: Sequence[Rates], preset: Preset) -> list[Models]:
        data, kinds = batches(examples, flags.batch_size)

        def make(rates: Rates) -> fl.FederatedAlgorithm:
            return fl.afl(
                model().loss,
                optax.sgd(1.0),
                mixture_rate=rates["mixture_rate"],
                groups=kinds,
                plan=fl.Plan(batch_size=None, steps=1),
                sampler=fl.selection.stratified(kinds, 1),
                server_optimizer=optax.adagrad(rates["learning_rate"]),
            )

        return rounds(make, grid, data, preset.num_steps, preset)

    grid = [
        {"learning_rate": rate, "mixture_rate": mixture_rate}
        for rate in RATES
        for mixture_rate in (0.0, *MIXTURE_RATES)
    ]
    first = preset._replace(num_seeds=1)
    scores = [accuracies(models.mean, rest) for models in fitted(some, grid, first)]

    def chosen(uniform: bool) -> Rates:
        """By the mean accuracy, or by the worst kind's."""
        kinds = [["average"], list(KINDS)][not uniform]
        worth = [
            np.mean(np.min([score[k] for k in kinds], axis=0))
            if uniform == (rates["mixture_rate"] == 0)
            else -1.0
            for rates, score in zip(grid, scores, strict=True)
        ]
        return grid[int(np.argmax(worth))]

    best = [chosen(uniform=True), chosen(uniform=False)]
    models = fitted(train, best, preset)
    return dict(zip(("uniform, Adagrad", "AFL, Adagrad"), zip(models, best), strict=True))


def batches(examples: Examples, batch_size: int) -> tuple[fl.data.FederatedDataset, np.ndarray]:
    """Every batch is a client; and the kind of each."""
    y = np.asarray(examples["y"])
    owners = np.arange(len(y)) // batch_size
    kinds = y[::batch_size]
    if len(y) % batch_size or (y != kinds[owners]).any():
        raise ValueError(f"--batch-size must divide 1000, got {batch_size}; 100")
    return fl.data.from_arrays(examples, owners, num_clients=len(kinds)), kinds


def rounds(
    make: Callable[[Rates], fl.FederatedAlgorithm],
    grid: Sequence[Rates],
    data: fl.data.FederatedDataset,
    count: int,
    preset: Preset,
) -> list[Models]:
    """Models at every point of the grid; all points and seeds are one vmapped program."""

    def run(rates: Rates, seed: jax.Array, data: Any) -> Models:
        algo, key = make(rates), jax.random.key(seed)
        state = algo.init(key, model().init(key), data)
        state, _ = jax.lax.scan(
            lambda s, _: (algo.round(key, s, data)[0], None), state, None, length=count
        )
        mean = getattr(state.server, "mean_params", state.server.params)
        return Models(mean, state.server.params)

    over_seeds = jax.vmap(run, (None, 0, None))
    points = {name: jnp.array([rates[name] for rates in grid]) for name in grid[0]}
    seeds = jnp.arange(preset.num_seeds)
    found = jax.jit(jax.vmap(over_seeds, (0, None, None)))(points, seeds, data)
    return [jax.tree.map(lambda x, i=i: x[i], found) for i in range(len(grid))]


@functools.partial(jax.jit, static_argnums=0)
def _right(predict: Callable[..., jax.Array], params: Any, test: Examples) -> jax.Array:
    return jax.vmap(lambda p: predict(p, {"x": test["x"]}).argmax(-1) == test["y"])(params)


def accuracies(params: Any, test: Examples) -> dict[str, list[float]]:
    """Per cent of all and of each kind, by seed."""
    right, y = np.asarray(_right(model().predict, params, test)), np.asarray(test["y"])
    found = {"average": right.mean(1)}
    found |= {kind: right[:, y == place].mean(1) for place, kind in enumerate(KINDS)}
    return {name: (100 * values).round(3).tolist() for name, values in found.items()}


def line(row: dict[str, Any]) -> str:
    """A row of the table: means and deviations over seeds."""
    cells = [f"{np.mean(row[k]):8.1f} +- {np.std(row[k], ddof=1):4.1f}" for k in FIGURES]
    rates = [row[k] for k in ("learning_rate", "mixture_rate") if k in row]
    return f"{row['method']:20s}" + "".join(cells) + f"   rates {rates}"


def tell(rows: Sequence[dict[str, Any]]) -> None:
    """Ours beside the published figures."""
    known = figures("qffl_fashion") | figures("afl_fashion")
    print(f"\n{'':20s}" + "".join(f"{name:>16s}" for name in FIGURES))
    for row in rows:
        print(line(row))
        there = known[row["method"]]
        cells = [f"{there[k]:8.1f} +- {there['deviation'][k]:4.1f}" for k in FIGURES]
        print(f"{'published':20s}" + "".join(cells))


if __name__ == "__main__":
    script(main, Flags, __doc__)
