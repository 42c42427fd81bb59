"""Attacks on updates: the papers' formulas, who is hostile, and whole attacked rounds."""

from statistics import NormalDist

import chex
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from robust_points import R7, as_rows, as_tree

import fedjax_lite as fl
from fedjax_lite.aggregation import (
    aggregate_stack,
    bucketing,
    centered_clipping,
    krum,
    mean,
    median,
    norm_bound,
)
from fedjax_lite.aggregation.stacked import run_stack, stacked
from fedjax_lite.attacks import (
    alie,
    byzantine,
    byzantine_clients,
    gaussian,
    ipm,
    mimic,
    min_max,
    min_sum,
    model_replacement,
    replacement_update,
    sign_flip,
)
from fedjax_lite.attacks.byzantine import membership
from fedjax_lite.attacks.updates import alie_reach
from fedjax_lite.testing import problem
from fedjax_lite.transforms.worker_momentum import worker_momentum
from fedjax_lite.types import Cohort, Message

EVERYTHING = stacked(lambda key, state, stack, cohort: (state, stack.values), like_message=False)


@pytest.fixture
def double():
    with jax.enable_x64(True):
        yield


def close(got, expected, tolerance=1e-9):
    np.testing.assert_allclose(got, expected, rtol=0, atol=tolerance)


def shown(attack, points, hostile, **options):
    """What an attacker sends: the rows `[C, D]` that an aggregator is given."""
    rule = byzantine(attack, clients=hostile, inner=EVERYTHING)
    run = jax.jit(lambda rows: aggregate_stack(rule, as_tree(rows), **options))
    got = jax.device_get(run(np.asarray(points)))
    return np.stack([as_rows(jax.tree.map(lambda x, i=i: x[i], got)) for i in range(len(points))])


def test_sign_flip(double):
    """Of equal updates f of n flipped leave 1 - 2 f / n of the mean."""
    equal = np.full((10, 2), 3.0)
    rules = [byzantine(sign_flip(), clients=range(num)) for num in range(6)]
    means = jax.jit(lambda rows: [aggregate_stack(rule, rows) for rule in rules])(equal)
    close(means, [np.full(2, 3 * (1 - 2 * num / 10)) for num in range(6)])
    rows = shown(sign_flip(2.5), R7, [1, 4])
    close(rows[[1, 4]], -2.5 * R7[[1, 4]])
    close(rows[[0, 2, 3, 5, 6]], R7[[0, 2, 3, 5, 6]], 0)


def test_alie(double):
    for (num, hostile), z in {
        (50, 12): 0.3360381404,
        (25, 5): 0.2533471031,
        (25, 11): 1.0675705239,
    }.items():
        s = num // 2 + 1 - hostile
        assert NormalDist().inv_cdf((num - hostile - s) / (num - hostile)) == pytest.approx(z)
        close(alie_reach(num - hostile, hostile), z)
    close(alie_reach(8, 2), 0)
    for honest in range(1, 5):
        assert np.isfinite(alie_reach(honest, 9))
    five = np.concatenate([R7[:5], np.zeros((2, 2))])
    z = float(alie_reach(38, 12))  # of 50 and 12: 0.336...
    rows = shown(alie(z), five, [5, 6])
    close(rows[5], R7[:5].mean(0) - z * R7[:5].std(0))
    close(rows[5], (0.0548532082, 0.0235375604))
    close(rows[6], rows[5], 0)
    close(shown(alie(), five, [5, 6])[5], R7[:5].mean(0) - alie_reach(5, 2) * R7[:5].std(0))


def test_ipm(double):
    honest = np.random.default_rng(0).normal(size=(25, 3))
    center = honest[11:].mean(0)

    @jax.jit
    def sent(scale):
        rules = (byzantine(ipm(scale), clients=range(11), inner=i) for i in (mean(), EVERYTHING))
        return [aggregate_stack(rule, honest) for rule in rules]

    for scale, share in ((0.1, 0.516), (2.0, -0.32), (14 / 11, 0.0)):
        average, rows = sent(scale)
        close(average, share * center)
        close(rows, np.concatenate([np.tile(-scale * center, (11, 1)), honest[11:]]))


@pytest.mark.sample(2)
@pytest.mark.parametrize(
    ("attack", "direction", "line", "points"),
    [
        (min_max, "unit", 0.0, 0.1154962962),
        (min_max, "sign", 0.0, 0.0963818170),
        (min_max, "std", None, 1.3630076974),
        (min_sum, "unit", -1.0, 0.1264911064),
        (min_sum, "sign", -1.0, 0.0894427191),
        (min_sum, "std", None, np.sqrt(2)),
    ],
)
def test_min_max_and_min_sum(double, attack, direction, line, points):
    if line is not None:  # honest 0, 1, 2, 5: mean 2, both directions are -1
        rows = shown(attack(direction), np.array([0.0, 1, 2, 5, 99])[:, None], [4])
        close(rows[4], line)
    five = np.concatenate([R7[:5], np.zeros((1, 2))])
    center = R7[:5].mean(0)
    away = {
        "unit": -center / np.linalg.norm(center),
        "sign": -np.sign(center),
        "std": -R7[:5].std(0),
    }[direction]
    row = shown(attack(direction), five, [5])[5]
    close(row, center + points * away)
    # And it is the largest: the bound holds with equality.
    squares = ((R7[:5, None] - R7[None, :5]) ** 2).sum(-1)
    apart = ((row - R7[:5]) ** 2).sum(-1)
    if attack is min_max:
        close(apart.max(), squares.max())
    else:
        close(apart.sum(), squares.sum(1).max())


def test_min_max_of_a_zero_mean_stays_finite():
    rows = shown(min_max(), np.array([[1.0, 0], [-1, 0], [7, 7]], "f4"), [2])
    np.testing.assert_array_equal(rows[2], [0, 0])


def test_gaussian_draws_for_each_attacker():
    rows = shown(gaussian(3.0), np.ones((4, 4000), "f4"), [0, 2])
    np.testing.assert_array_equal(rows[[1, 3]], 1)
    for row in rows[[0, 2]]:  # standard error of the standard deviation: 3 / sqrt(8000)
        assert abs(row.std() - 3) < 0.2
        assert abs(row.mean()) < 0.3
    assert abs(np.corrcoef(rows[0], rows[2])[0, 1]) < 0.1
    again = shown(gaussian(3.0), np.ones((4, 4000), "f4"), [0, 2], key=jax.random.key(1))
    assert (again[0] != rows[0]).mean() > 0.99


def test_model_replacement(double):
    ids, updates = np.arange(10), [-1.0, -1.0]  # server minus client: x = 0, x* = 1
    honest, two = np.outer(ids == 3, updates), np.outer(np.isin(ids, [3, 4]), updates)
    weights = np.where(ids == 3, 5.0, 95 / 9)  # a share of 0.05
    replace = model_replacement
    cases = [
        (replace(), EVERYTHING, {}, -10.0),
        (replace(10.0), EVERYTHING, {}, -10.0),
        (replace(), EVERYTHING, {"weights": weights}, -20.0),
        (replace(weighting="uniform"), EVERYTHING, {"weights": weights}, -10),
        (replace(server_learning_rate=0.5), EVERYTHING, {}, -20),
        (replace(), mean(), {}, -1),
        (replace(10.0), mean(), {}, -1),
        (replace(), norm_bound(1.0), {}, -0.1 / np.sqrt(2)),  # of norm 0.1
    ]
    rules = [(byzantine(a, clients=[3], inner=inner), o) for a, inner, o, _ in cases]
    found = jax.jit(lambda rows: [aggregate_stack(rule, rows, **o) for rule, o in rules])(honest)
    for (_, inner, _, expected), got in zip(cases, found, strict=True):
        close(got[3] if inner is EVERYTHING else got, expected)
    close(aggregate_stack(byzantine(replace(), clients=[3, 4]), two), -1)
    close(replacement_update(np.zeros(2), np.ones(2), weight=0.1), -10.0)
    close(replacement_update(np.zeros(2), np.ones(2), weight=0.05), -20.0)
    close(replacement_update(np.ones(1), np.ones(1), weight=0.1, server_learning_rate=2.0), 0)


def test_mimic_repeats_the_client_that_leans_furthest(double):
    """One coordinate has nearly all the variance, and client 6 is alone on its far side."""
    rng = np.random.default_rng(0)
    rows = 0.01 * rng.normal(size=(9, 3))
    rows[:, 1] += np.array([0, 0, 0, 0, 0, 0, 8, 0, 0.0])
    rule = byzantine(mimic(warmup=3), clients=[7, 8], inner=EVERYTHING)

    @jax.jit
    def step(key, state, mask):
        return run_stack(rule, rows, key=key, state=state, mask=mask)

    centered, chosen = rows[:7] - rows[:7].mean(0), -1
    state, everybody = rule.init_state(jnp.zeros(3)), np.ones(9, bool)
    for number in range(1, 6):
        old = state
        state, sent = step(jax.random.key(number), state, everybody)
        direction = np.asarray(state.attack.direction)
        close(np.linalg.norm(direction), 1.0)
        close(state.attack.center, rows[:7].mean(0))
        if number > 1:  # Oja's step from the round before
            last = np.asarray(old.attack.direction)
            moved = (number - 1) * last + centered.T @ (centered @ last)
            close(direction, moved / np.linalg.norm(moved))
        furthest = int((centered @ direction).argmax())
        if number == 3:
            chosen = furthest
        assert int(state.attack.client) == chosen  # -1 while they learn
        repeated = chosen if number > 3 else furthest
        close(sent[7:], rows[[repeated] * 2], 0)
    close(abs(float(state.attack.direction[1])), 1.0, 1e-2)
    got = shown(mimic(client=2), rows, [7, 8])
    close(got[7:], rows[[2, 2]], 0)
    absent = shown(mimic(client=2), rows, [7, 8], mask=np.arange(9) != 2)
    assert any((absent[8] == rows[i]).all() for i in range(7) if i != 2)
    _, nothing = step(jax.random.key(0), rule.init_state(jnp.zeros(3)), ~everybody)
    close(nothing, 0, 0)


def test_mimic_learns_on_after_a_message_that_is_not_finite(double):
    """Whoever sends NaN teaches nothing in that round; the others do."""
    rows = np.random.default_rng(0).normal(size=(9, 3))
    rule = byzantine(mimic(warmup=9), clients=[7, 8], inner=mean())
    step = jax.jit(lambda rows, state: run_stack(rule, rows, state=state))
    state, _ = step(rows, rule.init_state(jnp.zeros(3)))
    for bad in (np.nan, np.inf, 1e200):
        spoiled = rows.copy()
        spoiled[2, 1] = bad
        old = state.attack
        state, _ = step(spoiled, state)
        left = np.delete(rows[:7], 2, 0)
        center = old.center + (left.mean(0) - old.center) / (float(old.rounds) + 1)
        close(state.attack.center, center)
        away = left - np.asarray(center)
        moved = float(old.rounds) * old.direction + away.T @ (away @ np.asarray(old.direction))
        close(state.attack.direction, moved / np.linalg.norm(moved))
    old = state.attack
    nothing = np.where(np.arange(9)[:, None] < 7, np.nan, rows)
    state, _ = step(nothing, state)
    chex.assert_trees_all_equal(state.attack, old)


ATTACKS = {
    "sign flip": sign_flip(),
    "gaussian": gaussian(1.0),
    "alie": alie(),
    "ipm": ipm(0.5),
    "mimic": mimic(),
    "min max": min_max("std"),
    "min sum": min_sum(),
    "replacement": model_replacement(),
}


@pytest.mark.sample(4)
@pytest.mark.parametrize("name", ATTACKS)
def test_attacks_ignore_who_is_masked_and_do_nothing_when_absent(name):
    rows = np.random.default_rng(1).normal(size=(7, 3)).astype("f4")
    mask = np.arange(7) != 2
    run = jax.jit(
        lambda v, m: aggregate_stack(
            byzantine(ATTACKS[name], clients=[0, 4], inner=median()), v, mask=m
        )
    )
    spoiled = rows.copy()
    spoiled[2] = np.nan
    np.testing.assert_array_equal(run(spoiled, mask), run(rows, mask))
    assert np.isfinite(run(spoiled, mask)).all()
    away = np.isin(np.arange(7), [0, 4], invert=True)
    np.testing.assert_allclose(run(rows, away), np.median(rows[away], 0), rtol=1e-6)
    assert np.abs(np.asarray(run(rows, ~away))).max() < np.inf


def test_who_is_hostile():
    ids = jnp.arange(25)
    chosen = byzantine_clients(25, fraction=0.2, seed=3)
    assert len(chosen) == 5 == len(set(chosen.tolist()))
    np.testing.assert_array_equal(chosen, byzantine_clients(25, fraction=0.2, seed=3))
    np.testing.assert_array_equal(
        np.flatnonzero(membership(fraction=0.2, num_clients=25, seed=3)(ids)), chosen
    )
    assert any((byzantine_clients(25, fraction=0.2, seed=s) != chosen).any() for s in range(5))
    assert len(byzantine_clients(10, fraction=0.3)) == 3  # 0.3 * 10 is below 3 in floats
    assert membership(clients=[2, 7])(jnp.array([7, 3, 2, 99])).tolist() == [
        True,
        False,
        True,
        False,
    ]
    # By hash: the same client in any cohort, and the right share (standard error 0.009).
    by_hash = membership(fraction=0.2, seed=1)
    many = np.asarray(by_hash(jnp.arange(2000)))
    assert abs(many.mean() - 0.2) < 0.04
    np.testing.assert_array_equal(by_hash(jnp.array([17, 4])), many[[17, 4]])
    assert not membership(fraction=0.0)(ids).any()
    assert membership(fraction=1.0)(ids).all()


def test_bad_arguments_are_named():
    for make, text in (
        (lambda: byzantine(sign_flip()), "exactly one of fraction and clients"),
        (
            lambda: byzantine(sign_flip(), fraction=0.1, clients=[1]),
            "exactly one of fraction and clients",
        ),
        (lambda: byzantine(sign_flip(), fraction=1.5), "fraction"),
        (lambda: min_max("up"), "direction"),
        (lambda: model_replacement(-1.0), "boost"),
        (lambda: model_replacement(weighting="x"), "weighting"),
        (lambda: mimic(warmup=0), "warmup"),
        (lambda: gaussian(-1.0), "stddev"),
        (lambda: ipm(-1.0), "scale"),
    ):
        with pytest.raises(ValueError, match=text):
            make()
    for make in (lambda: byzantine(sign_flip, fraction=0.1),
                 lambda: byzantine(sign_flip(), fraction=0.1, inner=median)):  # fmt: skip
        with pytest.raises(TypeError, match="not called"):
            make()
    with pytest.raises(ValueError, match="krum needs"):
        byzantine(sign_flip(), clients=[0], inner=krum(2)).init(
            Message(jnp.zeros(2), jnp.float32(1)), 6
        )
    rule = byzantine(mimic(), clients=[0])
    with pytest.raises(ValueError, match="shaped like the model"):
        aggregate_stack(rule, jnp.ones((3, 2)), state=rule.init_state(jnp.zeros(5)))


def test_slots_may_be_permuted():
    """The attackers follow their ids."""
    rng = np.random.default_rng(0)
    rows, order = rng.normal(size=(7, 3)).astype("f4"), rng.permutation(7)
    for attack in (gaussian(1.0), alie(), min_max()):
        rule = byzantine(attack, clients=[1, 6], inner=bucketing(2, inner=median()))
        run = jax.jit(
            lambda rows, ids, rule=rule: aggregate_stack(
                rule, rows, cohort=Cohort(ids, jnp.ones(7, bool))
            )
        )
        straight, shuffled = run(rows, np.arange(7)), run(rows[order], order)
        np.testing.assert_allclose(shuffled, straight, rtol=1e-5, atol=1e-6)


@pytest.mark.sample(2, of="equal under all strategies")
def test_attacked_rounds_are_equal_under_all_strategies():
    """Buckets, clipping with memory, momentum in rows, drop-outs: the whole of it."""
    data = problem.population()
    aggregator = byzantine(
        gaussian(0.5), clients=[1, 4], inner=bucketing(2, inner=centered_clipping(0.1))
    )
    results = []
    for strategy in (fl.vmapped(), fl.sequential(), fl.chunked(2)):
        algo = fl.fedavg(
            problem.loss,
            optax.sgd(0.1),
            plan=fl.Plan(batch_size=2),
            sampler=fl.dropout(fl.uniform(6), 0.3),
            uplink=worker_momentum(0.9),
            aggregator=aggregator,
            strategy=strategy,
        )
        state = algo.init(jax.random.key(0), problem.init_params(jax.random.key(1)), data)
        counts = []
        for _ in range(3):
            state, metrics = algo.round(jax.random.key(2), state, data)
            counts.append(float(metrics["num_byzantine"]))
        assert max(counts) <= 2
        results.append(state)
    for other in results[1:]:
        chex.assert_trees_all_close(
            *(results[0].server.params, other.server.params), rtol=1e-5, atol=1e-6
        )
        chex.assert_trees_all_close(results[0], other, rtol=2e-4, atol=2e-5)
    moved = [np.abs(leaf).max() for leaf in jax.tree.leaves(results[0].uplink)]
    assert min(moved) > 0


def test_a_defence_helps_in_training():
    """Least squares with 2 of 7 flipped: the mean is held back, the median is not."""
    rows = np.array([1.0, 1.1, 0.9, 1.0, 1.05, 0.95, 1.0])
    data = fl.data.from_arrays({"b": rows.astype("f4")}, np.arange(7))
    ends = {}
    for name, inner in (("mean", mean()), ("median", median())):
        algo = fl.fedavg(
            lambda w, e, key: 0.5 * (w - e["b"]) ** 2,
            optax.sgd(0.5),
            plan=fl.Plan(batch_size=None, steps=1),
            sampler=fl.everyone(),
            aggregator=byzantine(sign_flip(10.0), clients=[0, 3], inner=inner),
        )
        state = algo.init(jax.random.key(0), jnp.array(0.0), data)
        for _ in range(12):
            state, _ = algo.round(jax.random.key(0), state, data)
        ends[name] = abs(float(state.server.params) - 1.0)
    assert ends["median"] < 0.1
    assert ends["mean"] > 1.0, "5 - 2 * 10 < 0: the mean runs away"
