"""FedGAN on MNIST: both networks averaged, the generator alone, and one with DP at discriminators.

    python experiments/gan_mnist.py            # meant for an accelerator; an hour on two CPU cores
    python experiments/gan_mnist.py --smoke    # seconds

Clients hold few classes each (label Dirichlet). A DCGAN in the library's convolutions is trained by
`fl.fedgan` as in Rasouli et al. (2020), arXiv:2006.07228; samples are scored by the hidden features
of a small classifier that is trained here on the same images (so figures compare within this table
only): Frechet distance, precision and recall, the classes that it sees in them, and the coverage of
each client. Grids of samples are written while a run goes on. Prints and writes results.json.
"""

from __future__ import annotations

import dataclasses
import itertools
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from shared.script import script
from shared.smoke import shrunk

import fedjax_lite as fl
from fedjax_lite.run.files import save_json_atomic
from fedjax_lite.run.settings import versions

CLASSES = 10


@dataclasses.dataclass(frozen=True)
class DataFlags:
    """Images and clients."""

    data_dir: Path | None = None
    """Folder of MNIST (else FEDJAX_LITE_DATA, the cache, /usr/share/datasets, network)."""
    num_images: int = 20000
    """Training images that are dealt, at random."""
    num_clients: int = 10
    """Clients that share the images."""
    alpha: float = 0.3
    """Dirichlet concentration of the classes: small is uneven."""


@dataclasses.dataclass(frozen=True)
class TrainingFlags:
    """Rounds and local training."""

    num_rounds: int = 100
    """Rounds of each run, all clients in each."""
    steps: int = 20
    """Local steps a round, of both networks in turns."""
    batch_size: int = 64
    """Examples in a local step."""
    learning_rate: float = 2e-4
    """Learning rate of Adam, of both networks."""
    latent_size: int = 64
    """Normal numbers that an image is made of."""
    features: int = 64
    """Channels of the widest convolution; the other has half of them."""
    clip: float = 1.0
    """Of single examples' gradients of the private run's discriminators."""
    noise_multiplier: float = 1.0
    """Noise on their sum, in clips."""
    all_ways: bool = True
    """Also the generator alone, and the private discriminator; else both networks only."""
    num_samples: int = 1000
    """Images that are scored, of each kind."""


@dataclasses.dataclass(frozen=True)
class RunFlags:
    """Seed, and where results go."""

    seed: int = 0
    """Seed of the deal, the parameters and batches."""
    output_dir: Path = Path("outputs/gan_mnist")
    """Where results.json and the grids go."""
    overwrite: bool = False
    """Replace the results of an earlier run."""
    smoke: bool = False
    """A run of seconds, to see that everything works."""


@dataclasses.dataclass(frozen=True)
class Flags(DataFlags, TrainingFlags, RunFlags):
    """MNIST and the methods."""


def main(flags: Flags) -> dict[str, Any]:
    """Trains each way, prints and writes what samples are worth."""
    if flags.smoke:
        flags = shrunk(
            flags, num_images=300, num_clients=3, num_rounds=1, steps=1, batch_size=8,
            latent_size=4, features=4, num_samples=40, all_ways=False,
        )  # fmt: skip
    target = flags.output_dir / "results.json"
    if target.exists() and not flags.overwrite:
        raise FileExistsError(f"{target} is there from an earlier run; give --overwrite")
    images, _ = fl.data.load("mnist", data_dir=flags.data_dir)
    chosen = np.random.default_rng(flags.seed).permutation(len(images["y"]))[: flags.num_images]
    images = {name: np.asarray(leaf)[chosen] for name, leaf in images.items()}
    dealt = fl.data.dirichlet(
        alpha=flags.alpha, num_clients=flags.num_clients, seed=flags.seed, min_size=1
    )
    data = fl.data.partition(images, dealt)
    judge = Judge(flags, images)
    pair = fl.models.dcgan(
        (28, 28, 1), latent_size=flags.latent_size, features=(flags.features, flags.features // 2)
    )
    ways: dict[str, dict[str, Any]] = {"both networks": {}}
    if flags.all_ways:
        private = {"clip": flags.clip, "noise_multiplier": flags.noise_multiplier}
        ways |= {"generator alone": {"share": "generator"}, "private discriminator": private}
    counts = classes_of(data)
    given = {k: str(v) for k, v in vars(flags).items()}
    results: dict[str, Any] = {"flags": given, "runs": {}, "versions": versions()}
    for name, options in ways.items():
        results["runs"][name] = trained(flags, pair, data, judge, counts, name, options)
        shown = {k: round(v, 3) for k, v in results["runs"][name].items() if isinstance(v, float)}
        print(f"{name:22} {shown}")
    results["real images beside others"] = judge.scores(judge.features(images["x"][-judge.size :]))
    flags.output_dir.mkdir(parents=True, exist_ok=True)
    save_json_atomic(target, results)
    return results


class Judge:
    """A classifier of the same images, by whose hidden units samples are compared."""

    def __init__(self, flags: Flags, images: dict[str, np.ndarray]) -> None:
        self.size = flags.num_samples
        self.model = fl.models.mlp((64,), num_classes=CLASSES, input_shape=(28, 28, 1))
        whole = fl.data.partition(images, fl.data.iid(num_clients=1, seed=0))
        epochs = 1 if flags.smoke else 10
        plan = fl.Plan(batch_size=50, epochs=epochs)
        algo = fl.centralised(self.model.loss, optax.adam(1e-3), plan=plan)
        key = jax.random.key(flags.seed)
        state, _ = algo.round(key, algo.init(key, self.model.init(key), whole), whole)
        self.params = state.server.params
        self.real = self.features(images["x"][: self.size])

    def features(self, x: Any) -> np.ndarray:
        """The logits of images, uint8 or in [-1, 1], float64 `[n, 10]`."""
        x = np.asarray(x)
        if x.dtype != np.uint8:
            x = np.round(np.clip((x + 1) * 127.5, 0, 255)).astype(np.uint8)
        examples = {"x": jnp.asarray(x), "y": jnp.zeros(len(x), jnp.int32)}
        return np.asarray(self.model.predict(self.params, examples), np.float64)

    def scores(self, features: np.ndarray) -> dict[str, Any]:
        """Distances to real images, and the shares of the classes that are seen."""
        precision, recall = fl.generation.precision_recall(self.real, features)
        shares = np.bincount(features.argmax(-1), minlength=CLASSES) / len(features)
        return {
            "frechet": fl.generation.frechet_distance(self.real, features),
            "precision": precision,
            "recall": recall,
            "class_shares": shares.tolist(),
        }


def classes_of(data: fl.data.FederatedDataset) -> np.ndarray:
    """Images of each client by class, `[N, 10]`."""
    order = np.arange(data.num_examples) if data.order is None else np.asarray(data.order)
    labels, ends = np.asarray(data.examples["y"])[order], np.asarray(data.offsets)
    parts = [labels[a:b] for a, b in itertools.pairwise(ends)]
    return np.stack([np.bincount(part, minlength=CLASSES) for part in parts])


def trained(
    flags: Flags, pair: fl.models.Gan, data: Any, judge: Judge, counts: np.ndarray, name: str,
    options: dict[str, Any],
) -> dict[str, Any]:  # fmt: skip
    """One run and what its samples are worth."""
    adam = optax.adam(flags.learning_rate, b1=0.5)
    plan = fl.Plan(batch_size=flags.batch_size, steps=flags.steps)
    algo = fl.fedgan(pair, adam, adam, plan=plan, sampler=fl.everyone(), **options)
    key = jax.random.key(flags.seed)
    grids = fl.report.sample_grids(pair, key, flags.output_dir / name.replace(" ", "_"))
    state, history = fl.run(
        algo, key, algo.init(key, pair.init(key), data), data, num_rounds=flags.num_rounds,
        every=max(flags.num_rounds // 10, 1), evaluate=grids, progress=False,
    )  # fmt: skip
    made = pair.sample(state.server.params, jax.random.key(flags.seed + 1), flags.num_samples)
    found = judge.scores(judge.features(made))
    coverage = fl.generation.client_coverage(found["class_shares"], counts)
    row: dict[str, Any] = {
        **found,
        "client_coverage": coverage.tolist(),
        "worst_coverage": float(np.nanmin(coverage)),
        "mean_coverage": float(np.nanmean(coverage)),
        "discriminator_loss": float(history[-1]["discriminator_loss"]),
    }
    if options.get("noise_multiplier"):
        row["epsilons"] = [
            fl.privacy.dp_sgd_epsilon(
                noise_multiplier=flags.noise_multiplier, delta=1e-5, steps=flags.steps,
                num_rounds=flags.num_rounds, size=int(size), batch_size=flags.batch_size,
            )
            for size in counts.sum(1)
        ]  # fmt: skip
    return row


if __name__ == "__main__":
    script(main, Flags, __doc__)
