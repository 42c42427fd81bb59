"""Random numbers of any clients at once, each a function of seed, client and place alone."""

from __future__ import annotations

from typing import Any

import numpy as np

_STEP = np.uint64(0x9E3779B97F4A7C15)
_FIRST, _SECOND = np.uint64(0xBF58476D1CE4E5B9), np.uint64(0x94D049BB133111EB)


def keyed_words(seed: int, clients: Any, places: Any) -> np.ndarray:
    """Uniform 64-bit words, one for each pair of a client and a place.

    SplitMix64 at a counter: with its finaliser `f` and its odd step `g`,
    ``word = f(f(seed + client * g) + place * g)``. Nothing depends on which clients are asked for
    together, so a population that is read a few clients at a time has the words of the whole.

    Args:
      seed: any integer of at least 0.
      clients: integers `[n]`.
      places: integers `[n]`, or one for all.

    Returns:
      uint64 `[n]`.

    Example:
      >>> words = keyed_words(0, np.array([3, 5, 3]), np.array([1, 1, 2]))
      >>> bool(words[2] == keyed_words(0, np.array([3]), 2)[0]), len(set(words.tolist()))
      (True, 3)

    Reference: Steele, Lea, Flood, "Fast Splittable Pseudorandom Number Generators", 2014,
    OOPSLA.
    """
    start = np.random.SeedSequence(seed).generate_state(1, np.uint64)
    client = _mixed(start + np.asarray(clients).astype(np.uint64) * _STEP)
    return _mixed(client + np.atleast_1d(np.asarray(places)).astype(np.uint64) * _STEP)


def keyed_uniform(seed: int, clients: Any, places: Any) -> np.ndarray:
    """float64 in `[0, 1)`: the upper 53 bits of `keyed_words`.

    Example:
      >>> bool(0 <= keyed_uniform(0, np.array([3]), 0)[0] < 1)
      True
    """
    return (keyed_words(seed, clients, places) >> np.uint64(11)) * 2.0**-53


def _mixed(words: np.ndarray) -> np.ndarray:
    words = (words ^ (words >> np.uint64(30))) * _FIRST  # arrays wrap around silently
    words = (words ^ (words >> np.uint64(27))) * _SECOND
    return words ^ (words >> np.uint64(31))
