"""Gradient leakage: what an update tells of the examples behind it."""

from typing import TYPE_CHECKING

from fedjax_lite.checks.later import load_when_asked

if TYPE_CHECKING:
    from fedjax_lite.attacks.leakage.cut import LabelLeakage, invert_smashed, label_leakage
    from fedjax_lite.attacks.leakage.inversion import Inversion, invert, total_variation
    from fedjax_lite.attacks.leakage.linear import infer_label, linear_input, linear_inputs
    from fedjax_lite.attacks.leakage.psnr import Matched, matched_psnr, psnr
    from fedjax_lite.attacks.leakage.simulate import (
        Simulation,
        gradient_of,
        local_steps,
        observe,
        where_sent,
    )

__all__ = [
    "Inversion",
    "LabelLeakage",
    "Matched",
    "Simulation",
    "gradient_of",
    "infer_label",
    "invert",
    "invert_smashed",
    "label_leakage",
    "linear_input",
    "linear_inputs",
    "local_steps",
    "matched_psnr",
    "observe",
    "psnr",
    "total_variation",
    "where_sent",
]

load_when_asked(__name__)
