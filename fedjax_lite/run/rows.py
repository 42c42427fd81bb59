"""Rows of a run's history: what rounds report, what was sent so far, what an evaluation says."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from fedjax_lite.checks.arguments import shown
from fedjax_lite.hosts import distributed
from fedjax_lite.run.files import to_python
from fedjax_lite.run.history import Row
from fedjax_lite.types import RoundState

OWN = ("round", "seconds")
"""Columns of every row that are the run's own."""
_FORMULA = "=+-@"


def rows_of_call(metrics: Mapping[str, Any], done: int, length: int, seconds: float) -> list[Row]:
    """One row for each round of a call.

    Args:
      metrics: arrays `[capacity, ...]`; the first `length` entries count.
      done: rounds done before the call.
      length: rounds of the call.
      seconds: since the run began.

    Raises:
      ValueError: if a metric has the name of a column that every row has.

    Example:
      >>> rows_of_call({"train_loss": np.array([0.5, 0.25, 0.0])}, 10, 2, 1.5)[1]
      {'round': 12, 'train_loss': 0.25, 'seconds': 1.5}
    """
    clash = sorted(set(OWN) & set(metrics))
    if clash:
        raise ValueError(
            f"algo.round reports a metric named {clash[0]!r}, the run's own; rename it"
        )
    table = {name: np.asarray(value) for name, value in jax.device_get(dict(metrics)).items()}
    return [
        {"round": done + i + 1}
        | {name: to_python(value[i]) for name, value in table.items()}
        | {"seconds": seconds}
        for i in range(length)
    ]


def with_totals(rows: list[Row], last: Row) -> list[Row]:
    """The rows with the running totals of what was sent: ``uplink_bits_total`` and so on.

    Args:
      rows: of one call.
      last: the row before them, for the totals so far; empty where there is none.

    Example:
      >>> rows = [{"round": 2, "uplink_bits": 8.0, "seconds": 0.1}]
      >>> with_totals(rows, {"round": 1, "uplink_bits_total": 16.0})[0]["uplink_bits_total"]
      24.0
    """
    total = {name: value for name, value in last.items() if name.endswith("_bits_total")}
    counted = []
    for row in rows:
        for name in [name for name in row if name.endswith("_bits")]:
            total[f"{name}_total"] = total.get(f"{name}_total", 0.0) + row[name]
        counted.append(merge(row, total))
    return counted


def evaluation(evaluate: Callable[[RoundState], Any], state: RoundState) -> Row:
    """What `evaluate` says of a state, as plain numbers by name.

    Raises:
      TypeError: if it is no dict of numbers, or of arrays of them, by name.
      ValueError: if a name cannot be the head of a column.

    Example:
      >>> evaluation(lambda state: {"test_accuracy": np.float32(0.5)}, None)
      {'test_accuracy': 0.5}
    """
    result = evaluate(distributed.local(state))
    if not isinstance(result, Mapping):
        raise TypeError(
            f"evaluate must return a dict of numbers by name, got {shown(result)}; return "
            '{"test_accuracy": 0.5}'
        )
    return {_name(name): _number(name, value) for name, value in result.items()}


def merge(row: Row, more: Row) -> Row:
    """A row with more columns, ``seconds`` last.

    Raises:
      ValueError: if a column is in both.

    Example:
      >>> merge({"round": 1, "seconds": 0.5}, {"epsilon": 2.0})
      {'round': 1, 'epsilon': 2.0, 'seconds': 0.5}
    """
    clash = sorted(row.keys() & more.keys())
    if clash:
        raise ValueError(f"evaluate returned {clash}, which a round reports too; rename them")
    return {
        **{n: v for n, v in row.items() if n != "seconds"},
        **more,
        "seconds": row["seconds"],
    }


def _name(name: Any) -> str:
    if not isinstance(name, str):
        raise TypeError(f"evaluate must name its figures by strings, got the name {shown(name)}")
    if not name or not name.isprintable() or name[0] in _FORMULA:
        raise ValueError(
            f"evaluate returned the name {name!r}: a column's name is printable and does not begin "
            f"with any of {_FORMULA}, which spreadsheets take for a formula; rename it"
        )
    return str(name)


def _number(name: str, value: Any) -> Any:
    """The value as JSON keeps it; refused before it reaches a file."""
    if value is not None and not isinstance(value, str | bytes):
        try:
            array = np.asarray(value)
            if array.dtype.kind in "biuf" or jnp.issubdtype(array.dtype, jnp.floating):
                return to_python(array)
        except (TypeError, ValueError):  # ragged, or of a type without arrays
            pass
    raise TypeError(
        f"evaluate must return numbers or arrays of real numbers, got {shown(value)} under the "
        f"name {name!r}; leave it out, or make a number of it"
    )
