"""Rotated MNIST: four models that clients choose from (IFCA), one for all, and one each.

    python experiments/clusters_mnist.py            # under two minutes on two CPU cores
    python experiments/clusters_mnist.py --smoke    # seconds

Images are dealt to clients evenly and every client's are turned by 0, 90, 180 or 270 degrees, as
many clients by each; the network has one hidden layer of 200, as in Ghosh et al. (2020),
arXiv:2006.04088, who have 1,200 to 4,800 clients and 60,000 images. Each client is scored on its
own held-out images, turned alike. IFCA starts from several keys, since a start may be unlucky, and
the run of the least training loss counts. Prints accuracies and purity; writes results.json and
clusters.png: the share of the clients in each cluster by round, and the accuracies.
"""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import jax
import numpy as np
import optax
from shared.script import script
from shared.smoke import shrunk

import fedjax_lite as fl
from fedjax_lite.run.files import save_json_atomic

ANGLES = (0, 90, 180, 270)


@dataclasses.dataclass(frozen=True)
class DataFlags:
    """Images and clients."""

    data_dir: Path | None = None
    """Folder of MNIST (else FEDJAX_LITE_DATA, the cache, /usr/share/datasets, network)."""
    num_images: int = 6000
    """Training images that are dealt, at random."""
    num_clients: int = 40
    """Clients; a quarter of them for each angle."""


@dataclasses.dataclass(frozen=True)
class TrainingFlags:
    """Rounds and local training."""

    num_rounds: int = 20
    """Rounds of each run, all clients in each."""
    epochs: int = 2
    """Passes over a client's data in a round."""
    batch_size: int = 20
    """Examples in a local step."""
    learning_rate: float = 0.1
    """Client learning rate."""
    hidden: int = 200
    """Units of the hidden layer."""
    starts: int = 3
    """Keys that IFCA starts from; the run of the least training loss counts."""


@dataclasses.dataclass(frozen=True)
class RunFlags:
    """Seed, and where results go."""

    seed: int = 0
    """Seed of the deal, the angles, the parameters and batches."""
    output_dir: Path = Path("outputs/clusters_mnist")
    """Where results.json and clusters.png go."""
    overwrite: bool = False
    """Replace the results of an earlier run."""
    smoke: bool = False
    """A run of seconds, to see that everything works."""


@dataclasses.dataclass(frozen=True)
class Flags(DataFlags, TrainingFlags, RunFlags):
    """Rotated MNIST and the methods."""


def main(flags: Flags) -> dict[str, Any]:
    """Runs the three methods, prints and writes what they gave."""
    if flags.smoke:
        flags = shrunk(flags, num_images=400, num_clients=8, num_rounds=2, hidden=16, starts=2)
    target = flags.output_dir / "results.json"
    if target.exists() and not flags.overwrite:
        raise FileExistsError(f"{target} is there from an earlier run; give --overwrite")
    train, test, groups = problem(flags)
    model = fl.models.mlp((flags.hidden,), num_classes=10, input_shape=(28, 28, 1))
    sgd = optax.sgd(flags.learning_rate)
    slots: dict[str, Any] = {
        "plan": fl.Plan(flags.batch_size, epochs=flags.epochs), "sampler": fl.everyone()
    }  # fmt: skip
    key = jax.random.key(flags.seed)
    evaluate = fl.client_evaluator(model, test)

    def run(algo: fl.FederatedAlgorithm, params: Any, key: Any = key) -> Any:
        state = algo.init(key, params, train)
        return fl.run(
            algo, key, state, train, num_rounds=flags.num_rounds, evaluate=evaluate,
            every=flags.num_rounds, progress=False,
        )  # fmt: skip

    several = fl.ifca(model.loss, sgd, num_clusters=len(ANGLES), **slots)
    runs = [
        run(several, fl.several_models(model.init, start, len(ANGLES)))
        for start in jax.random.split(key, flags.starts)
    ]
    state, history = min(runs, key=lambda done: done[1][-1]["train_loss"])
    names = [f"cluster_{k}" for k in range(len(ANGLES))]
    shares = [[row[name] for name in names] for row in history if names[0] in row]
    found = fl.cluster_assignments(state)
    accuracies = {
        "IFCA": mean_accuracy(history),
        "FedAvg": mean_accuracy(run(fl.fedavg(model.loss, sgd, **slots), model.init(key))[1]),
        "local only": mean_accuracy(
            run(fl.local_only(model.loss, sgd, plan=slots["plan"]), model.init(key))[1]
        ),
    }
    results = {
        "accuracies": accuracies,
        "purity": fl.cluster_purity(found, groups),
        "purities_of_starts": [
            fl.cluster_purity(fl.cluster_assignments(one[0]), groups) for one in runs
        ],
        "assignments": found.tolist(),
        "groups": groups.tolist(),
        "shares": shares,
        "flags": {k: str(v) for k, v in vars(flags).items()},
    }
    flags.output_dir.mkdir(parents=True, exist_ok=True)
    save_json_atomic(target, results)
    plot(results, flags.output_dir / "clusters.png")
    for name, accuracy in accuracies.items():
        print(f"{name:12} {accuracy:.4f}")
    print(f"purity {results['purity']:.3f}, of each start {results['purities_of_starts']}")
    return results


def problem(flags: Flags) -> tuple[Any, Any, np.ndarray]:
    """Train and test part of every client, and the number of its angle."""
    examples, _ = fl.data.load("mnist", data_dir=flags.data_dir)
    chosen = np.random.default_rng(flags.seed).permutation(len(examples["y"]))[: flags.num_images]
    examples = {name: np.asarray(leaf)[chosen] for name, leaf in examples.items()}
    dealt = fl.data.iid(num_clients=flags.num_clients, seed=flags.seed)
    data = fl.data.partition(examples, dealt, fl.data.rotation(ANGLES, seed=flags.seed))
    groups = fl.data.dealt_groups(flags.num_clients, len(ANGLES), seed=flags.seed)
    return *fl.data.split_clients(data, 0.25, seed=flags.seed), groups


def mean_accuracy(history: Any) -> float:
    """Over clients, each on its own images, with the model that it uses."""
    return float(history[-1]["test_accuracy_mean"])


def plot(results: dict[str, Any], path: Path) -> None:
    """Shares of the clusters by round, and accuracies side by side."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(9, 3.5), layout="constrained")
    left, right = figure.subplots(1, 2)
    shares = np.array(results["shares"])
    rounds = np.arange(1, len(shares) + 1)
    left.stackplot(rounds, shares.T, labels=[f"cluster {k}" for k in range(shares.shape[1])])
    left.set(xlabel="round", ylabel="share of the clients", xlim=(1, len(shares)), ylim=(0, 1))
    left.xaxis.get_major_locator().set_params(integer=True)
    left.legend(loc="lower right")
    left.set_title(f"IFCA, purity {results['purity']:.2f}")
    bars = right.bar(list(results["accuracies"]), list(results["accuracies"].values()))
    right.bar_label(bars, fmt="%.3f")
    right.set(ylabel="mean accuracy of the clients", ylim=(0, 1.08))
    figure.savefig(path, dpi=120)


if __name__ == "__main__":
    script(main, Flags, __doc__)
