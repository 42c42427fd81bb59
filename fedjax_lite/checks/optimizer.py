"""Does an optimizer go down? Tried on the host: once, and never in a compiled round."""

from __future__ import annotations

import warnings
from typing import Any

import numpy as np

from fedjax_lite.checks.tried import tried


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
