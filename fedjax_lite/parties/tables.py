"""Columns from tables: pandas, Arrow, Parquet files, or plain dicts of columns."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from fedjax_lite.checks.arguments import as_path, shown
from fedjax_lite.parties.alignment import Alignment, Duplicates, align
from fedjax_lite.parties.columns import ColumnDataset, from_columns


def from_tables(
    tables: Mapping[str, Any],
    *,
    id_column: str,
    labels: Mapping[str, str | Sequence[str]],
    duplicates: Duplicates = "refuse",
) -> tuple[ColumnDataset, Alignment]:
    """A population of columns from one table a party, matched by an id column.

    Columns that are neither ids nor labels are the party's features, side by side in the table's
    order, as float32 (float64 where a column is and x64 is on).

    Args:
      tables: by party: a pandas ``DataFrame``, a pyarrow ``Table``, the path of a Parquet file, or
        a dict of columns `[n_p]`.
      id_column: name of the column of ids, the same in all tables.
      labels: by the party that holds them: the name of a column, or of several, which then are a
        dict (``("time", "event")``).
      duplicates: see `align`.

    Returns:
      The data, and the `Alignment` that tells what was matched and what missed.

    Raises:
      TypeError: if something is no table, or a feature is not numbers.
      ValueError: if a column is not there or holds a missing value; see `align` for ids.

    Example:
      >>> clinic = {"id": ["ann", "bob"], "age": [50.0, 60.0], "ill": [0, 1]}
      >>> lab = {"id": ["bob", "ann", "joe"], "iron": [1.5, 2.5, 3.5]}
      >>> data, found = from_tables({"clinic": clinic, "lab": lab}, id_column="id",
      ...                           labels={"clinic": "ill"})
      >>> data.features["lab"].tolist(), found.report["lab"].unmatched
      ([[2.5], [1.5]], ('joe',))
    """
    if not isinstance(tables, Mapping) or len(tables) < 2:
        raise TypeError(
            f"tables must be one for each of two or more parties, got {shown(tables)}; "
            '{"clinic": frame, "lab": "lab.parquet"}'
        )
    columns = {party: _columns(table, f"tables[{party!r}]") for party, table in tables.items()}
    unknown = sorted(set(labels) - set(columns))
    if unknown:
        raise ValueError(f"labels must be of {sorted(columns)}, got {unknown}; name the party")
    ids, features, held = {}, {}, {}
    for party, table in columns.items():
        name = f"tables[{party!r}]"
        wanted = labels.get(party, ())
        wanted = (wanted,) if isinstance(wanted, str) else tuple(wanted)
        for column in (id_column, *wanted):
            if column not in table:
                raise ValueError(f"{name} must have the column {column!r}, got {list(table)}")
        ids[party] = table[id_column]
        rest = [column for column in table if column not in (id_column, *wanted)]
        if rest:
            arrays = [_numbers(table[column], f"{name}[{column!r}]") for column in rest]
            wide = np.result_type(np.float32, *(a for a in arrays if a.dtype.kind == "f"))
            features[party] = np.stack([a.astype(wide) for a in arrays], axis=1)
        found = {column: _numbers(table[column], f"{name}[{column!r}]") for column in wanted}
        if found:
            held[party] = found[wanted[0]] if isinstance(labels[party], str) else found
    alignment = align(ids, duplicates=duplicates)
    return from_columns(features, held, alignment=alignment), alignment


def _columns(table: Any, name: str) -> dict[str, Any]:
    """The columns of a table by name, whatever holds them."""
    if isinstance(table, str | os.PathLike):
        import pyarrow.parquet

        table = pyarrow.parquet.read_table(as_path(table, name))
    if hasattr(table, "column_names"):  # pyarrow
        return {column: table.column(column).to_numpy() for column in table.column_names}
    if isinstance(table, Mapping) or hasattr(table, "columns"):  # pandas and its kin
        names = list(table) if isinstance(table, Mapping) else list(table.columns)
        return {str(column): table[column] for column in names}
    raise TypeError(
        f"{name} must be a table with named columns, got {shown(table)}; a pandas DataFrame, a "
        "pyarrow Table, the path of a Parquet file or a dict of columns"
    )


def _numbers(column: Any, name: str) -> np.ndarray:
    array = np.asarray(column)
    if array.dtype.kind not in "biuf" or array.ndim != 1:
        raise TypeError(
            f"{name} must be a column of numbers, got {array.dtype}{list(array.shape)}; encode "
            "words as numbers, one column for each level"
        )
    if array.dtype.kind == "f" and not np.isfinite(array).all():
        row = int(np.argmax(~np.isfinite(array)))
        raise ValueError(
            f"{name} must hold no missing value, got {array[row]} in row {row}; fill it in, or "
            "drop the row"
        )
    return array
