"""Asynchronous and clocked runs on a streamed population: who comes when, from what model."""

import chex
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from streamed_pairs import PLAN, N, bare, begin, go, loss, make, raw, whole

import fedjax_lite as fl
from fedjax_lite.data.stores.store import ArrayStore
from fedjax_lite.stream import StreamedDataset

MANY = 4000
SECONDS = np.random.default_rng(0).lognormal(0.0, 1.5, MANY)
CLOCK = {"simulated_seconds", "round_seconds"}


def away(key, info, traffic):
    return jnp.asarray(SECONDS, float)[info.id]


def pair(num_clients, **options):
    """Five examples a client, so that all cohorts are of one size, and one program does."""
    rng, sizes = np.random.default_rng(1), np.full(num_clients, 5)
    owners = np.repeat(np.arange(num_clients), 5)
    x = rng.normal(size=(len(owners), 3)).astype(np.float32)
    arrays = {"x": x, "y": x.sum(1) + owners.astype(np.float32) / num_clients}
    memory = fl.data.from_arrays(arrays, owners)
    return memory, StreamedDataset(ArrayStore(arrays, sizes), **options)


def leaves(tree):
    return [np.asarray(leaf).tobytes() for leaf in jax.tree.leaves(tree)]


METHODS = {
    "FedBuff": lambda: fl.fedbuff(
        loss, optax.sgd(0.05), plan=PLAN, concurrency=100, buffer=20, latency=away
    ),
    "asynchronous SCAFFOLD": lambda: fl.asynchronous(
        fl.scaffold(loss, 0.05, plan=PLAN, sampler=fl.everyone()),
        concurrency=9,
        buffer=3,
        latency=away,
    ),
    "clocked FedAvg": lambda: fl.fedavg(
        loss,
        optax.sgd(0.05),
        plan=PLAN,
        sampler=fl.clocked(fl.selection.counted(fl.uniform(9)), away, keep=5),
    ),
}


@pytest.mark.sample(1)
@pytest.mark.parametrize(
    ("name", "rows", "num_clients"),
    [
        ("FedBuff", "device", MANY),
        ("asynchronous SCAFFOLD", "host", N),
        ("clocked FedAvg", "device", N),
    ],
)
def test_equals_the_run_in_memory(name, rows, num_clients):
    """Models, events and every column of the history; and stopped midway it goes on the same."""
    algo = METHODS[name]()
    memory, streamed = pair(num_clients, state=rows)
    there, rows_there = go(algo, begin(algo, memory), memory)
    here, rows_here = go(algo, begin(algo, streamed), streamed)
    tolerance = {"rtol": 2e-5, "atol": 2e-6}
    chex.assert_trees_all_close(whole(here), whole(there), **tolerance)
    assert leaves(here.sampler) == leaves(there.sampler)
    for ours, theirs in zip(bare(rows_here), bare(rows_there), strict=True):
        chex.assert_trees_all_close(ours, theirs, **tolerance)
    last = rows_here[-1]
    assert last.keys() >= CLOCK
    assert last["simulated_seconds"] > 0
    if name != "clocked FedAvg":
        assert max(row.get("max_staleness", 0) for row in rows_here) >= 1
    half, _ = go(algo, begin(algo, streamed), streamed, num_rounds=3)
    assert raw(go(algo, half, streamed)[0]) == raw(here)


def test_a_learning_sampler_is_still_refused():
    _, streamed = pair(N)
    algo = make("fedavg")
    sampler = fl.selection.counted(fl.uniform(9), of="trained")
    algo = fl.federated_algorithm(**{**algo.slots._asdict(), "sampler": sampler})
    with pytest.raises(ValueError, match="must not learn from the rounds"):
        fl.run(algo, jax.random.key(0), begin(algo, streamed), streamed, num_rounds=1)
