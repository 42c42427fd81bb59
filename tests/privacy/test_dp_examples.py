"""Example-level DP-SGD on clients: per-example sensitivity, reductions, batches, accounting."""

import functools
import math

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import fedjax_lite as fl
import fedjax_lite.privacy as dp
from fedjax_lite import testing
from fedjax_lite.types import Batch, ClientInfo

KEY = jax.random.key(0)


def make(client, plan, strategy=None):
    return fl.federated_algorithm(
        client,
        plan=plan,
        sampler=fl.everyone(),
        server=fl.optimizer_server(optax.sgd(1.0)),
        strategy=strategy,
    )


def trained(client, plan, num_rounds=2):
    data = testing.population()
    algo = make(client, plan)
    state = algo.init(KEY, testing.init_params(jax.random.key(7)), data)
    for _ in range(num_rounds):
        state, metrics = algo.round(KEY, state, data)
    return np.append(state.server.params["w"], state.server.params["b"]), metrics


@pytest.mark.sample(1)
@pytest.mark.parametrize(
    ("plan", "sampling_rate"),
    [(fl.Plan(batch_size=2, epochs=2), None), (fl.Plan(batch_size=None, steps=3), 1.0)],
)
def test_without_noise_and_bound_it_is_local_sgd(plan, sampling_rate):
    private = dp.dp_sgd(
        testing.loss, 0.05, clip=math.inf, noise_multiplier=0.0, sampling_rate=sampling_rate
    )
    got, metrics = trained(private, plan)
    expected, plain = trained(fl.local_sgd(testing.loss, optax.sgd(0.05)), plan)
    np.testing.assert_allclose(got, expected, rtol=1e-5, atol=1e-6)
    assert float(metrics["train_loss"]) == pytest.approx(float(plain["train_loss"]), rel=1e-5)


def test_rate_may_be_a_schedule():
    plan = fl.Plan(batch_size=2)
    options = {"clip": math.inf, "noise_multiplier": 0.0}
    got, _ = trained(dp.dp_sgd(testing.loss, lambda r: 0.05 * 0.5**r, **options), plan)
    expected, _ = trained(fl.local_sgd(testing.loss, lambda r: optax.sgd(0.05 * 0.5**r)), plan)
    np.testing.assert_allclose(got, expected, rtol=1e-5, atol=1e-6)


@functools.lru_cache
def one_step(sampling_rate):
    """What one step at rate 1 moves the parameters by, compiled once."""
    client = dp.dp_sgd(
        lambda w, e, key: 0.5 * (e["x"] @ w - e["y"]) ** 2,
        1.0,
        clip=0.5,
        noise_multiplier=0.0,
        sampling_rate=sampling_rate,
    )

    @jax.jit
    def step(size, batch):
        info = ClientInfo(jnp.int32(0), size, jnp.int32(1), jnp.int32(0))
        carry = client.start(None, (), jnp.array([0.2, -0.1]), info)
        return carry.params - client.step(None, carry, batch).params

    return step


def gradient_sum(examples, *, mask=None, sampling_rate=None):
    """``b * (y - y')`` of one step at rate 1: the sum of clipped gradients."""
    count = len(examples["y"])
    mask = np.ones(count, bool) if mask is None else np.asarray(mask)
    batch = Batch(jax.tree.map(jnp.asarray, examples), jnp.asarray(mask), KEY)
    moved = np.asarray(one_step(sampling_rate)(jnp.int32(count), batch), np.float64)
    denominator = mask.sum() if sampling_rate is None else sampling_rate * count
    return moved * denominator


def examples(last):
    rng = np.random.default_rng(0)
    x, y = rng.normal(size=(6, 2)).astype(np.float32), rng.normal(size=6).astype(np.float32)
    x[-1], y[-1] = last
    return {"x": x, "y": y}


@pytest.mark.parametrize("sampling_rate", [None, 1.0])
def test_one_example_moves_the_sum_by_at_most_the_clip(sampling_rate):
    gone = np.array([True] * 5 + [False])
    without = gradient_sum(examples(([0, 0], 0)), mask=gone, sampling_rate=sampling_rate)
    for last in (
        ([9, 9], -1e6),
        ([1e30, 1], 1),
        ([np.nan, 0], 0),
        ([3e38, 3e38], -3e38),
        ([0, 0], 0),
    ):
        total = gradient_sum(examples(last), sampling_rate=sampling_rate)
        assert np.isfinite(total).all()
        assert np.linalg.norm(total - without) <= 0.5 * (1 + 1e-4)
    tight = gradient_sum(examples(([9, 9], -1e6)), sampling_rate=sampling_rate)
    assert np.linalg.norm(tight - without) > 0.499


def test_gradients_are_clipped_one_by_one():
    """By numpy: the sum of clipped gradients, not the clipped sum."""
    data, w = examples(([2.0, 1.0], 5.0)), np.array([0.2, -0.1])
    expected = np.zeros(2)
    for x, y in zip(data["x"], data["y"], strict=True):
        gradient = (x @ w - y) * x.astype(np.float64)
        expected += gradient * min(1.0, 0.5 / np.linalg.norm(gradient))
    np.testing.assert_allclose(gradient_sum(data), expected, rtol=1e-5)


def test_poisson_batches():
    """Every example with probability q, independently; over a fixed ``q n``."""
    ones = {"x": np.tile([[1.0, 0.0]], (20, 1)).astype(np.float32), "y": np.zeros(20, np.float32)}
    each = np.linalg.norm(gradient_sum(ones)) / 20  # all gradients are equal
    ones, mask = jax.tree.map(jnp.asarray, ones), jnp.ones(20, bool)
    step = jax.vmap(lambda key: one_step(0.3)(jnp.int32(20), Batch(ones, mask, key)))
    moved = jax.jit(step)(jax.random.split(KEY, 400))
    drawn = np.linalg.norm(np.asarray(moved), axis=1) * 0.3 * 20 / each
    counts = np.round(drawn)
    np.testing.assert_allclose(drawn, counts, atol=1e-3)
    assert counts.mean() == pytest.approx(6, abs=5 * math.sqrt(4.2 / 400))
    assert counts.var() == pytest.approx(4.2, rel=5 * math.sqrt(2 / 400))


@pytest.mark.sample(1)
@pytest.mark.parametrize("sampling_rate", [pytest.param(None, marks=pytest.mark.slow), 0.5])
def test_strategies_agree_and_empty_clients_are_idle(sampling_rate):
    """The population has a client without data; noise is keyed by client, not by lane."""
    client = dp.dp_sgd(
        testing.loss, 0.05, clip=0.5, noise_multiplier=1.0, sampling_rate=sampling_rate
    )
    plan = fl.Plan(batch_size=None, steps=2) if sampling_rate else fl.Plan(batch_size=2)
    data, models = testing.population(), []
    for strategy in (fl.sequential(), fl.vmapped()):
        algo = make(client, plan, strategy)
        state = algo.init(KEY, testing.init_params(KEY), data)
        state, _ = algo.round(KEY, state, data)
        models.append(np.asarray(state.server.params["w"]))
    assert np.isfinite(models[0]).all()
    np.testing.assert_allclose(*models, rtol=2e-5, atol=2e-6)


def test_laws():
    def algorithm(learning_rate, sampler, strategy):
        return fl.federated_algorithm(
            dp.dp_sgd(testing.loss, learning_rate, clip=0.5, noise_multiplier=0.5),
            plan=fl.Plan(batch_size=2),
            sampler=sampler,
            server=fl.optimizer_server(optax.sgd(1.0)),
            strategy=strategy,
        )

    laws = ["structure_is_stable", "never_retraces", "masked_clients_leave_no_trace"]
    testing.check_algorithm(algorithm, laws=laws)


def test_epsilon_of_an_example():
    z, delta = 2.0, 1e-5
    one = {"noise_multiplier": z, "delta": delta}
    # Ordinary batches: 50 examples in batches of 10, 12 steps are three epochs, begun or done.
    got = dp.dp_sgd_epsilon(**one, steps=12, num_rounds=4, size=50, batch_size=10)
    assert got == pytest.approx(dp.gdp_epsilon(delta, math.sqrt(12) / z))
    whole = dp.dp_sgd_epsilon(**one, steps=3, num_rounds=4, size=50)
    assert whole == pytest.approx(dp.gdp_epsilon(delta, math.sqrt(12) / z))
    drawn = dp.dp_sgd_epsilon(**one, steps=12, num_rounds=4, sampling_rate=0.1)
    assert drawn == dp.epsilon(noise_multiplier=z, sampling_rate=0.1, num_rounds=48, delta=delta)
    assert drawn < got
    silent = {"noise_multiplier": 0.0, "delta": delta, "steps": 1, "num_rounds": 1, "size": 3}
    assert dp.dp_sgd_epsilon(**silent) == math.inf
    assert dp.dp_sgd_epsilon(**one, steps=1, num_rounds=0, size=3) == 0.0


def test_bad_arguments():
    options = {"clip": 1.0, "noise_multiplier": 1.0}
    for change, message in (
        ({"clip": 0.0}, "clip"),
        ({"noise_multiplier": -1.0}, "noise_multiplier"),
        ({"sampling_rate": 0.0}, "sampling_rate"),
        ({"sampling_rate": 2.0}, "sampling_rate"),
    ):
        with pytest.raises(ValueError, match=message):
            dp.dp_sgd(testing.loss, 0.1, **{**options, **change})
    with pytest.raises(TypeError, match="loss"):
        dp.dp_sgd(3.0, 0.1, **options)
    with pytest.raises(ValueError, match="exactly one of sampling_rate"):
        dp.dp_sgd_epsilon(noise_multiplier=1.0, delta=1e-5, steps=1, num_rounds=1)
    bad = dp.dp_sgd(lambda w, e, key: jnp.mean(e["b"] * w), 0.1, **options)
    carry = bad.start(None, (), jnp.zeros(()), ClientInfo(*map(jnp.int32, (0, 1, 1, 0))))
    with pytest.raises(ValueError, match="one value per example"):
        bad.step(None, carry, Batch({"b": jnp.ones(2)}, jnp.ones(2, bool), KEY))
