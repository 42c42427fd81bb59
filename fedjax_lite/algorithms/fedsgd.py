"""FedSGD: one full-batch gradient a client, one step of the server."""

from __future__ import annotations

from typing import Any, NamedTuple, Unpack

import optax

from fedjax_lite import trees
from fedjax_lite.aggregation.mean import Weighting, weight_by
from fedjax_lite.checks.made import made
from fedjax_lite.data.population.counting import counts_of
from fedjax_lite.engine.batches import Plan
from fedjax_lite.round.compose import federated_algorithm
from fedjax_lite.round.local import LossFn, add_loss, check_loss, mean_grad, no_loss
from fedjax_lite.round.server import optimizer_server
from fedjax_lite.round.slot_options import SlotOptions
from fedjax_lite.types import (
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
def fedsgd(
    loss: LossFn,
    server_optimizer: optax.GradientTransformation,
    *,
    sampler: Sampler | None = None,
    batch_size: int | None = None,
    weighting: Weighting = "examples",
    **slots: Unpack[SlotOptions],
) -> FederatedAlgorithm:
    r"""Distributed SGD on the cohort's data: every client sends one gradient.

    .. math::  x \leftarrow x - \eta \textstyle\sum_{i \in S} p_i \nabla f_i(x)

    Args:
      loss: ``(params, examples, key) -> [B]``, one loss per example.
      server_optimizer: e.g. ``optax.sgd(0.1)``; it sees the exact weighted mean gradient.
      sampler: who takes part.
      batch_size: None for a client's whole data set, else one random batch of it.
      weighting: "examples" (`n_i`), "uniform", or a function of `ClientInfo`.
      **slots: `aggregator`, `uplink`, `downlink`, `privacy`, `strategy` as in `fedavg`.

    Returns:
      A `FederatedAlgorithm`.

    Example:
      >>> import jax, jax.numpy as jnp, fedjax_lite as fl
      >>> data = fl.data.from_arrays({"b": jnp.array([-1.0, 2.0, 2.0])}, [0, 1, 1])
      >>> algo = fedsgd(lambda w, e, key: 0.5 * (w - e["b"]) ** 2, optax.sgd(0.5),
      ...               sampler=fl.everyone())
      >>> state = algo.init(jax.random.key(0), jnp.array(0.0), data)
      >>> float(algo.round(jax.random.key(0), state, data)[0].server.params)
      0.5

    Reference: McMahan et al., 2017, arXiv:1602.05629.
    """
    return federated_algorithm(
        local_gradient(loss, weighting=weighting),
        plan=Plan(batch_size=batch_size, steps=1),
        sampler=sampler,
        server=optimizer_server(server_optimizer),
        **slots,
    )


class GradientCarry(NamedTuple):
    """The gradient of the one step, and what is measured with it."""

    gradient: Params
    loss: Mean
    info: ClientInfo


@made
def local_gradient(loss: LossFn, *, weighting: Weighting = "examples") -> ClientUpdate:
    """A client that sends its gradient as it is.

    Not as a difference of parameters after a step of rate 1: in float32 a small gradient of a large
    parameter would be lost in ``x - (x - g)``.

    Args:
      loss: ``(params, examples, key) -> [B]``.
      weighting: see `weight_by`.

    Example:
      >>> client = local_gradient(lambda w, e, key: 0.5 * (w - e["b"]) ** 2)
      >>> import jax.numpy as jnp
      >>> info = ClientInfo(*map(jnp.int32, (0, 1, 1, 0)))
      >>> carry = client.start(None, (), jnp.array(1024.0), info)
      >>> batch = Batch({"b": jnp.array([1023.0])}, jnp.ones(1, bool), None)
      >>> float(client.finish(None, client.step(jnp.array(1024.0), carry, batch))[1].value)
      1.0
    """
    check_loss(loss)
    weight = weight_by(weighting)
    gradient = mean_grad(loss)

    def start(key: Key, row: PyTree, broadcast: Params, info: ClientInfo) -> GradientCarry:
        return GradientCarry(trees.zeros(broadcast), no_loss(), info)

    def step(broadcast: Params, carry: GradientCarry, batch: Batch) -> GradientCarry:
        value, grad = gradient(broadcast, batch)
        return GradientCarry(grad, add_loss(no_loss(), value, batch), carry.info)

    def finish(broadcast: Params, carry: GradientCarry) -> tuple[PyTree, Message, dict[str, Any]]:
        message = Message(carry.gradient, weight(carry.info))
        return (), message, {"train_loss": carry.loss}

    return ClientUpdate(lambda params: (), start, step, finish, counts_of(loss))
