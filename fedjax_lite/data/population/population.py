"""What the rest of a round asks of any data set: how large it is, and where a client lies in it."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple, Protocol, runtime_checkable

import jax.numpy as jnp

from fedjax_lite.types import Array


@runtime_checkable
class SizedPopulation(Protocol):
    """What an algorithm's `init` must know of the clients; their data may lie elsewhere."""

    @property
    def num_clients(self) -> int:
        """`N`."""
        ...

    @property
    def num_rows(self) -> int:
        """Rows of the table of client state to make."""
        ...

    @property
    def sizes(self) -> Any:
        """int32 `[N]`, examples per client."""
        ...


class Population(NamedTuple):
    """What a server is told of all clients when it starts.

    Example:
      >>> Population.of([3, 0, 5]).num_clients
      3
    """

    num_clients: int
    """`N`, those without data included."""
    count: Callable[[], Array]
    """``() -> sizes``; it may read all labels, so only who asks pays."""

    @property
    def sizes(self) -> Array:
        """int32 `[N]`: the examples that count of every client (see `ClientUpdate.counts`)."""
        return self.count()

    @classmethod
    def of(cls, sizes: Any) -> Population:
        """A population of clients of these sizes `[N]`."""
        return cls(len(sizes), lambda: jnp.asarray(sizes, jnp.int32))


class Found(NamedTuple):
    """Where the clients of a cohort lie in a data set and in the table beside it, leaves `[C]`."""

    members: Array
    rows: Array
    sizes: Array
