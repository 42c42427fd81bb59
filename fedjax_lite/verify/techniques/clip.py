"""Clipping: one norm over the whole update."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from fedjax_lite.transforms.clip import clip
from fedjax_lite.verify.records import Check


def clipped(value: Any, max_norm: float) -> np.ndarray:
    """The clipped leaves, in one array."""
    value = [jnp.asarray(leaf, jnp.result_type(float)) for leaf in value]
    _, out = clip(max_norm).update(jax.random.key(0), (), value)
    return np.array([float(leaf) for leaf in out])


def checks() -> list[Check]:
    """``v min(1, S / |v|)``."""
    return [
        Check("leaves (3), (4) to norm 1", [0.6, 0.8], lambda: clipped([3, 4], 1.0)),
        Check("inside the ball", [0.3, 0.4], lambda: clipped([0.3, 0.4], 1.0), 0.0),
        Check("zero stays zero", [0.0, 0.0], lambda: clipped([0, 0], 1.0), 0.0),
        Check("idempotent", [0.6, 0.8], lambda: clipped(clipped([3, 4], 1.0), 1.0)),
        Check("S = infinity", [3.0, 4.0], lambda: clipped([3, 4], np.inf), 0.0),
        Check("NaN has no direction", [0.0, 0.0], lambda: clipped([np.nan, 4], 1.0), 0.0),
    ]
