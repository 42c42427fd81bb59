"""PFNM's first experiment: networks of ten clients, trained apart on MNIST, matched into one.

    python experiments/pfnm_mnist.py                       # short: minutes on two CPU cores
    python experiments/pfnm_mnist.py --preset published    # five seeds of all images, ten epochs
    python experiments/pfnm_mnist.py --smoke               # seconds

Yurochkin et al. (2019), arXiv:1905.12022, whose results are plots. Settings are those of the
command for MNIST of the authors' code (github.com/IBM/probabilistic-federated-neural-matching): ten
networks 784-100-10 from starts of their own (weights of deviation 0.1, biases 0.1), batches of 32,
ten epochs of AMSGrad at rate 0.01, 1e-6 / 2 times the squared weights in the loss. "homo" deals
images at random, "hetero" by a balanced Dirichlet(0.5) of at least 10 images. Networks are sent
once.

They are scored on all test images: each alone (the mean), the mean of their probabilities, the mean
of their weights, and matched, sigma, its prior's and gamma 1, with what each network knows of each
class (`class_counts`, as the authors' code has it) and without. Rows are added to results.json:
what it holds is not run again.
"""

from __future__ import annotations

import dataclasses
import itertools
import json
from pathlib import Path
from typing import Any, Literal, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from shared.script import script
from shared.smoke import chosen_preset

import fedjax_lite as fl
from fedjax_lite.run.files import save_json_atomic
from fedjax_lite.run.settings import versions
from fedjax_lite.types import Array, Key, Params

DEALS = ("homo", "hetero")
ALPHA, LEAST, SPREAD, BIAS = 0.5, 10, 0.1, 0.1
"""Of the Dirichlet deal, and its least images a client; where weights and biases start."""
MATCHING: dict[str, float] = {"sigma": 1.0, "prior_sigma": 1.0, "gamma": 1.0}
PASSES = 6
"""Over the networks: theirs makes one and then five more."""


class Setting(NamedTuple):
    """What a preset fixes; 0 images are all."""

    num_images: int
    epochs: int
    hidden: int
    num_seeds: int


PRESETS = {
    "short": Setting(12_000, 20, 100, 1),
    "published": Setting(0, 10, 100, 5),
    "smoke": Setting(400, 1, 8, 1),
}


@dataclasses.dataclass(frozen=True)
class DataFlags:
    """Images and clients."""

    data_dir: Path | None = None
    """Folder of MNIST (else FEDJAX_LITE_DATA, the cache, /usr/share/datasets, network)."""
    deals: tuple[str, ...] = DEALS
    """How images are dealt: homo (at random), hetero (Dirichlet by labels)."""
    num_clients: int = 10
    """Clients, each with a network."""


@dataclasses.dataclass(frozen=True)
class TrainingFlags:
    """Local training."""

    epochs: int = 0
    """Passes of a client over its images; 0: the preset's."""
    batch_size: int = 32
    """Images in a local step."""
    learning_rate: float = 0.01
    """Learning rate of AMSGrad."""
    weight_penalty: float = 1e-6
    """Twice the factor of the squared weights in the loss."""


@dataclasses.dataclass(frozen=True)
class RunFlags:
    """Preset, seeds, and where results go."""

    preset: Literal["short", "published", "smoke"] = "short"
    """short: a fifth of the images; published: the authors' command; smoke: seconds."""
    smoke: bool = False
    """The same as --preset smoke."""
    num_seeds: int = 0
    """Seeds 0, 1 ... of the deal, the starts and the batches; 0: the preset's."""
    output_dir: Path = Path("outputs/pfnm_mnist")
    """Where results.json goes."""
    overwrite: bool = False
    """Replace the results of an earlier run."""


@dataclasses.dataclass(frozen=True)
class Flags(DataFlags, TrainingFlags, RunFlags):
    """MNIST, networks trained apart, and their matching."""


def main(flags: Flags) -> list[dict[str, Any]]:
    """Trains and matches what results.json has no rows of, prints and writes; returns all rows."""
    if unknown := sorted(set(flags.deals) - set(DEALS)):
        raise ValueError(f"--deals must be among {DEALS}, got {unknown}; e.g. --deals hetero")
    setting = PRESETS[chosen_preset(flags)]
    setting = setting._replace(
        epochs=flags.epochs or setting.epochs, num_seeds=flags.num_seeds or setting.num_seeds
    )
    used = {
        **setting._asdict(), "num_clients": flags.num_clients, "batch_size": flags.batch_size,
        "learning_rate": flags.learning_rate, "weight_penalty": flags.weight_penalty,
    }  # fmt: skip
    del used["num_seeds"]
    target = flags.output_dir / "results.json"
    rows: list[dict[str, Any]] = []
    if target.exists() and not flags.overwrite:
        old = json.loads(target.read_text())
        if old["settings"] != used:
            raise FileExistsError(
                f"{target} is of other settings, {old['settings']}; give --overwrite or another "
                "--output-dir"
            )
        rows = old["rows"]
    train, test = fl.data.load("mnist", data_dir=flags.data_dir)
    for seed in range(setting.num_seeds):
        for deal in flags.deals:
            if not any(row["deal"] == deal and row["seed"] == seed for row in rows):
                data = dealt(train, deal, seed, setting.num_images, flags.num_clients)
                models = trained_apart(data, seed, setting, flags)
                found = scores(models, class_counts(data), test)
                rows += [{"deal": deal, "seed": seed, **row} for row in found]
                flags.output_dir.mkdir(parents=True, exist_ok=True)
                save_json_atomic(target, {"versions": versions(), "settings": used, "rows": rows})
    for row in rows:
        print(line(row))
    return rows


def dealt(
    train: Any, deal: str, seed: int, num_images: int, num_clients: int
) -> fl.data.FederatedDataset:
    """The clients' images; a part of all that is drawn at random where not all are asked for."""
    examples = {name: np.asarray(train[name]) for name in ("x", "y")}
    if num_images:
        chosen = np.random.default_rng(seed).permutation(len(examples["y"]))[:num_images]
        examples = {name: leaf[chosen] for name, leaf in examples.items()}
    if deal == "homo":
        return fl.data.partition(examples, fl.data.iid(num_clients=num_clients, seed=seed))
    by_labels = fl.data.dirichlet(
        alpha=ALPHA, num_clients=num_clients, seed=seed, min_size=LEAST, balanced=True
    )
    return fl.data.partition(examples, by_labels)


def class_counts(data: fl.data.FederatedDataset) -> np.ndarray:
    """`[C, 10]`: images of each digit of each client."""
    y, order, ends = (np.asarray(leaf) for leaf in (data.examples["y"], data.order, data.offsets))
    return np.stack([np.bincount(y[order[a:b]], minlength=10) for a, b in itertools.pairwise(ends)])


def trained_apart(
    data: fl.data.FederatedDataset, seed: int, setting: Setting, flags: Flags
) -> list[Params]:
    """The clients' networks after their epochs, each from a start of its own."""
    net = fl.models.mlp((setting.hidden,), num_classes=10, input_shape=(28, 28, 1))

    def init(key: Key) -> Params:
        shapes = jax.eval_shape(net.init, key)
        keys = iter(jax.random.split(key, 2))
        return {
            name: {
                "kernel": SPREAD * jax.random.normal(next(keys), layer["kernel"].shape),
                "bias": jnp.full(layer["bias"].shape, BIAS),
            }
            for name, layer in shapes.items()
        }

    def loss(params: Params, examples: Any, key: Key) -> Array:
        squares = sum(jnp.sum(leaf**2) for leaf in jax.tree.leaves(params))
        return net.loss(params, examples, key) + flags.weight_penalty / 2 * squares

    algo = fl.local_only(
        loss, amsgrad(flags.learning_rate), plan=fl.Plan(flags.batch_size, epochs=setting.epochs)
    )
    key = jax.random.key(seed)
    state = algo.init(key, init(key), data)
    starts = fl.several_models(init, key, data.num_clients)
    state = state._replace(clients=state.clients._replace(params=starts))
    state, _ = jax.jit(algo.round)(key, state, data)
    models = jax.tree.map(np.asarray, fl.algorithms.client_models(state))
    return [jax.tree.map(lambda leaf: leaf[i], models) for i in range(data.num_clients)]  # noqa: B023


class Moments(NamedTuple):
    """AMSGrad's state."""

    count: Array
    mean: Params
    square: Params
    most: Params


def amsgrad(rate: float) -> optax.GradientTransformation:
    """As PyTorch has it: the maximum is of what is not yet corrected for its start at 0.

    ``optax.amsgrad`` takes that of the corrected second moments, whose first ones are the largest.
    """

    def init(params: Params) -> Moments:
        zero = jax.tree.map(jnp.zeros_like, params)
        return Moments(jnp.int32(0), zero, zero, zero)

    def update(grad: Params, state: Moments, params: Any = None) -> tuple[Params, Moments]:
        count = state.count + 1
        mean = jax.tree.map(lambda m, g: 0.9 * m + 0.1 * g, state.mean, grad)
        square = jax.tree.map(lambda v, g: 0.999 * v + 0.001 * g * g, state.square, grad)
        most = jax.tree.map(jnp.maximum, state.most, square)
        first, second = 1 - 0.9**count, jnp.sqrt(1 - 0.999**count)
        move = jax.tree.map(
            lambda m, v: -rate * m / first / (jnp.sqrt(v) / second + 1e-8), mean, most
        )
        return move, Moments(count, mean, square, most)

    return optax.GradientTransformation(init, update)


def scores(models: list[Params], counts: np.ndarray, test: Any) -> list[dict[str, Any]]:
    """Accuracy on the test images and hidden units of each way to make use of the networks."""
    width = models[0]["head"]["kernel"].shape[0]
    net = fl.models.mlp((width,), num_classes=10, input_shape=(28, 28, 1))
    truth = np.asarray(test["y"])
    predict = jax.jit(net.predict)

    def share(answers: Any) -> float:
        return float((np.asarray(answers).argmax(-1) == truth).mean())

    logits = [predict(model, test) for model in models]
    sizes = counts.sum(1)
    mean = jax.tree.map(lambda *leaves: np.average(leaves, 0, sizes).astype(np.float32), *models)
    plain = fl.matching.pfnm(models, weights=sizes, iterations=PASSES, **MATCHING)
    matched = fl.matching.pfnm(
        models, class_counts=counts, prior_bias=BIAS, iterations=PASSES, **MATCHING
    )
    found = {
        "local": (float(np.mean([share(one) for one in logits])), width),
        "ensemble": (share(sum(jax.nn.softmax(one) for one in logits)), width * len(models)),
        "mean of weights": (share(predict(mean, test)), width),
        "PFNM, all weights alike": (share(predict(plain, test)), len(plain["head"]["kernel"])),
        "PFNM": (share(predict(matched, test)), len(matched["head"]["kernel"])),
    }
    return [{"method": name, "accuracy": a, "units": units} for name, (a, units) in found.items()]


def line(row: dict[str, Any]) -> str:
    """A row in words."""
    return (
        f"{row['deal']:7} seed {row['seed']} {row['method']:24} {100 * row['accuracy']:.2f} %, "
        f"{row['units']} units"
    )


if __name__ == "__main__":
    script(main, Flags, __doc__)
