"""Baselines through the same code path: centralised training, and every client on its own."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import jax.numpy as jnp

from fedjax_lite import trees
from fedjax_lite.checks.made import made
from fedjax_lite.data.population.dataset import FederatedDataset
from fedjax_lite.data.population.population import Population
from fedjax_lite.engine.batches import Plan
from fedjax_lite.engine.program import Strategy
from fedjax_lite.round.compose import check_data, federated_algorithm
from fedjax_lite.round.local import (
    ClientOptimizer,
    LocalCarry,
    LossFn,
    local_sgd,
    resolve_optimizer,
)
from fedjax_lite.round.own_models import kept, models_of
from fedjax_lite.round.sampling import everyone
from fedjax_lite.round.server import ServerState
from fedjax_lite.types import (
    Array,
    ClientInfo,
    ClientUpdate,
    Cohort,
    FederatedAlgorithm,
    Key,
    Message,
    Params,
    PyTree,
    RoundState,
    Sampler,
    ServerUpdate,
)


def pooled(data: FederatedDataset) -> FederatedDataset:
    """The union of all clients as one client; the examples are not copied.

    Args:
      data: the population, `E` examples.

    Returns:
      A `FederatedDataset` with one client, which owns everything.

    Raises:
      TypeError: if `data` is not a `FederatedDataset`.

    Example:
      >>> import fedjax_lite as fl
      >>> data = fl.data.from_arrays({"x": jnp.arange(3.0)}, [1, 0, 1])
      >>> pooled(data).sizes.tolist()
      [3]
    """
    check_data(data)
    ends = data.offsets[jnp.array([0, data.num_clients])]
    return dataclasses.replace(data, offsets=ends, max_client_size=data.num_examples, splits={})


@made
def centralised(
    loss: LossFn,
    client_optimizer: ClientOptimizer,
    *,
    plan: Plan,
    keep_optimizer: bool = True,
    strategy: Strategy | None = None,
) -> FederatedAlgorithm:
    r"""Plain training on the union of all data: the bound that federated runs are compared with.

    .. math::  x \leftarrow x + \mathrm{update}(\nabla f(x; \xi)), \qquad
               \xi \sim \textstyle\bigcup_i \mathcal{D}_i

    It is a federation of one client, run by the same engine on the same batches, so a run
    of it differs from a federated run in nothing but the pooling. It takes the *federated* data.

    Args:
      loss: ``(params, examples, key) -> [B]``.
      client_optimizer: an optax optimizer, or ``(round) -> optimizer``.
      plan: the work of one "round": ``Plan(batch_size=50, epochs=1)`` is an epoch over the union.
        Amounts per client have no meaning here.
      keep_optimizer: momentum and counters live on between rounds, as in a plain loop; False
        restarts them each round, as FedAvg does.
      strategy: execution; default `auto()`.

    Returns:
      A `FederatedAlgorithm`; the model is ``state.server.params``.

    Raises:
      ValueError: if ``round`` is given a cohort: the union has no clients to choose from.

    Example:
      >>> import jax, optax, fedjax_lite as fl
      >>> data = fl.data.from_arrays({"b": jnp.array([-1.0, 2.0, 2.0])}, [0, 1, 1])
      >>> algo = centralised(lambda w, e, key: 0.5 * (w - e["b"]) ** 2, optax.sgd(1.0),
      ...                    plan=fl.Plan(batch_size=None))
      >>> state = algo.init(jax.random.key(0), jnp.array(0.0), data)
      >>> float(algo.round(jax.random.key(0), state, data)[0].server.params)
      1.0
    """
    training = local_sgd(loss, client_optimizer, weighting="uniform")
    resolve = resolve_optimizer(client_optimizer)

    def remember(params: Params) -> PyTree:
        return resolve(jnp.int32(0)).init(params) if keep_optimizer else ()

    def start(key: Key, row: PyTree, broadcast: Params, info: ClientInfo) -> LocalCarry:
        carry = training.start(key, (), broadcast, info)
        return carry._replace(opt_state=row) if keep_optimizer else carry

    def finish(broadcast: Params, carry: LocalCarry) -> tuple[PyTree, Message, dict[str, Any]]:
        _, message, metrics = training.finish(broadcast, carry)
        row = carry.opt_state if keep_optimizer else ()
        # The model itself, not a difference: x - (x - y) is not y in every bit.
        return row, Message(carry.params, message.weight), metrics

    one = federated_algorithm(
        ClientUpdate(remember, start, training.step, finish, training.counts),
        plan=plan,
        sampler=everyone(),
        server=_same_model(),
        strategy=strategy,
    )

    def init(key: Key, params: Params, data: FederatedDataset) -> RoundState:
        return one.init(key, params, pooled(data))

    def round(
        key: Key, state: RoundState, data: FederatedDataset, cohort: Cohort | None = None
    ) -> tuple[RoundState, dict[str, Array]]:
        if cohort is not None:
            raise ValueError(
                "centralised takes no cohort: it trains on the union of all clients; "
                "build a smaller data set to leave some of them out"
            )
        return one.round(key, state, pooled(data))

    def models(state: RoundState, ids: Any = None) -> Params:
        if ids is None:
            raise ValueError(
                "ids must be given, got None: to centralised all clients are one, so its state "
                "does not tell how many there are; ids=np.arange(data.num_clients)"
            )
        return models_of(state, ids)

    return FederatedAlgorithm(init, round, models=models, slots=one.slots)


class OwnModel(NamedTuple):
    """The row of a client that trains alone."""

    params: Params
    opt_state: PyTree

    def own_model(self, server_model: Params) -> Params:
        """The client's model, see `RoundState.clients`."""
        return self.params


class InitialModel(NamedTuple):
    """The server of clients that train alone: it keeps the model that they began with."""

    params: Params
    trained = False
    """Nobody trains it: evaluators refuse to score it as the run's result."""


@made
def local_only(
    loss: LossFn,
    client_optimizer: ClientOptimizer,
    *,
    plan: Plan,
    sampler: Sampler | None = None,
    keep_optimizer: bool = True,
    strategy: Strategy | None = None,
) -> FederatedAlgorithm:
    r"""Every client trains a model of its own on its own data; nothing is sent or averaged.

    .. math::  y_i \leftarrow y_i + \mathrm{update}(\nabla f_i(y_i; \xi)), \qquad y_i^0 = x_0

    What a client gains by joining a federation is the difference to this.

    Args:
      loss: ``(params, examples, key) -> [B]``.
      client_optimizer: an optax optimizer, or ``(round) -> optimizer``.
      plan: the work of a client in a round.
      sampler: who trains this round; default `everyone()`.
      keep_optimizer: momentum and counters live on between rounds; False restarts them.
      strategy: execution; default `auto()`.

    Returns:
      A `FederatedAlgorithm`. The clients' models are ``client_models(state)``, leaves `[N, ...]`
      (memory O(N x model)); ``state.server.params`` stays the initial model, which evaluators
      refuse to score: `evaluate_clients` and `evaluate_personal` score each client's own.

    Example:
      >>> import jax, optax, fedjax_lite as fl
      >>> data = fl.data.from_arrays({"b": jnp.array([-1.0, 2.0, 2.0])}, [0, 1, 1])
      >>> algo = local_only(lambda w, e, key: 0.5 * (w - e["b"]) ** 2, optax.sgd(1.0),
      ...                   plan=fl.Plan(batch_size=None), sampler=fl.everyone())
      >>> state = algo.init(jax.random.key(0), jnp.array(0.0), data)
      >>> state, metrics = algo.round(jax.random.key(0), state, data)
      >>> client_models(state).tolist(), float(metrics["uplink_bits"])
      ([-1.0, 2.0], 0.0)
    """
    resolve = resolve_optimizer(client_optimizer)
    training = local_sgd(loss, client_optimizer)

    def init(params: Params) -> OwnModel:
        return OwnModel(params, resolve(jnp.int32(0)).init(params) if keep_optimizer else ())

    def start(key: Key, row: OwnModel, broadcast: Params, info: ClientInfo) -> LocalCarry:
        carry = training.start(key, (), row.params, info)
        return carry._replace(opt_state=row.opt_state) if keep_optimizer else carry

    def finish(broadcast: Params, carry: LocalCarry) -> tuple[OwnModel, Message, dict[str, Any]]:
        _, _, metrics = training.finish(broadcast, carry)
        row = OwnModel(carry.params, carry.opt_state if keep_optimizer else ())
        return row, Message((), ()), metrics

    return federated_algorithm(
        ClientUpdate(init, start, training.step, finish, training.counts),
        plan=plan,
        sampler=everyone() if sampler is None else sampler,
        server=ServerUpdate(
            lambda params, population: InitialModel(params),
            lambda server: server.params,
            lambda key, server, value, cohort, metrics: server,
        ),
        strategy=strategy,
    )


def _same_model() -> ServerUpdate:
    """A server that takes the aggregate for its model."""

    def init(params: Params, population: Population) -> ServerState:
        return ServerState(params, ())

    def update(
        key: Key, server: ServerState, value: PyTree, cohort: Cohort, metrics: dict[str, Any]
    ) -> ServerState:
        return ServerState(trees.cast_like(value, server.params), ())

    return ServerUpdate(init, lambda server: server.params, update)


def client_models(state: RoundState, ids: Any = None) -> Params:
    """The clients' own models, leaves `[n, ...]`, also where rows lie on the host or on disk.

    Args:
      state: of a `local_only` run, or of one with local leaves, as `personal_models`.
      ids: integers `[n]`, the clients; None: all `N` of them.

    Returns:
      The models; ``jax.vmap`` evaluates them all at once.

    Raises:
      TypeError: if the state keeps no models of clients.

    Example:
      >>> state = RoundState(None, InitialModel(jnp.zeros(2)), OwnModel(jnp.zeros((3, 2)), ()),
      ...                    (), (), ())
      >>> client_models(state).shape
      (3, 2)
    """
    if not isinstance(state, RoundState) or not kept(state).personal:
        raise TypeError(
            "state must come from local_only, ditto, apfl, pfedme, or a method with local leaves "
            "(fedper, fedrep, fedbn, local_leaves): clients of no other keep models; they use "
            "state.server.params"
        )
    return models_of(state, ids)


def gap_to_baseline(
    history: Sequence[Mapping[str, Any]],
    baseline: Sequence[Mapping[str, Any]],
    *,
    metrics: Sequence[str] | None = None,
) -> list[dict[str, float]]:
    """What a run gives away against a baseline (centralised, local-only), round by round.

    Args:
      history: rows of a run, as `run` returns them.
      baseline: rows of the baseline's run; rounds are matched by number, and a round that only one
        of them evaluated has no row.
      metrics: columns to compare; default every column named loss or accuracy of both.

    Returns:
      One row a common round: ``{"round": r, "test_loss_gap": run minus baseline, ...}``. A positive
      gap of a loss and a negative one of an accuracy are what federation costs.

    Raises:
      ValueError: if a metric is in no common row, or there is no common round.

    Example:
      >>> gap_to_baseline([{"round": 1, "test_loss": 0.75}], [{"round": 1, "test_loss": 0.5}])
      [{'round': 1, 'test_loss_gap': 0.25}]
    """
    others = {row["round"]: row for row in baseline}
    pairs = [(row, others[row["round"]]) for row in history if row["round"] in others]
    if not pairs:
        raise ValueError(
            f"history and baseline share no round, got rounds {[r['round'] for r in history]} and "
            f"{sorted(others)}; evaluate both at the same rounds (every=...)"
        )
    common = {name for mine, theirs in pairs for name in mine if name in theirs}
    if metrics is None:
        metrics = sorted(name for name in common if "loss" in name or "accuracy" in name)
    absent = [name for name in metrics if name not in common]
    if absent or not metrics:
        raise ValueError(
            f"metrics must be columns of both histories, got {absent or list(metrics)}; "
            f"they share {sorted(common)}"
        )
    gaps = []
    for mine, theirs in pairs:
        names = [name for name in metrics if name in mine and name in theirs]
        gap = {f"{name}_gap": mine[name] - theirs[name] for name in names}
        if gap:
            gaps.append({"round": mine["round"], **gap})
    return gaps
