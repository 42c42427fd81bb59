"""loss_first(): clients that measure the loss of all their data before they train on it."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import jax.numpy as jnp

from fedjax_lite.algorithms.one_epoch import one_epoch
from fedjax_lite.checks.made import made
from fedjax_lite.engine.batches import Plan
from fedjax_lite.engine.phases import step_of
from fedjax_lite.round.local import LossFn, mean_loss
from fedjax_lite.types import (
    Array,
    Batch,
    ClientInfo,
    ClientUpdate,
    Key,
    Known,
    Mean,
    Message,
    Params,
    Phase,
    PyTree,
    ServerUpdate,
)


class Weighing(NamedTuple):
    """What clients download, and what the server weighs their messages by."""

    params: Params
    known: PyTree
    """`Known`: it stays with the server, which multiplies; so it is not billed."""


class LossFirst(NamedTuple):
    """Local training, and the loss that was measured before it."""

    local: PyTree
    loss: Mean
    info: ClientInfo


def no_loss() -> Mean:
    """The loss of no example yet, as precise as floats are; a new array for each sum."""
    return Mean(jnp.zeros((), jnp.result_type(float)), jnp.zeros((), jnp.result_type(float)))


def and_loss(seen: Mean, loss: LossFn, params: Params, batch: Batch) -> Mean:
    """The sum of losses with those of a batch more.

    Example:
      >>> import jax
      >>> batch = Batch({"x": jnp.array([1.0, 3.0])}, jnp.ones(2, bool), jax.random.key(0))
      >>> and_loss(no_loss(), lambda w, e, key: w * e["x"], 2.0, batch)
      Mean(total=Array(8., dtype=float32), count=Array(2., dtype=float32))
    """
    count = batch.mask.sum().astype(seen.count.dtype)
    value = mean_loss(loss, params, batch).astype(seen.total.dtype)
    return seen + Mean(value * count, count)


def ratio(loss: Mean) -> Array:
    """The mean loss `F_i`; 0 where nothing was seen.

    Example:
      >>> float(ratio(Mean(6.0, 4))), float(ratio(Mean(0.0, 0)))
      (1.5, 0.0)
    """
    return loss.total / jnp.maximum(loss.count, 1)


@made
def weighing_server(server: ServerUpdate) -> ServerUpdate:
    """The same server, whose clients download `Weighing` with nothing to weigh by.

    Args:
      server: its state has `params`.

    Example:
      >>> import optax, fedjax_lite as fl
      >>> server = weighing_server(fl.optimizer_server(optax.sgd(1.0)))
      >>> server.broadcast(server.init(1.0, None))
      Weighing(params=1.0, known=Known(value=()))
    """
    return server._replace(broadcast=lambda state: Weighing(state.params, Known(())))


Weigh = Callable[[PyTree, ClientInfo, Array, Message], Message]
"""``(known, info, F_i, message) -> message``."""


@made
def loss_first(client: ClientUpdate, loss: LossFn, plan: Plan, weigh: Weigh) -> ClientUpdate:
    """Local training in two phases: the loss at the broadcast model, then the client's own work.

    The first is an epoch in the plan's batches, a forward pass each, named ``loss``; the second is
    shown the batches that it would have alone.

    Args:
      client: local training without rows, of one phase.
      loss: ``(params, examples, key) -> [B]``.
      plan: of the training.
      weigh: ``(known, info, F_i, message) -> message``: what `F_i` changes in what is sent.

    Returns:
      A `ClientUpdate` that downloads `Weighing`; its metrics have ``loss``, `F_i`, beside those of
      `client`.

    Example:
      >>> import optax, fedjax_lite as fl
      >>> by_loss = lambda known, info, F, message: message._replace(weight=message.weight * F)
      >>> square = lambda w, e, key: 0.5 * (w - e["b"]) ** 2
      >>> client = loss_first(fl.local_sgd(square, optax.sgd(0.5)), square, Plan(4), by_loss)
      >>> [phase.name for phase in client.step]
      ['loss', '']
    """
    train = step_of(client)

    def start(key: Key, row: PyTree, broadcast: Weighing, info: ClientInfo) -> LossFirst:
        info = info._replace(num_steps=info.main_steps)  # who only measures sends nothing
        return LossFirst(client.start(key, row, broadcast.params, info), no_loss(), info)

    def on_loss(broadcast: Weighing, carry: LossFirst, batch: Batch) -> LossFirst:
        return carry._replace(loss=and_loss(carry.loss, loss, broadcast.params, batch))

    def on_model(broadcast: Weighing, carry: LossFirst, batch: Batch) -> LossFirst:
        return carry._replace(local=train(broadcast.params, carry.local, batch))

    def finish(broadcast: Weighing, carry: LossFirst) -> tuple[PyTree, Message, dict[str, Any]]:
        row, message, metrics = client.finish(broadcast.params, carry.local)
        known = broadcast.known.value
        message = weigh(known, carry.info, ratio(carry.loss), message)
        return row, message, {**metrics, "loss": carry.loss}

    phases = (Phase(on_loss, one_epoch(plan), "loss", stream=1), Phase(on_model, stream=0))
    return ClientUpdate(client.init, start, phases, finish, client.counts)
