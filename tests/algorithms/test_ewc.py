"""EWC and the three-way objective: reductions, fixed points, what is billed, what compiles."""

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


def quadratic(w, e, key):
    return 0.5 * e["a"] * (w - e["b"]) ** 2


def q2():
    return fl.data.from_arrays({"a": np.repeat(A, N), "b": np.repeat(B, N)}, np.repeat([0, 1], N))


def after(algo, num_rounds, tasks, start=0.0):
    data = q2()
    state = algo.init(KEY, jnp.array(start), data)
    old = state.server.old
    for fisher, optimum in tasks:
        old = fl.remember(old, jnp.array(fisher), jnp.array(optimum))
    state = fl.with_old_tasks(state, old)
    return fl.unroll(algo, KEY, state, data, num_rounds=num_rounds)[0]


@pytest.mark.parametrize("mu", [None, 0.6])
def test_fixed_points_of_local_steps(mu):
    """From x client i goes the share 1 - (1 - eta c)^5 of the way to its own optimum.

    Its curvature is c = a + lam sum F + mu, its optimum (a b + lam sum F t + mu x) / c.
    """
    tasks, lam = [(2.0, 1.0), (3.0, 0.5)], 0.4
    pull, center = lam * 5.0, lam * (2.0 * 1.0 + 3.0 * 0.5)
    options = {"plan": fl.Plan(None, steps=5), "sampler": fl.everyone(), "lam": lam}
    with jax.enable_x64(True):
        if mu is None:
            algo = fl.ewc(quadratic, optax.sgd(ETA), **options)
        else:
            algo = fl.three_way(quadratic, optax.sgd(ETA), mu=mu, **options)
        c = A + pull + (mu or 0.0)
        share = P * (1 - (1 - ETA * c) ** 5)
        # sum share ((a b + center + mu x) / c - x) = 0
        x = (share * (A * B + center) / c).sum() / (share * (A + pull) / c).sum()
        found = float(after(algo, 300, tasks).server.params)
        assert abs(found - x) < 1e-10


def laws_run(factory):
    """``(learnt, **strengths) -> (params, bits)`` of two rounds: one program for all strengths."""

    @jax.jit
    def run(data, learnt, strengths):
        optimizer, plan = optax.sgd(0.05, momentum=0.9), fl.Plan(batch_size=2, epochs=2)
        algo = factory(testing.loss, optimizer, **strengths, plan=plan, sampler=fl.uniform(4))
        params = testing.init_params(KEY)
        state = algo.init(KEY, params, data)
        if hasattr(state.server, "old"):
            old = jax.tree.map(lambda leaf: learnt * jnp.ones_like(leaf), params)
            state = fl.with_old_tasks(state, fl.remember(state.server.old, old, old))
        state, metrics = fl.unroll(algo, KEY, state, data, num_rounds=2)
        return state.server.params, [metrics[n] for n in ("uplink_bits", "downlink_bits")]

    data = testing.population()
    return lambda learnt=1.0, **strengths: run(data, learnt, strengths)


def test_without_weight_it_is_fedavg_fedprox_or_ewc():
    """In every bit, half of the clients a round, with batches that are uneven."""
    factories = (fl.fedavg, fl.fedprox, fl.ewc, fl.three_way)
    fedavg, fedprox, ewc, three_way = map(laws_run, factories)
    average, averaged = fedavg()
    prox, _ = fedprox(mu=0.3)
    pulled, billed = ewc(lam=0.5)
    for one, other in (
        (ewc(lam=0.0), average),
        (ewc(0.0, lam=0.5), average),  # nothing learnt so far
        (three_way(lam=0.0, mu=0.0), average),
        (three_way(lam=0.0, mu=0.3), prox),
        (three_way(0.0, lam=0.5, mu=0.3), prox),
        (three_way(lam=0.5, mu=0.0), pulled),
    ):
        same(one[0], other, exact=True)
    with pytest.raises(AssertionError):
        same(pulled, average)
    same(billed, averaged, exact=True)  # what is known from the start is not billed


def test_old_tasks_are_replaced_without_compiling():
    """`lam` that is traced, too; and what is put in stays with the caller, whose copy it is."""
    traces = []

    def loss(w, e, key):
        traces.append(1)
        return quadratic(w, e, key)

    algo = fl.ewc(loss, optax.sgd(ETA), lam=1.0, plan=fl.Plan(4), sampler=fl.everyone())
    data = q2()
    state = algo.init(KEY, jnp.array(0.0), data)
    common = {"every": 2, "progress": False}
    state, _ = fl.run(algo, KEY, state, data, num_rounds=2, **common)
    first, old = len(traces), state.server.old
    for _ in range(2):
        old = fl.remember(old, np.float64(2.0), state.server.params)  # another dtype than the state
        done = int(state.round) + 2
        state = fl.with_old_tasks(state, old)
        state, _ = fl.run(algo, KEY, state, data, num_rounds=done, **common)
    assert len(traces) == first > 0
    assert float(old.fisher) == 4.0


def test_it_goes_over_a_thin_wire_with_its_old_tasks_whole():
    slots = {"plan": fl.Plan(4), "sampler": fl.everyone(), "uplink": fl.top_k(1)}
    algo = fl.ewc(testing.loss, optax.sgd(0.1), lam=0.5, downlink=fl.top_k(1), **slots)
    data, params = testing.population(), testing.init_params(KEY)
    state = algo.init(KEY, params, data)
    ones = jax.tree.map(jnp.ones_like, params)
    old = fl.remember(fl.no_old_tasks(params), ones, ones)
    state = fl.with_old_tasks(state, old)
    new, _ = algo.round(KEY, state, data)
    same(new.server.inner.old, old, exact=True)


def test_bad_arguments():
    slots = {"plan": fl.Plan(2), "sampler": fl.everyone()}
    with pytest.raises(ValueError, match="lam must"):
        fl.ewc(quadratic, optax.sgd(0.1), lam=-1.0, **slots)
    with pytest.raises(ValueError, match="mu must"):
        fl.three_way(quadratic, optax.sgd(0.1), lam=1.0, mu=float("inf"), **slots)
    average = fl.fedavg(quadratic, optax.sgd(0.1), **slots)
    state = average.init(KEY, jnp.array(0.0), q2())
    with pytest.raises(TypeError, match="ewc or three_way"):
        fl.with_old_tasks(state, fl.no_old_tasks(jnp.array(0.0)))
    state = fl.ewc(quadratic, optax.sgd(0.1), lam=1.0, **slots).init(KEY, jnp.array(0.0), q2())
    with pytest.raises(ValueError, match=r"old.* must have the model's shape"):
        fl.with_old_tasks(state, fl.no_old_tasks(jnp.zeros(2)))
    norm = fl.models.init_batch_norm(2, statistics="averaged")
    with pytest.raises(ValueError, match="running statistics"):
        fl.ewc(quadratic, optax.sgd(0.1), lam=1.0, **slots).init(KEY, norm, q2())
