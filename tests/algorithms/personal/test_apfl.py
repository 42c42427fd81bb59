"""APFL: steps by hand, adaptive mixtures, and its two ends: FedAvg and training alone."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import fedjax_lite as fl
from fedjax_lite import testing
from fedjax_lite.testing.algorithm_laws import same

KEY = jax.random.key(0)
A, B, N, ETA = np.array([1.0, 4.0]), np.array([-1.0, 2.0]), np.array([30, 10]), 0.05
P = N / N.sum()
ONE = fl.Plan(batch_size=None, steps=1)


def quadratic(w, e, key):
    return 0.5 * e["a"] * (w - e["b"]) ** 2


def q2():
    return fl.data.from_arrays({"a": np.repeat(A, N), "b": np.repeat(B, N)}, np.repeat([0, 1], N))


def by_hand(num_steps, v, w, alpha, *, rate=None, factor=True):
    """Simultaneous steps of all three."""
    for _ in range(num_steps):
        slope = A * (alpha * v + (1 - alpha) * w - B)
        moved = alpha if rate is None else np.clip(alpha - rate * (v - w) * slope, 0, 1)
        v, w = v - ETA * (alpha if factor else 1) * slope, w - ETA * A * (w - B)
        alpha = moved
    return v, w, alpha


def one_round(own, shared, plan=ONE, **options):
    algo = fl.apfl(quadratic, optax.sgd(ETA), plan=plan, sampler=fl.everyone(), **options)
    state = algo.init(KEY, jnp.array(shared), q2())
    state = state._replace(clients=state.clients._replace(own=jnp.asarray(own)))
    return algo.round(KEY, state, q2())


@pytest.mark.parametrize(("variant", "own"), [("paper", (-0.025, 0.2)), ("unscaled", (-0.05, 0.4))])
def test_one_step_from_zero(variant, own):
    """KNOWN_ANSWERS 8, alpha one half."""
    with jax.enable_x64(True):
        v, _, _ = by_hand(1, np.zeros(2), np.zeros(2), 0.5, factor=variant == "paper")
        np.testing.assert_allclose(v, own, atol=1e-12)
        state, _ = one_round([0.0, 0.0], 0.0, variant=variant)
        np.testing.assert_allclose(state.clients.own, v, atol=1e-12)


@pytest.mark.parametrize("variant", ["paper", "unscaled"])
def test_adaptive_mixtures(variant):
    """The first step is that of KNOWN_ANSWERS 8: alpha (.575, .5), v (-.0375, 3), w (.9, 1.2)."""
    with jax.enable_x64(True):
        begin = np.array([0.0, 3.0]), np.ones(2), np.full(2, 0.5)
        v, w, alpha = by_hand(1, *begin, rate=ETA)
        np.testing.assert_allclose([alpha, v, w], [[0.575, 0.5], [-0.0375, 3.0], [0.9, 1.2]])
        factor = variant == "paper"
        v, w, alpha = by_hand(4, *begin, rate=ETA, factor=factor)
        plan = fl.Plan(batch_size=None, steps=4)
        options: Any = {"mixing_rate": ETA, "variant": variant}
        state, metrics = one_round(begin[0], 1.0, plan, **options)
        np.testing.assert_allclose(state.clients.own, v, atol=1e-12)
        np.testing.assert_allclose(state.clients.mixing, alpha, atol=1e-12)
        np.testing.assert_allclose(state.server.params, P @ w, atol=1e-12)
        np.testing.assert_allclose(metrics["mixing"], alpha.mean(), rtol=1e-6)
        mixed = alpha * v + (1 - alpha) * (P @ w)  # with the server's model
        np.testing.assert_allclose(fl.personal_models(state), mixed, atol=1e-12)


def test_mixtures_stay_between_zero_and_one():
    for rate, start in ((1e3, 0.5), (1e3, 0.0), (1e3, 1.0)):
        state, _ = one_round([0.0, 3.0], 1.0, mixing=start, mixing_rate=rate)
        _, _, expected = by_hand(1, np.array([0.0, 3.0]), np.ones(2), start, rate=rate)
        np.testing.assert_allclose(state.clients.mixing, expected, atol=1e-6)


def run(algo, num_rounds=3):
    data, params = testing.population(), testing.init_params(KEY)
    state = algo.init(KEY, params, data)
    for _ in range(num_rounds):
        state, _ = algo.round(KEY, state, data)
    return state


@pytest.mark.sample(5, of="reductions to another method")
def test_its_ends_are_fedavg_and_training_alone():
    """In every bit; the global model is FedAvg's whatever the mixture."""
    common = {"plan": fl.Plan(batch_size=2, epochs=2), "sampler": fl.uniform(4)}
    optimizer = optax.sgd(0.05)
    average = run(fl.fedavg(testing.loss, optimizer, **common))
    alone = run(fl.local_only(testing.loss, optimizer, **common))
    for mixing in (0.0, 0.4, 1.0):
        state = run(fl.apfl(testing.loss, optimizer, mixing=mixing, **common))
        same(state.server, average.server, exact=True)
        own = fl.personal_models(state)
        if mixing == 0:
            for model in (jax.tree.map(lambda leaf, i=i: leaf[i], own) for i in range(7)):
                same(model, average.server.params, exact=True)
        if mixing == 1:
            same(own, fl.personal_models(alone), exact=True)
    with pytest.raises(AssertionError):
        same(fl.personal_models(run(fl.apfl(testing.loss, optimizer, **common))), own)


def test_bad_arguments():
    common: Any = {"plan": ONE, "sampler": fl.everyone()}
    cases: Any = ({"mixing": 1.5}, {"mixing_rate": -0.1}, {"variant": "public"})
    for wrong in cases:
        (name,) = wrong
        with pytest.raises(ValueError, match=f"{name} must"):
            fl.apfl(quadratic, optax.sgd(ETA), **{**common, **wrong})
    data = fl.data.from_arrays({"x": np.zeros((2, 1))}, [0, 1])
    averaged = fl.models.init_batch_norm(1, statistics="averaged")
    algo = fl.apfl(lambda w, e, key: e["x"][:, 0], optax.sgd(ETA), **common)
    with pytest.raises(ValueError, match="apfl"):
        algo.init(KEY, averaged, data)
