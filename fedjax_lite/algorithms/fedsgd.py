"""FedSGD: one full-batch gradient a client, one step of the server."""

from __future__ import annotations

from typing import Any

import optax

from fedjax_lite.algorithms.fedavg import fedavg
from fedjax_lite.engine.batches import Plan
from fedjax_lite.local import LossFn
from fedjax_lite.types import FederatedAlgorithm, Sampler


def fedsgd(
    loss: LossFn,
    server_optimizer: optax.GradientTransformation,
    *,
    sampler: Sampler,
    batch_size: int | None = None,
    **slots: Any,
) -> FederatedAlgorithm:
    r"""Distributed SGD on the cohort's data: FedAvg with one local step of rate 1.

    .. math::  x \leftarrow x - \eta \textstyle\sum_{i \in S} p_i \nabla f_i(x)

    Args:
      loss: ``(params, examples, key) -> [B]``, one loss per example.
      server_optimizer: e.g. ``optax.sgd(0.1)``; it sees the exact weighted mean gradient.
      sampler: who takes part.
      batch_size: None for a client's whole data set, else one random batch of it.
      **slots: `weighting`, `aggregator`, `uplink`, `strategy` as in `fedavg`.

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
    return fedavg(
        loss,
        optax.sgd(1.0),
        plan=Plan(batch_size=batch_size, steps=1),
        sampler=sampler,
        server_optimizer=server_optimizer,
        **slots,
    )
