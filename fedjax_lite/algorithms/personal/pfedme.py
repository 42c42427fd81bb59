"""pFedMe: personal models are proximal points of the client's own copy of the global model."""

from __future__ import annotations

from typing import Any, NamedTuple, Unpack

import jax
import jax.numpy as jnp
import optax

from fedjax_lite import trees
from fedjax_lite.aggregation.mean import Weighting, weight_by
from fedjax_lite.algorithms.baselines import OwnModel
from fedjax_lite.algorithms.fedprox import pulled
from fedjax_lite.checks.arguments import (
    check_count,
    check_finite,
    check_non_negative,
)
from fedjax_lite.checks.made import made
from fedjax_lite.checks.optimizer_arguments import loss_arguments
from fedjax_lite.data.population.counting import counts_of
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
from fedjax_lite.round.server import optimizer_server
from fedjax_lite.round.slot_options import SlotOptions
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
    Sampler,
)


class PFedMeCarry(NamedTuple):
    """What a client carries from step to step."""

    copy: Params
    """`w_i`, the client's copy of the global model."""
    own: Params
    """`theta_i`."""
    loss: Mean
    """At `theta_i`, before each step's first descent."""
    info: ClientInfo


@made
def pfedme(
    loss: LossFn,
    client_optimizer: ClientOptimizer,
    *,
    learning_rate: float | Array,
    pull: float | Array = 15.0,
    inner_steps: int = 5,
    plan: Plan,
    sampler: Sampler | None = None,
    weighting: Weighting = "uniform",
    server_optimizer: optax.GradientTransformation | None = None,
    **slots: Unpack[SlotOptions],
) -> FederatedAlgorithm:
    r"""Averages copies of the global model that move towards each client's personal model.

    .. math::
        \theta_i(w) &\approx \arg\min_\theta\; f_i(\theta)
            + \tfrac{\lambda}{2} \lVert \theta - w \rVert^2
            \quad\text{by } K \text{ steps on one batch}, \\
        w_i &\leftarrow w_i - \eta\lambda\,\bigl(w_i - \theta_i(w_i)\bigr), \quad w_i^0 = x, \qquad
        x \leftarrow (1 - \beta)\, x + \beta \textstyle\sum_{i \in S} p_i\, w_i .

    It is gradient descent on the Moreau envelopes of the clients' losses. A step of the plan is one
    outer iteration: a new batch, `K` gradients on it, one step of `w_i`. `theta_i` starts at the
    broadcast in every round and from there on goes on from the last one, as in the authors'
    program. A client's personal model is the point of its last batch, so it is as noisy as a batch
    is small: an epoch whose last batch is short ends in the point of few examples. A client that
    has not yet taken part has the initial model. Memory O(N x model).

    Args:
      loss: ``(params, examples, key) -> [B]``.
      client_optimizer: solves for `theta_i`, started anew for every batch; the paper has SGD, whose
        rate should be below ``2 / (a + pull)`` for a curvature `a`.
      learning_rate: `eta`, of the outer steps, at least 0; it may be traced. ``learning_rate *
        pull`` is the share of the way to `theta_i` that `w_i` goes in a step; 1 goes all of it.
      pull: `lambda`, at least 0; it may be traced. The paper's main setting is 15.
      inner_steps: `K`; the paper's is 5.
      plan: outer steps.
      sampler: who takes part.
      weighting: "uniform" as in the paper, "examples", or a function of `ClientInfo`.
      server_optimizer: default ``optax.sgd(1.0)``; ``optax.sgd(beta)`` is the paper's `beta`.
      **slots: `aggregator`, `uplink`, `downlink`, `privacy`, `strategy` as in `fedavg`; they see
        the copies `w_i` only.

    Returns:
      A `FederatedAlgorithm`. ``state.server.params`` is the global model, the last `theta_i` of
      each client are ``personal_models(state)``; the metric ``train_loss`` is that of `theta_i`
      before each batch.

    Raises:
      TypeError: if an argument has the wrong type.
      ValueError: if `pull`, `learning_rate` or `inner_steps` lies outside of its range.

    Example:
      >>> import fedjax_lite as fl
      >>> data = fl.data.from_arrays({"b": jnp.array([-1.0, 3.0])}, [0, 1])
      >>> algo = pfedme(lambda w, e, key: 0.5 * (w - e["b"]) ** 2, optax.sgd(0.5), pull=1.0,
      ...               learning_rate=0.5, inner_steps=1, plan=fl.Plan(batch_size=1),
      ...               sampler=fl.everyone())
      >>> state = algo.init(jax.random.key(0), jnp.array(0.0), data)
      >>> state, _ = algo.round(jax.random.key(0), state, data)  # theta = .5 b, w = .5 theta
      >>> float(state.server.params), fl.personal_models(state).tolist()
      (0.25, [-0.5, 1.5])

    Reference: Dinh, Tran, Nguyen, "Personalized Federated Learning with Moreau Envelopes", 2020,
    arXiv:2006.08848.
    """
    for name, value in (("pull", pull), ("learning_rate", learning_rate)):
        check_non_negative(value, name)
        check_finite(value, name)
    check_count(inner_steps, "inner_steps", minimum=1)
    check_loss(loss)
    resolve, gradient = resolve_optimizer(pulled(client_optimizer, pull)), mean_grad(loss)
    weight = weight_by(weighting)

    def proximal_point(carry: PFedMeCarry, batch: Batch) -> tuple[Params, Array]:
        """`theta_i` after the steps on a batch, and the loss before them."""
        optimizer = resolve(carry.info.round)

        def descend(point: tuple[Params, Any], key: Key) -> tuple[tuple[Params, Any], Array]:
            theta, opt_state = point
            mine = batch._replace(key=key)
            value, grad = gradient(theta, mine)
            extra = loss_arguments(lambda params: mean_loss(loss, params, mine), value, grad)
            updates, opt_state = client_step(
                optimizer, grad, opt_state, theta, extra, anchor=carry.copy
            )
            return (optax.apply_updates(theta, updates), opt_state), value

        keys = jax.random.split(batch.key, inner_steps)
        begin = carry.own, optimizer.init(carry.own)
        (theta, _), values = jax.lax.scan(descend, begin, keys)
        return theta, values[0]

    def init(params: Params) -> OwnModel:
        check_no_statistics(params, "pfedme")
        return OwnModel(params, ())

    def start(key: Key, row: OwnModel, broadcast: Params, info: ClientInfo) -> PFedMeCarry:
        return PFedMeCarry(broadcast, broadcast, no_loss(), info)

    def step(broadcast: Params, carry: PFedMeCarry, batch: Batch) -> PFedMeCarry:
        theta, value = proximal_point(carry, batch)

        def follow(w: Array, t: Array) -> Array:
            return (w - jnp.asarray(learning_rate * pull, w.dtype) * (w - t)).astype(w.dtype)

        copy = jax.tree.map(follow, carry.copy, theta)
        return carry._replace(copy=copy, own=theta, loss=add_loss(carry.loss, value, batch))

    def finish(broadcast: Params, carry: PFedMeCarry) -> tuple[OwnModel, Message, dict[str, Any]]:
        update = trees.subtract(broadcast, carry.copy)
        message = Message(update, weight(carry.info))
        return OwnModel(carry.own, ()), message, {"train_loss": carry.loss}

    return federated_algorithm(
        ClientUpdate(init, start, step, finish, counts_of(loss)),
        plan=plan,
        sampler=sampler,
        server=optimizer_server(optax.sgd(1.0) if server_optimizer is None else server_optimizer),
        **slots,
    )
