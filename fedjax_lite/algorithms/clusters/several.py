"""several_models(): where a federation of several models starts."""

from __future__ import annotations

from collections.abc import Callable

import jax
import jax.numpy as jnp

from fedjax_lite.checks.arguments import check_count, check_key
from fedjax_lite.types import Key, Params


def several_models(init: Callable[[Key], Params], key: Key, num_models: int) -> Params:
    r"""`K` models, each drawn by a key of its own: :math:`x_k = \mathrm{init}(\mathrm{key}_k)`.

    Clusters can only be told apart by models that differ, so they start from different ones. An
    `init` that draws nothing, as that of `fedjax_lite.models.linear`, which is zero, gives `K`
    times the same.

    Args:
      init: ``(key) -> params``, such as ``model.init``.
      key: a typed key.
      num_models: `K`, at least 1.

    Returns:
      The models side by side, leaves `[K, ...]`.

    Raises:
      TypeError: if `init` is no function or the key is not typed.
      ValueError: if `num_models` is below 1.

    Example:
      >>> models = several_models(lambda key: {"w": jax.random.normal(key, (3,))},
      ...                         jax.random.key(0), 2)
      >>> models["w"].shape, bool((models["w"][0] == models["w"][1]).any())
      ((2, 3), False)
    """
    check_key(key)
    check_count(num_models, "num_models", minimum=1)
    models = [init(one) for one in jax.random.split(key, num_models)]
    return jax.tree.map(lambda *leaves: jnp.stack(leaves), *models)


def check_several(params: Params, num_models: int, name: str = "num_clusters") -> None:
    """Raises ValueError where parameters are not `K` models side by side.

    Args:
      params: leaves `[K, ...]`.
      num_models: `K`.
      name: what the method calls it.

    Example:
      >>> check_several({"w": jnp.zeros((2, 3)), "b": jnp.zeros(2)}, 2)
    """
    for path, leaf in jax.tree_util.tree_leaves_with_path(params):
        shape = list(jnp.shape(leaf))
        if shape[:1] != [num_models]:
            raise ValueError(
                f"params must hold {name}={num_models} models, leaves [{num_models}, "
                f"...], got shape {shape} for params{jax.tree_util.keystr(path)}; give "
                f"fl.several_models(model.init, key, {num_models})"
            )


def one_of_several(models: Params, which: jax.Array) -> Params:
    """The model of one cluster, out of leaves `[K, ...]`.

    Example:
      >>> float(one_of_several({"w": jnp.array([3.0, 5.0])}, jnp.int32(1))["w"])
      5.0
    """
    return jax.tree.map(lambda leaf: leaf[which], models)
