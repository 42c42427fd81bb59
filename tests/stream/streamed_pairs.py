"""The same clients in memory and as a stream, algorithms on them, and how runs are compared."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax

import fedjax_lite as fl
from fedjax_lite.data.stores.store import ArrayStore
from fedjax_lite.stream import HostTable, StreamedDataset

KEY = jax.random.key(0)
N = 40


def examples(num_clients=N, seed=0):
    """Least squares with client drift; client 3 has no data. Stored client by client."""
    rng = np.random.default_rng(seed)
    sizes = np.minimum(1 + rng.lognormal(1.5, 1.0, num_clients).astype(int), 60)
    sizes[3] = 0
    x = rng.normal(size=(sizes.sum(), 3)).astype(np.float32)
    weights = rng.normal(size=(num_clients, 3)).astype(np.float32)
    y = (x * np.repeat(weights, sizes, axis=0)).sum(1)
    return {"x": x, "y": y}, sizes


def loss(params, batch, key):
    return 0.5 * (batch["x"] @ params["w"] + params["b"] - batch["y"]) ** 2


def params():
    return {"w": jnp.full(3, 0.1), "b": jnp.zeros(())}


def pair(**options):
    arrays, sizes = examples()
    memory = fl.data.from_arrays(arrays, np.repeat(np.arange(N), sizes), num_clients=N)
    return memory, StreamedDataset(ArrayStore(arrays, sizes), **options)


PLAN = fl.Plan(batch_size=4, epochs=2)
SAMPLERS = {
    "uniform": fl.uniform(9),
    "dropout": fl.dropout(fl.uniform(12), 0.4),
    "poisson": fl.poisson(0.2),
    "weighted": fl.weighted(8),
    "everyone": fl.everyone(),
}
ALGORITHMS = {
    "fedavg": lambda **s: fl.fedavg(loss, optax.sgd(0.05), **s),
    "fedadam": lambda **s: fl.fedadam(loss, optax.sgd(0.05), server_learning_rate=0.1, **s),
    "fedprox": lambda **s: fl.fedprox(loss, optax.sgd(0.05), mu=0.1, **s),
    "fednova": lambda **s: fl.fednova(loss, 0.05, **s),
    "scaffold": lambda **s: fl.scaffold(loss, 0.05, **s),
    "mime": lambda **s: fl.mime(loss, 0.05, **s),
}


@functools.cache
def make(name, sampler="uniform", **slots):
    """Cached, so that tests share compiled programs."""
    return ALGORITHMS[name](plan=PLAN, sampler=SAMPLERS[sampler], **slots)


def begin(algo, data):
    return algo.init(KEY, params(), data)


def go(algo, state, data, num_rounds=7, every=3, **options):
    return fl.run(
        algo, KEY, state, data, num_rounds=num_rounds, every=every, progress=False, **options
    )


def bare(rows):
    return [{n: v for n, v in row.items() if n != "seconds"} for row in rows]


def whole(state):
    """The state with its tables as arrays `[N, ...]`."""
    full = lambda t: t.rows(np.arange(N)) if isinstance(t, HostTable) else t  # noqa: E731
    return state._replace(clients=full(state.clients), uplink=full(state.uplink))


def raw(state):
    return [np.asarray(leaf).tobytes() for leaf in jax.tree.leaves(whole(state))]
