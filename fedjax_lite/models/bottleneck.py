"""Bottleneck adapters: a small two-layer detour beside a layer's output."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp

from fedjax_lite.checks.arguments import check_count, shown
from fedjax_lite.types import Array, Key, Params


def init_bottleneck(key: Key, width: int, size: int) -> Params:
    """Parameters of a `bottleneck`; what leaves it is zero, so that nothing changes yet.

    Args:
      key: consumed.
      width: of the activations, `D`.
      size: of the detour, `M`, as a rule far smaller.

    Returns:
      ``{"down": {"kernel": [D, M], "bias": [M]}, "up": {"kernel": [M, D], "bias": [D]}}``,
      ``2 D M + D + M`` numbers.

    Raises:
      ValueError: if a size is below 1.

    Example:
      >>> sum(leaf.size for leaf in jax.tree.leaves(init_bottleneck(jax.random.key(0), 8, 2)))
      42

    Reference: Houlsby et al., "Parameter-Efficient Transfer Learning for NLP", 2019,
    arXiv:1902.00751.
    """
    check_count(width, "width", minimum=1)
    check_count(size, "size", minimum=1)
    down = jax.random.normal(key, (width, size)) / width**0.5
    return {
        "down": {"kernel": down, "bias": jnp.zeros(size)},
        "up": {"kernel": jnp.zeros((size, width)), "bias": jnp.zeros(width)},
    }


def bottleneck(params: Params, x: Array) -> Array:
    r"""An adapter with its skip connection, to be put behind a layer, before the residual sum.

    .. math::  x + \mathrm{gelu}(x W_\downarrow + b_\downarrow)\, W_\uparrow + b_\uparrow

    To train the adapters alone, in models of any kind, give their parameters a name of their own
    and hold the rest with `frozen_leaves`.

    Args:
      params: of `init_bottleneck`.
      x: `[..., D]`.

    Returns:
      `[..., D]`; `x` itself before training.

    Example:
      >>> params = init_bottleneck(jax.random.key(0), 3, 1)
      >>> bottleneck(params, jnp.array([[1.0, 2.0, 3.0]])).tolist()
      [[1.0, 2.0, 3.0]]

    Reference: Houlsby et al., "Parameter-Efficient Transfer Learning for NLP", 2019,
    arXiv:1902.00751.
    """
    shapes = {name: jnp.shape(leaf) for name, leaf in _kernels(params).items()}
    size = jnp.shape(x)[-1:]
    if size != shapes["down"][:1] or shapes["up"] != shapes["down"][::-1]:
        raise ValueError(
            f"x must be activations [..., D] for kernels down [D, M] and up [M, D], got "
            f"{shown(x)} for {shapes}; init_bottleneck(key, width=D, size=M)"
        )
    hidden = jax.nn.gelu(x @ params["down"]["kernel"] + params["down"]["bias"])
    return x + hidden @ params["up"]["kernel"] + params["up"]["bias"]


def _kernels(params: Any) -> dict[str, Any]:
    try:
        return {name: params[name]["kernel"] for name in ("down", "up")}
    except (TypeError, KeyError, IndexError):
        raise TypeError(
            f"params must be those of a bottleneck, got {shown(params)}; "
            "init_bottleneck(key, width, size)"
        ) from None
