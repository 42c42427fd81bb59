"""AFL: the model for the worst mixture of clients, or of groups of them."""

from __future__ import annotations

from typing import Any, NamedTuple, Unpack

import jax
import jax.numpy as jnp
import numpy as np
import optax

from fedjax_lite.algorithms.fair.loss_first import Weighing, loss_first
from fedjax_lite.checks.arguments import check_finite, check_non_negative, shown
from fedjax_lite.checks.made import made
from fedjax_lite.data.population.population import Population
from fedjax_lite.engine.batches import Plan
from fedjax_lite.round.compose import federated_algorithm
from fedjax_lite.round.local import ClientOptimizer, LossFn, local_sgd
from fedjax_lite.round.server import optimizer_server
from fedjax_lite.round.slot_options import SlotOptions, refuse_privacy
from fedjax_lite.types import (
    Array,
    ClientInfo,
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


class AgnosticState(NamedTuple):
    """The global model, the mixture, and their averages over the rounds."""

    params: Params
    opt_state: PyTree
    mixture: Array
    """`lambda`, `[G]`: of the groups, or of the clients."""
    shares: Array
    """`[N]`: the part of its group's examples that a client holds."""
    mean_params: Params
    mean_mixture: Array
    num_rounds: Array

    @property
    def metrics(self) -> dict[str, Array]:
        """The largest entry of the mixture, and how many groups it is spread over."""
        spread = 1 / (self.mixture**2).sum()
        return {"mixture_largest": self.mixture.max(), "mixture_spread": spread}


class Here(NamedTuple):
    """A message that counts also where its update has no weight: its loss moves the mixture."""

    update: Any
    here: Any


@made
def afl(
    loss: LossFn,
    client_optimizer: ClientOptimizer,
    *,
    mixture_rate: float | Array,
    groups: Any = None,
    plan: Plan,
    sampler: Sampler | None = None,
    server_optimizer: optax.GradientTransformation | None = None,
    **slots: Unpack[SlotOptions],
) -> FederatedAlgorithm:
    r"""Agnostic federated learning: :math:`\min_x \max_{\lambda} \sum_g \lambda_g F_g(x)`.

    .. math::
        x &\leftarrow x - \sum_{i \in S} w_i (x - y_i) \Big/ \sum_{i \in S} w_i, \qquad
            w_i = \lambda_{g(i)}\, n_i / n_{g(i)}, \\
        \lambda &\leftarrow \Pi_\Delta\bigl(\lambda + \gamma\, (F_g(x))_g\bigr), \qquad
            F_g \text{ the mean loss of the group's examples in the cohort},

    `Pi` the projection on the simplex. Both move from the same `x` and `lambda`; clients of weight
    0 still tell their loss, so that they can come back. A group of which nobody came is not raised,
    nor is one whose loss is not finite, and such a client's update is left out. With one step a
    round it is the paper's stochastic AFL, whose guarantee is of the averages of the iterates; with
    ``mixture_rate = 0`` `fedavg` with uniform weights (with one group: by examples).

    Args:
      loss: ``(params, examples, key) -> [B]``.
      client_optimizer: an optax optimizer, or ``(round) -> optimizer``.
      mixture_rate: `gamma`, at least 0; it may be traced.
      groups: int `[N]`, the group of each client, numbered from 0; None: each for itself.
      plan: local work; the loss pass goes over all data before it.
      sampler: who takes part. Cohorts smaller than the population raise only whom they hold.
      server_optimizer: default ``optax.sgd(1.0)``, plain averaging.
      **slots: `uplink`, `downlink`, `strategy` as in `fedavg`, and aggregators that weigh, such as
        `mean`; `privacy` is refused, since weights follow the clients' losses.

    Returns:
      A `FederatedAlgorithm`. ``state.server`` has `params`, the last model; `mean_params` and
      `mean_mixture`, the averages over the rounds; `mixture`. Metrics ``loss``, ``train_loss``,
      ``mixture_largest`` and ``mixture_spread``, ``1 / sum lambda^2``.

    Raises:
      TypeError: if an argument has the wrong type.
      ValueError: if `mixture_rate` is negative, groups are not numbered from 0, one a client, or
        `privacy` is given.

    Example:
      >>> import fedjax_lite as fl
      >>> data = fl.data.from_arrays({"b": jnp.array([-1.0, 3.0])}, [0, 1])
      >>> algo = afl(lambda w, e, key: 0.5 * (w - e["b"]) ** 2, optax.sgd(0.5), mixture_rate=0.1,
      ...            plan=fl.Plan(batch_size=1), sampler=fl.everyone())
      >>> state = algo.init(jax.random.key(0), jnp.array(0.0), data)
      >>> state, _ = algo.round(jax.random.key(0), state, data)
      >>> [round(x, 3) for x in state.server.mixture.tolist()]  # (.55, .95) on the simplex
      [0.3, 0.7]

    Reference: Mohri, Sivek, Suresh, "Agnostic Federated Learning", 2019, arXiv:1902.00146.
    """
    check_non_negative(mixture_rate, "mixture_rate")
    check_finite(mixture_rate, "mixture_rate")
    refuse_privacy(slots, "afl", "the server weighs clients by a mixture that follows their losses")
    members = None if groups is None else checked_groups(groups)

    def weigh(weights: PyTree, info: ClientInfo, F: Array, message: Message) -> Message:
        known = weights[info.id]
        if members is not None:
            known = known * info.size
        weight = message.weight * jnp.where(jnp.isfinite(F), known, 0)
        return Message(Here(message.value, ()), Here(weight, message.weight))

    client = local_sgd(loss, client_optimizer, weighting="uniform")
    inner = optimizer_server(optax.sgd(1.0) if server_optimizer is None else server_optimizer)
    return federated_algorithm(
        loss_first(client, loss, plan, weigh),
        plan=plan,
        sampler=sampler,
        server=agnostic_server(inner, mixture_rate, members),
        **slots,
    )


def checked_groups(groups: Any) -> np.ndarray:
    """The group of each client, int32 `[N]`.

    Raises:
      ValueError: if they are no integers from 0 on.

    Example:
      >>> checked_groups([0, 2, 1]).tolist()
      [0, 2, 1]
    """
    found = np.asarray(groups)
    if found.ndim != 1 or found.dtype.kind not in "iu" or not found.size or found.min() < 0:
        raise ValueError(
            f"groups must be integers [N] from 0 on, one a client, got {shown(groups)}; "
            "np.unique(names, return_inverse=True)[1]"
        )
    return found.astype(np.int32)


@made
def agnostic_server(
    server: ServerUpdate, mixture_rate: float | Array, groups: np.ndarray | None = None
) -> ServerUpdate:
    """Moves the model by the aggregate, and the mixture by the clients' losses.

    Args:
      server: moves the model; its state has `params` and `opt_state`.
      mixture_rate: see `afl`.
      groups: int `[N]`, or None.

    Example:
      >>> from fedjax_lite.types import Mean
      >>> server = agnostic_server(optimizer_server(optax.sgd(1.0)), 0.25)
      >>> state = server.init(jnp.array(0.0), Population.of([1, 1]))
      >>> cohort, losses = Cohort(jnp.arange(2), jnp.ones(2, bool)), jnp.array([1.0, jnp.nan])
      >>> metrics = {"loss": Mean(losses, jnp.ones(2))}
      >>> server.update(None, state, Here(jnp.array(1.0), ()), cohort, metrics).mixture.tolist()
      [0.625, 0.375]
    """

    def init(params: Params, population: Population) -> AgnosticState:
        sizes = population.sizes.astype(jnp.result_type(float))
        if groups is not None and len(groups) != population.num_clients:
            raise ValueError(
                f"groups must be one integer a client, {population.num_clients} of them, got "
                f"{len(groups)}"
            )
        members = jnp.arange(population.num_clients) if groups is None else jnp.asarray(groups)
        num_groups = population.num_clients if groups is None else int(groups.max()) + 1
        held = jax.ops.segment_sum(sizes, members, num_groups)
        some = (held > 0).astype(sizes.dtype)
        shares = 1 / jnp.maximum(held, 1)[members] if groups is not None else jnp.ones_like(sizes)
        mixture = some / jnp.maximum(some.sum(), 1)
        state = server.init(params, population)
        zero = jax.tree.map(jnp.zeros_like, params)
        return AgnosticState(
            state.params, state.opt_state, mixture, shares, zero, 0 * mixture, jnp.int32(0)
        )

    def broadcast(state: AgnosticState) -> Weighing:
        mine = state.mixture if groups is None else state.mixture[jnp.asarray(groups)]
        return Weighing(state.params, Known(mine * state.shares))

    def update(
        key: Key, state: AgnosticState, value: PyTree, cohort: Cohort, metrics: dict[str, Any]
    ) -> AgnosticState:
        moved = server.update(key, state, value.update, cohort, metrics)
        total, count = metrics["loss"]
        told = cohort.mask & jnp.isfinite(total)
        ids = cohort.ids if groups is None else jnp.asarray(groups)[cohort.ids]
        summed = [
            jnp.zeros_like(state.mixture).at[ids].add(jnp.where(told, part, 0))
            for part in (total, count)
        ]
        raised = state.mixture + mixture_rate * summed[0] / jnp.maximum(summed[1], 1)
        mixture = optax.projections.projection_simplex(raised)
        count = state.num_rounds + 1

        def averaged(mean: Array, new: Array) -> Array:
            return mean + ((new - mean) / count).astype(mean.dtype)

        return state._replace(
            params=moved.params,
            opt_state=moved.opt_state,
            mixture=mixture,
            mean_params=jax.tree.map(averaged, state.mean_params, moved.params),
            mean_mixture=averaged(state.mean_mixture, mixture),
            num_rounds=count,
        )

    return ServerUpdate(init, broadcast, update)
