"""Mean and spread of the honest messages, which omniscient attackers know."""

from __future__ import annotations

import jax.numpy as jnp

from fedjax_lite import trees
from fedjax_lite.aggregation.blocks import map_blocks
from fedjax_lite.attacks.byzantine import Scene
from fedjax_lite.types import Array, PyTree


def honest_mean(scene: Scene) -> PyTree:
    """The plain mean of the honest messages; 0 where there are none.

    Example:
      >>> from fedjax_lite.attacks.byzantine import Scene
      >>> honest = jnp.array([True, True, False])
      >>> scene = Scene(jnp.array([[1.0], [3.0], [50.0]]), jnp.ones(3), honest, ~honest, None)
      >>> honest_mean(scene).tolist()
      [2.0]
    """
    return map_blocks(lambda rows: _mean(rows, scene.honest), scene.values)


def honest_std(scene: Scene) -> PyTree:
    """Standard deviation of the honest messages in each coordinate, of the population (ddof 0).

    Example:
      >>> from fedjax_lite.attacks.byzantine import Scene
      >>> honest = jnp.array([True, True, False])
      >>> scene = Scene(jnp.array([[1.0], [3.0], [50.0]]), jnp.ones(3), honest, ~honest, None)
      >>> honest_std(scene).tolist()
      [1.0]
    """

    def std(rows: Array) -> Array:
        return jnp.sqrt(_mean((rows - _mean(rows, scene.honest)) ** 2, scene.honest))

    return map_blocks(std, scene.values)


def _mean(rows: Array, mask: Array) -> Array:
    return trees.sum_rows(jnp.where(mask[:, None], rows, 0)) / jnp.maximum(mask.sum(), 1)
