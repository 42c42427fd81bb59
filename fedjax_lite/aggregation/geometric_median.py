"""geometric_median(): the point of least total distance to the clients (RFA)."""

from __future__ import annotations

import jax
import jax.numpy as jnp

from fedjax_lite import trees
from fedjax_lite.aggregation.blocks import map_blocks
from fedjax_lite.aggregation.distances import squared_norms, squares_to
from fedjax_lite.aggregation.stacked import Stack, stacked
from fedjax_lite.checks.arguments import check_bool, check_count, check_positive
from fedjax_lite.checks.made import made
from fedjax_lite.types import Aggregator, Array, Cohort, Key, PyTree


@made
def geometric_median(
    *, iterations: int = 3, smoothing: float | Array = 1e-6, weighted: bool = False
) -> Aggregator:
    r"""The geometric median by smoothed Weiszfeld steps from the mean.

    .. math::
        z \leftarrow \frac{\sum_i \beta_i \Delta_i}{\sum_i \beta_i}, \qquad
        \beta_i = \frac{w_i}{\max(\nu, \lVert z - \Delta_i \rVert)}

    towards :math:`\arg\min_z \sum_i w_i \lVert z - \Delta_i \rVert`; one norm over the whole
    pytree.

    Args:
      iterations: Weiszfeld steps; 0 is the mean. The paper has 3; see the guarantees.
      smoothing: `nu` > 0, may be traced.
      weighted: whether `w_i` are the messages' weights; else all are 1.

    Returns:
      An `Aggregator`.

    Raises:
      ValueError: if `iterations` is negative or `smoothing` is not positive.

    Guarantees:
      A message that is not finite, or so long that its square overflows, counts as absent.
      Robust in the limit only: a finite outlier drags the mean, where the steps start, and each
      step takes away all but about ``1 / n`` of what is left (nine clients at 1 and one at 1e6:
      153 after the paper's 3 steps). Where messages may be that long bound them first,
      ``norm_bound(M, inner=geometric_median())``, or take more steps.

    Example:
      >>> from fedjax_lite.aggregation.stacked import aggregate_stack
      >>> corners = jnp.array([[0.0, 0.0], [4.0, 0.0], [3.0, 3.0], [0.0, 2.0]])
      >>> center = aggregate_stack(geometric_median(iterations=100), corners)
      >>> [round(x, 3) for x in center.tolist()]
      [1.333, 1.333]

    Reference: Pillutla, Kakade, Harchaoui, "Robust Aggregation for Federated Learning", 2022,
    arXiv:1912.13445.
    """
    check_count(iterations, "iterations", minimum=0)
    check_positive(smoothing, "smoothing")
    check_bool(weighted, "weighted")

    def rule(key: Key, state: PyTree, stack: Stack, cohort: Cohort) -> tuple[PyTree, PyTree]:
        counts = stack.mask & measurable(stack.values)
        weights = jnp.where(counts, stack.weights if weighted else 1.0, 0.0)

        def step(_: Array, center: PyTree) -> PyTree:
            distances = jnp.sqrt(squares_to(stack.values, center))
            near = jnp.where(counts, weights / jnp.maximum(distances, smoothing), 0)
            return weighted_rows(stack.values, near)

        start = weighted_rows(stack.values, weights)
        return state, jax.lax.fori_loop(0, iterations, step, start)

    return stacked(rule)


def measurable(values: PyTree) -> Array:
    """Who sent something finite whose squared norm does not overflow, with room: bool `[C]`.

    Example:
      >>> measurable(jnp.array([[1.0], [jnp.nan], [1e30]])).tolist()
      [True, False, False]
    """
    squares = squared_norms(values)
    return squares <= jnp.finfo(squares.dtype).max / 64  # NaN fails, too


def weighted_rows(values: PyTree, weights: Array) -> PyTree:
    """``sum w_i u_i / sum w_i`` of rows `[C, ...]`; 0/0 := 0, and weight 0 leaves no trace.

    Example:
      >>> weighted_rows(jnp.array([[1.0], [5.0], [jnp.nan]]), jnp.array([3.0, 1.0, 0.0])).tolist()
      [2.0]
    """
    total = weights.sum()
    shares = weights / jnp.where(total == 0, 1, total)

    def mix(rows: Array) -> Array:
        share = shares.astype(rows.dtype)[:, None]
        return trees.sum_rows(jnp.where(share == 0, 0, rows * share))

    return map_blocks(mix, values)
