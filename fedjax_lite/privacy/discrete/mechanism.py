"""The distributed discrete Gaussian: privacy under secure aggregation, without a trusted server."""

from __future__ import annotations

import math

from fedjax_lite.checks.arguments import check_count
from fedjax_lite.checks.made import made
from fedjax_lite.privacy.accounting.accountants import stated_noise
from fedjax_lite.privacy.accounting.calibrate_noise import largest_count
from fedjax_lite.privacy.accounting.discrete_losses import rounds_epsilon
from fedjax_lite.privacy.accounting.history import with_history
from fedjax_lite.privacy.arguments import check_delta, is_traced
from fedjax_lite.privacy.discrete.grid import (
    Grid,
    grid_numbers,
    grid_rho,
    least_multiplier,
    make_grid,
)
from fedjax_lite.privacy.discrete.wire import modular_mean, noisy_codes
from fedjax_lite.round.ledger import DISCRETE
from fedjax_lite.round.sampling import uniform
from fedjax_lite.types import Accountant, Entry, Mechanism, Sampler


@made
def distributed_discrete_gaussian(
    *,
    clip: float,
    cohort_size: int,
    dimension: int,
    delta: float,
    noise_multiplier: float | None = None,
    epsilon: float | None = None,
    num_rounds: int | None = None,
    bits: int = 16,
    min_clients: int | None = None,
    beta: float = math.exp(-0.5),
    tail: float = 4.0,
    sampler: Sampler | None = None,
    rotation_seed: int = 0,
) -> Mechanism:
    r"""Differential privacy from noise that clients add in integers, under a modular sum.

    Client `i` clips its update to norm `c`, rotates it by a randomised Hadamard transform, scales
    it to a grid of step gamma, rounds at random (again, until the norm's bound holds) and adds
    discrete Gaussian noise; what it sends is

    .. math::  y_i = R(H D x_i / \gamma) + \mathcal{N}_{\mathbb{Z}}(0, \sigma^2/\gamma^2) \bmod 2^b.

    The server sees only the sum modulo ``2**b`` (`fedjax_lite.crypto.secure_sum` would give it, by
    the same additions), centres it, rotates back, scales by gamma and divides by `cohort_size`.

    Args:
      clip: `c`, the l2 norm of an update, at most.
      cohort_size: clients a round; also the fixed denominator.
      dimension: coordinates of an update, e.g. the number of parameters.
      delta: of the guarantee.
      noise_multiplier: `z`: the noise of `min_clients` clients together has standard deviation
        `z c` a coordinate; 0 is NOT PRIVATE, and said so.
      epsilon: the budget of the run. Without `noise_multiplier` the noise is calibrated for
        `num_rounds` rounds; with it the run stops after the last round within the budget.
      num_rounds: rounds of the whole run, which stops there; needed to calibrate.
      bits: `b`, 2 to 24: what a coordinate takes on the wire.
      min_clients: fewer survivors abort the round (its aggregate is zero), since their noise
        would not do; default `cohort_size`: no drop-outs. Take it as secure aggregation's
        threshold.
      beta: rounding is repeated until a bound on the norm holds that it meets with probability
        ``1 - beta``; the paper's choice is ``exp(-1/2)``.
      tail: `k`: the ring holds `k` standard deviations of a coordinate of the sum on either side,
        even where all clients send the same update.
      sampler: who takes part; default ``uniform(cohort_size)``.
      rotation_seed: of the signs, which are public and the same in all rounds.

    Returns:
      A `Mechanism`.

    Raises:
      ValueError: if neither noise nor budget is given, a number is out of range, or `bits` are too
        few for a noise that the theorem covers.

    Guarantees:
      (epsilon, delta) by `rounds_epsilon`: a round's Rényi divergence is bounded by the paper's
      theorem (`concentrated`) and, where the noise is about half a step of the grid, computed
      directly (`discrete_sum.divergence`); rounds add up. The unit is one client, whose vector is
      replaced by zeros. Every round is
      counted in full: nothing is gained by sampling, so any sampler will do. It presumes that
      `min_clients` of the survivors are honest about their noise, that the server learns the
      modular sum only, and that drop-outs do not depend on the data.
      A coordinate wraps around with probability about ``2 exp(-k^2 / 2)`` or less over the signs
      (tail 4: 6.7e-4, if all clients send the same update of norm `c`; far less otherwise). That
      costs accuracy, not privacy.
      The noise is a function of the clients' keys, which the server must not know; here it only
      simulates that. Otherwise as all mechanisms, with a key that serves one run (see
      `fedjax_lite.privacy`).

    Example:
      >>> import fedjax_lite as fl
      >>> privacy = distributed_discrete_gaussian(
      ...     clip=1.0, cohort_size=100, dimension=1000, delta=1e-5, noise_multiplier=1.0)
      >>> privacy.accountant.spent(1)["epsilon"] < 4.75
      True

    Reference: Kairouz, Liu, Steinke, "The Distributed Discrete Gaussian Mechanism for Federated
    Learning with Secure Aggregation", 2021, arXiv:2102.06387.
    """
    check_count(cohort_size, "cohort_size", minimum=1)
    check_delta(delta)
    if is_traced(noise_multiplier):
        raise TypeError(
            "noise_multiplier must be a plain number: the grid of integers depends on it, so it "
            "cannot be traced; loop over it in Python instead of a sweep"
        )
    min_clients = cohort_size if min_clients is None else min_clients
    check_count(min_clients, "min_clients", minimum=1)
    if min_clients > cohort_size:
        raise ValueError(
            f"min_clients must be at most cohort_size, got {min_clients} of {cohort_size}"
        )
    if num_rounds is not None:
        check_count(num_rounds, "num_rounds", minimum=1)

    def grid_of(multiplier: float) -> Grid:
        return make_grid(
            clip=clip,
            cohort_size=cohort_size,
            dimension=dimension,
            stddev=multiplier * clip / math.sqrt(min_clients),
            bits=bits,
            beta=beta,
            tail=tail,
            rotation_seed=rotation_seed,
        )

    def numbers_of(grid: Grid) -> tuple[float, ...]:
        return grid_numbers(grid, num_clients=min_clients, most_clients=cohort_size)

    def calibrate(budget: float) -> float:
        rounds = num_rounds
        if rounds is None:
            raise ValueError("num_rounds must be given with epsilon: they share the budget")
        return least_multiplier(
            lambda z: rounds_epsilon([(numbers_of(grid_of(z)), rounds)], delta=delta), budget
        )

    z = stated_noise(epsilon=epsilon, noise_multiplier=noise_multiplier, calibrate=calibrate)
    grid = grid_of(z)
    rho = grid_rho(grid, num_clients=min_clients, most_clients=cohort_size)

    entry = Entry(DISCRETE, numbers_of(grid))

    def spent(rounds: int) -> dict[str, float]:
        check_count(rounds, "rounds", minimum=0)
        return {"epsilon": rounds_epsilon([(entry.numbers, rounds)], delta=delta)}

    max_rounds = num_rounds
    if epsilon is not None and noise_multiplier is not None:
        if spent(1)["epsilon"] > epsilon:
            raise ValueError(
                f"epsilon={epsilon:g} does not allow one round, which costs "
                f"{spent(1)['epsilon']:.4g} at noise_multiplier={z}; add noise"
            )
        lasts = largest_count(lambda rounds: spent(rounds)["epsilon"] <= epsilon)
        max_rounds = lasts if num_rounds is None else min(lasts, num_rounds)
    description = (
        f"distributed discrete Gaussian: one client's update replaced by zeros; z={z:.6g} with "
        f"{min_clients} or more survivors, {bits} bits a coordinate, {rho:.4g}-zCDP a round, "
        f"delta={delta:g}; no amplification by sampling"
    )
    accountant = Accountant(
        spent,
        max_rounds,
        description if z else f"NOT PRIVATE: no noise; {description}",
        delta,
        noise_multiplier=z,
        every_round=spent,
        entry=entry,
        chosen=entry,  # nothing was gained by sampling
    )
    return Mechanism(
        sampler=uniform(cohort_size) if sampler is None else sampler,
        aggregator=modular_mean(grid, cohort_size=cohort_size, min_clients=min_clients),
        accountant=with_history(accountant, budget=epsilon, planned=num_rounds),
        uplink=noisy_codes(grid, size=dimension),
    )
