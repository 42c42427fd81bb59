"""Traces: speeds and hours of real devices, as parts that work inside of a compiled round."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from fedjax_lite.arrivals.availability import Availability
from fedjax_lite.arrivals.latency import Latency, latency
from fedjax_lite.arrivals.quantities import Quantity, as_float
from fedjax_lite.checks.arguments import check_count, check_positive, check_slot
from fedjax_lite.checks.made import made
from fedjax_lite.types import Array, ClientInfo, Key


class Speeds(NamedTuple):
    """What devices do, numpy arrays `[D]`."""

    computation: np.ndarray
    """Milliseconds an example, of a forward pass."""
    communication: np.ndarray
    """Kilobits a second, either way."""


class Hours(NamedTuple):
    """When devices are there: intervals of device `i` lie at ``offsets[i]:offsets[i + 1]``."""

    offsets: np.ndarray
    """int32 `[D + 1]`."""
    active: np.ndarray
    """Seconds `[I]` at which an interval begins; ascending for each device."""
    inactive: np.ndarray
    """Seconds `[I]` at which it ends; that instant is not part of it."""
    finish_time: np.ndarray
    """Seconds `[D]` after which a device begins anew."""


class Trace(NamedTuple):
    """Devices that were measured; either part may be missing, and they may be of other devices."""

    speeds: Speeds | None = None
    hours: Hours | None = None


@made
def trace_latency(
    trace: Trace, *, batch_size: int, factor: float | Array = 3.0, seed: int = 0
) -> Latency:
    r"""Seconds of a client as its device took them.

    .. math::
        T_i = \frac{b^\mathrm{down} + b^\mathrm{up}_i}{1000\,B_d}
              + \phi\, K_i\, m\, \frac{c_d}{1000}, \qquad d = d(i) \text{ drawn once},

    :math:`c_d` milliseconds an example, :math:`B_d` kilobits a second, :math:`K_i` the client's
    local steps of `m` examples. Devices are drawn with replacement, by client and `seed`.

    Args:
      trace: with speeds, from `read_trace`, `sample_trace` or `synthetic_trace`.
      batch_size: `m`, examples a local step; that of the plan.
      factor: :math:`\phi`, a training step in forward passes; may be traced.
      seed: says who has which device; `trace_availability` with the same one gives a client the
        hours of the same device, where the trace has both of each.

    Returns:
      A `Latency`; its speeds are constants of the compiled program, eight bytes a device.

    Raises:
      ValueError: if the trace has no speeds, or a number is out of its range.

    Example:
      >>> from fedjax_lite.round.errand import Traffic
      >>> trace = Trace(Speeds(np.array([20.0]), np.array([500.0])))
      >>> away = trace_latency(trace, batch_size=10)
      >>> info = ClientInfo(*map(jnp.int32, (7, 100, 5, 0)))
      >>> round(float(away(jax.random.key(0), info, Traffic(2e6, 1e6))), 4)  # 6 + 3 * 5 * 10 * .02
      9.0

    Reference: Lai et al., "FedScale: Benchmarking Model and System Performance of Federated
    Learning at Scale", 2022, arXiv:2105.11367.
    """
    check_slot(trace, "trace", Trace)
    check_count(batch_size, "batch_size", minimum=1)
    check_positive(factor, "factor")
    check_count(seed, "seed", minimum=0)
    if trace.speeds is None:
        raise ValueError(
            "trace must have speeds, got one of hours alone; read both files, "
            "fl.arrivals.read_trace('capacity.json', 'hours.json')"
        )
    computation, communication = trace.speeds
    seconds = np.asarray(computation, float) / 1000 * batch_size
    bits = np.asarray(communication, float) * 1000

    def of(table: np.ndarray, scale: Any = 1.0) -> Quantity:
        def draw(key: Key, info: ClientInfo) -> Array:
            return _row(as_float(table), device_of(info.id, len(table), seed)) * as_float(scale)

        return Quantity(draw)

    link = of(bits)
    return latency(compute=of(seconds, factor), download=link, upload=link)


@made
def trace_availability(trace: Trace, *, seed: int = 0) -> Availability:
    """Clients that are there when their device was: idle, charged, on an unmetered network.

    Args:
      trace: with hours, from `read_trace`, `sample_trace` or `synthetic_trace`.
      seed: says who has which device; see `trace_latency`.

    Returns:
      An `Availability`; its intervals are constants of the compiled program, eight bytes each, and
      are searched by halving.

    Raises:
      ValueError: if the trace has no hours.

    Example:
      >>> hours = Hours(*map(np.array, ([0, 2], [10.0, 50.0], [20.0, 60.0], [100.0])))
      >>> there = trace_availability(Trace(hours=hours))
      >>> [bool(there.awake(jnp.arange(1), t)[0]) for t in (5.0, 10.0, 20.0, 155.0)]
      [False, True, False, True]

    Reference: Lai et al., "FedScale: Benchmarking Model and System Performance of Federated
    Learning at Scale", 2022, arXiv:2105.11367.
    """
    check_slot(trace, "trace", Trace)
    check_count(seed, "seed", minimum=0)
    if trace.hours is None:
        raise ValueError(
            "trace must have hours, got one of speeds alone; read both files, "
            "fl.arrivals.read_trace('capacity.json', 'hours.json')"
        )
    hours = trace.hours
    return Availability(lambda ids, seconds: _is_there(hours, ids, seconds, seed))


@made
def trace_schedule(
    trace: Trace, *, seconds_per_round: float | Array = 60.0, seed: int = 0
) -> Callable[[Key, Array, int], Array]:
    """The same hours as a schedule of rounds, for `fedjax_lite.selection.available`.

    Args:
      trace: with hours.
      seconds_per_round: how long a round lasts; may be traced. Where rounds have their own length,
        hand `trace_availability` to `clocked`.
      seed: says who has which device.

    Returns:
      A function ``(key, round, num_clients) ->`` bool `[N]`.

    Raises:
      ValueError: if the trace has no hours, or a number is out of its range.

    Example:
      >>> hours = Hours(*map(np.array, ([0, 1], [60.0], [120.0], [300.0])))
      >>> there = trace_schedule(Trace(hours=hours))
      >>> [there(None, r, 2).tolist() for r in (0, 1, 2)]
      [[False, False], [True, True], [False, False]]
    """
    check_positive(seconds_per_round, "seconds_per_round")
    awake = trace_availability(trace, seed=seed).awake

    def there(key: Key, round: Array, num_clients: int) -> Array:
        ids = jnp.arange(num_clients, dtype=jnp.int32)
        return awake(ids, jnp.asarray(round, float) * seconds_per_round)

    return there


def device_of(client: Array, num_devices: int, seed: int) -> Array:
    """Which device a client has, by its id alone.

    Example:
      >>> int(device_of(5, 9, 0)) == int(device_of(5, 9, 0)) < 9
      True
    """
    key = jax.random.fold_in(jax.random.key(seed), client)
    return jax.random.randint(key, (), 0, num_devices)


def _is_there(hours: Hours, ids: Array, seconds: Array, seed: int) -> Array:
    """Whether a time lies in one of the intervals of each client's device, bool `[C]`."""
    offsets = jnp.asarray(hours.offsets, jnp.int32)
    num_devices = len(hours.finish_time)
    if not len(hours.active):
        return jnp.zeros(ids.shape, bool)
    active, inactive, period = map(as_float, (hours.active, hours.inactive, hours.finish_time))
    most = int(np.diff(hours.offsets).max())

    def of(client: Array) -> Array:
        device = device_of(client, num_devices, seed)
        first, behind = _row(offsets, device), _row(offsets, device + 1)
        time = as_float(seconds) % _row(period, device)

        def halved(_: int, ends: tuple[Array, Array]) -> tuple[Array, Array]:
            low, high = ends  # intervals before `low` have begun, those from `high` on have not
            middle = (low + high) // 2
            begun = (low < high) & (_row(active, middle) <= time)
            low = jnp.where(begun, middle + 1, low)
            return low, jnp.where(begun | (low >= high), high, middle)

        low, _ = jax.lax.fori_loop(0, most.bit_length(), halved, (first, behind))
        return (low > first) & (time < _row(inactive, low - 1))

    return jax.vmap(of)(ids)


def _row(table: Array, index: Array) -> Array:
    """``table[index]``, also inside of a program for several devices, which refuses brackets."""
    return jnp.take(table, index, axis=0, mode="clip")
