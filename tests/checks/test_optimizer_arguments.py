"""Optimizers that ask for more than a gradient, on the client's side and on the server's.

Clients descend on ``f(w) = a / 2 (w - b)^2`` with their whole data a step, so that every answer is
a line of arithmetic or a plain loop of optax.
"""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import fedjax_lite as fl
from fedjax_lite.algorithms.feddyn import feddyn_client, feddyn_server
from fedjax_lite.checks.optimizer_arguments import asks_for, takes_anything

A, B = 2.0, 8.0
KEY = jax.random.key(0)
DATA = fl.data.from_arrays({"a": np.array([A]), "b": np.array([B])}, [0])
SGD, RHO = optax.sgd(0.25), 0.5


def loss(w, e, key):
    return 0.5 * e["a"] * (w - e["b"]) ** 2


def after(num_steps, optimizer, method=fl.fedavg, **options):
    plan = fl.Plan(batch_size=None, steps=num_steps)
    algo = method(loss, optimizer, plan=plan, sampler=fl.everyone(), **options)
    state = algo.init(KEY, jnp.float32(0.0), DATA)
    state, _ = algo.round(KEY, state, DATA)
    return float(state.server.params)


def polyak(num_steps, mu=0.0):
    """Steps of ``f / |f'|^2`` along ``f'``, for `f` with a penalty on the distance to 0."""
    w = 0.0
    for _ in range(num_steps):
        value, slope = A / 2 * (w - B) ** 2 + mu / 2 * w**2, A * (w - B) + mu * w
        w -= value / slope**2 * slope
    return w


def plain_loop(num_steps, optimizer):
    """The loop of optax's own documentation."""
    value_fn = lambda w: A / 2 * (w - B) ** 2  # noqa: E731
    w = jnp.float32(0.0)
    state = optimizer.init(w)
    for _ in range(num_steps):
        value, grad = jax.value_and_grad(value_fn)(w)
        updates, state = optimizer.update(grad, state, w, value=value, grad=grad, value_fn=value_fn)
        w = optax.apply_updates(w, updates)
    return float(w)


def sgd(num_steps, rate=0.25, w=0.0):
    for _ in range(num_steps):
        w -= rate * A * (w - B)
    return w


def sam(num_steps):
    w = 0.0
    for _ in range(num_steps):
        w -= 0.25 * A * (w + RHO * A * (w - B) - B)
    return w


SEARCH = optax.chain(optax.sgd(4.0), optax.scale_by_backtracking_linesearch(20))
OPAQUE = optax.contrib.sam(SGD, optax.sgd(RHO), opaque_mode=True)
ANSWERS = {
    "polyak": (3, optax.polyak_sgd(), polyak(3)),
    "masked polyak": (3, optax.masked(optax.polyak_sgd(), True), polyak(3)),
    "plateau": (2, optax.chain(SGD, optax.contrib.reduce_on_plateau()), sgd(2)),
    "line search": (2, SEARCH, plain_loop(2, SEARCH)),
    "opaque SAM": (2, OPAQUE, sam(2)),
    "SAM in a chain": (2, optax.chain(optax.identity(), OPAQUE), sam(2)),
    "gathering object": (4, optax.MultiSteps(SGD, 2), sgd(2)),
    "gathering polyak": (4, optax.MultiSteps(optax.polyak_sgd(), 2), polyak(2)),
    "a function of the round": (4, lambda r: optax.MultiSteps(SGD, 2), sgd(2)),
    "lookahead": (4, optax.lookahead(SGD, 2, 0.5), (sgd(2) / 2 + sgd(2, w=sgd(2) / 2)) / 2),
}
"""Lookahead: two fast steps, half of the way back, twice: ``x <- (x + y(x)) / 2``."""


@pytest.mark.sample(4)
@pytest.mark.parametrize("name", ANSWERS)
def test_client_optimizer_gets_what_it_asks_for(name):
    num_steps, optimizer, expected = ANSWERS[name]
    np.testing.assert_allclose(after(num_steps, optimizer), expected, rtol=1e-5)


def test_the_loss_is_that_of_the_whole_objective():
    """FedProx and FedDyn (whose clients start without a gradient of their own) pull towards 0."""
    got = after(2, optax.polyak_sgd(), fl.fedprox, mu=0.5)
    np.testing.assert_allclose(got, polyak(2, mu=0.5), rtol=1e-5)
    assert abs(got - polyak(2)) > 0.1
    algo = fl.feddyn(loss, SGD, alpha=0.5, plan=fl.Plan(1), sampler=fl.everyone())
    down = feddyn_server(0.5).broadcast(algo.init(KEY, jnp.float32(0.0), DATA).server)
    client = feddyn_client(loss, optax.polyak_sgd(), alpha=0.5)
    carry = client.start(KEY, jnp.float32(0), down, fl.ClientInfo(*map(jnp.int32, (0, 1, 2, 0))))
    batch = fl.Batch(DATA.examples, jnp.ones(1, bool), KEY)
    carry = client.step(down, client.step(down, carry, batch), batch)
    np.testing.assert_allclose(carry.params, polyak(2, mu=0.5), rtol=1e-5)


def test_optimizers_that_take_no_surplus():
    def update(gradient, state, params=None, *, anchor=None):
        return -0.25 * (gradient + params - anchor), state

    own = optax.GradientTransformationExtraArgs(lambda params: (), update)
    w = sgd(1)
    np.testing.assert_allclose(after(2, own), w - 0.25 * (A * (w - B) + w), rtol=1e-6)
    np.testing.assert_allclose(
        after(2, optax.contrib.sam(SGD, SGD), fl.fedprox, mu=0.0), sam_twice()
    )


def sam_twice():
    """SAM in the open: one step up, then the step from where it began."""
    up = 0.0 + 0.25 * A * (0.0 - B)
    return 0.0 - 0.25 * A * (up - B)


def test_what_local_training_has_not_is_named():
    def update(gradient, state, params=None, *, hessian, **extra):
        return gradient, state

    own = optax.GradientTransformationExtraArgs(lambda params: (), update)
    with pytest.raises(TypeError, match=r"client_optimizer needs the argument hessian.*wrap it"):
        after(1, own)


def test_running_statistics_are_looked_at_with_the_loss():
    params = {"w": jnp.zeros(()), "batch_stats": {"mean": jnp.zeros(())}}
    client = fl.local_sgd(loss, optax.polyak_sgd())
    with pytest.raises(ValueError, match="running statistics"):
        client.init(params)
    fl.local_sgd(loss, fl.models.with_statistics(optax.polyak_sgd())).init(params)


# -- server -----------------------------------------------------------------------------------


def test_server_is_given_the_loss_of_the_cohort():
    """One local step: the pseudo-gradient is ``.25 a (w - b)``, the loss that of the start."""
    delta, value = 0.25 * A * (0 - B), A / 2 * B**2
    got = after(1, SGD, server_optimizer=optax.polyak_sgd(max_learning_rate=1e9))
    np.testing.assert_allclose(got, -value / delta**2 * delta, rtol=1e-5)
    plateau = optax.chain(optax.sgd(1.0), optax.contrib.reduce_on_plateau())
    np.testing.assert_allclose(after(3, SGD, server_optimizer=plateau), sgd(3), rtol=1e-6)
    assert after(3, SGD, server_optimizer=optax.MultiSteps(optax.sgd(1.0), 2)) == 0.0


def test_mean_over_those_who_count():
    server = fl.optimizer_server(optax.polyak_sgd(max_learning_rate=1e9))
    state = server.init(jnp.float32(0.0), None)
    cohort = fl.Cohort(jnp.arange(3), jnp.array([True, False, True]))
    losses = fl.Mean(jnp.array([6.0, jnp.nan, 2.0]), jnp.array([3.0, 1.0, 1.0]))
    new = server.update(KEY, state, jnp.float32(2.0), cohort, {"train_loss": losses})
    assert float(new.params) == -(8 / 4) / 2.0**2 * 2.0


@pytest.mark.parametrize("optimizer", [optax.lbfgs(), SEARCH, OPAQUE])
def test_server_has_no_loss_as_a_function(optimizer):
    with pytest.raises(TypeError, match=r"server_optimizer needs .*_fn.*make it the client_opt"):
        fl.optimizer_server(optimizer)


def test_server_that_is_shown_no_loss():
    server = fl.optimizer_server(optax.polyak_sgd())
    state, cohort = server.init(jnp.float32(0.0), None), fl.Cohort(jnp.arange(1), jnp.ones(1, bool))
    with pytest.raises(TypeError, match=r"server_optimizer needs the argument value.*private"):
        server.update(KEY, state, jnp.float32(2.0), cohort, {})


def test_what_is_asked_for_is_found_without_running():
    assert asks_for(optax.lbfgs()) == {"value", "grad", "value_fn"}
    assert asks_for(OPAQUE) == {"grad_fn"}
    assert [takes_anything(one) for one in (optax.adamw(0.1), OPAQUE, optax.polyak_sgd())] == [
        *(True, False, False)
    ]
