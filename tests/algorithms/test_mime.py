"""Mime and MimeLite against closed-form trajectories and their reductions."""

import chex
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import fedjax_lite as fl
from fedjax_lite import testing
from fedjax_lite.algorithms.mime import mime, mimelite

A, B, N = np.array([1.0, 4.0]), np.array([-1.0, 2.0]), np.array([30, 10])
PLAN = fl.Plan(batch_size=10, steps=5)


@pytest.fixture
def float64():
    with jax.enable_x64(True):
        yield


def quadratic(w, e, key):
    return 0.5 * e["a"] * (w - e["b"]) ** 2


def run(algo, num_rounds):
    owners = np.random.default_rng(0).permutation(np.repeat(np.arange(2), N))
    data = fl.data.from_arrays({"a": A[owners], "b": B[owners]}, owners)
    state, out = algo.init(jax.random.key(0), jnp.array(0.0), data), []
    for _ in range(num_rounds):
        state, _ = algo.round(jax.random.key(0), state, data)
        out.append((float(state.server.params), float(state.server.momentum)))
    return np.array(out)


def reference(p, beta, num_rounds, *, correct):
    x, m, out = 0.0, 0.0, []
    for _ in range(num_rounds):
        c, y = (p * A * (x - B)).sum(), np.full(2, x)
        for _ in range(5):
            g = A * (y - B) - (A * (x - B) - c if correct else 0)
            y = y - 0.05 * ((1 - beta) * g + beta * m)
        x, m = (p * y).sum(), (1 - beta) * c + beta * m
        out.append((x, m))
    return np.array(out)


@pytest.mark.sample(1)
@pytest.mark.parametrize(
    ("factory", "beta", "weighting", "first", "limit", "num_rounds"),
    [
        (mime, 0.0, "examples", (0.2646053711, 0.4311883388), 5 / 7, 100),
        (mime, 0.0, "uniform", (), 1.4, 100),
        (mime, 0.9, "examples", (0.0307104817, 0.0877400098), 5 / 7, 500),
        (mimelite, 0.9, "examples", (0.0294761664, 0.0853365759), 0.7120963001, 500),
    ],
)
def test_trajectories_and_limits(float64, factory, beta, weighting, first, limit, num_rounds):
    algo = factory(
        quadratic, 0.05, plan=PLAN, sampler=fl.everyone(), momentum=beta, weighting=weighting
    )
    got = run(algo, num_rounds)
    p = np.array([0.75, 0.25] if weighting == "examples" else [0.5, 0.5])
    expected = reference(p, beta, num_rounds, correct=factory is mime)
    np.testing.assert_allclose(got, expected, rtol=0, atol=1e-11)
    np.testing.assert_allclose(got[: len(first), 0], first, rtol=0, atol=6e-11)
    assert abs(got[-1, 0] - limit) < 1e-9
    if beta == 0.9:
        assert abs(got[0, 1] - -0.125) < 1e-12


def compare(left, right, *, num_rounds=3, tolerance=1e-6):
    data, key = testing.population(), jax.random.key(0)
    params = testing.init_params(key)
    a, b = left.init(key, params, data), right.init(key, params, data)
    for _ in range(num_rounds):
        (a, _), (b, _) = left.round(key, a, data), right.round(key, b, data)
    chex.assert_trees_all_close(a.server.params, b.server.params, rtol=tolerance, atol=tolerance)


@pytest.mark.sample(5, of="reductions to another method")
@pytest.mark.parametrize("weighting", ["uniform", "examples"])
def test_mimelite_without_momentum_is_fedavg(weighting):
    common = {
        "plan": fl.Plan(batch_size=2, epochs=2),
        "sampler": fl.uniform(4),
        "weighting": weighting,
    }
    compare(
        mimelite(testing.loss, 0.05, momentum=0.0, **common),
        fl.fedavg(testing.loss, optax.sgd(0.05), **common),
    )


@pytest.mark.sample(5, of="reductions to another method")
def test_mime_of_one_step_without_momentum_is_fedsgd():
    """Whatever the minibatch: the correction cancels it at x."""
    compare(
        mime(
            testing.loss,
            0.05,
            momentum=0.0,
            plan=fl.Plan(batch_size=2, steps=1),
            sampler=fl.uniform(4),
        ),
        fl.fedsgd(testing.loss, optax.sgd(0.05), sampler=fl.uniform(4), weighting="uniform"),
    )


def test_correction_uses_the_same_key():
    """A loss with noise in its gradient: at y = x the noise cancels only under one key."""

    def noisy(w, e, key):
        return quadratic(w, e, key) + w * jax.random.normal(
            jax.random.fold_in(key, 1), e["b"].shape
        )

    def gap(factory):
        algo = factory(
            noisy,
            0.05,
            momentum=0.0,
            plan=fl.Plan(batch_size=None, steps=1),
            sampler=fl.everyone(),
        )
        data = fl.data.from_arrays({"a": A, "b": B}, np.arange(2))
        key = jax.random.key(0)
        state, _ = algo.round(key, algo.init(key, jnp.array(0.0), data), data)
        # m of momentum 0 is c: the model must have moved by -eta c, and by nothing else.
        return abs(float(state.server.params + 0.05 * state.server.momentum))

    assert gap(mime) < 1e-7
    assert gap(mimelite) > 1e-3


def test_clients_without_steps_stay_out_of_the_full_gradient():
    data, key = testing.population(), jax.random.key(0)
    params = testing.init_params(key)
    plan = fl.Plan(batch_size=2, steps=np.array([1, 4, 2, 3, 0, 5, 1]))
    algo = mime(testing.loss, 0.05, plan=plan, sampler=fl.everyone())
    state = algo.init(key, params, data)
    ids = jnp.array([0, 4, 5], jnp.int32)
    idle, _ = algo.round(key, state, data, fl.Cohort(ids, jnp.array([True, True, True])))
    without, _ = algo.round(key, state, data, fl.Cohort(ids, jnp.array([True, False, True])))
    chex.assert_trees_all_close(idle, without, rtol=1e-6)


def test_bad_arguments():
    common = {"plan": PLAN, "sampler": fl.everyone()}
    with pytest.raises(ValueError, match="momentum"):
        mime(quadratic, 0.1, momentum=1.5, **common)
    with pytest.raises(TypeError, match="plain SGD"):
        mimelite(quadratic, optax.sgd(0.1), **common)
    with pytest.raises(TypeError, match="plan must be a Plan"):
        mime(quadratic, 0.1, plan=3, sampler=fl.everyone())  # pyright: ignore[reportArgumentType]
