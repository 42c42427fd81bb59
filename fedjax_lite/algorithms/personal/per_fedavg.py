"""Per-FedAvg: a model from which one gradient step on a client's own data leads far (MAML)."""

from __future__ import annotations

from typing import Any, NamedTuple, Unpack

import jax
import optax

from fedjax_lite.aggregation.mean import Weighting
from fedjax_lite.algorithms.personal.batch_parts import batch_parts, check_enough
from fedjax_lite.checks.arguments import check_bool, check_count, check_finite, check_non_negative
from fedjax_lite.checks.made import made
from fedjax_lite.checks.optimizer_arguments import loss_arguments
from fedjax_lite.engine.batches import Plan
from fedjax_lite.round.compose import federated_algorithm
from fedjax_lite.round.local import (
    ClientOptimizer,
    LocalCarry,
    LossFn,
    add_loss,
    client_step,
    local_sgd,
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
    PyTree,
    Sampler,
)


@made
def per_fedavg(
    loss: LossFn,
    client_optimizer: ClientOptimizer,
    *,
    alpha: float | Array,
    first_order: bool = False,
    plan: Plan,
    sampler: Sampler | None = None,
    server_optimizer: optax.GradientTransformation | None = None,
    weighting: Weighting = "examples",
    **slots: Unpack[SlotOptions],
) -> FederatedAlgorithm:
    r"""Federated meta-learning: FedAvg on what clients reach by a gradient step of their own.

    .. math::
        F_i(x) = f_i(x - \alpha \nabla f_i(x)), \qquad
        \nabla F_i(x) \approx \bigl(I - \alpha \nabla^2 f_i(x; D'')\bigr)\,
            \nabla f_i\bigl(x - \alpha \nabla f_i(x; D);\, D'\bigr)

    A local step deals its batch out into three parts `D`, `D'`, `D''` that have no example in
    common (two without the Hessian), so that the estimates are independent; a batch of fewer
    examples than parts shares some. The Hessian is never formed: one more backward pass.
    ``alpha = 0`` is `fedavg` on `D'`. The model is made to be adapted before it is scored: by
    ``fine_tuned(loss, optax.sgd(alpha), train, plan=Plan(batch_size=None, steps=1))``. The paper
    averages uniformly: ``weighting="uniform"``.

    Args:
      loss: ``(params, examples, key) -> [B]``, twice differentiable unless `first_order`.
      client_optimizer: of the meta-gradient; the paper has ``optax.sgd(beta)``.
      alpha: the rate of the adaptation, at least 0; it may be traced.
      first_order: leave the Hessian's factor out, as in first-order MAML.
      plan: local work; batches of three examples at least (two).
      sampler: who takes part.
      server_optimizer: default ``optax.sgd(1.0)``.
      weighting: see `fedavg`.
      **slots: `aggregator`, `uplink`, `downlink`, `privacy`, `strategy`, as in `fedavg`.

    Returns:
      A `FederatedAlgorithm`. Metrics: ``train_loss`` on `D` before adaptation, and
      ``adapted_train_loss`` on `D'` after it.

    Raises:
      TypeError: if an argument has the wrong type.
      ValueError: if `alpha` is negative or batches are too small.

    Example:
      >>> import jax.numpy as jnp, fedjax_lite as fl
      >>> b = jnp.repeat(jnp.array([-1.0, 3.0]), 3)
      >>> data = fl.data.from_arrays({"b": b}, [0, 0, 0, 1, 1, 1])
      >>> algo = per_fedavg(lambda w, e, key: 0.5 * (w - e["b"]) ** 2, optax.sgd(1.0), alpha=0.5,
      ...                   plan=fl.Plan(batch_size=3), sampler=fl.everyone())
      >>> state = algo.init(jax.random.key(0), jnp.array(0.0), data)
      >>> state, metrics = algo.round(jax.random.key(0), state, data)
      >>> float(state.server.params)  # the mean of (1 - alpha) ** 2 b
      0.25

    Reference: Fallah, Mokhtari, Ozdaglar, "Personalized Federated Learning with Theoretical
    Guarantees: A Model-Agnostic Meta-Learning Approach", 2020, arXiv:2002.07948.
    """
    check_bool(first_order, "first_order")
    client = meta_client(
        loss, client_optimizer, alpha=alpha, first_order=first_order, weighting=weighting
    )
    check_enough(plan, 2 if first_order else 3)
    return federated_algorithm(
        client,
        plan=plan,
        sampler=sampler,
        server=optimizer_server(optax.sgd(1.0) if server_optimizer is None else server_optimizer),
        **slots,
    )


class MetaCarry(NamedTuple):
    """Local training by meta-gradients."""

    local: LocalCarry
    adapted: Mean
    """The loss after adaptation."""


@made
def meta_client(
    loss: LossFn,
    client_optimizer: ClientOptimizer,
    *,
    alpha: float | Array,
    inner_steps: int = 1,
    first_order: bool = False,
    weighting: Weighting = "examples",
) -> ClientUpdate:
    r"""Local training by gradients taken after adaptation; see `per_fedavg` and `fomaml`.

    Args:
      loss: ``(params, examples, key) -> [B]``.
      client_optimizer: of the meta-gradient.
      alpha: rate of the adaptation, at least 0.
      inner_steps: steps of the adaptation, `s`; each has a part of the batch of its own. More than
        one go with `first_order` only.
      first_order: no Hessian; the batch is dealt out into ``s + 1`` parts in place of three.
      weighting: see `fedavg`.

    Returns:
      A `ClientUpdate` without persistent rows.

    Raises:
      ValueError: if `alpha` is negative, or several inner steps are asked for with the Hessian.

    Example:
      >>> import jax.numpy as jnp
      >>> client = meta_client(lambda w, e, key: 0.5 * (w - e) ** 2, optax.sgd(1.0), alpha=0.5,
      ...                      first_order=True)
      >>> info = ClientInfo(*map(jnp.int32, (0, 2, 1, 0)))
      >>> carry = client.start(None, (), jnp.array(0.0), info)
      >>> batch = Batch(jnp.array([4.0, 2.0]), jnp.ones(2, bool), jax.random.key(0))
      >>> carry = client.step(0.0, carry, batch)  # 0 -> 2, where the other example has no gradient
      >>> float(client.finish(0.0, carry)[1].value)
      0.0
    """
    check_non_negative(alpha, "alpha")
    check_finite(alpha, "alpha")
    check_count(inner_steps, "inner_steps", minimum=1)
    if inner_steps > 1 and not first_order:
        raise ValueError(
            f"inner_steps must be 1 with the Hessian, got {inner_steps}; give first_order=True"
        )
    training = local_sgd(loss, client_optimizer, weighting=weighting)
    resolve, gradient = resolve_optimizer(client_optimizer), mean_grad(loss)
    number = inner_steps + 1 if first_order else 3

    def descend(params: Params, grad: PyTree) -> Params:
        return jax.tree.map(lambda y, g: (y - alpha * g).astype(y.dtype), params, grad)

    def adapt(params: Params, parts: Batch) -> tuple[Params, Array]:
        """After a step on each part, and the loss before the first."""

        def one(params: Params, part: Batch) -> tuple[Params, Array]:
            value, grad = gradient(params, part)
            return descend(params, grad), value

        params, values = jax.lax.scan(one, params, parts)
        return params, values[0]

    def start(key: Key, row: PyTree, broadcast: Params, info: ClientInfo) -> MetaCarry:
        return MetaCarry(training.start(key, row, broadcast, info), no_loss())

    def step(broadcast: Params, carry: MetaCarry, batch: Batch) -> MetaCarry:
        local = carry.local
        parts = batch_parts(batch, number, in_front=training.counts is None)
        *before, query = (jax.tree.map(lambda x, i=i: x[i], parts) for i in range(number))
        if first_order:
            adapted, value = adapt(local.params, jax.tree.map(lambda x: x[:-1], parts))
            after, outer = gradient(adapted, query)
        else:
            support, third = before
            value, grad = gradient(local.params, support)
            after, outer = gradient(descend(local.params, grad), query)
            curved = _hessian_product(gradient, local.params, third, outer)
            outer = jax.tree.map(lambda g, h: (g - alpha * h).astype(g.dtype), outer, curved)

        def meta_loss(params: Params) -> Array:
            inner = jax.tree.map(lambda x: x[:-1] if first_order else x[:1], parts)
            return mean_loss(loss, adapt(params, inner)[0], query)

        updates, opt_state = client_step(
            resolve(local.info.round),
            outer,
            local.opt_state,
            local.params,
            loss_arguments(meta_loss, after, outer),
            anchor=broadcast,
        )
        params = optax.apply_updates(local.params, updates)
        seen = add_loss(local.loss, value, before[0])
        local = LocalCarry(params, opt_state, seen, local.info)
        return MetaCarry(local, add_loss(carry.adapted, after, query))

    def finish(broadcast: Params, carry: MetaCarry) -> tuple[PyTree, Message, dict[str, Any]]:
        row, message, metrics = training.finish(broadcast, carry.local)
        return row, message, {**metrics, "adapted_train_loss": carry.adapted}

    return ClientUpdate(training.init, start, step, finish, training.counts)


def _hessian_product(gradient: Any, params: Params, batch: Batch, vector: PyTree) -> PyTree:
    """The Hessian times a vector, by reverse mode twice: of any model that can be trained."""
    return jax.grad(lambda p: optax.tree.vdot(gradient(p, batch)[1], vector))(params)
