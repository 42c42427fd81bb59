"""Reptile: the model moves part of the way to where clients end."""

from __future__ import annotations

from typing import Unpack

import optax

from fedjax_lite.aggregation.mean import Weighting
from fedjax_lite.algorithms.fedavg import fedavg
from fedjax_lite.checks.arguments import check_finite, check_non_negative
from fedjax_lite.checks.made import made
from fedjax_lite.engine.batches import Plan
from fedjax_lite.round.local import ClientOptimizer, LossFn
from fedjax_lite.round.slot_options import SlotOptions
from fedjax_lite.types import Array, FederatedAlgorithm, Sampler


@made
def reptile(
    loss: LossFn,
    client_optimizer: ClientOptimizer,
    *,
    epsilon: float | Array,
    plan: Plan,
    sampler: Sampler | None = None,
    weighting: Weighting = "uniform",
    **slots: Unpack[SlotOptions],
) -> FederatedAlgorithm:
    r"""Meta-learning without a meta-gradient: several local steps, then part of the way there.

    .. math::  y_i = \text{local SGD from } x, \qquad
               x \leftarrow x + \epsilon \textstyle\sum_{i \in S} p_i\,(y_i - x)

    It is `fedavg` with the server's learning rate `epsilon`; what makes it meta-learning is that
    clients do several steps (one step is FedSGD), and that the model is adapted before it is
    scored, see `fine_tuned`. The paper averages the tasks of a batch uniformly and lets `epsilon`
    fall to zero.

    Args:
      loss: ``(params, examples, key) -> [B]``.
      client_optimizer: an optax optimizer, or ``(round) -> optimizer``.
      epsilon: the share of the way, at least 0; it may be traced.
      plan: local work, several steps.
      sampler: who takes part.
      weighting: see `fedavg`.
      **slots: `aggregator`, `uplink`, `downlink`, `privacy`, `strategy`, as in `fedavg`.

    Returns:
      A `FederatedAlgorithm`.

    Raises:
      TypeError: if an argument has the wrong type.
      ValueError: if `epsilon` is negative.

    Example:
      >>> import jax, jax.numpy as jnp, fedjax_lite as fl
      >>> data = fl.data.from_arrays({"b": jnp.array([-1.0, 3.0])}, [0, 1])
      >>> algo = reptile(lambda w, e, key: 0.5 * (w - e["b"]) ** 2, optax.sgd(0.5), epsilon=0.5,
      ...                plan=fl.Plan(batch_size=1, steps=2), sampler=fl.everyone())
      >>> state = algo.init(jax.random.key(0), jnp.array(0.0), data)
      >>> float(algo.round(jax.random.key(0), state, data)[0].server.params)
      0.375

    Reference: Nichol, Achiam, Schulman, "On First-Order Meta-Learning Algorithms", 2018,
    arXiv:1803.02999.
    """
    check_non_negative(epsilon, "epsilon")
    check_finite(epsilon, "epsilon")
    return fedavg(
        loss,
        client_optimizer,
        plan=plan,
        sampler=sampler,
        server_optimizer=optax.sgd(epsilon),
        weighting=weighting,
        **slots,
    )
