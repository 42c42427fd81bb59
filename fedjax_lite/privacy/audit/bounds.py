"""Lower bounds on epsilon from counts: how many guesses of an attacker were right."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np

from fedjax_lite.checks.arguments import (
    check_count,
    check_finite,
    check_fraction,
    check_non_negative,
)


def clopper_pearson(successes: int, trials: int, *, significance: float) -> tuple[float, float]:
    r"""The exact interval of a binomial probability.

    The ends are the probabilities at which so many successes or more, or so few or fewer, would
    have probability `significance`: quantiles of Beta(k, n-k+1) and Beta(k+1, n-k).

    Args:
      successes: `k`, `0 <= k <= n`.
      trials: `n`, at least 1.
      significance: probability of failure of *each* end, in `(0, 1)`; .025 for 95 % in all.

    Returns:
      ``(low, high)``.

    Raises:
      ValueError: if a count or `significance` is out of range.

    Example:
      >>> [round(end, 6) for end in clopper_pearson(900, 1000, significance=0.025)]
      [0.879712, 0.917895]

    Reference: Clopper, Pearson, "The Use of Confidence or Fiducial Limits Illustrated in the Case
    of the Binomial", Biometrika, 1934.
    """
    _check_counts(successes, trials, "successes", "trials")
    _check_open("significance", significance)
    from scipy.special import betaincinv

    low = betaincinv(successes, trials - successes + 1, significance) if successes else 0.0
    rest = trials - successes
    high = betaincinv(successes + 1, rest, 1 - significance) if rest else 1.0
    return float(low), float(high)


def epsilon_from_counts(
    true_positives: int,
    false_positives: int,
    *,
    positives: int,
    negatives: int,
    delta: float = 0.0,
    significance: float = 0.025,
) -> float:
    r"""A lower bound on epsilon from repeated runs with and without one client.

    .. math::  \varepsilon \ge \max\Bigl(\ln\frac{\mathrm{TPR} - \delta}{\mathrm{FPR}},\;
               \ln\frac{\mathrm{TNR} - \delta}{\mathrm{FNR}},\; 0\Bigr)

    with the pessimistic Clopper-Pearson end of each rate. The attack must have been fixed before
    the runs, its threshold included.

    Args:
      true_positives: runs *with* the client in which the attacker said so.
      false_positives: runs *without* it in which the attacker said it was there.
      positives: runs with the client.
      negatives: runs without it.
      delta: of the guarantee that is tested.
      significance: of each rate; the bound holds with probability ``1 - 2 * significance``.

    Returns:
      epsilon, not negative.

    Raises:
      ValueError: if a count, `delta` or `significance` is out of range.

    Example:
      >>> round(epsilon_from_counts(900, 100, positives=1000, negatives=1000, delta=1e-5), 6)
      1.989695

    Reference: Jagielski, Ullman, Oprea, "Auditing Differentially Private Machine Learning: How
    Private is Private SGD?", 2020, arXiv:2006.07709.
    """
    check_fraction(delta, "delta")
    _check_counts(false_positives, negatives, "false_positives", "negatives")
    low, _ = clopper_pearson(true_positives, positives, significance=significance)
    _, high = clopper_pearson(false_positives, negatives, significance=significance)

    def log_ratio(right: float, wrong: float) -> float:
        return math.log((right - delta) / wrong) if right > delta and wrong > 0 else 0.0

    return max(log_ratio(low, high), log_ratio(1 - high, 1 - low), 0.0)


def one_run_p_value(
    correct: int, guesses: int, *, epsilon: float, delta: float = 0.0, num_canaries: int
) -> float:
    r"""How likely an (epsilon, delta)-DP run lets an attacker guess so many of its coins.

    Each of `m` canaries took part by a fair coin of its own; the attacker sees the outcome and
    guesses `r` of the coins. For :math:`W \sim \mathrm{Bin}(r, 1 / (1 + e^{-\varepsilon}))`

    .. math::  P[\text{correct} \ge v] \le P[W \ge v]
               + 2 m \delta \max_{i \ge 1} \tfrac1i\, P[v - i \le W < v].

    Args:
      correct: `v`.
      guesses: `r`, at most `num_canaries`.
      epsilon: claimed, not negative.
      delta: claimed.
      num_canaries: `m`, those that were not guessed included.

    Returns:
      The bound, at most 1.

    Raises:
      ValueError: if a count, `epsilon` or `delta` is out of range.

    Example:
      >>> round(one_run_p_value(70, 100, epsilon=0.4716719, num_canaries=100), 6)
      0.05

    Reference: Steinke, Nasr, Jagielski, "Privacy Auditing with One (1) Training Run", 2023,
    arXiv:2305.08846, theorem 5.2.
    """
    check_non_negative(epsilon, "epsilon")
    check_fraction(delta, "delta")
    _check_counts(correct, guesses, "correct", "guesses")
    _check_counts(guesses, num_canaries, "guesses", "num_canaries")
    rate = 1.0 / (1.0 + math.exp(-epsilon)) if epsilon < 700 else 1.0
    beta = float(_at_least(np.array(correct), guesses, rate))
    if delta == 0:
        return beta
    fewer = np.arange(1, correct + 1)
    between = _at_least(correct - fewer, guesses, rate) - beta
    return min(beta + 2 * num_canaries * delta * float(np.max(between / fewer, initial=0.0)), 1.0)


def one_run_epsilon(
    correct: int,
    guesses: int,
    *,
    num_canaries: int | None = None,
    delta: float = 0.0,
    confidence: float = 0.95,
) -> float:
    r"""A lower bound on epsilon from a single run with many canaries.

    The largest epsilon that `one_run_p_value` refutes at ``1 - confidence``.

    Args:
      correct: right guesses, `v`.
      guesses: guesses made, `r`: their number was fixed before the coins were looked at.
      num_canaries: `m`; default `guesses`. It matters with `delta` only.
      delta: of the guarantee that is tested.
      confidence: probability that the bound holds, in `(0, 1)`.

    Returns:
      epsilon, 0 where nothing is refuted.

    Raises:
      ValueError: if a count, `delta` or `confidence` is out of range.

    Example:
      >>> round(one_run_epsilon(70, 100), 6), round(one_run_epsilon(100, 100), 6)
      (0.471672, 3.492965)

    Reference: Steinke, Nasr, Jagielski, "Privacy Auditing with One (1) Training Run", 2023,
    arXiv:2305.08846.
    """
    _check_open("confidence", confidence)
    total = guesses if num_canaries is None else num_canaries
    significance = 1 - confidence

    def refuted(epsilon: float) -> bool:
        value = one_run_p_value(correct, guesses, epsilon=epsilon, delta=delta, num_canaries=total)
        return value <= significance

    if not refuted(0.0):
        return 0.0
    high = 1.0
    while refuted(high):
        high *= 2.0
    low = 0.0
    while high - low > 1e-12 * high:
        middle = 0.5 * (low + high)
        if middle in (low, high):
            break
        low, high = (middle, high) if refuted(middle) else (low, middle)
    return low


def epsilon_from_scores(
    present: Sequence[float] | np.ndarray,
    absent: Sequence[float] | np.ndarray,
    *,
    delta: float,
    confidence: float = 0.95,
    method: str = "gaussian_one_run",
) -> float:
    """A lower bound on epsilon from scores, by the estimators of jax-privacy.

    A threshold is chosen by the scores, with a Bonferroni correction over all of them.

    Args:
      present: scores of canaries that took part, `[m1]`: higher means more likely there.
      absent: scores of the others, `[m0]`.
      delta: of the guarantee that is tested, positive.
      confidence: probability that the bound holds, in `(1/2, 1)`.
      method: "gaussian_one_run" (Mahloujifar et al. 2024): refutes that the run is as private as
        a Gaussian mechanism of that epsilon and delta. Far tighter than "one_run", but a bound on
        epsilon only where every client takes part in every round, so that the run *is* one.
        "one_run" (Steinke et al. 2023): for any mechanism. "clopper_pearson" (Jagielski et al.
        2020): scores of repeated, independent runs. "gaussian" (Nasr et al. 2023): likewise, for
        Gaussian mechanisms.

    Returns:
      epsilon, not negative.

    Raises:
      ImportError: if jax-privacy is not installed.
      ValueError: if an argument is out of range or `method` is unknown.

    Example:
      >>> scores = np.random.default_rng(0).normal(size=(2, 500))
      >>> bound = epsilon_from_scores(scores[0] + 2.0, scores[1], delta=1e-5)
      >>> 2.0 < bound < 9.7  # of 9.66 for mu = 2
      True
    """
    _check_open("delta", delta)
    check_finite(np.asarray(present), "present")
    check_finite(np.asarray(absent), "absent")
    _check_open("confidence", confidence)
    methods = {
        "gaussian_one_run": "epsilon_one_run_fdp",
        "one_run": "epsilon_one_run",
        "clopper_pearson": "epsilon_clopper_pearson",
        "gaussian": "epsilon_from_gdp",
    }
    if method not in methods:
        raise ValueError(f"method must be one of {sorted(methods)}, got {method!r}")
    try:
        from jax_privacy.auditing import CanaryScoreAuditor
    except ImportError as error:
        raise ImportError(
            f"epsilon_from_scores needs jax-privacy ({error}): "
            'pip install "fedjax_lite[privacy]"; one_run_epsilon needs nothing'
        ) from error
    auditor = CanaryScoreAuditor(np.asarray(present, np.float64), np.asarray(absent, np.float64))
    return float(getattr(auditor, methods[method])(significance=1 - confidence, delta=delta))


def _at_least(count: np.ndarray, trials: int, rate: float) -> np.ndarray:
    """``P[Bin(trials, rate) >= count]`` for each count."""
    from scipy.special import betainc

    inner = np.clip(count, 1, max(trials, 1))
    tail = betainc(inner, trials - inner + 1, rate)
    return np.where(count <= 0, 1.0, np.where(count > trials, 0.0, tail))


def _check_counts(part: int, whole: int, part_name: str, whole_name: str) -> None:
    check_count(whole, whole_name, minimum=1)
    check_count(part, part_name, minimum=0)
    if part > whole:
        raise ValueError(f"{part_name} must be at most {whole_name} = {whole}, got {part}")


def _check_open(name: str, value: float) -> None:
    if not 0 < value < 1:
        raise ValueError(f"{name} must lie between 0 and 1, got {value}; give one such as 0.05")


def check_confidence(confidence: float) -> None:
    """Raises where `confidence` is not above 0 and below 1."""
    _check_open("confidence", confidence)
