"""One batch of split learning: activations up, their gradients down, both halves' gradients."""

from __future__ import annotations

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from fedjax_lite import trees
from fedjax_lite.data.population.counting import counts_of
from fedjax_lite.parties.cut import CutModel
from fedjax_lite.parties.wires import add_cost, carried
from fedjax_lite.round.local import resolve_optimizer
from fedjax_lite.types import Array, Batch, Params, Transform, Wire

UP, DOWN, UP_AGAIN, DOWN_AGAIN = (2**16 + i for i in range(4))
"""Folded into a batch's key for each message; those of the stages begin at 0."""


def optimizer_of(optimizer: Any, name: str) -> Any:
    """``(round) -> optimizer`` of a half of the network, as `resolve_optimizer` has it.

    Raises:
      TypeError: if it is none; under the name of the caller's argument.

    Example:
      >>> import optax
      >>> optimizer_of(optax.sgd, "server_optimizer")
      Traceback (most recent call last):
      ...
      TypeError: server_optimizer must be an optax optimizer or a function (round) -> optimizer, \
got the function sgd; optax.sgd(0.1), neither 0.1 nor optax.sgd
    """

    def named(function: Any, *args: Any) -> Any:
        try:
            return function(*args)
        except TypeError as error:
            if not error.args or "client_optimizer" not in str(error.args[0]):
                raise
            raise TypeError(str(error.args[0]).replace("client_optimizer", name)) from error

    resolved = named(resolve_optimizer, optimizer)
    return lambda round: named(resolved, round)


class Stepped(NamedTuple):
    """What a batch gives."""

    loss: Array
    """The mean over the examples that count."""
    client: Params
    """The gradient of the client's half; None where the server has a leaf."""
    server: Params
    up: Wire
    down: Wire
    smashed: Array
    """The activations as the server received them, `[B, ...]`."""
    returned: Array
    """The gradient at them as the client got it back, `[B, ...]`."""
    upward: Array | None
    """In a U the gradient at the server's activations, as the server received it; else None."""


def split_gradients(
    cut: CutModel,
    client: Params,
    server: Params,
    batch: Batch,
    *,
    uplink: Transform | None = None,
    downlink: Transform | None = None,
) -> Stepped:
    r"""The gradients of both halves, as they are found over the wire.

    .. math::  h = f_c(\theta_c; x) \;\text{ up}, \qquad g = \partial \ell / \partial h
               \;\text{ down}, \qquad \nabla_c = (\partial f_c / \partial \theta_c)^\top g,

    equal to those of the uncut network where the wire changes nothing. In the shape of a U the
    server's activations come down and their gradients go up, too, and no label is sent; else the
    labels go up, and are billed.

    Args:
      cut: the network.
      client: the client's half of the parameters, see ``cut.halves``.
      server: the server's.
      batch: examples ``{"x": [B, ...], "y": [B]}``.
      uplink: on all that goes up but labels, each example's by itself.
      downlink: on all that comes down.

    Example:
      >>> from fedjax_lite.parties.cut import cut_layers
      >>> from fedjax_lite.parties.model import Part
      >>> dense = Part(lambda key: jnp.full((2, 2), 0.5), lambda w, x, key: x @ w)
      >>> cut = cut_layers([dense, dense], at=1)
      >>> examples, key = {"x": jnp.eye(2), "y": jnp.array([0, 1])}, jax.random.key(0)
      >>> batch = Batch(examples, jnp.ones(2, bool), key)
      >>> found = split_gradients(cut, *cut.halves(cut.model.init(key)), batch)
      >>> round(float(found.loss), 4), float(found.up.bits)  # two floats and a label an example
      (0.6931, 192.0)
    """
    key, mask = batch.key, batch.mask
    x, y = cut.inputs(batch.examples["x"]), batch.examples["y"]
    fold = jax.random.fold_in

    def mean_loss(outputs: Array) -> Array:
        counts = counts_of(cut.criterion)
        counted = mask if counts is None else mask & counts(y)
        losses = cut.criterion(outputs, y)
        total = jnp.where(counted, losses, 0).sum()
        return total / jnp.maximum(counted.sum(), 1).astype(losses.dtype)

    sent, back = jax.vjp(lambda c: cut.stages[0](c, x, key), client)
    smashed, up = carried(uplink, fold(key, UP), sent, mask)
    if not cut.labels_stay:
        bits = jnp.float32(trees.num_bits(y) / mask.shape[0]) * mask.sum()
        up = add_cost(up, Wire(bits, bits))

        def on_server(server: Params, h: Array) -> Array:
            return mean_loss(cut.stages[1](server, h, key))

        loss, (of_server, gradient) = jax.value_and_grad(on_server, argnums=(0, 1))(server, smashed)
        gradient, down = _returned(downlink, fold(key, DOWN), gradient, mask)
        return Stepped(loss, back(gradient)[0], of_server, up, down, smashed, gradient, None)

    middle, back_server = jax.vjp(lambda s, h: cut.stages[1](s, h, key), server, smashed)
    middle, down = carried(downlink, fold(key, DOWN), middle, mask)

    def on_client(client: Params, h: Array) -> Array:
        return mean_loss(cut.stages[2](client, h, key))

    loss, (of_top, gradient) = jax.value_and_grad(on_client, argnums=(0, 1))(client, middle)
    upward, more = _returned(uplink, fold(key, UP_AGAIN), gradient, mask)
    up = add_cost(up, more)
    of_server, gradient = back_server(upward)
    gradient, more = _returned(downlink, fold(key, DOWN_AGAIN), gradient, mask)
    of_client = jax.tree.map(jnp.add, back(gradient)[0], of_top)
    down = add_cost(down, more)
    return Stepped(loss, of_client, of_server, up, down, smashed, gradient, upward)


def _returned(
    transform: Transform | None, key: Any, gradient: Array, mask: Array
) -> tuple[Array, Wire]:
    """A gradient as it arrives; that of padding is zero, whatever the wire makes of zeros."""
    gradient, wire = carried(transform, key, gradient, mask)
    return trees.where(mask, gradient, jnp.zeros_like(gradient)), wire
