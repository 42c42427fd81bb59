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
    from fedjax_lite.parties.model import Joint, Part, VerticalModel, joint, vertical_model
    from fedjax_lite.parties.regression import regression
    from fedjax_lite.parties.tables import from_tables
    from fedjax_lite.parties.vertical import fedbcd, vertical_sgd

__all__ = [
    "Alignment",
    "ColumnDataset",
    "Joint",
    "Matched",
    "Part",
    "VerticalModel",
    "align",
    "cut_columns",
    "fedbcd",
    "from_columns",
    "from_tables",
    "joint",
    "regression",
    "split_rows",
    "vertical_model",
    "vertical_sgd",
]

load_when_asked(__name__)
