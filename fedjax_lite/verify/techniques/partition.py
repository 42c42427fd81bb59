"""Partitions: every example dealt to exactly one client, whatever the skew."""

from __future__ import annotations

import itertools
from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np

from fedjax_lite import data as parts
from fedjax_lite.data.partition.partition import Partitioner
from fedjax_lite.engine.batches import Plan, take_batch
from fedjax_lite.types import Batch
from fedjax_lite.verify.records import Check

SIZE = 600


def dealt(partitioner: Partitioner) -> np.ndarray:
    """How often each example is found when clients are looked at one by one."""
    labels = np.random.default_rng(0).integers(0, 10, SIZE)
    data = parts.partition({"i": np.arange(SIZE), "y": labels}, partitioner)
    offsets = np.asarray(data.offsets)
    order = np.arange(SIZE) if data.order is None else np.asarray(data.order)
    ends = itertools.pairwise(offsets)
    owned = np.concatenate([order[low:high] for low, high in ends])
    return np.bincount(np.asarray(data.examples["i"])[owned], minlength=SIZE)


def visited() -> np.ndarray:
    """How often an epoch in batches of 7 visits each of a client's 25 examples."""
    plan, seed = Plan(batch_size=7), jnp.array([1, 2], jnp.uint32)
    data = parts.from_arrays({"i": np.arange(40)}, np.repeat([0, 1, 0], [5, 15, 20]))
    key, client = jax.random.key(0), jnp.int32(0)

    @jax.jit
    def epoch(data: parts.FederatedDataset) -> Batch:
        one = lambda step: take_batch(plan, data, seed, key, client, step)._replace(key=None)  # noqa: E731
        return jax.vmap(one)(jnp.arange(4, dtype=jnp.int32))

    batches = epoch(data)
    seen = np.asarray(batches.examples["i"])[np.asarray(batches.mask)]
    return np.bincount(seen, minlength=40)


def checks() -> list[Check]:
    """All ones."""
    partitioners: dict[str, Callable[[], Partitioner]] = {
        "iid": lambda: parts.iid(num_clients=7),
        "dirichlet .1": lambda: parts.dirichlet(alpha=0.1, num_clients=10, seed=0),
        "dirichlet 100": lambda: parts.dirichlet(alpha=100.0, num_clients=10, seed=0),
        "shards": lambda: parts.shards(num_clients=10),
        "lognormal": lambda: parts.lognormal(sigma=1.0, num_clients=10),
        "by label": lambda: parts.by_key("y", keep=True),
    }
    once = np.ones(SIZE)
    own = np.repeat([1.0, 0.0, 1.0], [5, 15, 20])
    return [
        *(
            Check(f"{name}: each example once", once, lambda make=make: dealt(make()), 0.0)
            for name, make in partitioners.items()
        ),
        Check("an epoch visits a client's examples once", own, visited, 0.0),
    ]
