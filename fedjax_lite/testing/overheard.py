"""A wire on which somebody listens: every message as it was sent, and the key it was given."""

from __future__ import annotations

from collections import Counter
from typing import Any

import jax
import numpy as np

from fedjax_lite.types import Array, Key, PyTree, Transform


class Overheard:
    """A transform that changes nothing, and what went through it while compiled programs ran.

    Example:
      >>> ear = Overheard()
      >>> value = ear.transform.update(jax.random.key(3), (), jax.numpy.arange(2.0))[1]
      >>> ear.heard()
      >>> float(ear.bits), len(ear.keys)
      (64.0, 1)
    """

    def __init__(self) -> None:
        self.keys: list[bytes] = []
        self.messages: list[bytes] = []

    @property
    def transform(self) -> Transform:
        """To be put on a wire; it says no costs of its own, so all bits of a value are billed."""

        def update(key: Key, state: PyTree, value: Array) -> tuple[PyTree, Array]:
            jax.debug.callback(self._keep, jax.random.key_data(key), value)
            return state, value

        return Transform(lambda value: (), update)

    def heard(self) -> None:
        """Waits until all that was sent has arrived here."""
        jax.effects_barrier()

    def forget(self) -> None:
        """Begins anew."""
        self.heard()
        self.keys, self.messages = [], []

    @property
    def bits(self) -> int:
        """Of all messages."""
        return 8 * sum(map(len, self.messages))

    def differing(self, other: Counter[bytes]) -> int:
        """How many messages are not among others, each of those counted once."""
        return (Counter(self.messages) - other).total()

    def _keep(self, key: Any, value: Any) -> None:
        self.keys.append(np.asarray(key).tobytes())
        self.messages.append(np.asarray(value).tobytes())
