"""centered_clipping(): steps towards the clients, each clipped, from the previous aggregate."""

from __future__ import annotations

import jax
import jax.numpy as jnp

from fedjax_lite import trees
from fedjax_lite.aggregation.blocks import map_blocks
from fedjax_lite.aggregation.distances import squares_to
from fedjax_lite.aggregation.stacked import Stack, check_like_model, stacked
from fedjax_lite.checks.arguments import check_count, check_positive
from fedjax_lite.checks.made import made
from fedjax_lite.types import Aggregator, Array, Cohort, Key, PyTree


@made
def centered_clipping(max_distance: float | Array, *, iterations: int = 1) -> Aggregator:
    r"""Clips how far each client may pull the previous aggregate.

    .. math::
        v \leftarrow v + \frac{1}{n} \sum_i (\Delta_i - v) \min\Bigl(1,
            \frac{\tau}{\lVert \Delta_i - v \rVert}\Bigr)

    `iterations` times, from the aggregate of the round before (zero before the first); one norm
    over the whole pytree. The paper has ``tau = 100``, one iteration, and momentum 0.9 on the
    workers: ``uplink=worker_momentum(0.9)``.

    Args:
      max_distance: `tau` > 0, may be traced; infinity gives the mean.
      iterations: `L` >= 1.

    Returns:
      An `Aggregator` that keeps the last aggregate; for messages with the structure of the model.
      A round without clients aggregates to zero and leaves what is kept.

    Raises:
      ValueError: if an argument is out of range, or (when it is traced) messages are not shaped
        like the model.

    Guarantees:
      One client moves the aggregate by at most ``L tau / n``; one that is not finite, or so far
      that the square of the distance overflows, by nothing.

    Example:
      >>> from fedjax_lite.aggregation.stacked import aggregate_stack
      >>> u = jnp.array([[3.0, 4.0], [0.3, 0.4]])
      >>> [round(x, 3) for x in aggregate_stack(centered_clipping(1.0), u).tolist()]
      [0.45, 0.6]

    Reference: Karimireddy, He, Jaggi, "Learning from History for Byzantine Robust Optimization",
    2021, arXiv:2012.10333.
    """
    check_positive(max_distance, "max_distance")
    check_count(iterations, "iterations", minimum=1)

    def rule(key: Key, state: PyTree, stack: Stack, cohort: Cohort) -> tuple[PyTree, PyTree]:
        check_like_model("centered_clipping", state, stack.values)
        count = jnp.maximum(stack.mask.sum(), 1)

        def step(_: Array, center: PyTree) -> PyTree:
            distances = jnp.sqrt(squares_to(stack.values, center))
            far = distances > max_distance
            factors = jnp.where(far, max_distance / jnp.where(far, distances, 1), 1)
            factors = jnp.where(stack.mask & jnp.isfinite(distances), factors, 0)

            def move(rows: Array, old: Array) -> Array:
                factor = factors.astype(rows.dtype)[:, None]
                moves = jnp.where(factor == 0, 0, factor * (rows - old))
                return old + trees.sum_rows(moves) / count

            return map_blocks(move, stack.values, center)

        value = jax.lax.fori_loop(0, iterations, step, trees.cast_like(state, stack.values))
        kept = trees.where(stack.mask.any(), trees.cast_like(value, state), state)
        return kept, value

    return stacked(rule, init_state=trees.wide_zeros)
