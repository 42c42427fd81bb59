"""total(): the weighted sum over a number that does not depend on who came."""

from __future__ import annotations

import jax
import jax.numpy as jnp

from fedjax_lite import trees
from fedjax_lite.checks.arguments import check_positive
from fedjax_lite.checks.made import made
from fedjax_lite.types import Aggregator, Array, Cohort, Key, Message, PyTree


@made
def total(denominator: float | Array = 1.0) -> Aggregator:
    r"""The weighted sum of what the clients send, over a fixed number.

    .. math::  \bar\Delta = \frac{1}{D} \sum_{i \in S} w_i \Delta_i

    With the weights of Horvitz and Thompson, ``w_i = p_i / pi_i`` where `pi_i` is how often a
    client is expected in a cohort, its expectation is that of the whole population; dividing by the
    realised weights, as `mean` does, is not unbiased. `fedjax_lite.selection.unbiased` sets both.
    Sums are kept in float32 or wider; masked clients leave no trace.

    Args:
      denominator: `D` > 0, may be traced.

    Raises:
      ValueError: if `D` is not positive.

    Example:
      >>> from fedjax_lite.aggregation import aggregate_stack
      >>> rows, weights = jnp.array([1.0, 4.0]), jnp.array([3.0, 0.5])
      >>> float(aggregate_stack(total(2.0), rows, weights=weights))
      2.5

    Reference: Horvitz, Thompson, "A Generalization of Sampling Without Replacement From a Finite
    Universe", 1952.
    """
    check_positive(denominator, "denominator")

    def init(message: Message, cohort_size: int) -> PyTree:
        return jax.tree.map(
            lambda leaf: jnp.zeros(leaf.shape, jnp.promote_types(leaf.dtype, jnp.float32)),
            message.value,
        )

    def add(acc: PyTree, messages: Message, slots: Array, mask: Array) -> PyTree:
        weights = trees.where(mask, messages.weight, jax.tree.map(jnp.zeros_like, messages.weight))
        return jax.tree.map(jnp.add, acc, trees.weighted_sum(messages.value, weights))

    def finish(key: Key, state: PyTree, acc: PyTree, cohort: Cohort) -> tuple[PyTree, PyTree]:
        return state, jax.tree.map(lambda leaf: leaf / denominator, acc)

    return Aggregator(lambda params: (), init, add, finish)
