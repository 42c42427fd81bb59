"""Two scanners: half of the hospitals see the same things in another brightness and contrast.

    python experiments/scenes/two_scanners.py            # about two minutes on two cores
    python experiments/scenes/two_scanners.py --smoke    # seconds

Four hospitals of 300 MNIST images to train on and 300 to be scored on. Two have a second scanner,
of a third of the contrast and a lighter ground; as a control all four have the first one; and every
hospital's model is shown its images by a third scanner that nobody trained with. Two convolutions
without normalisation, with batch normalisation whose statistics are averaged, with statistics,
scale and bias that stay (FedBN), with group and with instance normalisation.
"""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import jax
import numpy as np
import optax

sys.path.append(str(Path(__file__).resolve().parents[1]))  # shared/ lies with the experiments
from shared.scene import Found, Part, SceneFlags, gain, seeds_of, tell, trained
from shared.script import script

import fedjax_lite as fl
from fedjax_lite.models import layers

NAME = "two_scanners"
CLAIM = (
    "a second scanner costs a shared model without normalisation, and one with averaged batch "
    "statistics, accuracy; FedBN, group and instance normalisation lose less to it; a third "
    "scanner, unseen, costs instance normalisation less than any other"
)
Flags = SceneFlags
HOSPITALS, WIDTHS = 4, (8, 16)
CONTRASTS, LIGHTS = (1.0, 0.35), (0.0, 0.3)
UNSEEN = (0.6, -0.15)
"""Contrast and brightness of the third scanner."""
COLUMNS = ("scanner 1", "scanner 2", "both", "one for all", "third, unseen")
NORMS = ("none", "averaged batch", "FedBN", "group", "instance")


def network(norm: str) -> fl.models.Model:
    """Two convolutions, each normalised as it is said."""
    statistics = {"averaged batch": "averaged", "FedBN": "local"}.get(norm)

    def normalised(params: Any, x: jax.Array, training: bool) -> jax.Array:
        if statistics is not None:
            return fl.models.batch_norm(params, x, training=training)
        if norm == "group":
            return layers.group_norm(params, x, num_groups=4)
        return layers.instance_norm(params, x) if norm == "instance" else x

    def init_norm(width: int) -> Any:
        if statistics is not None:
            return fl.models.init_batch_norm(width, statistics=statistics)  # type: ignore[arg-type]
        return {} if norm == "none" else layers.init_group_norm(width)

    def init(key: Any) -> Any:
        first, second, last = jax.random.split(key, 3)
        return {
            "conv1": layers.init_affine(first, (5, 5, 1, WIDTHS[0])),
            "norm1": init_norm(WIDTHS[0]),
            "conv2": layers.init_affine(second, (3, 3, *WIDTHS)),
            "norm2": init_norm(WIDTHS[1]),
            "head": layers.init_affine(last, (7 * 7 * WIDTHS[1], 10), init="lecun"),
        }

    def apply(params: Any, x: jax.Array, key: Any) -> jax.Array:
        training = key is not None
        x = layers.conv_layer(params["conv1"], x, strides=2)
        x = fl.models.max_pool(jax.nn.relu(normalised(params["norm1"], x, training)))
        x = layers.conv_layer(params["conv2"], x)
        x = jax.nn.relu(normalised(params["norm2"], x, training))
        return layers.dense(params["head"], x.reshape(len(x), -1))

    return fl.models.from_functions(init, apply, mean=(0.13,), std=(0.31,))


def method(norm: str, model: fl.models.Model) -> fl.FederatedAlgorithm:
    """FedAvg, and FedBN where statistics stay."""
    same: dict[str, Any] = {"plan": fl.Plan(20, epochs=2), "sampler": fl.everyone()}
    sgd = optax.sgd(0.05)
    if norm == "FedBN":
        return fl.fedbn(model.loss, sgd, **same)
    with_batches = norm == "averaged batch"
    return fl.fedavg(model.loss, fl.models.with_statistics(sgd) if with_batches else sgd, **same)


def hospitals(
    images: dict[str, np.ndarray], seed: int, contrasts: Any, lights: Any
) -> tuple[Any, Any]:
    """Train and test part of each; who has which scanner is dealt by the seed."""
    skews = (fl.data.contrast(contrasts, seed=seed), fl.data.brightness(lights, seed=seed))
    dealt = fl.data.iid(num_clients=HOSPITALS, seed=seed)
    return fl.data.split_clients(fl.data.partition(images, dealt, *skews), 0.5, seed=seed)


def measure(flags: SceneFlags) -> Found:
    """Accuracy by scanner, of the model that a hospital uses."""
    whole, _ = fl.data.load("mnist", data_dir=flags.data_dir)
    num_images, num_rounds = (800, 2) if flags.smoke else (2400, 15)
    models = {norm: network(norm) for norm in NORMS}
    methods = {norm: method(norm, model) for norm, model in models.items()}
    rows: dict[str, list[list[float]]] = {norm: [] for norm in NORMS}
    for seed in seeds_of(flags):
        chosen = np.random.default_rng(seed).permutation(len(whole["y"]))[:num_images]
        images = {name: np.asarray(whole[name])[chosen] for name in ("x", "y")}
        two, test = hospitals(images, seed, CONTRASTS, LIGHTS)
        one, test_one = hospitals(images, seed, CONTRASTS[:1], LIGHTS[:1])
        third = hospitals(images, seed, UNSEEN[:1], UNSEEN[1:])[1]
        second = fl.data.dealt_groups(HOSPITALS, 2, seed=seed) == 1
        for norm, algo in methods.items():
            params = models[norm].init(jax.random.key(seed))
            states = [trained(algo, params, data, num_rounds, seed) for data in (two, one)]

            def scored(state: Any, data: Any, norm: str = norm) -> np.ndarray:
                return fl.evaluate_clients(models[norm], state, data)["accuracy"]

            each, control = scored(states[0], test), scored(states[1], test_one)
            unseen = scored(states[0], third)
            by_scanner = [each[~second].mean(), each[second].mean(), each.mean()]
            rows[norm].append([*map(float, by_scanner), control.mean(), unseen.mean()])
    found = {norm: np.array(values) for norm, values in rows.items()}
    return Found(COLUMNS, found, verdict(found), "test accuracy")


def verdict(found: dict[str, np.ndarray]) -> list[Part]:
    """The claim in parts, from figures `[S, columns]`."""
    lost = {norm: each[:, 3] - each[:, 2] for norm, each in found.items()}
    none, averaged = "none", "averaged batch"
    parts = []
    for norm, said in ((none, "no normalisation"), (averaged, "averaged batch norm")):
        loss = gain(lost[norm], np.zeros_like(lost[norm]))
        told = loss.told(100, 1).removeprefix("+")
        parts.append(Part(f"{said} loses {told} points to the second scanner", loss.sure))
    for norm in ("FedBN", "group", "instance"):
        less = [gain(lost[other], lost[norm]) for other in (none, averaged)]
        parts.append(
            Part(
                f"{norm} loses {100 * lost[norm].mean():.1f}: less than none by "
                f"{less[0].told(100, 1)}, than averaged batch norm by {less[1].told(100, 1)}",
                all(one.sure for one in less),
            )
        )
    unseen = {norm: each[:, 2] - each[:, 4] for norm, each in found.items()}
    told = ", ".join(f"{norm} {100 * loss.mean():.1f}" for norm, loss in unseen.items())
    least = all(
        gain(loss, unseen["instance"]).sure for norm, loss in unseen.items() if norm != "instance"
    )
    parts.append(Part(f"points lost to a third, unseen: {told}; instance surely the least", least))
    return parts


def main(flags: SceneFlags) -> dict:
    """Tells the scene."""
    return tell(NAME, CLAIM, measure, flags)


if __name__ == "__main__":
    script(main, Flags, __doc__)
