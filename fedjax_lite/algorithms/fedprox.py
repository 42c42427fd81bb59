"""FedProx: FedAvg whose clients are pulled towards the server's model; mu fixed or adaptive."""

from __future__ import annotations

from typing import Any, NamedTuple, Unpack

import jax.numpy as jnp
import optax

from fedjax_lite.aggregation.mean import Weighting
from fedjax_lite.checks.arguments import check_count, check_finite, check_non_negative
from fedjax_lite.checks.made import made
from fedjax_lite.data.population.counting import counts_of
from fedjax_lite.data.population.population import Population
from fedjax_lite.engine.batches import Plan
from fedjax_lite.engine.phases import step_of
from fedjax_lite.objectives.penalised import penalised
from fedjax_lite.objectives.proximal import half_squares, proximal
from fedjax_lite.round.cohort_mean import mean_over
from fedjax_lite.round.compose import federated_algorithm
from fedjax_lite.round.local import (
    ClientOptimizer,
    LocalCarry,
    LossFn,
    local_sgd,
    resolve_optimizer,
)
from fedjax_lite.round.server import optimizer_server
from fedjax_lite.round.slot_options import SlotOptions
from fedjax_lite.types import (
    Array,
    Batch,
    ClientInfo,
    ClientUpdate,
    Cohort,
    FederatedAlgorithm,
    Key,
    Mean,
    Message,
    Params,
    PyTree,
    Sampler,
    ServerUpdate,
)


@made
def fedprox(
    loss: LossFn,
    client_optimizer: ClientOptimizer,
    *,
    mu: float | Array,
    plan: Plan,
    sampler: Sampler | None = None,
    weighting: Weighting = "examples",
    server_optimizer: optax.GradientTransformation | None = None,
    adaptive: bool = False,
    **slots: Unpack[SlotOptions],
) -> FederatedAlgorithm:
    r"""Federated averaging with a proximal term in the local objectives.

    .. math::
        y_i &\approx \arg\min_y\; f_i(y) + \tfrac{\mu}{2} \lVert y - x \rVert^2
        \quad\text{from } y = x, \text{ by the steps of the plan}, \\
        x &\leftarrow \textstyle\sum_{i \in S} p_i\, y_i .

    It is FedAvg with ``optax.chain(proximal(mu), client_optimizer)``; ``mu = 0`` is FedAvg. The
    paper samples clients in proportion to their examples and averages uniformly:
    ``sampler=weighted(m), weighting="uniform"``. Stragglers do part of the work: give the plan
    random amounts.

    Args:
      loss: ``(params, examples, key) -> [B]``, one loss per example, without the penalty; the
        metric ``train_loss`` is without it, too.
      client_optimizer: an optax optimizer, or ``(round) -> optimizer``; it is given the gradient
        of the whole local objective.
      mu: the penalty, at least 0; it may be traced. The paper tries .001, .01, .1 and 1.
      plan: local work.
      sampler: who takes part.
      weighting: "examples" (`n_i`), "uniform", or a function of `ClientInfo`.
      server_optimizer: default ``optax.sgd(1.0)``, plain averaging.
      adaptive: `mu` is only the start and follows the loss at the broadcast model, see
        `adaptive_mu`; the round's metrics then have ``mu`` and ``anchor_loss``.
      **slots: `aggregator`, `uplink`, `downlink`, `privacy`, `strategy` as in `fedavg`.

    Returns:
      A `FederatedAlgorithm`; the global model is ``state.server.params``.

    Raises:
      TypeError: if an argument has the wrong type.
      ValueError: if `mu` is negative or a name is unknown.

    Example:
      >>> import jax, fedjax_lite as fl
      >>> data = fl.data.from_arrays({"b": jnp.array([-1.0, 3.0])}, [0, 1])
      >>> algo = fedprox(lambda w, e, key: 0.5 * (w - e["b"]) ** 2, optax.sgd(0.5), mu=1.0,
      ...                plan=fl.Plan(batch_size=1, steps=2), sampler=fl.everyone())
      >>> state = algo.init(jax.random.key(0), jnp.array(0.0), data)
      >>> float(algo.round(jax.random.key(0), state, data)[0].server.params)  # FedAvg: 0.75
      0.5

    Reference: Li, Sahu, Zaheer, Sanjabi, Talwalkar, Smith, "Federated Optimization in
    Heterogeneous Networks", 2020, arXiv:1812.06127.
    """
    check_non_negative(mu, "mu")
    check_finite(mu, "mu")
    server = optimizer_server(optax.sgd(1.0) if server_optimizer is None else server_optimizer)
    if adaptive:
        client = adaptive_client(loss, client_optimizer, weighting=weighting)
        server = adaptive_mu(server, mu=mu)
    else:
        client = local_sgd(loss, pulled(client_optimizer, mu), weighting=weighting)
    return federated_algorithm(client, plan=plan, sampler=sampler, server=server, **slots)


@made
def pulled(
    client_optimizer: ClientOptimizer, mu: float | Array, name: str = "client_optimizer"
) -> ClientOptimizer:
    """The proximal term before a client optimizer; `name` is the caller's for it."""
    resolve = resolve_optimizer(client_optimizer, name)
    return lambda round: optax.chain(proximal(mu), penalised(resolve(round), half_squares(mu)))


# -- adaptive mu ----------------------------------------------------------------------------


class WithMu(NamedTuple):
    """What clients download when mu is adaptive."""

    params: Params
    mu: Array


class AdaptiveMuState(NamedTuple):
    """The server's state, and what mu depends on."""

    inner: PyTree
    mu: Array
    last_loss: Array
    """The loss of the last round in which somebody took part; infinite before the first."""
    num_decreases: Array
    """Consecutive rounds in which the loss fell; -1 before the first, which compares nothing."""

    @property
    def params(self) -> Params:
        """The global model."""
        return self.inner.params


@made
def adaptive_mu(
    server: ServerUpdate,
    *,
    mu: float | Array,
    increment: float | Array = 0.1,
    patience: int = 5,
    metric: str = "anchor_loss",
) -> ServerUpdate:
    r"""Wraps a server so that it broadcasts a penalty that follows the loss, the paper's heuristic.

    .. math::
        \mu \leftarrow \begin{cases}
          \mu + \delta & \text{if the loss rose or is not finite,} \\
          \max(\mu - \delta, 0) & \text{if it fell in each of the last } \mathit{patience}
            \text{ rounds,} \\
          \mu & \text{otherwise.} \end{cases}

    The count of falls starts anew after a decrease of mu, after a rise, and where the loss stayed.
    The loss of a round is that of `metric` over the cohort, so with partial participation it is
    noisy; a round in which nobody counts changes nothing. Clients must be `adaptive_client`.

    Args:
      server: any `ServerUpdate` whose state has ``params``.
      mu: its start, at least 0 (the paper starts at 0 on IID and at 1 on heterogeneous data).
      increment: `delta`, at least 0.
      patience: falls in a row before mu is lowered.
      metric: the clients' metric that is watched, a scalar or a `Mean`.

    Returns:
      A `ServerUpdate` that broadcasts ``WithMu(params, mu)``.

    Raises:
      TypeError: if `server` is no `ServerUpdate` or `patience` no int.
      ValueError: if `mu` or `increment` is negative or `patience` below 1; in a round, if the
        clients do not report `metric`.

    Example:
      >>> server = adaptive_mu(optimizer_server(optax.sgd(1.0)), mu=1.0)
      >>> cohort, state = Cohort(jnp.arange(1), jnp.ones(1, bool)), server.init(jnp.zeros(2), None)
      >>> for loss in (3.0, 4.0):
      ...     metrics = {"anchor_loss": jnp.array([loss])}
      ...     state = server.update(None, state, jnp.ones(2), cohort, metrics)
      >>> round(float(server.broadcast(state).mu), 6)
      1.1

    Reference: Li et al., 2020, arXiv:1812.06127.
    """
    if not isinstance(server, ServerUpdate):
        raise TypeError(f"server must be a ServerUpdate, got {server!r}; optimizer_server(tx)")
    check_non_negative(mu, "mu")
    check_finite(mu, "mu")
    check_non_negative(increment, "increment")
    check_count(patience, "patience", minimum=1)

    def init(params: Params, population: Population) -> AdaptiveMuState:
        dtype = jnp.result_type(float)
        inner = server.init(params, population)
        return AdaptiveMuState(
            inner, jnp.array(mu, dtype), jnp.array(jnp.inf, dtype), jnp.int32(-1)
        )

    def broadcast(state: AdaptiveMuState) -> WithMu:
        return WithMu(server.broadcast(state.inner), state.mu)

    def update(
        key: Key, state: AdaptiveMuState, value: PyTree, cohort: Cohort, metrics: dict[str, Any]
    ) -> AdaptiveMuState:
        if metric not in metrics:
            raise ValueError(
                f"metric must be one that the clients report, {sorted(metrics)}, got {metric!r}; "
                "adaptive_mu goes with adaptive_client"
            )
        loss = mean_over(cohort, metrics[metric]).astype(state.last_loss.dtype)
        rose, fell = ~(loss <= state.last_loss), loss < state.last_loss  # NaN fails both: it rose
        num_decreases = jnp.where(fell, state.num_decreases + 1, 0)
        enough = num_decreases >= patience
        step = jnp.asarray(increment, state.mu.dtype)
        lowered = jnp.where(enough, jnp.maximum(state.mu - step, 0), state.mu)
        return AdaptiveMuState(
            server.update(key, state.inner, value, cohort, metrics),
            jnp.where(rose, state.mu + step, lowered),
            jnp.where(jnp.isfinite(loss), loss, state.last_loss),
            jnp.where(enough, 0, num_decreases).astype(jnp.int32),
        )

    return ServerUpdate(init, broadcast, update)


class AdaptiveCarry(NamedTuple):
    """Local SGD's carry, and the loss before the first step."""

    local: LocalCarry
    anchor_loss: Array


@made
def adaptive_client(
    loss: LossFn, client_optimizer: ClientOptimizer, *, weighting: Weighting = "examples"
) -> ClientUpdate:
    r"""Local SGD with the proximal term of the mu that the server broadcasts.

    Besides ``train_loss`` it reports ``mu`` and ``anchor_loss``, the estimate of
    ``sum_i p_i f_i(x)`` from every client's first batch, which costs nothing: the local training
    loss would not do, since it falls also where clients drift apart.

    Args:
      loss: ``(params, examples, key) -> [B]``.
      client_optimizer: as in `local_sgd`.
      weighting: as in `local_sgd`; it weighs ``anchor_loss``, too.

    Returns:
      A `ClientUpdate` for servers made by `adaptive_mu`.

    Example:
      >>> client = adaptive_client(lambda w, e, key: 0.5 * (w - e["b"]) ** 2, optax.sgd(0.5))
      >>> down = WithMu(jnp.array(0.0), jnp.array(1.0))
      >>> carry = client.start(None, (), down, ClientInfo(*map(jnp.int32, (0, 1, 2, 0))))
      >>> batch = Batch({"b": jnp.array([2.0])}, jnp.ones(1, bool), None)
      >>> carry = client.step(down, client.step(down, carry, batch), batch)
      >>> _, message, metrics = client.finish(down, carry)
      >>> float(message.value), float(metrics["anchor_loss"].total)  # 0 -> 1 -> 1 - .5 (-1 + 1)
      (-1.0, 2.0)

    Reference: Li et al., 2020, arXiv:1812.06127.
    """

    def local(mu: float | Array) -> ClientUpdate:
        return local_sgd(loss, pulled(client_optimizer, mu), weighting=weighting)

    local(0.0)  # checks the arguments before anything is traced

    def start(key: Key, row: PyTree, broadcast: WithMu, info: ClientInfo) -> AdaptiveCarry:
        carry = local(broadcast.mu).start(key, row, broadcast.params, info)
        return AdaptiveCarry(carry, jnp.zeros_like(carry.loss.total))

    def step(broadcast: WithMu, carry: AdaptiveCarry, batch: Batch) -> AdaptiveCarry:
        new = step_of(local(broadcast.mu))(broadcast.params, carry.local, batch)
        first = new.loss.total / jnp.maximum(new.loss.count, 1)
        is_first = carry.local.loss.count == 0
        return AdaptiveCarry(new, jnp.where(is_first, first, carry.anchor_loss))

    def finish(broadcast: WithMu, carry: AdaptiveCarry) -> tuple[PyTree, Message, dict[str, Any]]:
        row, message, metrics = local(broadcast.mu).finish(broadcast.params, carry.local)
        weighed = Mean(message.weight * carry.anchor_loss, message.weight)
        return row, message, {**metrics, "anchor_loss": weighed, "mu": broadcast.mu}

    return ClientUpdate(lambda params: (), start, step, finish, counts_of(loss))
