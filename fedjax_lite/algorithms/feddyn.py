"""FedDyn: local objectives that are regularised dynamically, so that their optima agree."""

from __future__ import annotations

from typing import Any, NamedTuple, Unpack

import jax
import jax.numpy as jnp
import optax

from fedjax_lite import trees
from fedjax_lite.aggregation.mean import Weighting, weight_by
from fedjax_lite.aggregation.population import Totals, totals
from fedjax_lite.checks.arguments import check_positive
from fedjax_lite.checks.made import made
from fedjax_lite.checks.optimizer_arguments import loss_arguments
from fedjax_lite.data.population.counting import counts_of
from fedjax_lite.data.population.population import Population
from fedjax_lite.engine.batches import Plan
from fedjax_lite.models.statistics_checks import check_no_statistics
from fedjax_lite.round.compose import federated_algorithm
from fedjax_lite.round.local import (
    ClientOptimizer,
    LossFn,
    add_loss,
    check_loss,
    client_step,
    mean_grad,
    mean_loss,
    no_loss,
    resolve_optimizer,
)
from fedjax_lite.round.optimizer_rounds import watch
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
    Mean,
    Message,
    Params,
    PyTree,
    Sampler,
    ServerUpdate,
)


@made
def feddyn(
    loss: LossFn,
    client_optimizer: ClientOptimizer,
    *,
    alpha: float | Array,
    plan: Plan,
    sampler: Sampler | None = None,
    weighting: Weighting = "uniform",
    **slots: Unpack[SlotOptions],
) -> FederatedAlgorithm:
    r"""Local training with a dynamic regulariser.

    .. math::
        y_i &\approx \arg\min_y f_i(y) - \langle g_i, y \rangle
             + \tfrac{\alpha_i}{2} \lVert y - x \rVert^2, \\
        g_i &\leftarrow g_i - \alpha_i (y_i - x), \qquad
        h \leftarrow h - \tfrac{\alpha}{N} \textstyle\sum_{i \in S} (y_i - x), \qquad
        x \leftarrow \tfrac{1}{m} \textstyle\sum_{i \in S} y_i - h / \alpha .

    The client optimizer is fed ``grad f_i(y) - g_i + alpha_i (y - x)``. `N` counts all clients
    that have data, `m` those of the cohort that did a step. All of `g_i` and `h` start at zero.
    Uniform: ``alpha_i = alpha``, and x tends to the minimiser of the plain mean of the `f_i`.
    Weighted: ``alpha_i = alpha / (N p_i)`` with ``p_i = w_i / sum_j w_j`` over all clients, `h`
    and `x` unchanged, and x tends to the minimiser of ``sum_i p_i f_i``. After every round
    ``h = sum_i p_i g_i``; after an exact local solve ``g_i = grad f_i(y_i)``. The limit does not
    depend on `alpha`, the speed does. Where nobody did a step nothing moves.

    ``state.server.params`` is `x`, the model that is broadcast, and what evaluators see. The
    authors' code also reports the mean of the `y_i`, which is ``x + h / alpha`` (`local_mean`);
    both have the same limit.

    Args:
      loss: ``(params, examples, key) -> [B]``, one loss per example.
      client_optimizer: an optax optimizer, or ``(round) -> optimizer``.
      alpha: the penalty, > 0 (the paper's 0.01 .. 0.1); may be traced.
      plan: local work.
      sampler: who takes part.
      weighting: "uniform", "examples" or a function of `ClientInfo` that depends on neither
        round nor steps.
      **slots: `aggregator`, `uplink`, `downlink`, `privacy`, `strategy` as in `fedavg`.

    Returns:
      A `FederatedAlgorithm`: rows ``state.clients`` are `g_i`, ``state.server.correction`` is `h`.

    Raises:
      ValueError: if `alpha` is not positive.

    Example:
      >>> import fedjax_lite as fl
      >>> data = fl.data.from_arrays({"b": jnp.array([-1.0, 3.0])}, [0, 1])
      >>> algo = feddyn(lambda w, e, key: 0.5 * (w - e["b"]) ** 2, optax.sgd(0.5), alpha=1.0,
      ...               plan=fl.Plan(batch_size=1), sampler=fl.everyone())
      >>> state = algo.init(jax.random.key(0), jnp.array(0.0), data)
      >>> state, _ = algo.round(jax.random.key(0), state, data)
      >>> float(state.server.params), float(local_mean(state.server, alpha=1.0))
      (1.0, 0.5)

    Reference: Acar, Zhao, Matas, Mattina, Whatmough, Saligrama, "Federated Learning Based on
    Dynamic Regularization", 2021, arXiv:2111.04263.
    """
    check_positive(alpha, "alpha")
    return federated_algorithm(
        feddyn_client(loss, client_optimizer, alpha=alpha, weighting=weighting),
        plan=plan,
        sampler=sampler,
        server=feddyn_server(alpha, weighting=weighting),
        **slots,
    )


class Regularised(NamedTuple):
    """What clients download: the model, and for their own penalties what they know of all."""

    params: Params
    totals: Known


class FedDynCarry(NamedTuple):
    """What a client carries from step to step."""

    params: Params
    row: Params
    """`g_i`."""
    alpha: Array
    """`alpha_i`."""
    opt_state: PyTree
    loss: Mean
    info: ClientInfo


@made
def feddyn_client(
    loss: LossFn,
    client_optimizer: ClientOptimizer,
    *,
    alpha: float | Array,
    weighting: Weighting = "uniform",
) -> ClientUpdate:
    """The client's side of `feddyn`; sends ``x - y_i``, keeps `g_i`.

    Args:
      loss: ``(params, examples, key) -> [B]``.
      client_optimizer: see `feddyn`.
      alpha: see `feddyn`.
      weighting: see `feddyn`.

    Example:
      >>> client = feddyn_client(lambda w, e, key: w * e["g"], optax.sgd(0.5), alpha=0.1)
      >>> client.init(jnp.ones(2)).tolist()
      [0.0, 0.0]
    """
    check_loss(loss)
    resolve = resolve_optimizer(client_optimizer)
    weight = weight_by(weighting)
    gradient = mean_grad(loss)
    look = watch(resolve)

    def own_alpha(totals: Totals, info: ClientInfo) -> Array:
        dtype = jnp.result_type(float)
        share = weight(info).astype(dtype) * totals.num_clients.astype(dtype)
        # Of weight 0, and so of no effect: any number without NaN.
        return alpha * totals.weight.astype(dtype) / jnp.where(share > 0, share, 1)

    def start(key: Key, row: Params, broadcast: Regularised, info: ClientInfo) -> FedDynCarry:
        opt_state = resolve(info.round).init(broadcast.params)
        own = own_alpha(broadcast.totals.value, info)
        return FedDynCarry(broadcast.params, row, own, opt_state, no_loss(), info)

    def step(broadcast: Regularised, carry: FedDynCarry, batch: Batch) -> FedDynCarry:
        value, grad = gradient(carry.params, batch)
        grad = jax.tree.map(
            lambda d, g, y, x: (d + (-g + carry.alpha * (y - x))).astype(d.dtype),
            grad,
            carry.row,
            carry.params,
            broadcast.params,
        )

        def penalty(params: Params) -> Array:
            terms = jax.tree.map(
                lambda y, g, x: (-g * y + carry.alpha / 2 * (y - x) ** 2).sum(),
                *(params, carry.row, broadcast.params),
            )
            return sum(jax.tree.leaves(terms))

        objective = lambda params: mean_loss(loss, params, batch) + penalty(params)  # noqa: E731
        extra = loss_arguments(objective, value + penalty(carry.params), grad)
        updates, opt_state = client_step(
            *(resolve(carry.info.round), grad, carry.opt_state, carry.params, extra),
            anchor=broadcast.params,
        )
        seen = add_loss(carry.loss, value, batch)
        params = optax.apply_updates(carry.params, updates)
        return carry._replace(params=params, opt_state=opt_state, loss=seen)

    def finish(
        broadcast: Regularised, carry: FedDynCarry
    ) -> tuple[Params, Message, dict[str, Any]]:
        update = trees.subtract(broadcast.params, carry.params)
        counts = weight(carry.info) > 0
        row = jax.tree.map(lambda g, u: (g + carry.alpha * u).astype(g.dtype), carry.row, update)
        row = trees.where(counts, row, carry.row)
        weighs = counts.astype(jnp.float32)
        return row, Message(update, weighs), {"train_loss": carry.loss, "weight": weighs}

    def init(params: Params) -> Params:
        check_no_statistics(params, "feddyn")
        look(params)
        return jax.tree.map(jnp.zeros_like, params)

    return ClientUpdate(init, start, step, finish, counts_of(loss))


class FedDynState(NamedTuple):
    """The server: the model `x`, the correction `h`, and what it knows of all clients."""

    params: Params
    correction: Params
    totals: Totals


@made
def feddyn_server(alpha: float | Array, *, weighting: Weighting = "uniform") -> ServerUpdate:
    """The server's side of `feddyn`.

    Args:
      alpha: the penalty.
      weighting: as the client's.

    Example:
      >>> server = feddyn_server(1.0)
      >>> state = server.init(jnp.array(0.0), Population.of([1, 1]))
      >>> cohort = Cohort(jnp.arange(1), jnp.ones(1, bool))
      >>> new = server.update(None, state, jnp.array(-1.0), cohort, {"weight": jnp.ones(1)})
      >>> float(new.params), float(new.correction)
      (1.5, -0.5)
    """

    def init(params: Params, population: Population) -> FedDynState:
        return FedDynState(params, trees.zeros(params), totals(population, weighting))

    def update(
        key: Key, server: FedDynState, value: PyTree, cohort: Cohort, metrics: dict[str, Any]
    ) -> FedDynState:
        arrived = metrics["weight"].sum()

        def correct(h: Array, d: Array) -> Array:
            share = arrived.astype(h.dtype) / server.totals.num_clients.astype(h.dtype)
            return (h + alpha * share * d.astype(h.dtype)).astype(h.dtype)

        correction = jax.tree.map(correct, server.correction, value)
        params = jax.tree.map(
            lambda x, d, h: (x - d.astype(x.dtype) - h / alpha).astype(x.dtype),
            server.params,
            value,
            correction,
        )
        return FedDynState(params, correction, server.totals)

    return ServerUpdate(
        init, lambda server: Regularised(server.params, Known(server.totals)), update
    )


def local_mean(server: FedDynState, *, alpha: float | Array) -> Params:
    """The mean of the last round's local models, ``x + h / alpha``.

    Args:
      server: ``state.server`` of `feddyn`.
      alpha: as it was given to `feddyn`.

    Example:
      >>> state = feddyn_server(1.0).init(jnp.array(1.0), Population.of([1]))
      >>> state = state._replace(correction=jnp.array(-0.5))
      >>> float(local_mean(state, alpha=1.0))
      0.5
    """
    return jax.tree.map(
        lambda x, h: (x + h / alpha).astype(x.dtype), server.params, server.correction
    )
