"""The mean of what a cohort's clients report, for servers that go by it."""

from __future__ import annotations

from typing import Any

import jax.numpy as jnp

from fedjax_lite.types import Array, Cohort, Mean


def mean_over(cohort: Cohort, metric: Any) -> Array:
    """The mean of a client metric over the cohort; 0 where there is nothing.

    Args:
      cohort: whose mask says who counts, `[C]`.
      metric: scalars or a `Mean`, leaves `[C]`.

    Example:
      >>> cohort = Cohort(jnp.arange(3), jnp.array([True, True, False]))
      >>> float(mean_over(cohort, Mean(jnp.array([6.0, 2.0, 9.0]), jnp.array([3, 1, 1]))))
      2.0
    """
    metric = metric if isinstance(metric, Mean) else Mean(metric, jnp.ones_like(metric))
    total, count = (jnp.where(cohort.mask, part, 0).sum() for part in metric)
    return total / jnp.where(count == 0, 1, count)
