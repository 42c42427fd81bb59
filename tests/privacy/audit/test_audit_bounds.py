"""Bounds of an audit: known answers, their definitions by brute force, jax-privacy beside them."""

import math
import sys

import numpy as np
import pytest
from scipy import stats

from fedjax_lite.privacy import audit, gdp_epsilon


def binomial_tail(count, trials, rate):
    """P[Bin(n, p) >= k] as a sum, term by term."""
    terms = (math.comb(trials, i) * rate**i * (1 - rate) ** (trials - i) for i in range(trials + 1))
    return sum(term for i, term in enumerate(terms) if i >= count)


@pytest.mark.parametrize(("k", "n"), [(0, 7), (1, 7), (3, 7), (7, 7), (900, 1000)])
def test_clopper_pearson_ends_have_the_tails_that_define_them(k, n):
    low, high = audit.clopper_pearson(k, n, significance=0.025)
    if k == 0:
        assert low == 0
    else:
        assert binomial_tail(k, n, low) == pytest.approx(0.025, rel=1e-6)
    if k == n:
        assert high == 1
    else:
        assert 1 - binomial_tail(k + 1, n, high) == pytest.approx(0.025, rel=1e-6)


def test_known_answers_of_repeated_runs():
    low, _ = audit.clopper_pearson(900, 1000, significance=0.025)
    _, high = audit.clopper_pearson(100, 1000, significance=0.025)
    assert low == pytest.approx(0.8797120635, abs=1e-10)
    assert high == pytest.approx(0.1202879365, abs=1e-10)
    counts = {"positives": 1000, "negatives": 1000, "delta": 1e-5, "significance": 0.025}
    assert audit.epsilon_from_counts(900, 100, **counts) == pytest.approx(1.9896949, abs=5e-8)
    perfect = audit.epsilon_from_counts(1000, 0, **counts)
    assert perfect == pytest.approx(5.6005775, abs=5e-8)
    end = 0.025 ** (1 / 1000)  # the short formula where nothing was missed
    assert perfect == pytest.approx(math.log((end - 1e-5) / (1 - end)), rel=1e-12)
    assert audit.roc_mu(0.9, 0.1) == pytest.approx(2 * stats.norm.ppf(0.9), rel=1e-12)
    assert audit.roc_mu(0.9, 0.1) == pytest.approx(2.5631031, abs=5e-8)


def test_counts_bound_looks_both_ways_and_never_below_zero():
    """Few false negatives tell as much as few false positives."""
    both = audit.epsilon_from_counts(500, 1, positives=1000, negatives=1000)
    assert audit.epsilon_from_counts(999, 500, positives=1000, negatives=1000) == pytest.approx(
        both, rel=1e-12
    )
    assert audit.epsilon_from_counts(10, 900, positives=1000, negatives=1000) == 0
    assert audit.epsilon_from_counts(5, 0, positives=10, negatives=10, delta=1.0) == 0


@pytest.mark.parametrize(
    ("correct", "guesses", "expected"),
    [
        (70, 100, 0.4716719),
        (100, 100, 3.4929654),
        (58, 100, 0.0),
        (700, 1000, 0.7320109),
        (1000, 1000, 5.8090683),
    ],
)
def test_known_answers_of_one_run(correct, guesses, expected):
    got = audit.one_run_epsilon(correct, guesses)
    assert got == pytest.approx(expected, abs=6e-8)
    if expected:  # the equation that defines it, by scipy's own tail
        rate = 1 / (1 + math.exp(-got))
        assert stats.binom.sf(correct - 1, guesses, rate) == pytest.approx(0.05, rel=1e-6)
    if correct == guesses:
        rate = 0.05 ** (1 / guesses)
        assert got == pytest.approx(math.log(rate / (1 - rate)), rel=1e-9)


def test_59_of_100_is_the_first_count_that_proves_anything():
    assert audit.one_run_epsilon(58, 100) == 0 < audit.one_run_epsilon(59, 100)
    assert stats.binom.sf(58, 100, 0.5) < 0.05 < stats.binom.sf(57, 100, 0.5)


@pytest.mark.parametrize(("correct", "guesses", "epsilon"), [(9, 12, 0.4), (30, 40, 1.0)])
def test_p_value_with_delta_by_brute_force(correct, guesses, epsilon):
    """Theorem 5.2, its maximum over i taken by a plain loop."""
    m, delta, rate = 60, 1e-3, 1 / (1 + math.exp(-epsilon))
    beta = binomial_tail(correct, guesses, rate)
    alpha = max(
        (binomial_tail(correct - i, guesses, rate) - beta) / i for i in range(1, correct + 1)
    )
    got = audit.one_run_p_value(correct, guesses, epsilon=epsilon, delta=delta, num_canaries=m)
    assert got == pytest.approx(beta + 2 * m * delta * alpha, rel=1e-9)
    assert got > beta


def test_one_run_agrees_with_jax_privacy():
    from jax_privacy.auditing import CanaryScoreAuditor, Explicit

    rng = np.random.default_rng(0)
    present, absent = rng.normal(2.0, 1.0, 300), rng.normal(size=300)
    at = Explicit(1.5)
    theirs = CanaryScoreAuditor(present, absent).epsilon_one_run(0.05, 1e-5, threshold_strategy=at)
    correct, wrong = int((present >= 1.5).sum()), int((absent >= 1.5).sum())
    ours = audit.one_run_epsilon(correct, correct + wrong, num_canaries=600, delta=1e-5)
    assert ours == pytest.approx(theirs, abs=1e-5)
    assert ours > 1


def test_gaussian_bound_covers_the_truth_as_often_as_it_says():
    """95 % of bounds lie below the true epsilon: 400 trials, within 4 standard deviations."""
    rng, mu, delta = np.random.default_rng(0), 1.5, 1e-5
    true = gdp_epsilon(delta, mu)
    bounds = np.array(
        [
            audit.gaussian_lower_bound(rng.normal(mu, 1.0, 120), rng.normal(size=120), delta=delta)
            for _ in range(400)
        ]
    )
    failures = int((bounds > true).sum())
    assert abs(failures - 20) <= 4 * math.sqrt(400 * 0.05 * 0.95)
    assert np.median(bounds) > 0.7 * true


def test_estimates_at_the_edges():
    flat, one = np.zeros(4), np.ones(4)
    assert audit.gaussian_estimate(one, flat, delta=1e-5) == math.inf
    assert audit.gaussian_lower_bound(one, flat, delta=1e-5) == math.inf
    assert audit.gaussian_estimate(flat, flat, delta=1e-5) == 0
    assert audit.gaussian_estimate(flat, one, delta=1e-5) == 0


@pytest.mark.parametrize("method", ["gaussian_one_run", "one_run", "clopper_pearson", "gaussian"])
def test_estimators_of_jax_privacy_stay_below_the_truth(method):
    rng = np.random.default_rng(1)
    scores = rng.normal(2.0, 1.0, 400), rng.normal(size=400)
    got = audit.epsilon_from_scores(*scores, delta=1e-5, method=method)
    assert 0.5 < got < gdp_epsilon(1e-5, 2.0)


def test_bad_input_is_named(monkeypatch):
    for call, text in [
        (lambda: audit.clopper_pearson(8, 7, significance=0.1), "successes"),
        (lambda: audit.clopper_pearson(1, 7, significance=0.0), "significance"),
        (lambda: audit.one_run_epsilon(3, 2), "correct"),
        (lambda: audit.one_run_epsilon(3, 4, num_canaries=3), "guesses"),
        (lambda: audit.one_run_epsilon(3, 4, confidence=1.0), "confidence"),
        (lambda: audit.roc_mu(1.5, 0.0), "true_positive_rate"),
        (lambda: audit.gaussian_estimate(np.ones(1), np.ones(3), delta=0.1), "present and absent"),
        (lambda: audit.epsilon_from_scores([1], [0], delta=0.1, method="x"), "method"),
    ]:
        with pytest.raises(ValueError, match=text):
            call()
    with pytest.raises(TypeError, match="int"):
        audit.one_run_epsilon(3.0, 4)  # type: ignore[arg-type]
    monkeypatch.setitem(sys.modules, "jax_privacy.auditing", None)
    with pytest.raises(ImportError, match=r"fedjax_lite\[privacy\]"):
        audit.epsilon_from_scores([1.0], [0.0], delta=0.1)
