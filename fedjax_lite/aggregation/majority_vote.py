"""majority_vote(): every client has one vote on the sign of every coordinate."""

from __future__ import annotations

import jax
import jax.numpy as jnp

from fedjax_lite import trees
from fedjax_lite.checks.made import made
from fedjax_lite.types import Aggregator, Array, Cohort, Key, Message, PyTree


@made
def majority_vote() -> Aggregator:
    r"""The sign of the sum of the clients' signs, coordinate by coordinate.

    .. math::
        \bar\Delta = \operatorname{sign} \Big( \sum_{i \in S} \operatorname{sign}(\Delta_i) \Big)

    Entries are -1, 0 and 1, so the server's learning rate is the size of its step. With the uplink
    ``scaled_sign()`` it is signSGD with majority vote, at one bit a coordinate each way.

    Every client that counts (weight above 0) has one vote, whatever its weight. A coordinate that
    is 0 or NaN abstains (a client that sends signs only never does, except with a zero update); a
    tie gives 0 and moves nothing. Of `m` votes fewer than half can be hostile.

    Returns:
      A stateless `Aggregator`; memory O(model).

    Example:
      >>> messages = Message(jnp.array([[3.0, -1.0], [0.5, 1.0], [-9.0, 0.0]]), jnp.ones(3))
      >>> vote = majority_vote()
      >>> acc = vote.init(jax.tree.map(lambda leaf: leaf[0], messages), 3)
      >>> acc = vote.add(acc, messages, jnp.arange(3), jnp.ones(3, bool))
      >>> vote.finish(jax.random.key(0), (), acc, None)[1].tolist()
      [1.0, 0.0]

    Reference: Bernstein, Zhao, Azizzadenesheli, Anandkumar, "signSGD with Majority Vote is
    Communication Efficient and Fault Tolerant", 2018, arXiv:1810.05291.
    """

    def init(message: Message, cohort_size: int) -> PyTree:
        return trees.wide_zeros(message.value)

    def add(acc: PyTree, messages: Message, slots: Array, mask: Array) -> PyTree:
        counts = jax.tree.map(lambda weight: weight > 0, messages.weight)
        counts = trees.where(mask, counts, jax.tree.map(jnp.zeros_like, counts))
        counts = trees.broadcast_prefix(counts, messages.value)

        def one(total: Array, value: Array, counted: Array) -> Array:
            counted = counted.reshape(counted.shape + (1,) * (value.ndim - counted.ndim))
            votes = jnp.where(counted & (value == value), jnp.sign(value), 0)
            return total + votes.astype(total.dtype).sum(0)

        return jax.tree.map(one, acc, messages.value, counts)

    def finish(key: Key, state: PyTree, acc: PyTree, cohort: Cohort) -> tuple[PyTree, PyTree]:
        return state, jax.tree.map(jnp.sign, acc)

    return Aggregator(lambda params: (), init, add, finish)
