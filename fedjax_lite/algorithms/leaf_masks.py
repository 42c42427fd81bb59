"""Functions of the parameters that say which leaves are meant: what they return."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax
import numpy as np

from fedjax_lite import trees
from fedjax_lite.checks.arguments import shown
from fedjax_lite.types import Params, PyTree


def mask_of(function: Callable[[Params], PyTree], params: Params, name: str) -> PyTree:
    """A bool for each leaf of the parameters, from a function that gives a prefix of them.

    Args:
      function: ``(params) -> bools``.
      params: the model's.
      name: of the argument that the function was given as.

    Raises:
      TypeError: if it does not return a prefix of bools.

    Example:
      >>> mask_of(lambda p: {"body": False, "head": True}, {"body": 1.0, "head": {"w": 2.0}}, "is")
      {'body': False, 'head': {'w': True}}
      >>> mask_of(lambda p: None, {"body": 1.0}, "is_local")
      Traceback (most recent call last):
      ...
      TypeError: is_local must return bools, a prefix of the parameters, got None: ...
    """
    mask: Any = function(params)
    try:
        whole = trees.broadcast_prefix(mask, params)
    except ValueError:
        whole = None
    found = jax.tree.leaves(whole)
    if whole is None or not all(isinstance(leaf, bool | np.bool_) for leaf in found):
        raise TypeError(
            f"{name} must return bools, a prefix of the parameters, got {shown(mask)}: "
            f"{jax.tree.structure(mask)} for {jax.tree.structure(params)}; for example "
            "lambda params: {'body': True, 'head': False}"
        )
    return whole
