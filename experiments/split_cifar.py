"""CIFAR-10 over a cut network: accuracy, bytes and what activations tell, by where it is cut.

    python experiments/split_cifar.py                    # an hour on two CPU cores
    python experiments/split_cifar.py --preset short     # ten minutes
    python experiments/split_cifar.py --smoke            # half a minute

A network of two convolutions and two dense layers is cut behind its first, second or third layer:
the clients have what is before the cut, the server the rest (Gupta, Raskar 2018, arXiv:1810.06060).
SplitFed 1 and 2 (Thapa et al. 2020, arXiv:2004.12088) average the clients' halves; in turn, one
half is handed on. Every activation, gradient, label and half of a network is counted.

Beside each: FedAvg of the whole network, with as many bytes on the wire, and with as many FLOPs at
the clients (by XLA's count of a training step), on the same clients and batches; how alike to the
image, in dB, is what a server that knows the client's half gets back from an activation
(He et al. 2019), without noise and with; and, were the last layer with the clients, too, so that
labels stay (a U), how well a server that knows one example of a class tells the class by the
directions of the gradients that go up (Li et al. 2021, arXiv:2102.08504).

The four ways to learn are compared with as many training steps each: federated (FedAvg), split,
centralised (every image is uploaded once, clients compute nothing) and edge (each client alone,
nothing is sent; the mean of its models' accuracies on the same test images). Writes results.json
and cuts.png.
"""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any, Literal

import jax
import jax.numpy as jnp
import numpy as np
import optax
from shared.script import script
from shared.smoke import chosen_preset, shrunk
from split_cifar_figure import plot

import fedjax_lite as fl
from fedjax_lite import trees
from fedjax_lite.algorithms import client_models
from fedjax_lite.attacks.leakage import invert_smashed, label_leakage, psnr
from fedjax_lite.models.layers import conv_layer, dense, init_affine
from fedjax_lite.parties import Part
from fedjax_lite.run.files import save_json_atomic

METHODS = ("splitfed 1", "splitfed 2", "in turn")
PRESETS: dict[str, dict[str, Any]] = {
    "full": {},
    "short": {
        "num_images": 3000,
        "num_clients": 30,
        "cohort_size": 6,
        "num_rounds": 20,
        "batch_size": 10,
        "num_test": 1000,
    },
    "smoke": {
        "num_images": 80,
        "num_clients": 4,
        "num_rounds": 2,
        "cohort_size": 2,
        "features": 2,
        "hidden": 8,
        "num_attacked": 2,
        "num_iterations": 5,
        "num_test": 40,
        "num_scored_alone": 10,
        "every": 1,
        "cuts": (2,),
        "methods": ("splitfed 1",),
    },
}


@dataclasses.dataclass(frozen=True)
class DataFlags:
    """Images and clients."""

    data_dir: Path | None = None
    """Folder of CIFAR-10 (else FEDJAX_LITE_DATA, the cache, network)."""
    num_images: int = 10000
    """Training images that are dealt, at random."""
    num_test: int = 2000
    """Test images that are scored."""
    num_scored_alone: int = 500
    """Of them, those on which each client's own model is scored."""
    num_clients: int = 100
    """Clients in the population."""
    alpha: float = 0.5
    """Concentration of the Dirichlet partition; smaller is more skewed."""


@dataclasses.dataclass(frozen=True)
class TrainingFlags:
    """The network, where it is cut, and rounds."""

    features: int = 16
    """Channels of the first convolution; the second has twice as many."""
    hidden: int = 64
    """Units of the dense layer before the last."""
    cuts: tuple[int, ...] = (1, 2, 3)
    """Layers at the clients, each in a run of its own."""
    methods: tuple[str, ...] = METHODS
    """What is run at each cut."""
    num_rounds: int = 100
    """Rounds of each run."""
    cohort_size: int = 10
    """Clients in a round."""
    batch_size: int = 20
    """Examples in a local step; a round is one pass over a client's data."""
    learning_rate: float = 0.05
    """Learning rate of both halves."""
    every: int = 5
    """Rounds between evaluations."""


@dataclasses.dataclass(frozen=True)
class AttackFlags:
    """What an honest but curious server tries."""

    num_attacked: int = 8
    """Images that are reconstructed."""
    num_iterations: int = 1000
    """Iterations of the reconstruction."""
    noise: float = 0.5
    """Deviation of the noise on activations, in units of their own deviation."""


@dataclasses.dataclass(frozen=True)
class RunFlags:
    """Seed, and where results go."""

    preset: Literal["full", "short", "smoke"] = "full"
    """How much is run."""
    seed: int = 0
    """Seed of the deal, the parameters and batches."""
    output_dir: Path = Path("outputs/split_cifar")
    """Where results.json and cuts.png go."""
    overwrite: bool = False
    """Replace the results of an earlier run."""
    smoke: bool = False
    """As --preset smoke: half a minute, to see that everything works."""


@dataclasses.dataclass(frozen=True)
class Flags(DataFlags, TrainingFlags, AttackFlags, RunFlags):
    """CIFAR-10 over a cut network."""


def check(flags: Flags) -> Flags:
    """The flags of the preset, looked at before anything is loaded."""
    flags = shrunk(flags, **PRESETS[chosen_preset(flags)])
    if unknown := [name for name in flags.methods if name not in METHODS]:
        raise ValueError(f"--methods must be among {METHODS}, got {unknown}")
    if not flags.cuts or not all(1 <= at <= 3 for at in flags.cuts):
        raise ValueError(f"--cuts must be 1, 2 or 3 of the four layers, got {flags.cuts}")
    return flags


def main(flags: Flags) -> dict[str, Any]:
    """Trains at every cut and as a whole, attacks, prints and writes what came of it."""
    flags = check(flags)
    target = flags.output_dir / "results.json"
    if target.exists() and not flags.overwrite:
        raise FileExistsError(f"{target} is there from an earlier run; give --overwrite")
    data, test = problem(flags)
    key = jax.random.key(flags.seed)
    slots: Any = {"plan": fl.Plan(flags.batch_size), "sampler": fl.uniform(flags.cohort_size)}
    layers = network(flags)
    whole = fl.parties.cut_layers(layers, at=1).model
    params = whole.init(key)
    sgd = optax.sgd(flags.learning_rate)
    evaluate = fl.evaluator(whole, test)

    def run(algo: fl.FederatedAlgorithm, num_rounds: int = flags.num_rounds) -> Any:
        state, history = fl.run(
            algo, key, algo.init(key, params, data), data, num_rounds=num_rounds,
            every=flags.every, evaluate=evaluate, progress=False,
        )  # fmt: skip
        steps = sum(row["num_steps"] for row in history if row["round"])
        return state, curve_of(history), int(steps)

    flops = [training_flops(layers[:at], flags) for at in (*flags.cuts, len(layers))]
    rows, steps = [], 0
    for at, mine in zip(flags.cuts, flops, strict=False):
        cut = fl.parties.cut_layers(layers, at=at)
        before = attacked(cut, layers, params, test, flags)["psnr"]  # the same for every method
        for method in flags.methods:
            state, curve, steps = run(algorithm(method, cut, sgd, slots))
            row = {
                "method": method,
                "cut": at,
                "accuracy": curve[-1]["accuracy"],
                "megabytes": curve[-1]["megabytes"],
                "client_teraflops": steps * mine / 1e12,
                "client_flops_share": mine / flops[-1],
                "curve": curve,
                "psnr_before_training": before,
                **attacked(cut, layers, state.server.params, test, flags),
            }
            rows.append(row)
            print(
                f"cut {at} {method:11} accuracy {row['accuracy']:.3f}  "
                f"{row['megabytes']:8.1f} MB  client FLOPs {row['client_flops_share']:.2f}  "
                f"PSNR {row['psnr']:.1f} / {row['psnr_with_noise']:.1f} dB "
                f"({before:.1f} before training)  "
                f"AUC {row['label_auc']:.2f}",
                flush=True,
            )
    # As long as it takes to send as much as the cut network did that sent most.
    a_round = 2 * flags.cohort_size * trees.num_bits(params) / 8e6
    longest = flags.every * -(-max(row["megabytes"] for row in rows) // (a_round * flags.every))
    _, fedavg, _ = run(fl.fedavg(whole.loss, sgd, **slots), max(flags.num_rounds, int(longest)))
    for row in rows:
        budget = flags.num_rounds * row["client_flops_share"]
        row["fedavg_at_equal_bytes"] = reached(fedavg, "megabytes", row["megabytes"])
        row["fedavg_at_equal_flops"] = reached(fedavg, "round", budget)
    results = {
        "psnr_of_the_mean_image": guessed(data, test, flags),
        "ways": ways(flags, whole, run, data, test, fedavg, steps, flops[-1]),
        "fedavg": fedavg,
        "rows": rows,
        "flags": {k: str(v) for k, v in vars(flags).items()},
    }
    for way in results["ways"]:
        print(
            f"{way['way']:12} accuracy {way['accuracy']:.3f}  {way['megabytes']:8.1f} MB  "
            f"{way['client_teraflops']:.2f} TFLOP at clients"
        )
    flags.output_dir.mkdir(parents=True, exist_ok=True)
    save_json_atomic(target, results)
    plot(results, flags.output_dir / "cuts.png")
    return results


def ways(
    flags: Flags, whole: Any, run: Any, data: Any, test: Any, fedavg: Any, steps: int, flops: float
) -> list[dict[str, Any]]:
    """Federated, centralised and edge, with as many steps; what is sent, who computes."""
    sgd, here = optax.sgd(flags.learning_rate), fedavg[flags.num_rounds // flags.every - 1]
    plan = fl.Plan(flags.batch_size, steps=max(round(steps / flags.num_rounds), 1))
    _, centralised, _ = run(fl.centralised(whole.loss, sgd, plan=plan))
    # In every client's own time, as often as in the cohorts of the federation.
    alone = fl.local_only(
        whole.loss, sgd, plan=fl.Plan(flags.batch_size), sampler=fl.uniform(flags.cohort_size)
    )
    key = jax.random.key(flags.seed)
    state = alone.init(key, whole.init(key), data)
    state, history = fl.run(
        alone, key, state, data, num_rounds=flags.num_rounds, every=flags.num_rounds,
        progress=False,
    )  # fmt: skip
    some = {name: jnp.asarray(leaf[: flags.num_scored_alone]) for name, leaf in test.items()}

    @jax.jit
    def correct(models: Any) -> Any:
        one = lambda params: whole.predict(params, some).argmax(-1) == some["y"]  # noqa: E731
        return jax.lax.map(one, models).mean(1)

    each = np.asarray(correct(client_models(state)))
    their_steps = sum(row["num_steps"] for row in history if row["round"])
    uploaded = sum(leaf.nbytes for leaf in jax.tree.leaves(data.examples)) / 1e6
    return [
        {"way": "federated", "accuracy": here["accuracy"], "megabytes": here["megabytes"],
         "client_teraflops": steps * flops / 1e12},
        {"way": "centralised", "accuracy": centralised[-1]["accuracy"], "megabytes": uploaded,
         "client_teraflops": 0.0},
        {"way": "edge", "accuracy": float(each.mean()), "megabytes": 0.0,
         "client_teraflops": float(their_steps) * flops / 1e12, "deviation": float(each.std())},
    ]  # fmt: skip


def guessed(data: Any, test: Any, flags: Flags) -> float:
    """How alike, in dB, the attacked images are to the mean of the training images: no attack."""
    images = jnp.asarray(test["x"][: flags.num_attacked]) / 255
    mean = jnp.asarray(data.examples["x"]).mean(0) / 255
    return float(psnr(jnp.broadcast_to(mean, images.shape), images).mean())


def problem(flags: Flags) -> tuple[Any, dict[str, np.ndarray]]:
    """Clients, and test images."""
    train, test = fl.data.load("cifar10", data_dir=flags.data_dir)
    rng = np.random.default_rng(flags.seed)
    chosen = rng.permutation(len(train["y"]))[: flags.num_images]
    train = {name: np.asarray(train[name])[chosen] for name in ("x", "y")}
    dealt = fl.data.dirichlet(
        alpha=flags.alpha, num_clients=flags.num_clients, seed=flags.seed, min_size=1
    )
    return fl.data.partition(train, dealt), {
        name: np.asarray(test[name])[: flags.num_test] for name in ("x", "y")
    }


def network(flags: Flags) -> list[Part]:
    """Two convolutions, each with ReLU and pooling, and two dense layers."""
    size, width = flags.features, flags.hidden

    def convolution(channels: int, out: int) -> Part:
        def apply(params: Any, x: Any, key: Any) -> Any:
            return fl.models.max_pool(jax.nn.relu(conv_layer(params, x)))

        return Part(lambda key: init_affine(key, (3, 3, channels, out)), apply)

    def affine(inputs: int, out: int, *, last: bool = False) -> Part:
        def apply(params: Any, x: Any, key: Any) -> Any:
            h = dense(params, x.reshape(x.shape[0], -1))
            return h if last else jax.nn.relu(h)

        return Part(lambda key: init_affine(key, (inputs, out)), apply)

    return [
        convolution(3, size),
        convolution(size, 2 * size),
        affine(8 * 8 * 2 * size, width),
        affine(width, 10, last=True),
    ]


def algorithm(method: str, cut: Any, sgd: Any, slots: Any) -> fl.FederatedAlgorithm:
    """The method at a cut."""
    if method == "in turn":
        return fl.parties.split_learning(cut, sgd, **slots)
    return fl.parties.splitfed(cut, sgd, version=1 if method.endswith("1") else 2, **slots)


def curve_of(history: Any) -> list[dict[str, float]]:
    """Accuracy and traffic, both ways, of the rounds that were scored."""
    return [
        {
            "round": row["round"],
            "accuracy": row["test_accuracy"],
            "megabytes": (row["uplink_bits_total"] + row["downlink_bits_total"]) / 8e6,
        }
        for row in history
        if "test_accuracy" in row and row["round"]
    ]


def reached(curve: list[dict[str, float]], name: str, budget: float) -> float:
    """The accuracy of the last round within a budget; NaN where not one of them is."""
    within = [row["accuracy"] for row in curve if row[name] <= budget * (1 + 1e-9)]
    return within[-1] if within else float("nan")


def training_flops(layers: list[Part], flags: Flags) -> float:
    """FLOPs of forward and backward through some layers, of a batch, as XLA counts them."""
    params = jax.eval_shape(
        lambda key: tuple(layer.init(key) for layer in layers), jax.random.key(0)
    )

    def total(params: Any, x: Any) -> Any:
        for layer, mine in zip(layers, params, strict=True):
            x = layer.apply(mine, x, None)
        return (x**2).sum()

    x = jax.ShapeDtypeStruct((flags.batch_size, 32, 32, 3), jnp.float32)
    cost = jax.jit(jax.grad(total)).lower(params, x).compile().cost_analysis()
    return float((cost[0] if isinstance(cost, list) else cost or {})["flops"])


def attacked(
    cut: Any, layers: list[Part], params: Any, test: Any, flags: Flags
) -> dict[str, float]:
    """What the wire tells of images and, in a U, of one class, after training.

    In two parts labels go up beside the activations: nothing is left to be told by gradients.
    """
    key = jax.random.key(flags.seed + 1)
    some = {name: leaf[: flags.num_attacked] for name, leaf in test.items()}
    images = cut.inputs(jnp.asarray(some["x"]))
    quiet = fl.parties.wiretap(cut, params, some, key=key).activations
    noise = fl.gaussian_noise(flags.noise * float(jnp.std(quiet)))
    loud = fl.parties.wiretap(cut, params, some, key=key, uplink=noise).activations
    found = {}
    for name, smashed in (("psnr", quiet), ("psnr_with_noise", loud)):
        guess = invert_smashed(
            lambda x: cut.stages[0](params, x, None), smashed, input_shape=images.shape[1:],
            key=key, num_iterations=flags.num_iterations,
        )  # fmt: skip
        found[name] = float(psnr(guess.x, images).mean())
    all_of_them = {name: leaf[:256] for name, leaf in test.items()}
    u = fl.parties.cut_layers(layers, at=(1, 3))  # what goes up is the same wherever it begins
    upward = fl.parties.wiretap(u, params, all_of_them, key=key).upward
    wanted = int(np.bincount(all_of_them["y"]).argmax())
    told = label_leakage(upward, all_of_them["y"], positive=wanted)
    return {**found, "label_auc": told.direction_auc}


if __name__ == "__main__":
    script(main, Flags, __doc__)
