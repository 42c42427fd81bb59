"""Averages that respect permutations: hidden units have no names, so they are matched first."""

from typing import TYPE_CHECKING

from fedjax_lite.checks.later import load_when_asked

if TYPE_CHECKING:
    from fedjax_lite.aggregation.matching.assignment import assignment
    from fedjax_lite.aggregation.matching.atoms import Atoms, pfnm_atoms
    from fedjax_lite.aggregation.matching.hidden_units import Layer, hidden_layers, reorder
    from fedjax_lite.aggregation.matching.matched_average import align, matched_average
    from fedjax_lite.aggregation.matching.pfnm import pfnm

__all__ = [
    "Atoms",
    "Layer",
    "align",
    "assignment",
    "hidden_layers",
    "matched_average",
    "pfnm",
    "pfnm_atoms",
    "reorder",
]

load_when_asked(__name__)
