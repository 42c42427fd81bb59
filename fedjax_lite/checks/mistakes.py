"""Likely mistakes with data and states, found on the host: once, and never in a compiled round."""

from __future__ import annotations

import warnings
from typing import Any

import jax
import numpy as np

from fedjax_lite.checks.tried import tried

LARGE_CONSTANT = 8 * 2**20
"""Bytes from which an array inside a compiled program is reported as a mistake."""
_SAMPLE = 256


def check_pixels(leaf: np.ndarray, name: str) -> None:
    """Warns of floating images with values up to 255: nobody scaled them.

    Looks at the first rows only.

    Args:
      leaf: `[E, ...]`.
      name: of the leaf, for the message.

    Example:
      >>> check_pixels(np.full((4, 8, 8), 0.5), "['x']")
    """
    if not np.issubdtype(leaf.dtype, np.floating) or not _like_images(leaf.shape) or not leaf.size:
        return
    head = leaf[:_SAMPLE]
    low, high = float(head.min()), float(head.max())
    colours = leaf.ndim == 4 and leaf.shape[-1] in (1, 3) and high >= 200
    unscaled = low >= 0 and 100 <= high <= 255 and (colours or bool((head == np.floor(head)).all()))
    if unscaled:
        warnings.warn(
            f"examples{name} holds {leaf.dtype} images with values {low:.4g}..{high:.4g}: models "
            "take floats as they are and learn badly from such large ones; divide by 255, or pass "
            "uint8, which the models of this library divide themselves",
            stacklevel=3,
        )


def _like_images(shape: tuple[int, ...]) -> bool:
    if len(shape) != 2:
        return len(shape) > 2
    sides = {round((shape[1] / channels) ** 0.5) ** 2 * channels for channels in (1, 3)}
    return shape[1] >= 64 and shape[1] in sides


def check_descends(optimizer: Any, name: str) -> None:
    """Warns where the steps of an optimizer go up: its learning rate is negative, or lacks.

    A few steps are tried on two numbers, on the host; SAM's goes up first, and then down. One that
    depends on traced numbers, or cannot be tried so (it asks for a loss, for keys, for masks of
    another model), is passed over.

    Args:
      optimizer: with `init` and `update`.
      name: of the argument, for the message.

    Example:
      >>> import optax
      >>> check_descends(optax.sgd(0.1), "client_optimizer")
    """

    def steps(gradient: Any) -> Any:
        params = 0 * gradient
        state, updates = optimizer.init(params), []
        for _ in range(2):
            update, state = optimizer.update(gradient, state, params)
            params = params + update
            updates.append(update[0])
        return updates

    try:
        found, traced = tried(steps, np.ones(2, np.float32), stand_in=0.5, anyhow=False)
    except Exception:  # whatever a user's function raises, it raises where it is used
        return
    rate = -float(found[0])
    if max(-step for step in found) < 0 and not traced:
        warnings.warn(
            f"{name} has the learning rate {rate:.4g}, which climbs: the loss grows; give a "
            f"positive one, optax.sgd({-rate:.4g}), or end a chain with optax.scale(-rate); where "
            "ascent is meant, give a loss of the opposite sign",
            stacklevel=4,
        )


def check_not_donated(state: Any, name: str = "state") -> None:
    """Raises ValueError where the arrays of a state were donated to an earlier call.

    Looks at one array, without waiting for it.

    Example:
      >>> import jax.numpy as jnp
      >>> check_not_donated({"w": jnp.ones(2)})
    """
    leaf: Any = next(iter(jax.tree.leaves(state)), None)
    if isinstance(leaf, jax.Array) and not isinstance(leaf, jax.core.Tracer) and leaf.is_deleted():
        raise ValueError(
            f"{name} was donated to an earlier call (donate_argnums), which deleted its arrays; "
            "use the state that this call returned, state, metrics = step(key, state, data), or "
            "do not donate what you still need"
        )


def check_not_captured(state: Any, data: Any) -> None:
    """Warns where a round is traced with data that are no argument of the program around it.

    Args:
      state: of the round: a traced array tells that a program is being made.
      data: of the round: large concrete arrays then become constants of it.

    Example:
      >>> import jax.numpy as jnp
      >>> check_not_captured({"w": jnp.ones(2)}, {"x": jnp.ones(3)})
    """
    leaf = next(iter(jax.tree.leaves(state)), None)
    if not isinstance(leaf, jax.core.Tracer):
        return
    leaves = jax.tree.leaves(data)
    fixed = [x for x in leaves if not isinstance(x, jax.core.Tracer)]
    num_bytes = sum(getattr(x, "nbytes", 0) for x in fixed)
    if num_bytes >= LARGE_CONSTANT:
        shape = max((tuple(np.shape(x)) for x in fixed), key=np.prod)
        warnings.warn(
            "data are captured by the function around algo.round as constants "
            f"({num_bytes / 2**20:.0f} MiB, the largest {list(shape)}), which compiles slowly and "
            "keeps a second copy; make them an argument: "
            "jax.jit(lambda key, state, data: algo.round(key, state, data))",
            stacklevel=3,
        )
