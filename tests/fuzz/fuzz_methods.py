"""Valid values of the methods' own settings, by the name of the argument."""

from typing import Any

import jax

OF_METHODS: dict[str, Any] = {
    "figures": {"accuracy": [0.5, 1.0]},
    "alpha": 0.5,
    "beta": 0.5,
    "deviation": 0.5,
    "edge_rounds": 2,
    "edges": [0, 1, 0, 1, 0, 1],
    "is_frozen": lambda p: jax.tree.map(lambda leaf: leaf.ndim == 1, p),
    "is_head": lambda p: jax.tree.map(lambda leaf: leaf.ndim == 1, p),
    "is_local": lambda p: jax.tree.map(lambda leaf: leaf.ndim == 1, p),
    "learning_rate": 0.1,
    "mixing": 0.5,
    "mixing_rate": 0.1,
    "mixture_rate": 0.1,
    "mu": 0.1,
    "pull": 0.5,
    "q": 1.0,
    "rank": 1,
    "server_learning_rate": 1.0,
    "strength": 0.5,
    "tilt": 0.5,
}
