"""FedAvg: local SGD from the server's model, and the weighted mean of the results."""

from __future__ import annotations

import optax

from fedjax_lite.aggregation.mean import Weighting
from fedjax_lite.checks.made import made
from fedjax_lite.engine.batches import Plan
from fedjax_lite.engine.program import Strategy
from fedjax_lite.round.compose import federated_algorithm
from fedjax_lite.round.downlink import Downlink
from fedjax_lite.round.local import ClientOptimizer, LossFn, local_sgd
from fedjax_lite.round.server import optimizer_server
from fedjax_lite.types import Aggregator, FederatedAlgorithm, Mechanism, Sampler, Transform


@made
def fedavg(
    loss: LossFn,
    client_optimizer: ClientOptimizer,
    *,
    plan: Plan,
    sampler: Sampler | None = None,
    server_optimizer: optax.GradientTransformation | None = None,
    weighting: Weighting = "examples",
    aggregator: Aggregator | None = None,
    uplink: Transform | None = None,
    downlink: Downlink | Transform | None = None,
    privacy: Mechanism | None = None,
    strategy: Strategy | None = None,
) -> FederatedAlgorithm:
    r"""Federated averaging, with any optimizer on either side (FedOpt).

    .. math::
        y_i &= \text{local SGD from } x \text{ on client } i, \\
        x &\leftarrow \textstyle\sum_{i \in S} p_i\, y_i = x - \sum_{i \in S} p_i (x - y_i),
        \qquad p_i = n_i \big/ \sum_{j \in S} n_j .

    Args:
      loss: ``(params, examples, key) -> [B]``, one loss per example.
      client_optimizer: an optax optimizer, or ``(round) -> optimizer`` for a schedule over rounds.
      plan: batch size and epochs (or steps) of local work, also per client.
      sampler: who takes part, e.g. ``uniform(10)``; left out where `privacy` brings its own.
      server_optimizer: descends on the mean of ``x - y_i``; default ``optax.sgd(1.0)``, plain
        averaging. ``fedjax_lite.round.server`` has the adaptive ones of the FedOpt paper.
      weighting: "examples" (`n_i`), "uniform", or a function of `ClientInfo`.
      aggregator: default `mean()`.
      uplink: transform of the messages, e.g. ``clip(1.0)``.
      downlink: compression of the broadcast, e.g. ``top_k(0.1)``; see `downlinked`.
      privacy: a mechanism of `fedjax_lite.privacy`; it brings the sampler and the aggregator.
      strategy: execution; default `auto()`.

    Returns:
      A `FederatedAlgorithm`; the global model is ``state.server.params``.

    Raises:
      TypeError: if an argument has the wrong type.
      ValueError: if a name is unknown or an amount is out of range.

    Example:
      >>> import jax, jax.numpy as jnp, fedjax_lite as fl
      >>> data = fl.data.from_arrays({"b": jnp.array([-1.0, 2.0, 2.0])}, [0, 1, 1])
      >>> algo = fedavg(lambda w, e, key: 0.5 * (w - e["b"]) ** 2, optax.sgd(1.0),
      ...               plan=fl.Plan(batch_size=2), sampler=fl.everyone())
      >>> state = algo.init(jax.random.key(0), jnp.array(0.0), data)
      >>> state, metrics = algo.round(jax.random.key(0), state, data)
      >>> float(state.server.params)  # (1 * -1 + 2 * 2) / 3
      1.0

    Reference: McMahan, Moore, Ramage, Hampson, Agüera y Arcas, "Communication-Efficient Learning
    of Deep Networks from Decentralized Data", 2017, arXiv:1602.05629.
    """
    return federated_algorithm(
        local_sgd(loss, client_optimizer, weighting=weighting),
        plan=plan,
        sampler=sampler,
        server=optimizer_server(optax.sgd(1.0) if server_optimizer is None else server_optimizer),
        aggregator=aggregator,
        uplink=uplink,
        downlink=downlink,
        privacy=privacy,
        strategy=strategy,
    )
