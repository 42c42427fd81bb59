"""Samplers: who takes part in a round, and who drops out of it."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp

from fedjax_lite.checks.arguments import check_count, check_fraction
from fedjax_lite.checks.made import made
from fedjax_lite.engine.shuffle import shuffle_index
from fedjax_lite.types import Array, Cohort, Key, PyTree, Sampler


@made
def everyone() -> Sampler:
    """Every client in every round.

    Example:
      >>> everyone().sample(jax.random.key(0), (), jnp.ones(3))[1].ids.tolist()
      [0, 1, 2]
    """

    def sample(key: Key, state: PyTree, sizes: Array) -> tuple[PyTree, Cohort]:
        ids = jnp.arange(sizes.shape[0], dtype=jnp.int32)
        return state, Cohort(ids, jnp.ones(ids.shape, bool))

    return Sampler(lambda num_clients: (), sample, inclusion=lambda sizes: jnp.ones(sizes.shape))


@made
def uniform(cohort_size: int) -> Sampler:
    """A uniform sample of `cohort_size` clients without replacement.

    The cohort is the first `C` places of a keyed permutation of the population: O(C) work for any
    population (see `shuffle_index`).

    Args:
      cohort_size: clients a round, `C`, at most the population.

    Raises:
      ValueError: if `cohort_size` is below 1, or (in ``init``) above the population.

    Example:
      >>> len(set(uniform(4).sample(jax.random.key(0), (), jnp.ones(9))[1].ids.tolist()))
      4
    """
    check_count(cohort_size, "cohort_size", minimum=1)

    def sample(key: Key, state: PyTree, sizes: Array) -> tuple[PyTree, Cohort]:
        places = jnp.arange(cohort_size, dtype=jnp.int32)
        return state, Cohort(shuffle_index(key, places, sizes.shape[0]), places >= 0)

    def inclusion(sizes: Array) -> Array:
        return jnp.full(sizes.shape, cohort_size / sizes.shape[0])

    return Sampler(check_population(cohort_size), sample, inclusion=inclusion)


@made
def weighted(cohort_size: int) -> Sampler:
    """`cohort_size` clients without replacement, drawn one by one in proportion to their sizes.

    The Gumbel top-k trick: the largest of ``log n_i + Gumbel``. Clients without data are never
    drawn; where fewer than `C` have data, the rest of the cohort is empty.

    Args:
      cohort_size: clients a round, `C`, at most the population.

    Raises:
      ValueError: if `cohort_size` is below 1, or (in ``init``) above the population.

    Example:
      >>> sorted(weighted(2).sample(jax.random.key(0), (), jnp.array([5, 0, 3]))[1].ids.tolist())
      [0, 2]

    Reference: Kool, van Hoof, Welling, "Stochastic Beams and Where to Find Them", 2019,
    arXiv:1903.06059.
    """
    check_count(cohort_size, "cohort_size", minimum=1)

    def sample(key: Key, state: PyTree, sizes: Array) -> tuple[PyTree, Cohort]:
        scores = jnp.log(sizes.astype(jnp.float32)) + jax.random.gumbel(key, sizes.shape)
        best, ids = jax.lax.top_k(scores, cohort_size)
        return state, Cohort(ids.astype(jnp.int32), best > -jnp.inf)

    return Sampler(check_population(cohort_size), sample)


class PoissonState(NamedTuple):
    """What a Poisson sampler remembers: clients that found no place, over all rounds."""

    overflow: Array


@made
def poisson(rate: float | Array, *, capacity: int | None = None) -> Sampler:
    """Every client takes part with probability `rate`, independently of the others.

    The cohort's length is `capacity`; slots beyond the realised cohort are empty. Where more
    clients come up than there are slots, a uniform subset stays and the others are counted in
    ``state.sampler.overflow``: an accountant that assumes Poisson sampling needs it to stay 0.

    Args:
      rate: `q` in `[0, 1]`, may be traced where `capacity` is given.
      capacity: slots `C`. Default: the smallest for which a Chernoff bound keeps the probability
        of an overflow in a round below 1e-9, ``P(X >= c) <= exp(-N KL(c/N || q))``.

    Raises:
      ValueError: if `rate` lies outside `[0, 1]` or `capacity` is below 1 or above the population.

    Example:
      >>> sampler = poisson(1.0)
      >>> state, cohort = sampler.sample(jax.random.key(0), sampler.init(3), jnp.ones(3))
      >>> sorted(cohort.ids.tolist()), int(state.overflow)
      ([0, 1, 2], 0)

    Reference: McMahan et al., "Learning Differentially Private Recurrent Language Models", 2018,
    arXiv:1710.06963.
    """
    check_fraction(rate, "rate")
    if capacity is not None:
        check_count(capacity, "capacity", minimum=1)
    elif isinstance(rate, jax.core.Tracer):
        raise ValueError("capacity must be given where rate is traced: it fixes the cohort's shape")

    def init(num_clients: int) -> PoissonState:
        if capacity is not None:
            check_population(capacity, "capacity")(num_clients)
        return PoissonState(jnp.int32(0))

    def sample(key: Key, state: PoissonState, sizes: Array) -> tuple[PoissonState, Cohort]:
        num_clients = sizes.shape[0]
        slots = capacity or poisson_capacity(num_clients, float(rate))
        draws = jax.random.uniform(key, (num_clients,))
        # The smallest draws: a uniform subset of those below the rate.
        best, ids = jax.lax.top_k(-draws, slots)
        overflow = jnp.maximum((draws < rate).sum(dtype=jnp.int32) - slots, 0)
        return PoissonState(state.overflow + overflow), Cohort(ids.astype(jnp.int32), -best < rate)

    # Whoever finds no place in a cohort is not counted in.
    return Sampler(init, sample, inclusion=lambda sizes: jnp.full(sizes.shape, rate, jnp.float32))


def poisson_capacity(num_clients: int, rate: float, *, tail: float = 1e-9) -> int:
    """The smallest `c` with ``exp(-N KL((c+1)/N || q)) <= tail``: overflow ``X > c`` is rarer.

    Example:
      >>> poisson_capacity(1000, 0.01)
      36
    """
    if rate <= 0:
        return 1
    if rate >= 1:
        return num_clients

    def exponent(count: int) -> float:
        share = count / num_clients
        rest = (1 - share) * math.log((1 - share) / (1 - rate)) if share < 1 else 0.0
        return num_clients * (share * math.log(share / rate) + rest)

    low, high = max(1, math.ceil(num_clients * rate)), num_clients
    while low < high:
        middle = (low + high) // 2
        if exponent(middle + 1) >= -math.log(tail):
            high = middle
        else:
            low = middle + 1
    return low


@made
def dropout(sampler: Sampler, rate: float | Array) -> Sampler:
    """Clients of a cohort that drop out: each is masked with probability `rate`.

    A dropped client leaves no trace in the round: no message, no metrics, its row unchanged.

    Args:
      sampler: who is asked.
      rate: probability of dropping out, in `[0, 1]`, may be traced.

    Raises:
      ValueError: if `rate` lies outside `[0, 1]`.

    Example:
      >>> bool(dropout(everyone(), 1.0).sample(jax.random.key(0), (), jnp.ones(3))[1].mask.any())
      False
    """
    check_fraction(rate, "rate")
    if not isinstance(sampler, Sampler):
        raise TypeError(f"sampler must be a Sampler, got {sampler!r}; was a factory not called?")

    def sample(key: Key, state: PyTree, sizes: Array) -> tuple[PyTree, Cohort]:
        key_sample, key_drop = jax.random.split(key)
        state, cohort = sampler.sample(key_sample, state, sizes)
        # Keyed by client, so that a drop-out does not depend on the slot.
        draws = jax.vmap(lambda i: jax.random.uniform(jax.random.fold_in(key_drop, i)))(cohort.ids)
        return state, cohort._replace(mask=cohort.mask & (draws >= rate))

    told, asked = sampler.at, sampler.inclusion
    at = None if told is None else lambda errand: dropout(told(errand), rate)
    inclusion = None if asked is None else lambda sizes: asked(sizes) * (1 - rate)
    return sampler._replace(sample=sample, at=at, inclusion=inclusion, made=None)


def check_population(cohort_size: int, name: str = "cohort_size") -> Callable[[int], tuple[()]]:
    """The `init` of a sampler without a state: refuses a population that is too small.

    Args:
      cohort_size: clients that it needs.
      name: of that argument.

    Example:
      >>> check_population(3)(5)
      ()
    """

    def init(num_clients: int) -> tuple[()]:
        if cohort_size > num_clients:
            raise ValueError(
                f"{name} must be at most the population, got {cohort_size} of {num_clients} "
                "clients; sample fewer or partition into more"
            )
        return ()

    return init
