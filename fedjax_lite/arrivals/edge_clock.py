"""edge_clocked(): the seconds of a hierarchy, level by level."""

from __future__ import annotations

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from fedjax_lite.aggregation.hierarchical import check_edges
from fedjax_lite.arrivals.clock import CLOCK_STREAM, unknown_infos
from fedjax_lite.arrivals.latency import Latency, as_latency
from fedjax_lite.arrivals.quantities import as_float
from fedjax_lite.arrivals.ticks import Ticks
from fedjax_lite.checks.arguments import check_count, check_fraction, check_positive, check_slot
from fedjax_lite.checks.made import made
from fedjax_lite.round.errand import Errand, Traffic
from fedjax_lite.types import Array, ClientInfo, Cohort, Key, PyTree, Sampler


class EdgeClock(NamedTuple):
    """The state of a sampler with a clock for each edge."""

    inner: PyTree
    """The inner sampler's."""
    time: Ticks
    """Of the last meeting in the cloud, since the run began."""
    since: Array
    """Seconds `[E]` that each edge has worked since then."""
    done: Array
    """int32 scalar: edge rounds since then in which anybody came who has something to train."""
    first: Traffic
    later: Traffic
    metrics: dict[str, Array]


@made
def edge_clocked(
    sampler: Sampler,
    latency: Any,
    *,
    edges: Any,
    edge_rounds: int,
    num_edges: int | None = None,
    cloud: Any = None,
    cloud_share: float | Array = 1.0,
    deadline: float | Array = jnp.inf,
    idle: float | Array = 60.0,
) -> Sampler:
    r"""A clock for `fedjax_lite.hierfavg`: edges do not wait for one another until they meet.

    In an edge round an edge waits for its own clients, :math:`T_{e,r} = \max_{i \in S_e} T_i`, at
    most until the deadline. When they have done :math:`\kappa_2` of them, all edges meet in the
    cloud, over links of their own:

    .. math::
        t \leftarrow t + \max_e \Big( \sum_{r=1}^{\kappa_2} T_{e,r} + C_e \Big).

    A clock of all clients together (`clocked`) would let every edge wait for the slowest client of
    the whole population in each edge round.

    It counts an edge round as `hierfavg` does where somebody came in time who has examples and
    steps to do. It cannot know weights: where a `weighting` of your own gives everybody who came 0,
    or no example of theirs counts (`ClientUpdate.counts`), hierfavg counts no round and this clock
    does, and from there on meets too early.

    Args:
      sampler: who takes part in an edge round.
      latency: of clients to their edge: a `Latency`, or ``(key, info, traffic) -> seconds``.
      edges: int `[N]`, the edge of each client; as `hierfavg`'s.
      edge_rounds: :math:`\kappa_2`, as `hierfavg`'s.
      num_edges: `E`; default the largest in `edges` plus one.
      cloud: of edges to the cloud, the same kind; ``info.id`` is the edge. None: no time.
      cloud_share: of the model's bits, what an edge sends up, for a `cloud_uplink` that compresses.
      deadline: seconds after which an edge goes on without those who are late; may be traced. A
        message that never comes is waited for until then, or with ``inf`` known at once.
      idle: seconds that pass where nobody came to any edge; may be traced.

    Returns:
      A `Sampler`. The history has ``simulated_seconds``: of the last meeting, or, between two of
      them, of the edge that is furthest; ``edge_seconds`` (mean over edges, in this round),
      ``cloud_seconds`` (of the slowest edge's exchange, in this round; 0 where none met),
      ``waiting_seconds`` (mean over edges, at this meeting, for the slowest) and ``num_late``.

    Raises:
      TypeError: if an argument has the wrong type.
      ValueError: if an edge lies outside ``[0, num_edges)``, or a number is out of its range.

    Example:
      >>> import fedjax_lite as fl
      >>> arrives = lambda key, info, traffic: jnp.array([5.0, 7.0, 1.0])[info.id]
      >>> meets = lambda key, info, traffic: jnp.array([1.0, 30.0])[info.id]
      >>> both = {"edges": [0, 0, 1], "edge_rounds": 2}
      >>> sampler = edge_clocked(fl.everyone(), arrives, cloud=meets, **both)
      >>> state = sampler.init(3)
      >>> for _ in range(2):
      ...     state, cohort = sampler.sample(jax.random.key(0), state, jnp.ones(3, int))
      ...     print(float(state.metrics["simulated_seconds"]))  # max(7 + 7 + 1, 1 + 1 + 30)
      7.0
      32.0

    Reference: Liu, Zhang, Song, Letaief, "Client-Edge-Cloud Hierarchical Federated Learning",
    2020, arXiv:1905.06641.
    """
    check_slot(sampler, "sampler", Sampler)
    table, count = check_edges(edges, num_edges)
    check_count(edge_rounds, "edge_rounds", minimum=1)
    check_fraction(cloud_share, "cloud_share")
    check_positive(deadline, "deadline")
    check_positive(idle, "idle")
    to_cloud = None if cloud is None else as_latency(cloud, "cloud")
    away = as_latency(latency)
    rule = _Rule(away, table, count, edge_rounds, to_cloud, cloud_share, deadline, idle)
    return _told(sampler, rule, None)


class _Rule(NamedTuple):
    latency: Latency
    edges: Any
    num_edges: int
    edge_rounds: int
    cloud: Latency | None
    cloud_share: Any
    deadline: Any
    idle: Any


def _told(sampler: Sampler, rule: _Rule, errand: Errand | None) -> Sampler:
    inner = sampler if errand is None or sampler.at is None else sampler.at(errand)

    def init(num_clients: int) -> EdgeClock:
        if len(rule.edges) != num_clients:
            raise ValueError(
                f"edges must be [N], one for each client, got {len(rule.edges)} for a population "
                f"of {num_clients}; give one each"
            )
        none = Traffic(jnp.float32(0), jnp.float32(0))
        first = none if errand is None or errand.first is None else errand.first
        later = first if errand is None or errand.later is None else errand.later
        zero = as_float(0)
        metrics = _metrics(zero, zero, zero, zero, jnp.int32(0))
        since = jnp.zeros(rule.num_edges, float)
        state = inner.init(num_clients)
        return EdgeClock(state, Ticks.zero(), since, jnp.int32(0), first, later, metrics)

    def sample(key: Key, state: EdgeClock, sizes: Array) -> tuple[EdgeClock, Cohort]:
        inner_state, cohort = inner.sample(key, state.inner, sizes)
        ids = jnp.clip(cohort.ids, 0, sizes.shape[0] - 1)
        infos = unknown_infos(ids, sizes[ids]) if errand is None else errand.infos(ids, sizes[ids])
        begun = infos.round == 0
        traffic = jax.tree.map(lambda a, b: jnp.where(begun, a, b), state.first, state.later)
        stream = jax.random.fold_in(key, CLOCK_STREAM)
        keys = jax.vmap(jax.random.fold_in, (None, 0))(stream, ids)
        seconds = jnp.maximum(jax.vmap(rule.latency)(keys, infos, traffic), 0)
        kept = cohort.mask & (seconds < jnp.inf) & (seconds <= rule.deadline)
        late = cohort.mask & ~kept
        bounded = jnp.isfinite(as_float(rule.deadline))
        cut = late & bounded
        waited = jnp.where(kept, seconds, jnp.where(cut, rule.deadline, 0)).astype(float)
        places = jnp.take(jnp.asarray(rule.edges, jnp.int32), ids)
        lasted = jnp.zeros(rule.num_edges, float).at[places].max(waited)
        lasted = jnp.where((kept | cut).any(), lasted, rule.idle).astype(float)
        since = state.since + lasted
        done = state.done + (kept & (sizes[ids] > 0) & (infos.num_steps > 0)).any()
        meet = done >= rule.edge_rounds
        key_cloud = jax.random.fold_in(stream, sizes.shape[0])  # nobody's id
        exchange = _exchange(rule, key_cloud, state, infos.round[0])
        furthest = (since + exchange).max()
        time = state.time + jnp.where(meet, furthest, 0)
        shown = jnp.where(meet, time.seconds, state.time.seconds + since.max())
        metrics = _metrics(
            shown,
            lasted.mean(),
            jnp.where(meet, exchange.max(), 0),
            jnp.where(meet, (furthest - since - exchange).mean(), 0),
            late.sum(dtype=jnp.int32),
        )
        time = jax.tree.map(lambda a, b: jnp.where(meet, a, b), time, state.time)
        since, done = jnp.where(meet, 0, since), jnp.where(meet, 0, done)
        new = state._replace(inner=inner_state, time=time, since=since, done=done, metrics=metrics)
        late = late if cohort.late is None else late | cohort.late
        return new, Cohort(cohort.ids, kept, late)

    def at(errand: Errand) -> Sampler:
        return _told(sampler, rule, errand)

    def learn(state: EdgeClock, cohort: Cohort, metrics: dict[str, Any]) -> EdgeClock:
        assert inner.learn is not None
        return state._replace(inner=inner.learn(state.inner, cohort, metrics))

    learns = None if inner.learn is None else learn
    return Sampler(init, sample, at, learns, repeats=inner.repeats)


def _exchange(rule: _Rule, key: Key, state: EdgeClock, round: Array) -> Array:
    """Seconds `[E]` of each edge's way to the cloud and back."""
    numbers = jnp.arange(rule.num_edges, dtype=jnp.int32)
    if rule.cloud is None:
        return jnp.zeros(rule.num_edges, float)
    # An edge's clients download its model, and so does the edge: what they are sent later on.
    model = state.later.down
    traffic = Traffic(model, model * rule.cloud_share)
    infos = ClientInfo(*(numbers, numbers * 0, numbers * 0, numbers * 0 + round))
    keys = jax.vmap(jax.random.fold_in, (None, 0))(key, numbers)
    return jnp.maximum(jax.vmap(rule.cloud, (0, 0, None))(keys, infos, traffic), 0).astype(float)


def _metrics(
    time: Array, edge: Array, cloud: Array, waiting: Array, late: Array
) -> dict[str, Array]:
    return {
        "simulated_seconds": time,
        "edge_seconds": edge,
        "cloud_seconds": cloud,
        "waiting_seconds": waiting,
        "num_late": late,
    }
