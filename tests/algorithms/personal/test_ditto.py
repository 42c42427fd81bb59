"""Ditto: closed forms on quadratics, and what it is without a pull."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import fedjax_lite as fl
from fedjax_lite import testing
from fedjax_lite.testing.algorithm_laws import same
from fedjax_lite.types import ClientInfo

KEY = jax.random.key(0)
A, B, N, ETA = np.array([1.0, 4.0]), np.array([-1.0, 2.0]), np.array([30, 10]), 0.05
P = N / N.sum()
THREE = fl.Plan(batch_size=None, steps=3)


def quadratic(w, e, key):
    return 0.5 * e["a"] * (w - e["b"]) ** 2


def q2():
    return fl.data.from_arrays({"a": np.repeat(A, N), "b": np.repeat(B, N)}, np.repeat([0, 1], N))


def after(num_rounds, *, plan=THREE, data=None, start=0.0, **options):
    """Server and own models on Q2."""
    data = q2() if data is None else data
    algo = fl.ditto(quadratic, optax.sgd(ETA), plan=plan, sampler=fl.everyone(), **options)
    state = algo.init(KEY, jnp.array(start), data)
    for _ in range(num_rounds):
        state, metrics = algo.round(KEY, state, data)
    return float(state.server.params), np.asarray(fl.personal_models(state)), metrics


def test_three_steps_by_hand():
    """KNOWN_ANSWERS 8: from 0, with pull 1, the clients' own models are at -.1355 and .925."""
    with jax.enable_x64(True):
        expected, losses = np.zeros(2), []
        for _ in range(3):  # the global model is 0 for the whole round
            losses.append(P @ (0.5 * A * (expected - B) ** 2))
            expected = expected - ETA * (A * (expected - B) + 1.0 * (expected - 0.0))
        np.testing.assert_allclose(expected, [-0.1355, 0.925], atol=1e-12)
        _, own, metrics = after(1, pull=1.0)
        np.testing.assert_allclose(own, expected, atol=1e-12)
        np.testing.assert_allclose(metrics["personal_train_loss"], np.mean(losses), rtol=1e-6)


@pytest.mark.sample(2)
@pytest.mark.parametrize("pull", [0.0, 0.1, 1.0, 10.0])
def test_own_models_end_between_their_optimum_and_the_global_model(pull):
    """(a b + pull x) / (a + pull), where x is FedAvg's fixed point."""
    with jax.enable_x64(True):
        gain = 1 - (1 - ETA * A) ** 3
        x = (P * gain * B).sum() / (P * gain).sum()
        server, own, _ = after(400, pull=pull)
        np.testing.assert_allclose(server, x, atol=1e-9)
        np.testing.assert_allclose(own, (A * B + pull * x) / (A + pull), atol=1e-9)


def both(**options):
    """Ditto on the laws' population, half of whose clients take part."""
    return fl.ditto(
        testing.loss, optax.sgd(0.05, momentum=0.9), plan=fl.Plan(batch_size=2, epochs=2),
        sampler=fl.uniform(4), **options,
    )  # fmt: skip


def run(algo, num_rounds=3):
    data, params = testing.population(), testing.init_params(KEY)
    state = algo.init(KEY, params, data)
    for _ in range(num_rounds):
        state, metrics = algo.round(KEY, state, data)
    return state, metrics


@pytest.mark.sample(5, of="reductions to another method")
def test_the_global_model_is_fedavgs_and_without_a_pull_the_others_are_local_onlys():
    """In every bit, with a loss that draws from its key and with unequal batches."""
    common = {"plan": fl.Plan(batch_size=2, epochs=2), "sampler": fl.uniform(4)}
    optimizer = optax.sgd(0.05, momentum=0.9)
    average, _ = run(fl.fedavg(testing.loss, optimizer, **common))
    alone, _ = run(fl.local_only(testing.loss, optimizer, **common))
    for pull in (0.0, 0.7):
        state, _ = run(both(pull=pull, keep_optimizer=True))
        same(state.server, average.server, exact=True)
        if pull == 0:
            same(fl.personal_models(state), fl.personal_models(alone), exact=True)
    with pytest.raises(AssertionError):
        same(fl.personal_models(state), fl.personal_models(alone))


def test_a_plan_of_its_own_that_is_the_same_plan_changes_nothing():
    one, _ = run(both(pull=0.5))
    two, metrics = run(both(pull=0.5, personal_plan=fl.Plan(batch_size=2, epochs=2)))
    same(one.clients, two.clients)
    same(one.server, two.server)
    assert int(metrics["personal_steps"]) * 2 == int(metrics["num_steps"])


def test_own_optimizer_and_steps():
    """Two own steps with rate .1 beside three global ones; by hand."""
    with jax.enable_x64(True):
        options = {"personal_plan": fl.Plan(batch_size=None, steps=2), "pull": 1.0}
        server, own, metrics = after(1, personal_optimizer=optax.sgd(0.1), start=0.5, **options)
        v = np.full(2, 0.5)
        for _ in range(2):
            v = v - 0.1 * (A * (v - B) + 1.0 * (v - 0.5))
        np.testing.assert_allclose(own, v, atol=1e-12)
        y = B + (1 - ETA * A) ** 3 * (0.5 - B)
        np.testing.assert_allclose(server, P @ y, atol=1e-12)
        assert int(metrics["personal_steps"]) == 4
        assert int(metrics["num_steps"]) == 10


def test_who_trains_its_own_model_only_sends_nothing():
    plan = fl.Plan(batch_size=None, steps=np.array([0, 3]))
    own_plan = fl.Plan(batch_size=None, steps=1)
    server, own, metrics = after(1, plan=plan, personal_plan=own_plan, pull=0.0)
    alone = 2.0 * (1 - (1 - ETA * 4.0) ** 3)  # client 1's update has all the weight
    np.testing.assert_allclose(server, alone, rtol=1e-6)
    np.testing.assert_allclose(own, ETA * A * B, rtol=1e-6)
    assert float(metrics["uplink_bits"]) == 32
    assert int(metrics["num_clients"]) == 1


def test_a_step_on_both_costs_two_gradients(optimised):
    """By XLA's own count of multiplications, beside a step of FedAvg on the same batch."""
    model = fl.models.mlp((64,), num_classes=5, input_shape=(32,))
    slots: Any = {"plan": fl.Plan(batch_size=16), "sampler": fl.everyone()}
    info = ClientInfo(*map(jnp.int32, (0, 16, 1, 0)))
    batch = fl.Batch({"x": jnp.ones((16, 32)), "y": jnp.zeros(16, int)}, jnp.ones(16, bool), KEY)
    params, flops = model.init(KEY), []
    for algo in (
        fl.fedavg(model.loss, optax.sgd(0.1), **slots),
        fl.ditto(model.loss, optax.sgd(0.1), pull=0.5, **slots),
    ):
        assert algo.slots is not None
        client: Any = algo.slots.client
        carry = client.start(KEY, client.init(params), params, info)
        cost = jax.jit(client.step).lower(params, carry, batch).compile().cost_analysis()
        flops.append((cost[0] if isinstance(cost, list) else cost)["flops"])
    assert 1.9 * flops[0] < flops[1] < 2.1 * flops[0]


def test_bad_arguments():
    for pull in (-1.0, float("nan")):
        with pytest.raises(ValueError, match="pull must"):
            both(pull=pull)
    with pytest.raises(TypeError, match="personal_plan must be a Plan"):
        both(pull=1.0, personal_plan=3)
    with pytest.raises(TypeError, match="personal_optimizer"):
        both(pull=1.0, personal_optimizer=0.1)
