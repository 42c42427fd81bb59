"""FedMGDA+: steps along which no client of the cohort gets worse."""

from __future__ import annotations

from typing import Unpack

import optax

from fedjax_lite.aggregation.mean import Weighting
from fedjax_lite.aggregation.min_norm import min_norm
from fedjax_lite.checks.arguments import shown
from fedjax_lite.checks.made import made
from fedjax_lite.engine.batches import Plan
from fedjax_lite.round.compose import federated_algorithm
from fedjax_lite.round.local import ClientOptimizer, LossFn, local_sgd
from fedjax_lite.round.server import optimizer_server
from fedjax_lite.round.slot_options import SlotOptions, refuse_privacy
from fedjax_lite.types import Array, FederatedAlgorithm, Sampler


@made
def fedmgda(
    loss: LossFn,
    client_optimizer: ClientOptimizer,
    *,
    deviation: float | Array = 1.0,
    normalise: bool = True,
    plan: Plan,
    sampler: Sampler | None = None,
    weighting: Weighting = "examples",
    server_optimizer: optax.GradientTransformation | None = None,
    **slots: Unpack[SlotOptions],
) -> FederatedAlgorithm:
    r"""Federated multiple-gradient descent: the server goes along the shortest mixture of updates.

    .. math::
        u_i = (x - y_i) / \lVert x - y_i \rVert, \qquad
        x \leftarrow x - \eta_g \textstyle\sum_{i \in S} \lambda_i u_i, \qquad
        \lambda = \arg\min_{\lambda \in \Delta,\, |\lambda_i - p_i| \le \epsilon}
            \lVert \textstyle\sum_i \lambda_i u_i \rVert .

    It seeks a Pareto-stationary model, where no direction serves everybody of the cohort, whatever
    their sizes; see `min_norm`. With ``deviation=0`` and ``normalise=False`` it is `fedavg`.

    Args:
      loss: ``(params, examples, key) -> [B]``.
      client_optimizer: an optax optimizer, or ``(round) -> optimizer``.
      deviation: `epsilon` in [0, 1]; it may be traced. 1 is MGDA, less stays near FedAvg's shares.
      normalise: the "+": lengths of updates do not decide. Then the server's step is at most its
        rate long, so give that a schedule: with a constant one it ends in steps of that length.
      plan: local work.
      sampler: who takes part.
      weighting: `p_i`: "examples", "uniform", or a function of `ClientInfo`.
      server_optimizer: its rate is `eta_g`; default ``optax.sgd(1.0)``.
      **slots: `uplink`, `downlink`, `strategy` as in `fedavg`. It has its own aggregator, and
        `privacy` is refused: one client's message changes what all others weigh.

    Returns:
      A `FederatedAlgorithm`. Memory O(cohort x model).

    Raises:
      TypeError: if an argument has the wrong type.
      ValueError: if `deviation` lies outside [0, 1], or `aggregator` or `privacy` is given.

    Example:
      >>> import jax, jax.numpy as jnp, fedjax_lite as fl
      >>> data = fl.data.from_arrays({"b": jnp.array([[1.0, 0.0], [0.0, 8.0]])}, [0, 1])
      >>> algo = fedmgda(lambda w, e, key: 0.5 * ((w - e["b"]) ** 2).sum(-1), optax.sgd(1.0),
      ...                plan=fl.Plan(batch_size=1), sampler=fl.everyone())
      >>> state = algo.init(jax.random.key(0), jnp.zeros(2), data)
      >>> state, _ = algo.round(jax.random.key(0), state, data)
      >>> state.server.params.tolist()  # as far for either, whatever the distances
      [0.5, 0.5]

    Reference: Hu, Shaloudegi, Zhang, Yu, "Federated Learning Meets Multi-objective Optimization",
    2020, arXiv:2006.11489.
    """
    refuse_privacy(slots, "fedmgda", "one client's message changes what all others weigh")
    if (given := slots.get("aggregator")) is not None:
        raise ValueError(
            f"aggregator must be left out of fedmgda, got {shown(given)}: it is "
            "min_norm, which needs every message by itself; use fedavg with your aggregator"
        )
    slots["aggregator"] = min_norm(deviation=deviation, normalise=normalise)
    return federated_algorithm(
        local_sgd(loss, client_optimizer, weighting=weighting),
        plan=plan,
        sampler=sampler,
        server=optimizer_server(optax.sgd(1.0) if server_optimizer is None else server_optimizer),
        **slots,
    )
