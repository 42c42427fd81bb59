"""stratified(): so many clients of each group."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from fedjax_lite.aggregation.conditions import integer_table
from fedjax_lite.checks.arguments import check_count
from fedjax_lite.checks.made import made
from fedjax_lite.types import Array, Cohort, Key, PyTree, Sampler


@made
def stratified(groups: Any, clients_per_group: int) -> Sampler:
    r"""A uniform sample without replacement of each group: edges, regions, clusters.

    .. math::  \pi_i = \min(m, N_g) / N_g \qquad (i \text{ in group } g)

    For `fedjax_lite.hierfavg` the cohorts of the edges. A group of fewer clients than `m` comes as
    a whole, and leaves slots empty.

    Args:
      groups: int `[N]`, the group of each client, numbered from 0.
      clients_per_group: `m`, of every group.

    Returns:
      A `Sampler` with cohorts of ``G m`` slots, those of group 0 first.

    Raises:
      TypeError: if `groups` are not integers.
      ValueError: if one is negative, `m` is below 1 or above the largest group, or (in ``init``)
        there is not one a client.

    Example:
      >>> sampler = stratified([0, 1, 0, 1, 1], 1)
      >>> cohort = sampler.sample(jax.random.key(0), (), jnp.ones(5))[1]
      >>> [int(i) in group for i, group in zip(cohort.ids, [(0, 2), (1, 3, 4)])]
      [True, True]
    """
    table = integer_table(groups, "groups")
    check_count(clients_per_group, "clients_per_group", minimum=1)
    if table.min() < 0:
        raise ValueError(f"groups must be numbered from 0, got {table.min()}; one a client")
    counts = np.bincount(table)
    if clients_per_group > counts.max():
        raise ValueError(
            f"clients_per_group must be at most the largest group, got {clients_per_group} of "
            f"{counts.max()} clients; sample fewer"
        )
    first = np.cumsum(counts) - counts
    places = np.arange(clients_per_group)
    there = jnp.asarray((places < counts[:, None]).reshape(-1))
    slots = jnp.asarray(np.minimum(first[:, None] + places, len(table) - 1).reshape(-1))

    def init(num_clients: int) -> PyTree:
        if len(table) != num_clients:
            raise ValueError(
                f"groups must be [N], one a client, got {len(table)} for a population of "
                f"{num_clients}; give {num_clients}"
            )
        return ()

    def sample(key: Key, state: PyTree, sizes: Array) -> tuple[PyTree, Cohort]:
        # By groups, and within them in random order.
        order = jnp.lexsort((jax.random.uniform(key, table.shape), jnp.asarray(table)))
        return state, Cohort(order[slots].astype(jnp.int32), there)

    chances = np.minimum(clients_per_group, counts) / np.maximum(counts, 1)
    return Sampler(
        init, sample, inclusion=lambda sizes: jnp.asarray(chances[table], jnp.result_type(float))
    )
