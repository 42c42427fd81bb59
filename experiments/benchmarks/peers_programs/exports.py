"""The four workloads, and what is written down of them for all systems alike.

A folder holds ``x.npy`` (uint8 `[E, H, W, channels]`, for the systems on JAX), ``x_float.npy`` (the
same scaled and standardised, float32 `[E, channels, H, W]`, so that PyTorch converts nothing while
it is timed), ``y.npy``, ``offsets.npy`` `[N + 1]` (examples lie client by client), ``cohorts.npy``
`[R, C]` (who trains in which round), ``weights.npz`` (the initial model) and ``task.json``.
"""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Any, Literal

import jax
import jax.numpy as jnp
import numpy as np
from workloads import WORKLOADS, Workload

import fedjax_lite as fl
from fedjax_lite.engine.round_keys import ROUND_STREAM
from fedjax_lite.models.inputs import as_floats
from peers_programs import jax_models

SEED = 0
"""Of the run's key, which draws the initial model and the cohorts."""
NUM_AGREEMENT_CLIENTS = 6
AGREEMENT_EPOCHS = 3


@dataclasses.dataclass(frozen=True)
class Net:
    """Convolutions with ReLU (VALID, stride 1), dense layers with ReLU, logits."""

    input_shape: tuple[int, int, int]
    features: tuple[int, ...] = ()
    pool_after: tuple[bool, ...] = ()
    kernel_size: int = 0
    hidden: tuple[int, ...] = ()
    conv_dropout: float = 0.0
    dense_dropout: float = 0.0
    sigmoid_outputs: bool = False
    num_classes: int = 10
    init: str = "he"
    mean: tuple[float, ...] | None = None
    std: tuple[float, ...] | None = None


@dataclasses.dataclass(frozen=True)
class Setting:
    """A workload of this comparison: one of `workloads.Workload`, described for every system."""

    workload: Workload
    net: Net
    source: str
    """The data set, by its name in `fl.data.load`."""
    rounds_per_turn: int
    epochs: int = 1
    max_repeats: int = 99
    """Turns at most: one of LeNet's takes minutes."""

    def smoke(self) -> Setting:
        """20 clients of 12 examples in the mean, 2 rounds a turn."""
        return dataclasses.replace(self, workload=self.workload.smoke(), rounds_per_turn=2)


PIXELS: dict[str, Any] = {"input_shape": (32, 32, 3), "mean": (0.5,) * 3}
LENET = Net(
    **PIXELS,
    std=(0.5,) * 3,
    features=(6, 16),
    pool_after=(True, True),
    kernel_size=5,
    hidden=(120, 84),
    init="torch",
)

SETTINGS = {
    "pfl-cnn": Setting(
        workload=WORKLOADS["pfl-cnn"],
        net=Net(
            **PIXELS,
            std=(0.29,) * 3,
            features=(32, 64),
            pool_after=(False, True),
            kernel_size=3,
            hidden=(128,),
            conv_dropout=0.25,
            dense_dropout=0.5,
            init="glorot",
        ),
        source="cifar10",
        rounds_per_turn=1,
    ),
    "logreg": Setting(
        workload=WORKLOADS["logreg"],
        net=Net(input_shape=(28, 28, 1), sigmoid_outputs=True, init="zeros"),
        source="mnist",
        rounds_per_turn=50,
    ),
    "lenet": Setting(
        # BlazeFL's: 80 % of 500 images a client are trained on, and all clients take part.
        workload=Workload(
            summary="LeNet on CIFAR-10, 100 clients x 400, all in every round, B 50, E 5",
            model=lambda: fl.models.lenet(mean=LENET.mean, std=LENET.std),
            image_shape=(32, 32, 3),
            layer_macs=(),
            num_clients=100,
            num_examples=40_000,
            deal=lambda n: fl.data.iid(num_clients=n, seed=0),
            cohort_size=100,
            num_rounds=1,
            strategies=(),
            batch_size=50,
        ),
        net=LENET,
        source="cifar10",
        rounds_per_turn=1,
        epochs=5,
        max_repeats=3,
    ),
    "lognormal": Setting(
        workload=WORKLOADS["lognormal"],
        net=Net(input_shape=(28, 28, 1), hidden=(200, 200)),
        source="mnist",
        rounds_per_turn=3,
    ),
}


def examples_of(setting: Setting) -> tuple[dict[str, np.ndarray], str]:
    """As many examples as the workload has, and where they are from.

    The data set's training and then its test examples; random ones of the same shape where it is
    not at hand.
    """
    number = setting.workload.num_examples
    try:
        splits = fl.data.load(setting.source, download=False)
    except fl.data.DatasetNotFoundError:
        rng = np.random.default_rng(SEED)
        shape = (number, *setting.workload.image_shape)
        x = rng.integers(0, 256, shape, dtype=np.uint8)
        return {"x": x, "y": rng.integers(0, 10, number, dtype=np.int32)}, "random"
    parts = [{name: part[name] for name in ("x", "y")} for part in splits]
    if number <= len(parts[0]["y"]):
        parts = parts[:1]
    found = {name: np.concatenate([part[name] for part in parts])[:number] for name in ("x", "y")}
    if len(found["y"]) < number:
        raise ValueError(f"{setting.source} has {len(found['y'])} examples, {number} are needed")
    return found, setting.source


def cohorts_of(workload: Workload, num_clients: int, num_rounds: int) -> np.ndarray:
    """The clients `[R, C]` that our own rounds draw; `ours_worker` checks that it is so."""
    sampler, sizes = fl.uniform(workload.cohort_size), jnp.zeros(num_clients)
    key = jax.random.key(SEED)

    @jax.jit
    def one(number: jax.Array) -> jax.Array:
        key_round = jax.random.fold_in(jax.random.fold_in(key, ROUND_STREAM), number)
        return sampler.sample(jax.random.split(key_round, 4)[0], (), sizes)[1].ids

    return np.stack([np.asarray(one(jnp.int32(number))) for number in range(num_rounds)])


def write(
    folder: Path,
    setting: Setting,
    *,
    num_rounds: int,
    num_threads: int,
    purpose: Literal["time", "agree"] = "time",
) -> dict[str, Any]:
    """Writes a workload down.

    Args:
      folder: made here.
      setting: the workload.
      num_rounds: length of the schedule of cohorts.
      num_threads: cores that every system may use.
      purpose: "agree" makes the order of a client's examples irrelevant, so that all systems must
        reach the same model: the first few clients, all in every round, a batch of a client's whole
        data, several epochs, no dropout. In float64 and on random pixels: where values are equal in
        a pooled window, as in the flat areas of photographs, the maximum has no one gradient
        (PyTorch takes the first, ours shares), and in float32 rounding decides between almost
        equal ones; either changes a gradient by up to a hundredth. Pixels are scaled already, in
        ``x.npy`` as in ``x_float.npy``: compilers round the scaling of uint8 in float32 each in
        its own way, and 1e-7 of a pixel moves a maximum to another place now and then.

    Returns:
      What was written to ``task.json``.
    """
    folder.mkdir(parents=True)
    examples, source = examples_of(setting)
    workload, net = setting.workload, setting.net
    data = fl.data.partition(examples, workload.deal(workload.num_clients))
    order, offsets = np.asarray(data.order), np.asarray(data.offsets)
    if data.order is None:
        order = np.arange(len(examples["y"]))
    batch_size, epochs = workload.batch_size, setting.epochs
    cohort_size = workload.cohort_size
    if purpose == "agree":
        offsets = offsets[: NUM_AGREEMENT_CLIENTS + 1]
        net = dataclasses.replace(net, conv_dropout=0.0, dense_dropout=0.0)
        batch_size, epochs, cohort_size = None, AGREEMENT_EPOCHS, len(offsets) - 1
    num_clients, dtype = len(offsets) - 1, "float64" if purpose == "agree" else "float32"
    workload = dataclasses.replace(workload, cohort_size=cohort_size)
    order = order[: offsets[-1]]
    x = examples["x"][order]
    if purpose == "agree":
        x = np.random.default_rng(SEED).random(x.shape)
        x = (x - np.array(net.mean or 0.0)) / np.array(net.std or 1.0)
        net = dataclasses.replace(net, mean=None, std=None)
        floats = x
    else:
        floats = np.asarray(as_floats(jnp.asarray(x), mean=net.mean, std=net.std))
    np.save(folder / "x.npy", x)
    np.save(folder / "x_float.npy", np.ascontiguousarray(floats.transpose(0, 3, 1, 2)))
    np.save(folder / "y.npy", examples["y"][order].astype(np.int32))
    np.save(folder / "offsets.npy", offsets)
    np.save(folder / "cohorts.npy", cohorts_of(workload, num_clients, num_rounds))
    task = {
        "net": dataclasses.asdict(net),
        "batch_size": batch_size,
        "epochs": epochs,
        "learning_rate": workload.learning_rate,
        "weighting": workload.weighting,
        "num_threads": num_threads,
        "seed": SEED,
        "data": source,
        "dtype": dtype,
    }
    params = jax.jit(jax_models.build(task["net"]).init)(jax.random.key(SEED))
    weights = {name: leaf.astype(dtype) for name, leaf in jax_models.flatten(params).items()}
    np.savez(folder / "weights.npz", **weights)  # pyright: ignore[reportArgumentType]
    (folder / "task.json").write_text(json.dumps(task), encoding="utf-8")
    return task
