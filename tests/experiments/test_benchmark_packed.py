"""packed(L), which only benchmarks use, gives the results of the engine's strategies."""

import sys
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import fedjax_lite as fl

FOLDER = str(Path(__file__).parents[2] / "experiments" / "benchmarks")
SIZES = np.array([7, 0, 3, 12, 1, 5, 9, 2, 0, 4])


@pytest.fixture(scope="module")
def packed():
    sys.path.insert(0, FOLDER)
    try:
        from packed import packed
    finally:
        sys.path.remove(FOLDER)
    return packed


def loss(w, e, key):
    noise = 0.01 * jax.random.normal(key, e["y"].shape)
    return 0.5 * (e["x"] @ w + noise - e["y"]) ** 2


def result(name, strategy, cohort):
    rng = np.random.default_rng(0)
    owners = np.repeat(np.arange(len(SIZES)), SIZES)
    x = rng.standard_normal((SIZES.sum(), 3)).astype(np.float32)
    y = rng.standard_normal(SIZES.sum()).astype(np.float32)
    data = fl.data.from_arrays({"x": x, "y": y}, owners, num_clients=len(SIZES))
    slots = {"plan": fl.Plan(batch_size=3, epochs=2), "sampler": fl.everyone()}
    if name == "scaffold":
        algo = fl.scaffold(loss, 0.05, **slots, strategy=strategy)
    else:
        algo = fl.fedavg(loss, optax.sgd(0.05), **slots, strategy=strategy)
    key = jax.random.key(0)
    state = algo.init(key, jnp.zeros(3), data)
    for _ in range(2):
        state, metrics = algo.round(key, state, data, cohort)
    return state, metrics


@pytest.fixture(scope="module", params=["fedavg", "scaffold"])
def one_at_a_time(request):
    """A cohort with an absent client, and what comes of it client by client."""
    ids = jnp.asarray([3, 1, 6, 0, 9, 2, 7], jnp.int32)
    cohort = fl.Cohort(ids, jnp.asarray([True, True, False, True, True, True, True]))
    return request.param, cohort, result(request.param, fl.sequential(), cohort)


@pytest.mark.sample(2)
@pytest.mark.parametrize("num_lanes", [1, 3, 10, 64])
def test_equals_one_client_at_a_time(packed, one_at_a_time, num_lanes):
    name, cohort, (expected, reference) = one_at_a_time
    got, metrics = result(name, packed(num_lanes), cohort)
    close = lambda a, b: np.testing.assert_allclose(a, b, rtol=2e-5, atol=2e-6)  # noqa: E731
    jax.tree.map(close, got, expected)
    jax.tree.map(close, metrics, reference)
    assert int(metrics["num_steps"]) == 2 * sum(-(-SIZES[i] // 3) for i in (3, 1, 0, 9, 2, 7))


def test_an_empty_cohort_is_no_work(packed):
    cohort = fl.Cohort(jnp.arange(4, dtype=jnp.int32), jnp.zeros(4, bool))
    state, metrics = result("fedavg", packed(2), cohort)
    assert not np.asarray(state.server.params).any()
    assert int(metrics["num_clients"]) == 0
