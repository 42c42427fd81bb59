"""What the clients of a round reported, written down by client."""

from __future__ import annotations

from typing import Any

import jax.numpy as jnp

from fedjax_lite.types import Array, Cohort, Mean


def reported(metrics: dict[str, Any], name: str) -> Array:
    """A metric of the clients as numbers `[C]`; a `Mean` of nothing is 0.

    Raises:
      ValueError: if the clients do not report it.

    Example:
      >>> reported({"loss": Mean(jnp.array([6.0, 0.0]), jnp.array([3.0, 0.0]))}, "loss").tolist()
      [2.0, 0.0]
    """
    if name not in metrics:
        raise ValueError(
            f"metric must be one that the clients of this algorithm report, got {name!r}; they "
            f"report {sorted(metrics)}"
        )
    found = metrics[name]
    if isinstance(found, Mean):
        return found.total / jnp.where(found.count == 0, 1, found.count)
    return found


def written(table: Array, cohort: Cohort, values: Any) -> Array:
    """The table `[N]` with values `[C]` in the rows of those who counted.

    Example:
      >>> written(jnp.zeros(3), Cohort(jnp.array([2, 0]), jnp.array([True, False])), 5.0).tolist()
      [0.0, 0.0, 5.0]
    """
    rows = jnp.where(cohort.mask, cohort.ids, len(table))
    return table.at[rows].set(jnp.asarray(values, table.dtype), mode="drop")
