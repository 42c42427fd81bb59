"""Many keys that come of one key, at the cost of one small loop.

A round needs about ten keys, each a chain of `jax.random.fold_in` and `split`. JAX compiles every
link as a loop of its own, which took half of the time in which a round compiled.
"""

from __future__ import annotations

from collections.abc import Sequence

import jax
import jax.numpy as jnp
import numpy as np
from jax.extend.random import threefry2x32_p

from fedjax_lite.types import Array, Key

_THREEFRY = "fry"
_PARITY = np.uint32(0x1BD11BDA)
_ROTATIONS = ((13, 15, 26, 6), (17, 29, 16, 24))


def derive(key: Key, paths: Sequence[Sequence[Array | int]]) -> Key:
    """The keys ``fold_in(...fold_in(fold_in(key, path[0]), path[1])...)``, one for each path.

    Of threefry keys, which are the default, ``derive(key, [(0,), (1,)])`` is ``split(key)``, too.

    Args:
      key: typed key `[]`.
      paths: T paths of integers, traced or not, of any lengths from 1 on.

    Returns:
      Keys `[T]`.

    Example:
      >>> key = jax.random.key(0)
      >>> one, two = derive(key, [(3,), (3, 5)])
      >>> bool(two == jax.random.fold_in(jax.random.fold_in(key, 3), 5))
      True

    Reference: Salmon, Moraes, Dror, Shaw, "Parallel random numbers: as easy as 1, 2, 3", 2011.
    """
    if str(jax.random.key_impl(key)) not in (_THREEFRY, "threefry2x32"):
        return jnp.stack([_followed(key, path) for path in paths])
    longest = max(map(len, paths))
    lengths = np.array([len(path) for path in paths])
    padded = [[*path, *(0,) * (longest - len(path))] for path in paths]
    words = jnp.stack(
        [
            jnp.stack([jnp.asarray(word).astype(jnp.uint32) for word in link])
            for link in zip(*padded)
        ]
    )
    first, second = jax.random.key_data(key)

    def link(i: Array | int, halves: tuple[Array, Array]) -> tuple[Array, Array]:
        new = _threefry(*halves, words[i])
        if (lengths == longest).all():
            return new
        goes_on = i < lengths
        return jnp.where(goes_on, new[0], halves[0]), jnp.where(goes_on, new[1], halves[1])

    halves = jnp.broadcast_to(first, lengths.shape), jnp.broadcast_to(second, lengths.shape)
    halves = link(0, halves) if longest == 1 else jax.lax.fori_loop(0, longest, link, halves)
    return jax.random.wrap_key_data(jnp.stack(halves, -1), impl=jax.random.key_impl(key))


def word(key: Key) -> Array:
    """One random word, uint32, of each key: what `jax.random.bits` draws from the key before it.

    ``word(derive(key, [(0,), (1,)]))`` is ``bits(key, (2,), jnp.uint32)`` of a threefry key. The
    keys must not be used for anything else.
    """
    halves = jax.random.key_data(key)
    return jax.lax.reduce(halves, np.uint32(0), jax.lax.bitwise_xor, (halves.ndim - 1,))


def _words(link: Sequence[Array | int]) -> Array:
    return jnp.stack([jnp.asarray(word).astype(jnp.uint32) for word in link])


def _followed(key: Key, path: Sequence[Array | int]) -> Key:
    for link in path:
        key = jax.random.fold_in(key, link)
    return key


def _threefry(first: Array, second: Array, count: Array) -> tuple[Array, Array]:
    return tuple(threefry2x32_p.bind(first, second, jnp.zeros_like(count), count))
