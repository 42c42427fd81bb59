"""clocked(): a simulated clock around a sampler: deadlines, over-selection, who was late."""

from __future__ import annotations

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from fedjax_lite.arrivals.availability import Availability
from fedjax_lite.arrivals.latency import Latency, Seconds, as_latency
from fedjax_lite.arrivals.quantities import as_float
from fedjax_lite.arrivals.ticks import Ticks
from fedjax_lite.checks.arguments import check_count, check_positive, check_slot
from fedjax_lite.checks.made import made
from fedjax_lite.round.errand import Errand, Traffic
from fedjax_lite.types import Array, ClientInfo, Cohort, Key, PyTree, Sampler

CLOCK_STREAM = 0x636C6F63


class Clock(NamedTuple):
    """The state of a clocked sampler."""

    inner: PyTree
    """The inner sampler's."""
    time: Ticks
    """Since the run began."""
    first: Traffic
    """Of a client in the first round."""
    later: Traffic
    """Of a client in all other rounds."""
    metrics: dict[str, Array]
    """Of the last round."""


@made
def clocked(
    sampler: Sampler,
    latency: Any,
    *,
    keep: int | None = None,
    deadline: float | Array = jnp.inf,
    available: Availability | None = None,
    idle: float | Array = 60.0,
) -> Sampler:
    r"""A sampler whose rounds take simulated time, and which does not wait for everybody.

    Client `i` of the cohort would arrive after :math:`T_i` seconds. The first `keep` of those that
    arrive by the deadline `D` take part; a round lasts

    .. math::
        \begin{cases} \max_{i \text{ kept}} T_i & \text{where as many came as were waited for,} \\
        D & \text{else.} \end{cases}

    Late clients were sent the model and trained for nothing: their download is billed, and what
    they had sent when the round ended is ``late_uplink_bits``; else they leave no trace. Clients
    that arrive at the same instant are taken in the order of their slots. With ``deadline=inf`` and
    all of the cohort kept, every round is exactly that of the inner sampler.

    Args:
      sampler: who is asked; over-selection asks more than are kept, such as ``uniform(130)``.
      latency: a `Latency`, or a function ``(key, info, traffic) -> seconds`` of one client; its
        steps and bits are those of the round.
      keep: how many to wait for, at most the cohort; None: for all of them.
      deadline: seconds after which the round ends with those who are there; may be traced. A
        message that never comes (`failing`) is waited for until then; with ``inf`` the server knows
        at once that it is lost.
      available: who is there to be asked; those of the cohort who are not never come, and are not
        late. None: all.
      idle: seconds that a server waits where nobody came, or, without deadline, everybody failed;
        may be traced.

    Returns:
      A `Sampler`, for every algorithm that is not private. The history has
      ``simulated_seconds`` since the run began, ``round_seconds``, ``num_late`` and
      ``late_uplink_bits``.

    Raises:
      TypeError: if an argument has the wrong type.
      ValueError: if `keep` is below 1, or (when a state is made) above the cohort; if `deadline` or
        `idle` is not above 0.

    Example:
      >>> import fedjax_lite as fl
      >>> arrives = lambda key, info, traffic: jnp.array([5.0, 7.0, 6.0])[info.id]
      >>> sampler = clocked(fl.everyone(), arrives, keep=2)
      >>> state, cohort = sampler.sample(jax.random.key(0), sampler.init(3), jnp.ones(3, int))
      >>> cohort.mask.tolist(), float(state.metrics["simulated_seconds"])
      ([True, False, True], 6.0)

    Reference: Bonawitz et al., "Towards Federated Learning at Scale: System Design", 2019,
    arXiv:1902.01046; Nishio, Yonetani, "Client Selection for Federated Learning with Heterogeneous
    Resources in Mobile Edge", 2019, arXiv:1804.08333.
    """
    check_slot(sampler, "sampler", Sampler)
    latency = as_latency(latency)
    check_positive(deadline, "deadline")
    check_positive(idle, "idle")
    if keep is not None:
        check_count(keep, "keep", minimum=1)
    if available is not None:
        check_slot(available, "available", Availability)
    return _told(sampler, latency, keep, deadline, available, idle, None)


def _told(
    sampler: Sampler,
    latency: Latency,
    keep: int | None,
    deadline: Any,
    available: Availability | None,
    idle: Any,
    errand: Errand | None,
) -> Sampler:
    inner = sampler if errand is None or sampler.at is None else sampler.at(errand)

    def init(num_clients: int) -> Clock:
        state = inner.init(num_clients)
        _check_keep(keep, inner, state, num_clients)
        none = Traffic(jnp.float32(0), jnp.float32(0))
        first = none if errand is None or errand.first is None else errand.first
        later = first if errand is None or errand.later is None else errand.later
        zero = as_float(0)
        metrics = _metrics(zero, zero, jnp.int32(0), zero)
        return Clock(state, Ticks.zero(), first, later, metrics)

    def sample(key: Key, state: Clock, sizes: Array) -> tuple[Clock, Cohort]:
        # The very key that the inner sampler would get without a clock: the same cohorts.
        inner_state, cohort = inner.sample(key, state.inner, sizes)
        ids = jnp.clip(cohort.ids, 0, sizes.shape[0] - 1)
        present = cohort.mask
        if available is not None:
            present &= available.awake(ids, state.time.seconds)
        infos = unknown_infos(ids, sizes[ids]) if errand is None else errand.infos(ids, sizes[ids])
        begun = infos.round == 0
        traffic = jax.tree.map(
            lambda first, later: jnp.where(begun, first, later), state.first, state.later
        )
        keys = jax.vmap(jax.random.fold_in, (None, 0))(jax.random.fold_in(key, CLOCK_STREAM), ids)
        parts = jax.vmap(latency.parts)(keys, infos, traffic)
        seconds = jnp.where(present, jnp.maximum(parts.total, 0), jnp.inf)
        rank = jnp.argsort(jnp.argsort(seconds))
        wanted = jnp.minimum(keep or seconds.size, present.sum())
        kept = present & (seconds < jnp.inf) & (seconds <= deadline) & (rank < wanted)
        lasted = jnp.where(kept, seconds, 0).max()
        bounded = jnp.isfinite(as_float(deadline))
        lasted = jnp.where((kept.sum() < wanted) & bounded, deadline, lasted)
        stood = ~kept.any() & ~(present.any() & bounded)
        lasted = jnp.where(stood, idle, lasted).astype(float)
        late = present & ~kept
        wasted = jnp.where(late, traffic.up * _sent_by(lasted, parts), 0).sum()
        time = state.time + lasted
        metrics = _metrics(time.seconds, lasted, late.sum(), wasted)
        if cohort.late is not None:
            late |= cohort.late
        new = state._replace(inner=inner_state, time=time, metrics=metrics)
        return new, Cohort(cohort.ids, kept, late)

    def at(errand: Errand) -> Sampler:
        return _told(sampler, latency, keep, deadline, available, idle, errand)

    def learn(state: Clock, cohort: Cohort, metrics: dict[str, Any]) -> Clock:
        assert inner.learn is not None
        return state._replace(inner=inner.learn(state.inner, cohort, metrics))

    learns = None if inner.learn is None else learn
    return Sampler(init, sample, at, learns, repeats=inner.repeats)


def unknown_infos(ids: Array, sizes: Array) -> ClientInfo:
    """What clients are told where nobody knows the round: one step, so that speeds show."""
    one = jnp.ones_like(ids)
    return ClientInfo(ids, sizes, one, one)


def _metrics(time: Array, lasted: Array, late: Array, wasted: Array) -> dict[str, Array]:
    return {
        "simulated_seconds": time,
        "round_seconds": lasted,
        "num_late": late.astype(jnp.int32),
        "late_uplink_bits": wasted.astype(float),
    }


def _sent_by(lasted: Array, parts: Seconds) -> Array:
    """The share of its message that each client had sent after so many seconds."""
    sending = lasted - parts.download - parts.compute
    instant = parts.upload <= 0
    share = jnp.where(instant, sending >= 0, sending / jnp.where(instant, 1, parts.upload))
    return jnp.clip(jnp.where(jnp.isnan(share), 0, share), 0, 1)


def _check_keep(keep: int | None, inner: Sampler, state: PyTree, num_clients: int) -> None:
    if keep is None:
        return
    sizes = jax.ShapeDtypeStruct((num_clients,), jnp.int32)
    _, cohort = jax.eval_shape(inner.sample, jax.random.key(0), state, sizes)
    asked = cohort.ids.shape[0]
    if keep > asked:
        raise ValueError(
            f"keep must be at most the cohort, got {keep} of {asked} clients; ask more of them, "
            f"such as fl.uniform({round(1.3 * keep)})"
        )
