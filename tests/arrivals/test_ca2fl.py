"""CA2FL: a loop of its own with the paper's cache, where it ends, and what it is with everybody."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import fedjax_lite as fl
from fedjax_lite import arrivals
from fedjax_lite.verify.techniques.arrivals import OPTIMA, RATE, SERVER, SLOPES, STEPS
from fedjax_lite.verify.testbeds import fixed, q2, quadratic, shrink, trajectory, whole

KEY = jax.random.key(0)
UNEVEN = (0.3, 1.7, 2.9, 0.11, 5.3, 0.77, 9.1)


def algorithm(make, seconds, concurrency, buffer, **options):
    return make(
        quadratic, optax.sgd(RATE), plan=fl.Plan(batch_size=1, steps=STEPS),
        latency=lambda key, info, traffic: jnp.asarray(seconds, float)[info.id],
        concurrency=concurrency, buffer=buffer, server_optimizer=optax.sgd(SERVER), **options,
    )  # fmt: skip


def read(state):
    arrived = state.sampler.arrived
    events = jnp.concatenate([arrived.ids, arrived.staleness]).astype(float)
    return events, state.server.params, state.clients, state.server.inner.mean_update


def test_the_paper_s_cache_on_the_same_events():
    """Models, caches and their mean from who came and how stale it was, a plain loop."""
    with jax.enable_x64(True):
        data = q2(SLOPES, OPTIMA, np.ones(7, int))
        algo = algorithm(arrivals.ca2fl, UNEVEN, 4, 2)
        events, models, caches, means = trajectory(algo, 25, data=data, read=read)
    x, cache, path = 0.0, np.zeros(7), [0.0]
    for r, row in enumerate(events.astype(int)):
        mean, total = cache.mean(), 0.0
        for client, stale in zip(row[:2], row[2:], strict=True):
            start = path[len(path) - 1 - stale]
            y = start
            for _ in range(STEPS):
                y -= RATE * SLOPES[client] * (y - OPTIMA[client])
            total += (start - y) - cache[client]
            cache[client] = start - y
        x -= SERVER * (mean + total / 2)
        path.append(x)
        assert abs(models[r] - x) < 1e-12
        np.testing.assert_allclose(caches[r], cache, atol=1e-12)
        assert abs(means[r] - cache.mean()) < 1e-12
    assert events[:, 2:].max() >= 3


def test_it_ends_where_everybody_weighs_the_same():
    """Two clients of Q2, one three times as fast: the uniform fixed point all the same."""
    seconds = lambda key, info, traffic: jnp.array([1.0, 3.1])[info.id]  # noqa: E731
    options = {"plan": whole(), "concurrency": 2, "buffer": 1, "latency": seconds}
    options["server_optimizer"] = optax.sgd(0.1)
    with jax.enable_x64(True):
        ours = trajectory(arrivals.ca2fl(quadratic, optax.sgd(0.05), **options), 400)[-1]
    aim = fixed(shrink(), np.array([0.5, 0.5]))
    assert abs(ours - aim) < 1e-9
    assert abs(aim - fixed(shrink(), np.array([0.75, 0.25]))) > 0.3  # where the fast one draws


def test_with_everybody_in_the_buffer_it_is_averaging():
    """Nothing is old, and h cancels: FedAvg of all with uniform weights, by numpy."""
    with jax.enable_x64(True):
        data = q2(SLOPES, OPTIMA, np.ones(7, int))
        found = trajectory(algorithm(arrivals.ca2fl, (2.0,) * 7, 7, 7), 5, data=data)
    x, expected = 0.0, []
    for _ in range(5):
        x += SERVER * np.mean((1 - (1 - RATE * SLOPES) ** STEPS) * (OPTIMA - x))
        expected.append(x)
    np.testing.assert_allclose(found, expected, atol=1e-13)


def test_in_words_and_refusals():
    algo = algorithm(arrivals.ca2fl, UNEVEN, 4, 2)
    assert fl.describe(algo).startswith("CA2FL (Wang et al., 2024)")
    assert "wang2024tackling" in fl.citation(algo)
    with pytest.raises(ValueError, match="buffer must be at least 1"):
        algorithm(arrivals.ca2fl, UNEVEN, 4, 0)
