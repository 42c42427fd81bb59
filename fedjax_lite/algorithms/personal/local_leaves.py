"""Leaves of the model that never leave the client (FedBN, FedPer), and their evaluation."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple, Unpack

import jax
import optax

from fedjax_lite import trees
from fedjax_lite.aggregation.mean import Weighting
from fedjax_lite.algorithms.leaf_masks import mask_of
from fedjax_lite.checks.arguments import check_slot, shown
from fedjax_lite.checks.made import made, signed
from fedjax_lite.data.population.population import Population
from fedjax_lite.engine.batches import Plan
from fedjax_lite.engine.phases import Step, around
from fedjax_lite.evaluate.clients import evaluate_personal as evaluate_personal
from fedjax_lite.models.batch_norm import (
    batch_norm_mask,
    check_no_local_statistics,
    statistics_mask,
    with_statistics,
)
from fedjax_lite.round.compose import federated_algorithm
from fedjax_lite.round.local import ClientOptimizer, LossFn, local_sgd
from fedjax_lite.round.own_models import keeps_own, kept, models_of
from fedjax_lite.round.server import optimizer_server
from fedjax_lite.round.slot_options import SlotOptions
from fedjax_lite.types import (
    ClientInfo,
    ClientUpdate,
    FederatedAlgorithm,
    Key,
    Message,
    Params,
    PyTree,
    RoundState,
    Sampler,
    ServerUpdate,
)


@made
def fedbn(
    loss: LossFn,
    client_optimizer: ClientOptimizer,
    *,
    plan: Plan,
    sampler: Sampler | None = None,
    scale_and_bias: bool = True,
    server_optimizer: optax.GradientTransformation | None = None,
    weighting: Weighting = "examples",
    **slots: Unpack[SlotOptions],
) -> FederatedAlgorithm:
    r"""FedAvg in which batch normalisation stays on the client.

    .. math::
        (y_i, b_i) \leftarrow \text{local SGD from } (x, b_i), \qquad
        x \leftarrow \textstyle\sum_i p_i\, y_i, \qquad b_i \text{ is kept by client } i .

    `b_i` are running statistics, scale and bias of every batch normalisation in a model declared
    with statistics="local". A model without any makes this `fedavg`.

    Args:
      loss: ``(params, examples, key) -> [B]``.
      client_optimizer: an optax optimizer, or ``(round) -> optimizer``; `with_statistics` is put
        around it here.
      plan: local work.
      sampler: who takes part.
      scale_and_bias: whether scale and bias stay too, as in the paper; False: statistics only
        (as in SiloBN, Andreux et al., 2020).
      server_optimizer: default ``optax.sgd(1.0)``.
      weighting: see `fedavg`.
      **slots: `aggregator`, `uplink`, `downlink`, `privacy`, `strategy`; they see the shared
        leaves only.

    Returns:
      A `FederatedAlgorithm`; see `local_leaves` for its state.

    Raises:
      TypeError: if an argument has the wrong type.
      ValueError: from `init`, if statistics were declared averaged.

    Example:
      >>> import jax.numpy as jnp, fedjax_lite as fl
      >>> from fedjax_lite.models.batch_norm import batch_norm, init_batch_norm
      >>> data = fl.data.from_arrays({"x": jnp.array([[0.0], [10.0]] * 2)}, [0, 0, 1, 1])
      >>> loss = lambda w, e, key: batch_norm(w, e["x"], training=True)[:, 0] ** 2
      >>> algo = fedbn(loss, optax.sgd(0.1), plan=fl.Plan(batch_size=2), sampler=fl.everyone())
      >>> w = init_batch_norm(1, statistics="local")
      >>> state, _ = algo.round(jax.random.key(0), algo.init(jax.random.key(0), w, data), data)
      >>> state.server.params["local_stats"], personal_models(state)["local_stats"]["mean"].tolist()
      ({'mean': None, 'square': None}, [[0.5], [0.5]])

    Reference: Li, Jiang, Zhang, Kamp, Dou, "FedBN: Federated Learning on Non-IID Features via Local
    Batch Normalization", 2021, arXiv:2102.07623.
    """
    client = local_sgd(loss, with_statistics(client_optimizer), weighting=weighting)

    def init(params: Params) -> PyTree:
        check_not_averaged(params)
        return client.init(params)

    return local_leaves(
        signed(client._replace(init=init), client.made),
        is_local=batch_norm_mask if scale_and_bias else statistics_mask,
        plan=plan,
        sampler=sampler,
        server=optimizer_server(optax.sgd(1.0) if server_optimizer is None else server_optimizer),
        **slots,
    )


def check_not_averaged(params: Params) -> None:
    """Raises ValueError where statistics of batch normalisation were declared averaged.

    Example:
      >>> check_not_averaged({"local_stats": 0.0})
    """
    names = jax.tree_util.tree_leaves_with_path(params)
    averaged = [p for p, _ in names if any(getattr(k, "key", "") == "batch_stats" for k in p)]
    if averaged:
        raise ValueError(
            f"params{jax.tree_util.keystr(averaged[0])} was declared averaged, but fedbn keeps "
            "statistics on the client; declare statistics='local', or use fedavg"
        )


class LocalRow(NamedTuple):
    """A client's row: what its training keeps, and its own leaves."""

    inner: PyTree
    leaves: Params
    """The model with None in place of every shared leaf."""

    def own_model(self, server_model: Params) -> Params:
        """The client's whole model, see `RoundState.clients`."""
        return _merge(server_model, self.leaves)


@made
def local_leaves(
    client: ClientUpdate,
    *,
    is_local: Callable[[Params], PyTree],
    plan: Plan,
    sampler: Sampler | None = None,
    server: ServerUpdate,
    **slots: Unpack[SlotOptions],
) -> FederatedAlgorithm:
    """`federated_algorithm` in which chosen leaves of the model stay in the client's row.

    The server neither holds, sends nor receives them: ``state.server.params`` has None in their
    place, and uplinks, aggregators and the count of bits see shared leaves only. Every client
    starts with the initial value; a client that never trained still has it. Both kinds of leaves
    are trained together by the client update, as in FedPer. A local leaf is taken back from the
    message, ``own - (own - new)``, so its new value is exact to a rounding of the old one: keep
    float32. Memory O(N x local leaves).

    Args:
      client: local training that downloads the model itself and sends ``server minus client``,
        such as `local_sgd`; also with rows of its own. For a model with running statistics put
        `with_statistics` around its optimizer.
      is_local: ``(params) -> bools``, a prefix of the parameters: `batch_norm_mask`,
        `statistics_mask`, or e.g. ``lambda params: {"body": False, "head": True}``.
      plan: local work.
      sampler: who takes part.
      server: e.g. ``optimizer_server(optax.sgd(1.0))``.
      **slots: as in `federated_algorithm`.

    Returns:
      A `FederatedAlgorithm`. The clients' whole models are ``personal_models(state)``.

    Raises:
      TypeError: if a slot has the wrong type.
      ValueError: from `init`, if statistics declared local are not among the local leaves; when
        traced, if the client update does not download and send the model itself (SCAFFOLD, Mime).

    Example:
      >>> import jax.numpy as jnp, fedjax_lite as fl
      >>> data = fl.data.from_arrays({"c": jnp.array([2.0, 4.0])}, [0, 1])
      >>> algo = local_leaves(
      ...     fl.local_sgd(lambda w, e, key: w["body"] + w["head"] * e["c"], optax.sgd(0.5)),
      ...     is_local=lambda params: {"body": False, "head": True}, plan=fl.Plan(batch_size=1),
      ...     sampler=fl.everyone(), server=fl.optimizer_server(optax.sgd(1.0)))
      >>> params = {"body": jnp.array(0.0), "head": jnp.array(0.0)}
      >>> state = algo.init(jax.random.key(0), params, data)
      >>> state, _ = algo.round(jax.random.key(0), state, data)
      >>> float(state.server.params["body"]), personal_models(state)["head"].tolist()
      (-0.5, [-1.0, -2.0])

    Reference: Arivazhagan, Aggarwal, Singh, Choudhary, "Federated Learning with Personalization
    Layers", 2019, arXiv:1912.00818; Li et al., 2021, arXiv:2102.07623.
    """
    check_slot(client, "client", ClientUpdate)
    if not callable(is_local):
        raise TypeError(
            f"is_local must be a function (params) -> bools, got {shown(is_local)}; give for "
            "example lambda params: {'body': False, 'head': True}"
        )

    def of(params: Params) -> PyTree:
        return mask_of(is_local, params, "is_local")

    def init(params: Params) -> LocalRow:
        return LocalRow(client.init(params), _keep(of(params), params))

    def start(key: Key, row: LocalRow, broadcast: Params, info: ClientInfo) -> Any:
        own = _merge(broadcast, row.leaves)
        return _Carry(client.start(key, row.inner, own, info), row.leaves)

    def on_own(inner_step: Step) -> Step:
        def step(broadcast: Params, carry: _Carry, batch: Any) -> _Carry:
            own = _merge(broadcast, carry.leaves)
            return carry._replace(inner=inner_step(own, carry.inner, batch))

        return step

    def finish(broadcast: Params, carry: _Carry) -> tuple[LocalRow, Message, dict[str, Any]]:
        own = _merge(broadcast, carry.leaves)
        inner, message, metrics = client.finish(own, carry.inner)
        if jax.tree.structure(message.value) != jax.tree.structure(own):
            raise ValueError(
                "client must send one value per parameter, server minus client, got a message of "
                f"structure {jax.tree.structure(message.value)}"
            )
        is_own = jax.tree.map(lambda leaf: leaf is not None, carry.leaves, is_leaf=_is_none)
        moved = trees.subtract(own, message.value)
        moved = trees.cast_like(moved, own)
        row = LocalRow(inner, _keep(is_own, moved))
        return row, Message(_drop(is_own, message.value), message.weight), metrics

    def init_server(params: Params, population: Population) -> PyTree:
        shared = _drop(of(params), params)
        check_no_local_statistics(shared)
        return server.init(shared, population)

    return federated_algorithm(
        ClientUpdate(init, start, around(client.step, on_own), finish, client.counts),
        plan=plan,
        sampler=sampler,
        server=signed(server._replace(init=init_server), server.made),
        **slots,
    )


class _Carry(NamedTuple):
    inner: PyTree
    leaves: Params
    """As they were at the start of the round."""


def personal_models(state: RoundState, ids: Any = None) -> Params:
    """The clients' whole models: their own, or their own leaves with the shared ones of the server.

    Args:
      state: of an algorithm whose clients keep models or parts of them (`ditto`, `apfl`, `pfedme`,
        `local_leaves`, `fedbn`, `local_only` ...), also where its rows lie on the host or on disk.
      ids: integers `[n]`, the clients; None: all `N` of them.

    Returns:
      The models, leaves `[n, ...]`; numpy arrays where the rows are not on the device.

    Raises:
      TypeError: if the state is of another algorithm.
      ValueError: if no leaf is local, or an id is of no client.

    Example:
      >>> from fedjax_lite.round.server import ServerState
      >>> import jax.numpy as jnp
      >>> rows = LocalRow((), {"body": None, "head": jnp.arange(2.0)})
      >>> server = ServerState({"body": jnp.array(5.0), "head": None}, ())
      >>> state = RoundState(None, server, rows, (), (), ())
      >>> {name: leaf.tolist() for name, leaf in personal_models(state).items()}
      {'body': [5.0, 5.0], 'head': [0.0, 1.0]}
    """
    if not isinstance(state, RoundState) or not keeps_own(state):
        raise TypeError(
            "state must hold models of the clients' own, or parts of them, as that of ditto, apfl, "
            "pfedme, fedper, fedrep, local_leaves or fedbn, or of local_only; the clients of all "
            "others use state.server.params"
        )
    if not kept(state).personal:
        raise ValueError("state has no local leaves: all clients share state.server.params")
    return models_of(state, ids)


def _is_none(leaf: Any) -> bool:
    return leaf is None


def _drop(mask: PyTree, tree: PyTree) -> PyTree:
    """None in place of the leaves where the mask holds."""
    return jax.tree.map(lambda out, leaf: None if out else leaf, mask, tree)


def _keep(mask: PyTree, tree: PyTree) -> PyTree:
    return jax.tree.map(lambda kept, leaf: leaf if kept else None, mask, tree)


def _merge(shared: Params, own: Params) -> Params:
    """The whole model out of two halves, each with None where the other has a leaf."""
    structures = [jax.tree.structure(half, is_leaf=_is_none) for half in (shared, own)]
    if structures[0] != structures[1]:
        raise ValueError(
            "local_leaves needs a server that broadcasts the model itself, as optimizer_server "
            f"does, got {structures[0]} for a model {structures[1]}"
        )
    return jax.tree.map(lambda s, o: o if s is None else s, shared, own, is_leaf=_is_none)
