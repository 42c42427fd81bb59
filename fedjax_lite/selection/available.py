"""available(): only clients that are there in this round are asked."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from fedjax_lite.checks.arguments import check_count, shown
from fedjax_lite.checks.made import made
from fedjax_lite.round.sampling import check_population
from fedjax_lite.types import Array, Cohort, Key, Sampler


class AvailableState(NamedTuple):
    """Which round it is, and how many were there in the last one."""

    round: Array
    """int32 scalar."""
    metrics: dict[str, Array]
    """``num_available``."""


@made
def available(cohort_size: int, schedule: Any, *, by: str = "uniform") -> Sampler:
    """`cohort_size` clients without replacement of those that are available in a round.

    Clients that are away are not asked, so no slot is lost to them, as long as enough others are
    there; a round in which nobody is available changes nothing. Who is rarely there takes part
    rarely: the aggregate leans towards the others.

    Args:
      cohort_size: clients a round, `m`, at most the population.
      schedule: bool `[T, N]`, whom round `r` finds in row ``r mod T``; or numbers `[N]`, the
        probability with which a client is there, independently in each round; or a function
        ``(key, round, num_clients) ->`` bool `[N]`.
      by: "uniform", or "data": one by one in proportion to the examples, as
        `fedjax_lite.weighted`.

    Returns:
      A `Sampler`; the metric ``num_available`` says how many were there.

    Raises:
      ValueError: if a probability lies outside `[0, 1]`, `by` is unknown, or (in ``init``) there is
        not one column a client or `m` is above the population.
      TypeError: if `schedule` is something else.

    Example:
      >>> sampler = available(2, [[True, False, True], [False, True, False]])
      >>> state, first = sampler.sample(jax.random.key(0), sampler.init(3), jnp.ones(3))
      >>> state, second = sampler.sample(jax.random.key(0), state, jnp.ones(3))
      >>> sorted(first.ids.tolist()), second.ids[second.mask].tolist()
      ([0, 2], [1])

    Reference: Ribero, Vikalo, de Veciana, "Federated Learning Under Intermittent Client
    Availability and Time-Varying Communication Constraints", 2022, arXiv:2205.06730.
    """
    check_count(cohort_size, "cohort_size", minimum=1)
    if by not in ("uniform", "data"):
        raise ValueError(f"by must be 'uniform' or 'data', got {by!r}; give by='uniform'")
    there, num_columns = _presence(schedule)
    check = check_population(cohort_size)

    def init(num_clients: int) -> AvailableState:
        if num_columns not in (None, num_clients):
            raise ValueError(
                f"schedule must have one column a client, got {num_columns} for a population of "
                f"{num_clients}; give {num_clients}"
            )
        check(num_clients)
        return AvailableState(jnp.int32(0), {"num_available": jnp.int32(0)})

    def sample(key: Key, state: AvailableState, sizes: Array) -> tuple[AvailableState, Cohort]:
        key_there, key_draw = jax.random.split(key)
        present = there(key_there, state.round, sizes.shape[0])
        if by == "data":
            scores = jnp.log(sizes.astype(jnp.float32)) + jax.random.gumbel(key_draw, sizes.shape)
        else:
            scores = jax.random.uniform(key_draw, sizes.shape)
        best, ids = jax.lax.top_k(jnp.where(present, scores, -jnp.inf), cohort_size)
        metrics = {"num_available": present.sum(dtype=jnp.int32)}
        cohort = Cohort(ids.astype(jnp.int32), best > -jnp.inf)
        return AvailableState(state.round + 1, metrics), cohort

    return Sampler(init, sample)


def _presence(schedule: Any) -> tuple[Callable[[Key, Array, int], Array], int | None]:
    """``(key, round, num_clients) ->`` bool `[N]`, and `N` where it is known."""
    if callable(schedule) and not isinstance(schedule, type):
        return schedule, None
    traced = isinstance(schedule, jax.core.Tracer)
    is_key = isinstance(schedule, jax.Array) and jnp.issubdtype(schedule.dtype, jax.dtypes.prng_key)
    table: Any = schedule if traced or is_key else np.asarray(schedule)
    kind = "" if is_key else np.dtype(table.dtype).kind
    if table.ndim == 2 and kind == "b" and table.size:
        rows = jnp.asarray(table)
        return lambda key, round, num: rows[round % rows.shape[0]], table.shape[1]
    if table.ndim == 1 and kind in "iuf" and kind and table.size:
        if not traced and not ((table >= 0) & (table <= 1)).all():
            raise ValueError(
                f"schedule of probabilities must lie in [0, 1], got {table.min()} to "
                f"{table.max()}; of a timetable give bool [T, N]"
            )
        chances = jnp.asarray(table, jnp.float32)
        return lambda key, round, num: jax.random.uniform(key, (num,)) < chances, table.shape[0]
    raise TypeError(
        "schedule must be bool [T, N], probabilities [N] or a function (key, round, num_clients) "
        f"-> bool [N], got {shown(schedule)}; np.ones((1, num_clients), bool) has everybody there"
    )
