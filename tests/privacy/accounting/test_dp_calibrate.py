"""Target epsilons: the noise that was chosen, sweeps over it, and epsilon row by row."""

import itertools
import json
import math

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import fedjax_lite as fl
import fedjax_lite.privacy as dp
from fedjax_lite import testing
from fedjax_lite.privacy.accounting.accountants import poisson_accountant
from fedjax_lite.privacy.accounting.calibrate_mechanism import calibrate
from fedjax_lite.privacy.accounting.tree_sensitivity import tree_sensitivities

KEY = jax.random.key(0)
DATA = testing.population()
NUM_CLIENTS = DATA.sizes.shape[0]
DELTA = 1e-5
EVERYBODY = {"num_clients": NUM_CLIENTS, "sampling_rate": 1.0, "delta": DELTA, "num_rounds": 4}
TURNS = {"num_clients": NUM_CLIENTS, "cohort_size": 2, "delta": DELTA, "num_rounds": 4, "clip": 1.0}
SETTINGS = {
    dp.central_gaussian: {"clip": 1.0, **EVERYBODY},
    dp.adaptive_clipping: {**EVERYBODY, "count_noise_multiplier": 50.0, "initial_clip": 1.0},
    dp.tree_noise: TURNS,
    dp.matrix_noise: {**TURNS, "coefficients": [1.0, 0.5]},
    dp.local_gaussian: TURNS,
}
DISCRETE = {"clip": 1.0, "cohort_size": 4, "dimension": 8, "delta": DELTA, "num_rounds": 4}
ALL = {**SETTINGS, dp.distributed_discrete_gaussian: DISCRETE}


def fedavg(mechanism):
    plan = fl.Plan(batch_size=None, steps=1)
    return fl.fedavg(testing.loss, optax.sgd(0.05), plan=plan, privacy=mechanism)


@pytest.mark.parametrize("factory", ALL, ids=lambda factory: factory.__name__)
def test_the_noise_that_a_target_epsilon_found(factory):
    """It spends the target and no more; a hundredth less of it would spend more."""
    settings = ALL[factory]
    [z] = calibrate([3.0], factory, **settings)
    spends = lambda z: factory(noise_multiplier=z, **settings).accountant.spent(4)["epsilon"]  # noqa: E731
    assert spends(z) <= 3.0 + 1e-9
    assert spends(0.99 * z) > 3.0
    assert spends(z) == pytest.approx(3.0, rel=2e-3)
    stated = factory(noise_multiplier=1.25, **settings)
    assert stated.noise_multiplier == stated.accountant.noise_multiplier == 1.25


def test_central_noise_is_the_closed_form():
    """Without subsampling: ``sqrt(T) / mu``, by budget and in the order of the budgets."""
    budgets = [8.0, 0.5, math.inf]
    settings = SETTINGS[dp.central_gaussian]
    expected = [2 / dp.gdp_mu(budget, DELTA) for budget in budgets[:2]] + [0.0]
    assert calibrate(budgets, dp.central_gaussian, **settings) == pytest.approx(expected)
    assert calibrate([], dp.central_gaussian, **settings) == []


def test_an_overflow_is_paid_for_by_the_noise():
    """Beyond what `noise_multiplier` says, which knows nothing of capacities."""
    settings = {"num_clients": 100, "sampling_rate": 0.2, "delta": 1e-3, "num_rounds": 3}
    rough = {"clip": 1.0, "method": "rdp", "capacity": 40, **settings}
    [z] = calibrate([2.0], dp.central_gaussian, **rough)
    del settings["num_clients"]
    assert dp.epsilon(noise_multiplier=z, method="rdp", **settings) < 1.999


@pytest.mark.parametrize(
    ("call", "error", "message"),
    [
        (lambda: calibrate(1.0, dp.local_gaussian, **TURNS), ValueError, "list of budgets"),  # type: ignore[arg-type]
        (lambda: calibrate([0.0], dp.local_gaussian, **TURNS), ValueError, "epsilon"),
        (lambda: calibrate([1.0], lambda epsilon: None), TypeError, "Mechanism"),  # type: ignore[arg-type]
        (lambda: calibrate([1.0], 5.0), TypeError, "central_gaussian"),  # type: ignore[arg-type]
    ],
)
def test_what_cannot_be_calibrated(call, error, message):
    with pytest.raises(error, match=message):
        call()


def test_a_mechanism_of_ones_own_needs_the_field():
    made = fl.Mechanism(fl.everyone(), fl.mean(), fl.Accountant(lambda rounds: {}, None, "mine"))
    assert made.noise_multiplier is None
    with pytest.raises(TypeError, match="set that field of Accountant"):
        calibrate([1.0], lambda epsilon: made)


# -- noise that is traced -------------------------------------------------------------------


def test_optimised_bands_stay_numbers_where_noise_is_traced():
    kept = []

    def make(noise_multiplier):
        kept.append(dp.matrix_noise(noise_multiplier=noise_multiplier, bands=2, **TURNS))
        return noise_multiplier

    jax.eval_shape(make, 1.0)  # first of all, so that nothing is known from a call before
    make(1.0)
    told = [made.accountant.description for made in kept]
    assert "2 bands" in told[0]
    sensitivity = told[1].split("sensitivity ")[1].split(",")[0]
    assert f"sensitivity {sensitivity}," in told[0]


def test_a_sweep_over_epsilons():
    """The rows have each budget's epsilon, and a member is the run with that noise."""
    settings = SETTINGS[dp.central_gaussian]
    budgets = [2.0, 20.0]
    noise = calibrate(budgets, dp.central_gaussian, **settings)

    def make(noise_multiplier):
        return fedavg(dp.central_gaussian(noise_multiplier=noise_multiplier, **settings))

    result = fl.sweep(
        make, {"noise_multiplier": noise}, init=testing.init_params, data=DATA, num_rounds=4,
        every=2, progress=False,
    )  # fmt: skip
    spent = [row["epsilon"] for row in result.rows if row["round"] == 4]
    assert spent == pytest.approx(budgets)
    half = [dp.gdp_epsilon(DELTA, math.sqrt(2) / z) for z in noise]
    assert [row["epsilon"] for row in result.rows if row["round"] == 2] == pytest.approx(half)
    algo = make(noise[0])
    state = algo.init(KEY, testing.init_params(KEY), DATA)
    state, history = fl.run(algo, KEY, state, DATA, num_rounds=4, progress=False)
    expected = [dp.gdp_epsilon(DELTA, math.sqrt(rounds) / noise[0]) for rounds in range(1, 5)]
    assert [row["epsilon"] for row in history] == pytest.approx(expected)  # in every row
    swept = result.states.server.params
    jax.tree.map(
        lambda one, all: np.testing.assert_allclose(one, all[0], rtol=2e-5, atol=2e-6),
        state.server.params,
        swept,
    )
    assert float(abs(swept["w"][0] - swept["w"][1]).max()) > 0.1  # seven times the noise


@pytest.mark.sample(2)
@pytest.mark.parametrize("factory", SETTINGS, ids=lambda factory: factory.__name__)
def test_traced_noise_is_that_of_a_plain_number(factory):
    value = {"w": jnp.linspace(-1.0, 1.0, 5)}
    traces = []

    def aggregate(z):
        traces.append(z)
        made = factory(noise_multiplier=z, **SETTINGS[factory])
        if made.uplink is not None:
            return made.uplink.update(KEY, made.uplink.init(value), value)[1]["w"]
        state = made.aggregator.init_state(value)
        now = made.aggregator if made.aggregator.at is None else made.aggregator.at(state)
        message = fl.Message(value, jnp.float32(1))
        rows = jax.tree.map(lambda leaf: leaf[None], message)
        acc = now.add(now.init(message, 1), rows, jnp.arange(1), jnp.ones(1, bool))
        cohort = fl.Cohort(jnp.arange(1), jnp.ones(1, bool))
        return now.finish(KEY, state, acc, cohort)[1]["w"]

    traced = jax.jit(aggregate)
    for z in (0.0, 0.5, 2.0):
        plain = jax.jit(lambda z=z: aggregate(z))()  # a default is a number, not an argument
        np.testing.assert_allclose(traced(z), plain, rtol=1e-5, atol=1e-6)
    assert len(traces) == 4  # once traced, and three times plainly
    assert float(abs(traced(2.0) - traced(0.0)).max()) > 0.1


def test_what_must_not_be_traced_is_named():
    central, settings = dp.central_gaussian, SETTINGS[dp.central_gaussian]
    unknown = []

    def refused(error, message, build):
        with pytest.raises(error, match=message):
            jax.eval_shape(lambda z: build(z) and z, 1.0)

    refused(TypeError, "fl.privacy.calibrate", lambda z: central(epsilon=z, **settings))
    refused(
        ValueError,
        "epsilon must be left out where noise_multiplier is traced",
        lambda z: central(epsilon=1.0, noise_multiplier=z, **settings),
    )
    refused(
        ValueError,
        "clip must be finite where there is noise",
        lambda z: central(noise_multiplier=z, **{**settings, "clip": math.inf}),
    )
    refused(
        TypeError,
        "loop over it in Python",
        lambda z: dp.distributed_discrete_gaussian(noise_multiplier=z, **DISCRETE),
    )
    jax.eval_shape(
        lambda z: unknown.append(central(noise_multiplier=z, **settings).accountant) or z, 1.0
    )
    assert unknown[0].noise_multiplier is None
    assert unknown[0].max_rounds == 4
    with pytest.raises(TypeError, match="epsilon is not known"):
        unknown[0].spent(1)


# -- epsilon row by row ---------------------------------------------------------------------


@pytest.mark.parametrize("factory", ALL, ids=lambda factory: factory.__name__)
def test_exact_accountants_are_quick_enough_for_every_row(factory):
    accountant = factory(noise_multiplier=2.0, **ALL[factory]).accountant
    for rounds in range(1, 5):
        assert accountant.every_round(rounds) == accountant.spent(rounds)


def test_of_poisson_cohorts_the_bound_by_renyi_divergences_is():
    """Composition adds divergences up, so one round's serve them all; an upper bound."""
    mechanism = {"noise_multiplier": 1.1, "sampling_rate": 0.01}
    options = {"overflow": 0.0, "delta": DELTA, "epsilon": None, "num_rounds": None, "what": "x"}
    accountant = poisson_accountant(**mechanism, **options, method="pld")
    assert accountant.every_round is not None
    for rounds in (1, 10, 1000):
        quick = accountant.every_round(rounds)
        assert quick == {
            "epsilon_rdp": dp.epsilon(**mechanism, num_rounds=rounds, delta=DELTA, method="rdp")
        }
        assert quick["epsilon_rdp"] >= accountant.spent(rounds)["epsilon"]
    rdp = poisson_accountant(**mechanism, **options, method="rdp")
    assert rdp.every_round is not None
    assert rdp.every_round(10) == rdp.spent(10)


def history(algo, num_rounds, **options):
    state = algo.init(KEY, testing.init_params(KEY), DATA)
    options = {"progress": False, "every": 3, **options}
    return fl.run(algo, KEY, state, DATA, num_rounds=num_rounds, **options)[1]


def test_a_run_has_it_in_every_row_and_a_resumed_one_the_same(tmp_path):
    settings = {"clip": 1.0, "num_clients": NUM_CLIENTS, "sampling_rate": 0.5, "delta": DELTA}
    mechanism = dp.central_gaussian(noise_multiplier=4.0, **settings)
    algo = fedavg(mechanism)
    whole = history(algo, 6, output_dir=tmp_path / "whole")
    assert [row["round"] for row in whole if "epsilon" in row] == [3, 6]
    for row in whole:
        expected = mechanism.accountant.spent(row["round"])["epsilon_rdp"]
        assert row["epsilon_rdp"] == expected
    history(algo, 3, output_dir=tmp_path / "parts")
    history(algo, 6, output_dir=tmp_path / "parts", resume=True)
    rows = [
        [
            json.dumps({k: v for k, v in json.loads(line).items() if k != "seconds"})
            for line in (tmp_path / name / "metrics.jsonl").read_text().splitlines()
        ]
        for name in ("whole", "parts")
    ]
    assert len(rows[0]) == 6
    assert rows[0] == rows[1]


def test_sensitivities_of_the_tree_by_round():
    """Against all nodes of the prefixes so far, one by one."""
    for num_rounds, separation in itertools.product((1, 5, 12), (1, 3, 20)):
        for rounds in range(1, num_rounds + 1):
            nodes = [
                (first, first + 2**level)
                for level in range(rounds.bit_length())
                for first in range(0, rounds - 2**level + 1, 2 ** (level + 1))
            ]
            turns = [set(range(i, rounds, separation)) for i in range(separation)]
            squares = [sum(len(t & set(range(*node))) ** 2 for node in nodes) for t in turns]
            got = tree_sensitivities(num_rounds, separation)[rounds - 1]
            assert got == pytest.approx(math.sqrt(max(squares)), rel=1e-12)
            assert got == dp.tree_sensitivity(rounds, separation)
