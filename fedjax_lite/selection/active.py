"""active(): clients whose last loss was high come up more often."""

from __future__ import annotations

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from fedjax_lite.checks.arguments import check_count, check_fraction, check_non_negative
from fedjax_lite.checks.made import made
from fedjax_lite.round.sampling import check_population
from fedjax_lite.selection.reported import reported, written
from fedjax_lite.types import Array, Cohort, Key, Sampler


class Valued(NamedTuple):
    """What the sampler knows of the clients."""

    values: Array
    """float32 `[N]`: the metric that each reported last."""
    known: Array
    """bool `[N]`: whether it ever did."""


@made
def active(
    cohort_size: int,
    *,
    metric: str = "train_loss",
    left_out: float | Array = 0.75,
    sharpness: float | Array = 0.01,
    uniform_share: float = 0.1,
) -> Sampler:
    r"""Active federated learning: the softmax of what clients reported last.

    .. math::  v_i = \sqrt{n_i}\;\bar\ell_i, \qquad P(i) \propto e^{\alpha_2 v_i}

    The share :math:`\alpha_1` of clients with the lowest `v` is left out, a share
    :math:`1 - \alpha_3` of the cohort is drawn one by one by `P` without replacement, the rest
    uniformly among all others. A client that has not reported yet is valued as the highest that
    has. Biased on purpose; clients without data are never drawn.

    Args:
      cohort_size: clients a round, `m`, at most the population.
      metric: of the clients, a scalar or a `Mean`: ``train_loss`` of most methods; a norm of the
        update makes the choice aware of gradients.
      left_out: :math:`\alpha_1` in `[0, 1]`.
      sharpness: :math:`\alpha_2` >= 0; with 0, and nobody left out, the draw is uniform.
      uniform_share: :math:`\alpha_3` in `[0, 1]`.

    Returns:
      A `Sampler` that learns from the rounds it drew: a streamed population refuses it.

    Raises:
      ValueError: if an amount is out of range, or (in a round) nobody reports `metric`.

    Example:
      >>> sampler = active(1, left_out=0.0, sharpness=100.0, uniform_share=0.0)
      >>> state, cohort = sampler.init(3), Cohort(jnp.arange(3), jnp.ones(3, bool))
      >>> state = sampler.learn(state, cohort, {"train_loss": jnp.array([1.0, 5.0, 2.0])})
      >>> sampler.sample(jax.random.key(0), state, jnp.ones(3))[1].ids.tolist()
      [1]

    Reference: Goetz, Malik, Bui, Moon, Liu, Kumar, "Active Federated Learning", 2019,
    arXiv:1909.12641.
    """
    check_count(cohort_size, "cohort_size", minimum=1)
    check_fraction(left_out, "left_out")
    check_non_negative(sharpness, "sharpness")
    check_fraction(uniform_share, "uniform_share")
    by_value = round((1 - uniform_share) * cohort_size)
    check = check_population(cohort_size)

    def init(num_clients: int) -> Valued:
        check(num_clients)
        return Valued(jnp.zeros(num_clients, jnp.float32), jnp.zeros(num_clients, bool))

    def sample(key: Key, state: Valued, sizes: Array) -> tuple[Valued, Cohort]:
        key_value, key_rest = jax.random.split(key)
        values = jnp.sqrt(sizes.astype(jnp.float32)) * state.values
        best = jnp.where(state.known.any(), jnp.where(state.known, values, -jnp.inf).max(), 0)
        values = jnp.where(state.known, values, best)
        # Noise breaks ties: where nobody is known, nobody is left out for his number.
        order = jnp.lexsort((jax.random.uniform(key_rest, values.shape), values))
        place = jnp.zeros(values.shape, jnp.int32).at[order].set(jnp.arange(len(values)))
        stays = (place >= jnp.floor(left_out * len(values))) & (sizes > 0)
        scores = sharpness * values + jax.random.gumbel(key_value, values.shape)
        high, first = jax.lax.top_k(jnp.where(stays, scores, -jnp.inf), max(by_value, 1))
        wanted = (high > -jnp.inf) & (jnp.arange(len(high)) < by_value)
        chosen = jnp.zeros(values.shape, bool).at[first].set(wanted)
        rest = jax.random.uniform(jax.random.fold_in(key_rest, 1), values.shape)
        rest = jnp.where(chosen, 2.0, jnp.where(sizes > 0, rest, -jnp.inf))
        found, ids = jax.lax.top_k(rest, cohort_size)
        return state, Cohort(ids.astype(jnp.int32), found > -jnp.inf)

    def learn(state: Valued, cohort: Cohort, metrics: dict[str, Any]) -> Valued:
        values = written(state.values, cohort, reported(metrics, metric))
        return Valued(values, written(state.known, cohort, True))

    return Sampler(init, sample, learn=learn)
