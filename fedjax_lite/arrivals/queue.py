"""The event queue of asynchronous training: who is in flight, and which messages come next."""

from __future__ import annotations

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from fedjax_lite.arrivals.availability import Availability
from fedjax_lite.arrivals.clock import CLOCK_STREAM, unknown_infos
from fedjax_lite.arrivals.latency import Latency, as_latency
from fedjax_lite.arrivals.quantities import as_float
from fedjax_lite.arrivals.ticks import Ticks
from fedjax_lite.checks.arguments import check_count, check_positive, check_slot
from fedjax_lite.checks.made import made
from fedjax_lite.engine.shuffle import permute
from fedjax_lite.round.errand import Errand, Traffic
from fedjax_lite.types import Array, Cohort, Key, Sampler


class Slots(NamedTuple):
    """Clients in flight, leaves `[concurrency]`."""

    left: Array
    """Seconds until the arrival; 0 in a slot that waits for a client."""
    turn: Array
    """int32: dispatches before this one; equal times go first in, first out."""
    ids: Array
    """int32; -1 in a slot that waits."""
    lost: Array
    """bool: its message never comes, which is noticed then."""
    place: Array
    """int32: where the model that it downloaded is kept."""
    version: Array
    """int32: the version of that model."""

    @property
    def pending(self) -> Array:
        """Seconds until the arrival; infinite in a slot that waits for a client."""
        return jnp.where(self.ids < 0, jnp.inf, self.left)


class Arrived(NamedTuple):
    """The messages of one buffer in the order of their arrival, leaves `[buffer]`."""

    ids: Array
    mask: Array
    place: Array
    staleness: Array
    """int32: versions of the server's model since the client downloaded its own."""
    fresh: Array
    """bool scalar: drawn for the round to come; False once a round has used them."""


class Queue(NamedTuple):
    """The state of the queue: memory ``O(concurrency + buffer)`` and a bool a client."""

    slots: Slots
    arrived: Arrived
    busy: Array
    """bool `[N]`: in flight, or heard since the last flush."""
    turn: Array
    """int32: dispatches so far."""
    version: Array
    """int32: flushes so far in which anybody came."""
    here: Array
    """int32: where the server's newest model is kept."""
    time: Ticks
    first: Traffic
    later: Traffic
    metrics: dict[str, Array]


@made
def in_flight(
    concurrency: int,
    *,
    buffer: int,
    latency: Any,
    available: Availability | None = None,
    timeout: float | Array = jnp.inf,
    idle: float | Array = 60.0,
) -> Sampler:
    r"""The next `buffer` arrivals of clients that train at their own pace: a queue of events.

    `concurrency` clients are in flight at any time. Whoever arrives makes room for another one, who
    downloads the newest model. Events of one instant happen in this order: arrivals, first sent
    first; the flush, where the buffer is full; then downloads. Clients are drawn without
    replacement from those who are idle, have not been heard since the last flush (nothing new could
    be learnt from them), and are available.

    All of it is arithmetic inside of the compiled round, on times that are left until an arrival:
    what a long run has behind it rounds nothing away.

    Args:
      concurrency: `C`, at most the population.
      buffer: `K`, messages a round, at most the population.
      latency: a `Latency`, or a function ``(key, info, traffic) -> seconds``.
      available: who can be asked, when; None: everybody.
      timeout: seconds after which a client is given up; may be traced. With ``inf`` all are waited
        for, but a message that never comes (`failing`) is noticed at once.
      idle: seconds that the server waits where nobody is in flight and nobody can be asked; the
        round then ends with those who came. May be traced.

    Returns:
      A `Sampler` whose cohorts `[buffer]` are in the order of arrival.

    Raises:
      TypeError: if an argument has the wrong type.
      ValueError: if a number is out of its range, or (when a state is made) above the population.

    Example:
      >>> arrives = lambda key, info, traffic: jnp.array([5.0, 7.0, 6.0])[info.id]
      >>> sampler = in_flight(3, buffer=2, latency=arrives)
      >>> state, cohort = sampler.sample(jax.random.key(0), sampler.init(3), jnp.ones(3, int))
      >>> cohort.ids.tolist(), float(state.metrics["simulated_seconds"])
      ([0, 2], 6.0)

    Reference: Nguyen et al., "Federated Learning with Buffered Asynchronous Aggregation", 2022,
    arXiv:2106.06639.
    """
    check_count(concurrency, "concurrency", minimum=1)
    check_count(buffer, "buffer", minimum=1)
    latency = as_latency(latency)
    check_positive(timeout, "timeout")
    check_positive(idle, "idle")
    if available is not None:
        check_slot(available, "available", Availability)
    return _told(concurrency, buffer, latency, available, timeout, idle, None)


def _told(
    concurrency: int,
    buffer: int,
    latency: Latency,
    available: Availability | None,
    timeout: Any,
    idle: Any,
    errand: Errand | None,
) -> Sampler:
    def init(num_clients: int) -> Queue:
        for name, count in (("concurrency", concurrency), ("buffer", buffer)):
            if count > num_clients:
                raise ValueError(
                    f"{name} must be at most the population, got {count} of {num_clients} "
                    "clients; take fewer, or partition into more"
                )
        none = Traffic(jnp.float32(0), jnp.float32(0))
        first = none if errand is None or errand.first is None else errand.first
        later = first if errand is None or errand.later is None else errand.later
        ints = lambda size, value=0: jnp.full(size, value, jnp.int32)  # noqa: E731
        slots = Slots(
            jnp.zeros(concurrency, float),
            ints(concurrency),
            ints(concurrency, -1),
            jnp.zeros(concurrency, bool),
            ints(concurrency),
            ints(concurrency),
        )
        nobody = jnp.zeros(buffer, bool)
        arrived = Arrived(ints(buffer), nobody, ints(buffer), ints(buffer), jnp.array(False))
        zero = jnp.int32(0)
        return Queue(
            *(slots, arrived, jnp.zeros(num_clients, bool), zero, zero, zero, Ticks.zero()),
            *(first, later, _metrics(as_float(0), as_float(0), arrived, zero, zero)),
        )

    def sample(key: Key, state: Queue, sizes: Array) -> tuple[Queue, Cohort]:
        num_clients = sizes.shape[0]
        seed = jax.random.bits(key, (2,), jnp.uint32)  # as `uniform` draws: the same cohorts
        key_latency = jax.random.fold_in(key, CLOCK_STREAM)

        def can_be_asked(queue: Queue, client: Array) -> Array:
            free = ~queue.busy[client]
            if available is not None:
                free &= available.awake(client[None], queue.time.seconds)[0]
            return free

        def seconds_of(queue: Queue, client: Array) -> Array:
            ids, own = client[None], sizes[client][None]
            infos = unknown_infos(ids, own) if errand is None else errand.infos(ids, own)
            info = jax.tree.map(lambda leaf: leaf[0], infos)
            traffic = jax.tree.map(
                lambda a, b: jnp.where(info.round == 0, a, b), queue.first, queue.later
            )
            total = latency(jax.random.fold_in(key_latency, client), info, traffic)
            return jnp.maximum(total, 0)

        def download(carry: _Fill) -> _Fill:
            """Draws the next client along a permutation of all of them, and sends it off."""
            queue = carry.queue

            def search(found: tuple[Array, Array, Array]) -> tuple[Array, Array, Array]:
                drawn, tries, _ = found
                client = permute(seed, 0, drawn % num_clients, num_clients)
                return drawn + 1, tries + 1, client

            def goes_on(found: tuple[Array, Array, Array]) -> Array:
                _, tries, client = found
                return (tries < num_clients) & ((tries == 0) | ~can_be_asked(queue, client))

            none = jnp.int32(0)
            drawn, _, client = jax.lax.while_loop(goes_on, search, (carry.drawn, none, none))
            good = can_be_asked(queue, client)
            slot = jnp.argmax(queue.slots.ids < 0)
            total = seconds_of(queue, client)
            lost = ~(total <= timeout) | ~jnp.isfinite(total)
            noticed = jnp.where(jnp.isfinite(as_float(timeout)), timeout, 0)
            left = jnp.where(lost, noticed, total)
            new = (left, queue.turn, client, lost, queue.here, queue.version)
            slots = Slots(
                *(
                    leaf.at[slot].set(jnp.where(good, jnp.asarray(value, leaf.dtype), leaf[slot]))
                    for leaf, value in zip(queue.slots, new)
                )
            )
            busy = queue.busy.at[client].set(queue.busy[client] | good)
            queue = queue._replace(slots=slots, busy=busy, turn=queue.turn + good)
            return _Fill(queue, drawn, good)

        def step(carry: _Step) -> _Step:
            queue, later = carry.queue, may_download(carry.queue.slots)
            fill = jax.lax.while_loop(
                lambda c: c.good & (c.queue.slots.ids < 0).any(),
                download,
                _Fill(queue, carry.drawn, later),
            )
            queue = fill.queue
            slots = queue.slots
            soonest = slots.pending.min()
            stuck = jnp.isinf(soonest)
            slot = next_to_arrive(slots)
            counts = ~stuck & ~slots.lost[slot]
            stale = queue.version - slots.version[slot]
            row = (slots.ids[slot], True, slots.place[slot], stale)
            arrived = Arrived(
                *(
                    leaf.at[carry.count].set(jnp.where(counts, value, leaf[carry.count]))
                    for leaf, value in zip(queue.arrived, row)
                ),
                fresh=queue.arrived.fresh,
            )
            elapsed = jnp.where(stuck, idle, soonest).astype(float)
            left = jnp.where(stuck | (slots.ids < 0), 0, slots.left - soonest).at[slot].set(0)
            slots = slots._replace(left=left, ids=slots.ids.at[slot].set(-1))
            queue = queue._replace(slots=slots, arrived=arrived, time=queue.time + elapsed)
            given_up = carry.lost + (~stuck & ~counts)
            return _Step(queue, fill.drawn, carry.count + counts, given_up, stuck)

        before, sent = state.time, state.turn
        nobody = jax.tree.map(jnp.zeros_like, state.arrived)._replace(fresh=jnp.array(True))
        begin = state._replace(arrived=nobody)
        zero = jnp.int32(0)
        end = jax.lax.while_loop(
            lambda c: (c.count < buffer) & ~c.stuck,
            step,
            _Step(begin, zero, zero, zero, jnp.array(False)),
        )
        queue, any_came = end.queue, end.count > 0
        slots = queue.slots
        flying = slots.ids >= 0
        used = jnp.zeros(concurrency, bool).at[slots.place].max(flying)
        busy = jnp.zeros(num_clients, bool)
        busy = busy.at[jnp.where(flying, slots.ids, num_clients)].set(True, mode="drop")
        lasted = (queue.time.seconds - before.seconds) + (queue.time.rest - before.rest)
        queue = queue._replace(
            busy=busy,
            version=queue.version + any_came,
            here=jnp.where(any_came, jnp.argmin(used).astype(jnp.int32), queue.here),
            metrics=_metrics(
                *(queue.time.seconds, lasted, queue.arrived, end.lost, queue.turn - sent)
            ),
        )
        return queue, Cohort(queue.arrived.ids, queue.arrived.mask)

    def at(errand: Errand) -> Sampler:
        return _told(concurrency, buffer, latency, available, timeout, idle, errand)

    return Sampler(init, sample, at)


def next_to_arrive(slots: Slots) -> Array:
    """The slot whose message comes next: of those that come at the same time, the first sent.

    Example:
      >>> left, turn, none = jnp.array([2.0, 1.0, 1.0]), jnp.array([0, 3, 2]), jnp.zeros(3, int)
      >>> int(next_to_arrive(Slots(left, turn, none, none, none, none)))
      2
    """
    pending = slots.pending
    turns = jnp.where(pending == pending.min(), slots.turn, jnp.iinfo(jnp.int32).max)
    return jnp.argmin(turns)


def may_download(slots: Slots) -> Array:
    """Whether all arrivals of this instant were heard, and the flush among them is over.

    Example:
      >>> left, none = jnp.array([2.0, 0.0]), jnp.zeros(2, int)
      >>> slots = Slots(left, none, none, none, none, none)
      >>> bool(may_download(slots)), bool(may_download(slots._replace(left=left + 1)))
      (False, True)
    """
    return slots.pending.min() > 0


class _Fill(NamedTuple):
    queue: Queue
    drawn: Array
    good: Array


class _Step(NamedTuple):
    queue: Queue
    drawn: Array
    count: Array
    lost: Array
    stuck: Array


def _metrics(
    time: Array, lasted: Array, arrived: Arrived, lost: Array, sent: Array
) -> dict[str, Array]:
    count = arrived.mask.sum()
    stale = jnp.where(arrived.mask, arrived.staleness, 0)
    return {
        "simulated_seconds": time,
        "round_seconds": lasted,
        "staleness": stale.sum().astype(float) / jnp.maximum(count, 1),
        "max_staleness": stale.max(),
        "num_lost": lost,
        "num_sent": sent,
    }
