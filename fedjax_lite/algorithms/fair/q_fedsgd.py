"""q-FedSGD: gradients of larger losses weigh more; one gradient a client and round."""

from __future__ import annotations

from typing import Any, NamedTuple, Unpack

import jax
import jax.numpy as jnp
import optax

from fedjax_lite import trees
from fedjax_lite.aggregation.mean import Weighting, weight_by
from fedjax_lite.algorithms.fair.loss_first import no_loss, ratio
from fedjax_lite.algorithms.fair.q_fedavg import WHY, check_q, fair_message
from fedjax_lite.algorithms.scaffold import rate_of_round
from fedjax_lite.checks.made import made
from fedjax_lite.data.population.counting import counts_of
from fedjax_lite.engine.batches import Plan
from fedjax_lite.round.compose import federated_algorithm
from fedjax_lite.round.local import LossFn, check_loss, mean_grad
from fedjax_lite.round.server import Rate, optimizer_server
from fedjax_lite.round.slot_options import SlotOptions, refuse_privacy
from fedjax_lite.types import (
    Array,
    Batch,
    ClientInfo,
    ClientUpdate,
    FederatedAlgorithm,
    Key,
    Mean,
    Message,
    Params,
    PyTree,
    Sampler,
)


class SummedGradient(NamedTuple):
    """Sums over the examples seen."""

    gradient: Params
    loss: Mean
    info: ClientInfo


@made
def q_fedsgd(
    loss: LossFn,
    learning_rate: Rate,
    *,
    q: float | Array,
    sampler: Sampler | None = None,
    batch_size: int | None = None,
    weighting: Weighting = "uniform",
    server_optimizer: optax.GradientTransformation | None = None,
    **slots: Unpack[SlotOptions],
) -> FederatedAlgorithm:
    r"""Gradient descent on :math:`\frac1{q+1}\sum_i F_i^{q+1}`, its rate found from one `eta`.

    .. math::
        L = 1/\eta, \qquad
        x \leftarrow x - \frac{\sum_i F_i^q \nabla F_i(x)}
            {\sum_i \bigl(q\, F_i^{q-1} \lVert \nabla F_i(x) \rVert^2 + L\, F_i^q\bigr)} .

    The denominator bounds the curvature of `F^(q+1)` where `L` bounds that of `F`, so an `eta` that
    was tuned at ``q = 0`` serves every `q`. With ``q = 0`` it is `fedsgd` with uniform weights.

    Args:
      loss: as in `q_fedavg`.
      learning_rate: `eta`, or a function of the round.
      q: at least 0; it may be traced.
      sampler: who takes part.
      batch_size: examples at a time, to save memory; the gradient is that of all of them.
      weighting: `p_i` in front of `F_i^(q+1)`; see `q_fedavg`.
      server_optimizer: default ``optax.sgd(1.0)``, the step above.
      **slots: as in `q_fedavg`.

    Returns:
      A `FederatedAlgorithm`; metric ``train_loss``, `F_i` averaged over examples.

    Raises:
      TypeError: if an argument has the wrong type.
      ValueError: if `q` is negative or not finite, or `privacy` is given.

    Example:
      >>> import fedjax_lite as fl
      >>> data = fl.data.from_arrays({"b": jnp.array([-1.0, 3.0])}, [0, 1])
      >>> algo = q_fedsgd(lambda w, e, key: 0.5 * (w - e["b"]) ** 2, 0.5, q=1.0,
      ...                 sampler=fl.everyone())
      >>> state = algo.init(jax.random.key(0), jnp.array(0.0), data)
      >>> state, _ = algo.round(jax.random.key(0), state, data)
      >>> round(float(state.server.params), 4)  # D = (-.5, 13.5), h = (1 + 1, 9 + 9)
      0.65

    Reference: Li, Sanjabi, Beirami, Smith, "Fair Resource Allocation in Federated Learning", 2019,
    arXiv:1905.10497.
    """
    check_q(q)
    check_loss(loss)
    refuse_privacy(slots, "q_fedsgd", WHY)
    rate_at, weight, gradient = rate_of_round(learning_rate), weight_by(weighting), mean_grad(loss)

    def start(key: Key, row: PyTree, broadcast: Params, info: ClientInfo) -> SummedGradient:
        return SummedGradient(trees.zeros(broadcast), no_loss(), info)

    def step(broadcast: Params, carry: SummedGradient, batch: Batch) -> SummedGradient:
        value, grad = gradient(broadcast, batch)
        count = batch.mask.sum().astype(carry.loss.count.dtype)
        total = jax.tree.map(lambda s, g: (s + count * g).astype(s.dtype), carry.gradient, grad)
        return carry._replace(gradient=total, loss=carry.loss + Mean(value * count, count))

    def finish(broadcast: Params, carry: SummedGradient) -> tuple[PyTree, Message, dict[str, Any]]:
        rate = rate_at(carry.info.round)
        share = rate / jnp.maximum(carry.loss.count, 1)
        update = jax.tree.map(lambda g: (share * g).astype(g.dtype), carry.gradient)
        message = Message(update, weight(carry.info))
        message = fair_message(message, ratio(carry.loss), q, rate)
        return (), message, {"train_loss": carry.loss}

    return federated_algorithm(
        ClientUpdate(lambda params: (), start, step, finish, counts_of(loss)),
        plan=Plan(batch_size=batch_size, epochs=1),
        sampler=sampler,
        server=optimizer_server(optax.sgd(1.0) if server_optimizer is None else server_optimizer),
        **slots,
    )
