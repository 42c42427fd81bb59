"""Availability: who can be asked at a time of the simulated day."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import jax

from fedjax_lite.arrivals.quantities import as_float
from fedjax_lite.checks.arguments import check_count, check_fraction, check_positive
from fedjax_lite.checks.made import made
from fedjax_lite.types import Array

DAY = 86400.0
"""Seconds."""


class Availability(NamedTuple):
    """Who is there: idle, charged, on an unmetered network."""

    awake: Callable[[Array, Array], Array]
    """``(ids [C], seconds) ->`` bool `[C]`, at a time of the simulation; a pure function of both,
    so that a run that is resumed meets the same clients."""
    made: Any = None
    """Which factory made it; None: your own."""


@made
def day_and_night(
    *,
    awake: float | Array = 0.5,
    zones: int = 24,
    day: float | Array = DAY,
    seed: int = 0,
) -> Availability:
    r"""Clients that are there for a part of each day, by the time zone that they live in.

    A client of zone `z` of `Z` is there while

    .. math::  (t / d + z / Z) \bmod 1 < a.

    Args:
      awake: :math:`a`, the share of a day in which a client is there, in `[0, 1]`; may be traced.
      zones: `Z`; 1: all come and go together.
      day: :math:`d`, seconds; may be traced.
      seed: says who lives where.

    Raises:
      ValueError: if a number is out of its range.

    Example:
      >>> from jax import numpy as jnp
      >>> half = day_and_night(awake=0.5, zones=1)
      >>> [bool(half.awake(jnp.arange(1), t)[0]) for t in (0, 50_000, 86_400)]
      [True, False, True]

    Reference: Lai et al., "FedScale: Benchmarking Model and System Performance of Federated
    Learning at Scale", 2022, arXiv:2105.11367.
    """
    check_fraction(awake, "awake")
    check_positive(day, "day")
    check_count(zones, "zones", minimum=1)
    check_count(seed, "seed", minimum=0)

    def zone(client: Array) -> Array:
        return jax.random.randint(jax.random.fold_in(jax.random.key(seed), client), (), 0, zones)

    def is_awake(ids: Array, seconds: Array) -> Array:
        hour = seconds / as_float(day) + jax.vmap(zone)(ids) / zones
        return hour % 1.0 < awake

    return Availability(is_awake)
