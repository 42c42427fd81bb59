"""The Gaussian mechanism exactly: the curve of epsilon and delta, and the noise that it needs."""

from __future__ import annotations

import math

from fedjax_lite.checks.arguments import check_non_negative
from fedjax_lite.privacy.arguments import check_delta, check_epsilon


def gdp_delta(epsilon: float, mu: float) -> float:
    r"""The smallest delta of a Gaussian mechanism at `epsilon`.

    .. math::
        \delta(\varepsilon) = \Phi(-\varepsilon/\mu + \mu/2)
                              - e^{\varepsilon}\, \Phi(-\varepsilon/\mu - \mu/2),
        \qquad \mu = \text{sensitivity} / \sigma .

    `T` such mechanisms, each chosen in view of the results before, are one with
    ``sqrt(T) mu``: nothing is lost by composing.

    Args:
      epsilon: at least 0.
      mu: sensitivity over standard deviation; 0 is perfect privacy, infinity none.

    Returns:
      delta in `[0, 1]`.

    Raises:
      ValueError: if an argument is out of range.

    Example:
      >>> round(gdp_delta(1.0, 1.0), 6)
      0.126937

    Reference: Balle, Wang, "Improving the Gaussian Mechanism for Differential Privacy", 2018,
    arXiv:1805.06530; Dong, Roth, Su, "Gaussian Differential Privacy", 2019, arXiv:1905.02383.
    """
    from scipy.special import log_ndtr

    check_epsilon(epsilon)
    _check_mu(mu)
    if mu == 0:
        return 0.0
    if math.isinf(mu):
        return 1.0
    if math.isinf(epsilon):
        return 0.0
    first = float(log_ndtr(-epsilon / mu + mu / 2))
    # In logarithms: e^epsilon overflows long before the product does.
    second = epsilon + float(log_ndtr(-epsilon / mu - mu / 2))
    if second >= first:  # equal up to rounding, where delta is negligible
        return 0.0
    return math.exp(first) * -math.expm1(second - first)


def gdp_epsilon(delta: float, mu: float) -> float:
    """The smallest epsilon of a Gaussian mechanism at `delta`; see `gdp_delta`.

    Args:
      delta: in `(0, 1)`.
      mu: sensitivity over standard deviation.

    Returns:
      epsilon, at least 0; infinity where `mu` is.

    Raises:
      ValueError: if an argument is out of range.

    Example:
      >>> round(gdp_epsilon(1e-5, 1.0), 6)
      4.377178
    """
    check_delta(delta)
    _check_mu(mu)
    if mu == 0 or gdp_delta(0.0, mu) <= delta:
        return 0.0
    if math.isinf(mu):
        return math.inf
    high = 1.0
    while gdp_delta(high, mu) > delta:
        high *= 2
        if math.isinf(high):
            return math.inf
    return _bisect(lambda epsilon: gdp_delta(epsilon, mu) <= delta, 0.0, high)


def gdp_mu(epsilon: float, delta: float) -> float:
    """The largest `mu` that is (epsilon, delta)-private: the inverse of `gdp_epsilon`.

    Args:
      epsilon: at least 0; infinity gives infinity.
      delta: in `(0, 1)`.

    Returns:
      `mu`; the noise to add is ``sensitivity / mu``.

    Raises:
      ValueError: if an argument is out of range.

    Example:
      >>> round(gdp_mu(4.377178, 1e-5), 5)
      1.0
    """
    check_epsilon(epsilon)
    check_delta(delta)
    if math.isinf(epsilon):
        return math.inf
    high = 1.0
    while gdp_delta(epsilon, high) <= delta:
        high *= 2
    # The largest that holds: bisect on 1 / mu, which has to be large enough.
    return 1.0 / _bisect(lambda scale: gdp_delta(epsilon, 1.0 / scale) <= delta, 1 / high, None)


def gaussian_stddev(epsilon: float, delta: float, *, sensitivity: float = 1.0) -> float:
    r"""The least noise of the Gaussian mechanism for (epsilon, delta), at every epsilon.

    The classical :math:`\sqrt{2 \ln(1.25/\delta)} / \varepsilon` is proved for epsilon up to 1
    only, and is larger there.

    Args:
      epsilon: above 0.
      delta: in `(0, 1)`.
      sensitivity: l2 distance that one client (or example) can move the result.

    Returns:
      The standard deviation of the noise, in the units of `sensitivity`.

    Raises:
      ValueError: if an argument is out of range.

    Example:
      >>> round(gaussian_stddev(1.0, 1e-5), 6)
      3.730632

    Reference: Balle, Wang, "Improving the Gaussian Mechanism for Differential Privacy: Analytical
    Calibration and Optimal Denoising", 2018, arXiv:1805.06530.
    """
    check_non_negative(sensitivity, "sensitivity")
    return sensitivity / gdp_mu(epsilon, delta)


def _bisect(holds, low: float, high: float | None) -> float:
    """The smallest value in `(low, high]` where a monotone predicate holds; on its safe side."""
    if high is None:
        high = 2 * low
        while not holds(high):
            high *= 2
    for _ in range(200):
        middle = (low + high) / 2
        if middle in (low, high):
            break
        low, high = (low, middle) if holds(middle) else (middle, high)
    return high


def _check_mu(mu: float) -> None:
    if not mu >= 0:
        raise ValueError(f"mu must not be negative, got {mu}")
