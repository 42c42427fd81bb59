"""EWC: federated averaging whose clients keep what old tasks have taught the model."""

from __future__ import annotations

from typing import Any, NamedTuple, Unpack

import jax
import jax.numpy as jnp
import optax

from fedjax_lite.aggregation.mean import Weighting
from fedjax_lite.checks.arguments import check_finite, check_non_negative, shown
from fedjax_lite.checks.made import made, signed
from fedjax_lite.data.population.population import Population
from fedjax_lite.engine.batches import Plan
from fedjax_lite.engine.phases import step_of
from fedjax_lite.models.statistics_checks import check_no_statistics
from fedjax_lite.objectives.ewc import (
    OldTasks,
    check_lam,
    check_like,
    ewc_penalty,
    no_old_tasks,
    old_tasks_penalty,
)
from fedjax_lite.objectives.penalised import penalised
from fedjax_lite.objectives.proximal import half_squares, proximal
from fedjax_lite.round.compose import federated_algorithm
from fedjax_lite.round.downlink import Downlinked
from fedjax_lite.round.local import ClientOptimizer, LossFn, local_sgd, resolve_optimizer
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
    Known,
    Message,
    Params,
    PyTree,
    RoundState,
    Sampler,
    ServerUpdate,
)


@made
def ewc(
    loss: LossFn,
    client_optimizer: ClientOptimizer,
    *,
    lam: float | Array,
    plan: Plan,
    sampler: Sampler | None = None,
    weighting: Weighting = "examples",
    server_optimizer: optax.GradientTransformation | None = None,
    **slots: Unpack[SlotOptions],
) -> FederatedAlgorithm:
    r"""Federated averaging with elastic weight consolidation: old tasks pull in every local step.

    .. math::
        y_i &\approx \arg\min_y\; f_i(y) + \tfrac{\lambda}{2} \sum_k \sum_j
              F_{k,j}\, (y_j - t_{k,j})^2 \quad\text{from } y = x, \\
        x &\leftarrow \textstyle\sum_{i \in S} p_i\, y_i

    for the optima `t_k` of old tasks and their Fisher information `F_k`, which clients know: they
    are an argument of the compiled round, neither billed nor compressed. The state begins without
    any, and then it is FedAvg; at the end of a task `remember` it and put it in with
    `with_old_tasks`, which compiles nothing. ``lam = 0`` is FedAvg, too.

    Args:
      loss: ``(params, examples, key) -> [B]``, one loss per example, without the penalty; the
        metric ``train_loss`` is without it, too.
      client_optimizer: an optax optimizer, or ``(round) -> optimizer``; it is given the gradient of
        the whole local objective.
      lam: the importance of the old tasks, at least 0; it may be traced. Values depend on the
        scale of the Fisher information: 1 is the Laplace approximation for as many old examples
        as `f_i` is the mean of.
      plan: local work.
      sampler: who takes part.
      weighting: "examples" (`n_i`), "uniform", or a function of `ClientInfo`.
      server_optimizer: default ``optax.sgd(1.0)``, plain averaging.
      **slots: `aggregator`, `uplink`, `downlink`, `privacy`, `strategy` as in `fedavg`.

    Returns:
      A `FederatedAlgorithm`; the model is ``state.server.params``, what was learnt
      ``state.server.old``.

    Raises:
      TypeError: if an argument has the wrong type.
      ValueError: if `lam` is negative or not finite, or a name is unknown.

    Example:
      >>> import fedjax_lite as fl
      >>> data = fl.data.from_arrays({"b": jnp.array([-1.0])}, [0])
      >>> algo = ewc(lambda w, e, key: 2.0 * (w - e["b"]) ** 2, optax.sgd(0.1), lam=3.0,
      ...            plan=fl.Plan(batch_size=1, steps=40), sampler=fl.everyone())
      >>> state = algo.init(jax.random.key(0), jnp.array(1.0), data)
      >>> old = fl.remember(state.server.old, jnp.array(2.0), jnp.array(1.0))
      >>> state, _ = algo.round(jax.random.key(0), with_old_tasks(state, old), data)
      >>> round(float(state.server.params), 4)  # 4 (w + 1) + 3 . 2 (w - 1) = 0
      0.2

    Reference: Kirkpatrick et al., "Overcoming catastrophic forgetting in neural networks", 2017,
    arXiv:1612.00796.
    """
    return federated_algorithm(
        remembering_client(loss, client_optimizer, lam=lam, weighting=weighting),
        plan=plan,
        sampler=sampler,
        server=remembering_server(
            optimizer_server(optax.sgd(1.0) if server_optimizer is None else server_optimizer)
        ),
        **slots,
    )


class WithOldTasks(NamedTuple):
    """What clients download: the model, and what they know already."""

    params: Params
    old: Known
    """`OldTasks`."""


class RememberingState(NamedTuple):
    """A server's state, and the tasks learnt so far."""

    inner: PyTree
    old: OldTasks

    @property
    def params(self) -> Params:
        """The global model."""
        return self.inner.params


@made
def remembering_client(
    loss: LossFn,
    client_optimizer: ClientOptimizer,
    *,
    lam: float | Array,
    mu: float | Array | None = None,
    weighting: Weighting = "examples",
) -> ClientUpdate:
    """`local_sgd` with the penalty of the old tasks that come with the broadcast.

    Args:
      loss: see `ewc`.
      client_optimizer: see `ewc`.
      lam: see `ewc`.
      mu: of a pull to the broadcast model, see `three_way`; None: none.
      weighting: see `ewc`.

    Example:
      >>> client = remembering_client(lambda w, e, key: w * e["x"], optax.sgd(0.1), lam=1.0)
      >>> client.init(jnp.ones(2))
      ()
    """
    check_lam(lam)
    if mu is not None:
        check_non_negative(mu, "mu")
        check_finite(mu, "mu")
    resolve = resolve_optimizer(client_optimizer)

    def local(old: OldTasks) -> ClientUpdate:
        def penalty(params: Params, anchor: Params) -> Array:
            total = old_tasks_penalty(lam, old)(params, anchor)
            return total if mu is None else total + half_squares(mu)(params, anchor)

        pulls = [ewc_penalty(lam, old), *([] if mu is None else [proximal(mu)])]
        return local_sgd(
            loss,
            lambda round: optax.chain(*pulls, penalised(resolve(round), penalty)),
            weighting=weighting,
        )

    plain = local_sgd(loss, client_optimizer, weighting=weighting)  # checks them before tracing

    def init(params: Params) -> PyTree:
        check_no_statistics(params, "the penalty of old tasks")
        return plain.init(params)

    def start(key: Key, row: PyTree, broadcast: WithOldTasks, info: ClientInfo) -> PyTree:
        return local(broadcast.old.value).start(key, row, broadcast.params, info)

    def step(broadcast: WithOldTasks, carry: PyTree, batch: Batch) -> PyTree:
        return step_of(local(broadcast.old.value))(broadcast.params, carry, batch)

    def finish(broadcast: WithOldTasks, carry: PyTree) -> tuple[PyTree, Message, dict[str, Any]]:
        return plain.finish(broadcast.params, carry)

    return ClientUpdate(init, start, step, finish, plain.counts)


@made
def remembering_server(server: ServerUpdate) -> ServerUpdate:
    """A server that hands the tasks learnt so far to its clients, as `Known`.

    Args:
      server: any `ServerUpdate` whose state has ``params`` and whose broadcast is the model.

    Example:
      >>> server = remembering_server(optimizer_server(optax.sgd(1.0)))
      >>> state = server.init(jnp.array(2.0), None)
      >>> float(server.broadcast(state).params), float(state.old.fisher)
      (2.0, 0.0)
    """

    def init(params: Params, population: Population) -> RememberingState:
        copied = jax.tree.map(lambda leaf: jnp.array(leaf, dtype=leaf.dtype), params)
        return RememberingState(server.init(params, population), no_old_tasks(copied))

    def broadcast(state: RememberingState) -> WithOldTasks:
        return WithOldTasks(server.broadcast(state.inner), Known(state.old))

    def update(
        key: Key, state: RememberingState, value: PyTree, cohort: Cohort, metrics: dict[str, Any]
    ) -> RememberingState:
        return state._replace(inner=server.update(key, state.inner, value, cohort, metrics))

    return signed(ServerUpdate(init, broadcast, update), server.made)


def with_old_tasks(state: RoundState, old: OldTasks) -> RoundState:
    """The state with other old tasks; the model stays, and nothing is compiled anew.

    Args:
      state: of `ewc` or `three_way`.
      old: as a rule ``remember(state.server.old, fisher, state.server.params)``.

    Raises:
      TypeError: if the state remembers nothing, or `old` is no `OldTasks`.
      ValueError: if structure or shapes are not those of the model.

    Example:
      >>> server = remembering_server(optimizer_server(optax.sgd(1.0)))
      >>> state = RoundState(None, server.init(jnp.array(2.0), None), (), (), (), ())
      >>> old = state.server.old._replace(fisher=jnp.array(3.0))
      >>> float(with_old_tasks(state, old).server.old.fisher)
      3.0
    """
    outer = getattr(state, "server", None)
    server = outer.inner if isinstance(outer, Downlinked) else outer
    if not isinstance(server, RememberingState):
        raise TypeError(
            f"state must come from ewc or three_way, got {shown(state)}; algo.init(...)"
        )
    if not isinstance(old, OldTasks):
        raise TypeError(
            f"old must be OldTasks, got {shown(old)}; remember(state.server.old, fisher, params)"
        )
    check_like(old, server.old, "old")
    # Copies in the state's dtypes: it may be donated, and must not be traced again.
    copied = jax.tree.map(lambda new, mine: jnp.array(new, dtype=mine.dtype), old, server.old)
    server = server._replace(old=copied)
    return state._replace(
        server=outer._replace(inner=server) if isinstance(outer, Downlinked) else server
    )
