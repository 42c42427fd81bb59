"""SCAFFOLD against its closed-form trajectories and invariants.

Defects are planted in it in `tests/laws/test_planted_defects_scaffold.py`.
"""

from typing import Any

import chex
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import fedjax_lite as fl
from fedjax_lite import testing
from fedjax_lite.algorithms.scaffold import scaffold
from fedjax_lite.verify.techniques.scaffold import loop
from fedjax_lite.verify.testbeds import ETA, STEPS, A, B, N, quadratic

PLAN = fl.Plan(batch_size=10, steps=STEPS)  # more than an epoch of 30 and of 10: for option I
BOTH = [(0, 1)] * 60
TURNS = [(0,), (1,)] * 100


@pytest.fixture
def float64():
    with jax.enable_x64(True):
        yield


def q2_data():
    owners = np.random.default_rng(0).permutation(np.repeat(np.arange(2), N))
    return fl.data.from_arrays({"a": A[owners], "b": B[owners]}, owners)


def ours(cohorts, *, rate: Any = ETA, plan=PLAN, **options):
    """`(x, c, c_i)` after each round with these clients."""
    algo = scaffold(quadratic, rate, plan=plan, sampler=fl.everyone(), **options)
    data = q2_data()
    state, out = algo.init(jax.random.key(0), jnp.array(0.0), data), []
    for ids in cohorts:
        mask = jnp.array([i in ids for i in range(2)])
        cohort = fl.Cohort(jnp.arange(2, dtype=jnp.int32), mask)
        state, _ = algo.round(jax.random.key(0), state, data, cohort)
        out.append((state.server.params, state.server.control, np.asarray(state.clients)))
    return out


def same(got, expected, tolerance=1e-11):
    np.testing.assert_allclose([np.hstack(row) for row in got], expected, rtol=0, atol=tolerance)


TABLE = [
    ({}, BOTH, (0.5592104688, -2.2368418750, 0.9585129855, -1.5972100672), 1.4),
    (
        {"weighting": "examples"},
        BOTH,
        (0.1664957031, -0.6659828125, 0.3452546370, -0.7150357354),
        5 / 7,
    ),
    ({"option": 1}, BOTH, (0.5592104688, -3.5, 0.9979976030, -2.1019738281), 1.4),
    ({}, TURNS, (-0.2262190625, 0.4524381250, 1.1944667376, -2.6151525376), 1.4),
]


@pytest.mark.sample(1)
@pytest.mark.parametrize(("options", "cohorts", "first", "limit"), TABLE)
def test_trajectory_invariant_and_limit_in_float64(float64, options, cohorts, first, limit):
    p = np.array([0.75, 0.25] if options.get("weighting") else [0.5, 0.5])
    cohorts = cohorts * 4
    got = ours(cohorts, **options)
    same(got, loop(cohorts, weights=p, option=options.get("option", 2)))
    np.testing.assert_allclose(np.hstack([got[0][:2], got[1][:2]]), first, rtol=0, atol=6e-11)
    for _, c, rows in got:
        np.testing.assert_allclose(c, (p * rows).sum(), rtol=0, atol=1e-12)
    assert abs(got[-1][0] - limit) < 1e-12
    np.testing.assert_allclose(got[-1][2], A * (limit - B), rtol=0, atol=1e-10)


@pytest.mark.sample(1)
@pytest.mark.parametrize(("options", "cohorts", "first", "limit"), TABLE)
def test_limit_in_float32(options, cohorts, first, limit):
    got = ours(cohorts, **options)
    assert abs(float(got[-1][0]) - limit) < 1e-6
    np.testing.assert_allclose(np.hstack([got[0][:2], got[1][:2]]), first, rtol=1e-5)


@pytest.mark.sample(5, of="reductions to another method")
@pytest.mark.parametrize("options", [{}, {"weighting": "examples"}])
def test_first_round_is_uniform_fedavg_even_from_large_weights(options):
    params = testing.init_params(jax.random.key(1))
    params = jax.tree.map(lambda x: x + 3.0, params)
    data, key = testing.population(), jax.random.key(0)
    common = {"plan": fl.Plan(batch_size=2), "sampler": fl.uniform(4)}
    algo = scaffold(testing.loss, 0.05, **options, **common)
    options = {"weighting": "uniform", **options}
    fedavg = fl.fedavg(testing.loss, optax.sgd(0.05), **options, **common)
    ours_, _ = algo.round(key, algo.init(key, params, data), data)
    theirs, _ = fedavg.round(key, fedavg.init(key, params, data), data)
    chex.assert_trees_all_close(ours_.server.params, theirs.server.params, rtol=1e-6)


@pytest.mark.sample(5, of="reductions to another method")
@pytest.mark.parametrize("option", [1, 2])
def test_one_whole_batch_of_everyone_is_fedsgd(float64, option):
    """A client without data is in the population too: it must not count in c."""
    params = jax.tree.map(lambda x: x.astype(float), testing.init_params(jax.random.key(1)))
    data, key = testing.population(), jax.random.key(0)
    algo = scaffold(
        testing.loss,
        0.05,
        plan=fl.Plan(batch_size=None, steps=1),
        sampler=fl.everyone(),
        option=option,
    )
    base = fl.fedsgd(testing.loss, optax.sgd(0.05), sampler=fl.everyone(), weighting="uniform")
    state, other = algo.init(key, params, data), base.init(key, params, data)
    for _ in range(4):
        state, _ = algo.round(key, state, data)
        other, _ = base.round(key, other, data)
    chex.assert_trees_all_close(state.server.params, other.server.params, rtol=0, atol=1e-12)


@pytest.mark.sample(1)
@pytest.mark.parametrize("batch_size", [2, None])
def test_option_one_is_the_gradient_of_the_whole_data(float64, batch_size):
    """After one epoch and a bit, in short batches of unequal weight."""
    data, key = testing.population(), jax.random.key(3)
    params = jax.tree.map(lambda x: x.astype(float), testing.init_params(key))
    algo = scaffold(
        testing.loss,
        0.05,
        plan=fl.Plan(batch_size=batch_size, steps=5),
        sampler=fl.everyone(),
        option=1,
    )
    state, _ = algo.round(key, algo.init(key, params, data), data)
    examples = {i: data.client(i) for i in (0, 1, 4, 5)}
    objective = lambda p, e: testing.loss(p, e, key).mean()  # noqa: E731
    slopes = jax.jit(lambda p: {i: jax.grad(objective)(p, e) for i, e in examples.items()})
    for i, whole in slopes(params).items():
        for name in params:
            np.testing.assert_allclose(state.clients[name][i], whole[name], rtol=0, atol=1e-12)


def test_dropouts_and_clients_without_steps_change_nothing():
    data, key = testing.population(), jax.random.key(0)
    params = testing.init_params(key)
    plan = fl.Plan(batch_size=2, steps=np.array([1, 4, 2, 3, 0, 5, 1]))
    algo = scaffold(testing.loss, 0.05, plan=plan, sampler=fl.everyone())
    cohort = lambda *there: fl.Cohort(jnp.arange(7), jnp.isin(jnp.arange(7), jnp.array(there)))  # noqa: E731
    state, _ = algo.round(key, algo.init(key, params, data), data, cohort(*range(7)))
    idle, _ = algo.round(key, state, data, cohort(0, 4, 5))  # client 4 has no steps
    without, _ = algo.round(key, state, data, cohort(0, 5))
    chex.assert_trees_all_close(idle, without, rtol=1e-6, atol=1e-7)
    for old, new in zip(jax.tree.leaves(state.clients), jax.tree.leaves(idle.clients), strict=True):
        np.testing.assert_array_equal(
            old[jnp.array([1, 2, 3, 4, 6])], new[jnp.array([1, 2, 3, 4, 6])]
        )
        assert (old[5] != new[5]).any()


def test_bfloat16_rows_keep_the_invariant():
    """c follows what is stored, not what was computed: rounding does not add up."""
    got = ours(TURNS[:40], table_dtype=jnp.bfloat16)
    for _, c, rows in got:
        np.testing.assert_allclose(c, rows.astype(np.float32).mean(), rtol=0, atol=1e-5)
    assert got[0][2].dtype == jnp.bfloat16
    assert abs(float(got[-1][0]) - 1.4) < 0.02


def test_schedules_and_server_rate(float64):
    same(ours(BOTH[:3], server_learning_rate=0.5), loop(BOTH[:3], server_rate=0.5))
    # A schedule that ends at 0 leaves model and controls where they are.
    got = ours(BOTH[:3], rate=lambda r: jnp.where(r < 2, ETA, 0.0))
    same(got[:2], loop(BOTH[:2]))
    same(got[2:], [np.hstack(row) for row in got[1:2]])


def test_bad_arguments():
    common = {"plan": PLAN, "sampler": fl.everyone()}
    with pytest.raises(ValueError, match="option"):
        scaffold(quadratic, 0.1, option=3, **common)
    with pytest.raises(TypeError, match="plain SGD"):
        scaffold(quadratic, optax.sgd(0.1), **common)
    with pytest.raises(ValueError, match="learning_rate"):
        scaffold(quadratic, 0.0, **common)
    with pytest.raises(TypeError, match="table_dtype"):
        scaffold(quadratic, 0.1, table_dtype=jnp.int8, **common)
    with pytest.raises(ValueError, match="weighting"):
        scaffold(quadratic, 0.1, weighting="size", **common)
