"""Robust rules against the numbers of the papers' formulas, in float64."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from robust_points import I7, R7, S7, as_rows, as_tree

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
    trimmed_mean,
)
from fedjax_lite.aggregation.bulyan import bulyan_selection
from fedjax_lite.aggregation.distances import pairwise_squares
from fedjax_lite.aggregation.krum import krum_scores
from fedjax_lite.aggregation.stacked import run_stack
from fedjax_lite.types import Cohort


@pytest.fixture(autouse=True)
def double():
    with jax.enable_x64(True):
        yield


@functools.cache
def compiled(*rules):
    """One program of several rules, which further points of the shape share."""

    @jax.jit
    def run(rows, weights):
        return [aggregate_stack(rule, as_tree(rows), weights=weights) for rule in rules]

    return run


def of(rule, points):
    """The aggregate of points, spread over the leaves of a tree."""
    return of_all([rule], points)[0]


def of_all(rules, points):
    return list(map(as_rows, compiled(*rules)(points, np.ones(len(points)))))


def close(got, expected, tolerance=1e-9):
    np.testing.assert_allclose(got, expected, rtol=0, atol=tolerance)


MEDIAN = median()


def test_median_takes_the_two_middle_values():
    for values, expected in ((R7, (0.1, 0.1)), (R7[:6], (0.1, 0.05))):  # and not (.1, 0)
        found = of(MEDIAN, values)
        close(found, expected)
        close(found, np.median(values, 0))


def test_trimmed_mean_cuts_coordinates_not_clients():
    robust = [trimmed_mean(0.3), MEDIAN]
    trimmed, middle, little, whole = of_all([*robust, trimmed_mean(1 / 7), trimmed_mean(0.0)], R7)
    close(trimmed, (0.4 / 3, 0.2 / 3))
    close(little, (2.08, 2.04))
    close(whole, R7.mean(0))
    close(R7.mean(0), (2.9142857143, 2.9), 1e-10)
    far = R7.copy()
    far[5:] = 1e6
    close(of_all(robust, far), [trimmed, middle])


@pytest.mark.parametrize("num", [3, 4, 7, 10])
def test_trimming_all_but_the_middle_is_the_median(num):
    values = np.random.default_rng(num).normal(size=(num, 5))
    left = 1 if num % 2 else 2
    close(of(trimmed_mean((num - left) / (2 * num)), values), np.median(values, 0))


@functools.partial(jax.jit, static_argnums=1)
def scores(points, num_byzantine):
    everyone = jnp.ones(len(points), bool)
    return krum_scores(pairwise_squares(points), everyone, len(points) - num_byzantine - 2)


def test_krum():
    close(scores(R7, 2), (0.04, 0.03, 0.04, 0.04, 0.07, 392.07, 396.07))
    close(of(krum(2), R7), R7[1])
    expected = (0.0499, 0.0299, 0.0324, 0.0321, 0.0849, 0.0180, 786.6839)
    close(scores(S7, 1), expected)
    assert np.argsort(scores(S7, 1)).tolist() == [5, 1, 3, 2, 0, 4, 6]
    close(of(krum(1), S7), S7[5])


def test_multi_krum():
    three, five, default, seven = of_all(
        [multi_krum(1, num_selected=num) for num in (3, 5, None, 7)], S7
    )
    close(three, (0.09, 0.17 / 3))
    close(five, (0.06, 0.054))
    close(default, S7[:6].mean(0))
    close(seven, S7.mean(0))
    close(of(krum(1), np.tile(S7[3], (7, 1))), S7[3])


def test_krum_leaves_itself_out_by_index():
    points = np.array([(0, 0)] * 3 + [(5, 5), (6, 6), (7, 7), (100, 100)], float)
    close(scores(points, 2), (50, 50, 50, 60, 76, 108, 53020))
    close(of(krum(2), points), (0, 0))


def test_distances_do_not_cancel_in_float32():
    """Points 1e-2 apart at norm 1e3: a product of norms keeps no digit of 1e-4 in 2e6."""
    apart = np.float32(1 / 128) * np.array([0, 1, 2, 3, 9], np.float32)
    points = jnp.asarray(np.float32(1024) + apart[:, None], jnp.float32)
    exact = (apart[:, None] - apart) ** 2
    np.testing.assert_array_equal(pairwise_squares(points), exact)
    gram = points @ points.T
    norms = jnp.diag(gram)
    lost = np.abs(norms[:, None] + norms - 2 * gram - exact)
    assert lost.max() > 0.5 * exact.max(), "there is no trap"
    got = aggregate_stack(krum(1), points)
    assert got.dtype == jnp.float32
    np.testing.assert_array_equal(got, points[1])


def test_bulyan_scores_the_remaining_anew():
    select = jax.jit(lambda rows: bulyan_selection(pairwise_squares(rows), jnp.ones(7, bool), 1))
    rule = bulyan(1)
    for points, selected in ((S7, {0, 1, 2, 3, 5}), (I7, {0, 1, 2, 3, 5})):
        chosen = select(points)
        assert set(np.flatnonzero(chosen)) == selected
    close(of(rule, S7), (0.06, 0.17 / 3))
    close(of(rule, I7), (3, 19 / 3))
    one_pass = np.argsort(scores(I7, 1), kind="stable")[:5]
    assert set(one_pass) == {1, 2, 3, 5, 6}  # the shortcut takes another client


@pytest.mark.parametrize(
    ("iterations", "expected"),
    [
        (0, (1.75, 1.25)),
        (1, (1.5994983767, 1.3263519159)),
        (3, (1.4473483062, 1.3448723844)),
        (10, (1.3395079229, 1.3340984732)),
        (300, (4 / 3, 4 / 3)),
    ],
)
def test_geometric_median_of_a_quadrilateral(iterations, expected):
    corners = np.array([(0, 0), (4, 0), (3, 3), (0, 2)], float)
    got = of(geometric_median(iterations=iterations), corners)
    close(got, expected, 1e-6 if iterations == 300 else 1e-9)


def test_geometric_median():
    few, many = of_all([geometric_median(), geometric_median(iterations=2000)], R7)
    close(few, (0.3314950467, 0.2913070199))
    close(many, (0.1017210113, 0.0958263887), 1e-7)
    line = np.array([[0.0], [1.0], [10.0]])
    for weights, where in (((0.3, 0.4, 0.3), 1.0), ((0.2, 0.2, 0.6), 10.0)):
        rule = geometric_median(iterations=400, weighted=True)
        got = aggregate_stack(rule, line, weights=np.array(weights))
        close(got, [where], 1e-4)  # at a point Weiszfeld slows down to nu
    triangle = np.array([(0, 0), (1, 0), (0.5, np.sqrt(0.75))])
    close(of(geometric_median(iterations=50), triangle), triangle.mean(0))


def test_centered_clipping():
    cases = {
        (1.0, 1): (0.2586695587, 0.2311032446),
        (1.0, 2): (0.3322768907, 0.2974290233),
        (1.0, 50): (0.3615634892, 0.3241143158),
        (0.1, 1): (0.0588256242, 0.0446404213),
        (np.inf, 1): R7.mean(0),
    }
    rules = [centered_clipping(radius, iterations=times) for radius, times in cases]
    close(of_all(rules, R7), list(cases.values()))


def test_centered_clipping_goes_on_from_the_last_aggregate():
    """Two rounds of one step are one round of two."""
    rule = centered_clipping(1.0)
    state, _ = run_stack(rule, as_tree(R7))
    state, twice = run_stack(rule, as_tree(R7), state=state)
    close(as_rows(twice), of(centered_clipping(1.0, iterations=2), R7))
    kept, nothing = run_stack(rule, as_tree(R7), state=state, mask=np.zeros(7, bool))
    close(as_rows(nothing), (0, 0))
    close(as_rows(kept), as_rows(twice))


def test_norm_bound():
    one, two = norm_bound(1.0), norm_bound(2.0)
    for value, expected in (((3, 4), (0.6, 0.8)), ((0.3, 0.4), (0.3, 0.4)), ((0, 0), (0, 0))):
        close(of(one, np.array([value], float)), expected)
    once = of(two, R7[5:6])
    close(of(two, once[None]), once)
    close(of(norm_bound(np.inf), R7), R7.mean(0))


def test_buckets(monkeypatch):
    """The permutations of the known answers, put in place of the random one."""
    import sys

    module = sys.modules["fedjax_lite.aggregation.bucketing"]
    for order, expected in (
        ((0, 1, 2, 3, 4, 5, 6), (2.575, 2.55)),
        ((0, 1, 2, 3, 5, 6, 4), (0.125, 0.05)),
    ):
        monkeypatch.setattr(module, "random_order", lambda *_, order=order: jnp.array(order))
        close(of(bucketing(2, inner=median()), R7), expected)


def test_bucketing_reduces():
    inner = [MEDIAN, krum(2), trimmed_mean(0.3), geometric_median()]
    found = of_all([bucketing(7, inner=MEDIAN), *(bucketing(1, inner=one) for one in inner)], R7)
    close(found[0], R7.mean(0))
    close(found[1:], of_all(inner, R7))


def test_hierarchical():
    u, sizes, edges = np.array([[1.0], [2.0], [4.0]]), np.array([30.0, 10, 60]), [0, 0, 1]
    close(aggregate_stack(hierarchical(edges), u, weights=sizes), [2.9])
    uniform = hierarchical(edges, edge_weighting="uniform")
    close(aggregate_stack(uniform, u, weights=sizes), [(1.25 + 4) / 2])
    values, weights = np.random.default_rng(0).normal(size=(6, 2)), np.arange(1.0, 7)
    cohort = Cohort(jnp.arange(6), jnp.arange(6) != 4)
    some = {"mask": cohort.mask, "cohort": cohort}
    for edges in ([0, 1, 2, 0, 1, 2], [0] * 6, list(range(6))):
        rules = ((hierarchical(edges, num_edges=8), {}), (hierarchical(edges), some))
        for found, here in zip(
            weighted(rules, values, weights), (np.ones(6), np.arange(6) != 4), strict=True
        ):
            close(found, np.average(values, 0, weights * here))


def weighted(rules, values, weights):
    """Of rules with options, in one program."""

    @jax.jit
    def run(rows):
        return [aggregate_stack(rule, as_tree(rows), weights=weights, **o) for rule, o in rules]

    return list(map(as_rows, run(values)))


def test_hierarchical_with_a_median_of_edges():
    values = np.array([(1.0, 0), (3, 0), (5, 5), (7, 7), (1e6, 1e6), (2e6, 0)])
    got = of(hierarchical([0, 0, 1, 1, 2, 2], inner=MEDIAN), values)
    close(got, (6, 6))


def test_hierarchical_quadratics_with_one_edge_round():
    """kappa_2 = 1 is FedAvg: round 1 and fixed point of the four quadratics, by the closed form."""
    a, b, n = np.array([1.0, 4, 2, 3]), np.array([-1.0, 2, 0, 3]), np.array([30.0, 10, 20, 40])
    shrink = 1 - (1 - 0.05 * a) ** 2
    optimum = (n * shrink * b).sum() / (n * shrink).sum()
    close(optimum, 1.7537922987)
    rule = hierarchical([0, 0, 1, 1])
    for x, after in ((0.0, 0.37575), (optimum, optimum)):
        sent = (shrink * (x - b))[:, None]  # server minus client
        close(x - aggregate_stack(rule, sent, weights=n), [after])


def test_redundancy_is_the_fault_free_mean():
    tasks = np.random.default_rng(1).normal(size=(3, 2))
    groups = np.repeat(np.arange(3), 5)
    sent = tasks[groups]
    expected, rule = of(mean(), tasks), redundancy(groups)
    np.testing.assert_array_equal(of(rule, sent), expected)
    rng = np.random.default_rng(2)
    for group in range(3):  # f = 2 of 5: colluding, then scattered
        liars = np.flatnonzero(groups == group)[rng.permutation(5)[:2]]
        sent[liars] = 100.0 if group else rng.normal(size=(2, 2))
    sent[0] = np.nan if (sent[0] != tasks[0]).any() else sent[0]
    np.testing.assert_array_equal(of(rule, sent), expected)
    sent[groups == 0] = 100.0 + np.array([[0], [0], [0], [1], [2]])  # three liars agree
    assert np.abs(of(rule, sent) - expected).max() > 10
    sent[groups == 0] = np.arange(5)[:, None]  # nobody has a majority: the task is left out
    close(of(rule, sent), tasks[1:].mean(0))
