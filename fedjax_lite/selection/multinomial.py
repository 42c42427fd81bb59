"""multinomial(): independent draws with given probabilities, one client perhaps several times."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp

from fedjax_lite.checks.arguments import check_count
from fedjax_lite.checks.made import made
from fedjax_lite.selection.probabilities import check_length, check_scores
from fedjax_lite.types import Array, Cohort, Key, PyTree, Sampler


@made
def multinomial(cohort_size: int, probabilities: Any = None) -> Sampler:
    r"""`m` independent draws, client `i` with probability `q_i` in each.

    A client may come up several times, and counts as often. With ``q_i = n_i / sum_j n_j``, the
    default, the mean with weight 1 for every draw (``weighting="uniform"``) has the expectation of
    :math:`\sum_i p_i \Delta_i` over all clients: scheme I of Li et al. With other `q`,
    `fedjax_lite.selection.unbiased` weighs each draw by :math:`p_i / (m q_i)`.

    Args:
      cohort_size: draws a round, `m`; it may be larger than the population.
      probabilities: `q`, `[N]`, not negative; they need not sum to 1, and may be traced. None:
        in proportion to the clients' examples.

    Returns:
      A `Sampler` for clients that keep nothing between rounds; for others `importance` draws
      without replacement.

    Raises:
      ValueError: if `m` is below 1 or a probability negative, or (in ``init``) there is not one a
        client.

    Example:
      >>> sampler = multinomial(4, [0.0, 1.0, 0.0])
      >>> sampler.sample(jax.random.key(0), (), jnp.ones(3))[1].ids.tolist()
      [1, 1, 1, 1]

    Reference: Li, Huang, Yang, Wang, Zhang, "On the Convergence of FedAvg on Non-IID Data", 2020,
    arXiv:1907.02189.
    """
    check_count(cohort_size, "cohort_size", minimum=1)
    given = None if probabilities is None else check_scores(probabilities, "probabilities")

    def shares(sizes: Array) -> tuple[Array, Array]:
        scores = jnp.asarray(sizes if given is None else given, jnp.result_type(float))
        anybody = scores.sum() > 0
        return jnp.where(anybody, scores / jnp.where(anybody, scores.sum(), 1), 0), anybody

    def init(num_clients: int) -> PyTree:
        check_length(given, "probabilities", num_clients)
        return ()

    def sample(key: Key, state: PyTree, sizes: Array) -> tuple[PyTree, Cohort]:
        odds, anybody = shares(sizes)
        ends = jnp.cumsum(odds)
        points = jax.random.uniform(key, (cohort_size,), ends.dtype) * ends[-1]
        # The first place whose end lies above the point: never one of probability 0.
        ids = jnp.searchsorted(ends, points, side="right")
        ids = jnp.minimum(ids, sizes.shape[0] - 1).astype(jnp.int32)
        return state, Cohort(ids, jnp.broadcast_to(anybody, ids.shape) & (odds[ids] > 0))

    return Sampler(
        init, sample, inclusion=lambda sizes: cohort_size * shares(sizes)[0], repeats=True
    )
