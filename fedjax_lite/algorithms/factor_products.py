"""An aggregate of low-rank factors that knows the mean of their products, too."""

from __future__ import annotations

from typing import NamedTuple

import jax

from fedjax_lite import trees
from fedjax_lite.aggregation.mean import mean
from fedjax_lite.checks.made import made
from fedjax_lite.models.lora import is_low_rank
from fedjax_lite.types import Aggregator, Array, Cohort, Key, Message, PyTree


class Factored(NamedTuple):
    """What becomes of the clients' low-rank updates."""

    factors: PyTree
    """The weighted mean of the factors' changes."""
    products: PyTree
    """The weighted mean of ``change of a @ change of b``, `[m, n]` a kernel."""


@made
def mean_of_products() -> Aggregator:
    r"""The weighted means of factors and of their products, each client's product for itself.

    .. math::
        \sum_i p_i\, \Delta A_i, \qquad \sum_i p_i\, \Delta B_i, \qquad
        \sum_i p_i\, \Delta A_i\, \Delta B_i

    From these follow the mean of the products themselves and what averaging factors misses,

    .. math::
        \sum_i p_i A_i B_i - \bar A \bar B =
        \sum_i p_i\, \Delta A_i \Delta B_i - \overline{\Delta A}\; \overline{\Delta B} .

    Clients send factors; products are made where they arrive, so that the server sees each
    client's. Memory O(L x adapted kernels), whatever the cohort.

    Example:
      >>> from fedjax_lite.models import LowRank
      >>> from jax import numpy as jnp
      >>> eye = jnp.eye(2)
      >>> sent = Message(LowRank(eye[:, :, None], eye[:, None, :]), jnp.array([3.0, 1.0]))
      >>> rule = mean_of_products()
      >>> acc = rule.init(jax.tree.map(lambda leaf: leaf[0], sent), 2)
      >>> acc = rule.add(acc, sent, jnp.arange(2), jnp.ones(2, bool))
      >>> found = rule.finish(jax.random.key(0), (), acc, None)[1]
      >>> found.products.tolist(), (found.factors.a @ found.factors.b).tolist()
      ([[0.75, 0.0], [0.0, 0.25]], [[0.5625, 0.1875], [0.1875, 0.0625]])

    Reference: Singhal, Ponkshe, Vepakomma, "FedEx-LoRA: Exact Aggregation for Federated and
    Efficient Fine-Tuning of Foundation Models", 2024, arXiv:2410.09432.
    """
    inner = mean()

    def init(message: Message, cohort_size: int) -> PyTree:
        return inner.init(jax.eval_shape(_with_products, message), cohort_size)

    def add(acc: PyTree, messages: Message, slots: Array, mask: Array) -> PyTree:
        return inner.add(acc, _with_products(messages), slots, mask)

    def finish(key: Key, state: PyTree, acc: PyTree, cohort: Cohort) -> tuple[PyTree, PyTree]:
        return inner.finish(key, state, acc, cohort)

    return Aggregator(lambda value: (), init, add, finish)


def products_of(factors: PyTree) -> PyTree:
    """``a @ b`` in place of every `LowRank`, also with leading axes; there is nothing else in it.

    Example:
      >>> from fedjax_lite.models import LowRank
      >>> from jax import numpy as jnp
      >>> products_of({"w": LowRank(jnp.ones((2, 1)), jnp.ones((1, 2))), "b": None})["w"].tolist()
      [[1.0, 1.0], [1.0, 1.0]]
    """
    return jax.tree.map(lambda pair: pair.a @ pair.b, factors, is_leaf=is_low_rank)


def _with_products(message: Message) -> Message:
    """One message, or messages `[L, ...]`; products in float32 or wider."""
    return Message(Factored(message.value, products_of(trees.wide(message.value))), message.weight)
