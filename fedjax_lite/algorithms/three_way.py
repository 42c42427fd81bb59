"""The three-way objective: the task at hand, the tasks before it, and the other clients."""

from __future__ import annotations

from typing import Unpack

import optax

from fedjax_lite.aggregation.mean import Weighting
from fedjax_lite.algorithms.ewc import remembering_client, remembering_server
from fedjax_lite.checks.made import made
from fedjax_lite.engine.batches import Plan
from fedjax_lite.round.compose import federated_algorithm
from fedjax_lite.round.local import ClientOptimizer, LossFn
from fedjax_lite.round.server import optimizer_server
from fedjax_lite.round.slot_options import SlotOptions
from fedjax_lite.types import Array, FederatedAlgorithm, Sampler


@made
def three_way(
    loss: LossFn,
    client_optimizer: ClientOptimizer,
    *,
    lam: float | Array,
    mu: float | Array,
    plan: Plan,
    sampler: Sampler | None = None,
    weighting: Weighting = "examples",
    server_optimizer: optax.GradientTransformation | None = None,
    **slots: Unpack[SlotOptions],
) -> FederatedAlgorithm:
    r"""Learn the new task, do not forget the old ones, do not leave the others behind.

    .. math::
        y_i &\approx \arg\min_y\; f_i(y)
          + \tfrac{\lambda}{2} \sum_k \sum_j F_{k,j}\, (y_j - t_{k,j})^2
          + \tfrac{\mu}{2} \lVert y - x \rVert^2 \quad\text{from } y = x, \\
        x &\leftarrow \textstyle\sum_{i \in S} p_i\, y_i .

    Its parts are those of `ewc` and `fedprox`: ``mu = 0`` is `ewc`, ``lam = 0`` or no old task is
    `fedprox`, both is `fedavg`. Old tasks are `Known`, put in with `with_old_tasks`.

    Args:
      loss: ``(params, examples, key) -> [B]``, without the penalties; so is ``train_loss``.
      client_optimizer: an optax optimizer, or ``(round) -> optimizer``; it is given the gradient of
        the whole local objective.
      lam: the importance of the old tasks, at least 0; it may be traced.
      mu: the pull to the global model, at least 0; it may be traced.
      plan: local work.
      sampler: who takes part.
      weighting: "examples" (`n_i`), "uniform", or a function of `ClientInfo`.
      server_optimizer: default ``optax.sgd(1.0)``, plain averaging.
      **slots: `aggregator`, `uplink`, `downlink`, `privacy`, `strategy` as in `fedavg`.

    Returns:
      A `FederatedAlgorithm`; the model is ``state.server.params``, what was learnt
      ``state.server.old``.

    Raises:
      TypeError: if an argument has the wrong type.
      ValueError: if `lam` or `mu` is negative or not finite, or a name is unknown.

    Example:
      >>> import jax, jax.numpy as jnp, fedjax_lite as fl
      >>> data = fl.data.from_arrays({"b": jnp.array([-1.0])}, [0])
      >>> algo = three_way(lambda w, e, key: 2.0 * (w - e["b"]) ** 2, optax.sgd(0.1), lam=1.0,
      ...                  mu=2.0, plan=fl.Plan(batch_size=1, steps=60), sampler=fl.everyone())
      >>> state = algo.init(jax.random.key(0), jnp.array(1.0), data)
      >>> old = fl.remember(state.server.old, jnp.array(2.0), jnp.array(1.0))
      >>> state, _ = algo.round(jax.random.key(0), fl.with_old_tasks(state, old), data)
      >>> abs(round(float(state.server.params), 4))  # 4 (w + 1) + 2 (w - 1) + 2 (w - 1) = 0
      0.0

    Reference: Kirkpatrick et al., "Overcoming catastrophic forgetting in neural networks", 2017,
    arXiv:1612.00796; Li, Sahu, Zaheer, Sanjabi, Talwalkar, Smith, "Federated Optimization in
    Heterogeneous Networks", 2020, arXiv:1812.06127.
    """
    return federated_algorithm(
        remembering_client(loss, client_optimizer, lam=lam, mu=mu, weighting=weighting),
        plan=plan,
        sampler=sampler,
        server=remembering_server(
            optimizer_server(optax.sgd(1.0) if server_optimizer is None else server_optimizer)
        ),
        **slots,
    )
