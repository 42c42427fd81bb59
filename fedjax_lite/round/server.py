"""Server updates: an optimizer that descends on the aggregated pseudo-gradient."""

from __future__ import annotations

import inspect
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from fedjax_lite import trees
from fedjax_lite.checks.arguments import (
    check_fraction,
    check_non_negative,
    check_positive,
    check_tree,
    shown,
)
from fedjax_lite.checks.calls import check_calls
from fedjax_lite.checks.made import made
from fedjax_lite.checks.optimizer import check_descends
from fedjax_lite.checks.optimizer_arguments import (
    Extra,
    as_transformation,
    asks_for,
    step_optimizer,
)
from fedjax_lite.data.population.population import Population
from fedjax_lite.models.batch_norm import check_no_local_statistics
from fedjax_lite.round.cohort_mean import mean_over
from fedjax_lite.types import Array, Cohort, Key, Params, PyTree, ServerUpdate

Rate = float | Array | optax.Schedule


class ServerState(NamedTuple):
    """The global model and the server optimizer's state."""

    params: Params
    opt_state: PyTree


@made
def optimizer_server(optimizer: optax.GradientTransformation) -> ServerUpdate:
    r"""Steps an optax optimizer on the pseudo-gradient, ``server minus client``.

    .. math::  x \leftarrow x + \mathrm{update}(\bar\Delta), \qquad
               \bar\Delta = \textstyle\sum_i p_i (x - y_i)

    ``optax.sgd(1.0)`` gives plain averaging.

    Args:
      optimizer: any optax optimizer; its schedules count rounds. ``optax.MultiSteps(tx, k)`` moves
        in every k-th round, by the mean of k aggregates. One that asks for ``value`` is given the
        cohort's ``train_loss`` (at the model before the round), for ``grad`` the pseudo-gradient.

    Raises:
      TypeError: if it is no optimizer, or needs the loss as a function (line searches, SAM), which
        no server has; in a round, if it needs ``value`` and the clients report no ``train_loss``.

    Example:
      >>> server = optimizer_server(optax.sgd(1.0))
      >>> state = server.init({"w": jnp.ones(2)}, None)
      >>> cohort = Cohort(jnp.arange(1), jnp.ones(1, bool))
      >>> server.update(None, state, {"w": jnp.full(2, 0.25)}, cohort, {}).params["w"].tolist()
      [0.75, 0.75]

    Reference: Reddi et al., "Adaptive Federated Optimization", 2021, arXiv:2003.00295.
    """
    optimizer = as_transformation(optimizer)
    if not isinstance(optimizer, optax.GradientTransformation):
        raise TypeError(
            f"server_optimizer must be an optax optimizer, got {shown(optimizer)}; "
            "optax.sgd(1.0), neither 1.0 nor optax.sgd"
        )
    check_descends(optimizer, "server_optimizer")
    functions = asks_for(optimizer) & {"value_fn", "grad_fn"}
    if functions:
        raise TypeError(
            f"server_optimizer needs {' and '.join(sorted(functions))}, the loss as a function of "
            "the model, but the data lie with the clients; make it the client_optimizer, or give "
            "the server one that goes by the pseudo-gradient: optax.sgd(1.0)"
        )

    def init(params: Params, population: Population) -> ServerState:
        check_no_local_statistics(params)
        return ServerState(params, optimizer.init(params))

    def update(
        key: Key, server: ServerState, value: PyTree, cohort: Cohort, metrics: dict[str, Any]
    ) -> ServerState:
        value = trees.cast_like(value, server.params)
        updates, opt_state = step_optimizer(
            *(optimizer, value, server.opt_state, server.params),
            {"grad": value, **_cohort_loss(cohort, metrics)},
            name="server_optimizer",
            remedy="value is the cohort's train_loss, which these clients do not report, or which "
            "a private round does not show its server; take an optimizer that goes by the "
            "pseudo-gradient: optax.sgd(1.0)",
        )
        return ServerState(optax.apply_updates(server.params, updates), opt_state)

    return ServerUpdate(init, lambda server: server.params, update)


def start_server(server: ServerUpdate, params: Params, population: Population) -> PyTree:
    """The first state of a server.

    Raises:
      TypeError: if its `init` does not take two arguments.

    Example:
      >>> share = ServerUpdate(lambda x, all: x / all.num_clients, lambda x: x, lambda *_: None)
      >>> start_server(share, 6.0, Population.of([1, 1, 1]))
      2.0
    """
    check_tree(params, "params")
    try:
        inspect.signature(server.init).bind(params, population)
    except TypeError:
        raise TypeError(
            f"server.init must take (params, population), got {shown(server.init)}"
            f"{inspect.signature(server.init)}; lambda params, population: ..."
        ) from None
    except ValueError:  # its signature is not known
        pass
    return server.init(params, population)


@made
def standing_still(server: ServerUpdate) -> ServerUpdate:
    """The same server, which a round in which nobody counts leaves exactly as it was.

    `federated_algorithm` puts it around every server, so that none has to ask: neither momentum nor
    decay nor a counter moves, whatever ``update`` does with the zero that is the mean of nobody.

    Args:
      server: any; the mask of the cohort that it is shown says who counts.

    Example:
      >>> update = lambda key, x, value, cohort, metrics: 0.5 * x - value
      >>> decays = ServerUpdate(lambda x, population: x, lambda x: x, update)
      >>> nobody = Cohort(jnp.arange(1), jnp.zeros(1, bool))
      >>> float(standing_still(decays).update(None, jnp.array(2.0), jnp.array(0.0), nobody, {}))
      2.0
    """

    def update(
        key: Key, state: PyTree, value: PyTree, cohort: Cohort, metrics: dict[str, Any]
    ) -> PyTree:
        new = server.update(key, state, value, cohort, metrics)
        return trees.where(cohort.mask.any(), new, state)

    return server._replace(update=update)


def _cohort_loss(cohort: Cohort, metrics: dict[str, Any]) -> Extra:
    """``value`` for optimizers that ask for it: the mean ``train_loss`` of the cohort."""
    loss = metrics.get("train_loss")
    if loss is None:
        return {}
    return {"value": mean_over(cohort, loss)}


class AdaptiveState(NamedTuple):
    """First and second moment of the paper's adaptive server optimizers."""

    count: Array
    momentum: PyTree
    second_moment: PyTree


@made
def adagrad(
    learning_rate: Rate,
    *,
    b1: float = 0.0,
    tau: float = 1e-3,
    initial_accumulator: float | None = None,
) -> optax.GradientTransformation:
    r"""The paper's FedAdagrad: ``v <- v + d^2``; see `adam` for the rest.

    Not ``optax.adagrad``, which puts its epsilon inside the root.

    Args:
      learning_rate: server rate, or a schedule over rounds.
      b1: first moment decay (the paper's 0).
      tau: adaptivity, the constant beside the root.
      initial_accumulator: `v_0`; None for the paper's ``tau**2``.

    Raises:
      ValueError: if a rate is negative, `tau` not positive or a decay outside `[0, 1]`.

    Example:
      >>> tx = adagrad(0.1)
      >>> update, _ = tx.update(jnp.array(-1.0), tx.init(jnp.array(0.0)))
      >>> round(float(update), 6)
      0.0999

    Reference: Reddi et al., "Adaptive Federated Optimization", 2021, arXiv:2003.00295.
    """
    return _adaptive(lambda v, square: v + square, learning_rate, b1, tau, initial_accumulator)


@made
def adam(
    learning_rate: Rate,
    *,
    b1: float = 0.9,
    b2: float = 0.99,
    tau: float = 1e-3,
    initial_accumulator: float | None = None,
) -> optax.GradientTransformation:
    r"""The paper's FedAdam, without bias correction.

    .. math::
        m &\leftarrow \beta_1 m + (1 - \beta_1) d, \qquad
        v \leftarrow \beta_2 v + (1 - \beta_2) d^2, \\
        x &\leftarrow x - \eta\, m / (\sqrt v + \tau), \qquad v_0 = \tau^2,

    for the pseudo-gradient `d`. ``optax.adam`` corrects the bias and starts at ``v_0 = 0``: both
    are offered, under their own names.

    Args:
      learning_rate: server rate, or a schedule over rounds.
      b1: first moment decay.
      b2: second moment decay.
      tau: adaptivity, the constant beside the root.
      initial_accumulator: `v_0`; None for the paper's ``tau**2``.

    Raises:
      ValueError: if a rate is negative, `tau` not positive or a decay outside `[0, 1]`.

    Example:
      >>> tx = adam(0.1)
      >>> update, _ = tx.update(jnp.array(-1.0), tx.init(jnp.array(0.0)))
      >>> round(float(update), 6)
      0.099005

    Reference: Reddi et al., "Adaptive Federated Optimization", 2021, arXiv:2003.00295.
    """
    check_fraction(b2, "b2")
    return _adaptive(
        lambda v, square: b2 * v + (1 - b2) * square, learning_rate, b1, tau, initial_accumulator
    )


@made
def yogi(
    learning_rate: Rate,
    *,
    b1: float = 0.9,
    b2: float = 0.99,
    tau: float = 1e-3,
    initial_accumulator: float | None = None,
) -> optax.GradientTransformation:
    r"""The paper's FedYogi: ``v <- v - (1 - b2) d^2 sign(v - d^2)``; see `adam` for the rest.

    Not ``optax.yogi``, which corrects the bias.

    Args:
      learning_rate: server rate, or a schedule over rounds.
      b1: first moment decay.
      b2: second moment decay.
      tau: adaptivity, the constant beside the root.
      initial_accumulator: `v_0`; None for the paper's ``tau**2``.

    Raises:
      ValueError: if a rate is negative, `tau` not positive or a decay outside `[0, 1]`.

    Example:
      >>> tx = yogi(0.1)
      >>> update, _ = tx.update(jnp.array(-1.0), tx.init(jnp.array(0.0)))
      >>> round(float(update), 6)
      0.099005

    Reference: Reddi et al., "Adaptive Federated Optimization", 2021, arXiv:2003.00295.
    """
    check_fraction(b2, "b2")
    return _adaptive(
        lambda v, square: v - (1 - b2) * square * jnp.sign(v - square),
        learning_rate,
        b1,
        tau,
        initial_accumulator,
    )


def _adaptive(
    second: Any, learning_rate: Rate, b1: Any, tau: Any, initial_accumulator: Any
) -> optax.GradientTransformation:
    if not callable(learning_rate):
        check_non_negative(learning_rate, "learning_rate")
    check_fraction(b1, "b1")
    check_positive(tau, "tau")
    if initial_accumulator is not None:
        check_non_negative(initial_accumulator, "initial_accumulator")
    first = tau**2 if initial_accumulator is None else initial_accumulator

    def init(params: Params) -> AdaptiveState:
        return AdaptiveState(
            jnp.int32(0),
            jax.tree.map(jnp.zeros_like, params),
            jax.tree.map(lambda leaf: jnp.full_like(leaf, first), params),
        )

    def update(
        gradient: PyTree, state: AdaptiveState, params: Params | None = None
    ) -> tuple[PyTree, AdaptiveState]:
        momentum = jax.tree.map(lambda m, d: b1 * m + (1 - b1) * d, state.momentum, gradient)
        moment = jax.tree.map(lambda v, d: second(v, d * d), state.second_moment, gradient)
        rate: Any = learning_rate(state.count) if callable(learning_rate) else learning_rate
        updates = jax.tree.map(lambda m, v: -rate * m / (jnp.sqrt(v) + tau), momentum, moment)
        return updates, AdaptiveState(state.count + 1, momentum, moment)

    return optax.GradientTransformation(init, update)


check_calls(globals())
