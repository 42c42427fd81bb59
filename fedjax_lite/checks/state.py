"""Likely mistakes with states and data as arguments, found on the host before a round is traced."""

from __future__ import annotations

import warnings
from typing import Any

import jax
import numpy as np

LARGE_CONSTANT = 8 * 2**20
"""Bytes from which an array inside a compiled program is reported as a mistake."""


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
            stacklevel=4,
        )
