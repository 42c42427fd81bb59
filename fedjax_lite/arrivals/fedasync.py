"""FedAsync: the server mixes in every client's model as soon as it arrives."""

from __future__ import annotations

from typing import Any

import jax.numpy as jnp
import optax

from fedjax_lite.arrivals.asynchronous import asynchronous
from fedjax_lite.arrivals.availability import Availability
from fedjax_lite.arrivals.staleness import Staleness
from fedjax_lite.checks.arguments import check_fraction
from fedjax_lite.checks.made import made
from fedjax_lite.engine.batches import Plan
from fedjax_lite.engine.program import Strategy
from fedjax_lite.round.compose import federated_algorithm
from fedjax_lite.round.local import ClientOptimizer, LossFn, local_sgd
from fedjax_lite.round.sampling import everyone
from fedjax_lite.round.server import optimizer_server
from fedjax_lite.types import Array, FederatedAlgorithm, Transform


@made
def fedasync(
    loss: LossFn,
    client_optimizer: ClientOptimizer,
    *,
    plan: Plan,
    concurrency: int,
    latency: Any,
    mixing: float | Array = 0.6,
    staleness: Staleness | None = None,
    uplink: Transform | None = None,
    available: Availability | None = None,
    timeout: float | Array = jnp.inf,
    idle: float | Array = 60.0,
    strategy: Strategy | None = None,
) -> FederatedAlgorithm:
    r"""Asynchronous federated optimization: a step for every message.

    .. math::  x \leftarrow (1 - \alpha_t)\, x + \alpha_t\, y_i, \qquad \alpha_t = \alpha\, s(\tau),

    :math:`y_i` trained from the model of :math:`\tau` versions ago. The paper pulls clients towards
    that model: ``client_optimizer=optax.chain(fl.proximal(rho), optax.sgd(0.1))``.

    Args:
      loss: ``(params, examples, key) -> [B]``, one loss per example.
      client_optimizer: an optax optimizer, or ``(round) -> optimizer``.
      plan: batch size and local work.
      concurrency: clients in flight at any time.
      latency: a `Latency`, or a function ``(key, info, traffic) -> seconds``.
      mixing: :math:`\alpha` in `[0, 1]`, may be traced.
      staleness: :math:`s`; default ``polynomial(0.5)``, the paper also has ``undiscounted()`` and
        ``hinge(10, 4)``.
      uplink: transform of the messages, which are the client's change since its download.
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
      >>> data = fl.data.from_arrays({"b": jnp.array([1.0, 3.0])}, [0, 1])
      >>> seconds = lambda key, info, traffic: jnp.array([1.0, 1.5])[info.id]
      >>> algo = fedasync(lambda w, e, key: 0.5 * (w - e["b"]) ** 2, optax.sgd(1.0), mixing=0.5,
      ...                 plan=fl.Plan(batch_size=1), concurrency=2, latency=seconds)
      >>> state, key = algo.init(jax.random.key(0), jnp.array(0.0), data), jax.random.key(0)
      >>> for _ in range(2):
      ...     state, metrics = algo.round(key, state, data)
      ...     print(round(float(state.server.params), 4), int(metrics["max_staleness"]))
      0.5 0
      1.3839 1

    Reference: Xie, Koyejo, Gupta, "Asynchronous Federated Optimization", 2019, arXiv:1903.03934.
    """
    check_fraction(mixing, "mixing")
    synchronous = federated_algorithm(
        local_sgd(loss, client_optimizer, weighting="uniform"),
        plan=plan,
        sampler=everyone(),
        server=optimizer_server(optax.sgd(mixing)),
        uplink=uplink,
        strategy=strategy,
    )
    return asynchronous(
        synchronous,
        concurrency=concurrency,
        buffer=1,
        latency=latency,
        staleness=staleness,
        anchored=True,
        available=available,
        timeout=timeout,
        idle=idle,
    )
