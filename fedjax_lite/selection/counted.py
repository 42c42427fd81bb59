"""counted(): how often each client took part, and how unevenly, in the history."""

from __future__ import annotations

from typing import Any, NamedTuple

import jax.numpy as jnp

from fedjax_lite.checks.arguments import check_count, check_slot
from fedjax_lite.checks.made import made
from fedjax_lite.engine.one_pass import measured_by
from fedjax_lite.types import Array, Cohort, Key, PyTree, Sampler


class Counts(NamedTuple):
    """Who took part how often."""

    inner: PyTree
    """The sampler's own state."""
    times: Array
    """int32 `[N]`."""
    above: Array
    """int32 `[B]`: clients that took part more than 0, 1, 2 ... times."""
    measured: dict[str, Array]
    """The inner sampler's metrics."""

    @property
    def metrics(self) -> dict[str, Array]:
        """``participation_gini`` and ``num_participants``, beside the inner sampler's own."""
        num, total = self.times.shape[0], self.above.sum()
        above = self.above.astype(jnp.float32)
        spread = (above * (num - above)).sum()
        gini = spread / (num * jnp.maximum(total, 1).astype(jnp.float32))
        return {**self.measured, "participation_gini": gini, "num_participants": self.above[0]}


@made
def counted(sampler: Sampler, *, of: str = "drawn", most: int = 1024) -> Sampler:
    r"""The same sampler, which counts how often each client takes part.

    .. math::
        G = \frac{\sum_{ij} |t_i - t_j|}{2 N^2 \bar t}
          = \frac{\sum_{b \ge 0} F_b\,(N - F_b)}{N \sum_i t_i}, \qquad F_b = |\{i : t_i > b\}|

    0 where all take part equally often, towards 1 where a few always do. `F` is kept up to date by
    one addition a client of the cohort, so a round costs O(C + most) whatever the population.

    Args:
      sampler: any.
      of: "drawn", who is in a cohort; or "trained", who counted in the round: drop-outs, late
        clients and those that a prologue left out are not counted, and since that is known after
        the round only, a streamed population refuses it.
      most: `B`; `participation_gini` no longer tells clients apart that came more often.

    Returns:
      A `Sampler`: ``state.sampler.times`` are the counts; the history has ``participation_gini``
      and ``num_participants``, clients that ever took part.

    Raises:
      TypeError: if `sampler` is none.
      ValueError: if `of` is unknown or `most` below 1.

    Example:
      >>> import jax
      >>> from fedjax_lite.round.sampling import uniform
      >>> sampler = counted(uniform(1))
      >>> state, _ = sampler.sample(jax.random.key(0), sampler.init(4), jnp.ones(4))
      >>> float(state.metrics["participation_gini"]), int(state.times.sum())
      (0.75, 1)
    """
    check_slot(sampler, "sampler", Sampler)
    if of not in ("drawn", "trained"):
        raise ValueError(f"of must be 'drawn' or 'trained', got {of!r}; give of='drawn'")
    check_count(most, "most", minimum=1)

    def init(num_clients: int) -> Counts:
        inner = sampler.init(num_clients)
        zeros = jnp.zeros(num_clients, jnp.int32), jnp.zeros(most, jnp.int32)
        return Counts(inner, *zeros, measured_by(inner))

    def count(state: Counts, cohort: Cohort) -> Counts:
        rows = jnp.where(cohort.mask, cohort.ids, state.times.shape[0])
        before = state.times.at[rows].get(mode="fill", fill_value=most)
        if sampler.repeats:  # the second time in a cohort is one more
            before = before + earlier(rows)
        times = state.times.at[rows].add(1, mode="drop")
        above = state.above.at[before].add(cohort.mask.astype(jnp.int32), mode="drop")
        return state._replace(times=times, above=above)

    def sample(key: Key, state: Counts, sizes: Array) -> tuple[Counts, Cohort]:
        inner, cohort = sampler.sample(key, state.inner, sizes)
        state = state._replace(inner=inner, measured=measured_by(inner))
        return (count(state, cohort) if of == "drawn" else state), cohort

    def learn(state: Counts, cohort: Cohort, metrics: dict[str, Any]) -> Counts:
        if sampler.learn is not None:
            inner = sampler.learn(state.inner, cohort, metrics)
            state = state._replace(inner=inner, measured=measured_by(inner))
        return count(state, cohort) if of == "trained" else state

    learns = sampler.learn is not None or of == "trained"
    told = sampler.at
    at = None if told is None else lambda errand: counted(told(errand), of=of, most=most)
    return sampler._replace(
        init=init, sample=sample, at=at, learn=learn if learns else None, made=None
    )


def earlier(ids: Array) -> Array:
    """How many slots before each hold the same client, int32 `[C]`.

    Example:
      >>> earlier(jnp.array([5, 2, 5, 5])).tolist()
      [0, 0, 1, 2]
    """
    order = jnp.argsort(ids, stable=True)
    ordered = ids[order]
    rank = jnp.arange(len(ids)) - jnp.searchsorted(ordered, ordered, side="left")
    return jnp.zeros(len(ids), jnp.int32).at[order].set(rank.astype(jnp.int32))
