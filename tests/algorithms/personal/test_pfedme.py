"""pFedMe: proximal points, its fixed points on quadratics, and its reduction to FedProx."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import fedjax_lite as fl

KEY = jax.random.key(0)
A, B, N, PULL = np.array([1.0, 4.0]), np.array([-1.0, 2.0]), np.array([30, 10]), 15.0


@pytest.fixture(autouse=True)
def float64():
    with jax.enable_x64(True):
        yield


def quadratic(w, e, key):
    return 0.5 * e["a"] * (w - e["b"]) ** 2


def q2():
    return fl.data.from_arrays({"a": np.repeat(A, N), "b": np.repeat(B, N)}, np.repeat([0, 1], N))


def whole(steps):
    return fl.Plan(batch_size=None, steps=steps)


def after(num_rounds, *, rate=0.005, steps=5, inner_rate=1 / (4 + PULL), inner_steps=60, **options):
    """Server and personal models; by default the proximal points are exact to 1e-12."""
    options = {"sampler": fl.everyone(), "pull": PULL, **options}
    algo = fl.pfedme(
        quadratic, optax.sgd(inner_rate), learning_rate=rate, inner_steps=inner_steps,
        plan=whole(steps), **options,
    )  # fmt: skip
    state = algo.init(KEY, jnp.array(0.0), q2())
    for _ in range(num_rounds):
        state, metrics = algo.round(KEY, state, q2())
    return float(state.server.params), np.asarray(fl.personal_models(state)), metrics


def prox(w):
    return (A * B + PULL * w) / (A + PULL)


def by_hand(x, *, rate=0.005, steps=5, beta=1.0):
    """A round with exact proximal points, from the formula."""
    w = np.full(2, x)
    for _ in range(steps):
        theta = prox(w)
        w = w - rate * PULL * (w - theta)
    return (1 - beta) * x + beta * w.mean(), theta


def test_proximal_points_from_zero():
    """KNOWN_ANSWERS 8: theta(0) = (-.0625, 8/19)."""
    _, own, metrics = after(1, steps=1)
    np.testing.assert_allclose(own, [-0.0625, 8 / 19], atol=1e-10)
    np.testing.assert_allclose(metrics["train_loss"], 0.75 * 0.5 + 0.25 * 8.0, rtol=1e-6)  # at 0


@pytest.mark.parametrize("beta", [1.0, 2.0])
def test_one_round(beta):
    """KNOWN_ANSWERS 8: .0648839477, and twice that with beta 2."""
    expected, theta = by_hand(0.0, beta=beta)
    np.testing.assert_allclose(expected, beta * 0.0648839477, atol=1e-9)
    server, own, _ = after(1, server_optimizer=optax.sgd(beta))
    np.testing.assert_allclose(server, expected, atol=1e-10)
    np.testing.assert_allclose(own, theta, atol=1e-10)


def test_its_fixed_point():
    """Where the mean of s_i (b_i - x) is zero, s_i = 1 - (1 - eta pull a_i / (a_i + pull))^5."""
    s = 1 - (1 - 0.05 * PULL * A / (A + PULL)) ** 5
    server, own, _ = after(120, rate=0.05)
    np.testing.assert_allclose(server, (s * B).sum() / s.sum(), atol=1e-9)
    _, theta = by_hand(server, rate=0.05)  # of the copy at the last step, not of x
    np.testing.assert_allclose(own, theta, atol=1e-8)


def test_few_inner_steps_go_on_from_the_last_point():
    """Two steps a batch, by hand; the second batch does not begin at the copy again."""
    rate, inner = 0.01, 0.02
    w = np.zeros(2)
    theta = np.zeros(2)
    for _ in range(2):
        for _ in range(2):
            theta = theta - inner * (A * (theta - B) + PULL * (theta - w))
        w = w - rate * PULL * (w - theta)
    server, own, _ = after(1, rate=rate, steps=2, inner_rate=inner, inner_steps=2)
    np.testing.assert_allclose(own, theta, atol=1e-12)
    np.testing.assert_allclose(server, w.mean(), atol=1e-12)


def test_with_whole_steps_it_is_fedprox():
    """learning_rate * pull = 1 and one step: x is the mean of the proximal points."""
    server, own, _ = after(3, rate=1 / PULL, steps=1)
    prox_algo = fl.fedprox(
        quadratic, optax.sgd(1 / (4 + PULL)), mu=PULL, plan=whole(60), weighting="uniform",
        sampler=fl.everyone(),
    )  # fmt: skip
    state = prox_algo.init(KEY, jnp.array(0.0), q2())
    for _ in range(3):
        state, _ = prox_algo.round(KEY, state, q2())
    np.testing.assert_allclose(server, state.server.params, atol=1e-10)
    np.testing.assert_allclose(own.mean(), server, atol=1e-10)


def test_bad_arguments():
    common: Any = {"plan": whole(1), "sampler": fl.everyone(), "learning_rate": 0.1}
    cases: Any = ({"pull": -1.0}, {"learning_rate": float("inf")}, {"inner_steps": 0})
    for wrong in cases:
        (name,) = wrong
        with pytest.raises(ValueError, match=f"{name} must"):
            fl.pfedme(quadratic, optax.sgd(0.1), **{**common, **wrong})
