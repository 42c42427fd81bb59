"""bucketing(): means of a few random clients first, so that a robust rule sees less variety."""

from __future__ import annotations

import jax
import jax.numpy as jnp

from fedjax_lite.aggregation.blocks import map_blocks
from fedjax_lite.aggregation.conditions import in_population
from fedjax_lite.aggregation.stacked import (
    Stack,
    check_aggregator_slot,
    check_scalar_weight,
    stacked,
)
from fedjax_lite.checks.arguments import check_count
from fedjax_lite.checks.made import made
from fedjax_lite.types import Aggregator, Array, Cohort, Key, Message, PyTree


@made
def bucketing(bucket_size: int, *, inner: Aggregator) -> Aggregator:
    r"""Averages random buckets of clients, then applies a rule to the averages.

    The `n` clients that take part are permuted at random and cut into :math:`\lceil n / s \rceil`
    buckets of `s`; the last may be smaller and is divided by its own size. `inner` gets the plain
    means, of weight 1. Honest clients differ less in the mean of `s`, and a hostile one spoils at
    most one bucket: `inner` is to withstand the same number `f` among fewer inputs.

    Args:
      bucket_size: `s`; 1 is `inner` on permuted clients, `n` the mean.
      inner: any aggregator, e.g. ``median()`` or ``krum(2)``; its conditions are on
        ``ceil(n / s)``.

    Returns:
      An `Aggregator` with the state of `inner`. The permutation is a function of the round's key
      and the clients' ids, so slots may be permuted.

    Raises:
      ValueError: if `bucket_size` is not positive, or (when the round is built) if there are too
        few buckets for `inner`.
      TypeError: if `inner` is not an `Aggregator`.

    Example:
      >>> from fedjax_lite.aggregation import median
      >>> from fedjax_lite.aggregation.stacked import aggregate_stack
      >>> aggregate_stack(bucketing(3, inner=median()), jnp.array([[1.0], [2.0], [6.0]])).tolist()
      [3.0]

    Reference: Karimireddy, He, Jaggi, "Byzantine-Robust Learning on Heterogeneous Datasets via
    Bucketing", 2022, arXiv:2006.09365.
    """
    check_count(bucket_size, "bucket_size", minimum=1)
    check_aggregator_slot(inner)

    def init_state(params: PyTree) -> PyTree:
        with in_population(None):  # to `inner` buckets are the clients
            return inner.init_state(params)

    def rule(key: Key, state: PyTree, stack: Stack, cohort: Cohort) -> tuple[PyTree, PyTree]:
        key_order, key_inner = jax.random.split(key)
        order = random_order(key_order, cohort.ids, stack.mask)
        values, sizes = bucket_means(stack, order, bucket_size)
        here = inner if inner.at is None else inner.at(state)
        num_buckets = sizes.shape[0]
        slots = jnp.arange(num_buckets, dtype=jnp.int32)
        messages = Message(values, (sizes > 0).astype(stack.weights.dtype))
        with in_population(num_buckets):
            acc = here.init(jax.tree.map(lambda leaf: leaf[0], messages), num_buckets)
        acc = here.add(acc, messages, slots, sizes > 0)
        return here.finish(key_inner, state, acc, Cohort(slots, sizes > 0))

    aggregator = stacked(rule, init_state=init_state)

    def init(message: Message, cohort_size: int) -> PyTree:
        check_scalar_weight(message)
        num_buckets = -(-cohort_size // bucket_size)
        with in_population(num_buckets):
            inner.init(message, num_buckets)  # for its conditions
        return aggregator.init(message, cohort_size)

    return aggregator._replace(init=init)


def random_order(key: Key, ids: Array, mask: Array) -> Array:
    """Slots `[C]` in random order, those that are masked last.

    Each client draws its place by its own id, so the order of *clients* does not depend on who
    sits in which slot.

    Example:
      >>> ids, mask = jnp.array([7, 3, 5]), jnp.array([True, True, False])
      >>> order = random_order(jax.random.key(0), ids, mask)
      >>> other = random_order(jax.random.key(0), ids[::-1], mask[::-1])
      >>> ids[order].tolist() == ids[::-1][other].tolist(), int(ids[order][-1])
      (True, 5)
    """
    draws = jax.vmap(lambda i: jax.random.bits(jax.random.fold_in(key, i), (), jnp.uint32))(ids)
    return jnp.lexsort((ids, draws, ~mask))


def bucket_means(stack: Stack, order: Array, bucket_size: int) -> tuple[PyTree, Array]:
    """Means of consecutive clients of an order whose first are those that take part.

    Args:
      stack: the messages.
      order: `[C]`, slots.
      bucket_size: clients a bucket.

    Returns:
      The means, leaves ``[ceil(C / s), ...]``, and the sizes `[ceil(C / s)]`, 0 for an empty one.

    Example:
      >>> stack = Stack(jnp.array([[1.0], [2.0], [6.0]]), jnp.ones(3), jnp.ones(3, bool))
      >>> bucket_means(stack, jnp.array([2, 0, 1]), 2)[0].tolist()
      [[3.5], [2.0]]
    """
    num_buckets = -(-order.shape[0] // bucket_size)
    padding = num_buckets * bucket_size - order.shape[0]
    starts = jnp.arange(num_buckets) * bucket_size
    sizes = jnp.clip(stack.mask.sum() - starts, 0, bucket_size)

    def means(rows: Array) -> Array:
        rows = jnp.where(stack.mask[order][:, None], rows[order], 0)
        rows = jnp.pad(rows, ((0, padding), (0, 0)))
        totals = rows.reshape(num_buckets, bucket_size, -1).sum(1)
        return totals / jnp.maximum(sizes, 1)[:, None]

    return map_blocks(means, stack.values), sizes
