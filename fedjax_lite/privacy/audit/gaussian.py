"""Scores of canaries as those of a Gaussian mechanism: its mu, and epsilon by that."""

from __future__ import annotations

import math
from statistics import NormalDist

import numpy as np

from fedjax_lite.checks.arguments import check_finite, check_fraction
from fedjax_lite.privacy.accounting.analytic_gaussian import gdp_epsilon

NORMAL = NormalDist()


def roc_mu(true_positive_rate: float, false_positive_rate: float) -> float:
    r"""The mu of the Gaussian trade-off curve through one point of a ROC curve.

    .. math::  \mu = \Phi^{-1}(\mathrm{TPR}) - \Phi^{-1}(\mathrm{FPR})

    A point estimate; for a bound give the ends of confidence intervals (`clopper_pearson`).

    Args:
      true_positive_rate: in `[0, 1]`.
      false_positive_rate: in `[0, 1]`.

    Returns:
      mu; infinite where one rate is 0 or 1 and the other is not the same.

    Raises:
      ValueError: if a rate lies outside `[0, 1]`.

    Example:
      >>> round(roc_mu(0.9, 0.1), 7)
      2.5631031

    Reference: Dong, Roth, Su, "Gaussian Differential Privacy", 2019, arXiv:1905.02383.
    """
    check_fraction(true_positive_rate, "true_positive_rate")
    check_fraction(false_positive_rate, "false_positive_rate")
    if true_positive_rate == false_positive_rate:
        return 0.0
    return _quantile(true_positive_rate) - _quantile(false_positive_rate)


def gaussian_estimate(present: np.ndarray, absent: np.ndarray, *, delta: float) -> float:
    r"""Epsilon of the Gaussian mechanism whose scores would look like these: an estimate, no bound.

    .. math::  \hat\mu = (\bar s_1 - \bar s_0) \Big/ \sqrt{(\hat\sigma_1^2 + \hat\sigma_0^2) / 2}

    and then `gdp_epsilon`. With many canaries it is far closer to the truth than a bound can be.

    Args:
      present: scores of canaries that took part, `[m1]`, two or more.
      absent: scores of the others, `[m0]`, two or more.
      delta: in `(0, 1)`.

    Returns:
      epsilon; 0 where canaries that took part score lower, infinite where nothing blurs them.

    Raises:
      ValueError: if there are fewer than two scores on a side.

    Example:
      >>> from fedjax_lite.privacy import gdp_epsilon
      >>> scores = np.random.default_rng(0).normal(size=(2, 4000))
      >>> estimate = gaussian_estimate(scores[0] + 1.0, scores[1], delta=1e-5)
      >>> abs(estimate / gdp_epsilon(1e-5, 1.0) - 1) < 0.1
      True

    Reference: Andrew et al., "One-shot Empirical Privacy Estimation for Federated Learning", 2023,
    arXiv:2302.03098.
    """
    check_finite(np.asarray(present), "present")
    check_finite(np.asarray(absent), "absent")
    return gdp_epsilon(delta, max(_effect(present, absent)[0], 0.0))


def gaussian_lower_bound(
    present: np.ndarray, absent: np.ndarray, *, delta: float, confidence: float = 0.95
) -> float:
    r"""A lower confidence bound of `gaussian_estimate`, for scores that are Gaussian.

    .. math::  \mu \ge \hat\mu - z_{1-\alpha} \sqrt{\tfrac{1}{m_1} + \tfrac{1}{m_0}
               + \tfrac{\hat\mu^2}{2 (m_1 + m_0)}}

    (large samples). It tests a Gaussian mechanism in which every client takes part in every round
    against its own noise scale, where it finds a scale that is off by a third; of other mechanisms
    it proves nothing.

    Args:
      present: scores of canaries that took part, `[m1]`, two or more.
      absent: scores of the others, `[m0]`, two or more.
      delta: in `(0, 1)`.
      confidence: in `(0, 1)`.

    Returns:
      epsilon, not negative.

    Raises:
      ValueError: if there are fewer than two scores on a side.

    Example:
      >>> from fedjax_lite.privacy import gdp_epsilon
      >>> scores = np.random.default_rng(0).normal(size=(2, 4000))
      >>> bound = gaussian_lower_bound(scores[0] + 1.0, scores[1], delta=1e-5)
      >>> 0.9 < bound / gdp_epsilon(1e-5, 1.0) < 1.0
      True

    Reference: Andrew et al., "One-shot Empirical Privacy Estimation for Federated Learning", 2023,
    arXiv:2302.03098; Hedges, "Distribution Theory for Glass's Estimator of Effect Size", 1981.
    """
    check_finite(np.asarray(present), "present")
    check_finite(np.asarray(absent), "absent")
    if not 0 < confidence < 1:
        raise ValueError(f"confidence must lie between 0 and 1, got {confidence}")
    mu, deviation = _effect(present, absent)
    if math.isinf(mu):
        return gdp_epsilon(delta, max(mu, 0.0))
    return gdp_epsilon(delta, max(mu - NORMAL.inv_cdf(confidence) * deviation, 0.0))


def _effect(present: np.ndarray, absent: np.ndarray) -> tuple[float, float]:
    """The standardised difference of two samples, and its standard error."""
    present, absent = np.asarray(present, np.float64), np.asarray(absent, np.float64)
    if min(present.size, absent.size) < 2:
        raise ValueError(
            f"present and absent must hold two scores or more, got {present.size} and "
            f"{absent.size}; give scores of more canaries"
        )
    spread = math.sqrt((present.var(ddof=1) + absent.var(ddof=1)) / 2)
    gap = float(present.mean() - absent.mean())
    if spread == 0:
        return (math.copysign(math.inf, gap) if gap else 0.0), 0.0
    mu, total = gap / spread, present.size + absent.size
    return mu, math.sqrt(1 / present.size + 1 / absent.size + mu**2 / (2 * total))


def _quantile(rate: float) -> float:
    if rate in (0, 1):
        return math.inf if rate else -math.inf
    return NORMAL.inv_cdf(rate)
