"""FedBABU: the body is trained under a head that stays at random, until clients fine-tune."""

from __future__ import annotations

from typing import Any, NamedTuple, Unpack

import optax

from fedjax_lite.aggregation.mean import Weighting
from fedjax_lite.algorithms.personal.heads import IsHead, cut, head_mask, joined, of_one_half
from fedjax_lite.checks.made import made
from fedjax_lite.data.population.counting import counts_of
from fedjax_lite.data.population.population import Population
from fedjax_lite.engine.batches import Plan
from fedjax_lite.engine.phases import step_of
from fedjax_lite.round.compose import federated_algorithm
from fedjax_lite.round.local import (
    ClientOptimizer,
    LocalCarry,
    LossFn,
    check_loss,
    local_sgd,
)
from fedjax_lite.round.server import optimizer_server
from fedjax_lite.round.slot_options import SlotOptions
from fedjax_lite.types import (
    Batch,
    ClientInfo,
    ClientUpdate,
    Cohort,
    FederatedAlgorithm,
    Key,
    Known,
    Message,
    Params,
    PyTree,
    Sampler,
    ServerUpdate,
)


@made
def fedbabu(
    loss: LossFn,
    client_optimizer: ClientOptimizer,
    *,
    is_head: IsHead | None = None,
    plan: Plan,
    sampler: Sampler | None = None,
    weighting: Weighting = "examples",
    server_optimizer: optax.GradientTransformation | None = None,
    **slots: Unpack[SlotOptions],
) -> FederatedAlgorithm:
    r"""FedAvg of the body under one head that nobody trains.

    .. math::
        \phi_i \leftarrow \phi_i - \eta\,\nabla_\phi f_i(\phi_i, h_0), \quad \phi_i^0 = x, \qquad
        x \leftarrow \textstyle\sum_{i \in S} p_i\, \phi_i, \qquad h_0 \text{ as } \texttt{init}
        \text{ drew it.}

    Clients know `h_0` from the start, so neither way does it cost a bit. Personal models come
    afterwards, by fine-tuning ``state.server.params`` (the head, or all of it) on a client's own
    data: a few rounds of `local_only` that begin with it. Without a head it is `fedavg`.

    Args:
      loss: ``(params, examples, key) -> [B]``.
      client_optimizer: of the body; an optax optimizer, or ``(round) -> optimizer``.
      is_head: ``(params) -> bools``, a prefix of the parameters, True for the head; None: what is
        called "head", as in every model of `fedjax_lite.models`.
      plan: local work.
      sampler: who takes part.
      weighting: see `fedavg`.
      server_optimizer: default ``optax.sgd(1.0)``, plain averaging.
      **slots: `aggregator`, `uplink`, `downlink`, `privacy`, `strategy` as in `fedavg`; they see
        the body only.

    Returns:
      A `FederatedAlgorithm`; ``state.server.params`` is the whole model, with the initial head.

    Raises:
      TypeError: if an argument has the wrong type.
      ValueError: if a name is unknown; from `init`, if nothing is called "head".

    Example:
      >>> import jax, jax.numpy as jnp, fedjax_lite as fl
      >>> data = fl.data.from_arrays({"c": jnp.array([2.0, 4.0])}, [0, 1])
      >>> loss = lambda w, e, key: 0.5 * (w["body"] * w["head"] - e["c"]) ** 2
      >>> algo = fedbabu(loss, optax.sgd(0.5), plan=fl.Plan(batch_size=1), sampler=fl.everyone())
      >>> params = {"body": jnp.array(0.0), "head": jnp.array(1.0)}
      >>> state = algo.init(jax.random.key(0), params, data)
      >>> state, metrics = algo.round(jax.random.key(0), state, data)
      >>> {name: float(leaf) for name, leaf in state.server.params.items()}
      {'body': 1.5, 'head': 1.0}
      >>> tune = fl.local_only(loss, optax.sgd(0.5), plan=fl.Plan(batch_size=1, steps=1))
      >>> tuned = tune.init(jax.random.key(0), state.server.params, data)
      >>> tuned, _ = tune.round(jax.random.key(0), tuned, data)
      >>> fl.personal_models(tuned)["head"].tolist()  # 1 - .5 * 1.5 (1.5 - c)
      [1.375, 2.875]

    Reference: Oh, Kim, Yun, "FedBABU: Towards Enhanced Representation for Federated Image
    Classification", 2022, arXiv:2106.06042.
    """
    check_loss(loss)
    mask = head_mask(is_head)

    def under(head: Params) -> ClientUpdate:
        return local_sgd(of_one_half(loss, head), client_optimizer, weighting=weighting)

    under({})  # checks the arguments before anything is traced

    def init(params: Params) -> PyTree:
        head, body = cut(mask(params), params)
        return under(head).init(body)

    def start(key: Key, row: PyTree, broadcast: UnderHead, info: ClientInfo) -> LocalCarry:
        return under(broadcast.head.value).start(key, row, broadcast.body, info)

    def step(broadcast: UnderHead, carry: LocalCarry, batch: Batch) -> LocalCarry:
        return step_of(under(broadcast.head.value))(broadcast.body, carry, batch)

    def finish(broadcast: UnderHead, carry: LocalCarry) -> tuple[PyTree, Message, dict[str, Any]]:
        return under(broadcast.head.value).finish(broadcast.body, carry)

    server = optimizer_server(optax.sgd(1.0) if server_optimizer is None else server_optimizer)
    return federated_algorithm(
        ClientUpdate(init, start, step, finish, counts_of(loss)),
        plan=plan,
        sampler=sampler,
        server=resting_head(server, is_head=mask),
        **slots,
    )


class UnderHead(NamedTuple):
    """What clients download: the body; the head they know."""

    body: Params
    head: Known


class RestingState(NamedTuple):
    """The state of a server of bodies, and the head that rests."""

    inner: PyTree
    head: Params

    @property
    def params(self) -> Params:
        """The whole model."""
        return joined(self.head, self.inner.params)


@made
def resting_head(server: ServerUpdate, *, is_head: IsHead) -> ServerUpdate:
    """A server that trains the body of a model, whose head stays as it was.

    Args:
      server: of the body; its state has ``params``, which it broadcasts.
      is_head: see `fedbabu`.

    Example:
      >>> import jax.numpy as jnp
      >>> server = resting_head(optimizer_server(optax.sgd(1.0)), is_head=head_mask(None))
      >>> state = server.init({"body": jnp.zeros(2), "head": jnp.ones(2)}, None)
      >>> server.broadcast(state).body, sorted(state.params)
      ({'body': Array([0., 0.], dtype=float32), 'head': None}, ['body', 'head'])
    """

    def init(params: Params, population: Population) -> RestingState:
        head, body = cut(is_head(params), params)
        return RestingState(server.init(body, population), head)

    def broadcast(state: RestingState) -> UnderHead:
        return UnderHead(server.broadcast(state.inner), Known(state.head))

    def update(
        key: Key, state: RestingState, value: PyTree, cohort: Cohort, metrics: dict[str, Any]
    ) -> RestingState:
        return state._replace(inner=server.update(key, state.inner, value, cohort, metrics))

    return ServerUpdate(init, broadcast, update)
