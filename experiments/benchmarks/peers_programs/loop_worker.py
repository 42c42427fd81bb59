"""FedAvg as FedJAX runs it: a Python loop over clients and batches around jitted steps.

A client is one jitted call to begin, one a batch, and one to end, as FedJAX's ``for_each_client``
with its jit backend; batches are numpy arrays that come from a permutation of the client's data,
the last one short. Every size of batch is compiled before rounds are timed. The variant is the form
of the convolutions; `peers.py` tries both and keeps the faster, and gives the loop our models.
"""

import functools
import itertools

import jax
import jax_models
import numpy as np
import optax
from worker_protocol import begin, serve

task, answers = begin()
jax_models.set_precision(task.dtype)
model = jax_models.build(task.net, form=task.variant)
optimizer = optax.sgd(task.learning_rate)
x, y = task.array("x"), task.array("y")
offsets = task.array("offsets").tolist()
schedule = itertools.cycle(task.array("cohorts").tolist())
rng = np.random.default_rng(0)
has_dropout = bool(task.net["conv_dropout"] or task.net["dense_dropout"])
params = jax_models.unflatten(task.weights())
round_key = jax.random.key(task.seed)


@jax.jit
def begin_client(params, key):
    """The client's own copy."""
    # Copied: jit would hand the server's own buffers through, and a step donates them.
    params = jax.tree.map(jax.numpy.copy, params)
    return params, optimizer.init(params), key


@functools.partial(jax.jit, donate_argnums=0)
def step(carry, x, y):
    """One batch."""
    params, state, key = carry
    key, use = jax.random.split(key)

    def mean_loss(params):
        return model.loss(params, {"x": x, "y": y}, use if has_dropout else None).mean()

    updates, state = optimizer.update(jax.grad(mean_loss)(params), state, params)
    return optax.apply_updates(params, updates), state, key


@functools.partial(jax.jit, donate_argnums=1)
def add_client(params, total, carry, weight):
    """Adds the client's weighted update to the sum."""
    return jax.tree.map(lambda t, new, old: t + weight * (new - old), total, carry[0], params)


@jax.jit
def zeros(params):
    """The sum before the first client."""
    return jax.tree.map(jax.numpy.zeros_like, params)


@jax.jit
def apply(params, total, weight):
    """The server's step with rate 1."""
    return jax.tree.map(lambda p, t: p + t / weight, params, total)


def run_rounds(number: int) -> None:
    """Trains that many further rounds."""
    global params, round_key
    for _ in range(number):
        round_key, *keys = jax.random.split(round_key, 1 + task.array("cohorts").shape[1])
        total, all_weights = zeros(params), 0.0
        for client, key in zip(next(schedule), keys):
            low, high = offsets[client], offsets[client + 1]
            size = task.batch_size or high - low
            carry = begin_client(params, key)
            for _ in range(task.epochs):
                order = low + rng.permutation(high - low)
                for start in range(0, high - low, size):
                    rows = order[start : start + size]
                    carry = step(carry, x[rows], y[rows])
            weight = 1.0 if task.weighting == "uniform" else float(high - low)
            total = add_client(params, total, carry, weight)
            all_weights += weight
        params = apply(params, total, all_weights)
    jax.block_until_ready(params)


def compile_all_sizes() -> None:
    """Runs a step of every size of batch that some client has, so that none is compiled later."""
    if task.batch_size is None:
        return
    sizes = {n % task.batch_size for n in np.diff(offsets).tolist()} - {0}
    for size in sizes:
        step(begin_client(params, round_key), x[:size], y[:size])


serve(
    answers,
    run_rounds,
    lambda: jax_models.flatten(params),
    ("jax", "jaxlib", "optax", "numpy"),
    warm_up=compile_all_sizes,
)
