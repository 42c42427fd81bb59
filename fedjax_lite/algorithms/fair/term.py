"""TERM: a tilt between the mean of the clients' losses and the largest (or smallest)."""

from __future__ import annotations

from typing import Any, NamedTuple, Unpack

import jax.numpy as jnp
import optax

from fedjax_lite.aggregation.mean import Weighting
from fedjax_lite.algorithms.fair.loss_first import Weighing, loss_first, ratio
from fedjax_lite.checks.arguments import check_finite
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

WIDEST = 60.0
"""Exponents are cut at this on either side of the last round's largest: weights stay finite."""


class TiltedState(NamedTuple):
    """The global model, and where exponents are measured from."""

    params: Params
    opt_state: PyTree
    level: Array
    """The largest `t F_i` of the last round; it cancels, and keeps `exp` in range."""


@made
def term(
    loss: LossFn,
    client_optimizer: ClientOptimizer,
    *,
    tilt: float | Array,
    plan: Plan,
    sampler: Sampler | None = None,
    weighting: Weighting = "examples",
    server_optimizer: optax.GradientTransformation | None = None,
    **slots: Unpack[SlotOptions],
) -> FederatedAlgorithm:
    r"""Tilted empirical risk over clients: :math:`\frac1t \log \sum_i p_i\, e^{t F_i(x)}`.

    .. math::
        x \leftarrow x - \sum_{i \in S} w_i (x - y_i) \Big/ \sum_{i \in S} w_i, \qquad
        w_i = p_i\, e^{t F_i(x)} .

    With one gradient step a client it is gradient descent on the tilted risk. A positive tilt leans
    to the worst-off, in the limit to the largest loss; a negative one leaves outliers out; ``tilt =
    0`` is `fedavg`, in every bit. `F_i` is the loss at the broadcast model on all of the client's
    data, a forward pass before training. Exponents are cut where they are more than 60 from the
    last round's largest, which only a tilt of dozens meets, in its first rounds.

    Args:
      loss: ``(params, examples, key) -> [B]``.
      client_optimizer: an optax optimizer, or ``(round) -> optimizer``.
      tilt: `t`; it may be traced. The paper tries .1 to 50 on accuracies of clients.
      plan: local work.
      sampler: who takes part.
      weighting: `p_i`: "examples", "uniform", or a function of `ClientInfo`.
      server_optimizer: default ``optax.sgd(1.0)``, plain averaging.
      **slots: `aggregator`, `uplink`, `downlink`, `strategy` as in `fedavg`; `privacy` is refused,
        since weights follow the clients' losses.

    Returns:
      A `FederatedAlgorithm`; metrics ``train_loss`` of the steps and ``loss``, `F_i` averaged.

    Raises:
      TypeError: if an argument has the wrong type.
      ValueError: if `tilt` is not finite, or `privacy` is given.

    Example:
      >>> import jax, fedjax_lite as fl
      >>> data = fl.data.from_arrays({"b": jnp.array([0.0, 2.0])}, [0, 1])
      >>> algo = term(lambda w, e, key: 0.5 * (w - e["b"]) ** 2, optax.sgd(1.0), tilt=0.5,
      ...             plan=fl.Plan(batch_size=1), sampler=fl.everyone())
      >>> state = algo.init(jax.random.key(0), jnp.array(0.0), data)
      >>> state, _ = algo.round(jax.random.key(0), state, data)
      >>> round(float(state.server.params), 4)  # 2 e / (1 + e)
      1.4621

    Reference: Li, Beirami, Sanjabi, Smith, "Tilted Empirical Risk Minimization", 2020,
    arXiv:2007.01162.
    """
    check_finite(tilt, "tilt")
    refuse_privacy(slots, "term", "a message weighs as much as its client's loss says")

    def weigh(level: PyTree, info: ClientInfo, F: Array, message: Message) -> Message:
        lean = jnp.exp(jnp.clip(tilt * F - level, -WIDEST, WIDEST))
        return message._replace(weight=message.weight * lean)

    client = local_sgd(loss, client_optimizer, weighting=weighting)
    inner = optimizer_server(optax.sgd(1.0) if server_optimizer is None else server_optimizer)
    return federated_algorithm(
        loss_first(client, loss, plan, weigh),
        plan=plan,
        sampler=sampler,
        server=tilted_server(inner, tilt),
        **slots,
    )


@made
def tilted_server(server: ServerUpdate, tilt: float | Array) -> ServerUpdate:
    """Moves the model by the aggregate, and remembers the cohort's largest ``t F_i``.

    Args:
      server: moves the model; its state has `params` and `opt_state`.
      tilt: see `term`.

    Example:
      >>> from fedjax_lite.types import Mean
      >>> server = tilted_server(optimizer_server(optax.sgd(1.0)), 2.0)
      >>> state = server.init(jnp.array(0.0), Population.of([1, 1]))
      >>> cohort, metrics = Cohort(jnp.arange(2), jnp.ones(2, bool)), {
      ...     "loss": Mean(jnp.array([1.0, 3.0]), jnp.ones(2))}
      >>> float(server.update(None, state, jnp.array(0.5), cohort, metrics).level)
      6.0
    """

    def init(params: Params, population: Population) -> TiltedState:
        state = server.init(params, population)
        return TiltedState(state.params, state.opt_state, jnp.zeros((), jnp.result_type(float)))

    def update(
        key: Key, state: TiltedState, value: PyTree, cohort: Cohort, metrics: dict[str, Any]
    ) -> TiltedState:
        moved = server.update(key, state, value, cohort, metrics)
        exponents = tilt * ratio(metrics["loss"])
        told = cohort.mask & jnp.isfinite(exponents)
        level = jnp.where(told, exponents, -jnp.inf).max()
        level = jnp.where(told.any(), level, state.level).astype(state.level.dtype)
        return TiltedState(moved.params, moved.opt_state, level)

    return ServerUpdate(init, lambda state: Weighing(state.params, Known(state.level)), update)
