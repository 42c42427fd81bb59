"""Accountants: what a run has spent after so many rounds, and when its budget ends."""

from __future__ import annotations

import functools
import math
from collections.abc import Callable
from typing import Any

from fedjax_lite.checks.arguments import check_count
from fedjax_lite.checks.made import made
from fedjax_lite.privacy.accounting import poisson as accounting
from fedjax_lite.privacy.accounting.analytic_gaussian import gdp_epsilon
from fedjax_lite.privacy.accounting.calibrate_noise import largest_count
from fedjax_lite.privacy.accounting.calibrate_noise import noise_multiplier as least_noise
from fedjax_lite.privacy.accounting.history import set_aside, with_history
from fedjax_lite.privacy.accounting.poisson import COARSE, Method
from fedjax_lite.privacy.arguments import (
    check_budget,
    check_delta,
    check_noise_multiplier,
    is_traced,
)
from fedjax_lite.round.ledger import POISSON
from fedjax_lite.types import Accountant, Entry, RoundState

NOT_PRIVATE = "NOT PRIVATE: no noise is added"


def overflowing_epsilon(
    *,
    noise_multiplier: float,
    sampling_rate: float,
    num_rounds: int,
    delta: float,
    overflow: float,
    method: Method = "pld",
) -> float:
    r"""Epsilon where a cohort overflows its capacity with probability `overflow` a round.

    What is run differs from Poisson sampling with probability at most ``p = T * overflow``, on
    either of two neighbouring populations, so that it is
    :math:`(\varepsilon, \delta + (1 + e^\varepsilon) p)`-private where Poisson sampling is
    :math:`(\varepsilon, \delta)`-private. That share of `delta` is set aside.

    Args:
      noise_multiplier: `z`.
      sampling_rate: `q`.
      num_rounds: `T`.
      delta: of the whole.
      overflow: a round's probability of it.
      method: "pld" or "rdp".

    Returns:
      epsilon; infinity where the overflow alone exceeds delta.

    Example:
      >>> stated = dict(noise_multiplier=1.1, sampling_rate=0.01, num_rounds=1000, delta=1e-5)
      >>> overflowing_epsilon(**stated, overflow=1e-9) > accounting.epsilon(**stated)
      True
      >>> overflowing_epsilon(**stated, overflow=1e-3)
      inf
    """
    if num_rounds == 0:
        return 0.0

    def epsilon_at(rest: float) -> float:
        return accounting.epsilon(
            noise_multiplier=noise_multiplier,
            sampling_rate=sampling_rate,
            num_rounds=num_rounds,
            method=method,
            delta=rest,
        )

    return set_aside(epsilon_at, delta, num_rounds * overflow)


@made
def poisson_accountant(
    *,
    noise_multiplier: Any,
    sampling_rate: float,
    overflow: float,
    delta: float,
    method: Method,
    epsilon: float | None,
    num_rounds: int | None,
    calibrated: bool = False,
    what: str,
) -> Accountant:
    """The accountant of a Gaussian sum over Poisson cohorts.

    Args:
      noise_multiplier: `z`; where it is traced, nobody can say what is spent.
      sampling_rate: `q`.
      overflow: probability that a round's cohort does not fit.
      delta: in `(0, 1)`.
      method: of ``epsilon``; RDP's is reported beside it as ``epsilon_rdp``.
      epsilon: the budget, or None.
      num_rounds: the end that was planned for, or None. With a budget the run ends with the last
        round within it, if that comes first.
      calibrated: the noise was found for `num_rounds` rounds of the budget: no search.
      what: the mechanism and its unit, for the description.

    Returns:
      An `Accountant`. In every row of a history: ``epsilon_rdp``, for RDP composes by addition,
      and ``epsilon`` where it is RDP's, too, or the closed form of ``q = 1``.

    Raises:
      ValueError: if the budget does not allow one round.

    Example:
      >>> accountant = poisson_accountant(
      ...     noise_multiplier=1.0, sampling_rate=0.1, overflow=0.0, delta=1e-5, method="pld",
      ...     epsilon=None, num_rounds=None, what="a sum")
      >>> {name: round(value, 3) for name, value in accountant.spent(100).items()}
      {'epsilon': 7.047, 'epsilon_rdp': 7.904}
    """
    entry = Entry(POISSON, (noise_multiplier, sampling_rate, overflow))
    # Of clients whom somebody chose nothing is hidden by sampling, and no cohort overflows.
    chosen = Entry(POISSON, (noise_multiplier, 1.0, 0.0))
    if is_traced(noise_multiplier):
        unknown = unknown_accountant(delta=delta, max_rounds=num_rounds, what=what)
        return with_history(unknown._replace(entry=entry, chosen=chosen))

    @functools.lru_cache(maxsize=256)
    def at(rounds: int, method: Method) -> float:
        return overflowing_epsilon(
            noise_multiplier=noise_multiplier,
            sampling_rate=sampling_rate,
            num_rounds=rounds,
            delta=delta,
            overflow=overflow,
            method=method,
        )

    def spent(rounds: int) -> dict[str, float]:
        check_count(rounds, "rounds", minimum=0)
        return {"epsilon": at(rounds, method), "epsilon_rdp": at(rounds, "rdp")}

    def every_round(rounds: int) -> dict[str, float]:
        closed_form = method == "rdp" or sampling_rate == 1
        return spent(rounds) if closed_form else {"epsilon_rdp": at(rounds, "rdp")}

    max_rounds = num_rounds
    if epsilon is not None and not calibrated and not math.isinf(epsilon):
        lasts = _last_round(
            lambda rounds: at(rounds, method) <= epsilon,
            _rough(noise_multiplier, sampling_rate, delta, epsilon, method),
        )
        if lasts == 0:
            raise ValueError(
                f"epsilon={epsilon} does not allow one round: the first spends "
                f"{at(1, method):.4g} at noise_multiplier={noise_multiplier}; add noise"
            )
        max_rounds = lasts if num_rounds is None else min(lasts, num_rounds)
    parts = [NOT_PRIVATE] if noise_multiplier == 0 else []
    parts.append(
        f"{what}: z={noise_multiplier:.6g}, Poisson sampling q={sampling_rate:.6g}, "
        f"delta={delta:g}, overflow {overflow:.1g} a round in delta, accounted by {method.upper()}"
    )
    if epsilon is not None and max_rounds is not None:
        parts.append(f"epsilon <= {epsilon:g} up to round {max_rounds}")
    accountant = Accountant(
        spent,
        max_rounds,
        "; ".join(parts),
        delta,
        float(noise_multiplier),
        every_round,
        entry=entry,
        chosen=chosen,
    )
    return with_history(accountant, method=method, budget=epsilon, planned=num_rounds)


@made
def unknown_accountant(*, delta: float, max_rounds: int | None, what: str) -> Accountant:
    """The accountant where the noise is traced, as in a sweep: it knows no epsilon.

    Args:
      delta: in `(0, 1)`.
      max_rounds: the last round that was planned for.
      what: the mechanism and its unit, for the description.

    Example:
      >>> unknown_accountant(delta=1e-5, max_rounds=3, what="a sum").description
      'a sum: the noise is traced, so that its epsilon is not known here'
    """

    def spent(rounds: int) -> dict[str, float]:
        raise TypeError(
            "noise_multiplier is traced here, so that epsilon is not known: ask the accountant of "
            "the same mechanism with a plain number, as fl.sweep does for its rows"
        )

    text = f"{what}: the noise is traced, so that its epsilon is not known here"
    return Accountant(spent, max_rounds, text, delta)


def _rough(z: float, rate: float, delta: float, epsilon: float, method: str) -> int:
    """A count near the last round, from a coarse grid of privacy losses."""
    if method != "pld" or rate == 1 or z == 0:
        return 1
    return largest_count(
        lambda rounds: (
            accounting.composed(z, rate, rounds, COARSE).get_epsilon_for_delta(delta) <= epsilon
        )
    )


def _last_round(holds: Callable[[int], bool], guess: int) -> int:
    """The last round within the budget, sought upwards from a guess that errs on the low side."""
    if guess <= 1 or not holds(guess):
        return largest_count(holds)
    return guess + largest_count(lambda more: holds(guess + more))


@made
def gdp_accountant(
    mu: Callable[[int], float],
    *,
    delta: float,
    max_rounds: int | None,
    noise_multiplier: Any,
    what: str,
    entry: Entry | None = None,
    chosen: Entry | None = None,
    clock: Callable[[RoundState], Any] | None = None,
    epsilon: float | None = None,
) -> Accountant:
    """The accountant of a mechanism that is exactly Gaussian.

    Args:
      mu: ``(rounds) -> mu``, sensitivity over noise of all rounds so far.
      delta: in `(0, 1)`.
      max_rounds: the last round that was planned for.
      noise_multiplier: `z`; 0 is said aloud in the description, and of a traced one `mu` is not
        asked.
      what: the mechanism, its unit and its conditions, for the description.
      entry: what a round writes into the state's ledger; None: the description says it.
      chosen: what a round with an explicit cohort writes, if such a round is accounted for.
      clock: see `Accountant`.
      epsilon: the budget of the run, or None.

    Returns:
      An `Accountant`, with ``epsilon`` in every row of a history.

    Example:
      >>> accountant = gdp_accountant(lambda rounds: rounds**0.5, delta=1e-5, max_rounds=4,
      ...                             noise_multiplier=1.0, what="four releases")
      >>> round(accountant.spent(1)["epsilon"], 6)
      4.377178
    """
    check_delta(delta)
    known = {"entry": entry, "chosen": chosen, "clock": clock}
    if is_traced(noise_multiplier):
        unknown = unknown_accountant(delta=delta, max_rounds=max_rounds, what=what)
        return unknown if entry is None else with_history(unknown._replace(**known))

    def spent(rounds: int) -> dict[str, float]:
        check_count(rounds, "rounds", minimum=0)
        return {"epsilon": gdp_epsilon(delta, mu(rounds)) if rounds else 0.0}

    prefix = "" if noise_multiplier > 0 else f"{NOT_PRIVATE}; "
    text = f"{prefix}{what}, delta={delta:g}"
    accountant = Accountant(spent, max_rounds, text, delta, float(noise_multiplier), spent, **known)
    if entry is None:
        return accountant
    return with_history(accountant, budget=epsilon, planned=max_rounds)


def stated_noise(
    *,
    epsilon: float | None,
    noise_multiplier: Any,
    calibrate: Callable[[float], float],
) -> Any:
    """The noise that is stated, or that a stated epsilon needs; a traced one as it is.

    Raises:
      ValueError: if neither is stated, or a budget beside traced noise.

    Example:
      >>> stated_noise(epsilon=None, noise_multiplier=1.1, calibrate=lambda epsilon: 0.0)
      1.1
    """
    if epsilon is not None:
        check_budget(epsilon)
        if epsilon == 0:
            raise ValueError("epsilon must be positive: epsilon=0 allows no release at all")
    if is_traced(noise_multiplier):
        if epsilon is not None:
            raise ValueError(
                "epsilon must be left out where noise_multiplier is traced: when the budget ends "
                "depends on the noise; give num_rounds"
            )
        return noise_multiplier
    if noise_multiplier is not None:
        check_noise_multiplier(noise_multiplier)
        return float(noise_multiplier)
    if epsilon is None:
        raise ValueError(
            "epsilon or noise_multiplier must be given; both mean a budget for that noise"
        )
    return calibrate(float(epsilon))


def calibrated_noise(
    *,
    epsilon: float,
    delta: float,
    sampling_rate: float,
    num_rounds: int | None,
    overflow: float,
    method: Method,
    capacity: int | None = None,
) -> float:
    """The noise for Poisson cohorts, with the share of delta that overflow may cost set aside.

    Args:
      epsilon: the budget.
      delta: of the whole.
      sampling_rate: `q`.
      num_rounds: `T`.
      overflow: probability that a round's cohort does not fit.
      method: "pld" or "rdp".
      capacity: what the user stated, if anything, for the error message.

    Raises:
      ValueError: if `num_rounds` is missing, or the overflow alone exceeds delta.

    Example:
      >>> round(calibrated_noise(epsilon=4.377178, delta=1e-5, sampling_rate=1.0, num_rounds=1,
      ...                        overflow=0.0, method="pld"), 5)
      1.0
    """
    if num_rounds is None:
        raise ValueError(
            "num_rounds must be given with epsilon: the noise depends on the length of the run"
        )
    check_count(num_rounds, "num_rounds", minimum=1)
    check_delta(delta)
    check_budget(epsilon)
    if math.isinf(epsilon):
        return 0.0
    rest = delta - (1 + math.exp(min(epsilon, 700.0))) * num_rounds * overflow
    if rest <= 0:
        happens = f"a cohort overflows with probability {overflow:.2g} a round"
        if capacity is None:
            raise ValueError(
                f"epsilon={epsilon:g} is too large for delta={delta:g} with the default capacity: "
                f"{happens}, which e^epsilon multiplies; lower epsilon or give "
                "capacity=num_clients"
            )
        raise ValueError(
            f"capacity={capacity} is too small for delta={delta:g}: {happens}; leave capacity out "
            "or enlarge it"
        )
    return least_noise(
        epsilon=epsilon,
        delta=rest,
        sampling_rate=sampling_rate,
        num_rounds=num_rounds,
        method=method,
    )
