"""A world small enough to call every public function in it: two lines a kind of argument."""

import functools
import tempfile
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import optax

import fedjax_lite as fl
from fedjax_lite.models.batch_norm import init_batch_norm

KEY = jax.random.key(0)
SGD = optax.sgd(0.1)
PLAN = fl.Plan(batch_size=2, epochs=1)
SIZES = (2, 3, 2, 1, 2, 2)
LABELS = np.arange(12) % 3
OWNERS = np.repeat(np.arange(6), SIZES)
EXAMPLES = {"x": np.linspace(-1, 1, 48, dtype=np.float32).reshape(12, 4), "y": LABELS}
IMAGES = {"x": np.arange(12 * 48, dtype=np.uint8).reshape(12, 4, 4, 3), "y": LABELS}
SIGNED = {**IMAGES, "sign": np.linspace(-1, 1, 12)}
"""With labels that are floats, too."""
DATA = fl.data.from_arrays(EXAMPLES, OWNERS)
MODEL = fl.models.linear(3, (4,))
PARAMS = MODEL.init(KEY)
LORA = fl.models.lora(MODEL, PARAMS, rank=1)
FEDAVG = fl.fedavg(MODEL.loss, SGD, plan=PLAN, sampler=fl.uniform(2))
MESH = fl.client_mesh(jax.devices()[:1])
HISTORY = [{"round": r, "test_accuracy": 0.1 * r, "test_loss": 1.0 / r} for r in (1, 2, 3)]
PARAMS_OF_ONE = jnp.zeros(2)
BATCH = fl.Batch({k: jnp.asarray(v[:4]) for k, v in EXAMPLES.items()}, jnp.ones(4, bool), KEY)
SHARES = fl.crypto.split_array(np.arange(3), num_shares=3, threshold=2)
TRIGGER = fl.attacks.patch_trigger(1, value=1.0)
BN = init_batch_norm(4, statistics="averaged")


@functools.cache
def state():
    """Of FedAvg, before its first round."""
    return FEDAVG.init(KEY, PARAMS, DATA)


@functools.cache
def personal_state():
    """Of clients that train alone."""
    algo = fl.local_only(MODEL.loss, SGD, plan=PLAN, sampler=fl.uniform(2))
    return algo.init(KEY, PARAMS, DATA)


@functools.cache
def personal_models():
    """Of those clients."""
    return fl.algorithms.client_models(personal_state())


@functools.cache
def local_leaves_state():
    """Of clients whose bias is their own."""
    algo = fl.local_leaves(
        fl.local_sgd(MODEL.loss, SGD),
        is_local=lambda p: {k: k == "b" for k in p},
        plan=PLAN,
        sampler=fl.uniform(2),
        server=fl.optimizer_server(optax.sgd(1.0)),
    )
    return algo.init(KEY, {"w": PARAMS_OF_ONE, "b": PARAMS_OF_ONE}, DATA)


@functools.cache
def frozen_state():
    """Of clients that train the biases."""
    algo = fl.frozen_leaves(
        MODEL.loss,
        SGD,
        is_frozen=lambda p: jax.tree.map(lambda leaf: leaf.ndim == 2, p),
        plan=PLAN,
        sampler=fl.uniform(2),
    )
    return algo.init(KEY, PARAMS, DATA)


@functools.cache
def folder() -> Path:
    """A place for files, away from everything."""
    return Path(tempfile.mkdtemp(prefix="fuzz"))


def new_folder() -> Path:
    """One that does not exist yet."""
    return Path(tempfile.mkdtemp(dir=folder())) / "new"


@functools.cache
def streamed() -> Path:
    """A population on disk."""
    return fl.data.write_streamed(new_folder(), [([2, 1], {"x": np.zeros((3, 4), np.float32)})])


@functools.cache
def saved_run() -> Path:
    """A folder that a run wrote."""
    folder = new_folder()
    fl.run(FEDAVG, KEY, state(), DATA, num_rounds=1, output_dir=folder, progress=False)
    return folder


def run_of(name: str = "a") -> fl.report.Run:
    """A run as a report reads it."""
    return fl.report.Run(name, HISTORY, {"seed": 0, "learning_rate": 0.1})


def make(**hyper):
    """An algorithm of a sweep."""
    rate = hyper.get("learning_rate", 0.1)
    return fl.fedavg(MODEL.loss, optax.sgd(rate), plan=PLAN, sampler=fl.uniform(2))
