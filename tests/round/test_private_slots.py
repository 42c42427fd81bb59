"""What a privacy mechanism fixes: no other sampler, no other aggregator, a blindfolded server."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import fedjax_lite as fl
from fedjax_lite.aggregation import mean
from fedjax_lite.types import Accountant, Aggregator, Mechanism, Message

KEY = jax.random.key(0)


def accountant(max_rounds=None):
    return Accountant(lambda rounds: {"epsilon": 0.5 * rounds}, max_rounds, "epsilon is made up")


def fixed_sum(scale=1.0):
    """The sum over the mask with weight 1, divided by 4: what a mechanism does, without noise."""

    def init(message, size):
        return jax.tree.map(jnp.zeros_like, message.value)

    def add(acc, messages, slots, mask):
        return jax.tree.map(lambda a, v: a + jnp.tensordot(mask * scale, v, 1), acc, messages.value)

    def finish(key, state, acc, cohort):
        return state, jax.tree.map(lambda a: a / 4, acc)

    return Aggregator(lambda params: (), init, add, finish)


def mechanism(**change):
    return Mechanism(fl.everyone(), fixed_sum(), accountant())._replace(**change)


def loss(w, e, key):
    return 0.5 * (w - e["b"]) ** 2


DATA = fl.data.from_arrays({"b": jnp.array([-1.0, 2.0, 2.0, 5.0])}, [0, 1, 1, 2])


def algorithm(factory=fl.fedavg, rate=None, **slots):
    client = optax.sgd(1.0) if rate is None else rate
    return factory(loss, client, plan=fl.Plan(batch_size=None), **slots)


def after_one_round(algo, cohort=None):
    state = algo.init(KEY, jnp.array(0.0), DATA)
    return algo.round(KEY, state, DATA, cohort)[0]


def test_example_weights_do_not_count():
    state = after_one_round(algorithm(privacy=mechanism(), weighting="examples"))
    assert float(state.server.params) == (-1 + 2 + 5) / 4


def test_brings_its_sampler_and_takes_no_other():
    dp = mechanism()
    after_one_round(algorithm(privacy=dp, sampler=dp.sampler))
    with pytest.raises(ValueError, match="sampler must be left out where privacy is given"):
        algorithm(privacy=dp, sampler=fl.uniform(2))
    with pytest.raises(ValueError, match="aggregator must be left out where privacy is given"):
        algorithm(privacy=dp, aggregator=mean())
    with pytest.raises(TypeError, match="privacy must be a Mechanism"):
        algorithm(privacy=accountant())
    with pytest.raises(TypeError, match="sampler must be given"):
        algorithm()


def test_two_aggregates_a_round_are_refused():
    with pytest.raises(ValueError, match="aggregates twice"):
        algorithm(fl.mime, 0.1, privacy=mechanism())


def test_a_server_that_reads_exact_statistics_is_refused():
    algo = algorithm(fl.scaffold, 0.1, privacy=mechanism())
    with pytest.raises(ValueError, match="reads 'weight', an exact statistic"):
        after_one_round(algo)


def test_an_empty_cohort_is_a_round_like_any_other():
    """Whether somebody took part must not show: momentum decays, counters count."""
    algo = algorithm(privacy=mechanism(), server_optimizer=optax.adam(0.1))
    nobody = fl.Cohort(jnp.arange(3), jnp.zeros(3, bool))
    with pytest.warns(UserWarning, match="explicit cohort"):
        state = after_one_round(algo, nobody)
    assert int(state.server.opt_state[0].count) == 1


@pytest.mark.parametrize("downlink", [None, fl.identity(), fl.Downlink(fl.identity(), "model")])
def test_neither_does_it_show_behind_a_downlink(downlink):
    """A mechanism's noise moves the model also where nobody took part, or only empty clients."""

    def noise(key, state, acc, cohort):
        return state, jax.tree.map(lambda a: a + jax.random.normal(key), acc)

    noisy = mechanism(aggregator=fixed_sum()._replace(finish=noise))
    algo = algorithm(privacy=noisy, downlink=downlink)
    data = fl.data.from_arrays({"b": jnp.ones(1)}, [0], num_clients=2)
    for ids, mask in (([0, 1], [False, False]), ([1], [True])):
        state = algo.init(KEY, jnp.array(0.0), data)
        cohort = fl.Cohort(jnp.array(ids), jnp.array(mask))
        with pytest.warns(UserWarning, match="not the mechanism's own sampling"):
            state, _ = algo.round(KEY, state, data, cohort)
        assert float(state.server.params) != 0


def test_a_client_named_twice_counts_once():
    algo, cohort = (
        algorithm(privacy=mechanism()),
        fl.Cohort(jnp.array([2, 2, 2]), jnp.ones(3, bool)),
    )
    with pytest.warns(UserWarning, match="epsilon does not hold"):
        state = after_one_round(algo, cohort)
    assert float(state.server.params) == 5 / 4


def test_fednova_is_refused():
    with pytest.raises(ValueError, match="privacy must be left out of fednova"):
        algorithm(fl.fednova, 0.1, privacy=mechanism())


def test_a_run_goes_on_with_its_own_mechanism_only(tmp_path):
    def run(description, **options):
        spends = accountant()._replace(description=description)
        algo = algorithm(privacy=mechanism(accountant=spends))
        state = algo.init(KEY, jnp.array(0.0), DATA)
        options |= {"progress": False, "output_dir": tmp_path}
        return fl.run(algo, KEY, state, DATA, **options)

    run("z=5", num_rounds=2)
    with pytest.raises(ValueError, match="privacy"):
        run("z=0.5", num_rounds=4, resume=True)
    state, _ = run("z=5", num_rounds=4, resume=True)
    assert int(state.round) == 4


def test_beyond_the_budget_is_an_error_of_its_own():
    algo = algorithm(privacy=mechanism())
    state, _ = fl.run(
        algo, KEY, algo.init(KEY, jnp.array(0.0), DATA), DATA, num_rounds=5, progress=False
    )
    short = algorithm(privacy=mechanism(accountant=accountant(max_rounds=4)))
    with pytest.raises(ValueError, match="5 rounds, but the privacy budget ends after 4"):
        fl.run(short, KEY, state, DATA, num_rounds=9, progress=False)


def test_a_sweep_shows_epsilon_and_keeps_to_the_budget():
    def make(learning_rate):
        private = mechanism(accountant=accountant(max_rounds=3))
        return fl.fedavg(
            loss, optax.sgd(learning_rate), plan=fl.Plan(batch_size=None), privacy=private
        )

    def sweep(num_rounds):
        grid = {"learning_rate": [0.1, 1.0]}
        return fl.sweep(
            make, grid, init=lambda key: jnp.float32(0), data=DATA, num_rounds=num_rounds, every=1
        )

    assert [row["epsilon"] for row in sweep(2).rows] == [0.5, 0.5, 1.0, 1.0]
    with pytest.raises(ValueError, match="at most 3, where the privacy budget"):
        sweep(4)


def test_with_another_strategy_it_stays_private():
    algo = algorithm(privacy=mechanism(uplink=fl.clip(1.0)), uplink=fl.identity())
    other = algo.with_strategy(fl.vmapped())
    assert other.accountant is algo.accountant
    expected = (-1 + 1 + 1) / 4
    for a in (algo, other):
        np.testing.assert_allclose(after_one_round(a).server.params, expected, rtol=1e-6)


def test_this_rounds_aggregator_knows_its_state_while_it_folds():
    """`at`: here every round counts twice what the last one did."""
    base = fixed_sum()

    def at(state):
        return fixed_sum(state)._replace(
            finish=lambda key, state, acc, cohort: (2 * state, base.finish(key, (), acc, cohort)[1])
        )

    doubling = base._replace(init_state=lambda params: jnp.float32(1), at=at)
    for strategy in (fl.vmapped(), fl.chunked(2), fl.sequential()):
        algo = algorithm(privacy=mechanism(aggregator=doubling), strategy=strategy)
        state = algo.init(KEY, jnp.array(0.0), DATA)
        for expected in (1.5, 1.5 + 2 * (6 - 3 * 1.5) / 4):
            state, _ = algo.round(KEY, state, DATA)
            np.testing.assert_allclose(state.server.params, expected, rtol=1e-6)
    message = Message(jnp.ones(()), jnp.ones(()))
    assert doubling.init(message, 3) == 0


def test_run_shows_what_was_spent_and_stops_at_the_budget(capsys):
    algo = algorithm(privacy=mechanism(accountant=accountant(max_rounds=5)))
    state = algo.init(KEY, jnp.array(0.0), DATA)
    state, history = fl.run(algo, KEY, state, DATA, num_rounds=9, every=2)
    assert int(state.round) == 5
    assert {row["round"]: row["epsilon"] for row in history if "epsilon" in row} == {
        2: 1.0,
        4: 2.0,
        5: 2.5,
    }
    shown = capsys.readouterr()
    text = " ".join((shown.out + shown.err).split())
    assert "epsilon is made up" in text
    assert "budget ends after round 5" in text
    state, history = fl.run(algo, KEY, state, DATA, num_rounds=9, progress=False)
    assert int(state.round) == 5
    assert not history


def test_bits_add_up_over_a_run_and_its_resumption(tmp_path):
    algo = algorithm(sampler=fl.everyone())
    state = algo.init(KEY, jnp.array(0.0), DATA)
    options = {"every": 2, "progress": False, "output_dir": tmp_path}
    fl.run(algo, KEY, state, DATA, num_rounds=3, **options)
    _, history = fl.run(algo, KEY, state, DATA, num_rounds=6, resume=True, **options)
    assert [row["uplink_bits"] for row in history] == [3 * 32.0] * 6
    assert [row["uplink_bits_total"] for row in history] == [96.0 * r for r in range(1, 7)]
    assert history[-1]["downlink_bits_total"] == 6 * 96.0


def test_mime_pays_for_both_of_its_passes():
    algo = algorithm(fl.mime, 0.1, sampler=fl.everyone())
    state = algo.init(KEY, jnp.array(0.0), DATA)
    _, metrics = algo.round(KEY, state, DATA)
    # Up: a gradient and an update; down: model and momentum, then the mean gradient.
    assert float(metrics["uplink_bits"]) == 3 * 64
    assert float(metrics["downlink_bits"]) == 3 * 96
