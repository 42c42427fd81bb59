"""Data split by columns: parties that know other things about the same entities."""

from typing import TYPE_CHECKING

from fedjax_lite.checks.later import load_when_asked

if TYPE_CHECKING:
    from fedjax_lite.parties.alignment import Alignment, Matched, align
    from fedjax_lite.parties.columns import (
        ColumnDataset,
        cut_columns,
        from_columns,
        split_rows,
    )
    from fedjax_lite.parties.tables import from_tables

__all__ = [
    "Alignment",
    "ColumnDataset",
    "Matched",
    "align",
    "cut_columns",
    "from_columns",
    "from_tables",
    "split_rows",
]

load_when_asked(__name__)
