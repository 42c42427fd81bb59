"""Power-of-choice, samplers that learn, counts of participation, and clients that stop midway."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import fedjax_lite as fl
from fedjax_lite.data.stores.store import ArrayStore
from fedjax_lite.selection.power_of_choice import highest
from fedjax_lite.stream import StreamedDataset

KEY = jax.random.key(0)
B = np.array([0.0, 1.0, 3.0, -2.0, 5.0, 1.0], np.float32)
SIZES = np.array([2, 4, 2, 3, 5, 1])
OWNERS = np.repeat(np.arange(6), SIZES)
EXAMPLES = {"b": B[OWNERS]}
DATA = fl.data.from_arrays(EXAMPLES, OWNERS)
RATE, STEPS = 0.25, 2


def loss(w, e, key):
    return 0.5 * (w - e["b"]) ** 2


def averaging(sampler, plan=None, **options):
    plan = fl.Plan(batch_size=2, steps=STEPS) if plan is None else plan
    return fl.fedavg(loss, optax.sgd(RATE), plan=plan, sampler=sampler, **options)


def one_round(algo, start, data=DATA, cohort=None):
    return algo.round(KEY, algo.init(KEY, jnp.float32(start), data), data, cohort)


def play(algo, num_rounds, data: Any = DATA, start=0.5):
    state = algo.init(KEY, jnp.float32(start), data)
    return fl.run(algo, KEY, state, data, num_rounds=num_rounds, progress=False)


def ends(x, who):
    """FedAvg's round of clients `who` from x, by hand."""
    return np.average(B[who] + (x - B[who]) * (1 - RATE) ** STEPS, weights=SIZES[who])


@pytest.mark.sample(2, of="equal under all strategies")
@pytest.mark.parametrize("strategy", [fl.vmapped(), fl.chunked(2), fl.sequential()])
def test_the_highest_losses_of_the_current_model_train(strategy):
    plain = averaging(fl.everyone(), strategy=strategy)
    algo = fl.selection.power_of_choice(plain, loss, cohort_size=2)
    for x, who in ((0.0, [2, 4]), (4.5, [0, 3]), (2.0, [3, 4])):
        state, metrics = one_round(algo, x)
        assert float(state.server.params) == pytest.approx(ends(x, who), rel=1e-5), x
        assert int(metrics["num_clients"]) == 2
    # All were sent the model and answered with a number; two sent a model.
    assert (float(metrics["downlink_bits"]), float(metrics["uplink_bits"])) == (6 * 32, 8 * 32)


def test_ties_go_to_the_lowest_slot():
    cohort = fl.Cohort(jnp.array([5, 1, 0, 4]), jnp.array([True, True, True, True]))
    equal = {"loss": jnp.ones(4)}
    assert highest("loss", 2)(KEY, cohort, equal).mask.tolist() == [True, True, False, False]
    away = cohort._replace(mask=jnp.array([False, True, False, True]))
    assert highest("loss", 3)(KEY, away, equal).mask.tolist() == [False, True, False, True]
    # Clients 1 and 5 have the same data: at x = 4 both lie 3 away, as far as client 0 lies 4.
    algo = fl.selection.power_of_choice(averaging(fl.everyone()), loss, cohort_size=1)
    for ids, first in (([5, 1], 5), ([1, 5], 1)):
        chosen = fl.Cohort(jnp.array(ids), jnp.ones(2, bool))
        state, _ = one_round(algo, 4.0, cohort=chosen)
        assert float(state.server.params) == pytest.approx(ends(4.0, [first]), rel=1e-5)


@pytest.mark.sample(1)
@pytest.mark.parametrize("sampler", [fl.uniform(3), fl.weighted(3)])
def test_as_many_as_were_asked_is_the_algorithm_itself(sampler):
    plain = averaging(sampler)
    algo = fl.selection.power_of_choice(plain, loss, cohort_size=3)
    states = [play(one, 3)[0] for one in (plain, algo)]
    assert float(states[0].server.params) == float(states[1].server.params)
    with pytest.raises(
        ValueError, match=r"cohort_size must be at most the candidates, got 4 of .*3"
    ):
        fl.selection.power_of_choice(plain, loss, cohort_size=4).init(KEY, jnp.float32(0), DATA)


def test_streams_choose_alike_and_refuse_what_learns():
    stream = StreamedDataset(ArrayStore(EXAMPLES, SIZES))
    algo = fl.selection.power_of_choice(averaging(fl.uniform(4)), loss, cohort_size=2)
    found = [float(play(algo, 3, data)[0].server.params) for data in (DATA, stream)]
    assert found[0] == pytest.approx(found[1], rel=1e-6)
    with pytest.raises(ValueError, match="must not learn from the rounds, got oort"):
        play(averaging(fl.selection.oort(2)), 2, stream)


# -- samplers that learn --------------------------------------------------------------------


def test_what_a_cohort_reported_is_remembered():
    """The loss of those who took part, and nothing of those who dropped out."""
    algo = averaging(fl.dropout(fl.selection.active(4), 0.5))
    state, _ = play(algo, 1, start=0.5)
    expected = np.zeros(6)
    known = np.asarray(state.sampler.known)
    assert 0 < known.sum() < 4
    first, later = 0.5 * (0.5 - B) ** 2, 0.5 * ((0.5 - B) * (1 - RATE)) ** 2
    expected[known] = ((first + later) / 2)[known]  # each step sees examples of one value
    got = np.asarray(state.sampler.values)
    same_batches = known & (SIZES % 2 == 0)  # a short batch weighs less
    np.testing.assert_allclose(got[same_batches], expected[same_batches], rtol=1e-5)
    assert (got[~known] == 0).all()


def test_oort_asks_everybody_once_and_then_the_useful():
    sampler = fl.selection.oort(2, exploration=1.0, decay=1.0, least_exploration=0.0)
    state, history = play(averaging(sampler), 3)
    assert history[-1]["num_explored"] == 6
    assert sorted(np.asarray(state.sampler.last)) == [1, 1, 2, 2, 3, 3]
    greedy = fl.selection.oort(1, exploration=0.0, least_exploration=0.0, cutoff=1.0)
    state = greedy.init(6)._replace(
        round=jnp.int32(1), last=jnp.ones(6, jnp.int32), loss=jnp.array([1.0, 1, 9, 1, 2, 1])
    )
    useful = SIZES * np.array([1.0, 1, 9, 1, 2, 1])  # client 2 by size times loss
    for seed in range(5):
        _, cohort = jax.jit(greedy.sample)(jax.random.key(seed), state, jnp.asarray(SIZES))
        assert cohort.ids.tolist() == [useful.argmax()]
    slow = fl.selection.oort(
        1,
        exploration=0.0,
        least_exploration=0.0,
        cutoff=1.0,
        seconds=np.where(np.arange(6) == 2, 100.0, 1.0),
        patience=1.0,
    )
    seen = state._replace(patience=jnp.float32(1))
    _, cohort = jax.jit(slow.sample)(KEY, seen, jnp.asarray(SIZES))
    assert cohort.ids.tolist() == [4]


def test_learning_needs_a_metric_that_is_there():
    algo = averaging(fl.selection.active(2, metric="grad_norm"))
    with pytest.raises(ValueError, match=r"metric must be one .* got 'grad_norm'"):
        one_round(algo, 0.0)


# -- participation --------------------------------------------------------------------------


def drawn_by(algo, sampler, round):
    assert algo.sample is not None
    return algo.sample(KEY, round, sampler.init(6), DATA.sizes)


def gini(times):
    times = np.asarray(times, float)
    return np.abs(times[:, None] - times).sum() / (2 * len(times) ** 2 * times.mean())


@pytest.mark.sample(1)
@pytest.mark.parametrize("sampler", [fl.uniform(2), fl.weighted(3), fl.selection.multinomial(4)])
def test_the_gini_of_participation(sampler):
    plain, algo = averaging(sampler), averaging(fl.selection.counted(sampler))
    state, history = play(algo, 7)
    assert float(state.server.params) == float(play(plain, 7)[0].server.params)
    times = np.asarray(state.sampler.times)
    drawn = np.zeros(6, int)
    for i in range(7):
        _, cohort = drawn_by(plain, sampler, i)
        np.add.at(drawn, np.asarray(cohort.ids)[np.asarray(cohort.mask)], 1)
    assert times.tolist() == drawn.tolist()
    assert history[-1]["participation_gini"] == pytest.approx(gini(times), rel=1e-5)
    assert history[-1]["num_participants"] == (times > 0).sum()


def test_counting_who_trained():
    """Of power-of-choice those who were chosen."""
    plain = averaging(fl.selection.counted(fl.everyone(), of="trained"))
    algo = fl.selection.power_of_choice(plain, loss, cohort_size=2)
    state, _ = play(algo, 1, start=0.0)
    assert state.sampler.times.tolist() == [0, 0, 1, 0, 1, 0]


# -- clients that stop midway ---------------------------------------------------------------


@pytest.mark.sample(1)
@pytest.mark.parametrize("strategy", [fl.vmapped(), fl.chunked(2)])
def test_a_masked_loop_is_a_truncated_one_bit_for_bit(strategy):
    allowed = jnp.array([0, 1, 2, 3, 4, 9])
    limited = fl.Plan(batch_size=2, steps=4, limit=lambda key, info: allowed[info.id])
    truncated = fl.Plan(batch_size=2, steps=np.array([0, 1, 2, 3, 4, 4]))
    results = []
    for plan in (limited, truncated):
        state, metrics = one_round(averaging(fl.everyone(), plan, strategy=strategy), 0.5)
        results.append((float(state.server.params), int(metrics["num_steps"])))
    assert results[0] == results[1]
    assert results[0][1] == 14


def test_partial_work_counts_and_lost_work_leaves_no_trace():
    kept = fl.Plan(batch_size=2, steps=8, limit=fl.selection.interrupted(1.0))
    drawn = jax.jit(jax.vmap(lambda key: kept.num_steps(key, jnp.int32(0), jnp.int32(4))))
    steps = drawn(jax.random.split(KEY, 4000))
    counts = np.bincount(np.asarray(steps), minlength=8)
    assert len(counts) == 8
    assert np.abs(counts - 500).max() < 5 * np.sqrt(500)
    sampler = fl.selection.lost_midway(fl.everyone(), 0.5)
    algo = fl.scaffold(loss, RATE, plan=fl.Plan(2, steps=2), sampler=sampler)
    state, metrics = one_round(algo, 0.5)
    _, cohort = drawn_by(algo, sampler, 0)
    assert 0 < int(cohort.mask.sum()) < 6
    assert (np.asarray(state.clients) != 0).tolist() == np.asarray(cohort.mask).tolist()
    assert int(metrics["num_clients"]) == int(cohort.mask.sum())
    # All were sent model and control.
    assert float(metrics["downlink_bits"]) == 6 * 64


def test_as_many_steps_as_there_is_time():
    limit = fl.selection.in_time(
        6.0, [1.0, 0.1, 2.0, 7.0, 1.0, 3.0], other_seconds=[0, 0, 1, 0, 2, 0]
    )
    plan = fl.Plan(batch_size=2, steps=20, limit=limit)
    steps = [int(plan.num_steps(KEY, jnp.int32(i), jnp.int32(4))) for i in range(6)]
    assert steps == [6, 20, 2, 0, 4, 2]
    with pytest.raises(ValueError, match="step_seconds must be finite and positive, got 0"):
        fl.selection.in_time(1.0, 0.0)
    with pytest.raises(TypeError, match="limit must be a function"):
        fl.Plan(2, limit=3)  # pyright: ignore[reportArgumentType]
