"""What the rest of a round asks of any data set: how large it is, and where a client lies in it."""

from __future__ import annotations

from typing import Any, NamedTuple, Protocol, runtime_checkable

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


class Found(NamedTuple):
    """Where the clients of a cohort lie in a data set and in the table beside it, leaves `[C]`."""

    members: Array
    rows: Array
    sizes: Array
