"""Latencies: how long a client is away, by what it computes and by the bits that it is sent."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from fedjax_lite.arrivals.quantities import Quantity, as_float
from fedjax_lite.checks.arguments import check_fraction, check_slot, shown
from fedjax_lite.checks.made import made
from fedjax_lite.round.errand import Traffic
from fedjax_lite.types import Array, ClientInfo, Key


class Seconds(NamedTuple):
    """The parts of a client's time, float scalars; they follow one another."""

    download: Array
    compute: Array
    upload: Array

    @property
    def total(self) -> Array:
        """From the broadcast to the arrival of the message; infinite for one that never comes."""
        return self.download + self.compute + self.upload


class Latency(NamedTuple):
    """How long clients are away: ``latency(key, info, traffic) -> seconds``."""

    parts: Callable[[Key, ClientInfo, Traffic], Seconds]
    """``(key, info, traffic) -> Seconds`` of one client; the key is its own, of this round."""
    made: Any = None
    """Which factory made it; None: your own."""

    def __call__(self, key: Key, info: ClientInfo, traffic: Traffic) -> Array:
        """Seconds until the client's message is there."""
        return self.parts(key, info, traffic).total


@made
def latency(
    *,
    compute: Quantity | None = None,
    download: Quantity | None = None,
    upload: Quantity | None = None,
    overhead: Quantity | None = None,
) -> Latency:
    r"""Seconds of a client from its parts.

    .. math::
        T_i = \frac{b^\mathrm{down}}{B^\mathrm{down}_i} + o_i + K_i\, c_i
              + \frac{b^\mathrm{up}_i}{B^\mathrm{up}_i},

    :math:`K_i` the local steps that it does, :math:`b` the bits that it is really sent and sends
    (after `uplink` and `downlink`).

    Args:
      compute: :math:`c_i`, seconds per local step; None: computing takes no time.
      download: :math:`B^\mathrm{down}_i`, bits per second; None: bits take no time.
      upload: :math:`B^\mathrm{up}_i`, bits per second; None: bits take no time.
      overhead: :math:`o_i`, seconds that do not depend on the work.

    Returns:
      A `Latency`.

    Raises:
      TypeError: if a part is no `Quantity`.
      ValueError: if no part is given: then everybody is there at once, and needs no clock.

    Example:
      >>> from fedjax_lite.arrivals.quantities import constant
      >>> slow_link = latency(compute=constant(0.1), download=constant(1e6), upload=constant(5e5))
      >>> info = ClientInfo(*map(jnp.int32, (0, 100, 20, 0)))
      >>> round(float(slow_link(jax.random.key(0), info, Traffic(1e6, 1e6))), 6)  # 1 + 20 * .1 + 2
      5.0

    Reference: Nishio, Yonetani, "Client Selection for Federated Learning with Heterogeneous
    Resources in Mobile Edge", 2019, arXiv:1804.08333.
    """
    given = {"compute": compute, "download": download, "upload": upload, "overhead": overhead}
    for name, part in given.items():
        if part is not None:
            check_slot(part, name, Quantity)
    if all(part is None for part in given.values()):
        raise ValueError(
            "latency must have a part, got none of compute, download, upload and overhead; for "
            "example latency(compute=fl.arrivals.exponential(0.1))"
        )

    def parts(key: Key, info: ClientInfo, traffic: Traffic) -> Seconds:
        keys = dict(zip(given, jax.random.split(key, len(given))))

        def drawn(name: str) -> Array | None:
            part = given[name]
            return None if part is None else part.draw(keys[name], info)

        def on_the_wire(name: str, bits: Array) -> Array:
            bandwidth = drawn(name)
            return as_float(0) if bandwidth is None else as_float(bits) / bandwidth

        per_step, extra = drawn("compute"), drawn("overhead")
        steps = info.num_steps.astype(float)
        compute = as_float(0) if per_step is None else steps * per_step
        return Seconds(
            on_the_wire("download", traffic.down),
            compute if extra is None else compute + extra,
            on_the_wire("upload", traffic.up),
        )

    return Latency(parts)


@made
def failing(inner: Latency, rate: float | Array) -> Latency:
    """Clients that come to nothing: with probability `rate` a message never arrives.

    They train, and nobody hears of it: the battery, the network, the user. The draw is anew each
    time.

    Args:
      inner: of those that do arrive.
      rate: probability in `[0, 1]`, may be traced.

    Returns:
      A `Latency`; infinite seconds of upload mean that a message never comes.

    Raises:
      TypeError: if `inner` is no latency.
      ValueError: if `rate` lies outside `[0, 1]`.

    Example:
      >>> from fedjax_lite.arrivals.quantities import constant
      >>> never = failing(latency(overhead=constant(1.0)), 1.0)
      >>> info = ClientInfo(*map(jnp.int32, (0, 100, 20, 0)))
      >>> float(never(jax.random.key(0), info, Traffic(0.0, 0.0)))
      inf
    """
    check_slot(inner, "inner", Latency)
    check_fraction(rate, "rate")

    def parts(key: Key, info: ClientInfo, traffic: Traffic) -> Seconds:
        key_inner, key_failure = jax.random.split(key)
        seconds = inner.parts(key_inner, info, traffic)
        fails = jax.random.uniform(key_failure) < rate
        return seconds._replace(upload=jnp.where(fails, jnp.inf, seconds.upload))

    return Latency(parts)


def as_latency(value: Any, name: str = "latency") -> Latency:
    """A `Latency`, or a plain function ``(key, info, traffic) -> seconds`` as one.

    Raises:
      TypeError: if it is neither.

    Example:
      >>> by_size = as_latency(lambda key, info, traffic: 0.5 * info.size)
      >>> float(by_size(None, ClientInfo(*map(jnp.int32, (0, 10, 1, 0))), None))
      5.0
    """
    if isinstance(value, Latency):
        return value
    if not callable(value) or isinstance(value, type | Quantity):
        raise TypeError(
            f"{name} must be a Latency, or a function (key, info, traffic) -> seconds, got "
            f"{shown(value)}; for example fl.arrivals.latency(compute=fl.arrivals.exponential(0.1))"
        )
    zero = as_float(0)

    def parts(key: Key, info: ClientInfo, traffic: Traffic) -> Seconds:
        return Seconds(zero, as_float(value(key, info, traffic)), zero)

    return Latency(parts, getattr(value, "made", None))
