"""Simulated time: an event loop of its own beside the queue, and what a clock has to say.

Seven quadratics ``a_i / 2 (x - b_i)^2``, one example each, two local steps of rate 1/4. Who is
asked next is the library's keyed permutation; all that comes of it is a plain loop over a heap.
"""

from __future__ import annotations

import functools
import heapq
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax

from fedjax_lite.algorithms.fedavg import fedavg
from fedjax_lite.arrivals.clock import clocked
from fedjax_lite.arrivals.fedasync import fedasync
from fedjax_lite.arrivals.fedbuff import fedbuff
from fedjax_lite.arrivals.latency import latency
from fedjax_lite.arrivals.quantities import exponential, per_client
from fedjax_lite.arrivals.staleness import hinge
from fedjax_lite.engine.batches import Plan
from fedjax_lite.engine.round_keys import round_keys
from fedjax_lite.engine.shuffle import shuffle_index
from fedjax_lite.round.errand import Errand, Traffic
from fedjax_lite.round.sampling import everyone, uniform
from fedjax_lite.types import ClientInfo, FederatedAlgorithm
from fedjax_lite.verify.records import Check
from fedjax_lite.verify.testbeds import q2, quadratic, trajectory

SLOPES = np.array([1.0, 2.0, 0.5, 1.5, 1.0, 3.0, 0.7])
OPTIMA = np.array([-1.0, 2.0, 0.5, 4.0, -3.0, 1.0, 2.5])
RATE, STEPS, SERVER = 0.25, 2, 0.5
WHOLE = (0.0, 1.0, 2.0, 1.0, 3.0, 1.0, 2.0)
"""Many events fall together, and client 0 is back at once."""
UNEVEN = (0.3, 1.7, 2.9, 0.11, 5.3, 0.77, 9.1)


class World(NamedTuple):
    """Who is away for how long, and what the server waits for."""

    seconds: tuple[float, ...]
    concurrency: int
    buffer: int
    anchored: bool = False


@functools.cache
def by_heap(world: World, num_rounds: int) -> np.ndarray:
    """Time, model, senders and their staleness after each flush, `[R, 2 + 2 K]`."""
    key, x, now, version, turn = jax.random.key(0), 0.0, 0.0, 0, 0
    num, idle = len(SLOPES), world.concurrency
    heap: list[tuple[float, int, int, int, float]] = []
    busy: set[int] = set()
    rows = []
    for r in range(num_rounds):
        places = jnp.arange(num, dtype=jnp.int32)
        order = iter(shuffle_index(round_keys(key, jnp.int32(r)).sample, places, num).tolist())
        total, came, stale = 0.0, [], []
        while len(came) < world.buffer:
            if not heap or heap[0][0] > now:  # nobody else comes in this instant
                while idle and (asked := next((i for i in order if i not in busy), -1)) >= 0:
                    event = (now + world.seconds[asked], turn, asked, version, x)
                    heapq.heappush(heap, event)
                    idle, turn, busy = idle - 1, turn + 1, busy | {asked}
            now, _, client, downloaded, model = heapq.heappop(heap)
            idle, age, y = idle + 1, version - downloaded, model
            for _ in range(STEPS):
                y -= RATE * SLOPES[client] * (y - OPTIMA[client])
            total += ((x if world.anchored else model) - y) / np.sqrt(1 + age)
            came.append(client)
            stale.append(age)
        x, version, busy = x - SERVER * total / world.buffer, version + 1, {e[2] for e in heap}
        rows.append([now, x, *came, *stale])
    return np.array(rows)


def found(world: World, num_rounds: int) -> Any:
    """The same of the library."""
    algo = asynchronously(world)
    data = q2(SLOPES, OPTIMA, np.ones(7, int))

    def read(state: Any) -> Any:
        queue = state.sampler
        numbers = [queue.time.seconds, state.server.params]
        arrived = jnp.concatenate([queue.arrived.ids, queue.arrived.staleness])
        return jnp.concatenate([jnp.stack(numbers), arrived])

    return trajectory(algo, num_rounds, data=data, read=read)


def asynchronously(world: World) -> FederatedAlgorithm:
    """FedAsync or FedBuff in a world."""
    away = lambda key, info, traffic: jnp.asarray(world.seconds, float)[info.id]  # noqa: E731
    shared: dict[str, Any] = {"concurrency": world.concurrency, "latency": away}
    shared["plan"] = Plan(batch_size=1, steps=STEPS)
    sgd = optax.sgd(RATE)
    if world.anchored:
        return fedasync(quadratic, sgd, mixing=SERVER, **shared)
    server = optax.sgd(SERVER)
    return fedbuff(quadratic, sgd, buffer=world.buffer, server_optimizer=server, **shared)


def synchronous_less_buffered(num_rounds: int) -> Any:
    """FedAvg of four clients less FedBuff where all of four are away for three seconds."""
    data, plan = q2(SLOPES, OPTIMA, np.ones(7, int)), Plan(batch_size=1, steps=STEPS)
    plain = fedavg(
        *(quadratic, optax.sgd(RATE)),
        plan=plan,
        sampler=uniform(4),
        server_optimizer=optax.sgd(SERVER),
    )
    buffered = asynchronously(World((3.0,) * 7, 4, 4))
    return trajectory(plain, num_rounds, data=data) - trajectory(buffered, num_rounds, data=data)


def at_the_clock(**options: Any) -> Any:
    """Of three clients who take 5, 7 and 6 seconds: length of the round, who was kept, bits.

    Downloads of 1, 2 and 1 seconds, ten steps, uploads of 2, 1 and 1: of what the late had sent by
    the end of the round, a part.
    """
    away = latency(
        compute=per_client([0.2, 0.4, 0.4]),
        download=per_client([4.0, 2.0, 4.0]),
        upload=per_client([2.0, 4.0, 4.0]),
    )
    sampler = clocked(everyone(), away, **options)
    state = sampler.init(3)
    four, ten = Traffic(jnp.float32(4), jnp.float32(4)), jnp.int32(10)
    state = state._replace(first=four, later=four)
    infos = lambda ids, sizes: ClientInfo(ids, sizes, ids * 0 + ten, ids * 0)  # noqa: E731
    told = sampler.at(Errand(infos)) if sampler.at is not None else sampler
    sample = jax.jit(told.sample)  # one program, not one for each operation
    state, cohort = sample(jax.random.key(0), state, jnp.full(3, 5))
    metrics = state.metrics
    return [metrics["round_seconds"], *np.asarray(cohort.mask), metrics["late_uplink_bits"]]


def harmonic(n: int) -> float:
    """``1 + 1/2 + .. + 1/n``."""
    return float((1 / np.arange(1, n + 1)).sum())


def mean_round(asked: int, keep: int, draws: int = 4000) -> Any:
    """Mean length of rounds that wait for `keep` of so many exponential clients."""
    sampler = clocked(uniform(asked), latency(overhead=exponential(1.0)), keep=keep)
    state, sizes = sampler.init(20), jnp.full(20, 5)

    def draw(key: Any) -> Any:
        return sampler.sample(key, state, sizes)[0].metrics["round_seconds"]

    return jax.jit(jax.vmap(draw))(jax.random.split(jax.random.key(0), draws)).mean()


def checks() -> list[Check]:
    """Events, staleness, models; FedAvg where nothing waits; deadlines and order statistics."""
    ties, full = World(WHOLE, 4, 3), World(WHOLE, 7, 3)
    single = World(UNEVEN, 5, 1, anchored=True)
    weights = [1, 1, 1 / 11, 1 / 21, 1 / 61]
    return [
        Check("FedBuff, equal times: eight flushes", by_heap(ties, 8), lambda: found(ties, 8)),
        Check("FedBuff, all in flight: eight flushes", by_heap(full, 8), lambda: found(full, 8)),
        Check("FedAsync: twenty messages", by_heap(single, 20), lambda: found(single, 20)),
        Check(
            "nobody waits, buffer = cohort: FedAvg",
            np.zeros(4),
            lambda: synchronous_less_buffered(4),
            1e-14,
        ),
        Check("hinge", weights, lambda: hinge(10.0, 4.0)(jnp.array([0, 4, 5, 6, 10])), 1e-15),
        Check("a round waits for the slowest", [7.0, 1, 1, 1, 0], at_the_clock),
        Check(  # client 1 began to send at 6 and would have been done at 7
            "the first two of three", [6.0, 1, 0, 1, 0.0], lambda: at_the_clock(keep=2)
        ),
        Check(  # by 6.5 it had sent half of its four bits
            "a deadline: half a message was sent for nothing",
            [6.5, 1, 0, 1, 2.0],
            lambda: at_the_clock(deadline=6.5),
        ),
        Check(
            "the tenth of thirteen arrivals: H_13 - H_3",
            harmonic(13) - harmonic(3),
            lambda: mean_round(13, 10),
            0.035,
        ),
    ]
