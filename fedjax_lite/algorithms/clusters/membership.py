"""Who is in which cluster: the row that a client keeps, and reading it."""

from __future__ import annotations

from typing import Any, NamedTuple

import jax
import numpy as np

from fedjax_lite.algorithms.clusters.several import one_of_several
from fedjax_lite.checks.arguments import shown
from fedjax_lite.evaluate.clients import evaluate_clients
from fedjax_lite.models.model import Model
from fedjax_lite.round.own_models import check_ids, is_table, server_model
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


def cluster_assignments(
    state: RoundState, ids: Any = None, *, model: Model | None = None, data: Any = None
) -> np.ndarray:
    """The cluster of each client, as it chose when it last took part; of newcomers, as they would.

    Of mixtures (`fedjax_lite.fedem`) it is the model that weighs most.

    Args:
      state: of `fedjax_lite.ifca` or `fedjax_lite.fedem`, also where rows lie on the host or on
        disk.
      ids: integers `[n]`, the clients; None: all `N` of them.
      model: what one of the `K` models is; with `data`.
      data: a population of any clients, also of ones that the run has never seen: each is measured
        on all of its data, as `ifca` does it, and given the model of the least loss. The state's
        own record is not asked.

    Returns:
      int32 `[n]` on the host; -1 for a client that has not yet taken part, which is scored with
      the first cluster's model, or of whose data no loss is finite. With `data` one for each
      client of it.

    Raises:
      TypeError: if the state keeps no clusters, or one of `model` and `data` is missing.
      ValueError: if an id is of no client, or ids are given with `data`.

    Example:
      >>> import jax.numpy as jnp, fedjax_lite as fl
      >>> rows = ClusterRow(jnp.array([1, -1, 0], jnp.int32))
      >>> state = RoundState(None, jnp.array([-4.0, 4.0]), rows, (), (), ())
      >>> cluster_assignments(state).tolist()
      [1, -1, 0]
      >>> model = Model(None, loss=lambda w, e, key: (w - e["y"]) ** 2, predict=lambda w, e: e["y"])
      >>> newcomers = fl.data.from_arrays({"y": jnp.array([3.0, -1.0])}, [0, 1])
      >>> cluster_assignments(state, model=model, data=newcomers).tolist()
      [1, 0]
    """
    rows: Any = state.clients if isinstance(state, RoundState) else None
    kind = rows.row if is_table(rows) else rows
    if not hasattr(kind, "cluster"):
        raise TypeError(
            f"state must be of an algorithm with clusters, such as fl.ifca, got "
            f"{type(state).__name__} with rows {type(rows).__name__}"
        )
    if model is not None or data is not None:
        return _of_newcomers(state, ids, model, data)
    if is_table(rows):
        number = rows.num_clients
        rows = rows.rows(np.arange(number) if ids is None else check_ids(ids, number))
        ids = None
    found = np.asarray(jax.device_get(rows.cluster), np.int32)
    return found if ids is None else found[check_ids(ids, len(found))]


def _of_newcomers(state: RoundState, ids: Any, model: Model | None, data: Any) -> np.ndarray:
    """The model of the least loss on each client's data, int32 `[n]`."""
    if model is None or data is None:
        missing = "model" if model is None else "data"
        raise TypeError(
            f"{missing} must be given to assign newcomers, got None; cluster_assignments(state, "
            "model=model, data=newcomers)"
        )
    if ids is not None:
        raise ValueError(
            f"ids must be None with data, whose clients are all assigned, got {shown(ids)}; give a "
            "population of the clients that are wanted"
        )
    models = server_model(state)
    number = jax.tree.leaves(models)[0].shape[0]
    each = [
        evaluate_clients(model, jax.tree.map(lambda leaf, k=k: leaf[k], models), data)["loss"]
        for k in range(number)  # one compiled program
    ]
    losses = np.stack(each)
    losses = np.where(np.isnan(losses), np.inf, losses)
    found = np.where(np.isfinite(losses).any(0), losses.argmin(0), NOWHERE)
    return found.astype(np.int32)
