"""CA2FL: buffered asynchronous training that remembers what each client sent last."""

from __future__ import annotations

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from fedjax_lite import trees
from fedjax_lite.arrivals.asynchronous import asynchronous
from fedjax_lite.arrivals.availability import Availability
from fedjax_lite.arrivals.staleness import undiscounted
from fedjax_lite.checks.made import made
from fedjax_lite.data.population.population import Population
from fedjax_lite.engine.batches import Plan
from fedjax_lite.engine.phases import Step, around
from fedjax_lite.engine.program import Strategy
from fedjax_lite.round.compose import federated_algorithm
from fedjax_lite.round.local import ClientOptimizer, LossFn, local_sgd
from fedjax_lite.round.sampling import everyone
from fedjax_lite.round.server import optimizer_server
from fedjax_lite.types import (
    Array,
    Batch,
    ClientInfo,
    ClientUpdate,
    Cohort,
    FederatedAlgorithm,
    Key,
    Message,
    Params,
    PyTree,
    ServerUpdate,
)


@made
def ca2fl(
    loss: LossFn,
    client_optimizer: ClientOptimizer,
    *,
    plan: Plan,
    concurrency: int,
    buffer: int = 10,
    latency: Any,
    server_optimizer: optax.GradientTransformation | None = None,
    available: Availability | None = None,
    timeout: float | Array = jnp.inf,
    idle: float | Array = 60.0,
    strategy: Strategy | None = None,
) -> FederatedAlgorithm:
    r"""Cache-aided calibration: a flush moves the model by what all clients sent last.

    .. math::
        v_t &= h_t + \frac1K \sum_{i \in S_t} (\Delta_i - h_{i,t}), \qquad
        h_t = \frac1N \sum_{i=1}^{N} h_{i,t}, \\
        x_{t+1} &= x_t - \eta_g\, v_t, \qquad
        h_{i,t+1} = \Delta_i \text{ for } i \in S_t, \text{ else } h_{i,t},

    :math:`\Delta_i = x_{t - \tau_i} - y_i` and `N` the clients that have data. In FedBuff the fast
    clients, who are heard more often, draw the model to themselves; here everybody's last update
    weighs the same, however long ago it came, and where updates no longer change, that is where
    their plain mean is zero. All :math:`h_i` begin at zero. With everybody in the buffer it is
    FedBuff without discount.

    The rule is that of public implementations of the paper's Algorithm 2 (FLGo's ``ca2fl.py``), but
    for the sign of :math:`\Delta_i`, and so of :math:`h` and `v`. A client is in a buffer once, for
    it is not asked again before the flush. The paper's variant that stores quantised :math:`h_i`
    (MF-CA2FL) is not here.

    The paper's server keeps the :math:`h_i`; here each lies in its client's row, and clients send
    the difference, of the same size: the same arithmetic, and rows may be streamed or split over
    devices. A transform of the messages would part the two, so there is none.

    Args:
      loss: ``(params, examples, key) -> [B]``, one loss per example.
      client_optimizer: an optax optimizer, or ``(round) -> optimizer``.
      plan: batch size and local work.
      concurrency: clients in flight at any time.
      buffer: `K`.
      latency: a `Latency`, or a function ``(key, info, traffic) -> seconds``.
      server_optimizer: descends on `v`; default ``optax.sgd(1.0)``.
      available: who can be asked, when; None: everybody.
      timeout: seconds after which a client is given up; see `in_flight`.
      idle: seconds that a server waits where nobody can be asked.
      strategy: execution; default `auto()`.

    Returns:
      A `FederatedAlgorithm`: rows ``state.clients`` are the :math:`h_i`, memory `N` models; see
      `asynchronous` for the rest.

    Raises:
      TypeError: if an argument has the wrong type.
      ValueError: if a number is out of its range.

    Example:
      >>> import fedjax_lite as fl
      >>> data = fl.data.from_arrays({"b": jnp.array([-1.0, 2.0])}, [0, 1])
      >>> seconds = lambda key, info, traffic: jnp.array([1.0, 1.5])[info.id]
      >>> algo = ca2fl(lambda w, e, key: 0.5 * (w - e["b"]) ** 2, optax.sgd(1.0), buffer=1,
      ...              plan=fl.Plan(batch_size=1), concurrency=2, latency=seconds)
      >>> state, key = algo.init(jax.random.key(0), jnp.array(0.0), data), jax.random.key(0)
      >>> for _ in range(2):  # x = 0 - 1; then h = 1 / 2, v = 1 / 2 - 2
      ...     state, _ = algo.round(key, state, data)
      ...     print(float(state.server.params), state.clients.tolist())
      -1.0 [1.0, 0.0]
      0.5 [1.0, -2.0]

    Reference: Wang, Cao, Wu, Chen, Chen, "Tackling the Data Heterogeneity in Asynchronous Federated
    Learning with Cached Update Calibration", ICLR 2024, openreview.net/forum?id=4aywmeb97I.
    """
    descent = optax.sgd(1.0) if server_optimizer is None else server_optimizer
    synchronous = federated_algorithm(
        calibrated_client(local_sgd(loss, client_optimizer, weighting="uniform")),
        plan=plan,
        sampler=everyone(),
        server=calibrated_server(optimizer_server(descent)),
        strategy=strategy,
    )
    return asynchronous(
        synchronous,
        concurrency=concurrency,
        buffer=buffer,
        latency=latency,
        staleness=undiscounted(),
        available=available,
        timeout=timeout,
        idle=idle,
    )


@made
def calibrated_client(client: ClientUpdate) -> ClientUpdate:
    """Training that sends by how much its update differs from the last one that was heard.

    Args:
      client: local training that keeps no row.

    Example:
      >>> client = calibrated_client(local_sgd(lambda w, e, key: w * e, optax.sgd(1.0)))
      >>> info = ClientInfo(*map(jnp.int32, (0, 1, 1, 0)))
      >>> carry = client.start(None, jnp.array(0.5), jnp.array(0.0), info)
      >>> carry = client.step(0.0, carry, Batch(jnp.ones(1), jnp.ones(1, bool), None))
      >>> row, message, _ = client.finish(jnp.array(0.0), carry)
      >>> float(row), float(message.value)
      (1.0, 0.5)
    """

    def init(params: Params) -> Params:
        client.init(params)
        return trees.zeros(params)

    def start(key: Key, row: Params, broadcast: PyTree, info: ClientInfo) -> PyTree:
        return client.start(key, (), broadcast, info), row

    def wrap(inner_step: Step) -> Step:
        def step(broadcast: PyTree, carry: PyTree, batch: Batch) -> PyTree:
            return inner_step(broadcast, carry[0], batch), carry[1]

        return step

    def finish(broadcast: PyTree, carry: PyTree) -> tuple[PyTree, Message, dict[str, Any]]:
        inner, row = carry
        _, message, metrics = client.finish(broadcast, inner)
        change = trees.subtract(message.value, row)
        kept = trees.where(message.weight > 0, message.value, row)
        return kept, Message(change, message.weight), metrics

    step = around(client.step, wrap)
    return client._replace(init=init, start=start, step=step, finish=finish)


class Calibrated(NamedTuple):
    """A server that knows the mean of what all clients sent last."""

    inner: PyTree
    """The server's own."""
    mean_update: Params
    """`h`."""
    num_clients: Array
    """float scalar: `N`, clients that have data."""

    @property
    def params(self) -> Params:
        """The global model."""
        return self.inner.params


@made
def calibrated_server(server: ServerUpdate) -> ServerUpdate:
    """A server that moves by the mean of all clients' last updates, corrected by the new ones.

    Args:
      server: what it does with that direction.

    Example:
      >>> server = calibrated_server(optimizer_server(optax.sgd(1.0)))
      >>> state = server.init(jnp.array(0.0), Population.of([1, 1, 1, 0]))
      >>> cohort = Cohort(jnp.arange(1), jnp.ones(1, bool))
      >>> for _ in range(2):
      ...     state = server.update(None, state, jnp.array(3.0), cohort, {})
      ...     print(float(state.params), float(state.mean_update))
      -3.0 1.0
      -7.0 2.0
    """

    def init(params: Params, population: Population) -> Calibrated:
        with_data = (jnp.asarray(population.sizes) > 0).sum().astype(float)
        return Calibrated(server.init(params, population), trees.zeros(params), with_data)

    def update(
        key: Key, state: Calibrated, value: PyTree, cohort: Cohort, metrics: dict[str, Any]
    ) -> Calibrated:
        value = trees.cast_like(value, state.mean_update)
        direction = jax.tree.map(lambda h, change: h + change, state.mean_update, value)
        inner = server.update(key, state.inner, direction, cohort, metrics)
        share = cohort.mask.sum() / jnp.maximum(state.num_clients, 1)
        moved = jax.tree.map(
            lambda h, change: h + share.astype(h.dtype) * change, state.mean_update, value
        )
        return state._replace(inner=inner, mean_update=moved)

    return ServerUpdate(init, lambda state: server.broadcast(state.inner), update)
