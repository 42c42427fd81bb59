"""Parties that hold columns of one table, or layers of one network: vertical and split learning."""

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
    from fedjax_lite.parties.cut import CutModel, cut_layers
    from fedjax_lite.parties.cut_flax import cut_linen, cut_nnx
    from fedjax_lite.parties.model import Joint, Part, VerticalModel, joint, vertical_model
    from fedjax_lite.parties.private_alignment import private_align
    from fedjax_lite.parties.protected import Protected, protected_gradients
    from fedjax_lite.parties.regression import regression
    from fedjax_lite.parties.split import split_learning, splitfed
    from fedjax_lite.parties.tables import from_tables
    from fedjax_lite.parties.vertical import fedbcd, vertical_sgd
    from fedjax_lite.parties.wiretap import Tapped, wiretap

__all__ = [
    "Alignment",
    "ColumnDataset",
    "CutModel",
    "Joint",
    "Matched",
    "Part",
    "Protected",
    "Tapped",
    "VerticalModel",
    "align",
    "cut_columns",
    "cut_layers",
    "cut_linen",
    "cut_nnx",
    "fedbcd",
    "from_columns",
    "from_tables",
    "joint",
    "private_align",
    "protected_gradients",
    "regression",
    "split_learning",
    "split_rows",
    "splitfed",
    "vertical_model",
    "vertical_sgd",
    "wiretap",
]

load_when_asked(__name__)
