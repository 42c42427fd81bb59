"""with_purity(): how far clusters agree with groups that a simulation knows, round by round."""

from __future__ import annotations

from typing import Any, NamedTuple

import jax.numpy as jnp
import numpy as np

from fedjax_lite.algorithms.clusters.membership import NOWHERE
from fedjax_lite.checks.arguments import shown
from fedjax_lite.checks.made import made
from fedjax_lite.data.population.population import Population
from fedjax_lite.types import Array, Cohort, Key, Params, PyTree, ServerUpdate


class WatchedClusters(NamedTuple):
    """The server of clusters, and who was where when last seen."""

    inner: PyTree
    """The state of the server that is watched."""
    groups: Array
    """int32 `[N]`, true groups, numbered from 0."""
    clusters: Array
    """int32 `[N]`, -1 before a client first chooses."""
    table: Array
    """int32 `[K, G]`: clients by cluster and group."""

    @property
    def params(self) -> Params:
        """The models, leaves `[K, ...]`."""
        return self.inner.params

    @property
    def metrics(self) -> dict[str, Array]:
        """``cluster_purity`` of all clients that ever chose; NaN before the first does."""
        largest, total = self.table.max(1).sum(), self.table.sum()
        return {"cluster_purity": largest.astype(jnp.float32) / total}


@made
def with_purity(server: ServerUpdate, num_clusters: int, groups: Any) -> ServerUpdate:
    """A server of clusters that keeps count of whom it saw where; models are as without it.

    A round costs O(C + K G) more, whatever the population.

    Args:
      server: as `cluster_server` makes it; its clients report ``cluster_0`` ...
      num_clusters: `K`.
      groups: int `[N]`, the true group of each client.

    Returns:
      A `ServerUpdate` whose state is `WatchedClusters`.

    Raises:
      ValueError: if `groups` are not integers; from `init`, if they are not one a client.

    Example:
      >>> import fedjax_lite as fl, optax
      >>> server = with_purity(fl.optimizer_server(optax.sgd(1.0)), 2, [7, 7, 9])
      >>> state = server.init(jnp.zeros(2), Population.of([1, 1, 1]))
      >>> cohort = Cohort(jnp.arange(3), jnp.ones(3, bool))
      >>> told = {"cluster_0": jnp.array([1.0, 0, 0]), "cluster_1": jnp.array([0.0, 1, 1])}
      >>> state = server.update(None, state, jnp.zeros(2), cohort, told)
      >>> state.table.tolist(), f"{float(state.metrics['cluster_purity']):.3f}"
      ([[1, 0], [1, 1]], '0.667')
    """
    known = np.asarray(groups)
    if known.ndim != 1 or known.dtype.kind not in "iu":
        raise ValueError(
            f"groups must be integers [N], the true group of each client, got {shown(groups)}; "
            "np.unique(names, return_inverse=True)[1] numbers names"
        )
    names, numbers = np.unique(known, return_inverse=True)

    def init(params: Params, population: Population) -> WatchedClusters:
        if population.num_clients != len(numbers):
            raise ValueError(
                f"groups must hold one integer a client, {population.num_clients} of them, got "
                f"{len(numbers)}; fl.data.dealt_groups tells those of a partition"
            )
        return WatchedClusters(
            inner=server.init(params, population),
            groups=jnp.asarray(numbers, jnp.int32),
            clusters=jnp.full(len(numbers), NOWHERE, jnp.int32),
            table=jnp.zeros((num_clusters, len(names)), jnp.int32),
        )

    def update(
        key: Key, state: WatchedClusters, value: PyTree, cohort: Cohort, metrics: dict[str, Any]
    ) -> WatchedClusters:
        hot = jnp.stack([metrics[f"cluster_{k}"] for k in range(num_clusters)], axis=1) > 0
        chose = cohort.mask & hot.any(1)
        now = hot.argmax(1).astype(jnp.int32)
        before = state.clusters[cohort.ids]
        kinds = state.groups[cohort.ids]
        nobody = len(numbers)  # beyond the last row: dropped

        def add(table: Array, rows: Array, mask: Array, amount: int) -> Array:
            at = jnp.where(mask, rows, num_clusters)
            return table.at[at, kinds].add(amount, mode="drop")

        table = add(state.table, before, chose & (before != NOWHERE), -1)
        return WatchedClusters(
            inner=server.update(key, state.inner, value, cohort, metrics),
            groups=state.groups,
            clusters=state.clusters.at[jnp.where(chose, cohort.ids, nobody)].set(now, mode="drop"),
            table=add(table, now, chose, 1),
        )

    return server._replace(
        init=init, broadcast=lambda state: server.broadcast(state.inner), update=update
    )
