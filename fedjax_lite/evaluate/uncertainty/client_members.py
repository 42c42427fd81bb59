"""client_members(): the models of a round's clients before they are averaged."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from fedjax_lite.checks.arguments import check_key, check_slot, shown
from fedjax_lite.data.population.dataset import FederatedDataset, check_data
from fedjax_lite.round.own_models import check_state
from fedjax_lite.types import Cohort, FederatedAlgorithm, Key, Params, RoundState


def client_members(
    algo: FederatedAlgorithm, key: Key, state: RoundState, data: FederatedDataset, clients: Any
) -> Params:
    r"""For each client the model that a round with nobody else would leave.

    .. math::  x_i = \mathrm{server}(x, \Delta_i), \qquad
               x_i = y_i \text{ of FedAvg whose server takes the mean as it is}

    An ensemble that costs no further training: what local models disagree on, before the average
    hides it. Draws are those of a real round with this key, so of FedAvg their weighted mean is the
    round's model. How far the cohort's models lie apart in weights is a metric of every round with
    ``aggregator=fl.diagnosed(fl.mean())``: ``drift_variance`` is
    :math:`\sum_i p_i \lVert y_i - \bar y \rVert^2`.

    Args:
      algo: a synchronous algorithm whose round takes a `Cohort`; not a private one.
      key: as for the round.
      state: before that round; it is not changed.
      data: the population.
      clients: ids `[M]`.

    Returns:
      Models side by side, leaves `[M, ...]`, for `member_probabilities` and `ensemble_scores`.

    Raises:
      TypeError: if `algo`, `state` or `data` are none, or the state holds no model of a server.
      ValueError: if it is private, or `clients` are not ids of this population.

    Example:
      >>> import fedjax_lite as fl, optax
      >>> data = fl.data.from_arrays({"b": jnp.array([-1.0, 2.0])}, [0, 1])
      >>> algo = fl.fedavg(lambda w, e, key: 0.5 * (w - e["b"]) ** 2, optax.sgd(1.0),
      ...                  plan=fl.Plan(batch_size=1), sampler=fl.everyone())
      >>> state = algo.init(jax.random.key(0), jnp.array(0.0), data)
      >>> client_members(algo, jax.random.key(0), state, data, [0, 1]).tolist()
      [-1.0, 2.0]
    """
    check_slot(algo, "algo", FederatedAlgorithm)
    check_key(key)
    check_state(state)
    check_slot(state, "state", RoundState)
    check_data(data)
    if algo.accountant is not None:
        raise ValueError(
            "algo must not be private, got one with an accountant: a client's own model is what "
            "the mechanism hides; look at the members of several runs, fl.ensemble"
        )
    ids = np.asarray(clients)
    num_clients = data.num_clients
    if ids.ndim != 1 or not ids.size or ids.dtype.kind not in "iu":
        raise ValueError(f"clients must be ids [M], integers, got {shown(clients)}; give [0, 1]")
    if ids.min() < 0 or ids.max() >= num_clients:
        raise ValueError(f"clients must lie in 0 to {num_clients - 1}, got {shown(clients)}")
    if not hasattr(state.server, "params"):
        raise TypeError(
            f"state must hold a server's model, got {type(state.server).__name__}; the models of a "
            "personal method are algo.models(state, ids)"
        )

    def alone(client: jax.Array) -> Params:
        cohort = Cohort(client[None], jnp.ones(1, bool))
        return algo.round(key, state, data, cohort)[0].server.params

    return jax.lax.map(alone, jnp.asarray(ids, jnp.int32))
