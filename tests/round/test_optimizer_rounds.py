"""Client optimizers for which a round is too short are named before the first round."""

import warnings

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import fedjax_lite as fl

KEY = jax.random.key(0)
EIGHT = fl.data.from_arrays({"x": np.ones((16, 3))}, np.arange(16) % 2)
UNEVEN = fl.data.from_arrays({"x": np.ones((10, 3))}, [0] * 8 + [1] * 2)
WARM_UP = optax.linear_schedule(0.0, 0.5, 1000)


def loss(w, e, key):
    return e["x"] @ w["w"]


def start(optimizer, *, steps=2, data=EIGHT, method=fl.fedavg, **options):
    size = 8 // steps
    plan = fl.Plan(batch_size=size)
    algo = method(loss, optimizer, plan=plan, sampler=fl.everyone(), **options)
    return algo, algo.init(KEY, {"w": jnp.zeros(3)}, data)


@pytest.mark.sample(2)
@pytest.mark.parametrize(
    "optimizer",
    [
        optax.MultiSteps(optax.sgd(0.5), 4),
        optax.MultiSteps(optax.adam(0.5), 3).gradient_transformation(),
        optax.chain(optax.sgd(0.1), optax.apply_every(4)),
        lambda r: optax.MultiSteps(optax.sgd(0.5), 500),
        optax.MultiSteps(optax.polyak_sgd(), 4),
    ],
)
def test_nobody_would_ever_train(optimizer):
    with pytest.warns(UserWarning, match=r"client_optimizer moves.*nobody ever trains.*MultiSteps"):
        algo, state = start(optimizer)
    after, _ = algo.round(KEY, state, EIGHT)
    np.testing.assert_array_equal(after.server.params["w"], state.server.params["w"])


def test_some_would_never_train():
    with pytest.warns(UserWarning, match=r"some clients do no more than 1 in a round"):
        start(optax.MultiSteps(optax.sgd(0.5), 4), steps=4, data=UNEVEN)


def test_one_step_of_a_warm_up_from_zero():
    with pytest.warns(UserWarning, match="in its step 2.*no client does more than 1"):
        start(optax.sgd(WARM_UP), steps=1)


@pytest.mark.sample(6)
@pytest.mark.parametrize(
    ("optimizer", "times"),
    [
        (optax.sgd(WARM_UP), "1e+03 times larger"),
        (optax.adamw(optax.linear_schedule(0.01, 0.5, 100)), f"{0.5 / 0.0149:.3g} times larger"),
        (optax.inject_hyperparams(optax.sgd)(learning_rate=WARM_UP), "1e+03 times larger"),
        (optax.sgd(optax.cosine_decay_schedule(0.5, 100)), "times smaller"),
        (optax.chain(optax.clip(1.0), optax.sgd(WARM_UP, momentum=0.9)), "1e+03 times larger"),
        (lambda r: optax.sgd(WARM_UP), "1e+03 times larger"),
    ],
)
@pytest.mark.parametrize("method", [fl.fedavg, fl.feddyn])
def test_a_schedule_that_restarts(optimizer, times, method):
    options = {"alpha": 0.1} if method is fl.feddyn else {}
    with pytest.warns(UserWarning, match="schedule over steps.*lambda r: optax.sgd") as found:
        start(optimizer, method=method, **options)
    assert times in str(found[0].message)


@pytest.mark.parametrize(
    "optimizer",
    [
        optax.sgd(0.0),
        optax.sgd(0.1, momentum=0.99),
        optax.adam(0.1),
        optax.adagrad(0.1),
        optax.MultiSteps(optax.sgd(0.5), 2),
        optax.sgd(optax.constant_schedule(0.1)),
        optax.sgd(optax.cosine_decay_schedule(0.5, 2)),
        optax.sgd(optax.linear_schedule(0.1, 0.05, 1000)),
        lambda r: optax.sgd(WARM_UP(r)),
        lambda r: optax.adam(WARM_UP(r)),
        optax.contrib.sam(optax.sgd(0.1), optax.sgd(0.1)),
        optax.lookahead(optax.sgd(0.1), 8, 0.5),
    ],
)
def test_nothing_is_said_of_these(optimizer):
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        start(optimizer)


def test_it_is_said_once_and_not_of_what_is_not_known():
    with pytest.warns(UserWarning, match="schedule"):
        algo, _ = start(optax.sgd(WARM_UP))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        algo.init(KEY, {"w": jnp.zeros(3)}, EIGHT)
        plan = fl.Plan(batch_size=4, steps=lambda key, client: 2)
        by_function = fl.fedavg(loss, optax.sgd(WARM_UP), plan=plan, sampler=fl.everyone())
        by_function.init(KEY, {"w": jnp.zeros(3)}, EIGHT)

        def traced(rate):
            optimizer = optax.MultiSteps(optax.sgd(rate), 4)
            algo = fl.fedavg(loss, optimizer, plan=fl.Plan(4), sampler=fl.everyone())
            return algo.init(KEY, {"w": jnp.zeros(3)}, EIGHT).round

        jax.eval_shape(traced, 0.1)
