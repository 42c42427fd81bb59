"""moved_inputs(): a loss that also trains on each input moved a little, against it or at random."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Literal

import jax
import jax.numpy as jnp


def moved_inputs(
    loss: Callable[..., jax.Array],
    step: Any,
    direction: Literal["gradient", "random"] = "gradient",
) -> Callable[..., jax.Array]:
    r"""Adds the loss of inputs moved along the sign of their gradient, or in random directions.

    .. math::  \ell(x) + \ell(x + \epsilon \odot s), \qquad
               s = \mathrm{sign} \nabla_x \ell(x) \text{ or signs of normal numbers}

    Both halves are one batch, so that batch statistics are of both.

    Args:
      loss: ``(params, examples, key) -> [B]`` of examples ``{"x": ..., "y": ...}``.
      step: `[...]` like one input, at most 0.01 of each one's range in the paper.
      direction: "gradient" (adversarial training) or "random", which needs a key.

    Returns:
      Such a loss.

    Reference: Goodfellow, Shlens, Szegedy, 2015, arXiv:1412.6572, as in Lakshminarayanan et al.,
    2017, arXiv:1612.01474.
    """

    def both(params: Any, examples: Any, key: Any) -> jax.Array:
        x, y = examples["x"], examples["y"]
        if direction == "gradient":
            slope = jax.grad(lambda x: loss(params, {"x": x, "y": y}, key).sum())(x)
        else:
            slope = jax.random.normal(jax.random.fold_in(key, 1), x.shape)
        moved = x + step * jax.lax.stop_gradient(jnp.sign(slope))
        twice = {"x": jnp.concatenate([x, moved]), "y": jnp.concatenate([y, y])}
        return loss(params, twice, key).reshape(2, -1).sum(0)

    return both
