"""A small population, some algorithms, and their simulation: what federations are held against."""

from functools import cache, partial

import jax
import jax.numpy as jnp
import numpy as np
import optax

import fedjax_lite as fl
from fedjax_lite.deploy import node, server

KEY = jax.random.key(3)
SIZES = (5, 3, 5, 3)
NUM_ROUNDS = 3


@cache
def population():
    rng = np.random.default_rng(0)
    parts = [
        {
            "x": rng.normal(size=(n, 3)).astype(np.float32),
            "y": rng.normal(size=n).astype(np.float32),
        }
        for n in SIZES
    ]
    ids = np.repeat(np.arange(len(SIZES)), SIZES)
    pooled = {name: np.concatenate([part[name] for part in parts]) for name in ("x", "y")}
    return parts, fl.data.from_arrays(pooled, ids)


def loss(params, example, key):
    return 0.5 * (example["x"] @ params["w"] + params["b"] - example["y"]) ** 2


def start():
    return {"w": jnp.zeros(3), "b": jnp.float32(0)}


PLAN = fl.Plan(batch_size=2, epochs=2)
SOME_STEPS = fl.Plan(batch_size=2, steps=lambda key, i: jax.random.randint(key, (), 1, 5))


def fedavg(**slots):
    return fl.fedavg(loss, optax.sgd(0.1), **slots)


def stragglers(plan, sampler):
    return fl.fednova(loss, 0.1, plan=SOME_STEPS, sampler=sampler)


def private(plan, sampler):
    mechanism = fl.privacy.central_gaussian(
        clip=0.5, num_clients=len(SIZES), delta=1e-3, sampling_rate=0.7, noise_multiplier=1.0
    )
    return fl.fedavg(loss, optax.sgd(0.1), plan=plan, privacy=mechanism)


def power_of_choice(plan, sampler):
    algo = fl.fedavg(loss, optax.sgd(0.1), plan=plan, sampler=sampler)
    return fl.selection.power_of_choice(algo, loss, cohort_size=2)


MAKERS = {
    "fedavg": fedavg,
    "fedadam": partial(fl.fedadam, loss, optax.sgd(0.1), server_learning_rate=0.1),
    "scaffold": partial(fl.scaffold, loss, 0.1),
    "ditto": partial(fl.ditto, loss, optax.sgd(0.1), pull=0.5),
    "feddyn": partial(fl.feddyn, loss, optax.sgd(0.1), alpha=0.1),
    "frozen": partial(
        fl.frozen_leaves, loss, optax.sgd(0.1), is_frozen=lambda p: {"w": False, "b": True}
    ),
    "feedback": partial(fedavg, uplink=fl.error_feedback(fl.top_k(0.5)), downlink=fl.top_k(0.5)),
    "mime": partial(fl.mime, loss, 0.1),
    "power_of_choice": power_of_choice,
    "median": partial(fedavg, aggregator=fl.median()),
    "private": private,
    "stragglers": stragglers,
}


SOME, EVERYONE = fl.uniform(3), fl.everyone()


# Cached, as programs belong to an algorithm and a server: tests and files share them.
@cache
def algorithm(name, sampler=SOME):
    return MAKERS[name](plan=PLAN, sampler=sampler)


@cache
def hub_of(algo):
    """A server: it has no state of its own."""
    return server(algo, KEY, start(), num_clients=len(SIZES))


def simulated(algo, data, cohorts=None):
    state = algo.init(KEY, start(), data)
    states, rows = [], []
    for r in range(NUM_ROUNDS):
        state, metrics = algo.round(KEY, state, data, *([] if cohorts is None else [cohorts[r]]))
        states.append(state)
        rows.append(metrics)
    return states, rows


def near(left, right):
    for a, b in zip(jax.tree.leaves(left), jax.tree.leaves(right), strict=True):
        np.testing.assert_allclose(np.asarray(a), np.asarray(b), rtol=1e-5, atol=1e-6)


def nodes_of(algo, parts, folder):
    return {
        i: node(algo, KEY, start(), part, client_id=i, folder=folder)
        for i, part in enumerate(parts)
    }
