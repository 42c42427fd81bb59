"""Krum and Multi-Krum: the clients whose nearest neighbours are nearest."""

from __future__ import annotations

import jax.numpy as jnp

from fedjax_lite import trees
from fedjax_lite.aggregation.blocks import map_blocks
from fedjax_lite.aggregation.distances import pairwise_squares
from fedjax_lite.aggregation.stacked import Stack, need_clients, stacked, void_below
from fedjax_lite.checks.arguments import check_count
from fedjax_lite.checks.made import made
from fedjax_lite.types import Aggregator, Array, Cohort, Key, PyTree


@made
def krum(num_byzantine: int) -> Aggregator:
    r"""The one message that is closest to its neighbours.

    .. math::
        s(i) = \sum_{j \in N_i} \lVert \Delta_i - \Delta_j \rVert^2, \qquad
        \bar\Delta = \Delta_{\arg\min_i s(i)}

    with :math:`N_i` the `n - f - 2` clients nearest to `i`, itself excluded. Ties go to the lowest
    slot. Weights do not count.

    Args:
      num_byzantine: `f`, the hostile clients assumed in a cohort; needs ``n >= 2 f + 3``.

    Returns:
      An `Aggregator`. A round in which fewer than ``2 f + 3`` clients are left (drop-outs) has no
      aggregate: zero.

    Raises:
      ValueError: if `num_byzantine` is negative, or (when the round is built) the cohort is
        smaller than ``2 f + 3``.

    Guarantees:
      The result is a message that was sent, within the cluster of the honest ones where at most
      `f` are hostile. A message that is not finite is infinitely far from all others.

    Example:
      >>> from fedjax_lite.aggregation.stacked import aggregate_stack
      >>> u = jnp.array([[0.0], [0.1], [0.3], [0.2], [9.0]])
      >>> round(float(aggregate_stack(krum(1), u)[0]), 4)
      0.1

    Reference: Blanchard, El Mhamdi, Guerraoui, Stainer, "Machine Learning with Adversaries:
    Byzantine Tolerant Gradient Descent", 2017, arXiv:1703.02757.
    """
    return _lowest(num_byzantine, 1, "krum")


@made
def multi_krum(num_byzantine: int, *, num_selected: int | None = None) -> Aggregator:
    r"""The mean of the `m` messages with the lowest Krum scores.

    Args:
      num_byzantine: `f`; needs ``n >= 2 f + 3``.
      num_selected: `m`; default ``n - f`` of the clients that take part. More than there are
        means all of them: the mean.

    Returns:
      An `Aggregator`; see `krum`.

    Raises:
      ValueError: as `krum`, or if `num_selected` is not positive.

    Example:
      >>> from fedjax_lite.aggregation.stacked import aggregate_stack
      >>> u = jnp.array([[0.0], [0.1], [0.3], [0.2], [9.0]])
      >>> round(float(aggregate_stack(multi_krum(1), u)[0]), 4)
      0.15

    Reference: Blanchard, El Mhamdi, Guerraoui, Stainer, "Machine Learning with Adversaries:
    Byzantine Tolerant Gradient Descent", 2017, arXiv:1703.02757.
    """
    if num_selected is not None:
        check_count(num_selected, "num_selected", minimum=1)
    return _lowest(num_byzantine, num_selected, "multi_krum")


def _lowest(num_byzantine: int, num_selected: int | None, name: str) -> Aggregator:
    check_count(num_byzantine, "num_byzantine", minimum=0)
    least = 2 * num_byzantine + 3

    def rule(key: Key, state: PyTree, stack: Stack, cohort: Cohort) -> tuple[PyTree, PyTree]:
        num = stack.mask.sum()
        scores = krum_scores(pairwise_squares(stack.values), stack.mask, num - num_byzantine - 2)
        wanted = num - num_byzantine if num_selected is None else num_selected
        chosen = jnp.argsort(jnp.argsort(scores)) < jnp.clip(wanted, 1, jnp.maximum(num, 1))
        return state, void_below(least, stack, mean_of(stack.values, chosen & stack.mask))

    return stacked(rule, check=need_clients(name, "2 f + 3", least))


def krum_scores(squares: Array, mask: Array, num_neighbours: Array | int) -> Array:
    """Sums of the squared distances to the nearest neighbours.

    A client is left out of its own neighbours by its index: with duplicates, or where rounding is
    about, "the smallest distance" need not be the one to itself.

    Args:
      squares: `[C, C]`, squared distances; the diagonal is not looked at.
      mask: bool `[C]`; who takes part.
      num_neighbours: how many are near; may be traced.

    Returns:
      `[C]`; infinity for who takes no part. Clients that take part stay below it, so that they
      come first even where their distances overflow or are NaN.

    Example:
      >>> points = jnp.array([0.0, 1.0, 3.0])
      >>> squares = (points[:, None] - points) ** 2
      >>> krum_scores(squares, jnp.ones(3, bool), 1).tolist()
      [1.0, 1.0, 4.0]
    """
    size = mask.shape[0]
    others = mask[:, None] & mask[None, :] & ~jnp.eye(size, dtype=bool)
    near = jnp.sort(jnp.where(others & ~jnp.isnan(squares), squares, jnp.inf), axis=1)
    scores = jnp.where(jnp.arange(size) < num_neighbours, near, 0).sum(1)
    return jnp.where(mask, jnp.minimum(scores, jnp.finfo(scores.dtype).max), jnp.inf)


def mean_of(values: PyTree, chosen: Array) -> PyTree:
    """The plain mean of the rows that are chosen; the others leave no trace, NaN or not.

    Example:
      >>> mean_of(jnp.array([[1.0], [jnp.nan], [3.0]]), jnp.array([True, False, True])).tolist()
      [2.0]
    """
    count = jnp.maximum(chosen.sum(), 1)
    return map_blocks(
        lambda rows: trees.sum_rows(jnp.where(chosen[:, None], rows, 0)) / count, values
    )
