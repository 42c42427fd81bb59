"""SCAFFOLD against its closed-form trajectories, invariants, and planted defects."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import fedjax_lite as fl
from fedjax_lite import testing
from fedjax_lite.algorithms.scaffold import scaffold

A, B, N = np.array([1.0, 4.0]), np.array([-1.0, 2.0]), np.array([30, 10])
ETA, K = 0.05, 5
PLAN = fl.Plan(batch_size=10, steps=K)
BOTH = [(0, 1)] * 60
TURNS = [(0,), (1,)] * 100


@pytest.fixture
def float64():
    with jax.enable_x64(True):
        yield


def quadratic(w, e, key):
    return 0.5 * e["a"] * (w - e["b"]) ** 2


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


def reference(cohorts, *, p=(0.5, 0.5), option=2, defect=None, eta_g=1.0):
    """The paper, line by line, with a defect on demand."""
    p = np.array(p)
    x, c, rows, out = 0.0, 0.0, np.zeros(2), []
    if defect == "weights as controls":
        c, rows = 0.3, np.full(2, 0.1)
    for ids in cohorts:
        ids, new, y = np.array(ids), rows.copy(), np.full(2, x)
        sign = -1 if defect == "flipped sign" else 1
        for _ in range(K):
            y = y - ETA * (A * (y - B) + sign * (c - rows))
        planned = K + 1 if defect == "planned steps" else K
        learned = A * (x - B) if option == 1 else rows - c + (x - y) / (planned * ETA)
        new[ids] = learned[ids]
        change = new if defect == "sends c_i" else new - rows
        share = 1.0 if defect == "no m/N" else p[ids].sum()
        c = c + share * (p * change)[ids].sum() / p[ids].sum()
        x = x + eta_g * (p * (y - x))[ids].sum() / p[ids].sum()
        rows = new
        out.append((x, c, rows))
    return out


def same(got, expected, tolerance=1e-11):
    for a, b in zip(got, expected, strict=True):
        np.testing.assert_allclose(np.hstack(a), np.hstack(b), rtol=0, atol=tolerance)


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


@pytest.mark.sample(2)
@pytest.mark.parametrize(("options", "cohorts", "first", "limit"), TABLE)
def test_trajectory_invariant_and_limit_in_float64(float64, options, cohorts, first, limit):
    p = np.array([0.75, 0.25] if options.get("weighting") else [0.5, 0.5])
    if options.get("option") == 1:  # four or more batches make a whole epoch of 30 and of 10
        options = {**options, "plan": fl.Plan(batch_size=10, steps=K)}
    cohorts = cohorts * 4
    got = ours(cohorts, **options)
    same(got, reference(cohorts, p=p, option=options.get("option", 2)))
    np.testing.assert_allclose(np.hstack([got[0][:2], got[1][:2]]), first, rtol=0, atol=6e-11)
    for _, c, rows in got:
        np.testing.assert_allclose(c, (p * rows).sum(), rtol=0, atol=1e-12)
    assert abs(got[-1][0] - limit) < 1e-12
    np.testing.assert_allclose(got[-1][2], A * (limit - B), rtol=0, atol=1e-10)


@pytest.mark.sample(2)
@pytest.mark.parametrize(("options", "cohorts", "first", "limit"), TABLE)
def test_limit_in_float32(options, cohorts, first, limit):
    got = ours(cohorts, **options)
    assert abs(float(got[-1][0]) - limit) < 1e-6
    np.testing.assert_allclose(np.hstack([got[0][:2], got[1][:2]]), first, rtol=1e-5)


@pytest.mark.parametrize(
    "defect", ["weights as controls", "no m/N", "sends c_i", "flipped sign", "planned steps"]
)
def test_the_trajectory_rejects_planted_defects(float64, defect):
    """Defects 6, 7 and 8; the limit alone would let the one without m/N pass."""
    cohorts = TURNS[:4]
    same(ours(cohorts), reference(cohorts))
    wrong = reference(cohorts, defect=defect)
    with pytest.raises(AssertionError):
        same(wrong, reference(cohorts))
    if defect == "no m/N":
        c, rows = wrong[0][1:]
        assert abs(c - rows.mean()) > 0.1
        assert abs(reference(TURNS * 4, defect=defect)[-1][0] - 1.4) < 1e-9


def test_first_round_is_uniform_fedavg_even_from_large_weights():
    params = testing.init_params(jax.random.key(1))
    params = jax.tree.map(lambda x: x + 3.0, params)
    data, key = testing.population(), jax.random.key(0)
    common = {"plan": fl.Plan(batch_size=2), "sampler": fl.uniform(4)}
    for algo, base in [
        (scaffold(testing.loss, 0.05, **common), "uniform"),
        (scaffold(testing.loss, 0.05, weighting="examples", **common), "examples"),
    ]:
        fedavg = fl.fedavg(testing.loss, optax.sgd(0.05), weighting=base, **common)
        ours_, _ = algo.round(key, algo.init(key, params, data), data)
        theirs, _ = fedavg.round(key, fedavg.init(key, params, data), data)
        for a, b in zip(
            jax.tree.leaves(ours_.server.params), jax.tree.leaves(theirs.server.params), strict=True
        ):
            np.testing.assert_allclose(a, b, rtol=1e-6)


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
    for a, b in zip(
        jax.tree.leaves(state.server.params), jax.tree.leaves(other.server.params), strict=True
    ):
        np.testing.assert_allclose(a, b, rtol=0, atol=1e-12)


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
    for i in (0, 1, 4, 5):
        whole = jax.grad(lambda p, i=i: testing.loss(p, data.client(i), key).mean())(params)
        for name in params:
            np.testing.assert_allclose(state.clients[name][i], whole[name], rtol=0, atol=1e-12)


def test_dropouts_and_clients_without_steps_change_nothing():
    data, key = testing.population(), jax.random.key(0)
    params = testing.init_params(key)
    plan = fl.Plan(batch_size=2, steps=np.array([1, 4, 2, 3, 0, 5, 1]))
    algo = scaffold(testing.loss, 0.05, plan=plan, sampler=fl.everyone())
    state, _ = algo.round(key, algo.init(key, params, data), data)
    ids = jnp.array([0, 1, 4, 5], jnp.int32)
    idle, _ = algo.round(key, state, data, fl.Cohort(ids, jnp.array([1, 0, 1, 1], bool)))
    without, _ = algo.round(key, state, data, fl.Cohort(ids, jnp.array([1, 0, 0, 1], bool)))
    for a, b in zip(jax.tree.leaves(idle), jax.tree.leaves(without), strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-6, atol=1e-7)
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
    same(ours(BOTH[:3], server_learning_rate=0.5), reference(BOTH[:3], eta_g=0.5))
    same(ours(BOTH[:3], rate=lambda r: ETA + 0.0 * r), reference(BOTH[:3]))
    # A schedule that ends at 0 leaves model and controls where they are.
    got = ours(BOTH[:2], rate=lambda r: jnp.where(r < 1, ETA, 0.0))
    same(got[1:], got[:1])


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
