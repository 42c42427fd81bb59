"""Masked losses and gradients, and local SGD as start / step / finish."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import fedjax_lite as fl
from fedjax_lite.round.local import resolve_optimizer

KEY = jax.random.key(0)


def squares(w, e, key):
    return 0.5 * (e["x"] @ w - e["y"]) ** 2


def batch(x, y, mask):
    return fl.Batch(
        {"x": jnp.asarray(x, jnp.float32), "y": jnp.asarray(y, jnp.float32)}, jnp.asarray(mask), KEY
    )


@pytest.fixture
def problem():
    rng = np.random.default_rng(0)
    return rng.normal(size=(5, 3)), rng.normal(size=5), np.array([1, 0, 1, 1, 0], bool)


def test_mean_over_the_real_examples(problem):
    x, y, mask = problem
    w = np.array([0.3, -1.0, 2.0])
    residual = (x @ w - y)[mask]
    value, gradient = fl.mean_grad(squares)(jnp.asarray(w, jnp.float32), batch(x, y, mask))
    np.testing.assert_allclose(value, 0.5 * (residual**2).mean(), rtol=1e-5)
    np.testing.assert_allclose(gradient, residual @ x[mask] / mask.sum(), rtol=1e-5, atol=1e-6)


def test_no_real_example_gives_zero_not_nan(problem):
    x, y, _ = problem
    value, gradient = fl.mean_grad(squares)(jnp.ones(3), batch(x, y, np.zeros(5, bool)))
    assert float(value) == 0
    np.testing.assert_array_equal(gradient, np.zeros(3))


@pytest.mark.parametrize("bad", [np.nan, np.inf])
def test_masked_examples_count_nowhere_in_the_loss(problem, bad):
    x, y, mask = problem
    poisoned = np.where(mask[:, None], x, bad)
    clean = fl.mean_loss(squares, jnp.ones(3), batch(x, y, mask))
    assert float(fl.mean_loss(squares, jnp.ones(3), batch(poisoned, y, mask))) == float(clean)


@pytest.mark.parametrize(
    ("loss", "shape"),
    [
        (lambda w, e, key: ((e["x"] @ w - e["y"]) ** 2).mean(), r"\[\]"),
        (lambda w, e, key: (e["x"] @ w - e["y"])[:, None] ** 2, r"\[5, 1\]"),
        (lambda w, e, key: e["x"] * w, r"\[5, 3\]"),
        (lambda w, e, key: 0.0, r"\[\]"),
    ],
)
def test_loss_must_be_per_example(problem, loss, shape):
    x, y, mask = problem
    message = rf"loss must return one value per example, shape \[5\], got {shape}; drop the mean"
    with pytest.raises(ValueError, match=message):
        fl.mean_loss(loss, jnp.ones(3), batch(x, y, mask))


def run_steps(client, w, batches, info):
    carry = client.start(KEY, (), w, info)
    for one in batches:
        carry = client.step(w, carry, one)
    return client.finish(w, carry)


def make_info(size=5, num_steps=2, round=0):
    return fl.ClientInfo(*map(jnp.int32, (1, size, num_steps, round)))


def test_steps_by_hand_with_momentum(problem):
    x, y, mask = problem
    client = fl.local_sgd(squares, optax.sgd(0.1, momentum=0.5))
    batches = [batch(x, y, mask), batch(x[::-1], y[::-1], np.ones(5, bool))]
    w0 = np.array([0.3, -1.0, 2.0])
    row, message, metrics = run_steps(client, jnp.asarray(w0, jnp.float32), batches, make_info())
    w, v, losses = w0, np.zeros(3), []
    for rows in (mask, np.ones(5, bool)):
        residual = (x @ w - y)[rows]
        losses += list(0.5 * residual**2)
        v = residual @ x[rows] / rows.sum() + 0.5 * v
        w = w - 0.1 * v
    assert row == ()
    np.testing.assert_allclose(message.value, w0 - w, rtol=1e-4, atol=1e-6)
    assert float(message.weight) == 5
    loss = metrics["train_loss"]
    np.testing.assert_allclose([loss.total, loss.count], [sum(losses), len(losses)], rtol=1e-5)


def test_no_step_sends_zero_with_weight_zero():
    client = fl.local_sgd(squares, optax.sgd(0.1))
    _, message, metrics = run_steps(client, jnp.ones(3), [], make_info(0, 0))
    np.testing.assert_array_equal(message.value, np.zeros(3))
    assert float(message.weight) == 0
    assert float(metrics["train_loss"].count) == 0


def test_the_optimizer_is_given_the_anchor_and_the_round(problem):
    x, y, mask = problem

    def proximal(rate, mu):
        def update(g, state, params: Any = None, *, anchor: Any = None, **extra):
            return -rate * (g + mu * (params - anchor)), state

        return optax.GradientTransformationExtraArgs(lambda params: (), update)

    client = fl.local_sgd(squares, lambda r: proximal(0.1 / (1 + r), 2.0))
    w0 = np.array([0.3, -1.0, 2.0])
    batches = [batch(x, y, mask)] * 3
    _, message, _ = run_steps(client, jnp.asarray(w0, jnp.float32), batches, make_info(round=4))
    w = w0
    for _ in range(3):
        w = w - 0.02 * ((x[mask] @ w - y[mask]) @ x[mask] / mask.sum() + 2.0 * (w - w0))
    np.testing.assert_allclose(message.value, w0 - w, rtol=1e-4, atol=1e-6)


def test_resolve_optimizer_takes_both_forms():
    for form in (optax.sgd(0.5), lambda r: optax.sgd(0.25 * r)):
        tx = resolve_optimizer(form)(jnp.int32(2))
        updates, _ = tx.update(jnp.ones(1), tx.init(jnp.ones(1)), anchor=jnp.ones(1))
        np.testing.assert_allclose(updates, [-0.5])


@pytest.mark.parametrize("wrong", [0.1, "sgd", None, (optax.sgd(0.1),)])
def test_wrong_client_optimizer(wrong):
    with pytest.raises(TypeError, match="client_optimizer must be an optax optimizer"):
        fl.local_sgd(squares, wrong)


def start_locally(client_optimizer):
    fl.local_sgd(squares, client_optimizer).start(KEY, (), jnp.ones(3), make_info())


def test_a_schedule_that_gives_no_optimizer():
    """A schedule of rates in place of a schedule of optimizers: name argument and remedy."""
    with pytest.raises(TypeError, match="client_optimizer"):
        start_locally(lambda r: 0.1 * 0.9**r)


def test_an_optimizer_factory_that_was_not_called():
    """optax.sgd in place of optax.sgd(0.1) would take the round's number for its rate."""
    with pytest.raises(TypeError, match="client_optimizer"):
        start_locally(optax.sgd)
