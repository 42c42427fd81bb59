"""Bulyan: Krum's choice, repeated, and then the values around the median of the chosen."""

from __future__ import annotations

import jax
import jax.numpy as jnp

from fedjax_lite import trees
from fedjax_lite.aggregation.blocks import map_blocks
from fedjax_lite.aggregation.coordinates import row_median, sorted_valid
from fedjax_lite.aggregation.distances import pairwise_squares
from fedjax_lite.aggregation.krum import krum_scores
from fedjax_lite.aggregation.stacked import Stack, need_clients, stacked, void_below
from fedjax_lite.checks.arguments import check_count
from fedjax_lite.checks.made import made
from fedjax_lite.types import Aggregator, Array, Cohort, Key, PyTree


@made
def bulyan(num_byzantine: int) -> Aggregator:
    r"""Krum over and over on who is left, then per coordinate the mean around the median.

    `theta` = ``n - 2 f`` times the client with the lowest Krum score among those that *remain* is
    moved to the selection (its neighbours are the ``max(1, n_remaining - f - 2)`` nearest that
    remain; ties go to the lowest slot). The result is, in each coordinate, the mean of the
    ``beta = theta - 2 f`` selected values nearest to the median of the selection (of two equally
    near ones the larger).

    Args:
      num_byzantine: `f`, the hostile clients assumed in a cohort; needs ``n >= 4 f + 3``.

    Returns:
      An `Aggregator`. A round in which fewer than ``4 f + 3`` clients are left (drop-outs) has no
      aggregate: zero. Weights do not count.

    Raises:
      ValueError: if `num_byzantine` is negative, or (when the round is built) the cohort is
        smaller than ``4 f + 3``.

    Example:
      >>> from fedjax_lite.aggregation.stacked import aggregate_stack
      >>> u = jnp.array([[7, 3], [0, 7], [5, 6], [1, 4], [8, 8], [3, 6], [0.0, 8.0]])
      >>> [round(x, 4) for x in aggregate_stack(bulyan(1), u).tolist()]
      [3.0, 6.3333]

    Reference: El Mhamdi, Guerraoui, Rouault, "The Hidden Vulnerability of Distributed Learning in
    Byzantium", 2018, arXiv:1802.07927.
    """
    check_count(num_byzantine, "num_byzantine", minimum=0)
    least = 4 * num_byzantine + 3

    def rule(key: Key, state: PyTree, stack: Stack, cohort: Cohort) -> tuple[PyTree, PyTree]:
        chosen = bulyan_selection(pairwise_squares(stack.values), stack.mask, num_byzantine)
        num = chosen.sum()
        value = map_blocks(
            lambda rows: _around_median(sorted_valid(rows, chosen), num, num_byzantine),
            stack.values,
        )
        return state, void_below(least, stack, value)

    return stacked(rule, check=need_clients("bulyan", "4 f + 3", least))


def bulyan_selection(squares: Array, mask: Array, num_byzantine: int) -> Array:
    """Whom repeated Krum selects.

    Args:
      squares: `[C, C]`, squared distances.
      mask: bool `[C]`; who takes part.
      num_byzantine: `f`.

    Returns:
      bool `[C]`; ``n - 2 f`` of those that take part.

    Example:
      >>> points = jnp.array([0.0, 9.0, 0.1, 0.3, 0.2, 0.6, 1.0])
      >>> bulyan_selection((points[:, None] - points) ** 2, jnp.ones(7, bool), 1).tolist()
      [True, False, True, True, True, True, False]
    """
    num_selected = mask.sum() - 2 * num_byzantine

    def select(step: Array, chosen: Array) -> Array:
        left = mask & ~chosen
        neighbours = jnp.maximum(left.sum() - num_byzantine - 2, 1)
        winner = jnp.argmin(krum_scores(squares, left, neighbours))
        return chosen.at[winner].set(chosen[winner] | (step < num_selected))

    most = max(mask.shape[0] - 2 * num_byzantine, 0)
    return jax.lax.fori_loop(0, most, select, jnp.zeros_like(mask))


def _around_median(rows: Array, num: Array, num_byzantine: int) -> Array:
    """The mean of the ``num - 2 f`` values nearest to the median; rows `[C, B]` are sorted.

    What is near to a point is a window of sorted values; there are ``2 f + 1`` windows. A window
    is left for the next where the value that it would lose is no nearer than the one that it would
    gain; once it is nearer, so it is in all later windows.
    """
    width = jnp.maximum(num - 2 * num_byzantine, 1)
    center = row_median(rows, num)

    def row(index: Array) -> Array:
        return jax.lax.dynamic_index_in_dim(rows, index, 0, keepdims=False)

    def leave(window: Array, start: Array) -> Array:
        return start + (center - row(window) >= row(window + width) - center)

    first = jnp.zeros(center.shape, jnp.int32)
    start = jax.lax.fori_loop(jnp.int32(0), jnp.int32(2 * num_byzantine), leave, first)
    place = jnp.arange(rows.shape[0])[:, None]
    inside = (place >= start) & (place < start + width)
    return trees.sum_rows(jnp.where(inside, rows, 0)) / width
