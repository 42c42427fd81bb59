"""What a slot demands of the population: asked when a state is made, and when a round is built."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from fedjax_lite.checks.arguments import shown

_NUM_CLIENTS: ContextVar[int | None] = ContextVar("num_clients", default=None)


@contextmanager
def in_population(num_clients: int | None) -> Iterator[None]:
    """Tells whatever is called inside how many clients there are.

    A message's weight or an aggregator deep inside others has no argument for it, and wrappers need
    not hand it on. Outside of a population nothing is checked, so that a rule may be looked at.

    Args:
      num_clients: `N`; None where it is not known, as of random buckets of clients.

    Example:
      >>> with in_population(6):
      ...     need_one_a_client(6, "edges")
      >>> need_one_a_client(5, "edges")
    """
    token = _NUM_CLIENTS.set(num_clients)
    try:
        yield
    finally:
        _NUM_CLIENTS.reset(token)


def known_population() -> int | None:
    """`N` inside of `in_population`, None outside.

    Example:
      >>> with in_population(6):
      ...     known_population()
      6
    """
    return _NUM_CLIENTS.get()


def integer_table(value: Any, name: str) -> np.ndarray:
    """Concrete integers `[N]`, one a client.

    Raises:
      TypeError: if they are something else, or none.

    Example:
      >>> integer_table([0, 1, 0], "edges").tolist()
      [0, 1, 0]
      >>> integer_table("ab", "edges")
      Traceback (most recent call last):
      ...
      TypeError: edges must be integers [N], got 'ab'; give one a client, e.g. [0, 0, 1]
    """
    is_key = isinstance(value, jax.Array) and jnp.issubdtype(value.dtype, jax.dtypes.prng_key)
    table = np.empty(0) if is_key else np.asarray(value)
    if table.ndim != 1 or not table.size or table.dtype.kind not in "iu":
        found = f"{value!r:.60}" if isinstance(value, list | tuple) else shown(value)
        raise TypeError(
            f"{name} must be integers [N], got {found}; give one a client, e.g. [0, 0, 1]"
        )
    return table


def need_one_a_client(length: int, name: str, remedy: str = "") -> None:
    """Raises where an array `[N]` does not have one entry a client of the population.

    Args:
      length: of the array.
      name: of the argument.
      remedy: what else to do.

    Raises:
      ValueError: if there is a population, and it has another number of clients.

    Example:
      >>> try:
      ...     with in_population(6):
      ...         need_one_a_client(3, "edges")
      ... except ValueError as error:
      ...     print(error)
      edges must be [N], one a client, got 3 for a population of 6; give 6
    """
    num_clients = _NUM_CLIENTS.get()
    if num_clients is not None and length != num_clients:
        raise ValueError(
            f"{name} must be [N], one a client, got {length} for a population of {num_clients}; "
            f"give {num_clients}{remedy}"
        )
