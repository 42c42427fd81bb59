"""Head and body of a model: which leaves are which, and the loss as a function of one of them."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax

from fedjax_lite import trees
from fedjax_lite.algorithms.leaf_masks import mask_of
from fedjax_lite.checks.arguments import shown
from fedjax_lite.data.population.counting import keep_counts
from fedjax_lite.round.local import LossFn
from fedjax_lite.types import Array, Key, Params, PyTree

IsHead = Callable[[Params], PyTree]
"""``(params) -> bools``, a prefix of the parameters: True for the leaves of the head."""


def head_mask(is_head: IsHead | None) -> IsHead:
    """Which leaves are the head's, as a function that gives a bool for each.

    Args:
      is_head: None: what is called "head", as in every model of `fedjax_lite.models`.

    Raises:
      TypeError: if it is no function, or (when called) does not return a prefix of bools.
      ValueError: when called, if nothing is called "head".

    Example:
      >>> head_mask(None)({"body": {"w": 1.0}, "head": {"w": 2.0}})
      {'body': {'w': False}, 'head': {'w': True}}
    """
    if is_head is not None and not callable(is_head):
        raise TypeError(
            f"is_head must be a function (params) -> bools, got {shown(is_head)}; give for example "
            "lambda params: {'body': False, 'head': True}"
        )

    def mask(params: Params) -> PyTree:
        if is_head is not None:
            return mask_of(is_head, params, "is_head")
        found = jax.tree_util.tree_map_with_path(lambda path, _: "head" in names(path), params)
        if not any(jax.tree.leaves(found)):
            parts = sorted(params) if isinstance(params, dict) else type(params).__name__
            raise ValueError(
                f"is_head must be given where no part of params is called 'head', got {parts}; "
                "is_head=lambda params: {'body': False, 'last': True}"
            )
        return found

    return mask


def names(path: tuple[Any, ...]) -> list[str]:
    """The keys and fields on the way to a leaf.

    Example:
      >>> names((jax.tree_util.DictKey("head"), jax.tree_util.SequenceKey(0)))
      ['head', '']
    """
    return [str(getattr(step, "key", getattr(step, "name", ""))) for step in path]


def of_one_half(loss: LossFn, other: Params) -> LossFn:
    """The loss as a function of one half of the model; the other half rests.

    So its gradient is that of one half, and what only the other's would need is not computed.

    Example:
      >>> loss = of_one_half(lambda w, e, key: w["a"] * w["b"], {"a": None, "b": 3.0})
      >>> jax.grad(loss)({"a": 2.0, "b": None}, None, None)
      {'a': Array(3., dtype=float32, weak_type=True), 'b': None}
    """

    def half(params: Params, examples: PyTree, key: Key) -> Array:
        return loss(trees.whole(params, other), examples, key)

    return keep_counts(half, loss)
