"""assignment(): who is matched with whom at the least cost, within a compiled program."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import optax

from fedjax_lite.checks.arguments import shown
from fedjax_lite.types import Array


def assignment(costs: Any) -> Array:
    r"""The column of each row of the cheapest one-to-one assignment.

    .. math::  \arg\min_{\pi \text{ injective}} \sum_l C_{l \pi(l)}

    The Hungarian algorithm in `O(L^2 J)`, traced: it runs inside of a round. No gradient flows
    through the choice. Within a compiled program, where nothing can be raised, a cost that is NaN
    or infinite is one above (``-inf``: below) all that a choice of finite ones can cost: the answer
    is an assignment whatever a diverged network brings.

    Args:
      costs: `[L, J]`, finite, no more rows than columns.

    Returns:
      int32 `[L]`.

    Raises:
      ValueError: if it is no such matrix; of a traced one by its shape alone.

    Example:
      >>> assignment([[4, 1, 3], [2, 0, 5], [3, 2, 2]]).tolist()  # 1 + 2 + 2
      [1, 0, 2]

    Reference: Kuhn, "The Hungarian Method for the Assignment Problem", 1955, Naval Research
    Logistics Quarterly 2.
    """
    given, costs = costs, jnp.asarray(costs, jnp.result_type(float))
    if costs.ndim != 2 or not costs.size or costs.shape[0] > costs.shape[1]:
        raise ValueError(
            f"costs must be [L, J] with L <= J, got {shown(given)}; transpose it, or add columns"
        )
    if not isinstance(costs, jax.core.Tracer) and not bool(jnp.isfinite(costs).all()):
        raise ValueError(f"costs must be finite, got {shown(costs)}; give large numbers instead")
    costs = _finite(jax.lax.stop_gradient(costs))
    rows, columns = optax.assignment.hungarian_algorithm(costs)
    return columns[jnp.argsort(rows)].astype(jnp.int32)


def _finite(costs: Array) -> Array:
    """Costs whose sums stay finite: the algorithm's loops never end on NaN or an infinite path."""
    rows = costs.shape[0]
    limit = jnp.finfo(costs.dtype).max / (32 * rows * rows)
    finite = jnp.isfinite(costs)
    bounded = jnp.clip(jnp.where(finite, costs, 0), -limit, limit)
    top = jnp.abs(bounded).max()
    far = jnp.where(top > 0, 2 * rows * top, 1)
    return jnp.where(finite, bounded, jnp.where(costs == -jnp.inf, -far, far))
