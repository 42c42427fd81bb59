"""FedCurv: a numpy loop, known answers, whose share is taken out, what is billed and refused."""

import functools
from typing import Any, cast

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import fedjax_lite as fl
from fedjax_lite import testing
from fedjax_lite.stream import StreamedDataset
from fedjax_lite.testing.algorithm_laws import same

KEY = jax.random.key(0)
A, B, N = np.array([1.0, 4.0, 2.0]), np.array([-1.0, 2.0, 0.5]), np.array([3, 1, 2])
ETA, STEPS, LAM = 0.02, 4, 0.3
WHOLE = fl.Plan(batch_size=None, steps=STEPS)


def quadratic(w, e, key):
    return 0.5 * e["a"] * (w - e["b"]) ** 2


def population():
    return fl.data.from_arrays(
        {"a": np.repeat(A, N), "b": np.repeat(B, N)}, np.repeat(np.arange(3), N)
    )


def loop(cohorts, start=0.0):
    """Models after each round; the Fisher information of a client is its squared gradient."""
    x, kept, models = start, {}, []
    for cohort in cohorts:
        new = {}
        for i in cohort:
            others = [share for k, share in kept.items() if k != i]
            y = x
            for _ in range(STEPS):
                pull = sum(2 * LAM * f * (y - t) for f, t in others)
                y -= ETA * (A[i] * (y - B[i]) + pull)
            new[i] = ((A[i] * (y - B[i])) ** 2, y)
        if cohort:
            weights = N[list(cohort)] / N[list(cohort)].sum()
            x, kept = float(weights @ [new[i][1] for i in cohort]), new
        models.append(x)
    return np.array(models)


def slots(cohort):
    ids = np.array([*cohort, 3, 3, 3][:3], np.int32)
    return fl.Cohort(jnp.array(ids), jnp.array(ids < 3))


def test_cohorts_that_change_by_a_numpy_loop():
    """Also one in which nobody comes, after which the shares of the cohort before are in force."""
    cohorts = [(0, 1, 2), (0, 2), (), (2, 0), (1,), (1,), (0, 1)]
    with jax.enable_x64(True):
        data = population()
        algo = fl.fedcurv(quadratic, optax.sgd(ETA), lam=LAM, plan=WHOLE, sampler=fl.everyone())
        state, found = algo.init(KEY, jnp.array(0.0), data), []
        for cohort in cohorts:
            state, _ = algo.round(KEY, state, data, slots(cohort))
            found.append(float(state.server.params))
        np.testing.assert_allclose(found, loop(cohorts), atol=1e-12)
        assert int(state.server.version) == 6
    plain = loop([(0, 1, 2), (0, 2)])[1] - loop([(0, 2)], loop([(0, 1, 2)])[0])[0]
    assert abs(plain) > 1e-3  # the pull is no rounding


def test_known_answer():
    """Another client knows F = 2 at 1; 4 (w + 1) + 2 lam 2 (w - 1) = 0 at w = 0 for lam = 1."""
    with jax.enable_x64(True):
        data = fl.data.from_arrays({"a": np.array([1.0, 4.0]), "b": np.array([1.0, -1.0])}, [0, 1])
        algo = fl.fedcurv(
            quadratic, optax.sgd(0.1), lam=1.0, plan=fl.Plan(None, steps=80),
            sampler=fl.everyone(), fisher=lambda params, batch: 2.0 * batch.mask.sum(),
        )  # fmt: skip
        state = algo.init(KEY, jnp.array(1.0), data)  # where client 0 stays
        for client in (0, 1):
            cohort = fl.Cohort(jnp.array([client]), jnp.array([True]))
            state, _ = algo.round(KEY, state, data, cohort)
        assert abs(float(state.server.params)) < 1e-9
        assert float(state.server.total.fisher) == 2.0


def test_without_weight_or_company_it_is_fedavg():
    common: dict[str, Any] = {"plan": fl.Plan(batch_size=2, epochs=2), "sampler": fl.uniform(4)}
    optimizer = optax.sgd(0.05, momentum=0.9)

    @functools.partial(jax.jit, static_argnums=0)
    def run(factory, data, **strength):
        algo = factory(testing.loss, optimizer, **strength, **common)
        state = algo.init(KEY, testing.init_params(KEY), data)
        return fl.unroll(algo, KEY, state, data, num_rounds=2)

    data = testing.population()
    average, averaged = run(fl.fedavg, data)
    state, metrics = run(fl.fedcurv, data, lam=0.0)
    same(state.server.params, average.server.params, exact=True)
    steps = np.asarray(averaged["num_steps"]) + metrics["fisher_steps"]
    np.testing.assert_array_equal(metrics["num_steps"], steps)
    pulled, _ = run(fl.fedcurv, data, lam=0.1)
    with pytest.raises(AssertionError):
        same(pulled.server.params, average.server.params)
    # One client alone, whose share is all there is: its momentum begins anew in each round.
    one = fl.data.from_arrays({"a": A[:1].repeat(4), "b": np.arange(4.0)}, np.zeros(4, int))
    algo = fl.fedcurv(quadratic, optimizer, lam=10.0, plan=WHOLE, sampler=fl.everyone())
    state = algo.init(KEY, jnp.array(0.7), one)
    found = fl.unroll(algo, KEY, state, one, num_rounds=3)[0].server.params
    x = 0.7
    for _ in range(3):
        velocity = 0.0
        for _ in range(STEPS):
            velocity = 0.9 * velocity + A[0] * (x - 1.5)
            x -= 0.05 * velocity
    np.testing.assert_allclose(found, x, rtol=1e-5)


def test_three_models_travel_and_are_billed():
    model = fl.models.linear(3, (4,))
    params = model.init(KEY)
    bits = 32 * sum(leaf.size for leaf in jax.tree.leaves(params))
    examples = {"x": np.ones((5, 4), np.float32), "y": np.zeros(5, int)}
    data = fl.data.from_arrays(examples, [0, 0, 1, 2, 2])
    fisher = fl.exact_fisher(model.predict)
    algo = fl.fedcurv(
        model.loss, optax.sgd(0.1), lam=0.1, plan=fl.Plan(2), sampler=fl.everyone(), fisher=fisher
    )
    begin = algo.init(KEY, params, data)
    cohort = lambda *ids: fl.Cohort(jnp.arange(3), jnp.isin(jnp.arange(3), jnp.array(ids)))  # noqa: E731
    state, metrics = algo.round(KEY, begin, data, cohort(0, 1, 2))
    assert int(metrics["uplink_bits"]) == 3 * 3 * bits
    assert int(metrics["downlink_bits"]) == 3 * (3 * bits + 32)
    each = [
        fl.fisher_information(fisher, alone.server.params, only(data, i))
        for i in range(3)
        for alone, _ in [algo.round(KEY, begin, data, cohort(i))]
    ]
    total = jax.tree.map(lambda *leaves: sum(leaves), *each)
    same(state.server.total.fisher, total)


def only(data, client):
    examples = jax.tree.map(np.asarray, data.client(client))
    return fl.data.from_arrays(examples, np.zeros(len(examples["y"]), int))


def test_rows_may_lie_on_the_host():
    algo = fl.fedcurv(quadratic, optax.sgd(ETA), lam=LAM, plan=WHOLE, sampler=fl.uniform(2))
    data = population()
    store = fl.data.ArrayStore(data.examples, N)
    states = []
    for place in (data, StreamedDataset(store, "host")):
        state = algo.init(KEY, jnp.array(0.0), place)
        states.append(fl.run(algo, KEY, state, place, num_rounds=4, progress=False)[0])
    same(states[0].server, states[1].server)


def test_who_does_no_step_keeps_its_share_and_sends_nothing():
    plan = fl.Plan(batch_size=None, steps=np.array([STEPS, 0, STEPS]))
    algo = fl.fedcurv(quadratic, optax.sgd(ETA), lam=LAM, plan=plan, sampler=fl.everyone())
    data = population()
    state, metrics = algo.round(KEY, algo.init(KEY, jnp.array(0.0), data), data)
    assert int(metrics["num_clients"]) == 2
    assert state.clients.version.tolist() == [1, -1, 1]
    np.testing.assert_allclose(state.server.total.fisher, state.clients.own.fisher.sum(), rtol=1e-6)


def test_bad_arguments():
    common: dict[str, Any] = {"plan": WHOLE, "sampler": fl.everyone(), "lam": 0.1}
    for name, slot in (
        ("uplink", fl.top_k(1)),
        ("downlink", fl.drive()),
        ("privacy", fl.privacy.central_gaussian(
            clip=1.0, num_clients=3, sampling_rate=0.5, noise_multiplier=1.0, delta=1e-2)),
    ):  # fmt: skip
        with pytest.raises(ValueError, match=f"{name} must be left out of fedcurv"):
            fl.fedcurv(quadratic, optax.sgd(0.1), **cast(Any, {**common, name: slot}))
    fl.fedcurv(quadratic, optax.sgd(0.1), uplink=fl.identity(), **common)
    with pytest.raises(ValueError, match="lam must"):
        fl.fedcurv(quadratic, optax.sgd(0.1), **cast(Any, {**common, "lam": -1.0}))
