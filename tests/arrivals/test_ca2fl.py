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


def test_five_flushes_by_hand():
    """Three clients, one step of rate 1: Delta_i = x - b_i with b = 1, 3, 6; server rate 1/2.

    Client 0 comes every second, client 1 every 1.6, client 2 after all of this: at 1, 1.6, 2, 3 and
    3.2. Of the first, v = 0 + (-1 - 0). Of the second, who left with x = 0, v = -1/3 + (-3 - 0), so
    x = 1/2 + 5/3. Then client 0 with x = 1/2: v = -4/3 + (-1/2 + 1), x = 13/6 + 5/12; with 31/12:
    v = -7/6 + (19/12 + 1/2), x = 31/12 - 11/24; client 1 with 13/6: v = -17/36 + (-5/6 + 3).
    """
    seconds = lambda key, info, traffic: jnp.array([1.0, 1.6, 50.0])[info.id]  # noqa: E731
    loss = lambda w, e, key: 0.5 * (w - e["b"]) ** 2  # noqa: E731
    with jax.enable_x64(True):
        data = fl.data.from_arrays({"b": jnp.array([1.0, 3.0, 6.0])}, [0, 1, 2])
        algo = arrivals.ca2fl(
            loss, optax.sgd(1.0), plan=fl.Plan(batch_size=1), concurrency=3, buffer=1,
            latency=seconds, server_optimizer=optax.sgd(0.5),
        )  # fmt: skip
        state, found, means = algo.init(KEY, jnp.array(0.0), data), [], []
        for _ in range(5):
            state, _ = algo.round(KEY, state, data)
            found.append(float(state.server.params))
            means.append(float(state.server.inner.mean_update))
    np.testing.assert_allclose(found, [1 / 2, 13 / 6, 31 / 12, 17 / 8, 23 / 18], rtol=1e-12)
    np.testing.assert_allclose(means, [-1 / 3, -4 / 3, -7 / 6, -17 / 36, 1 / 4], rtol=1e-12)


def test_who_is_lost_or_does_nothing_leaves_no_update():
    """One client without data, one without steps, one who is always given up; N is those with data.

    After every flush h is the mean of a plain loop's caches, and the model moved by what the paper
    says, of those who count.
    """
    sizes, steps = np.array([1, 2, 0, 1, 3, 1, 2]), np.array([2, 1, 3, 0, 2, 4, 1])
    ends = np.cumsum(sizes)
    optima = np.random.default_rng(0).normal(size=sizes.sum())
    seconds = np.array([0.3, 1.7, 2.9, 0.11, 9.3, 0.77, 1.1])
    loss = lambda w, e, key: 0.5 * (w - e["b"]) ** 2  # noqa: E731
    x, cache, path, lost = 0.0, np.zeros(7), [0.0], 0
    with jax.enable_x64(True):
        owners = np.repeat(np.arange(7), sizes)
        data = fl.data.from_arrays({"b": jnp.asarray(optima)}, owners, num_clients=7)
        algo = arrivals.ca2fl(
            loss, optax.sgd(0.3), plan=fl.Plan(batch_size=4, steps=steps), concurrency=4, buffer=2,
            latency=lambda key, info, traffic: jnp.asarray(seconds)[info.id], timeout=5.0,
            server_optimizer=optax.sgd(0.5),
        )  # fmt: skip
        state = algo.init(KEY, jnp.array(0.0), data)
        for r in range(25):
            state, metrics = algo.round(KEY, state, data)
            arrived, changes, mean = state.sampler.arrived, [], cache.sum() / 6
            for client, stale in zip(arrived.ids.tolist(), arrived.staleness.tolist(), strict=True):
                if sizes[client] and steps[client]:
                    start = path[len(path) - 1 - stale]
                    aim = optima[ends[client] - sizes[client] : ends[client]].mean()
                    update = (1 - 0.7 ** steps[client]) * (start - aim)
                    changes.append(update - cache[client])
                    cache[client] = update
            x -= 0.5 * (mean + np.mean(changes)) if changes else 0.0
            path.append(x)
            lost += int(metrics["num_lost"])
            np.testing.assert_allclose(float(state.server.params), x, atol=1e-12, err_msg=str(r))
            np.testing.assert_allclose(state.clients, cache, atol=1e-12)
            np.testing.assert_allclose(
                float(state.server.inner.mean_update), cache.sum() / 6, atol=1e-12
            )
    assert lost > 0
    assert np.flatnonzero(cache).tolist() == [0, 1, 5, 6]


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
