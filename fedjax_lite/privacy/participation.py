"""Samplers that an accountant can rely on: declared Poisson sampling, and once an epoch."""

from __future__ import annotations

import math
from typing import NamedTuple

import jax
import jax.numpy as jnp

from fedjax_lite.checks.arguments import check_count, check_fraction
from fedjax_lite.checks.made import made, signed
from fedjax_lite.engine.shuffle import shuffle_index
from fedjax_lite.privacy.arguments import check_population
from fedjax_lite.round.sampling import poisson, poisson_capacity
from fedjax_lite.types import Array, Cohort, Key, PyTree, Sampler

TAIL = 1e-40
"""Bound of the probability that a round's cohort overflows the default capacity. What it costs in
delta is multiplied by e^epsilon: at 1e-16 weak noise had no finite epsilon."""
DRAWS = 2**23
"""float32 draws are multiples of 1 / DRAWS."""


class PoissonCohorts(NamedTuple):
    """Poisson sampling of a population of known size."""

    sampler: Sampler
    rate: float
    """The probability that is realised: `sampling_rate`, rounded down to a multiple of 2^-23."""
    capacity: int
    overflow: float
    """Probability that more clients come up in a round than there is room for."""


def poisson_cohorts(
    num_clients: int, sampling_rate: float, *, capacity: int | None = None
) -> PoissonCohorts:
    """`sampling.poisson` for accounting: a declared population and a known overflow.

    Args:
      num_clients: `N`; a run on another population is refused when it starts.
      sampling_rate: `q` in `(0, 1]`.
      capacity: slots of a cohort. Default: the smallest for which a Chernoff bound keeps the
        probability of an overflow in a round below 1e-40. Empty slots cost next to nothing under
        the default strategy. Clients without room are left out and counted in
        ``state.sampler.overflow``; the accountant adds what that can cost to delta.

    Returns:
      `PoissonCohorts`.

    Raises:
      ValueError: if an amount is out of range.

    Example:
      >>> cohorts = poisson_cohorts(1000, 0.01)
      >>> cohorts.capacity, cohorts.overflow < 1e-40
      (76, True)
      >>> cohorts.sampler.init(999)
      Traceback (most recent call last):
      ...
      ValueError: num_clients: privacy was declared for 1000 clients, but the population has 999
    """
    check_population(num_clients, sampling_rate * num_clients, "sampling_rate * num_clients")
    if capacity is None:
        capacity = poisson_capacity(num_clients, sampling_rate, tail=TAIL)
    check_count(capacity, "capacity", minimum=1)
    # Rounded down: what is realised must not exceed what is accounted for.
    rate = 1.0 if sampling_rate == 1 else math.floor(sampling_rate * DRAWS) / DRAWS
    inner = poisson(rate, capacity=capacity)

    def init(size: int) -> PyTree:
        _check_declared(num_clients, size)
        return inner.init(size)

    overflow = overflow_probability(num_clients, sampling_rate, capacity)
    sampler = signed(Sampler(init, inner.sample), inner.made)
    return PoissonCohorts(sampler, rate, capacity, overflow)


def overflow_probability(num_clients: int, sampling_rate: float, capacity: int) -> float:
    """``P(Binomial(N, q) > capacity)``.

    Example:
      >>> f"{overflow_probability(1000, 0.01, 20):.4e}"
      '1.4965e-03'
    """
    check_fraction(sampling_rate, "sampling_rate")
    check_count(num_clients, "num_clients", minimum=0)
    check_count(capacity, "capacity", minimum=0)
    from scipy.stats import binom

    return float(binom.sf(capacity, num_clients, sampling_rate))


class Turns(NamedTuple):
    """Whose turn it is."""

    round: Array
    """int32: rounds done."""


@made
def once_an_epoch(num_clients: int, cohort_size: int, *, seed: int = 0) -> Sampler:
    """Every client once in each ``ceil(N / m)`` rounds, always in the same order.

    The order is a permutation keyed by `seed` and nothing else, so it does not depend on data and
    a restart goes on where it was. Two rounds of one client lie exactly ``ceil(N / m)`` apart.

    Args:
      num_clients: `N`; a run on another population is refused when it starts.
      cohort_size: `m`, the cohort's length; the last round of an epoch may have empty slots.
      seed: of the order.

    Returns:
      A `Sampler`.

    Raises:
      ValueError: if an amount is out of range.

    Example:
      >>> sampler = once_an_epoch(5, 2)
      >>> state, seen = sampler.init(5), []
      >>> for _ in range(3):
      ...     state, cohort = sampler.sample(jax.random.key(0), state, jnp.ones(5))
      ...     seen += cohort.ids[cohort.mask].tolist()
      >>> sorted(seen)
      [0, 1, 2, 3, 4]
    """
    check_count(cohort_size, "cohort_size", minimum=1)
    check_count(seed, "seed", minimum=0)
    check_population(num_clients, cohort_size, "cohort_size")
    num_rounds = epoch_rounds(num_clients, cohort_size)

    def init(size: int) -> Turns:
        _check_declared(num_clients, size)
        return Turns(jnp.int32(0))

    def sample(key: Key, state: Turns, sizes: Array) -> tuple[Turns, Cohort]:
        first = (state.round % num_rounds) * cohort_size
        places = first + jnp.arange(cohort_size, dtype=jnp.int32)
        there = places < num_clients
        ids = shuffle_index(jax.random.key(seed), jnp.where(there, places, 0), num_clients)
        return Turns(state.round + 1), Cohort(ids.astype(jnp.int32), there)

    return Sampler(init, sample)


def epoch_rounds(num_clients: int, cohort_size: int) -> int:
    """Rounds until everyone had a turn.

    Example:
      >>> epoch_rounds(10, 4)
      3
    """
    return -(-num_clients // cohort_size)


def _check_declared(num_clients: int, size: int) -> None:
    if size != num_clients:
        raise ValueError(
            f"num_clients: privacy was declared for {num_clients} clients, but the population "
            f"has {size}"
        )
