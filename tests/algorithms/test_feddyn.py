"""FedDyn against exact local solves, its invariants and its reduction to FedProx."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import fedjax_lite as fl
from fedjax_lite.algorithms.feddyn import feddyn, local_mean

A, B, N = np.array([1.0, 4.0]), np.array([-1.0, 2.0]), np.array([30, 10])
P = {"uniform": np.array([0.5, 0.5]), "examples": np.array([0.75, 0.25])}
BOTH, TURNS = [(0, 1)], [(0,), (1,)]


@pytest.fixture(autouse=True)
def float64():
    with jax.enable_x64(True):
        yield


def quadratic(w, e, key):
    return 0.5 * e["a"] * (w - e["b"]) ** 2


def q2_data():
    owners = np.random.default_rng(0).permutation(np.repeat(np.arange(2), N))
    return fl.data.from_arrays({"a": A[owners], "b": B[owners]}, owners)


def exact(alpha):
    """Two gradient steps whose rates are the inverse curvatures solve both clients exactly."""
    rates = jnp.asarray(1 / (A + alpha))
    return optax.sgd(lambda count: rates[count])


def ours(cohorts, alpha, *, optimizer=None, steps=2, weighting="uniform"):
    own = alpha / (2 * P[weighting])
    algo = feddyn(
        quadratic,
        exact(own) if optimizer is None else optimizer,
        alpha=alpha,
        plan=fl.Plan(batch_size=10, steps=steps),
        sampler=fl.everyone(),
        weighting=weighting,
    )
    data = q2_data()
    state, out = algo.init(jax.random.key(0), jnp.array(0.0), data), []
    for ids in cohorts:
        mask = jnp.array([i in ids for i in range(2)])
        cohort = fl.Cohort(jnp.arange(2, dtype=jnp.int32), mask)
        state, _ = algo.round(jax.random.key(0), state, data, cohort)
        out.append(state)
    return out


def reference(cohorts, alpha, p, *, eta=None, steps=0):
    x, h, g, own, out = 0.0, 0.0, np.zeros(2), alpha / (2 * p), []
    for ids in cohorts:
        ids, y = np.array(ids), np.full(2, x)
        if eta is None:
            y = (A * B + g + own * x) / (A + own)
        for _ in range(steps):
            y = y - eta * (A * (y - B) - g + own * (y - x))
        g = g.copy()
        g[ids] -= (own * (y - x))[ids]
        h -= alpha / 2 * (y - x)[ids].sum()
        x = y[ids].mean() - h / alpha
        out.append((x, h, *g))
    return out


@pytest.mark.sample(1)
@pytest.mark.parametrize(
    ("cohorts", "weighting", "first", "limit"),
    [
        (BOTH * 60, "uniform", (1.1, 1.25, 1.325), 1.4),
        (TURNS * 60, "uniform", (-0.75, 2.3), 1.4),
        (BOTH * 60, "examples", (0.7333333333, 0.7), 5 / 7),
    ],
)
def test_exact_solves(cohorts, weighting, first, limit):
    states = ours(cohorts, 1.0, weighting=weighting)
    got = [(s.server.params, s.server.correction, *s.clients) for s in states]
    np.testing.assert_allclose(got, reference(cohorts, 1.0, P[weighting]), rtol=0, atol=1e-12)
    np.testing.assert_allclose([g[0] for g in got[: len(first)]], first, rtol=0, atol=6e-11)
    assert abs(got[-1][0] - limit) < 1e-9
    np.testing.assert_allclose(got[-1][2:], A * (limit - B), rtol=0, atol=1e-8)
    for state in states:
        h = (P[weighting] * np.asarray(state.clients)).sum()
        np.testing.assert_allclose(state.server.correction, h, rtol=0, atol=1e-12)


def test_correction_of_the_first_rounds():
    h = [float(s.server.correction) for s in ours(BOTH * 3, 1.0)]
    np.testing.assert_allclose(h, [-0.55, -0.35, -0.2125], rtol=0, atol=1e-12)


@pytest.mark.sample(1)
@pytest.mark.parametrize(("alpha", "num_rounds"), [(0.1, 400), (10.0, 400)])
def test_the_limit_does_not_depend_on_alpha(alpha, num_rounds):
    state = ours(BOTH * num_rounds, alpha)[-1]
    assert abs(float(state.server.params) - 1.4) < 1e-9
    assert abs(float(local_mean(state.server, alpha=alpha)) - 1.4) < 1e-9


def test_gradient_descent_follows_the_equations():
    states = ours(TURNS * 3, 0.5, optimizer=optax.sgd(0.05), steps=5)
    got = [(s.server.params, s.server.correction, *s.clients) for s in states]
    expected = reference(TURNS * 3, 0.5, P["uniform"], eta=0.05, steps=5)
    np.testing.assert_allclose(got, expected, rtol=0, atol=1e-12)


def test_frozen_at_zero_it_is_fedprox():
    mu, x, data = 1.0, jnp.array(0.0), q2_data()
    algo = feddyn(
        quadratic,
        optax.sgd(0.05),
        alpha=mu,
        plan=fl.Plan(batch_size=10, steps=5),
        sampler=fl.everyone(),
    )
    expected = 0.0
    for _ in range(3):
        state, _ = algo.round(jax.random.key(0), algo.init(jax.random.key(0), x, data), data)
        x = local_mean(state.server, alpha=mu)
        y = np.full(2, expected)
        for _ in range(5):
            y = y - 0.05 * (A * (y - B) + mu * (y - expected))
        expected = y.mean()
        np.testing.assert_allclose(x, expected, rtol=0, atol=1e-12)


def test_stragglers_without_steps_do_not_move_the_model():
    """Without a mean of y_i the correction h alone must not act."""
    amounts = lambda key, client: jnp.int32(0)  # noqa: E731
    algo = feddyn(
        quadratic,
        optax.sgd(0.05),
        alpha=1.0,
        plan=fl.Plan(batch_size=10, steps=amounts),
        sampler=fl.everyone(),
    )
    data = q2_data()
    before = algo.init(jax.random.key(0), jnp.array(2.0), data)
    before = before._replace(server=before.server._replace(correction=jnp.array(0.5)))
    after, _ = algo.round(jax.random.key(0), before, data)
    assert float(after.server.params) == 2.0
    assert float(after.server.correction) == 0.5


def test_bad_alpha():
    with pytest.raises(ValueError, match="alpha must be positive, got 0"):
        feddyn(
            quadratic, optax.sgd(0.1), alpha=0, plan=fl.Plan(batch_size=1), sampler=fl.everyone()
        )
