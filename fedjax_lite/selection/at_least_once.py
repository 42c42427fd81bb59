"""at_least_once(): random cohorts in which nobody waits for longer than so many rounds."""

from __future__ import annotations

from typing import NamedTuple

import jax
import jax.numpy as jnp

from fedjax_lite.checks.arguments import check_count
from fedjax_lite.checks.made import made
from fedjax_lite.round.sampling import check_population
from fedjax_lite.types import Array, Cohort, Key, Sampler


class Waiting(NamedTuple):
    """How long each client has waited."""

    rounds: Array
    """int32 `[N]`: rounds since it was drawn last, or since the beginning."""


@made
def at_least_once(cohort_size: int, *, every: int) -> Sampler:
    r"""A uniform sample in which every client comes up at least once in any `k` rounds in a row.

    A client that has waited `w` rounds must come within its slack, ``k - 1 - w`` rounds. In each
    round those of the least slack are forced into the cohort, as few as leave all deadlines
    feasible, :math:`\max_r (r - m s_{(r)})` over the clients in order of their slack `s`; ties are
    broken at random. The other places are a uniform sample of the rest. With ``m k = N`` everybody
    comes exactly once in `k` rounds; the larger `k` is, the closer it comes to
    `fedjax_lite.uniform`. O(N log N) work.

    Args:
      cohort_size: clients a round, `m`, at most the population.
      every: `k` rounds, at least ``N / m``.

    Raises:
      ValueError: if an amount is below 1, or (in ``init``) `m` is above the population or `k`
        rounds have too few places for it.

    Example:
      >>> sampler = at_least_once(2, every=3)
      >>> state, seen = sampler.init(6), set()
      >>> for i in range(3):
      ...     state, cohort = sampler.sample(jax.random.key(i), state, jnp.ones(6))
      ...     seen |= set(cohort.ids.tolist())
      >>> len(seen)
      6
    """
    check_count(cohort_size, "cohort_size", minimum=1)
    check_count(every, "every", minimum=1)
    check = check_population(cohort_size)

    def init(num_clients: int) -> Waiting:
        check(num_clients)
        if cohort_size * every < num_clients:
            raise ValueError(
                f"every must be at least {-(-num_clients // cohort_size)} rounds, got {every}: "
                f"cohorts of {cohort_size} have {cohort_size * every} places by then, for "
                f"{num_clients} clients"
            )
        return Waiting(jnp.zeros(num_clients, jnp.int32))

    def sample(key: Key, state: Waiting, sizes: Array) -> tuple[Waiting, Cohort]:
        num_clients = sizes.shape[0]
        draws = jax.random.uniform(key, (num_clients,))
        slack = every - 1 - state.rounds
        order = jnp.lexsort((draws, slack))
        rank = jnp.arange(1, num_clients + 1)
        forced = jnp.maximum((rank - cohort_size * slack[order]).max(), 0)
        is_forced = jnp.zeros(num_clients, bool).at[order].set(rank <= forced)
        _, ids = jax.lax.top_k(draws + is_forced, cohort_size)
        drawn = jnp.zeros(num_clients, bool).at[ids].set(True)
        waited = jnp.where(drawn, 0, state.rounds + 1)
        return Waiting(waited), Cohort(ids.astype(jnp.int32), jnp.ones(cohort_size, bool))

    return Sampler(init, sample)
