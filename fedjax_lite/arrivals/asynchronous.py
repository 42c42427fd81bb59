"""asynchronous(): any method whose clients send when they are done, and are not waited for."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp

from fedjax_lite import trees
from fedjax_lite.aggregation.conditions import in_population
from fedjax_lite.arrivals.availability import Availability
from fedjax_lite.arrivals.queue import Queue, in_flight
from fedjax_lite.arrivals.staleness import Staleness, polynomial
from fedjax_lite.arrivals.versions import Broadcast, Versions, discounted, from_versions
from fedjax_lite.checks.arguments import check_slot
from fedjax_lite.checks.labels import outputs_of, watching
from fedjax_lite.checks.made import made
from fedjax_lite.engine.one_pass import measured_by, one_pass
from fedjax_lite.engine.program import Strategy, Table
from fedjax_lite.engine.round_keys import round_keys
from fedjax_lite.engine.table_memory import check_table
from fedjax_lite.round.compose import checked_round
from fedjax_lite.round.downlink import travelling
from fedjax_lite.round.errand import told
from fedjax_lite.round.fresh_state import fresh_state
from fedjax_lite.round.metrics import round_metrics
from fedjax_lite.round.own_models import models_of
from fedjax_lite.round.wiring import Wired, wired
from fedjax_lite.types import Array, Cohort, FederatedAlgorithm, Key, Params, RoundState, Slots

OF_NETWORKS = ("matching",)
"""Aggregators, by factory, of messages that are no changes: half of a network is none."""


@made
def asynchronous(
    algorithm: FederatedAlgorithm,
    *,
    concurrency: int,
    buffer: int,
    latency: Any,
    staleness: Staleness | None = None,
    anchored: bool = False,
    available: Availability | None = None,
    timeout: float | Array = jnp.inf,
    idle: float | Array = 60.0,
) -> FederatedAlgorithm:
    r"""A method whose server steps as soon as a buffer of messages is full, whoever they are from.

    `concurrency` clients train at any time, each on the model that it downloaded when it began. One
    round is one flush: the next `buffer` arrivals, with staleness :math:`\tau_i`, are aggregated as

    .. math::  \bar\Delta = \frac1K \sum_{i=1}^{K} s(\tau_i)\, \Delta_i

    (what `algorithm` does with messages of equal weights; weights of its own stay), and its server
    steps along it. With latencies that are all the same and ``buffer=concurrency`` this is the
    synchronous method with ``uniform(concurrency)``, bit for bit.

    Args:
      algorithm: a method that was wired from slots: its client, plan, server, aggregator, uplink
        and strategy are used; its sampler is not asked.
      concurrency: `C`, clients in flight.
      buffer: `K`, messages a round; 1 for a step with every message.
      latency: a `Latency`, or a function ``(key, info, traffic) -> seconds``.
      staleness: :math:`s`, ``(staleness [K]) -> weights [K]``; default ``polynomial(0.5)``.
      anchored: FedAsync's :math:`x - y_i` for :math:`\Delta_i`: a client's model against the newest
        one in place of the one that it downloaded.
      available: who can be asked, when; None: everybody.
      timeout: seconds after which a client is given up; see `in_flight`.
      idle: seconds that a server waits where nobody can be asked; see `in_flight`.

    Returns:
      A `FederatedAlgorithm`. Rows of stateful clients are read and written when their message
      arrives. A schedule over rounds is one over flushes. Versions of the model that somebody in
      flight may hold are kept: memory `C` times what is broadcast, beside a few words a slot and a
      byte a client (`queue_bytes`). With an explicit cohort all have downloaded the newest model.
      Metrics are the method's, with ``simulated_seconds``, ``round_seconds``, ``staleness`` (mean),
      ``max_staleness``, ``num_sent`` (downloads in this round, which ``downlink_bits`` bills) and
      ``num_lost``.

    Raises:
      TypeError: if an argument has the wrong type.
      ValueError: if the method is private (who is in a buffer is decided by latencies, not by the
        sampling that its accountant presumes), has a prologue, compresses its broadcast, draws its
        amounts of work at random, has a phase that reads a split, or sends whole networks, which
        are not to be scaled (`fedma`); if a number is out of its range.

    Example:
      >>> import optax, fedjax_lite as fl
      >>> data = fl.data.from_arrays({"b": jnp.array([-1.0, 2.0, 3.0])}, [0, 1, 2])
      >>> sync = fl.fedavg(lambda w, e, key: 0.5 * (w - e["b"]) ** 2, optax.sgd(1.0),
      ...                  plan=fl.Plan(batch_size=1), sampler=fl.everyone())
      >>> seconds = lambda key, info, traffic: jnp.array([1.0, 2.0, 9.0])[info.id]
      >>> algo = asynchronous(sync, concurrency=3, buffer=2, latency=seconds)
      >>> state = algo.init(jax.random.key(0), jnp.array(0.0), data)
      >>> state, metrics = algo.round(jax.random.key(0), state, data)
      >>> float(state.server.params), float(metrics["simulated_seconds"])
      (0.5, 2.0)

    Reference: Nguyen et al., "Federated Learning with Buffered Asynchronous Aggregation", 2022,
    arXiv:2106.06639.
    """
    check_slot(algorithm, "algorithm", FederatedAlgorithm)
    weigh = polynomial(0.5) if staleness is None else staleness
    if not callable(weigh):
        raise TypeError(
            f"staleness must be a function (staleness [K]) -> weights [K], got {weigh!r:.60}; for "
            "example fl.arrivals.polynomial(0.5)"
        )
    slots = _checked_slots(algorithm.slots)
    queue = in_flight(
        concurrency,
        buffer=buffer,
        latency=latency,
        available=available,
        timeout=timeout,
        idle=idle,
    )
    slots = slots._replace(sampler=queue)
    wires = wired(
        *(slots.client, slots.plan, slots.sampler, slots.server, slots.aggregator, slots.uplink),
        *(None, None, slots.strategy, None),
    )

    def init(key: Key, params: Params, data: Any = None) -> RoundState:
        fresh = fresh_state(wires, key, params, data)
        sent = travelling(wires.server.broadcast(fresh.server))
        check_table(sent, concurrency)
        held = [jnp.array(trees.repeat_rows(leaf, concurrency)) for leaf in sent]
        return trees.unaliased(fresh._replace(server=Versions(fresh.server, held)))

    @jax.jit
    def compiled(
        key: Key, state: RoundState, data: Any, cohort: Cohort | None
    ) -> tuple[RoundState, dict[str, Array]]:
        return _next_state(wires, weigh, anchored, key, state, data, cohort)

    def round(
        key: Key, state: RoundState, data: Any = None, cohort: Cohort | None = None
    ) -> tuple[RoundState, dict[str, Array]]:
        state, data = checked_round(wires, key, state, data, cohort)
        with (
            watching(outputs_of(round), state.server, data.examples),
            in_population(data.num_clients),
        ):
            return compiled(key, state, data, cohort)

    @jax.jit
    def sample(key: Key, round: Array, state: Queue, sizes: Array) -> tuple[Queue, Cohort]:
        return told(wires, key, round).sample(round_keys(key, round).sample, state, sizes)

    def with_strategy(other: Strategy) -> FederatedAlgorithm:
        return asynchronous(
            algorithm._replace(slots=slots._replace(strategy=other)),
            concurrency=concurrency,
            buffer=buffer,
            latency=latency,
            staleness=staleness,
            anchored=anchored,
            available=available,
            timeout=timeout,
            idle=idle,
        )

    return FederatedAlgorithm(init, round, sample, with_strategy, None, models_of, wires.slots)


def _next_state(
    wires: Wired,
    weigh: Staleness,
    anchored: bool,
    key: Key,
    state: RoundState,
    data: Any,
    cohort: Cohort | None,
) -> tuple[RoundState, dict[str, Array]]:
    keys = round_keys(key, state.round)
    queue: Queue = state.sampler
    drawn = cohort is None
    if cohort is None:
        queue, cohort = told(wires, key, state.round).sample(keys.sample, queue, data.sizes)
    place, stale = _downloaded(queue, cohort)
    known = (cohort.ids >= 0) & (cohort.ids < data.num_clients)
    cohort = Cohort(cohort.ids.astype(jnp.int32), cohort.mask & known)
    versions: Versions = state.server
    sent = Broadcast(wires.server.broadcast(versions.inner), versions.held)
    program = wires.program._replace(
        client=from_versions(wires.program.client),
        aggregator=discounted(
            wires.program.aggregator, weigh(stale), sent, place, anchored=anchored
        ),
    )
    done = one_pass(
        program,
        *(wires.strategy, keys.training, Table(state.clients, state.uplink), state.aggregator),
        *(sent, cohort, state.round, data, {"place": place}),
    )
    inner = wires.server.update(keys.server, versions.inner, done.value, done.cohort, done.metrics)
    newest = travelling(wires.server.broadcast(inner))
    held = [old.at[queue.here].set(leaf) for old, leaf in zip(versions.held, newest)]
    new = RoundState(
        round=state.round + 1,
        server=Versions(inner, held),
        clients=done.table.clients,
        uplink=done.table.uplink,
        aggregator=done.aggregator,
        sampler=queue._replace(arrived=queue.arrived._replace(fresh=jnp.array(False))),
        privacy=state.privacy,
    )
    measured = measured_by(queue)
    downloads = jnp.where(
        drawn | queue.arrived.fresh, measured["num_sent"], cohort.mask.sum()
    ).astype(jnp.float32)
    bits = downloads * jnp.float32(
        trees.num_bits(newest) * getattr(versions.inner, "downloaded_share", 1.0)
    )
    return new, {
        **round_metrics(done.metrics, done.work, cohort.mask),
        "downlink_bits": bits,
        "downlink_entropy_bits": bits,
        **done.measured,
        **measured_by(inner),
        **measured,
    }


def _downloaded(queue: Queue, cohort: Cohort) -> tuple[Array, Array]:
    """Where each client's version is kept, and how stale it is; the newest for a chosen cohort."""
    newest = jnp.broadcast_to(queue.here, cohort.ids.shape), jnp.zeros_like(cohort.ids)
    if cohort.ids.shape != queue.arrived.ids.shape:
        return newest
    theirs = queue.arrived.place, queue.arrived.staleness
    return jax.tree.map(lambda a, b: jnp.where(queue.arrived.fresh, a, b), theirs, newest)


def _checked_slots(slots: Slots | None) -> Slots:
    """The slots of a method that can be asynchronous.

    Raises:
      TypeError: if there are none.
      ValueError: if it needs a cohort, or a bound that nobody knows.
    """
    if slots is None:
        raise TypeError(
            "algorithm must be wired from slots, got one without; such as fl.fedavg(...)"
        )
    reasons = {
        "privacy": "the bound holds for the mechanism's own sampling, and who is in a buffer is "
        "decided by latencies; train synchronously, or give noise of the clients' own as uplink "
        "and account for it yourself",
        "prologue": "a first pass needs the whole cohort at once; take fl.fedavg or the like",
        "downlink": "clients in flight have missed the changes since; leave it out",
    }
    for name, reason in reasons.items():
        if getattr(slots, name) is not None:
            raise ValueError(
                f"algorithm must have no {name} where it is asynchronous, got one: {reason}"
            )
    if (by := slots.aggregator.made) is not None and by.name in OF_NETWORKS:
        raise ValueError(
            "algorithm must send changes of a model where it is asynchronous, got one with the "
            f"aggregator {by}: its messages are whole networks, which staleness would scale; train "
            "synchronously, or take fl.fedavg or the like"
        )
    steps = slots.client.step
    phases = steps if isinstance(steps, tuple) else ()
    if splits := sorted({phase.data for phase in phases if phase.data}):
        raise ValueError(
            "algorithm must have no phase that reads a split where it is asynchronous, got the "
            f"splits {splits}: how long a client is away must be known when it leaves, and the "
            "queue is told the sizes of what clients train on alone; let all phases read that"
        )
    plans = [slots.plan]
    plans += [phase.plan for phase in phases if phase.plan is not None]
    if any(plan.is_random for plan in plans):
        raise ValueError(
            "plan must fix each client's work where it is asynchronous, got a random amount: how "
            "long a client is away must be known when it leaves; give an array [N], and let the "
            "latency be random"
        )
    return slots
