"""Searches on the host: the noise that a budget needs, the rounds that it lasts for."""

from __future__ import annotations

import functools
import math
from collections.abc import Callable

from fedjax_lite.checks.arguments import check_count, check_fraction
from fedjax_lite.privacy.accounting import poisson as accounting
from fedjax_lite.privacy.accounting.analytic_gaussian import gdp_mu
from fedjax_lite.privacy.accounting.poisson import COARSE, Method
from fedjax_lite.privacy.arguments import check_budget, check_delta

TOLERANCE = 1e-6
MOST_ROUNDS = 10**6


def noise_multiplier(
    *, epsilon: float, delta: float, sampling_rate: float, num_rounds: int, method: Method = "pld"
) -> float:
    """The least noise for which `num_rounds` rounds are (epsilon, delta)-private.

    Args:
      epsilon: the budget, above 0; infinity gives 0.
      delta: in `(0, 1)`.
      sampling_rate: `q` in `(0, 1]`, of Poisson sampling.
      num_rounds: `T`, at least 1.
      method: "pld" or "rdp"; see `accounting.epsilon`.

    Returns:
      `z`, at most 1e-6 above the least; never below it.

    Raises:
      ValueError: if an argument is out of range.

    Example:
      >>> z = noise_multiplier(epsilon=4.377178, delta=1e-5, sampling_rate=1.0, num_rounds=25)
      >>> round(z, 4)
      5.0
    """
    check_budget(epsilon)
    check_delta(delta)
    check_fraction(sampling_rate, "sampling_rate")
    check_count(num_rounds, "num_rounds", minimum=1)
    if epsilon == 0 or sampling_rate == 0:
        raise ValueError(
            f"epsilon and sampling_rate must be positive, got {epsilon} and {sampling_rate}"
        )
    return _search(float(epsilon), float(delta), float(sampling_rate), int(num_rounds), method)


@functools.lru_cache(maxsize=128)
def _search(epsilon: float, delta: float, rate: float, num_rounds: int, method: Method) -> float:
    if math.isinf(epsilon):
        return 0.0
    if rate == 1 and method == "pld":
        return math.sqrt(num_rounds) / gdp_mu(epsilon, delta)

    def spent(z: float) -> float:
        return accounting.epsilon(
            noise_multiplier=z,
            sampling_rate=rate,
            num_rounds=num_rounds,
            delta=delta,
            method=method,
        )

    def bound(z: float) -> float:
        return accounting.composed(z, rate, num_rounds, COARSE).get_epsilon_for_delta(delta)

    rough = bound if method == "pld" else spent
    low, high = 0.5, 1.0
    while rough(high) > epsilon:
        low, high = high, 2 * high
    while rough(low) <= epsilon:
        low, high = low / 2, low
    low, high = _bisect(rough, epsilon, low, high, 1e-3 * low)
    # The fine bound lies below the rough one, so the rough answer serves, by a hair too large.
    low = low * (1 - 2e-3)
    while spent(low) <= epsilon:
        low, high = low * (1 - 2e-3), low
    return _secant(spent, epsilon, low, high)


def _bisect(
    function: Callable[[float], float], target: float, low: float, high: float, width: float
) -> tuple[float, float]:
    """Narrows a bracket of a falling function: above the target at `low`, not at `high`."""
    while high - low > width:
        middle = (low + high) / 2
        low, high = (low, middle) if function(middle) <= target else (middle, high)
    return low, high


def _secant(function: Callable[[float], float], target: float, low: float, high: float) -> float:
    """The end of a bracket that is on the safe side, within `TOLERANCE` of the crossing."""
    f_low, f_high = function(low) - target, function(high) - target
    while high - low > TOLERANCE:
        share = f_low / (f_low - f_high) if f_low > f_high else 0.5
        # Half the tolerance to the safe side, so that the next point lies beyond the crossing.
        middle = low + min(max(share, 0.0), 1.0) * (high - low) + TOLERANCE / 2
        if not low < middle < high:
            middle = (low + high) / 2
        gap = function(middle) - target
        if gap > 0:
            low, f_low = middle, gap
        else:
            high, f_high = middle, gap
            below = max(low, middle - TOLERANCE)
            gap = function(below) - target
            if gap > 0:
                return high
            high, f_high = below, gap
    return high


def largest_count(holds: Callable[[int], bool], *, most: int = MOST_ROUNDS) -> int:
    """The largest count up to `most` for which a predicate holds that fails from some count on.

    Example:
      >>> largest_count(lambda n: n * n <= 50)
      7
    """
    if not holds(1):
        return 0
    low, high = 1, 2
    while high <= most and holds(high):
        low, high = high, 2 * high
    high = min(high, most + 1)
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (middle, high) if holds(middle) else (low, middle)
    return low
