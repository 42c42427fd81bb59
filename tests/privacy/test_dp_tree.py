"""DP-FTRL: the identity with prefix sums, levels, sensitivities by brute force, banded matrices."""

import itertools
import math

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import fedjax_lite as fl
import fedjax_lite.privacy as dp
from fedjax_lite import testing
from fedjax_lite.privacy.matrix_noise import _toeplitz
from fedjax_lite.types import Cohort, Message

KEY = jax.random.key(0)
NUM_CLIENTS, COHORT = 7, 2


def tree(**change):
    options = {
        "clip": 0.5,
        "num_clients": NUM_CLIENTS,
        "cohort_size": COHORT,
        "num_rounds": 8,
        "delta": 1e-5,
        **({} if "epsilon" in change else {"noise_multiplier": 1.0}),
    }
    return dp.tree_noise(**{**options, **change})


def matrix(**change):
    options = {
        "clip": 0.5,
        "num_clients": NUM_CLIENTS,
        "cohort_size": COHORT,
        "num_rounds": 8,
        "delta": 1e-5,
        **({} if "epsilon" in change else {"noise_multiplier": 1.0}),
        **({} if "bands" in change else {"coefficients": [1.0, 0.6, 0.3]}),
    }
    return dp.matrix_noise(**{**options, **change})


def prefix_noise(aggregator, template, num_rounds, key=KEY):
    """Cumulative noise after every round, and the states; nobody takes part."""
    message, nobody = Message(template, jnp.ones(())), Cohort(jnp.arange(2), jnp.zeros(2, bool))
    state, out, states = aggregator.init_state(template), [], []
    total = np.zeros(template.shape)

    @jax.jit
    def release(t, state):
        acc = aggregator.init(message, 2)
        return aggregator.finish(jax.random.fold_in(key, t), state, acc, nobody)

    for t in range(num_rounds):
        state, value = release(t, state)
        total = total + np.asarray(value, np.float64)
        out.append(total)
        states.append(state)
    return np.array(out), states


# -- trees ----------------------------------------------------------------------------------


def test_levels():
    assert [dp.tree_levels(t) for t in (1, 2, 3, 8, 1000, 1024)] == [1, 2, 2, 4, 10, 11]


def left_nodes(num_rounds):
    """The blocks that prefixes are made of, from the binary digits of every prefix length."""
    used = set()
    for t in range(1, num_rounds + 1):
        low = 0
        for bit in reversed(range(t.bit_length())):
            if t >> bit & 1:
                used.add((low, low + 2**bit))
                low += 2**bit
    return used


@pytest.mark.parametrize("num_rounds", [1, 2, 5, 8, 11, 16])
@pytest.mark.parametrize("separation", [1, 2, 3, 7, 20])
def test_sensitivity_by_brute_force(num_rounds, separation):
    worst = 0.0
    for first in range(min(separation, num_rounds)):
        turns = range(first, num_rounds, separation)
        counts = [sum(a <= t < b for t in turns) for a, b in left_nodes(num_rounds)]
        worst = max(worst, sum(count**2 for count in counts))
    assert dp.tree_sensitivity(num_rounds, separation) == pytest.approx(math.sqrt(worst))
    if separation >= num_rounds:
        assert worst == dp.tree_levels(num_rounds)


def test_epsilon_of_one_participation():
    """mu = sqrt(levels) / z: T = 8, z = 2 is mu = 1 (KNOWN_ANSWERS 4)."""
    once = {"num_clients": 8, "cohort_size": 1}
    accountant = tree(**once, noise_multiplier=2.0).accountant
    assert accountant.spent(8)["epsilon"] == pytest.approx(4.377178, abs=1e-6)
    assert accountant.max_rounds == 8
    # So far: the nodes that the first t rounds completed.
    for t, levels in ((0, 0), (1, 1), (3, 2), (4, 3), (7, 3)):
        expected = dp.gdp_epsilon(1e-5, math.sqrt(levels) / 2)
        assert accountant.spent(t)["epsilon"] == pytest.approx(expected)
    calibrated = tree(**once, epsilon=4.377178).aggregator
    noise, _ = prefix_noise(calibrated, jnp.zeros(40_000), 1)
    assert noise[0].std() == pytest.approx(2.0 * 0.5, rel=0.018)


def test_worst_prefix_at_equal_privacy():
    """Levels times popcount against T: 12 against 8, 90 against 1000, 110 against 1024."""
    for num_rounds, worst in ((8, 12), (1000, 90), (1024, 110)):
        most = max(t.bit_count() for t in range(1, num_rounds + 1))
        assert most * dp.tree_sensitivity(num_rounds, num_rounds) ** 2 == pytest.approx(worst)


def test_a_node_is_the_same_whenever_it_is_used():
    """Prefixes by the state's own nodes, and nodes that persist while their digit is set."""
    noise, states = prefix_noise(tree().aggregator, jnp.zeros(50), 8)
    for t, (prefix, state) in enumerate(zip(noise, states, strict=True), start=1):
        nodes = np.asarray(state.nodes, np.float64)
        np.testing.assert_allclose(prefix * COHORT, nodes.sum(0), rtol=1e-4, atol=1e-5)
        for level in range(4):
            held = bool(t >> level & 1)
            assert bool((nodes[level] != 0).all()) == held
            before = np.asarray(states[t - 2].nodes[level]) if t > 1 else np.zeros(50)
            if held and (t - 1) >> level & 1:
                np.testing.assert_array_equal(state.nodes[level], before)
    assert int(states[-1].round) == 8


def test_server_sgd_is_ftrl():
    """x_t = x_0 - eta (sum of clipped updates + tree noise(t)) / m, in a real run of FedAvg."""
    data, eta = testing.population(), 0.3
    shared = {"plan": fl.Plan(batch_size=2), "server_optimizer": optax.sgd(eta)}
    mechanism = tree(num_rounds=8)
    algo = fl.fedavg(testing.loss, optax.sgd(0.05), privacy=mechanism, **shared)
    state = algo.init(KEY, testing.init_params(KEY), data)
    total, start = np.zeros(3), np.asarray(state.server.params["w"], np.float64)
    quiet = fl.fedavg(testing.loss, optax.sgd(0.05), privacy=tree(noise_multiplier=0.0), **shared)
    for _ in range(6):
        # The same round from the same model without any node: its step is the clipped sum.
        before = np.asarray(state.server.params["w"], np.float64)
        empty = jax.tree.map(jnp.zeros_like, state.aggregator.nodes)
        bare = state._replace(aggregator=state.aggregator._replace(nodes=empty))
        silent = quiet.round(KEY, bare, data)[0].server.params["w"]
        total += (before - np.asarray(silent, np.float64)) / eta
        state, _ = algo.round(KEY, state, data)
        nodes = np.asarray(state.aggregator.nodes["w"], np.float64).sum(0) / COHORT
        expected = start - eta * (total + nodes)
        np.testing.assert_allclose(state.server.params["w"], expected, rtol=1e-4, atol=1e-5)
    assert np.abs(nodes).max() > 0.05  # the noise is not lost in the tolerance


def test_one_round_is_the_gaussian_mechanism():
    """T = 1: one level, bit for bit `gaussian_sum`."""
    rows = Message(jnp.array([[3.0, 4.0], [0.1, 0.2]]), jnp.ones(2))
    got = []
    for aggregator in (
        dp.tree_sum(clip=0.5, noise_multiplier=1.3, denominator=2.0, num_rounds=1),
        dp.gaussian_sum(clip=0.5, noise_multiplier=1.3, denominator=2.0),
    ):
        acc = aggregator.init(Message(jnp.zeros(2), jnp.ones(())), 2)
        acc = aggregator.add(acc, rows, jnp.arange(2), jnp.ones(2, bool))
        got.append(aggregator.finish(KEY, aggregator.init_state(jnp.zeros(2)), acc, None)[1])
    np.testing.assert_array_equal(*got)
    once = tree(num_rounds=1, num_clients=3, cohort_size=3).accountant
    assert once.spent(1)["epsilon"] == pytest.approx(4.377178, abs=1e-6)


@pytest.mark.parametrize("make", [tree, matrix])
def test_rounds_that_were_not_planned_are_nan(make):
    values, _ = prefix_noise(make(num_rounds=4).aggregator, jnp.zeros(3), 5)
    assert np.isfinite(values[:4]).all()
    assert np.isnan(values[4]).all()


@pytest.mark.sample(1)
@pytest.mark.parametrize("make", [tree, pytest.param(matrix, marks=pytest.mark.slow)])
def test_runs_resume_and_strategies_agree(make):
    data, mechanism = testing.population(), make(num_rounds=5)
    models = []
    for strategy, split in ((fl.sequential(), 5), (fl.chunked(2), 2)):
        algo = fl.fedavg(
            testing.loss,
            optax.sgd(0.05),
            plan=fl.Plan(batch_size=2),
            privacy=mechanism,
            strategy=strategy,
        )
        state = algo.init(KEY, testing.init_params(KEY), data)
        for num_rounds in (split, 9):
            state, _ = fl.run(
                algo, KEY, state, data, num_rounds=num_rounds, every=2, progress=False
            )
        assert int(state.round) == 5  # stopped where the noise was planned to
        models.append(np.asarray(state.server.params["w"]))
    np.testing.assert_allclose(*models, rtol=2e-5, atol=2e-6)


@pytest.mark.parametrize("make", [tree, matrix])
def test_laws(make):
    """Not nothing_aggregates_to_zero: a round of nobody has its noise, by design."""
    laws = testing.LAWS_OF_NOISE
    testing.check_aggregator(make().aggregator, laws=laws)


@pytest.mark.parametrize("make", [tree, matrix])
@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"epsilon": 1.0, "noise_multiplier": 1.0}, "exactly one of epsilon and noise_multiplier"),
        ({"noise_multiplier": 1.0, "clip": math.inf}, "clip must be finite"),
        ({"cohort_size": 8}, "cohort_size"),
        ({"num_rounds": 0}, "num_rounds"),
        ({"delta": 0.0}, "delta"),
        ({"epsilon": 0.0}, "epsilon"),
    ],
)
def test_bad_arguments(make, change, message):
    with pytest.raises(ValueError, match=message):
        make(**change)


def test_other_messages_are_refused():
    aggregator = tree().aggregator
    state = aggregator.init_state(jnp.zeros(2))
    with pytest.raises(ValueError, match="structure of the parameters"):
        aggregator.finish(KEY, state, {"a": jnp.zeros(2)}, None)


# -- matrices -------------------------------------------------------------------------------


def strategy_matrix(coefficients, num_rounds):
    out = np.zeros((num_rounds, num_rounds))
    for i, j in itertools.product(range(num_rounds), repeat=2):
        if 0 <= i - j < len(coefficients):
            out[i, j] = coefficients[i - j]
    return out


def patterns(num_rounds, separation):
    """All sets of turns at least `separation` apart."""
    for turns in itertools.product((0, 1), repeat=num_rounds):
        places = np.flatnonzero(turns)
        if (np.diff(places) >= separation).all():
            yield np.array(turns, float)


@pytest.mark.parametrize("separation", [1, 2, 3, 4, 9])
@pytest.mark.parametrize("coefficients", [[1.0], [1.0, 0.6, 0.3], [0.7, 0.4, 0.4, 0.1, 0.05]])
def test_matrix_sensitivity_by_brute_force_and_by_jax_privacy(coefficients, separation):
    num_rounds = 9
    strategy = strategy_matrix(coefficients, num_rounds)
    worst = max(np.linalg.norm(strategy @ turns) for turns in patterns(num_rounds, separation))
    ours = dp.matrix_sensitivity(coefficients, num_rounds=num_rounds, separation=separation)
    assert ours == pytest.approx(worst, rel=1e-12)
    theirs = _toeplitz().minsep_sensitivity_squared(
        jnp.array(coefficients), min_sep=separation, n=num_rounds
    )
    assert ours**2 == pytest.approx(float(theirs), rel=1e-6)


def test_matrix_noise_is_the_inverse_times_white_noise():
    """(C^-1 Z)_t by numpy, from the same draws; so the covariance is (C^T C)^-1."""
    coefficients, num_rounds = [1.0, 0.6, 0.3], 6
    options = {"clip": 0.5, "noise_multiplier": 1.4, "denominator": 2.0, "num_rounds": num_rounds}
    white = dp.matrix_sum(**options, coefficients=[1.0])
    banded = dp.matrix_sum(**options, coefficients=coefficients)
    template = jnp.zeros(5000)
    z, _ = prefix_noise(white, template, num_rounds)
    x, states = prefix_noise(banded, template, num_rounds)
    z, x = (np.diff(v, axis=0, prepend=0) for v in (z, x))
    inverse = np.linalg.inv(strategy_matrix(coefficients, num_rounds))
    np.testing.assert_allclose(x, inverse @ z, atol=1e-4)
    assert states[-1].recent.shape == (2, 5000)
    scale = 1.4 * 0.5 / 2
    covariance = inverse @ inverse.T * scale**2
    # Entries of a sample covariance of n: error sqrt((s_ii s_jj + s_ij^2) / n).
    diagonal = np.diag(covariance)
    error = np.sqrt((np.outer(diagonal, diagonal) + covariance**2) / 5000)
    assert (np.abs(x @ x.T / 5000 - covariance) < 5 * error).all()


def test_one_band_is_independent_noise():
    """bands = 1: sensitivity sqrt(turns), so `z` on the whole is z sqrt(turns) a round."""
    mechanism = matrix(bands=1, num_rounds=8)  # four rounds an epoch: two turns
    noise, _ = prefix_noise(mechanism.aggregator, jnp.zeros(40_000), 2)
    steps = np.diff(noise, axis=0, prepend=0) * COHORT
    for step in steps:
        assert step.std() == pytest.approx(math.sqrt(2) * 0.5, rel=0.018)
    accountant = mechanism.accountant
    assert accountant.spent(8)["epsilon"] == pytest.approx(4.377178, abs=1e-6)  # mu = 1 / z = 1
    once = dp.gdp_epsilon(1e-5, math.sqrt(0.5))
    assert accountant.spent(4)["epsilon"] == pytest.approx(once)


def test_optimised_bands_beat_the_tree_and_independent_noise():
    """Mean squared error of the prefixes at equal privacy, one participation, T = 16."""
    num_rounds = 16
    found = dp.banded_coefficients(num_rounds, num_rounds)
    prefix = np.tril(np.ones((num_rounds, num_rounds)))
    error = prefix @ np.linalg.inv(strategy_matrix(found, num_rounds))
    sensitivity = dp.matrix_sensitivity(found, num_rounds=num_rounds, separation=num_rounds)
    ours = (error**2).sum(1).mean() * sensitivity**2
    nodes = np.mean([t.bit_count() for t in range(1, num_rounds + 1)])
    assert ours < nodes * dp.tree_sensitivity(num_rounds, num_rounds) ** 2
    assert ours < np.mean(np.arange(1, num_rounds + 1))
    assert (np.diff(found) <= 0).all()


def test_coefficients_are_checked():
    for bad in ([0.0, 0.0], [1.0, -0.1], [0.5, 0.6], [1.0, math.nan], [[1.0]], []):
        with pytest.raises(ValueError, match="coefficients"):
            matrix(coefficients=bad)
    with pytest.raises(ValueError, match="bands or coefficients"):
        matrix(bands=2, coefficients=[1.0])
    with pytest.raises(ValueError, match="bands must be at most"):
        matrix(bands=9)
