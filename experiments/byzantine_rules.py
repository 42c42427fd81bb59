"""Robust rules and the network as the bucketing paper's authors wrote them, where ours differ.

Read in github.com/epfml/byzantine-robust-noniid-optimizer (`codes/`, `utils.py`); what is here is
written anew. Their worker momentum is a sum, ``m <- beta m + g``: messages of `byzantine.py` are
the rate times these sums, so lengths in their units are multiplied by the rate.

* RFA starts at zero, not at the mean, and smooths at 0.1.
* Krum sums the fourth powers of distances.
* Dropout after the convolutions is of whole channels, and its masks are the same for all workers
  and in all iterations, because the trainer restores the state of the generator after each worker.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp

import fedjax_lite as fl
from fedjax_lite import aggregation
from fedjax_lite.aggregation.conditions import in_population
from fedjax_lite.aggregation.distances import pairwise_squares, squares_to
from fedjax_lite.aggregation.geometric_median import weighted_rows
from fedjax_lite.aggregation.krum import krum_scores, mean_of
from fedjax_lite.models.layers import conv_layer, dense, dropout
from fedjax_lite.models.pooling import max_pool

KNOWING = ("ipm", "alie", "mimic", "min-max")
"""Attacks made of what the honest send: hostile clients need not compute anything."""


def rfa_from_zero(*, iterations: int, smoothing: Any) -> fl.Aggregator:
    """`geometric_median`, but its steps start at zero.

    From zero a short message counts for more: the first step weighs by inverse norms.

    Example:
      >>> far = jnp.array([[1.0], [4.0]])
      >>> aggregation.aggregate_stack(rfa_from_zero(iterations=1, smoothing=1e-6), far).round(3)
      Array([1.6], dtype=float32)
    """

    def rule(key: Any, state: Any, stack: aggregation.Stack, cohort: Any) -> tuple[Any, Any]:
        def step(_: Any, center: Any) -> Any:
            distances = jnp.sqrt(squares_to(stack.values, center))
            near = jnp.where(stack.mask, 1 / jnp.maximum(distances, smoothing), 0)
            return weighted_rows(stack.values, near)

        zero = jax.tree.map(lambda leaf: jnp.zeros_like(leaf[0]), stack.values)
        return state, jax.lax.fori_loop(0, iterations, step, zero)

    return aggregation.stacked(rule)


def krum_of_fourth_powers(num_byzantine: int) -> fl.Aggregator:
    """`krum`, but a score sums the fourth powers of distances to its ``n - f - 2`` neighbours.

    Example:
      >>> u = jnp.array([[0.0], [1.0], [3.0], [9.0], [9.0]])
      >>> aggregation.aggregate_stack(krum_of_fourth_powers(1), u).tolist()
      [0.0]
    """

    def rule(key: Any, state: Any, stack: aggregation.Stack, cohort: Any) -> tuple[Any, Any]:
        squares = pairwise_squares(stack.values)
        # Scores are compared only, so that dividing by the largest square keeps powers finite.
        scale = jnp.where(jnp.isfinite(squares), squares, 0).max()
        powers = (squares / jnp.where(scale == 0, 1, scale)) ** 2
        scores = krum_scores(powers, stack.mask, stack.mask.sum() - num_byzantine - 2)
        first = jnp.arange(scores.shape[0]) == jnp.argmin(scores)
        return state, mean_of(stack.values, first & stack.mask)

    return aggregation.stacked(rule)


def joined_by(num_hostile: int, num_honest: int, inner: fl.Aggregator) -> fl.Aggregator:
    """Lets hostile clients join, ids from `num_honest` on, who computed nothing.

    For `inner` a `byzantine` rule whose attack is among `KNOWING`: it sees their messages as zeros
    and replaces them.

    Example:
      >>> hostile = fl.attacks.byzantine(fl.attacks.ipm(1.0), clients=[2])
      >>> u = jnp.array([[1.0], [3.0]])
      >>> aggregation.aggregate_stack(joined_by(1, 2, hostile), u).round(3).tolist()
      [0.667]
    """
    total = num_honest + num_hostile

    def init_state(params: Any) -> Any:
        with in_population(total):
            return inner.init_state(params)

    def rule(key: Any, state: Any, stack: aggregation.Stack, cohort: Any) -> tuple[Any, Any]:
        values = jax.tree.map(
            lambda leaf: jnp.concatenate([leaf, jnp.zeros((num_hostile, *leaf.shape[1:]))]),
            stack.values,
        )
        messages = fl.Message(values, jnp.ones(total))
        everyone = jnp.ones(total, bool)
        slots = jnp.arange(total, dtype=jnp.int32)
        with in_population(total):
            acc = inner.init(jax.tree.map(lambda leaf: leaf[0], messages), total)
            acc = inner.add(acc, messages, slots, everyone)
            return inner.finish(key, state, acc, fl.Cohort(slots, everyone))

    return aggregation.stacked(rule, init_state=init_state)


def authors_network(
    *, input_shape: Sequence[int], mean: Sequence[float], std: Sequence[float], seed: int = 0
) -> fl.models.Model:
    """Their network: conv 32, ReLU, conv 64, pool, dropout of channels, dense 128, ReLU, dropout.

    There is no ReLU after the second convolution. With one, the median under IPM climbs the loss
    (2 % after 200 rounds); without, it learns in fits and starts, as in their logs.

    Args:
      input_shape: of an image.
      mean: of its channels.
      std: of its channels.
      seed: of the one draw of dropout masks.

    Example:
      >>> model = authors_network(input_shape=(28, 28, 1), mean=(0.13,), std=(0.31,))
      >>> shapes = jax.eval_shape(model.init, jax.random.key(0))
      >>> sum(leaf.size for leaf in jax.tree.leaves(shapes))
      1199882
    """
    shape = tuple(input_shape)
    plain = fl.models.conv_net(
        (32, 64), (128,), kernel_size=3, padding="VALID", pool_after=(False, True), init="torch",
        input_shape=shape,
    )  # fmt: skip
    of_channels, of_units = jax.random.split(jax.random.key(seed))

    def apply(params: Any, x: Any, key: Any) -> Any:
        x = x.reshape(-1, *shape)
        x = jax.nn.relu(conv_layer(params["conv1"], x, padding="VALID"))
        x = conv_layer(params["conv2"], x, padding="VALID")  # theirs has no ReLU here
        x = max_pool(x, 2, strides=2, padding="VALID")
        if key is not None:  # training; which key does not matter, masks are drawn once
            kept = dropout(of_channels, jnp.ones((x.shape[0], 1, 1, x.shape[-1])), rate=0.25)
            x = x * kept
        x = jax.nn.relu(dense(params["dense1"], x.reshape(x.shape[0], -1)))
        x = dropout(None if key is None else of_units, x, rate=0.5)
        return dense(params["head"], x)

    return fl.models.from_functions(plain.init, apply, mean=mean, std=std)
