"""Clients, algorithms and rounds for tests on one device and on four."""

import functools
import re

import chex
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import fedjax_lite as fl

FOUR = jax.device_count() >= 4
four = pytest.mark.skipif(not FOUR, reason="needs four devices; see test_sharded.py")
one = pytest.mark.skipif(FOUR, reason="needs one device")
KEY = jax.random.key(0)
SIZES = np.array([7, 0, 3, 12, 1, 5, 9, 2, 4, 6])


def population():
    rng = np.random.default_rng(0)
    owners = np.repeat(np.arange(len(SIZES)), SIZES)
    x = rng.normal(size=(len(owners), 3)).astype(np.float32)
    y = x @ np.array([1.0, -2.0, 0.5], np.float32) + owners / 10
    examples = {"x": x, "y": y.astype(np.float32)}
    return fl.data.from_arrays(examples, owners, num_clients=len(SIZES))


def regression(w, e, key):
    return 0.5 * (e["x"] @ w - e["y"] + 0.01 * jax.random.normal(key, e["y"].shape)) ** 2


def slots(strategy, size=7):
    sampler = fl.dropout(fl.uniform(size), 0.2)
    return {"plan": fl.Plan(batch_size=2, epochs=2), "sampler": sampler, "strategy": strategy}


ALGORITHMS = {
    "fedavg": lambda **s: fl.fedavg(regression, optax.sgd(0.05), **s),
    "scaffold": lambda **s: fl.scaffold(regression, 0.05, **s),
    "mime": lambda **s: fl.mime(regression, 0.05, **s),
    "diagnosed fedadam": lambda **s: fl.fedadam(
        regression,
        optax.sgd(0.05),
        server_learning_rate=0.1,
        aggregator=fl.diagnosed(fl.mean()),
        **s,
    ),
}


@functools.cache
def sharded_algorithm(name, num_devices, inner=None):
    """Cached, so that tests share compiled programs; with its mesh."""
    mesh = fl.client_mesh(jax.devices()[:num_devices])
    return ALGORITHMS[name](**slots(fl.sharded(mesh, inner))), mesh


CHUNKED = fl.chunked(2)


def three_rounds(algo, data, state=None):
    state = algo.init(KEY, jnp.zeros(3), data) if state is None else state
    rows = []
    for _ in range(3):
        state, metrics = algo.round(KEY, state, data)
        rows.append(metrics)
    return jax.device_get((state, rows))


@functools.cache
def sequential(name):
    return ALGORITHMS[name](**slots(fl.sequential()))


@functools.cache
def on_one_device(name):
    """What every strategy must give."""
    return three_rounds(sequential(name), population())


close = functools.partial(chex.assert_trees_all_close, rtol=2e-5, atol=2e-6)
COLLECTIVES = re.compile(r" (all-reduce|all-gather|collective-permute|all-to-all|reduce-scatter)")


def collectives(compiled):
    """Of a compiled program: its collectives by computation, and the computations within loops."""
    blocks = {}
    for block in compiled.as_text().split("\n\n"):
        head = re.match(r"(?:ENTRY )?%([\w.-]+) \(", block)
        if head:
            blocks[head[1]] = block
    loops = set(re.findall(r"(?:body|condition)=%([\w.-]+)", compiled.as_text()))
    inside, new = set(), loops
    while new:
        inside |= new
        called = {name for block in new for name in re.findall(r"%([\w.-]+)", blocks[block])}
        new = (called & blocks.keys()) - inside
    found = {
        name: [line for line in block.splitlines() if COLLECTIVES.search(line)]
        for name, block in blocks.items()
    }
    return {name: lines for name, lines in found.items() if lines}, inside


def compiled_round(algo, state, data):
    return jax.jit(algo.round).lower(KEY, state, data).compile()
