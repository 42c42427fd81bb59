"""importance(): a cohort of fixed size with given inclusion probabilities."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp

from fedjax_lite.checks.arguments import check_count
from fedjax_lite.checks.made import made
from fedjax_lite.round.sampling import check_population
from fedjax_lite.selection.probabilities import (
    check_length,
    check_scores,
    inclusion_probabilities,
)
from fedjax_lite.types import Array, Cohort, Key, PyTree, Sampler


@made
def importance(cohort_size: int, probabilities: Any = None) -> Sampler:
    r"""`m` different clients, each of them with a probability that is known exactly.

    .. math::  \pi_i = \min(1, s\,u_i), \qquad \textstyle\sum_i \pi_i = m

    Systematic sampling in random order: the :math:`\pi_i` are laid end to end, and the clients are
    taken in whose intervals :math:`U, U + 1, \ldots, U + m - 1` fall, `U` uniform in `[0, 1)`. So,
    unlike draws one by one without replacement (`fedjax_lite.weighted`), `pi` is what was asked
    for, and `fedjax_lite.selection.unbiased` weighs by its inverse. O(N log N) work.

    Args:
      cohort_size: clients a round, `m`, at most the population.
      probabilities: `u`, `[N]`, not negative; they need not sum to 1, and may be traced. None:
        the clients' examples.

    Returns:
      A `Sampler`. Where fewer than `m` clients have a positive `u`, the rest of the cohort is
      empty.

    Raises:
      ValueError: if `m` is below 1 or a probability negative, or (in ``init``) there is not one a
        client or `m` is above the population.

    Example:
      >>> sampler = importance(2, [1.0, 0.0, 1.0, 9.0])
      >>> cohort = sampler.sample(jax.random.key(0), (), jnp.ones(4))[1]
      >>> 3 in cohort.ids.tolist(), sampler.inclusion(jnp.ones(4)).tolist()
      (True, [0.5, 0.0, 0.5, 1.0])

    Reference: Madow, "On the Theory of Systematic Sampling, II", 1949.
    """
    check_count(cohort_size, "cohort_size", minimum=1)
    given = None if probabilities is None else check_scores(probabilities, "probabilities")
    check = check_population(cohort_size)

    def init(num_clients: int) -> PyTree:
        check_length(given, "probabilities", num_clients)
        return check(num_clients)

    def inclusion(sizes: Array) -> Array:
        return inclusion_probabilities(sizes if given is None else given, cohort_size)

    def sample(key: Key, state: PyTree, sizes: Array) -> tuple[PyTree, Cohort]:
        key_order, key_point = jax.random.split(key)
        chances = inclusion(sizes)
        order = jax.random.permutation(key_order, sizes.shape[0]).astype(jnp.int32)
        ends = jnp.cumsum(chances[order])
        count = jnp.minimum(cohort_size, (chances > 0).sum())
        ends = ends * (count / jnp.where(ends[-1] > 0, ends[-1], 1))  # rounding: exactly so many
        places = jnp.arange(cohort_size)
        points = jax.random.uniform(key_point, (), ends.dtype) + places
        found = jnp.searchsorted(ends, points, side="right").clip(max=sizes.shape[0] - 1)
        # An interval of 1 may be longer by rounding, and hold two points.
        again = jnp.concatenate([jnp.zeros(1, bool), found[1:] == found[:-1]])
        mask = (places < count) & ~again & (chances[order[found]] > 0)
        return state, Cohort(order[found], mask)

    return Sampler(init, sample, inclusion=inclusion)
