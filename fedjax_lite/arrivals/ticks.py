"""Ticks: simulated time as a sum that does not lose its small parts."""

from __future__ import annotations

from typing import Any, NamedTuple

import jax.numpy as jnp

from fedjax_lite.types import Array


class Ticks(NamedTuple):
    """Seconds since a run began, as float and remainder.

    A float32 cannot tell a second after 194 days, and a sum of many loses more: the remainder of
    each addition is kept and added to the next (Kahan).

    Example:
      >>> time = Ticks.zero() + 2.0**24
      >>> for _ in range(4):
      ...     time = time + 1.0
      >>> float(time.seconds) - 2.0**24
      4.0
    """

    seconds: Array
    """What is shown: within one rounding of the exact sum."""
    rest: Array
    """What did not fit into it."""

    @classmethod
    def zero(cls) -> Ticks:
        """The beginning."""
        return cls(jnp.zeros((), float), jnp.zeros((), float))

    def __add__(self, more: Any) -> Ticks:  # type: ignore[override]
        """So many seconds later; a tuple would be joined."""
        step = more + self.rest
        total = self.seconds + step
        return Ticks(total, step - (total - self.seconds))
