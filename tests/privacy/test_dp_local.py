"""Local DP: the analytic scale, what is composed, unit weights, and who may take part."""

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
from fedjax_lite.types import Cohort, Message

KEY = jax.random.key(0)


def local(**change):
    options = {
        "clip": 1.0,
        "delta": 1e-5,
        "num_clients": 7,
        "cohort_size": 3,
        "num_rounds": 1,
        **({} if "noise_multiplier" in change else {"epsilon": 1.0}),
    }
    return dp.local_gaussian(**{**options, **change})


def stddev(mechanism, size=40_000):
    value = mechanism.uplink.update(KEY, mechanism.uplink.init(jnp.zeros(size)), jnp.zeros(size))[1]
    return float(np.std(np.asarray(value)))


def test_scale_is_the_analytic_gaussian():
    """Sensitivity 2 C (replace) or C (add or remove); defect 28's classical sigma is 30 % more."""
    # 4e4 draws: the standard deviation's relative error is .35 %.
    for adjacency, sensitivity in (("replace", 2.0), ("add_remove", 1.0)):
        got = stddev(local(adjacency=adjacency, clip=0.5))
        assert got == pytest.approx(3.730632 * 0.5 * sensitivity, rel=0.018)


def test_every_round_is_composed():
    """R = T reports of one client: sqrt(R) times the noise, the budget reached at the end."""
    four = local(num_rounds=4, epsilon=2.0)
    assert stddev(four) == pytest.approx(2 * stddev(local(epsilon=2.0)), rel=1e-5)
    assert four.accountant.spent(4)["epsilon"] == pytest.approx(2.0, rel=1e-9)
    mu = dp.gdp_mu(2.0, 1e-5)
    for rounds in (1, 2, 3):
        expected = dp.gdp_epsilon(1e-5, mu * math.sqrt(rounds / 4))
        assert four.accountant.spent(rounds)["epsilon"] == pytest.approx(expected, rel=1e-9)
    assert four.accountant.max_rounds == 4


def test_turns_cost_a_client_less():
    """7 clients, 3 a round: 3 rounds an epoch, so 6 rounds are 2 reports."""
    turns = local(num_rounds=6, participation="once_an_epoch")
    assert stddev(turns) == pytest.approx(math.sqrt(2) * stddev(local()), rel=1e-5)
    assert turns.accountant.spent(3) == turns.accountant.spent(1)
    assert turns.accountant.spent(4) == turns.accountant.spent(6)


def test_uniform_mean_ignores_weights():
    rows = Message(jnp.array([[1.0], [5.0], [100.0]]), jnp.array([990.0, 10.0, 1.0]))
    aggregator, mask = dp.uniform_mean(), jnp.array([True, True, False])
    acc = aggregator.init(Message(jnp.zeros(1), jnp.ones(())), 3)
    acc = aggregator.add(acc, rows, jnp.arange(3), mask)
    out = aggregator.finish(KEY, (), acc, Cohort(jnp.arange(3), mask))[1]
    np.testing.assert_allclose(out, [3.0])


def test_no_noise_is_clipped_uniform_fedavg():
    data = fl.data.from_arrays(
        {k: np.asarray(v) for k, v in testing.population().examples.items()},
        np.arange(22) % 7,
        num_clients=7,
    )
    models = []
    shared = {"plan": fl.Plan(batch_size=2)}
    for slots in (
        {"privacy": local(noise_multiplier=0.0, clip=0.1, num_rounds=3), "weighting": "examples"},
        {"sampler": fl.uniform(3), "uplink": fl.clip(0.1), "weighting": "uniform"},
    ):
        algo = fl.fedavg(testing.loss, optax.sgd(0.05), **shared, **slots)
        state = algo.init(KEY, testing.init_params(KEY), data)
        for _ in range(3):
            state, _ = algo.round(KEY, state, data)
        models.append(np.asarray(state.server.params["w"]))
    np.testing.assert_allclose(*models, rtol=1e-6)


@functools.partial(jax.jit, static_argnames="clip")
def step(noise, own_clip=None, *, clip=1.0):
    """What one round of FedAvg adds to the model; one program for all noise and own clips."""
    algo = fl.fedavg(
        testing.loss,
        optax.sgd(0.05),
        plan=fl.Plan(batch_size=2),
        privacy=local(noise_multiplier=noise, clip=clip, num_rounds=3, cohort_size=7),
        uplink=None if own_clip is None else fl.clip(own_clip),
    )
    data = testing.population()
    params = testing.init_params(KEY)
    state, _ = algo.round(KEY, algo.init(KEY, params, data), data)
    return jnp.concatenate(
        [jnp.ravel(state.server.params[name] - params[name]) for name in ("w", "b")]
    )


def test_own_uplink_comes_first():
    """The user's clip to .1 and the mechanism's to 1, without and with noise."""
    both = step(0.0, 0.1)
    alone = step(0.0, clip=0.1)
    np.testing.assert_allclose(both, alone, rtol=1e-6)
    # Some updates exceed .1 by far: without the user's clip the step is another one.
    assert np.abs(step(0.0) - both).max() > 0.01
    # The noise is the mechanism's and comes after the user's clip, which would cut it off: .1 is
    # far below its norm. It is the same for the same key, whatever the clips before it.
    noise = step(5.0, 0.1) - both
    assert np.linalg.norm(noise) > 0.5
    small = [step(z, 0.01) for z in (5.0, 0.0)]
    np.testing.assert_allclose(small[0] - noise, small[1], atol=1e-6)


def test_narrow_updates_are_sent_as_float32():
    """bfloat16: the clip holds to float32's rounding, and the noise is not rounded away."""
    value = {"a": jnp.full(3000, 1e12, jnp.bfloat16), "b": jnp.full((2,), -3e11, jnp.bfloat16)}
    silent, loud = (local(clip=1e3, noise_multiplier=z).uplink for z in (0.0, 1e-4))
    sent = jax.jit(silent.update)(KEY, silent.init(value), value)[1]
    flat = np.concatenate([np.asarray(sent[name], np.float64) for name in "ab"])
    assert np.linalg.norm(flat) <= 1e3 * (1 + 1e-6)
    noisy = jax.jit(loud.update)(KEY, loud.init(value), value)[1]
    assert noisy["a"].dtype == sent["a"].dtype == jnp.float32
    assert len(np.unique(noisy["a"])) > 2500
    assert np.std(np.asarray(noisy["a"] - sent["a"])) == pytest.approx(0.1, rel=0.07)  # 5 sigma


def test_a_bfloat16_model_trains():
    algo = fl.fedavg(
        testing.loss, optax.sgd(0.05), plan=fl.Plan(batch_size=2), privacy=local(num_rounds=3)
    )
    params = jax.tree.map(lambda leaf: leaf.astype(jnp.bfloat16), testing.init_params(KEY))
    data = testing.population()
    state, _ = algo.round(KEY, algo.init(KEY, params, data), data)
    assert state.server.params["w"].dtype == jnp.bfloat16
    assert bool((state.server.params["w"] != params["w"]).any())


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"adjacency": "swap"}, "adjacency"),
        ({"participation": "weighted"}, "participation"),
        ({"epsilon": 0.0}, "epsilon"),
        ({"epsilon": 1.0, "noise_multiplier": 1.0}, "exactly one of epsilon and noise_multiplier"),
        ({"clip": math.inf}, "clip must be finite"),
        ({"cohort_size": 8}, "cohort_size"),
        ({"num_rounds": 0}, "num_rounds"),
        ({"delta": 2.0}, "delta"),
    ],
)
def test_bad_arguments(change, message):
    with pytest.raises(ValueError, match=message):
        local(**change)


def test_another_population_is_refused():
    with pytest.raises(ValueError, match="declared for 7 clients"):
        local().sampler.init(8)
    assert local(noise_multiplier=0.0).accountant.description.startswith("NOT PRIVATE")
