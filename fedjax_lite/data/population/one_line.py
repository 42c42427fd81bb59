"""Data in one line: how many examples, with which names, types and shapes; no values."""

from __future__ import annotations

from typing import Any

import jax

from fedjax_lite.types import PyTree


def length(leaf: Any, more: int = 0) -> str:
    """The leading axis; "?" in trees of something else than arrays, which JAX makes at times.

    Example:
      >>> import numpy as np
      >>> length(np.zeros(5), -1), length("text")
      ('4', '?')
    """
    shape = getattr(leaf, "shape", ())
    return str(shape[0] + more) if shape else "?"


def length_of_all(examples: PyTree) -> str:
    """The number of examples, by the first leaf.

    Example:
      >>> import numpy as np
      >>> length_of_all({"x": np.zeros((5, 2))})
      '5'
    """
    leaves = jax.tree.leaves(examples)
    return length(leaves[0]) if leaves else "?"


def leaf_words(examples: PyTree) -> str:
    """Each leaf's name, dtype and shape without the axis of examples; at most 8 of them.

    Example:
      >>> import numpy as np
      >>> leaf_words({"x": np.zeros((5, 2))})
      ', x float64[2]'
    """
    words = []
    leaves = jax.tree_util.tree_leaves_with_path(examples)
    for path, leaf in leaves[:8]:
        shape = ",".join(str(size) for size in getattr(leaf, "shape", ())[1:])
        kind = str(getattr(leaf, "dtype", type(leaf).__name__))
        name = jax.tree_util.keystr(path, simple=True, separator=".")
        words.append(f", {name} {kind}[{shape}]" if name else f", {kind}[{shape}]")
    return "".join(words) + ", ..." * (len(leaves) > 8)
