"""FedBuff: a server that steps with every few messages, whenever they come."""

from __future__ import annotations

from typing import Any

import jax.numpy as jnp
import optax

from fedjax_lite.aggregation.mean import Weighting
from fedjax_lite.arrivals.asynchronous import asynchronous
from fedjax_lite.arrivals.availability import Availability
from fedjax_lite.arrivals.staleness import Staleness
from fedjax_lite.checks.made import made
from fedjax_lite.engine.batches import Plan
from fedjax_lite.engine.program import Strategy
from fedjax_lite.round.compose import federated_algorithm
from fedjax_lite.round.local import ClientOptimizer, LossFn, local_sgd
from fedjax_lite.round.sampling import everyone
from fedjax_lite.round.server import optimizer_server
from fedjax_lite.types import Aggregator, Array, FederatedAlgorithm, Transform


@made
def fedbuff(
    loss: LossFn,
    client_optimizer: ClientOptimizer,
    *,
    plan: Plan,
    concurrency: int,
    buffer: int = 10,
    latency: Any,
    staleness: Staleness | None = None,
    server_optimizer: optax.GradientTransformation | None = None,
    weighting: Weighting = "uniform",
    aggregator: Aggregator | None = None,
    uplink: Transform | None = None,
    available: Availability | None = None,
    timeout: float | Array = jnp.inf,
    idle: float | Array = 60.0,
    strategy: Strategy | None = None,
) -> FederatedAlgorithm:
    r"""Buffered asynchronous aggregation: a step for every `K` messages.

    .. math::
        x \leftarrow x - \frac{\eta_g}{K} \sum_{i=1}^{K} s(\tau_i) (x_{t - \tau_i} - y_i), \qquad
        s(\tau) = \frac{1}{\sqrt{1 + \tau}},

    :math:`y_i` trained from the model of :math:`\tau_i` versions ago. The sum is divided by `K`,
    not by the weights.

    Args:
      loss: ``(params, examples, key) -> [B]``, one loss per example.
      client_optimizer: an optax optimizer, or ``(round) -> optimizer``.
      plan: batch size and local work.
      concurrency: clients in flight at any time.
      buffer: `K`; the paper's 10.
      latency: a `Latency`, or a function ``(key, info, traffic) -> seconds``.
      staleness: :math:`s`; default ``polynomial(0.5)``.
      server_optimizer: descends on the sum; default ``optax.sgd(1.0)``.
      weighting: "uniform" (the paper's), "examples", or a function of `ClientInfo`; with weights
        the sum is divided by them.
      aggregator: default `mean()`.
      uplink: transform of the messages, e.g. ``clip(1.0)``; staleness is applied after it.
      available: who can be asked, when; None: everybody.
      timeout: seconds after which a client is given up; see `in_flight`.
      idle: seconds that a server waits where nobody can be asked.
      strategy: execution; default `auto()`.

    Returns:
      A `FederatedAlgorithm`; see `asynchronous` for its memory and its metrics.

    Raises:
      TypeError: if an argument has the wrong type.
      ValueError: if a number is out of its range.

    Example:
      >>> import jax, fedjax_lite as fl
      >>> data = fl.data.from_arrays({"b": jnp.array([-1.0, 2.0, 3.0])}, [0, 1, 2])
      >>> seconds = lambda key, info, traffic: jnp.array([1.0, 2.0, 9.0])[info.id]
      >>> algo = fedbuff(lambda w, e, key: 0.5 * (w - e["b"]) ** 2, optax.sgd(1.0), buffer=2,
      ...                plan=fl.Plan(batch_size=1), concurrency=3, latency=seconds)
      >>> state = algo.init(jax.random.key(0), jnp.array(0.0), data)
      >>> state, metrics = algo.round(jax.random.key(0), state, data)
      >>> float(state.server.params), float(metrics["simulated_seconds"])
      (0.5, 2.0)

    Reference: Nguyen et al., "Federated Learning with Buffered Asynchronous Aggregation", 2022,
    arXiv:2106.06639.
    """
    descent = optax.sgd(1.0) if server_optimizer is None else server_optimizer
    synchronous = federated_algorithm(
        local_sgd(loss, client_optimizer, weighting=weighting),
        plan=plan,
        sampler=everyone(),
        server=optimizer_server(descent),
        aggregator=aggregator,
        uplink=uplink,
        strategy=strategy,
    )
    return asynchronous(
        synchronous,
        concurrency=concurrency,
        buffer=buffer,
        latency=latency,
        staleness=staleness,
        available=available,
        timeout=timeout,
        idle=idle,
    )
