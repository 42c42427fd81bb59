"""norm_bound(): the server clips every message before any rule sees it."""

from __future__ import annotations

import jax

from fedjax_lite.aggregation.mean import mean
from fedjax_lite.aggregation.stacked import check_aggregator_slot
from fedjax_lite.checks.arguments import check_positive
from fedjax_lite.checks.made import made
from fedjax_lite.transforms.clip import clip_by_global_norm
from fedjax_lite.types import Aggregator, Array, Message, PyTree


@made
def norm_bound(max_norm: float | Array, *, inner: Aggregator | None = None) -> Aggregator:
    r"""Bounds the norm of every message, then aggregates.

    .. math::  \Delta_i \leftarrow \Delta_i \min(1, M / \lVert \Delta_i \rVert)

    with one l2 norm over the whole pytree. Unlike the transform `clip` it is the server that
    clips, so hostile clients cannot leave it out.

    Args:
      max_norm: `M` > 0, may be traced; infinity leaves every finite message as it is.
      inner: what aggregates the bounded messages; default `mean()`.

    Returns:
      An `Aggregator` with the accumulator and the state of `inner`.

    Raises:
      ValueError: if `max_norm` is not positive.
      TypeError: if `inner` is not an `Aggregator`.

    Guarantees:
      With the mean, a client of share `p` moves the aggregate by at most ``p M``; a message that
      is not finite becomes zero.

    Example:
      >>> import jax.numpy as jnp
      >>> from fedjax_lite.aggregation.stacked import aggregate_stack
      >>> u = jnp.array([[3.0, 4.0], [0.6, 0.8]])
      >>> [round(x, 4) for x in aggregate_stack(norm_bound(1.0), u).tolist()]
      [0.6, 0.8]

    Reference: Sun, Kairouz, Suresh, McMahan, "Can You Really Backdoor Federated Learning?", 2019,
    arXiv:1911.07963.
    """
    check_positive(max_norm, "max_norm")
    inner = mean() if inner is None else inner
    check_aggregator_slot(inner)
    at = inner.at

    def add(acc: PyTree, messages: Message, slots: Array, mask: Array) -> PyTree:
        if jax.tree.leaves(messages.value):  # vmap refuses to map over nothing
            bounded = jax.vmap(lambda value: clip_by_global_norm(value, max_norm))(messages.value)
            messages = Message(bounded, messages.weight)
        return inner.add(acc, messages, slots, mask)

    return inner._replace(
        add=add,
        at=None if at is None else lambda state: norm_bound(max_norm, inner=at(state)),
    )
