"""cyclic(): every client once in each epoch of rounds."""

from __future__ import annotations

from typing import NamedTuple

import jax
import jax.numpy as jnp

from fedjax_lite.checks.arguments import check_count
from fedjax_lite.checks.made import made
from fedjax_lite.engine.shuffle import shuffle_index
from fedjax_lite.round.sampling import check_population
from fedjax_lite.types import Array, Cohort, Key, Sampler


class CyclicState(NamedTuple):
    """Whose turn it is."""

    round: Array
    """int32 scalar: rounds drawn so far."""


@made
def cyclic(cohort_size: int, *, reshuffle: bool = False, seed: int = 0) -> Sampler:
    r"""Every client once in each epoch of :math:`\lceil N / m \rceil` rounds.

    The order is a permutation keyed by `seed`, so it depends neither on the run's key nor on data;
    round `r` takes its places ``m r .. m r + m - 1``, modulo the epoch. Where `m` does not divide
    `N`, the last cohort of an epoch has empty slots. O(m) work for any population.

    Args:
      cohort_size: clients a round, `m`, at most the population.
      reshuffle: whether each epoch has an order of its own; else it is always the same, and two
        turns of a client lie exactly an epoch apart.
      seed: of the order.

    Raises:
      ValueError: if `m` is below 1, or (in ``init``) above the population.

    Example:
      >>> sampler = cyclic(2)
      >>> state, seen = sampler.init(5), []
      >>> for _ in range(3):
      ...     state, cohort = sampler.sample(jax.random.key(0), state, jnp.ones(5))
      ...     seen += cohort.ids[cohort.mask].tolist()
      >>> sorted(seen)
      [0, 1, 2, 3, 4]

    Reference: Cho, Sharma, Joshi, Xu, Kale, Zhang, "On the Convergence of Federated Averaging with
    Cyclic Client Participation", 2023, arXiv:2302.03109.
    """
    check_count(cohort_size, "cohort_size", minimum=1)
    check_count(seed, "seed", minimum=0)
    check = check_population(cohort_size)

    def init(num_clients: int) -> CyclicState:
        check(num_clients)
        return CyclicState(jnp.int32(0))

    def sample(key: Key, state: CyclicState, sizes: Array) -> tuple[CyclicState, Cohort]:
        num_clients = sizes.shape[0]
        num_rounds = -(-num_clients // cohort_size)
        epoch, turn = state.round // num_rounds, state.round % num_rounds
        places = turn * cohort_size + jnp.arange(cohort_size, dtype=jnp.int32)
        there = places < num_clients
        order = jax.random.key(seed)
        if reshuffle:
            order = jax.random.fold_in(order, epoch)
        ids = shuffle_index(order, jnp.where(there, places, 0), num_clients)
        return CyclicState(state.round + 1), Cohort(ids.astype(jnp.int32), there)

    return Sampler(init, sample)
