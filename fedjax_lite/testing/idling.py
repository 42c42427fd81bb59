"""A strategy in which one client has no steps: it takes part, has data, and does nothing."""

from __future__ import annotations

from typing import Any

from fedjax_lite.engine.program import Job, Strategy, Table
from fedjax_lite.types import PyTree


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

    def execute(job: Job, table: Table, acc: PyTree) -> tuple[Table, PyTree, dict[str, Any]]:
        work = job.work.only(job.work.ids != client)
        return inner.execute(job._replace(work=work), table, acc)

    return Strategy(execute, f"{inner.name}, client {client} idle")
