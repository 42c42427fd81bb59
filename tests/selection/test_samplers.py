"""Samplers by their laws: turns, exact inclusion, strata, timetables, nobody waits too long."""

import itertools
from typing import Any, cast

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy import stats

import fedjax_lite as fl
from fedjax_lite.selection.probabilities import inclusion_probabilities

KEY = jax.random.key(0)
ALPHA = 1e-6
TRIALS = 20_000


def play(sampler, sizes, num_rounds, seed=0):
    """Ids and mask `[R, C]` of rounds in a row, and the states after them."""
    sizes = jnp.asarray(sizes)

    def one(state, key):
        state, cohort = sampler.sample(key, state, sizes)
        return state, (cohort.ids, cohort.mask, state)

    keys = jax.random.split(jax.random.key(seed), num_rounds)
    start = sampler.init(sizes.shape[0])
    _, (ids, mask, states) = jax.jit(lambda s, k: jax.lax.scan(one, s, k))(start, keys)
    return np.asarray(ids), np.asarray(mask), states


def times(ids, mask, num_clients):
    """How often each client is in a cohort, `[R, N]`."""
    table = np.zeros((len(ids), num_clients), int)
    rows, slots = np.nonzero(mask)
    np.add.at(table, (rows, ids[rows, slots]), 1)
    return table


def expected_of(sampler, sizes):
    assert sampler.inclusion is not None
    return np.asarray(sampler.inclusion(jnp.asarray(sizes)))


def often(hits, trials, rate):
    return stats.binomtest(int(hits), trials, float(rate)).pvalue > ALPHA


# -- turns ----------------------------------------------------------------------------------


@pytest.mark.parametrize("reshuffle", [False, True])
@pytest.mark.parametrize(("num", "size"), [(6, 2), (7, 3), (5, 5), (4, 1)])
def test_cyclic_is_everybody_once_an_epoch(num, size, reshuffle):
    epoch = -(-num // size)
    ids, mask, _ = play(fl.selection.cyclic(size, reshuffle=reshuffle), np.ones(num), 3 * epoch)
    seen = times(ids, mask, num).reshape(3, epoch, num)
    np.testing.assert_array_equal(seen.sum(1), np.ones((3, num)))
    same = [np.array_equal(seen[0], later) for later in seen[1:]]
    assert all(same) or reshuffle
    if reshuffle and num > size > 1:
        assert not all(same)


def test_the_order_of_turns_is_the_seeds_and_not_the_keys():
    draw = lambda seed, key: play(fl.selection.cyclic(2, seed=seed), np.ones(9), 5, key)[0]  # noqa: E731
    np.testing.assert_array_equal(draw(0, 0), draw(0, 1))
    assert not np.array_equal(draw(0, 0), draw(1, 0))


def test_nobody_waits_longer_than_was_promised():
    """In every window of k rounds everybody comes; without the promise somebody does not."""
    for num, size, every in ((7, 3, 3), (12, 3, 4), (9, 2, 6), (5, 5, 1)):
        sampler = fl.selection.at_least_once(size, every=every)
        ids, mask, _ = play(sampler, np.ones(num), 60)
        assert mask.all()
        seen = times(ids, mask, num)
        assert seen.max() == 1
        windows = np.lib.stride_tricks.sliding_window_view(seen, every, axis=0).sum(-1)
        assert windows.min() >= 1, (num, size, every)
    ids, mask, _ = play(fl.uniform(2), np.ones(9), 60)
    seen = times(ids, mask, 9)
    assert np.lib.stride_tricks.sliding_window_view(seen, 6, axis=0).sum(-1).min() == 0


def test_a_loose_promise_leaves_the_draw_uniform_and_a_tight_one_makes_turns():
    ids, mask, _ = play(fl.selection.at_least_once(2, every=3), np.ones(6), 300)
    first = times(ids, mask, 6).reshape(100, 3, 6)
    np.testing.assert_array_equal(first.sum(1), np.ones((100, 6)))
    ids, mask, _ = play(fl.selection.at_least_once(2, every=10**6), np.ones(5), TRIALS)
    pairs = [np.isin(ids, pair).all(1).sum() for pair in itertools.combinations(range(5), 2)]
    assert stats.chisquare(pairs).pvalue > ALPHA


# -- given probabilities --------------------------------------------------------------------


def by_hand(scores, size):
    """Water-filling, one client after another."""
    chances, capped = np.zeros(len(scores)), scores <= 0
    while not capped.all():
        left = size - chances[capped].sum()
        share = left * scores[~capped] / scores[~capped].sum()
        if share.max() <= 1:
            chances[~capped] = share
            break
        over = np.flatnonzero(~capped)[share > 1]
        chances[over], capped[over] = 1, True
    return chances


@pytest.mark.parametrize("size", [1, 2, 3, 5])
@pytest.mark.parametrize(
    "scores", [[1, 2, 3, 4, 5], [0, 1, 1, 9, 90], [0, 0, 3, 0, 0], [1, 1, 1, 1, 1], [7, 0, 7, 1, 0]]
)
def test_inclusion_probabilities_are_water_filling(scores, size):
    scores = np.array(scores, float)
    got = np.asarray(inclusion_probabilities(scores, size))
    np.testing.assert_allclose(got, by_hand(scores, size), rtol=2e-6)
    assert got.sum() == pytest.approx(min(size, (scores > 0).sum()), rel=1e-6)


@pytest.mark.parametrize("scores", [[1.0, 2, 3, 4, 5, 6], [0.0, 1, 1, 1, 30, 1]])
def test_importance_includes_as_it_says(scores):
    sampler = fl.selection.importance(3, scores)
    ids, mask, _ = play(sampler, np.ones(6), TRIALS)
    assert mask.all()
    seen = times(ids, mask, 6)
    assert seen.max() == 1
    chances = expected_of(sampler, np.ones(6))
    np.testing.assert_allclose(chances, by_hand(np.array(scores), 3), rtol=2e-6)
    for i, chance in enumerate(chances):
        assert often(seen[:, i].sum(), TRIALS, np.clip(chance, 0, 1)), i
    # Drawing one by one without replacement includes otherwise: the test has power.
    if min(scores) > 0:
        ids, mask, _ = play(fl.weighted(3), np.array(scores), TRIALS)
        other = times(ids, mask, 6)
        assert not all(often(other[:, i].sum(), TRIALS, chances[i]) for i in range(6))


def test_importance_without_enough_clients_leaves_slots_empty():
    ids, mask, _ = play(fl.selection.importance(3), np.array([0, 4, 0, 1, 0]), 50)
    assert (times(ids, mask, 5) == [0, 1, 0, 1, 0]).all()
    _, mask, _ = play(fl.selection.importance(2), np.zeros(4, int), 5)
    assert not mask.any()


def test_multinomial_draws_independently():
    chances = np.array([0.5, 0.0, 0.2, 0.3])
    sampler = fl.selection.multinomial(2, chances * 7)
    ids, mask, _ = play(sampler, np.ones(4), TRIALS)
    assert mask.all()
    pairs = np.bincount(ids[:, 0] * 4 + ids[:, 1], minlength=16)
    expected = TRIALS * np.outer(chances, chances).reshape(-1)
    assert (pairs[expected == 0] == 0).all()
    assert stats.chisquare(pairs[expected > 0], expected[expected > 0]).pvalue > ALPHA
    np.testing.assert_allclose(expected_of(sampler, np.ones(4)), 2 * chances, rtol=1e-6)
    _, mask, _ = play(fl.selection.multinomial(2), np.zeros(3, int), 3)
    assert not mask.any()


@pytest.mark.parametrize(
    "sampler",
    [
        *(fl.everyone(), fl.uniform(3), fl.poisson(0.4, capacity=7)),
        fl.dropout(fl.uniform(4), 0.3),
        fl.selection.lost_midway(fl.uniform(4), 0.3),
        fl.selection.importance(3),
        fl.selection.multinomial(3),
        fl.selection.stratified([0, 1, 0, 0, 1, 0, 2], 2),
        fl.selection.counted(fl.uniform(3)),
    ],
    ids=lambda s: s.made.name,
)
def test_what_samplers_say_of_inclusion_is_what_they_do(sampler):
    sizes = np.array([3, 5, 1, 2, 4, 7, 2])
    ids, mask, _ = play(sampler, sizes, TRIALS)
    seen = times(ids, mask, 7)
    expected = expected_of(sampler, sizes)
    spread = np.maximum(seen.std(0), 1e-9) / np.sqrt(TRIALS)
    assert (np.abs(seen.mean(0) - expected) < 5.5 * spread + 1e-6).all()


# -- groups, timetables ---------------------------------------------------------------------


def test_strata_have_their_clients_each():
    groups = np.array([0, 1, 0, 0, 1, 0, 2])
    ids, mask, _ = play(fl.selection.stratified(groups, 2), np.ones(7), TRIALS)
    seen = times(ids, mask, 7)
    for group, count in ((0, 2), (1, 2), (2, 1)):
        assert (seen[:, groups == group].sum(1) == count).all()
    assert (groups[ids[:, :2]] == 0).all()
    pairs = [
        np.isin(ids[:, :2], two).all(1).sum() for two in itertools.combinations([0, 2, 3, 5], 2)
    ]
    assert stats.chisquare(pairs).pvalue > ALPHA


def test_a_timetable_is_kept():
    table = np.array([[1, 1, 0, 0, 1], [0, 0, 0, 0, 0], [0, 1, 0, 0, 0]], bool)
    ids, mask, states = play(fl.selection.available(2, table), np.ones(5), 9)
    seen = times(ids, mask, 5)
    for i, row in enumerate(seen):
        assert row.sum() == min(2, table[i % 3].sum())
        assert not row[~table[i % 3]].any()
    assert states.metrics["num_available"].tolist() == [3, 0, 1] * 3


@pytest.mark.parametrize("by", ["uniform", "data"])
def test_availability_by_chance(by):
    chances, sizes = np.array([1.0, 0.5, 0.0, 0.2]), np.array([1, 2, 5, 3])
    ids, mask, _ = play(fl.selection.available(1, chances, by=by), sizes, TRIALS)
    seen = times(ids, mask, 4).sum(0)
    expected = np.zeros(4)  # over all sets of who is there
    for there in itertools.product([0, 1], repeat=4):
        there = np.array(there)
        probability = np.where(there, chances, 1 - chances).prod()
        scores = there * (sizes if by == "data" else 1)
        expected += probability * scores / max(scores.sum(), 1)
    assert seen[2] == 0
    assert all(often(seen[i], TRIALS, expected[i]) for i in (0, 1, 3))


def test_availability_by_a_function():
    odd = lambda key, round, num: (jnp.arange(num) + round) % 2 == 0  # noqa: E731
    ids, mask, _ = play(fl.selection.available(2, odd), np.ones(4), 4)
    assert times(ids, mask, 4).tolist() == [[1, 0, 1, 0], [0, 1, 0, 1]] * 2


# -- errors ---------------------------------------------------------------------------------

S = fl.selection


@pytest.mark.parametrize(
    ("call", "error", "message"),
    [
        (lambda: S.cyclic(6).init(5), ValueError, "cohort_size must be at most .* 6 of 5"),
        (lambda: S.importance(6).init(5), ValueError, "cohort_size must be at most .* 6 of 5"),
        (lambda: S.at_least_once(6, every=2).init(5), ValueError, "at most .* 6 of 5"),
        (lambda: S.at_least_once(2, every=2).init(5), ValueError, "every must be at least 3 .* 2"),
        (lambda: S.available(6, np.ones(5)).init(5), ValueError, "at most .* 6 of 5"),
        (lambda: S.available(1, np.ones(5)).init(4), ValueError, "one column a client, got 5 .* 4"),
        (lambda: S.available(1, [0.5, 1.5]), ValueError, r"\[0, 1\], got 0.5 to 1.5"),
        (lambda: S.available(1, [1], by=cast(Any, "size")), ValueError, "by must be .* 'size'"),
        (lambda: S.available(1, "noon"), TypeError, "schedule must be bool"),
        (lambda: S.importance(1, [1.0, -1.0]), ValueError, "none negative .* got least -1"),
        (lambda: S.importance(1, [0.0, 0.0]), ValueError, "not all 0"),
        (lambda: S.importance(1, [1.0, 2.0]).init(3), ValueError, "got 2 for a population of 3"),
        (lambda: S.multinomial(1, [1.0, 2.0]).init(3), ValueError, "got 2 for a population of 3"),
        (lambda: S.multinomial(0), ValueError, "cohort_size must be at least 1, got 0"),
        (lambda: S.stratified([0, 2], 1).init(3), ValueError, "got 2 for a population of 3"),
        (lambda: S.stratified([0, 0, 1], 3), ValueError, "largest group, got 3 of 2"),
        (lambda: S.stratified([0.5], 1), TypeError, "groups must be integers"),
        (lambda: S.active(6).init(5), ValueError, "at most .* 6 of 5"),
        (lambda: S.oort(6).init(5), ValueError, "at most .* 6 of 5"),
        (lambda: S.oort(1, seconds=[1.0]).init(5), ValueError, "seconds must be .* got 1 for"),
        (lambda: S.counted(cast(Any, fl.uniform)), TypeError, "sampler must be a Sampler"),
        (lambda: S.counted(fl.uniform(1), of=cast(Any, "all")), ValueError, "of must be .* 'all'"),
        (lambda: S.lost_midway(fl.uniform(1), 1.5), ValueError, r"rate must lie in \[0, 1\]"),
    ],
)
def test_errors(call, error, message):
    with pytest.raises(error, match=message):
        call()
