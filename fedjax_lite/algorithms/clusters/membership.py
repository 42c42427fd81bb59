"""Who is in which cluster: the row that a client keeps, and reading it."""

from __future__ import annotations

from typing import Any, NamedTuple

import jax
import numpy as np

from fedjax_lite.algorithms.clusters.several import one_of_several
from fedjax_lite.round.own_models import check_ids, is_table
from fedjax_lite.types import Array, Params, RoundState

NOWHERE = -1
"""The cluster of a client that has not yet taken part."""


class ClusterRow(NamedTuple):
    """What a client keeps: the number of its cluster."""

    cluster: Array
    """int32 scalar, -1 before it first takes part."""

    def own_model(self, server_model: Params) -> Params:
        """The model of its cluster, of the first one before it has any; see `RoundState.clients`.

        Example:
          >>> import jax.numpy as jnp
          >>> float(ClusterRow(jnp.int32(1)).own_model(jnp.array([3.0, 5.0])))
          5.0
        """
        return one_of_several(server_model, jax.numpy.maximum(self.cluster, 0))


def cluster_assignments(state: RoundState, ids: Any = None) -> np.ndarray:
    """The cluster of each client, as it chose when it last took part.

    Of mixtures (`fedjax_lite.fedem`) it is the model that weighs most.

    Args:
      state: of `fedjax_lite.ifca` or `fedjax_lite.fedem`, also where rows lie on the host or on
        disk.
      ids: integers `[n]`, the clients; None: all `N` of them.

    Returns:
      int32 `[n]` on the host; -1 for a client that has not yet taken part, which is scored with
      the first cluster's model.

    Raises:
      TypeError: if the state keeps no clusters.
      ValueError: if an id is of no client.

    Example:
      >>> import jax.numpy as jnp
      >>> rows = ClusterRow(jnp.array([1, -1, 0], jnp.int32))
      >>> cluster_assignments(RoundState(None, (), rows, (), (), ())).tolist()
      [1, -1, 0]
    """
    rows: Any = state.clients if isinstance(state, RoundState) else None
    if is_table(rows):
        number = rows.num_clients
        rows = rows.rows(np.arange(number) if ids is None else check_ids(ids, number))
        ids = None
    if not hasattr(rows, "cluster"):
        raise TypeError(
            f"state must be of an algorithm with clusters, such as fl.ifca, got "
            f"{type(state).__name__} with rows {type(rows).__name__}"
        )
    found = np.asarray(jax.device_get(rows.cluster), np.int32)
    return found if ids is None else found[check_ids(ids, len(found))]
