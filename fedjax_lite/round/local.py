"""Local training: mean gradients, and local SGD as start / step / finish."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from fedjax_lite import trees
from fedjax_lite.aggregation.mean import Weighting, weight_by
from fedjax_lite.checks.arguments import shown
from fedjax_lite.checks.loss import check_signature, losses_of
from fedjax_lite.checks.made import made
from fedjax_lite.checks.optimizer import check_descends
from fedjax_lite.checks.optimizer_arguments import (
    Extra,
    as_transformation,
    loss_arguments,
    step_optimizer,
)
from fedjax_lite.data.population.counting import counted, counts_of
from fedjax_lite.models.statistics_checks import check_takes_statistics
from fedjax_lite.round.optimizer_rounds import watch
from fedjax_lite.types import (
    Array,
    Batch,
    ClientInfo,
    ClientUpdate,
    Key,
    Mean,
    Message,
    Params,
    PyTree,
)

LossFn = Callable[[Params, PyTree, Key], Array]
"""``(params, examples, key) -> [B]``, one loss per example."""
ClientOptimizer = optax.GradientTransformation | Callable[[Array], optax.GradientTransformation]
"""An optax optimizer, or a function of the round's number that gives one (a schedule)."""


def mean_loss(loss: LossFn, params: Params, batch: Batch) -> Array:
    r"""The mean loss over the examples of a batch that count; 0 where there are none.

    .. math::  \frac{\sum_b m_b\, \ell(x; \xi_b)}{\max(\sum_b m_b, 1)}

    Args:
      loss: per-example loss, ``(params, examples, key) -> [B]``.
      params: the model.
      batch: leaves `[B, ...]`; masked examples count nowhere, and neither do those of which the
        loss says so (`fedjax_lite.models.with_counts`). Padding must be finite all the
        same (the engine repeats real examples): the gradient of a NaN that is masked is NaN.

    Returns:
      A scalar.

    Raises:
      TypeError, ValueError: if the loss is not one number per example.

    Example:
      >>> batch = Batch({"x": jnp.array([1.0, 3.0, 9.0])}, jnp.array([True, True, False]), None)
      >>> float(mean_loss(lambda w, e, key: w * e["x"], 2.0, batch))
      4.0
    """
    losses = losses_of(loss, params, batch.examples, batch.key, batch.mask)
    mask = counted(loss, batch.examples, batch.mask)
    return jnp.where(mask, losses, 0).sum() / jnp.maximum(mask.sum(), 1).astype(losses.dtype)


def mean_grad(loss: LossFn) -> Callable[[Params, Batch], tuple[Array, Params]]:
    """``(params, batch) -> (mean loss, gradient)`` over the examples of a batch that count.

    Example:
      >>> batch = Batch({"x": jnp.array([1.0, 3.0])}, jnp.array([True, True]), None)
      >>> value, grad = mean_grad(lambda w, e, key: w * e["x"])(2.0, batch)
      >>> float(value), float(grad)
      (4.0, 2.0)
    """
    return jax.value_and_grad(lambda params, batch: mean_loss(loss, params, batch))


def no_loss() -> Mean:
    """The loss of no example yet."""
    return Mean(jnp.float32(0), jnp.float32(0))


def add_loss(seen: Mean, value: Array, batch: Batch) -> Mean:
    """The running loss with a batch more, whose mean loss is `value`.

    Example:
      >>> add_loss(Mean(1.0, 1), jnp.array(2.0), Batch((), jnp.array([True, False, True]), None))
      Mean(total=Array(5., dtype=float32), count=Array(3., dtype=float32))
    """
    count = batch.mask.sum().astype(jnp.float32)
    return seen + Mean(value.astype(jnp.float32) * count, count)


def add_gradient(total: PyTree, grad: PyTree, batch: Batch) -> PyTree:
    """The sum of the gradients of examples with a batch more, whose mean gradient is `grad`.

    Example:
      >>> batch = Batch((), jnp.array([True, False, True]), None)
      >>> float(add_gradient(jnp.array(1.0), jnp.array(2.0), batch))
      5.0
    """
    count = batch.mask.sum().astype(jnp.float32)
    return jax.tree.map(lambda s, g: s + (count * g).astype(s.dtype), total, grad)


class LocalCarry(NamedTuple):
    """What local SGD carries from step to step."""

    params: Params
    opt_state: PyTree
    loss: Mean
    info: ClientInfo


@made
def local_sgd(
    loss: LossFn, client_optimizer: ClientOptimizer, *, weighting: Weighting = "examples"
) -> ClientUpdate:
    r"""Local training from the broadcast model; sends ``server minus client``.

    .. math::  y \leftarrow x; \quad K \text{ times: } y \leftarrow y + \mathrm{update}(\nabla f(y;
               \xi)); \quad \text{send } x - y

    The optimizer starts anew each round, its schedules and what it gathers (``optax.MultiSteps``)
    included. It is given the broadcast model as the extra argument ``anchor``, for transforms that
    pull towards it, and what it asks for of ``value``, ``grad``, ``value_fn`` and SAM's
    ``grad_fn``, for the loss on the batch at hand.

    Args:
      loss: ``(params, examples, key) -> [B]``.
      client_optimizer: an optax optimizer, or a function ``(round) -> optimizer`` for schedules
        over rounds: ``lambda r: optax.sgd(0.1 * 0.99**r)`` never recompiles.
      weighting: "examples", "uniform" or a function of `ClientInfo`; see `weight_by`.

    Returns:
      A `ClientUpdate` without persistent rows; its metric is ``train_loss``, the mean over the
      examples seen, each before its step.

    Example:
      >>> client = local_sgd(lambda w, e, key: 0.5 * (w - e["b"]) ** 2, optax.sgd(0.5))
      >>> info = ClientInfo(*map(jnp.int32, (0, 1, 1, 0)))
      >>> carry = client.start(None, (), jnp.array(0.0), info)
      >>> carry = client.step(0.0, carry, Batch({"b": jnp.ones(1)}, jnp.ones(1, bool), None))
      >>> float(client.finish(0.0, carry)[1].value)
      -0.5
    """
    check_loss(loss)
    resolve = resolve_optimizer(client_optimizer)
    weight = weight_by(weighting)
    gradient = mean_grad(loss)
    look = watch(resolve)

    def start(key: Key, row: PyTree, broadcast: Params, info: ClientInfo) -> LocalCarry:
        opt_state = resolve(info.round).init(broadcast)
        return LocalCarry(broadcast, opt_state, no_loss(), info)

    def step(broadcast: Params, carry: LocalCarry, batch: Batch) -> LocalCarry:
        value, grad = gradient(carry.params, batch)
        extra = loss_arguments(lambda params: mean_loss(loss, params, batch), value, grad)
        updates, opt_state = client_step(
            resolve(carry.info.round), grad, carry.opt_state, carry.params, extra, anchor=broadcast
        )
        params = optax.apply_updates(carry.params, updates)
        return LocalCarry(params, opt_state, add_loss(carry.loss, value, batch), carry.info)

    def finish(broadcast: Params, carry: LocalCarry) -> tuple[PyTree, Message, dict[str, Any]]:
        update = trees.subtract(broadcast, carry.params)
        return (), Message(update, weight(carry.info)), {"train_loss": carry.loss}

    def init(params: Params) -> PyTree:
        check_takes_statistics(resolve(jnp.int32(0)), params)
        look(params)
        return ()

    return ClientUpdate(init, start, step, finish, counts_of(loss))


def client_step(
    optimizer: optax.GradientTransformation,
    grad: PyTree,
    state: PyTree,
    params: Params,
    extra: Extra,
    *,
    anchor: Params | None,
    name: str = "client_optimizer",
) -> tuple[PyTree, PyTree]:
    """One step of a client optimizer, which is given the broadcast model and what it asks for.

    Args:
      optimizer: as `resolve_optimizer` gives it.
      grad: of the local objective.
      state: the optimizer's.
      params: the client's model.
      extra: of `loss_arguments`, for the same objective.
      anchor: the broadcast model; None: of these parameters nothing is broadcast.
      name: of the caller's argument, for messages.

    Returns:
      ``(updates, state)``.

    Raises:
      TypeError: if it needs an argument that local training has not.

    Example:
      >>> w, tx = jnp.ones(()), optax.sgd(0.5)
      >>> float(client_step(tx, w, tx.init(w), w, {}, anchor=w)[0])
      -0.5
    """
    remedy = (
        "wrap it so that it does without: optax.GradientTransformationExtraArgs(tx.init, lambda "
        "g, state, params, *, value, **extra: tx.update(g, state, params, ...))"
    )
    if anchor is not None:
        extra = {"anchor": anchor, **extra}
    return step_optimizer(optimizer, grad, state, params, extra, name=name, remedy=remedy)


def resolve_optimizer(
    client_optimizer: ClientOptimizer, name: str = "client_optimizer"
) -> Callable[[Array], optax.GradientTransformationExtraArgs]:
    """Turns an optimizer, or a function of the round that gives one, into the latter.

    Args:
      client_optimizer: one of both.
      name: of the caller's argument, for messages.

    Raises:
      TypeError: if it is neither.
    """
    client_optimizer = as_transformation(client_optimizer)
    if isinstance(client_optimizer, optax.GradientTransformation):
        check_descends(client_optimizer, name)
        constant = optax.with_extra_args_support(client_optimizer)
        return lambda round: constant
    if callable(client_optimizer) and not _takes_learning_rate(client_optimizer):
        if not _takes_one(client_optimizer):
            raise TypeError(
                f"{name}, a function of the round, must take the round's number alone, "
                f"lambda r: optax.sgd(rate(r)); got {shown(client_optimizer)}"
                f"{inspect.signature(client_optimizer)}; an optimizer that does not change is "
                "given as it is, optax.sgd(0.1)"
            )

        def at_round(round: Array) -> optax.GradientTransformationExtraArgs:
            optimizer = as_transformation(client_optimizer(round))
            if not isinstance(optimizer, optax.GradientTransformation):
                raise TypeError(
                    f"{name}, a function of the round, must return an optax optimizer, "
                    f"got {shown(optimizer)}; lambda r: optax.sgd(rate(r)), not lambda r: rate(r)"
                )
            return optax.with_extra_args_support(optimizer)

        return at_round
    raise TypeError(
        f"{name} must be an optax optimizer or a function (round) -> optimizer, "
        f"got {shown(client_optimizer)}; optax.sgd(0.1), neither 0.1 nor optax.sgd"
    )


def _takes_one(function: Callable) -> bool:
    """Whether a function can be called with one argument; so says one that nothing is known of."""
    try:
        inspect.signature(function).bind(0)
    except TypeError:
        return False
    except ValueError:
        return True
    return True


def _takes_learning_rate(function: Callable) -> bool:
    """Whether this is a factory such as ``optax.sgd`` that was not called."""
    try:
        parameters = list(inspect.signature(function).parameters)
    except (TypeError, ValueError):
        return False
    return bool(parameters) and parameters[0] == "learning_rate"


def check_loss(loss: Any) -> None:
    """Raises TypeError where `loss` is not a function of params, examples and key."""
    if not callable(loss):
        found = "a Model" if hasattr(loss, "predict") else repr(loss)
        raise TypeError(
            f"loss must be a function (params, examples, key) -> [B], got {found}; "
            "model.loss, not model"
        )
    check_signature(loss)
