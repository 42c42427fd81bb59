"""q-FedAvg: clients with a larger loss weigh more; steps follow the curvature of that."""

from __future__ import annotations

from typing import Unpack

import jax
import jax.numpy as jnp
import optax

from fedjax_lite import trees
from fedjax_lite.aggregation.mean import Weighting
from fedjax_lite.algorithms.fair.loss_first import loss_first, weighing_server
from fedjax_lite.algorithms.scaffold import rate_of_round
from fedjax_lite.checks.arguments import check_finite, check_non_negative
from fedjax_lite.checks.made import made
from fedjax_lite.engine.batches import Plan
from fedjax_lite.round.compose import federated_algorithm
from fedjax_lite.round.local import LossFn, local_sgd
from fedjax_lite.round.server import Rate, optimizer_server
from fedjax_lite.round.slot_options import SlotOptions, refuse_privacy
from fedjax_lite.types import (
    Array,
    ClientInfo,
    FederatedAlgorithm,
    Message,
    PyTree,
    Sampler,
)

FLOOR = 1e-10
"""Losses are taken to be at least this: `F^(q-1)` at 0, the authors' program adds as much."""
WHY = "a message weighs as much as its client's loss says, which no mechanism bounds"


@made
def q_fedavg(
    loss: LossFn,
    learning_rate: Rate,
    *,
    q: float | Array,
    plan: Plan,
    sampler: Sampler | None = None,
    weighting: Weighting = "uniform",
    server_optimizer: optax.GradientTransformation | None = None,
    **slots: Unpack[SlotOptions],
) -> FederatedAlgorithm:
    r"""FedAvg on :math:`\frac1{q+1}\sum_i F_i^{q+1}`: the larger `q`, the more the worst-off count.

    .. math::
        L &= 1/\eta, \qquad \Delta w_i = L\,(x - y_i), \qquad F_i = F_i(x), \\
        D_i &= F_i^q\, \Delta w_i, \qquad
        h_i = q\, F_i^{q-1} \lVert \Delta w_i \rVert^2 + L\, F_i^q, \\
        x &\leftarrow x - \textstyle\sum_i D_i \big/ \sum_i h_i .

    `F_i` is the loss at the broadcast model on *all* of the client's data, a forward pass before
    training. A client sends `D_i / h_i` and weighs `h_i / L`, so `mean`, compression and
    aggregators apply. With ``q = 0`` it is `fedavg` with uniform weights, in every bit; as `q`
    grows it approaches the model of the smallest largest loss.

    Args:
      loss: ``(params, examples, key) -> [B]``, not negative on a client's average (cross-entropy
        and squares are not); below 1e-10 it is taken for that.
      learning_rate: `eta` of local SGD, or a function of the round; it also sets `L`.
      q: at least 0; it may be traced. The paper tries .001 to 15; larger losses want smaller ones.
      plan: local work.
      sampler: who takes part; the paper draws clients in proportion to their data, `weighted`.
      weighting: `p_i` in front of `F_i^(q+1)`: "uniform", "examples", or a function of
        `ClientInfo`.
      server_optimizer: default ``optax.sgd(1.0)``, the step above.
      **slots: `aggregator`, `uplink`, `downlink`, `strategy` as in `fedavg`; `privacy` is refused,
        since weights follow the clients' losses.

    Returns:
      A `FederatedAlgorithm`; metrics ``train_loss`` of the steps and ``loss``, `F_i` averaged.

    Raises:
      TypeError: if an argument has the wrong type.
      ValueError: if `q` is negative or not finite, or `privacy` is given.

    Example:
      >>> import fedjax_lite as fl
      >>> data = fl.data.from_arrays({"b": jnp.array([-1.0, 3.0])}, [0, 1])
      >>> algo = q_fedavg(lambda w, e, key: 0.5 * (w - e["b"]) ** 2, 0.5, q=1.0,
      ...                 plan=fl.Plan(batch_size=1), sampler=fl.everyone())
      >>> state = algo.init(jax.random.key(0), jnp.array(0.0), data)
      >>> state, _ = algo.round(jax.random.key(0), state, data)
      >>> round(float(state.server.params), 4)  # D = (-.5, 13.5), h = (1 + 1, 9 + 9)
      0.65

    Reference: Li, Sanjabi, Beirami, Smith, "Fair Resource Allocation in Federated Learning", 2019,
    arXiv:1905.10497.
    """
    check_q(q)
    refuse_privacy(slots, "q_fedavg", WHY)
    rate_at = rate_of_round(learning_rate)

    def weigh(known: PyTree, info: ClientInfo, F: Array, message: Message) -> Message:
        return fair_message(message, F, q, rate_at(info.round))

    client = local_sgd(loss, lambda round: optax.sgd(rate_at(round)), weighting=weighting)
    server = optimizer_server(optax.sgd(1.0) if server_optimizer is None else server_optimizer)
    return federated_algorithm(
        loss_first(client, loss, plan, weigh),
        plan=plan,
        sampler=sampler,
        server=weighing_server(server),
        **slots,
    )


def check_q(q: float | Array) -> None:
    """Raises ValueError where a concrete `q` is negative or not finite."""
    check_non_negative(q, "q")
    check_finite(q, "q")


def fair_message(message: Message, F: Array, q: float | Array, rate: float | Array) -> Message:
    """`D_i / h_i` with weight `h_i / L`, of an update ``x - y_i`` and its loss.

    Where the update is `u`: ``D / h = u / s`` and ``h / L = F^q s`` with ``s = 1 + q |u|^2 / (eta
    F)``, so that no power of a loss below 1 is divided by.

    Example:
      >>> sent = fair_message(Message(jnp.array(1.0), 1.0), jnp.array(0.5), 1.0, 0.5)
      >>> round(float(sent.value), 4), float(sent.weight)  # s = 1 + 1 / .25
      (0.2, 2.5)
    """
    F = jnp.maximum(F, FLOOR)
    square = optax.tree.norm(message.value, squared=True)
    stretch = 1 + q * square / (rate * F)
    value = jax.tree.map(lambda u: (u / stretch).astype(u.dtype), message.value)
    return Message(trees.settled(value), message.weight * F**q * stretch)
