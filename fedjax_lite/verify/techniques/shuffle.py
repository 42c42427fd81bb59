"""The keyed shuffle: a bijection of [0, n) for every n, and another one for every key."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np

from fedjax_lite.engine.shuffle import shuffle_index
from fedjax_lite.verify.records import Check

SIZES = np.concatenate([np.arange(1, 65), [100, 257, 1000, 4096]])


def distinct() -> np.ndarray:
    """How many of ``0 .. n-1`` are images, for each n."""
    width = int(SIZES.max())

    @jax.jit
    def images(key: jax.Array, size: jax.Array) -> jax.Array:
        return shuffle_index(key, jnp.arange(width, dtype=jnp.int32), size)

    counts = []
    for n in SIZES:
        image = np.asarray(images(jax.random.key(int(n)), n))[:n]
        counts.append(len(set(image.tolist()) & set(range(n))))
    return np.array(counts)


def average_place() -> float:
    """Where index 0 of 11 goes, on average over 20,000 keys."""
    keys = jax.random.split(jax.random.key(0), 20_000)
    place = jax.jit(jax.vmap(lambda key: shuffle_index(key, jnp.int32(0), 11)))(keys)
    return float(np.asarray(place).mean())


def checks() -> list[Check]:
    """Counted images; the mean place of a uniform one is 5, its deviation sqrt(10 / 20000)."""
    return [
        Check("images of [0, n), n = 1..64 and more", SIZES, distinct, 0.0),
        Check("mean place of 11, five deviations", 5.0, average_place, 5 * np.sqrt(10 / 20_000)),
    ]
