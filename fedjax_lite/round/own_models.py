"""Of a state, the model that each client would use: the server's, its own, or a mixture."""

from __future__ import annotations

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from fedjax_lite.checks.state import check_not_donated
from fedjax_lite.types import Params, PyTree, RoundState

BLOCK = 2**26
"""Bytes of models that are taken from the host at a time."""
REMEDY = (
    "score each client's own model on its own data: fl.evaluate_personal(model, state, data); in a "
    "run evaluate=fl.client_evaluator(model, test), of train, test = fl.data.split_clients(...)"
)


class Kept(NamedTuple):
    """What a state says of the models in it."""

    personal: bool
    """Clients use models of their own, or parts of them."""
    shared: bool
    """The server holds a whole model, and somebody trains it."""


def kept(state: RoundState) -> Kept:
    """Who uses what: read from the classes of the client rows and of the server's state.

    Rows of a class with a method ``own_model(server_model) -> params`` are models of the clients'
    own, or parts of one. A server's state with ``trained = False`` holds a model that nobody
    trains.

    Example:
      >>> kept(RoundState(None, {"w": jnp.ones(2)}, (), (), (), ()))
      Kept(personal=False, shared=True)
    """
    trained = getattr(state.server, "trained", True) is not False
    if not keeps_own(state):
        return Kept(False, trained)
    server = server_model(state)
    differs: list[bool] = []

    def look(row: PyTree, server: Params) -> None:
        model = row.own_model(server)
        known = {id(leaf) for leaf in jax.tree.leaves(server)}
        differs.append(any(id(leaf) not in known for leaf in jax.tree.leaves(model)))
        differs.append(jax.tree.map(jnp.shape, model) != jax.tree.map(jnp.shape, server))

    jax.eval_shape(look, _one_row(state), server)
    personal, other = differs  # the server's has holes, or several models side by side
    return Kept(personal, trained and not other)


def keeps_own(state: RoundState) -> bool:
    """Whether client rows are of a class that can hold models of the clients' own.

    Example:
      >>> keeps_own(RoundState(None, {"w": 1.0}, (), (), (), ()))
      False
    """
    return callable(getattr(_one_row(state), "own_model", None))


def server_model(state: RoundState) -> Params:
    """The model that the server holds, whoever trains it; perhaps without the clients' parts.

    Example:
      >>> server_model(RoundState(None, {"w": 1.0}, (), (), (), ()))
      {'w': 1.0}
    """
    return getattr(state.server, "params", state.server)


def one_model(state: RoundState | Params) -> Params:
    """The one model of a state, for scoring on common examples; parameters pass through.

    Raises:
      TypeError: if the state holds no such model: parts of it are personal, or nobody trains it.
      ValueError: if the state was donated.

    Example:
      >>> one_model({"w": 1.0})
      {'w': 1.0}
    """
    check_state(state)
    if not isinstance(state, RoundState):
        return state
    if not kept(state).shared:
        nobody = "nobody trains the server's: it is the initial one"
        parts = "parts of it stay with the clients, or there is one for each cluster"
        why = nobody if getattr(state.server, "trained", True) is False else parts
        raise TypeError(
            f"state must hold one whole model for all clients, but {why} (local_only, fedbn, "
            f"fedrep, local_leaves, ifca ...); {REMEDY}"
        )
    return server_model(state)


def models_of(state: RoundState, ids: Any = None) -> Params:
    """The model that each client would use, leaves `[n, ...]`; a `FederatedAlgorithm`'s `models`.

    Args:
      state: of any algorithm.
      ids: integers `[n]`, rows of the population; None: all clients, in order. Models whose rows
        lie on the host are gathered there: memory O(n x model).

    Returns:
      The models: a client's own, or the server's, once for each.

    Raises:
      ValueError: if `ids` are none of the clients, or are needed because the state, which keeps
        nothing of clients, does not tell how many there are.

    Example:
      >>> state = RoundState(None, {"w": jnp.ones(3)}, (), (), (), ())
      >>> models_of(state, [0, 5])["w"].shape
      (2, 3)
    """
    check_state(state)
    num_clients = num_clients_of(state)
    if ids is None:
        if num_clients is None:
            raise ValueError(
                "ids must be given, got None: this state keeps nothing of single clients and does "
                "not tell how many there are; ids=np.arange(data.num_clients)"
            )
        ids = np.arange(num_clients)
    elif not isinstance(ids, jax.core.Tracer):
        ids = check_ids(ids, num_clients if kept(state).personal else None)
    if not kept(state).personal:
        return jax.tree.map(
            lambda leaf: jnp.broadcast_to(leaf, (len(ids), *jnp.shape(leaf))), server_model(state)
        )
    if is_table(state.clients):
        server = jax.device_get(server_model(state))
        step = max(1, BLOCK // max(1, row_bytes(state)))
        parts = [
            jax.device_get(_merged(state.clients.rows(ids[low : low + step]), server))
            for low in range(0, max(len(ids), 1), step)
        ]
        return jax.tree.map(lambda *leaves: np.concatenate(leaves), *parts)
    everyone = isinstance(ids, np.ndarray) and np.array_equal(ids, np.arange(num_clients or 0))
    rows = state.clients
    if not everyone:
        rows = jax.tree.map(lambda leaf: leaf[jnp.asarray(ids)], rows)
    return _merged(rows, server_model(state))


def num_clients_of(state: RoundState) -> int | None:
    """Rows that the state keeps of clients; None where it keeps none.

    Example:
      >>> num_clients_of(RoundState(None, {}, jnp.ones(3), (), (), ()))
      3
    """
    for table in (state.clients, state.uplink):
        if is_table(table):
            return table.num_clients
        for leaf in jax.tree.leaves(table):
            return leaf.shape[0]
    return None


def row_bytes(state: RoundState) -> int:
    """Bytes of one client's model, its own and the server's parts together."""
    shapes = one_of(state)
    return sum(leaf.size * leaf.dtype.itemsize for leaf in jax.tree.leaves(shapes))


def one_of(state: RoundState) -> PyTree:
    """The model of one client that keeps parts of its own, shapes only."""
    return jax.eval_shape(
        lambda row, server: row.own_model(server), _one_row(state), server_model(state)
    )


def is_table(clients: Any) -> bool:
    """Whether rows lie on the host: a `HostTable`."""
    return callable(getattr(clients, "rows", None)) and hasattr(clients, "num_clients")


def check_state(state: Any) -> None:
    """Raises TypeError for what `round` returns as a whole, ValueError for a donated state."""
    if isinstance(state, tuple) and state and isinstance(state[0], RoundState):
        raise TypeError(
            "state must be a RoundState or parameters, got a tuple that begins with a RoundState; "
            "take it apart first: state, metrics = algo.round(key, state, data)"
        )
    check_not_donated(state)


@jax.jit
def _merged(rows: PyTree, server: Params) -> Params:
    return jax.vmap(lambda row: row.own_model(server))(rows)


def _one_row(state: RoundState) -> PyTree:
    """One row, shapes only."""
    if is_table(state.clients):
        return state.clients.row
    if not hasattr(state.clients, "own_model"):
        return ()
    return jax.tree.map(
        lambda leaf: jax.ShapeDtypeStruct(leaf.shape[1:], leaf.dtype), state.clients
    )


def check_ids(ids: Any, num_clients: int | None) -> np.ndarray:
    """Clients by number as an array `[n]`; ValueError where they are none of the population.

    Example:
      >>> check_ids([0, 3], 4).tolist()
      [0, 3]
    """
    found = np.asarray(ids)
    if found.ndim != 1 or found.dtype.kind not in "iu":
        raise ValueError(
            f"ids must be integers [n], got {found.dtype}{list(found.shape)}; give a list such as "
            "[0, 3]"
        )
    outside = found.size and (found.min() < 0 or (num_clients and found.max() >= num_clients))
    if outside:
        raise ValueError(
            f"ids must lie in the population, [0, {num_clients or 'N'}), got "
            f"{found.min()}..{found.max()}"
        )
    return found
