"""Memory of asynchronous runs: the formula, the state, and the compiled program agree."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import fedjax_lite as fl
from fedjax_lite.run.rounds import many_rounds

KEY = jax.random.key(0)
N, BUFFER = 40, 4
DATA = fl.data.from_arrays({"x": np.ones((2 * N, 32), np.float32)}, np.repeat(np.arange(N), 2))
PARAMS = {"a": jnp.ones((32, 512))}
MODEL = PARAMS["a"].nbytes


def loss(w, e, key):
    return jnp.tanh(e["x"] @ w["a"]).sum(-1) ** 2


def algorithm(concurrency, buffer=BUFFER):
    seconds = fl.arrivals.latency(overhead=fl.arrivals.exponential(1.0))
    return fl.fedbuff(
        loss, optax.sgd(0.1), plan=fl.Plan(2), strategy=fl.chunked(2), latency=seconds,
        concurrency=concurrency, buffer=buffer,
    )  # fmt: skip


def num_bytes(tree):
    return sum(leaf.nbytes for leaf in jax.tree.leaves(tree))


@pytest.mark.parametrize(("concurrency", "buffer"), [(8, 4), (31, 1), (40, 40)])
def test_the_formula_is_what_the_state_holds(concurrency, buffer):
    algo = algorithm(concurrency, buffer)
    state = jax.eval_shape(lambda data: algo.init(KEY, PARAMS, data), DATA)
    found = fl.arrivals.queue_bytes(PARAMS, concurrency=concurrency, buffer=buffer, num_clients=N)
    held = sum(leaf.size * leaf.dtype.itemsize for leaf in state.server.held)
    queue = sum(leaf.size * leaf.dtype.itemsize for leaf in jax.tree.leaves(state.sampler))
    assert (found.versions, found.events, found.total) == (held, queue, held + queue)


def test_the_forecast_counts_it_and_a_round_copies_none_of_it():
    """Of 8 and of 32 in flight: arguments grow by the formula, and nothing else grows."""
    found = {}
    for concurrency in (8, 32):
        algo = algorithm(concurrency)
        state = algo.init(KEY, PARAMS, DATA)
        compiled = many_rounds.lower(KEY, state, DATA, np.int32(1), algo.round, 4).compile()
        predicted = fl.forecast(compiled)
        found[concurrency] = predicted.argument_bytes, predicted.extra_bytes
        queue = fl.arrivals.queue_bytes(
            PARAMS, concurrency=concurrency, buffer=BUFFER, num_clients=N
        )
        server = num_bytes(state.server.inner)
        rest = num_bytes(DATA) + num_bytes(state.round) + 8 + 4  # a key, and how many rounds
        assert predicted.argument_bytes == queue.total + server + rest
    assert found[32][0] - found[8][0] == 24 * (MODEL + 21)
    assert found[32][1] == found[8][1]
