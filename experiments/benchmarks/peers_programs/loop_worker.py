"""FedAvg by a Python loop over clients and batches around jitted steps.

A client is one jitted call to begin, one a batch, and one to end; batches are numpy arrays that
come from a permutation of the client's data, the last one short, and every size of batch is
compiled before rounds are timed. The loop has our models. The variant is the form of the
convolutions and how cores are used: none said, one device whose operations XLA splits over the
cores; "-cores", a device a core, clients dealt to the least loaded, steps of all devices dispatched
in turn without waiting; "-threads", the same with a Python thread a device. `peers.py` tries them
and keeps the fastest.
"""

import functools
import itertools
from concurrent.futures import ThreadPoolExecutor

import jax
import jax_models
import numpy as np
import optax
from worker_protocol import begin, deal, serve

task, answers = begin()
form, _, way = task.variant.partition("-")
if way:
    jax.config.update("jax_num_cpu_devices", task.num_threads)
jax_models.set_precision(task.dtype)
devices = jax.devices()
model = jax_models.build(task.net, form=form)
optimizer = optax.sgd(task.learning_rate)
x, y = task.array("x"), task.array("y")
offsets = task.array("offsets").tolist()
schedule = itertools.cycle(task.array("cohorts").tolist())
rng = np.random.default_rng(0)
has_dropout = bool(task.net["conv_dropout"] or task.net["dense_dropout"])
params = jax_models.unflatten(task.weights())
if way:  # as after every round, so that no later one compiles again
    params = jax.device_put(params, devices[0])
round_key = jax.random.key(task.seed)
pool = ThreadPoolExecutor(len(devices))


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
def apply(params, totals, weight):
    """The server's step with rate 1."""
    total = jax.tree.map(lambda *parts: sum(parts), *totals)
    return jax.tree.map(lambda p, t: p + t / weight, params, total)


def weight_of(client: int) -> float:
    """Its share of the mean before it is divided by all."""
    return 1.0 if task.weighting == "uniform" else float(offsets[client + 1] - offsets[client])


def work(params, clients, permutations):
    """Dispatches one step of a device's clients at a time; its value is the device's sum."""
    total = zeros(params)
    for client, key in clients:
        low, high = offsets[client], offsets[client + 1]
        size = task.batch_size or high - low
        carry = begin_client(params, key)
        for _ in range(task.epochs):
            order = low + permutations.permutation(high - low)
            for start in range(0, high - low, size):
                rows = order[start : start + size]
                carry = step(carry, x[rows], y[rows])
                yield
        total = add_client(params, total, carry, weight_of(client))
    return total


def finish(steps):
    """The value of `work` after all of its steps."""
    while True:
        try:
            next(steps)
        except StopIteration as stop:
            return stop.value


def in_turn(works):
    """The values of several `work`, a step of each in turn."""
    totals, running = [None] * len(works), dict(enumerate(works))
    while running:
        for place in list(running):
            try:
                next(running[place])
            except StopIteration as stop:
                totals[place] = stop.value
                del running[place]
    return totals


def run_rounds(number: int) -> None:
    """Trains that many further rounds."""
    global params, round_key
    for _ in range(number):
        round_key, *keys = jax.random.split(round_key, 1 + task.array("cohorts").shape[1])
        cohort = list(zip(next(schedule), keys))
        loads = [offsets[client + 1] - offsets[client] for client, _ in cohort]
        works = []
        for device, places in zip(devices, deal(loads, len(devices))):
            clients = [cohort[place] for place in places]
            here = jax.device_put(params, device) if way else params
            works.append(work(here, clients, np.random.default_rng(rng.integers(2**32))))
        totals = list(pool.map(finish, works)) if way == "threads" else in_turn(works)
        if way:
            totals = jax.device_put(totals, devices[0])
        params = apply(params, totals, sum(weight_of(client) for client, _ in cohort))
    jax.block_until_ready(params)


def compile_all_sizes() -> None:
    """Runs a step of every size of batch that some client has, so that none is compiled later."""
    if task.batch_size is None:
        return
    left = {n % task.batch_size for n in np.diff(offsets).tolist()} - {0}
    for device, size in itertools.product(devices, {*left, task.batch_size}):
        here = jax.device_put(params, device) if way else params
        step(begin_client(here, round_key), x[:size], y[:size])


serve(
    answers,
    run_rounds,
    lambda: jax_models.flatten(params),
    ("jax", "jaxlib", "optax", "numpy"),
    warm_up=compile_all_sizes,
)
