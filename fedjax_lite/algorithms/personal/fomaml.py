"""FOMAML: first-order MAML with several steps of adaptation."""

from __future__ import annotations

from typing import Unpack

import optax

from fedjax_lite.aggregation.mean import Weighting
from fedjax_lite.algorithms.personal.batch_parts import check_enough
from fedjax_lite.algorithms.personal.per_fedavg import meta_client
from fedjax_lite.checks.made import made
from fedjax_lite.engine.batches import Plan
from fedjax_lite.round.compose import federated_algorithm
from fedjax_lite.round.local import ClientOptimizer, LossFn
from fedjax_lite.round.server import optimizer_server
from fedjax_lite.round.slot_options import SlotOptions
from fedjax_lite.types import Array, FederatedAlgorithm, Sampler


@made
def fomaml(
    loss: LossFn,
    client_optimizer: ClientOptimizer,
    *,
    alpha: float | Array,
    inner_steps: int = 1,
    plan: Plan,
    sampler: Sampler | None = None,
    server_optimizer: optax.GradientTransformation | None = None,
    weighting: Weighting = "examples",
    **slots: Unpack[SlotOptions],
) -> FederatedAlgorithm:
    r"""FedAvg along gradients that clients find after a few steps of adaptation.

    .. math::
        z_0 = x, \quad z_{j+1} = z_j - \alpha \nabla f_i(z_j; D_j), \qquad
        x \leftarrow x + \mathrm{update}\bigl(\nabla f_i(z_s; D_s)\bigr)

    Each local step deals its batch out into `s + 1` parts without an example in common. With one
    inner step it is `per_fedavg` with ``first_order=True``; ``alpha = 0`` is `fedavg` on `D_s`.

    Args:
      loss: ``(params, examples, key) -> [B]``.
      client_optimizer: of the meta-gradient.
      alpha: the rate of the adaptation, at least 0; it may be traced.
      inner_steps: `s`, at least 1.
      plan: local work; batches of ``s + 1`` examples at least.
      sampler: who takes part.
      server_optimizer: default ``optax.sgd(1.0)``.
      weighting: see `fedavg`.
      **slots: `aggregator`, `uplink`, `downlink`, `privacy`, `strategy`, as in `fedavg`.

    Returns:
      A `FederatedAlgorithm`, with the metrics of `per_fedavg`.

    Raises:
      TypeError: if an argument has the wrong type.
      ValueError: if `alpha` is negative or batches are too small.

    Example:
      >>> import jax, jax.numpy as jnp, fedjax_lite as fl
      >>> b = jnp.repeat(jnp.array([-1.0, 3.0]), 3)
      >>> data = fl.data.from_arrays({"b": b}, [0, 0, 0, 1, 1, 1])
      >>> algo = fomaml(lambda w, e, key: 0.5 * (w - e["b"]) ** 2, optax.sgd(1.0), alpha=0.5,
      ...               inner_steps=2, plan=fl.Plan(batch_size=3), sampler=fl.everyone())
      >>> state = algo.init(jax.random.key(0), jnp.array(0.0), data)
      >>> state, metrics = algo.round(jax.random.key(0), state, data)
      >>> float(state.server.params)  # the mean of (1 - alpha) ** 2 b
      0.25

    Reference: Finn, Abbeel, Levine, "Model-Agnostic Meta-Learning for Fast Adaptation of Deep
    Networks", 2017, arXiv:1703.03400; Nichol, Achiam, Schulman, "On First-Order Meta-Learning
    Algorithms", 2018, arXiv:1803.02999.
    """
    client = meta_client(
        loss,
        client_optimizer,
        alpha=alpha,
        inner_steps=inner_steps,
        first_order=True,
        weighting=weighting,
    )
    check_enough(plan, inner_steps + 1)
    return federated_algorithm(
        client,
        plan=plan,
        sampler=sampler,
        server=optimizer_server(optax.sgd(1.0) if server_optimizer is None else server_optimizer),
        **slots,
    )
