"""A strategy in which one client has no steps: it takes part, has data, and does nothing."""

from __future__ import annotations

from typing import Any

import jax.numpy as jnp

from fedjax_lite.engine.program import Program, Strategy
from fedjax_lite.types import Key, PyTree


def idle(inner: Strategy, client: int) -> Strategy:
    """`inner`, except that a client does no step, whatever the plan says.

    Args:
      inner: how the cohort is executed.
      client: its id.

    Example:
      >>> from fedjax_lite.engine.lanes import sequential
      >>> idle(sequential(), 4).name
      'sequential(), client 4 idle'
    """

    def execute(
        program: Program, key: Key, table: PyTree, acc: PyTree, broadcast: PyTree, round: Any,
        data: Any, work: Any,
    ) -> Any:  # fmt: skip
        work = work._replace(num_steps=jnp.where(work.ids == client, 0, work.num_steps))
        return inner.execute(program, key, table, acc, broadcast, round, data, work)

    return Strategy(execute, f"{inner.name}, client {client} idle")
