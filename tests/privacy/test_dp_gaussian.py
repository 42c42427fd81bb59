"""Central DP-FedAvg: numbers, fixed denominators, reductions, refusals, budgets."""

import math

import chex
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
ROWS = jnp.array([[3.0, 4.0], [0.3, 0.4], [0.0, -2.0]])
SIZES = testing.population().sizes.shape[0]


def fold(aggregator, values, mask=None, key=KEY):
    """The aggregate of a stack, folded one by one."""
    size = jax.tree.leaves(values)[0].shape[0]
    mask = jnp.ones(size, bool) if mask is None else mask
    template = Message(jax.tree.map(lambda leaf: leaf[0], values), jnp.ones(()))
    weights = jnp.asarray(10.0 ** (np.arange(size) % 6))  # absurd: they must not count

    def add(acc, row):
        one = jax.tree.map(lambda leaf: leaf[None], row)
        return aggregator.add(acc, Message(one[0], one[1]), one[2], one[3]), None

    rows = (values, weights, jnp.asarray(np.arange(size)), mask)
    acc, _ = jax.jit(lambda acc, rows: jax.lax.scan(add, acc, rows))(
        aggregator.init(template, size), rows
    )
    state = aggregator.init_state(template.value)
    return jax.jit(aggregator.finish)(key, state, acc, Cohort(jnp.arange(size), mask))[1]


def central(**change):
    options = {"clip": 1.0, "num_clients": SIZES, "sampling_rate": 1.0, "delta": 1e-5}
    if not {"epsilon", "noise_multiplier"} & set(change):
        options["noise_multiplier"] = 0.0
    return dp.central_gaussian(**{**options, **change})


def fedavg(mechanism, **slots):
    return fl.fedavg(
        testing.loss, optax.sgd(0.05), plan=fl.Plan(batch_size=2), privacy=mechanism, **slots
    )


def trained(algo, *, num_rounds=3, data=None):
    data = testing.population() if data is None else data
    state = algo.init(KEY, testing.init_params(jax.random.key(7)), data)
    for _ in range(num_rounds):
        state, metrics = algo.round(KEY, state, data)
    return state, metrics


# -- the aggregate --------------------------------------------------------------------------


clipped = jax.jit(dp.clip_clients, static_argnums=1, static_argnames="per_layer")


def test_fixed_denominator_and_unit_weights():
    """KNOWN_ANSWERS 4: sum (.9, .2), over q N = 4; by the realised 3 it would be (.3, .0667)."""
    aggregator = dp.gaussian_sum(clip=1.0, noise_multiplier=0.0, denominator=4.0)
    np.testing.assert_allclose(fold(aggregator, ROWS), [0.225, 0.05], rtol=1e-6)
    mask = jnp.array([True, True, False])
    np.testing.assert_allclose(fold(aggregator, ROWS, mask), [0.225, 0.3], rtol=1e-6)
    np.testing.assert_array_equal(fold(aggregator, ROWS, jnp.zeros(3, bool)), [0, 0])


def test_whole_tree_and_per_layer():
    """Leaves (3) and (4): whole (.6), (.8); per layer each S / sqrt(2), together S again."""
    tree = {"a": jnp.array([[3.0]]), "b": jnp.array([[4.0]])}
    whole, layers = clipped(tree, 1.0), clipped(tree, 1.0, per_layer=True)
    np.testing.assert_allclose([whole["a"][0, 0], whole["b"][0, 0]], [0.6, 0.8], rtol=1e-6)
    np.testing.assert_allclose(
        [layers["a"][0, 0], layers["b"][0, 0]], [math.sqrt(0.5)] * 2, rtol=1e-6
    )
    aggregator = dp.gaussian_sum(clip=1.0, noise_multiplier=0.0, denominator=1.0, per_layer=True)
    np.testing.assert_allclose(fold(aggregator, tree)["b"], [math.sqrt(0.5)], rtol=1e-6)


@pytest.mark.parametrize("per_layer", [False, True])
def test_what_is_not_finite_is_nothing(per_layer):
    for bad in (jnp.nan, jnp.inf, -jnp.inf):
        tree = {"a": jnp.array([[bad], [3.0]]), "b": jnp.array([[4.0], [0.0]])}
        for clip in (1.0, jnp.inf):
            got = clipped(tree, clip, per_layer=per_layer)
            np.testing.assert_array_equal(got["a"][0], [0])
            np.testing.assert_array_equal(got["b"][0], [0])
            assert float(got["a"][1, 0]) > 0


def test_noise_on_the_mean():
    """z S / (q N): z = 1.1, S = 1, q = .01, N = 1000 is .11, also where nobody takes part."""
    mechanism = dp.central_gaussian(
        clip=1.0, num_clients=1000, sampling_rate=0.01, noise_multiplier=1.1, delta=1e-5
    )
    nobody = fold(mechanism.aggregator, jnp.zeros((2, 50_000)), jnp.zeros(2, bool))
    # 5e4 draws: the standard deviation's relative error is .32 %, 1.6 % are five of them.
    assert float(nobody.std()) == pytest.approx(0.11, rel=0.016)
    assert abs(float(nobody.mean())) < 5 * 0.11 / math.sqrt(50_000)


def test_sums_are_float32():
    rows = jnp.full((300, 2), 1.0, jnp.bfloat16)
    aggregator = dp.gaussian_sum(clip=10.0, noise_multiplier=0.0, denominator=1.0)
    out = fold(aggregator, rows)
    assert out.dtype == jnp.float32
    np.testing.assert_array_equal(out, [300, 300])  # bfloat16 would stop at 256


def test_narrow_rows_are_clipped_in_float32():
    """Rounded back to bfloat16 the norm was .3 % above the clip."""
    for dtype in (jnp.bfloat16, jnp.float16):
        large = 1e12 if dtype == jnp.bfloat16 else 6e4
        rows = {"a": jnp.full((2, 3000), large, dtype), "b": jnp.full((2, 3), -large / 7, dtype)}
        for per_layer in (False, True):
            got = clipped(rows, 1e3, per_layer=per_layer)
            flat = np.concatenate([np.asarray(got[name], np.float64) for name in "ab"], 1)
            assert {leaf.dtype for leaf in got.values()} == {jnp.dtype("float32")}
            assert np.linalg.norm(flat, axis=1).max() <= 1e3 * (1 + 1e-6)
            assert np.linalg.norm(flat, axis=1).min() >= 1e3 * (1 - 1e-6)


# -- laws -----------------------------------------------------------------------------------

LAWS = testing.LAWS_OF_NOISE
"""The aggregate of nobody is noise, by design: whether anybody took part must not show."""


@pytest.mark.parametrize(("noise_multiplier", "per_layer"), [(0.0, True), (1.0, False)])
def test_laws(noise_multiplier, per_layer):
    aggregator = dp.gaussian_sum(
        clip=1.0, noise_multiplier=noise_multiplier, denominator=3.0, per_layer=per_layer
    )
    silent = noise_multiplier == 0
    testing.check_aggregator(aggregator, laws=None if silent else LAWS)
    if not silent:
        with pytest.raises(AssertionError, match="nothing_aggregates_to_zero"):
            testing.check_aggregator(aggregator)


AGREE = "mechanisms equal under all strategies"
ROUND_LAWS = (
    "structure_is_stable",
    pytest.param("strategies_agree", marks=[pytest.mark.slow, pytest.mark.sample(1, of=AGREE)]),
    "never_retraces",
    "masked_clients_leave_no_trace",
)
"""Not: empty_cohort_changes_nothing (noise), laws that give the algorithm other samplers."""


def law_subject(learning_rate, sampler, strategy):
    return fl.fedavg(
        testing.loss,
        optax.sgd(learning_rate),
        plan=fl.Plan(batch_size=2),
        privacy=central(noise_multiplier=1.0),
        strategy=strategy,
    )


@pytest.mark.parametrize("law", ROUND_LAWS)
def test_laws_of_a_private_algorithm(law):
    testing.check_algorithm(law_subject, laws=[law])


# -- reductions -----------------------------------------------------------------------------


def test_without_noise_and_bound_it_is_uniform_fedavg():
    """z = 0, S = inf, q = 1: the fixed denominator is the cohort. No client may be empty."""
    data = fl.data.from_arrays(
        {k: np.asarray(v) for k, v in testing.population().examples.items()},
        np.arange(22) % 7,
        num_clients=7,
    )
    private = trained(fedavg(central(clip=math.inf)), data=data)[0]
    plain = fl.fedavg(
        testing.loss,
        optax.sgd(0.05),
        plan=fl.Plan(batch_size=2),
        sampler=fl.everyone(),
        weighting="uniform",
    )
    state = trained(plain, data=data)[0]
    for name in ("w", "b"):
        np.testing.assert_allclose(
            private.server.params[name], state.server.params[name], rtol=2e-5, atol=1e-6
        )


def test_example_weights_do_not_count():
    """Defect 4: the same model whatever weighting the method is given."""
    models = []
    for weighting in ("examples", "uniform"):
        state, _ = trained(fedavg(central(clip=0.5), weighting=weighting))
        models.append(jax.device_get(state.server.params))
    np.testing.assert_array_equal(models[0]["w"], models[1]["w"])


# -- what is refused ------------------------------------------------------------------------


def test_other_slots_are_refused():
    mechanism = central()
    for slots in ({"sampler": fl.uniform(3)}, {"aggregator": fl.mean()}):
        with pytest.raises(ValueError, match="must be left out where privacy is given"):
            fedavg(mechanism, **slots)
    assert fedavg(mechanism, sampler=mechanism.sampler)


def test_another_population_is_refused():
    algo = fedavg(central(num_clients=SIZES + 1))
    with pytest.raises(ValueError, match="declared for 8 clients, but the population has 7"):
        trained(algo)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"sampling_rate": None}, "exactly one of expected_cohort_size and sampling_rate"),
        ({"expected_cohort_size": 2}, "exactly one of expected_cohort_size and sampling_rate"),
        ({"sampling_rate": 1.5}, "num_clients"),
        ({"noise_multiplier": None}, "epsilon or noise_multiplier must be given"),
        ({"noise_multiplier": -1.0}, "noise_multiplier"),
        ({"noise_multiplier": 1.0, "clip": math.inf}, "clip must be finite where there is noise"),
        ({"clip": 0.0}, "clip must be positive"),
        ({"clip": math.nan}, "clip must be positive"),
        ({"delta": 0.0}, "delta"),
        ({"noise_multiplier": None, "epsilon": 1.0}, "num_rounds must be given"),
        ({"noise_multiplier": None, "epsilon": 0.0, "num_rounds": 3}, "epsilon"),
        ({"noise_multiplier": 1.0, "method": "zcdp"}, "method"),
        ({"num_clients": 0}, "num_clients"),
    ],
)
def test_bad_arguments(change, message):
    change = {"noise_multiplier": 0.0, **change}
    with pytest.raises(ValueError, match=message):
        central(**change).accountant.spent(1)


def test_traced_amounts_are_refused_with_the_remedy():
    with pytest.raises(TypeError, match=r"fl\.privacy\.calibrate"):
        jax.jit(lambda z: central(epsilon=z, num_rounds=3) and z)(1.0)


# -- runs -----------------------------------------------------------------------------------


def test_run_shows_epsilon_and_stops_at_the_budget():
    mechanism = central(noise_multiplier=5.0, epsilon=3.0)
    last = mechanism.accountant.max_rounds
    epsilon_of = lambda t: dp.gdp_epsilon(1e-5, math.sqrt(t) / 5)  # noqa: E731
    assert epsilon_of(last) <= 3.0 < epsilon_of(last + 1)
    algo, data = fedavg(mechanism), testing.population()
    state = algo.init(KEY, testing.init_params(KEY), data)
    _, history = fl.run(algo, KEY, state, data, num_rounds=last + 5, every=4, progress=False)
    assert len(history) == last
    shown = {row["round"]: row["epsilon"] for row in history if "epsilon" in row}
    assert shown == pytest.approx({t: epsilon_of(t) for t in range(1, last + 1)})


def test_epsilon_in_row_0_and_in_the_progress_line(capsys):
    algo, data = fedavg(central(noise_multiplier=5.0)), testing.population()
    state = algo.init(KEY, testing.init_params(KEY), data)
    _, history = fl.run(
        algo, KEY, state, data, num_rounds=2, every=2, evaluate=lambda state: {"test_loss": 1.0}
    )
    assert history[0].keys() >= {"round", "epsilon", "test_loss", "seconds"}
    assert [row["epsilon"] for row in history[::2]] == pytest.approx(
        [0.0, dp.gdp_epsilon(1e-5, math.sqrt(2) / 5)]
    )
    lines = capsys.readouterr().out.splitlines()
    assert "epsilon 0.0000" in lines[0]
    assert f"epsilon {history[-1]['epsilon']:.4f}" in lines[-1]


def test_a_delta_of_at_least_one_over_the_clients_is_warned_of():
    few = {"num_clients": 30, "noise_multiplier": 1.0}
    turns = {**few, "cohort_size": 2, "num_rounds": 2, "clip": 1.0}
    for delta in (1 / 30, 0.5):
        for make in (
            lambda delta: dp.central_gaussian(clip=1.0, sampling_rate=1.0, delta=delta, **few),
            lambda delta: dp.adaptive_clipping(sampling_rate=1.0, delta=delta, **few),
            lambda delta: dp.tree_noise(delta=delta, **turns),
            lambda delta: dp.matrix_noise(delta=delta, **turns),
            lambda delta: dp.local_gaussian(delta=delta, **turns),
        ):
            with pytest.warns(UserWarning, match=r"not below 1 / num_clients = 0.0333.*one client"):
                make(delta)
            make(0.03)  # silent: warnings are errors here


def test_calibrated_run_ends_with_its_rounds():
    mechanism = central(epsilon=2.0, num_rounds=9, sampling_rate=1.0)
    assert mechanism.accountant.max_rounds == 9
    assert mechanism.accountant.spent(9)["epsilon"] == pytest.approx(2.0, rel=1e-6)
    assert "epsilon <= 2 up to round 9" in mechanism.accountant.description


def test_stated_rounds_end_the_run():
    """With the noise alone, and where they come before the budget's last round."""
    assert central(noise_multiplier=5.0).accountant.max_rounds is None
    assert central(noise_multiplier=5.0, num_rounds=7).accountant.max_rounds == 7
    last = central(noise_multiplier=5.0, epsilon=3.0).accountant.max_rounds
    for num_rounds in (last - 1, last + 1):
        both = central(noise_multiplier=5.0, epsilon=3.0, num_rounds=num_rounds)
        assert both.accountant.max_rounds == min(last, num_rounds)
    adaptive = dp.adaptive_clipping(
        num_clients=100, sampling_rate=1.0, delta=1e-5, noise_multiplier=1.0, num_rounds=7
    )
    assert adaptive.accountant.max_rounds == 7


def test_accountants_know_their_delta():
    turns = {"num_clients": 4, "cohort_size": 2, "num_rounds": 2, "clip": 1.0}
    noise = {"noise_multiplier": 1.0, "delta": 3e-6}
    for mechanism in (
        central(noise_multiplier=1.0, delta=3e-6),
        dp.adaptive_clipping(num_clients=100, sampling_rate=1.0, **noise),
        dp.tree_noise(**turns, **noise),
        dp.matrix_noise(**turns, **noise),
        dp.local_gaussian(**turns, **noise),
        dp.distributed_discrete_gaussian(clip=1.0, cohort_size=4, dimension=8, **noise),
    ):
        assert mechanism.accountant.delta == 3e-6


def test_no_noise_is_said_aloud():
    accountant = central().accountant
    assert accountant.spent(1)["epsilon"] == math.inf
    assert accountant.description.startswith("NOT PRIVATE")


def test_poisson_rounds_have_the_declared_rate():
    """Rate, capacity and overflow of a real sampler: 10 +- 3.1464 of 1000."""
    cohorts = dp.poisson_cohorts(1000, 0.01)
    state, sizes = cohorts.sampler.init(1000), jnp.ones(1000, jnp.int32)
    masks = jax.vmap(lambda k: cohorts.sampler.sample(k, state, sizes)[1].mask.sum())
    counts = np.asarray(jax.jit(masks)(jax.random.split(KEY, 4000)))
    assert counts.mean() == pytest.approx(10, abs=5 * 3.1464 / math.sqrt(4000))
    # The variance's standard error is variance * sqrt(2 / n).
    assert counts.var() == pytest.approx(9.9, rel=5 * math.sqrt(2 / 4000))
    assert 0 < 0.01 - cohorts.rate < 2**-23


def test_once_an_epoch_is_a_function_of_seed_and_round():
    sampler = dp.once_an_epoch(10, 4, seed=3)
    first, state = order_of(sampler, 4)
    later, _ = order_of(sampler, 5, jax.random.key(9), state)  # another key, after a restart
    rounds = first + later
    for epoch in range(3):
        members = [i for cohort in rounds[3 * epoch : 3 * epoch + 3] for i in cohort]
        assert sorted(members) == list(range(10))
    assert rounds[:3] == rounds[3:6] == rounds[6:9]  # turns lie exactly three rounds apart
    assert [len(cohort) for cohort in rounds[:3]] == [4, 4, 2]
    other, _ = order_of(dp.once_an_epoch(10, 4, seed=4), 3)
    assert other != rounds[:3]
    with pytest.raises(ValueError, match="declared for 10"):
        sampler.init(11)


def order_of(sampler, num_rounds, key=KEY, state=None):
    sample, out = jax.jit(sampler.sample), []
    state = sampler.init(10) if state is None else state
    for _ in range(num_rounds):
        state, cohort = sample(key, state, np.ones(10, "f4"))
        out.append(np.asarray(cohort.ids)[np.asarray(cohort.mask)].tolist())
    return out, state


def test_a_sweep_over_noise_compiles_once():
    """Traced clip and noise in the aggregator; the mechanism keeps sampler and accountant."""
    mechanism, data = central(), testing.population()

    @jax.jit
    @chex.assert_max_traces(n=1)
    def step(z, clip, params, data):
        aggregator = dp.gaussian_sum(clip=clip, noise_multiplier=z, denominator=float(SIZES))
        algo = fedavg(mechanism._replace(aggregator=aggregator))
        state = algo.init(KEY, params, data)
        return algo.round(KEY, state, data)[0].server.params["w"]

    params = testing.init_params(KEY)
    still, loud = (step(z, 0.1, params, data) for z in (0.0, 10.0))
    unbounded = step(0.0, jnp.inf, params, data)
    assert float(jnp.abs(still - loud).max()) > 0.01
    chex.assert_tree_all_finite(unbounded)
