"""Many keys that come of one key, at the cost of one small loop.

A round needs about ten keys, each a chain of `jax.random.fold_in` and `split`. JAX compiles every
link as a loop of its own, which took half of the time in which a round compiled.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.extend.random import threefry2x32_p

from fedjax_lite.types import Array, Key

_THREEFRY = ("fry", "threefry2x32")


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
    if str(jax.random.key_impl(key)) not in _THREEFRY:
        return jnp.stack([_followed(key, path) for path in paths])
    lengths = np.array([len(path) for path in paths])
    goes_on = np.arange(lengths.max())[:, None] < lengths
    words = _words(paths, goes_on)
    data = jax.random.key_data(key)
    halves = jnp.broadcast_to(data[0], lengths.shape), jnp.broadcast_to(data[1], lengths.shape)

    def link(halves: tuple[Array, Array], at: tuple[Array, Array]) -> tuple[Any, None]:
        word, goes_on = at
        new = _threefry(*halves, word)
        return (jnp.where(goes_on, new[0], halves[0]), jnp.where(goes_on, new[1], halves[1])), None

    if len(words) == 1:
        halves = _threefry(*halves, words[0])
    else:
        halves, _ = jax.lax.scan(link, halves, (words, goes_on))
    return jax.random.wrap_key_data(jnp.stack(halves, -1), impl=jax.random.key_impl(key))


def word(key: Key) -> Array:
    """One random word, uint32, of each key: what `jax.random.bits` draws from the key before it.

    ``word(derive(key, [(0,), (1,)]))`` is ``bits(key, (2,), jnp.uint32)`` of a threefry key. The
    keys must not be used for anything else.
    """
    data = jax.random.key_data(key)  # the halves of an rbg key may be equal: all four would cancel
    return data[..., 0] ^ data[..., 1]


def _words(paths: Sequence[Sequence[Array | int]], goes_on: np.ndarray) -> Array:
    """The links of all paths, uint32 `[longest, T]`; each traced one is put in place once."""
    words, traced = np.zeros(goes_on.shape, np.uint32), {}
    for t, path in enumerate(paths):
        for i, link in enumerate(path):
            if isinstance(link, int):
                words[i, t] = link
            else:
                traced.setdefault(id(link), (link, np.zeros(goes_on.shape, bool)))[1][i, t] = True
    for link, places in traced.values():
        words = jnp.where(places, jnp.asarray(link).astype(jnp.uint32), words)
    return words


def _followed(key: Key, path: Sequence[Array | int]) -> Key:
    for link in path:
        key = jax.random.fold_in(key, link)
    return key


def _threefry(first: Array, second: Array, count: Array) -> tuple[Array, Array]:
    """Threefry of the counter ``(0, count)``, which is what `jax.random.fold_in` makes a key of."""
    zeros = (
        count ^ count
    )  # with the counter's batch axes, which the primitive wants of its key, too
    new = threefry2x32_p.bind(first ^ zeros, second ^ zeros, zeros, count)
    return new[0], new[1]
