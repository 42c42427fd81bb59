"""gaussian_noise(): noise that every client adds itself, each its own."""

from __future__ import annotations

import math
from typing import Any

import jax
import jax.numpy as jnp

from fedjax_lite import trees
from fedjax_lite.checks.arguments import check_non_negative
from fedjax_lite.checks.made import made
from fedjax_lite.types import Array, Key, PyTree, Transform


@made
def gaussian_noise(stddev: float | Array) -> Transform:
    r"""Adds independent noise :math:`\mathcal N(0, \sigma^2)` to every entry of a value.

    The noise comes from the key that the engine gives every client and round; there is no key in
    the state, which `vmap` would replicate so that all clients had the same noise.

    Args:
      stddev: `sigma` >= 0, may be traced; 0 leaves the value as it is.

    Returns:
      A stateless `Transform` of kind "noise": `chain` refuses to clip or to compress after it.
      Narrower leaves (bfloat16, float16) are sent as float32: rounded to them, noise has so few
      values that they tell neighbouring inputs apart.

    Raises:
      ValueError: if `stddev` is negative.

    Example:
      >>> _, a = gaussian_noise(1.0).update(jax.random.key(0), (), jnp.zeros(1000))
      >>> abs(float(a.std()) - 1) < 0.1
      True

    Reference: Dwork, Roth, "The Algorithmic Foundations of Differential Privacy", 2014.
    """
    check_non_negative(stddev, "stddev")

    def update(key: Key, state: PyTree, value: PyTree) -> tuple[PyTree, PyTree]:
        return state, jax.tree.map(jnp.add, value, gaussian_like(key, value, stddev))

    return Transform(lambda value: (), update, kinds=("noise",))


def gaussian_like(key: Key, tree: PyTree, stddev: Any) -> PyTree:
    r"""Independent normal noise for every entry of every leaf, in float32 or wider.

    Every entry is :math:`\sigma (n_1 + n_2) / \sqrt 2` of two draws. One float32 draw never leaves
    `[-5.42, 5.22]`, and an output beyond that (probability 1e-7 an entry, 1e-5 for a neighbour at
    `sigma` = 1) would give a client away; the sum reaches 7.3 deviations, where 1e-13 is left.

    Args:
      key: a typed key.
      tree: arrays, of which shapes and dtypes count.
      stddev: `sigma` >= 0, may be traced.

    Returns:
      Noise of the leaves' shapes.

    Example:
      >>> noise = gaussian_like(jax.random.key(0), {"a": jnp.zeros(2), "b": jnp.zeros(2)}, 1.0)
      >>> bool((noise["a"] != noise["b"]).all())
      True
    """
    leaves, structure = jax.tree.flatten(tree)
    keys = jax.random.split(key, max(len(leaves), 1))

    def one(key: Key, leaf: Array) -> Array:
        dtype = trees.wide_dtype(leaf)
        first, second = jax.random.normal(key, (2, *leaf.shape), dtype)
        return jnp.asarray(stddev, dtype) * ((first + second) / math.sqrt(2))

    noise = [one(keys[i], leaf) for i, leaf in enumerate(leaves)]
    return jax.tree.unflatten(structure, noise)
