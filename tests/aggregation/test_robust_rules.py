"""Robust rules: breakdown, tables of edges, void rounds, memory, whatever order slots are in."""

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from fedjax_lite.aggregation import (
    aggregate_stack,
    bucketing,
    bulyan,
    centered_clipping,
    geometric_median,
    hierarchical,
    krum,
    mean,
    median,
    multi_krum,
    norm_bound,
    redundancy,
    stacked,
    trimmed_mean,
)
from fedjax_lite.aggregation.bucketing import random_order
from fedjax_lite.attacks import byzantine, gaussian, mimic, min_max
from fedjax_lite.transforms.clip import clip
from fedjax_lite.transforms.worker_momentum import worker_momentum
from fedjax_lite.types import Cohort, Message

RULES = {
    "median": median(),
    "trimmed mean": trimmed_mean(0.25),
    "krum": krum(1),
    "multi krum": multi_krum(1),
    "bulyan": bulyan(0),
    "geometric median": geometric_median(),
    "geometric median weighted": geometric_median(weighted=True),
    "centered clipping": centered_clipping(1.0, iterations=2),
    "norm bound": norm_bound(1.0),
    "norm bounded median": norm_bound(1.0, inner=median()),
    "bucketing": bucketing(2, inner=median()),
    "hierarchical": hierarchical([0, 1, 0, 1, 0, 1, 1]),
    "redundancy": redundancy([0, 0, 1, 1, 2, 2, 3]),
}


def test_worker_momentum_checks_its_decay():
    with pytest.raises(ValueError, match="decay"):
        worker_momentum(1.5)


@pytest.mark.sample(6)
@pytest.mark.parametrize("name", RULES)
def test_slots_may_be_permuted(name):
    """Clients keep their ids and change their slots."""
    rng = np.random.default_rng(3)
    rows, weights = rng.normal(size=(7, 3)).astype("f4"), rng.uniform(1, 2, 7).astype("f4")
    mask, order = np.arange(7) != 2, rng.permutation(7)
    run = jax.jit(lambda v, w, c: aggregate_stack(RULES[name], v, weights=w, mask=c.mask, cohort=c))
    straight = run(rows, weights, Cohort(jnp.arange(7), jnp.asarray(mask)))
    shuffled = run(rows[order], weights[order], Cohort(jnp.asarray(order), mask[order]))
    np.testing.assert_allclose(shuffled, straight, rtol=1e-5, atol=1e-6)


def test_buckets_differ_by_round_and_hold_only_clients_that_came():
    ids, mask = jnp.array([4, 9, 2, 7, 5]), jnp.array([True, True, False, True, True])
    orders = [np.asarray(ids[random_order(jax.random.key(k), ids, mask)]) for k in range(30)]
    assert {int(order[-1]) for order in orders} == {2}
    firsts = {int(order[0]) for order in orders}
    assert firsts == {4, 9, 7, 5}


@pytest.mark.parametrize(
    ("rule", "most"),
    [
        (median(), 3),
        (trimmed_mean(0.3), 2),
        (krum(2), 2),
        (multi_krum(2), 2),
        (bulyan(1), 1),
        (geometric_median(iterations=100), 3),
        (bucketing(2, inner=median()), 1),
    ],
    ids=["median", "trimmed", "krum", "multi", "bulyan", "rfa", "bucketing"],
)
def test_breakdown(rule, most):
    """Holds with as many outliers as promised; the median fails above, as does what must."""
    honest = np.random.default_rng(0).normal(size=(7, 3)).astype("f4")
    run = jax.jit(lambda v: aggregate_stack(rule, v))
    for wild in (1e6, -1e6, np.nan, np.inf):
        rows = honest.copy()
        rows[7 - most :] = wild
        assert np.abs(run(rows)).max() < 10, wild
    rows = honest.copy()
    rows[3:] = 1e6  # four of seven, alike
    assert np.abs(run(rows)).max() > 1e4


def test_one_outlier_breaks_the_mean_but_not_the_bounded():
    rows = np.ones((7, 2), "f4")
    rows[0] = 1e6
    assert np.abs(aggregate_stack(mean(), rows)).max() > 1e4
    for rule in (norm_bound(1.0), centered_clipping(1.0)):
        assert np.abs(aggregate_stack(rule, rows)).max() <= 1.0


def test_three_weiszfeld_steps_leave_a_long_outlier_its_say():
    """Honest at 0, one of n at 1: a centre c goes to c / ((n - 1) (1 - c) + c)."""
    num, far = 10, 1e6
    rows = np.ones((num, 1), "f4")
    rows[0] = 1 + far
    center = 1 / num
    rules = [geometric_median(iterations=steps) for steps in range(9)]
    rules += [geometric_median(), norm_bound(2.0, inner=geometric_median())]
    run = jax.jit(lambda rows: [aggregate_stack(rule, rows)[0] for rule in rules])
    *ends, default, bounded = map(float, run(rows))
    for steps, got in enumerate(ends):
        assert got == pytest.approx(1 + far * center, rel=2e-3)
        center = center / ((num - 1) * (1 - center) + center)
        if steps == 3:
            assert got > 100, "the default is not robust against this"
            assert default == got
    assert abs(ends[-1] - 1) < 0.01, "more steps are"
    assert abs(bounded - 1) < 0.01, "and so is a bound"


@pytest.mark.parametrize("make", [hierarchical, redundancy], ids=["hierarchical", "redundancy"])
def test_clients_that_are_not_in_the_table_count_nowhere(make):
    """A table of 4 clients, and ids beyond it, which agree with each other."""
    rule, rows = make([0, 0, 1, 1]), np.array([[2.0], [2.0], [4.0], [4.0], [9.0], [9.0]], "f4")
    for strangers in ([4, 5], [3_000_000, 99], [-1, 4]):
        cohort = Cohort(jnp.array([0, 1, 2, 3, *strangers]), jnp.ones(6, bool))
        np.testing.assert_array_equal(aggregate_stack(rule, rows, cohort=cohort), [3.0])
    everyone_strange = Cohort(jnp.arange(10, 16), jnp.ones(6, bool))
    np.testing.assert_array_equal(aggregate_stack(rule, rows, cohort=everyone_strange), [0.0])


EMPTY = {
    **RULES,
    "attacked by mimic": byzantine(mimic(), clients=[0], inner=median()),
    "attacked by min max": byzantine(min_max(), clients=[0], inner=krum(1)),
    "attacked by gaussian": byzantine(gaussian(1.0), clients=[0]),
}


@pytest.mark.parametrize("name", EMPTY)
def test_messages_without_leaves_aggregate_to_such_a_message(name):
    """A model all of whose leaves stay with the clients sends nothing."""
    rule, message = EMPTY[name], Message({"none": {}}, jnp.ones(7))
    state = rule.init_state({"none": {}})
    acc = rule.init(Message({"none": {}}, jnp.float32(1)), 7)
    acc = rule.add(acc, message, jnp.arange(7), jnp.ones(7, bool))
    new, value = rule.finish(jax.random.key(0), state, acc, Cohort(jnp.arange(7), jnp.ones(7)))
    assert value == {"none": {}}
    assert jax.tree.structure(new) == jax.tree.structure(state)
    assert aggregate_stack(rule, {"none": {}}, weights=jnp.ones(7)) == value


def test_clip_of_nothing_is_nothing():
    assert clip(1.0).update(jax.random.key(0), (), {"none": {}}) == ((), {"none": {}})
    with pytest.raises(ValueError, match="no leaves"):
        aggregate_stack(median(), {})


def test_worker_momentum_outlives_an_update_that_is_not_finite():
    """m: 2, then 1 (the bad update is a zero), then 0.5 * 1 + 0.5 * 4."""
    momentum, state = worker_momentum(0.5), {"a": jnp.zeros(1), "b": jnp.zeros(2)}
    state = momentum.init(state)
    for value, expected in ((4.0, 2.0), (np.nan, 1.0), (np.inf, 0.5), (4.0, 2.25)):
        update = {"a": jnp.array([value]), "b": jnp.array([4.0, 4.0])}
        state, sent = momentum.update(jax.random.key(0), state, update)
        np.testing.assert_array_equal(sent["a"], [expected])
        np.testing.assert_array_equal(sent["b"], [expected] * 2)


@pytest.mark.parametrize(
    ("rule", "least"),
    [(krum(1), 5), (multi_krum(1), 5), (bulyan(1), 7)],
    ids=["krum", "multi", "bulyan"],
)
def test_rounds_with_too_few_are_void(rule, least):
    rows = np.ones((8, 2), "f4")
    run = jax.jit(lambda m: aggregate_stack(rule, rows, mask=m))
    for count in range(9):
        expected = 1.0 if count >= least else 0.0
        np.testing.assert_array_equal(run(np.arange(8) < count), np.full(2, expected, "f4"))


def test_conditions_are_stated():
    for rule, size, text in (
        (krum(2), 6, r"krum needs n >= 2 f \+ 3 = 7 clients, got a cohort of 6"),
        (multi_krum(1), 4, r"multi_krum needs n >= 2 f \+ 3 = 5"),
        (bulyan(1), 6, r"bulyan needs n >= 4 f \+ 3 = 7"),
        (bucketing(2, inner=krum(1)), 8, r"krum needs .* = 5 clients, got a cohort of 4"),
    ):
        with pytest.raises(ValueError, match=text):
            rule.init(Message(jnp.zeros(2), jnp.float32(1)), size)
    for make, text in (
        (lambda: trimmed_mean(0.5), r"\[0, 1/2\)"),
        (lambda: krum(-1), "num_byzantine"),
        (lambda: multi_krum(1, num_selected=0), "num_selected"),
        (lambda: bucketing(0, inner=mean()), "bucket_size"),
        (lambda: norm_bound(0.0), "max_norm"),
        (lambda: centered_clipping(-1.0), "max_distance"),
        (lambda: geometric_median(smoothing=0.0), "smoothing"),
        (lambda: hierarchical([0, 3], num_edges=2), "edges"),
        (lambda: hierarchical([0], edge_weighting="x"), "edge_weighting"),
        (lambda: median(block_size=0), "block_size"),
    ):
        with pytest.raises(ValueError, match=text):
            make()
    for make in (lambda: bucketing(2, inner=median), lambda: hierarchical([0.5]),
                 lambda: redundancy([[0]]), lambda: norm_bound(1.0, inner=mean)):  # fmt: skip
        with pytest.raises(TypeError):
            make()
    weights = {"a": jnp.float32(1), "b": jnp.float32(1)}
    value = {"a": jnp.zeros(2), "b": jnp.zeros(1)}
    with pytest.raises(ValueError, match="one weight per client"):
        median().init(Message(value, weights), 5)
    with pytest.raises(ValueError, match="shaped like the model"):
        aggregate_stack(centered_clipping(1.0), jnp.ones((3, 2)), state=jnp.zeros(5))


@pytest.mark.parametrize(
    "name",
    [
        "median",
        "trimmed mean",
        "krum",
        "geometric median",
        "bulyan",
        "redundancy of pairs",
    ],
)
def test_scratch_memory_is_a_block_not_a_stack(name):
    """Temporary bytes of the compiled rule, for 64 clients of 200000 parameters (51 MB)."""
    shapes = jax.ShapeDtypeStruct((64, 200_000), jnp.float32)
    rule = redundancy(np.arange(64) // 2) if name == "redundancy of pairs" else RULES[name]

    def run(values):
        acc = rule.init(Message(values[0], jnp.float32(1)), 64)
        acc = acc._replace(values=values, weights=jnp.ones(64))
        return rule.finish(jax.random.key(0), (), acc, Cohort(jnp.arange(64), jnp.ones(64, bool)))

    memory = jax.jit(run).lower(shapes).compile().memory_analysis()
    if memory is None:
        pytest.skip("this backend tells nothing of its memory")
    assert memory.temp_size_in_bytes < 0.2 * 64 * 200_000 * 4


def test_hyperparameters_may_be_traced():
    rows = np.random.default_rng(0).normal(size=(6, 3)).astype("f4")

    @jax.jit
    @chex.assert_max_traces(n=1)
    def run(x):
        rules = (
            trimmed_mean(x),
            norm_bound(x),
            centered_clipping(x),
            geometric_median(smoothing=x),
        )
        return [aggregate_stack(rule, rows) for rule in rules]

    for x in (0.2, 0.4):
        rules = (
            trimmed_mean(x),
            norm_bound(x),
            centered_clipping(x),
            geometric_median(smoothing=x),
        )
        for got, rule in zip(run(x), rules, strict=True):
            np.testing.assert_allclose(got, aggregate_stack(rule, rows), rtol=1e-5)


ROWS = hnp.arrays(
    np.float32, (6, 3), elements=st.floats(-100, 100, width=32, allow_subnormal=False)
)
"""Numbers below 2^-126 are flushed to zero."""
MEDIAN = jax.jit(lambda v: aggregate_stack(median(), v))


@settings(max_examples=40, deadline=None)
@given(ROWS, st.integers(-64, 64), st.sampled_from([-2.0, 0.5, 1.0, 4.0]))
def test_median_moves_with_its_inputs(rows, shift, scale):
    """Translation and scaling pass through, and nothing lies outside of the inputs."""
    got = np.asarray(MEDIAN(rows))
    np.testing.assert_allclose(MEDIAN(scale * rows + shift), scale * got + shift, atol=1e-3)
    assert (got >= rows.min(0)).all() and (got <= rows.max(0)).all()  # noqa: PT018


def test_stacked_passes_what_it_was_sent():
    seen = {}

    def rule(key, state, stack, cohort):
        seen.update(values=stack.values, weights=stack.weights, mask=stack.mask)
        return state, stack.values.sum(0)

    aggregator = stacked(rule)
    message = Message(
        jnp.array([[1.0], [jnp.nan], [3.0]], jnp.bfloat16), jnp.array([2.0, 5.0, 0.0])
    )
    acc = aggregator.init(jax.tree.map(lambda leaf: leaf[0], message), 4)
    acc = aggregator.add(acc, message, jnp.array([3, 0, 1]), jnp.array([True, False, True]))
    aggregator.finish(jax.random.key(0), (), acc, Cohort(jnp.arange(4), jnp.ones(4, bool)))
    np.testing.assert_array_equal(seen["values"], [[0], [0], [0], [1]])
    assert seen["values"].dtype == jnp.float32
    np.testing.assert_array_equal(seen["weights"], [0, 0, 0, 2])
    np.testing.assert_array_equal(seen["mask"], [False, False, False, True])


@pytest.mark.parametrize(
    ("returned", "error", "match"),
    [
        (lambda state, v: v[0], TypeError, r"rule must return \(state, value\), got \w*Tracer"),
        (lambda state, v: (state, v[0], 1), TypeError, r"\(state, value\), got a tuple of 3"),
        (lambda state, v: (state, v), ValueError, r"a value .* message: .* \[2, 3\], not \[3\]"),
        (lambda state, v: (state, {"w": v[0]}), ValueError, r"value .* \{'w': \[3\]\}, not \[3\]"),
        (lambda state, v: (v, v[0]), ValueError, r"state shaped like the state that it got"),
    ],
)
def test_what_a_rule_returns_is_checked(returned, error, match):
    """Two rows: a bare array of them would unpack as a pair."""
    rule = stacked(lambda key, state, stack, cohort: returned(state, stack.values))
    with pytest.raises(error, match=match):
        aggregate_stack(rule, jnp.ones((2, 3)))
