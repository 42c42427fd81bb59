"""What a state has spent in all: the rounds of its ledger, composed over all mechanisms."""

from __future__ import annotations

import functools
import math
from collections.abc import Callable
from typing import Any

from fedjax_lite.privacy.accounting import poisson as accounting
from fedjax_lite.privacy.accounting.analytic_gaussian import gdp_epsilon
from fedjax_lite.privacy.accounting.calibrate_noise import largest_count
from fedjax_lite.privacy.accounting.discrete_losses import rounds_epsilon
from fedjax_lite.privacy.accounting.poisson import COARSE, INTERVAL, Method
from fedjax_lite.privacy.accounting.tree_sensitivity import tree_sensitivities
from fedjax_lite.round.ledger import (
    DISCRETE,
    LOCAL,
    MATRIX,
    POISSON,
    TREE,
    incompatible,
    is_count,
    is_traced,
    lost,
    read,
)
from fedjax_lite.types import Accountant, Entry, RoundState

Parts = tuple[tuple[Entry, int], ...]


def with_history(
    accountant: Accountant,
    *,
    method: Method = "pld",
    budget: float | None = None,
    planned: int | None = None,
) -> Accountant:
    r"""An accountant that also answers for states that other mechanisms have a part in.

    A state's rounds compose adaptively. Of Gaussian sums, with Poisson cohorts or without, and of
    tree and matrix noise, the privacy loss distributions are composed; what is exactly Gaussian
    together is one Gaussian with :math:`\mu^2 = \sum_k \mu_k^2`, as several local mechanisms of
    one sensitivity are. Of distributed discrete Gaussians the Rényi divergences are added. Others
    do not compose: they speak of other neighbours or of another adversary.

    Args:
      accountant: of numbers of rounds; its `entry` says what it is.
      method: of ``epsilon`` where Poisson cohorts have a part.
      budget: epsilon of the whole run, or None.
      planned: rounds of the whole run, or None.

    Returns:
      The accountant: its `spent` takes states, too, and `last_round` says where they end. What a
      state has not accounted for makes epsilon infinite.

    Example:
      >>> import jax.numpy as jnp
      >>> from fedjax_lite.round.ledger import empty, record
      >>> def made(z):
      ...     return with_history(Accountant(
      ...         lambda rounds: {"epsilon": gdp_epsilon(1e-5, rounds**0.5 / z)}, None, "noise",
      ...         1e-5, entry=Entry(POISSON, (z, 1.0, 0.0))))
      >>> ledger = record(record(empty(), made(1.25).entry), made(5 / 3).entry)
      >>> round(made(1.25).spent(ledger)["epsilon"], 6)  # 0.8^2 + 0.6^2 = 1
      4.377178

    Reference: Dong, Roth, Su, "Gaussian Differential Privacy", 2019, arXiv:1905.02383; Koskela,
    Jälkö, Honkela 2020, arXiv:1906.03049.
    """
    plan, last = accountant.spent, accountant.max_rounds
    own, delta = accountant.entry, accountant.delta
    assert own is not None
    assert delta is not None

    def figures(parts: Parts, round: int) -> dict[str, float]:
        names = plan(0)
        methods = {name: "rdp" if name == "epsilon_rdp" else method for name in names}
        return {name: composed_epsilon(parts, delta, by, round) for name, by in methods.items()}

    def spent(rounds: Any) -> dict[str, float]:
        if is_count(rounds):
            return plan(rounds)
        if any(map(is_traced, own.numbers)):
            return plan(0)  # raises
        past = read(rounds)
        others = past.others(own)
        check_composable(others, own)
        if past.unaccounted:
            return lost(plan)
        return figures(past.parts, past.round) if others else plan(past.of(own))

    @functools.lru_cache(maxsize=16)
    def allowed(others: Parts, round: int, budget: float) -> int:
        """Rounds under this mechanism that the budget has room for, beside the others'."""

        def holds(rounds: int, interval: float = INTERVAL) -> bool:
            parts = (*others, (own, rounds)) if rounds else others
            return composed_epsilon(parts, delta, method, round + rounds, interval) <= budget

        if not holds(0):
            return -1
        rough = largest_count(lambda rounds: holds(rounds, COARSE))
        return rough + largest_count(lambda more: holds(rough + more))

    def last_round(state: RoundState) -> int | None:
        if any(map(is_traced, own.numbers)):
            return last
        past = read(state)
        others = past.others(own)
        check_composable(others, own)
        if budget is None or math.isinf(budget) or not (others or past.unaccounted):
            return last
        if past.unaccounted:
            return -1
        foreign = sum(rounds for _, rounds in others)
        more = allowed(others, foreign, budget)
        if more < 0:
            return -1
        return foreign + more if planned is None else min(foreign + more, planned)

    return accountant._replace(spent=spent, last_round=last_round)


def check_composable(others: Parts, own: Entry) -> None:
    """Raises ValueError where a state has seen what does not compose with this mechanism.

    Example:
      >>> check_composable(((Entry(TREE, (1.0, 8.0, 8.0)), 3),), Entry(POISSON, (1.0, 0.5, 0.0)))
    """
    for other, _ in others:
        if family(other) is None or family(other) != family(own):
            raise ValueError(incompatible(other, own))


def family(entry: Entry) -> Any:
    """Mechanisms of one family compose: equal neighbours, equal adversary; None: with none."""
    if entry.kind in (POISSON, TREE, MATRIX):
        return "central"
    if entry.kind == LOCAL:
        return "local", entry.numbers[1]
    return "discrete" if entry.kind == DISCRETE else None


@functools.lru_cache(maxsize=64)
def composed_epsilon(
    parts: Parts, delta: float, method: Method, round: int, interval: float = INTERVAL
) -> float:
    """Epsilon of rounds under several mechanisms of one family.

    Args:
      parts: mechanisms and the rounds under each.
      delta: of the whole.
      method: "pld" or "rdp", where Poisson cohorts have a part.
      round: rounds in all, which bound how often a client had its turn.
      interval: discretisation of privacy losses.

    Returns:
      epsilon, an upper bound.

    Example:
      >>> parts = ((Entry(POISSON, (1.0, 1.0, 0.0)), 4), (Entry(POISSON, (2.0, 1.0, 0.0)), 4))
      >>> composed_epsilon(parts, 1e-5, "pld", 8) == gdp_epsilon(1e-5, 5**0.5)
      True
    """
    if not parts:
        return 0.0
    if parts[0][0].kind == DISCRETE:
        return rounds_epsilon([(entry.numbers, rounds) for entry, rounds in parts], delta=delta)
    squares, sampled, slips = 0.0, [], 0.0
    for entry, rounds in parts:
        z = entry.numbers[0]
        if entry.kind == POISSON:
            _, q, overflow = entry.numbers[:3]
            if q == 0:
                continue
            slips += rounds * overflow
            if q < 1 and z > 0:
                sampled.append((z, q, rounds))
                continue
        if z == 0:
            return math.inf
        squares += sensitivity_squared(entry, rounds, round) / z**2
    mu = math.sqrt(squares)

    def epsilon_at(rest: float) -> float:
        return _epsilon(tuple(sampled), mu, rest, method, interval)

    return set_aside(epsilon_at, delta, slips)


def sensitivity_squared(entry: Entry, rounds: int, round: int) -> float:
    """How far a client can move what was released in `rounds` rounds, in units of `clip`, squared.

    Args:
      entry: of an exactly Gaussian mechanism.
      rounds: under it.
      round: rounds in all: of rounds that take turns, a client has no more than its share of these.

    Example:
      >>> sensitivity_squared(Entry(TREE, (1.0, 8.0, 8.0)), 4, 4)
      3.0
    """
    if entry.kind == TREE:
        num_rounds, apart = int(entry.numbers[1]), int(entry.numbers[2])
        by_round = tree_sensitivities(num_rounds, apart) ** 2
        return float(by_round[min(rounds, num_rounds) - 1].round(9))
    if entry.kind == MATRIX:
        return 1.0  # of all its rounds: what some of them have spent is not more
    if entry.kind == LOCAL:
        _, sensitivity, turns = entry.numbers[:3]
        return sensitivity**2 * min(rounds, -(-round // int(turns)))
    return float(rounds)


def set_aside(epsilon_at: Callable[[float], float], delta: float, slips: float) -> float:
    r"""Epsilon where what is run differs from what is accounted for with probability `slips`.

    On either of two neighbouring populations, so that it is
    :math:`(\varepsilon, \delta + (1 + e^\varepsilon) p)`-private where what is accounted for is
    :math:`(\varepsilon, \delta)`-private. That share of `delta` is set aside.

    Args:
      epsilon_at: ``(delta) -> epsilon`` of what is accounted for.
      delta: of the whole.
      slips: `p`.

    Returns:
      epsilon; infinity where `slips` alone exceed delta.

    Example:
      >>> set_aside(lambda delta: 1.0, 1e-5, 1e-9), set_aside(lambda delta: 1.0, 1e-5, 1e-3)
      (1.0, inf)
    """
    first = epsilon_at(delta)
    if slips == 0 or math.isinf(first):
        return first
    if first > 700:  # e^epsilon is no float
        return math.inf
    # Set aside for an epsilon that is a little larger, then see that it is not exceeded.
    for room in (0.001, 0.01, 0.1, 0.2, 0.5, 1.0):
        rest = delta - (1 + math.exp(first + room)) * slips
        if rest <= 0:
            break
        again = epsilon_at(rest)
        if again <= first + room:
            return again
    return math.inf


def _epsilon(
    sampled: accounting.Sampled, mu: float, delta: float, method: Method, interval: float
) -> float:
    """Epsilon of Poisson-sampled Gaussians ``(z, q, rounds)`` and one Gaussian of this `mu`."""
    if not sampled and method == "pld":
        return gdp_epsilon(delta, mu)
    if method == "rdp":
        return accounting.mixed_rdp_epsilon(sampled, mu, delta)
    loss = accounting.mixed(sampled, mu, interval)
    return float(loss.get_epsilon_for_delta(delta))
