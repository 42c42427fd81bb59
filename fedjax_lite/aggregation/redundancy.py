"""redundancy(): the same task on several clients, and the majority's result (DRACO)."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp

from fedjax_lite.aggregation.blocks import sum_blocks
from fedjax_lite.aggregation.conditions import integer_table, need_one_a_client
from fedjax_lite.aggregation.krum import mean_of
from fedjax_lite.aggregation.stacked import Stack, stacked
from fedjax_lite.checks.made import made
from fedjax_lite.types import Aggregator, Array, Cohort, Key, Params, PyTree


@made
def redundancy(groups: Any) -> Aggregator:
    """The mean over tasks of what most of a task's clients sent, bit for bit.

    Every task is given to a group of ``2 f + 1`` clients, which have the same data and compute the
    same message. Of a group the message is taken that more than half of its members who came sent
    alike; a group without such a majority counts nowhere. With at most `f` liars a group that is
    exactly the plain mean over tasks without any.

    Clients' keys are folded with their own ids, so the members of a group agree only in local
    training that draws nothing: full batches (``Plan(batch_size=None, ...)``) and no dropout.

    Args:
      groups: int `[N]`, the task of each client of the population. Outside of a round, a client
        whose id is not in the table counts nowhere.

    Returns:
      An `Aggregator`. Weights do not count: each task has weight 1.

    Raises:
      TypeError: if `groups` are not integers `[N]`.
      ValueError: when a state is made or a round is built, if there is not one group a client of
        the population.

    Example:
      >>> from fedjax_lite.aggregation.stacked import aggregate_stack
      >>> u = jnp.array([[1.0], [1.0], [50.0], [4.0], [-9.0], [4.0]])
      >>> aggregate_stack(redundancy([0, 0, 0, 1, 1, 1]), u).tolist()
      [2.5]

    Reference: Chen, Wang, Charles, Papailiopoulos, "DRACO: Byzantine-resilient Distributed
    Training via Redundant Gradients", 2018, arXiv:1803.09877.
    """
    table = integer_table(groups, "groups")

    def rule(key: Key, state: PyTree, stack: Stack, cohort: Cohort) -> tuple[PyTree, PyTree]:
        group = jnp.asarray(table)[jnp.clip(cohort.ids, 0, table.size - 1)]
        known = stack.mask & (cohort.ids >= 0) & (cohort.ids < table.size)
        mates = (group[:, None] == group) & known[:, None] & known
        votes = (mates & identical(stack.values)).sum(1)
        wins = 2 * votes > mates.sum(1)
        earlier = jnp.tril(mates & wins, -1).any(1)  # one member speaks for the majority
        return state, mean_of(stack.values, known & wins & ~earlier)

    def check(cohort_size: int = 0) -> None:
        need_one_a_client(table.size, "groups")

    def init_state(params: Params) -> tuple[()]:
        check()
        return ()

    return stacked(rule, init_state=init_state, check=check)


def identical(values: PyTree) -> Array:
    """Whose messages are equal in every coordinate, bool `[C, C]`; NaN equals nothing.

    Example:
      >>> identical(jnp.array([[1.0, 2.0], [1.0, 2.0], [1.0, 3.0]]))[0].tolist()
      [True, True, False]
    """

    def different(rows: Array) -> Array:
        # One client at a time: scratch memory of a block, not of all pairs of blocks.
        return jax.lax.map(lambda row: (rows != row).sum(-1, dtype=jnp.float32), rows)

    return sum_blocks(different, values) == 0
