"""Mime and MimeLite: the server's optimizer, frozen, steers the local steps."""

from __future__ import annotations

from typing import Any, NamedTuple, Unpack

import jax
import jax.numpy as jnp
import optax

from fedjax_lite import trees
from fedjax_lite.aggregation.mean import Weighting, mean, weight_by
from fedjax_lite.algorithms.one_epoch import one_epoch
from fedjax_lite.algorithms.scaffold import rate_of_round
from fedjax_lite.checks.arguments import check_fraction, check_non_negative
from fedjax_lite.checks.made import made
from fedjax_lite.data.population.counting import counts_of
from fedjax_lite.data.population.population import Population
from fedjax_lite.engine.batches import Plan
from fedjax_lite.engine.prologue import Prefaced, Prologue
from fedjax_lite.models.statistics_checks import refuse_statistics
from fedjax_lite.round.compose import federated_algorithm
from fedjax_lite.round.local import LossFn, add_gradient, add_loss, check_loss, mean_grad, no_loss
from fedjax_lite.round.server import Rate
from fedjax_lite.round.slot_options import SlotOptions
from fedjax_lite.types import (
    Array,
    Batch,
    ClientInfo,
    ClientUpdate,
    Cohort,
    FederatedAlgorithm,
    Key,
    Mean,
    Message,
    Params,
    PyTree,
    Sampler,
    ServerUpdate,
)


@made
def mime(
    loss: LossFn,
    learning_rate: Rate,
    *,
    plan: Plan,
    sampler: Sampler | None = None,
    momentum: float | Array = 0.9,
    server_learning_rate: Rate = 1.0,
    weighting: Weighting = "uniform",
    **slots: Unpack[SlotOptions],
) -> FederatedAlgorithm:
    r"""Local steps with the server's momentum, kept fixed, and gradients corrected as in SVRG.

    .. math::
        c &= \textstyle\sum_{i \in S} p_i \nabla f_i(x), \\
        g &= \nabla f_i(y_i; \xi) - \nabla f_i(x; \xi) + c, \qquad
        y_i \leftarrow y_i - \eta\,((1 - \beta) g + \beta m), \\
        x &\leftarrow x - \eta_g \textstyle\sum_{i \in S} p_i (x - y_i), \qquad
        m \leftarrow (1 - \beta) c + \beta m .

    Both gradients of a step take the same minibatch and the same key. `c` comes from a first pass
    over the whole data of the cohort, in the plan's batches, so a round costs that pass and two
    gradients a step. An `aggregator` or `uplink` acts on the models that are sent, not on `c`.
    Clients whose plan is 0 steps stay out of `c` too, unless amounts are random.

    Args:
      loss: ``(params, examples, key) -> [B]``, one loss per example.
      learning_rate: `eta`, or a function of the round.
      plan: local work.
      sampler: who takes part.
      momentum: `beta` in `[0, 1]`.
      server_learning_rate: `eta_g`, or a schedule over rounds.
      weighting: "uniform" (the paper), "examples", or a function of `ClientInfo` that does not
        depend on the steps; the same for `c` and the models.
      **slots: `aggregator`, `uplink`, `downlink`, `privacy`, `strategy` as in `fedavg`.

    Returns:
      A `FederatedAlgorithm`; ``state.server.momentum`` is `m`.

    Raises:
      TypeError: if the rate is an optimizer.
      ValueError: if a rate is not positive or the momentum outside `[0, 1]`.

    Example:
      >>> import fedjax_lite as fl
      >>> data = fl.data.from_arrays({"b": jnp.array([-1.0, 3.0])}, [0, 1])
      >>> algo = mime(lambda w, e, key: 0.5 * (w - e["b"]) ** 2, 0.5, momentum=0.0,
      ...             plan=fl.Plan(batch_size=1, steps=2), sampler=fl.everyone())
      >>> state = algo.init(jax.random.key(0), jnp.array(0.0), data)
      >>> float(algo.round(jax.random.key(0), state, data)[0].server.params)
      0.75

    Reference: Karimireddy, Jaggi, Kale, Mohri, Reddi, Stich, Suresh, "Mime: Mimicking Centralized
    Stochastic Algorithms in Federated Learning", 2020, arXiv:2008.03606.
    """
    client = mime_client(loss, learning_rate, momentum=momentum, weighting=weighting, correct=True)
    return _assemble(client, loss, plan, sampler, momentum, server_learning_rate, weighting, slots)


@made
def mimelite(
    loss: LossFn,
    learning_rate: Rate,
    *,
    plan: Plan,
    sampler: Sampler | None = None,
    momentum: float | Array = 0.9,
    server_learning_rate: Rate = 1.0,
    weighting: Weighting = "uniform",
    **slots: Unpack[SlotOptions],
) -> FederatedAlgorithm:
    r"""`mime` without the correction: ``g = grad f_i(y; xi)``, one gradient a step.

    .. math::
        y_i \leftarrow y_i - \eta\,((1 - \beta) \nabla f_i(y_i; \xi) + \beta m), \qquad
        m \leftarrow (1 - \beta) c + \beta m .

    With ``momentum=0`` it is FedAvg.

    Args:
      loss: as in `mime`.
      learning_rate: as in `mime`.
      plan: as in `mime`.
      sampler: as in `mime`.
      momentum: as in `mime`.
      server_learning_rate: as in `mime`.
      weighting: as in `mime`.
      **slots: as in `mime`.

    Returns:
      A `FederatedAlgorithm`; ``state.server.momentum`` is `m`.

    Raises:
      TypeError: if the rate is an optimizer.
      ValueError: if a rate is not positive or the momentum outside `[0, 1]`.

    Example:
      >>> import fedjax_lite as fl
      >>> data = fl.data.from_arrays({"b": jnp.array([-1.0, 3.0])}, [0, 1])
      >>> algo = mimelite(lambda w, e, key: 0.5 * (w - e["b"]) ** 2, 0.5, momentum=0.5,
      ...                 plan=fl.Plan(batch_size=1), sampler=fl.everyone())
      >>> state = algo.init(jax.random.key(0), jnp.array(0.0), data)
      >>> server = algo.round(jax.random.key(0), state, data)[0].server
      >>> float(server.params), float(server.momentum)
      (0.25, -0.5)

    Reference: Karimireddy et al., 2020, arXiv:2008.03606.
    """
    client = mime_client(loss, learning_rate, momentum=momentum, weighting=weighting, correct=False)
    return _assemble(client, loss, plan, sampler, momentum, server_learning_rate, weighting, slots)


def _assemble(
    client: ClientUpdate,
    loss: LossFn,
    plan: Plan,
    sampler: Sampler | None,
    momentum: float | Array,
    server_learning_rate: Rate,
    weighting: Weighting,
    slots: SlotOptions,
) -> FederatedAlgorithm:
    first = Prologue(full_gradient(loss, weighting=weighting), one_epoch(plan), mean())
    return federated_algorithm(
        client,
        plan=plan,
        sampler=sampler,
        server=mime_server(server_learning_rate, momentum=momentum),
        prologue=first,
        **slots,
    )


class Steered(NamedTuple):
    """What clients download: the model and the server's momentum."""

    params: Params
    momentum: Params


class FullGradientCarry(NamedTuple):
    """Gradients summed over the examples seen."""

    total: Params
    count: Array
    info: ClientInfo


@made
def full_gradient(loss: LossFn, *, weighting: Weighting = "uniform") -> ClientUpdate:
    """A client that sends the gradient of its whole data at the server's model.

    Summed over the batches of an epoch, so that neither memory nor padding grows with the largest
    client.

    Args:
      loss: ``(params, examples, key) -> [B]``.
      weighting: see `mime`.

    Example:
      >>> client = full_gradient(lambda w, e, key: w * e["g"])
      >>> info, down = ClientInfo(*map(jnp.int32, (0, 3, 2, 0))), Steered(jnp.array(1.0), 0.0)
      >>> carry = client.start(None, (), down, info)
      >>> for g, mask in (([1.0, 2.0], [True, True]), ([6.0, 0.0], [True, False])):
      ...     carry = client.step(down, carry, Batch({"g": jnp.array(g)}, jnp.array(mask), None))
      >>> float(client.finish(down, carry)[1].value)
      3.0
    """
    check_loss(loss)
    weight = weight_by(weighting)
    gradient = mean_grad(loss)

    def start(key: Key, row: PyTree, broadcast: Steered, info: ClientInfo) -> FullGradientCarry:
        return FullGradientCarry(trees.wide_zeros(broadcast.params), jnp.float32(0), info)

    def step(broadcast: Steered, carry: FullGradientCarry, batch: Batch) -> FullGradientCarry:
        _, grad = gradient(broadcast.params, batch)
        count = carry.count + batch.mask.sum().astype(jnp.float32)
        return FullGradientCarry(add_gradient(carry.total, grad, batch), count, carry.info)

    def finish(
        broadcast: Steered, carry: FullGradientCarry
    ) -> tuple[PyTree, Message, dict[str, Any]]:
        count = jnp.maximum(carry.count, 1)
        value = jax.tree.map(lambda s: s / count, carry.total)
        return (), Message(value, weight(carry.info)), {}

    return ClientUpdate(refuse_statistics("mime"), start, step, finish, counts_of(loss))


class MimeCarry(NamedTuple):
    """What a client carries from step to step."""

    params: Params
    loss: Mean
    info: ClientInfo


@made
def mime_client(
    loss: LossFn,
    learning_rate: Rate,
    *,
    momentum: float | Array = 0.9,
    weighting: Weighting = "uniform",
    correct: bool = True,
) -> ClientUpdate:
    """The client's side of `mime` (`correct`) and of `mimelite`; sends ``x - y_i``.

    Args:
      loss: ``(params, examples, key) -> [B]``.
      learning_rate: see `mime`.
      momentum: see `mime`.
      weighting: see `mime`.
      correct: whether gradients get the correction of SVRG.

    Example:
      >>> client = mime_client(lambda w, e, key: w * e["g"], 0.5, correct=False)
      >>> client.init(jnp.ones(2))
      ()
    """
    check_loss(loss)
    check_fraction(momentum, "momentum")
    rate_at = rate_of_round(learning_rate)
    weight = weight_by(weighting)
    gradient = mean_grad(loss)

    def start(key: Key, row: PyTree, broadcast: Prefaced, info: ClientInfo) -> MimeCarry:
        return MimeCarry(broadcast.value.params, no_loss(), info)

    def step(broadcast: Prefaced, carry: MimeCarry, batch: Batch) -> MimeCarry:
        down, rate = broadcast.value, rate_at(carry.info.round)
        value, grad = gradient(carry.params, batch)
        if correct:
            # The same randomness at both points; clone says that the reuse is meant.
            again = batch._replace(key=jax.random.clone(batch.key))
            _, at_anchor = gradient(down.params, again)
            grad = jax.tree.map(lambda g, a, c: g - a + c, grad, at_anchor, broadcast.preface)
        params = jax.tree.map(
            lambda y, g, m: (y - rate * ((1 - momentum) * g + momentum * m)).astype(y.dtype),
            *(carry.params, grad, down.momentum),
        )
        return MimeCarry(params, add_loss(carry.loss, value, batch), carry.info)

    def finish(broadcast: Prefaced, carry: MimeCarry) -> tuple[PyTree, Message, dict[str, Any]]:
        update = trees.subtract(broadcast.value.params, carry.params)
        return (), Message(update, weight(carry.info)), {"train_loss": carry.loss}

    return ClientUpdate(refuse_statistics("mime"), start, step, finish, counts_of(loss))


class MimeState(NamedTuple):
    """The server: the model and the momentum that steers the clients."""

    params: Params
    momentum: Params
    opt_state: PyTree


@made
def mime_server(server_learning_rate: Rate = 1.0, *, momentum: float | Array = 0.9) -> ServerUpdate:
    """The server's side of `mime`: gets ``Prefaced(mean of x - y_i, c)``.

    Args:
      server_learning_rate: `eta_g`, or a schedule over rounds.
      momentum: `beta`.

    Example:
      >>> server = mime_server(momentum=0.5)
      >>> value = Prefaced(jnp.array(1.0), jnp.array(4.0))
      >>> cohort = Cohort(jnp.arange(1), jnp.ones(1, bool))
      >>> new = server.update(None, server.init(jnp.array(0.0), None), value, cohort, {})
      >>> float(new.params), float(new.momentum)
      (-1.0, 2.0)
    """
    if not callable(server_learning_rate):
        check_non_negative(server_learning_rate, "server_learning_rate")
    optimizer = optax.sgd(server_learning_rate)

    def init(params: Params, population: Population) -> MimeState:
        return MimeState(params, trees.zeros(params), optimizer.init(params))

    def update(
        key: Key, server: MimeState, value: Prefaced, cohort: Cohort, metrics: dict[str, Any]
    ) -> MimeState:
        update = trees.cast_like(value.value, server.params)
        updates, opt_state = optimizer.update(update, server.opt_state, server.params)
        moved = jax.tree.map(
            lambda m, c: ((1 - momentum) * c + momentum * m).astype(m.dtype),
            *(server.momentum, value.preface),
        )
        return MimeState(optax.apply_updates(server.params, updates), moved, opt_state)

    return ServerUpdate(init, lambda server: Steered(server.params, server.momentum), update)
