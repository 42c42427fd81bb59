"""The distributed discrete Gaussian in runs: accuracy, too few survivors, budgets, options."""

import math

import chex
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from noisy_exchange import send

import fedjax_lite as fl
from fedjax_lite import testing
from fedjax_lite.privacy.discrete.grid import make_grid
from fedjax_lite.privacy.discrete.mechanism import distributed_discrete_gaussian
from fedjax_lite.types import Message

DELTA = 1e-5
PLAN = fl.Plan(batch_size=None)


def mechanism(**options):
    defaults = {
        "clip": 1.0,
        "cohort_size": 7,
        "dimension": 4,
        "delta": DELTA,
        "noise_multiplier": 1.0,
        "bits": 20,
    }
    return distributed_discrete_gaussian(**{**defaults, **options})


def run(privacy, *, num_rounds=1, **options):
    algo = fl.fedavg(
        testing.loss,
        optax.sgd(0.05),
        plan=PLAN,
        privacy=privacy,
        **options,
    )
    data, key = testing.population(), jax.random.key(0)
    state = algo.init(key, testing.init_params(jax.random.key(7)), data)
    for _ in range(num_rounds):
        state, metrics = algo.round(key, state, data)
    return algo, state, metrics


def test_a_federated_run():
    """Without noise FedAvg with uniform weights over all slots; with it noise of the right size."""
    plain = mechanism(noise_multiplier=0.0, clip=1e3, bits=24)
    _, exact, metrics = run(plain)
    assert float(metrics["uplink_bits"]) == 7 * 4 * 24
    algo = fl.fedavg(
        testing.loss, optax.sgd(0.05), plan=PLAN,
        sampler=fl.everyone(), weighting="uniform",
    )  # fmt: skip
    data, key = testing.population(), jax.random.key(0)
    start = algo.init(key, testing.init_params(jax.random.key(7)), data)
    mean, _ = algo.round(key, start, data)
    # Six of seven clients have data; the denominator is fixed.
    for name in ("w", "b"):
        begin = start.server.params[name]
        np.testing.assert_allclose(
            exact.server.params[name] - begin,
            6 / 7 * (mean.server.params[name] - begin),
            atol=3e-3,
        )
    noisy, state, _ = run(mechanism(), num_rounds=2)
    assert noisy.accountant.spent(2)["epsilon"] > noisy.accountant.spent(1)["epsilon"] > 4.377178
    chex.assert_tree_all_finite(state.server.params)


@pytest.mark.sample(1, of="mechanisms equal under all strategies")
def test_strategies_agree():
    runs = [run(mechanism(), strategy=s)[1] for s in (fl.sequential(), fl.chunked(3))]
    for a, b in zip(*(jax.tree.leaves(r.server.params) for r in runs), strict=True):
        np.testing.assert_allclose(a, b, atol=1e-4)


def test_too_few_survivors_abort():
    """Fewer than min_clients: the aggregate is zero; so many: it is not."""
    grid = make_grid(clip=1.0, cohort_size=4, dimension=8, stddev=0.5, bits=16)
    updates = jnp.ones((4, 8))
    few, _ = send(
        grid, updates, cohort_size=4, min_clients=3, mask=np.array([True, False, True, False])
    )
    assert not few.any()
    enough, _ = send(
        grid, updates, cohort_size=4, min_clients=3, mask=np.array([True, False, True, True])
    )
    assert enough.any()


def test_min_clients_cost_noise_not_privacy():
    """Noise is spread over fewer, so that each adds more; rho a round stays 1 / (2 z^2)."""
    wide = mechanism(min_clients=5, bits=22).accountant.spent(1)["epsilon"]
    all_of_them = mechanism(bits=22).accountant.spent(1)["epsilon"]
    assert wide == pytest.approx(all_of_them, rel=1e-2)


def test_budgets():
    budget = mechanism(noise_multiplier=None, epsilon=8.0, num_rounds=20).accountant
    assert budget.max_rounds == 20
    assert 7.98 < budget.spent(20)["epsilon"] <= 8.0
    assert budget.spent(0) == {"epsilon": 0.0}
    stated = mechanism(noise_multiplier=3.0, epsilon=8.0).accountant
    assert stated.spent(stated.max_rounds)["epsilon"] <= 8.0
    assert stated.spent(stated.max_rounds + 1)["epsilon"] > 8.0
    bare = mechanism(noise_multiplier=0.0).accountant
    assert bare.spent(1)["epsilon"] == math.inf
    assert bare.description.startswith("NOT PRIVATE")
    assert "no amplification" in mechanism().accountant.description


@pytest.mark.parametrize(
    ("options", "match"),
    [
        ({"clip": 0.0}, "clip"),
        ({"cohort_size": 0}, "cohort_size"),
        ({"min_clients": 8}, "min_clients"),
        ({"delta": 1.0}, "delta"),
        ({"noise_multiplier": None}, "epsilon or noise_multiplier"),
        ({"noise_multiplier": None, "epsilon": 2.0}, "num_rounds"),
        ({"epsilon": 0.1}, "does not allow one round"),
        ({"bits": 25}, "bits"),
        ({"bits": 3, "cohort_size": 100}, "bits"),
        ({"bits": 4}, "at least 1/2"),
        ({"tail": 0.0}, "tail"),
        ({"beta": 1.0}, "beta"),
        ({"dimension": 0}, "dimension"),
        ({"num_rounds": 0}, "num_rounds"),
    ],
)
def test_bad_options_are_named(options, match):
    with pytest.raises(ValueError, match=match):
        mechanism(**options)


def test_mismatches_are_named():
    with pytest.raises(ValueError, match="dimension must be"):
        run(mechanism(dimension=5))
    with pytest.raises(ValueError, match="sampler's 7 slots"):
        run(mechanism(cohort_size=5, sampler=fl.everyone()))
    aggregator = mechanism().aggregator
    with pytest.raises(TypeError, match="noisy_codes"):
        aggregator.init(Message(jnp.zeros(4), jnp.float32(1)), 3)
    with pytest.raises(ValueError, match="clip first"):
        run(mechanism(), uplink=fl.chain(fl.Transform(lambda v: (), None, kinds=("compress",))))
