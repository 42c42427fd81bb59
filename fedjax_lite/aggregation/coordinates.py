"""Rules coordinate by coordinate: the median and the trimmed mean."""

from __future__ import annotations

import jax
import jax.numpy as jnp

from fedjax_lite import trees
from fedjax_lite.aggregation.blocks import BLOCK, map_blocks
from fedjax_lite.aggregation.sorting import sort_rows
from fedjax_lite.aggregation.stacked import Stack, stacked
from fedjax_lite.checks.arguments import check_count
from fedjax_lite.checks.made import made
from fedjax_lite.types import Aggregator, Array, Cohort, Key, PyTree


@made
def median(*, block_size: int = BLOCK) -> Aggregator:
    r"""The median of each coordinate over the clients that take part.

    .. math::  \bar\Delta_d = \operatorname{med}_{i \in S} \Delta_{i, d}

    For an even number it is the mean of the two middle values. Example weights do not count.

    Args:
      block_size: coordinates at a time; scratch memory is O(cohort x block_size).

    Returns:
      An `Aggregator`.

    Raises:
      ValueError: if `block_size` is not positive.

    Guarantees:
      With fewer than half of the clients hostile each coordinate lies between two honest values,
      whatever the others send; NaN counts as infinity.

    Example:
      >>> from fedjax_lite.aggregation.stacked import aggregate_stack
      >>> aggregate_stack(median(), jnp.array([[1.0], [2.0], [1e9]])).tolist()
      [2.0]

    Reference: Yin, Chen, Ramchandran, Bartlett, "Byzantine-Robust Distributed Learning: Towards
    Optimal Statistical Rates", 2018, arXiv:1803.01498.
    """
    check_count(block_size, "block_size", minimum=1)

    def rule(key: Key, state: PyTree, stack: Stack, cohort: Cohort) -> tuple[PyTree, PyTree]:
        return state, map_blocks(
            lambda rows: row_median(sorted_valid(rows, stack.mask), stack.mask.sum()),
            stack.values,
            block_size=block_size,
        )

    return stacked(rule)


@made
def trimmed_mean(fraction: float | Array, *, block_size: int = BLOCK) -> Aggregator:
    r"""The mean of each coordinate without its smallest and its largest values.

    .. math::
        \bar\Delta_d = \frac{1}{n - 2b} \sum_{k = b + 1}^{n - b} \Delta_{(k), d}, \qquad
        b = \lfloor \beta n \rfloor

    with :math:`\Delta_{(k), d}` the `k`-th smallest of the `n` clients that take part. Values are
    trimmed, not clients: another client may be cut in each coordinate. Weights do not count.

    Args:
      fraction: `beta` in [0, 1/2), cut on either side; may be traced. 0 is the mean.
      block_size: coordinates at a time; scratch memory is O(cohort x block_size).

    Returns:
      An `Aggregator`.

    Raises:
      ValueError: if `fraction` lies outside [0, 1/2), or `block_size` is not positive.

    Guarantees:
      With at most `b` clients hostile each coordinate lies between two honest values; NaN counts
      as infinity.

    Example:
      >>> from fedjax_lite.aggregation.stacked import aggregate_stack
      >>> aggregate_stack(trimmed_mean(0.25), jnp.array([[1.0], [2.0], [4.0], [1e9]])).tolist()
      [3.0]

    Reference: Yin, Chen, Ramchandran, Bartlett, "Byzantine-Robust Distributed Learning: Towards
    Optimal Statistical Rates", 2018, arXiv:1803.01498.
    """
    if not isinstance(fraction, jax.core.Tracer) and not 0 <= float(fraction) < 0.5:
        raise ValueError(
            f"fraction must lie in [0, 1/2), got {fraction}: trimmed_mean needs beta < 1/2, since "
            "it is cut on either side"
        )
    check_count(block_size, "block_size", minimum=1)

    def rule(key: Key, state: PyTree, stack: Stack, cohort: Cohort) -> tuple[PyTree, PyTree]:
        num = stack.mask.sum()
        # 0.3 * 10 is 2.9999999: a share that means a whole number gives it, in float32 too.
        cut = jnp.floor(fraction * num * (1 + 1e-6)).astype(num.dtype)
        cut = jnp.minimum(cut, (num - 1) // 2)

        def middle(rows: Array) -> Array:
            place = jnp.arange(rows.shape[0])[:, None]
            kept = (place >= cut) & (place < num - cut)
            total = trees.sum_rows(jnp.where(kept, sorted_valid(rows, stack.mask), 0))
            return total / jnp.maximum(num - 2 * cut, 1)

        return state, map_blocks(middle, stack.values, block_size=block_size)

    return stacked(rule)


def sorted_valid(rows: Array, mask: Array) -> Array:
    """The rows `[C, B]` sorted in each column; those that are masked come last, as infinity.

    NaN becomes infinity, so that it is cut off like any other wild value.

    Example:
      >>> sorted_valid(jnp.array([[2.0], [0.0], [1.0]]), jnp.array([True, False, True])).tolist()
      [[1.0], [2.0], [inf]]
    """
    return sort_rows(jnp.where(mask[:, None] & ~jnp.isnan(rows), rows, jnp.inf))


def row_median(rows: Array, num: Array) -> Array:
    """The median `[B]` of the first `num` of sorted rows `[C, B]`.

    Example:
      >>> row_median(jnp.array([[1.0], [2.0], [9.0], [jnp.inf]]), 2).tolist()
      [1.5]
    """

    def row(index: Array) -> Array:
        return jax.lax.dynamic_index_in_dim(rows, jnp.maximum(index, 0), 0, keepdims=False)

    return 0.5 * row((num - 1) // 2) + 0.5 * row(num // 2)
