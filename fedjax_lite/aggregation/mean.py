"""mean(): the weighted mean of what the clients send, and who weighs how much."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from fedjax_lite import trees
from fedjax_lite.checks.arguments import shown
from fedjax_lite.checks.made import made
from fedjax_lite.types import Aggregator, Array, ClientInfo, Cohort, Key, Message, PyTree


class MeanSums(NamedTuple):
    """The accumulator: memory O(model), not O(cohort x model)."""

    values: PyTree
    weights: PyTree


@made
def mean() -> Aggregator:
    r"""The weighted mean over the clients that count.

    .. math::  \bar\Delta = \sum_{i \in S} w_i \Delta_i \Big/ \sum_{i \in S} w_i, \qquad 0/0 := 0

    Weights come with the messages (`weight_by`); a weight may be any broadcastable prefix of the
    value, so one mean serves plain averaging, several models (`[K]` weights) and sub-models
    (a mask as weight). Sums are kept in float32 or wider. Masked clients and clients of weight 0
    leave no trace, even where their values are NaN.

    Example:
      >>> u = Message(jnp.array([[1.0, 2], [3, 4], [5, 6]]), jnp.array([10.0, 20, 70]))
      >>> acc = mean().init(jax.tree.map(lambda leaf: leaf[0], u), 3)
      >>> acc = mean().add(acc, u, jnp.arange(3), jnp.ones(3, bool))
      >>> mean().finish(jax.random.key(0), (), acc, None)[1].round(4).tolist()
      [4.199999809265137, 5.199999809265137]

    Reference: McMahan et al., "Communication-Efficient Learning of Deep Networks from
    Decentralized Data", 2017, arXiv:1602.05629.
    """

    def init(message: Message, cohort_size: int) -> MeanSums:
        return MeanSums(trees.wide_zeros(message.value), trees.wide_zeros(message.weight))

    def add(acc: MeanSums, messages: Message, slots: Array, mask: Array) -> MeanSums:
        weights = trees.where(mask, messages.weight, jax.tree.map(jnp.zeros_like, messages.weight))
        return MeanSums(
            jax.tree.map(jnp.add, acc.values, trees.weighted_sum(messages.value, weights)),
            jax.tree.map(
                lambda total, w: total + w.astype(total.dtype).sum(0), acc.weights, weights
            ),
        )

    def finish(key: Key, state: PyTree, acc: MeanSums, cohort: Cohort) -> tuple[PyTree, PyTree]:
        def divide(total: Array, weight: Array) -> Array:
            weight = weight.reshape(weight.shape + (1,) * (total.ndim - weight.ndim))
            return jnp.where(weight == 0, 0, total / jnp.where(weight == 0, 1, weight))

        weights = trees.broadcast_prefix(acc.weights, acc.values)
        return state, jax.tree.map(divide, acc.values, weights)

    return Aggregator(lambda params: (), init, add, finish)


Weighting = str | Callable[[ClientInfo], Any]


def weight_by(weighting: Weighting) -> Callable[[ClientInfo], Array]:
    """The weight of a client's message; 0 for a client that does no step.

    Args:
      weighting: "examples" (`n_i`, as McMahan et al.), "uniform" (1), or a function
        ``(info) -> weight``, e.g. ``lambda info: weights[info.id]`` for weights of one's own;
        negative ones are refused, or where they are traced count for nothing.

    Returns:
      ``(info) ->`` float32 scalar.

    Raises:
      TypeError: when called, if the function returns no number.
      ValueError: if the name is unknown, or (when called) a weight known to be negative is given.

    Example:
      >>> info = ClientInfo(*map(jnp.int32, (3, 25, 2, 0)))
      >>> float(weight_by("examples")(info)), float(weight_by("uniform")(info))
      (25.0, 1.0)
    """
    named = {"examples": lambda info: info.size, "uniform": lambda info: 1.0}
    function = (
        weighting
        if callable(weighting)
        else named.get(weighting)
        if isinstance(weighting, str)
        else None
    )
    if function is None:
        raise ValueError(
            f"weighting must be one of {sorted(named)} or a function of ClientInfo, "
            f"got {weighting!r}; give weighting='examples'"
        )

    def weight(info: ClientInfo) -> Array:
        given = function(info)
        if not hasattr(given, "dtype") and not isinstance(given, int | float | list | tuple):
            raise TypeError(
                "weighting, a function of a client, must return its weight, a number, got "
                f"{shown(given)}; for example lambda info: weights[info.id]"
            )
        if not isinstance(given, jax.core.Tracer) and (np.asarray(given) < 0).any():
            raise ValueError(
                f"weighting must not give a negative weight, got {np.asarray(given).tolist()}; a "
                "client that is to count for nothing has weight 0"
            )
        value = jnp.asarray(given, jnp.float32)
        return jnp.where(info.num_steps > 0, value, jnp.zeros_like(value))

    return weight
