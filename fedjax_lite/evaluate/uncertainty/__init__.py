"""How sure a model, or an ensemble of models, is, and whether it is right to be so."""

from typing import TYPE_CHECKING

from fedjax_lite.checks.later import load_when_asked

if TYPE_CHECKING:
    from fedjax_lite.evaluate.uncertainty.client_members import client_members
    from fedjax_lite.evaluate.uncertainty.decomposition import (
        Uncertainty,
        decompose,
        decompose_regression,
    )
    from fedjax_lite.evaluate.uncertainty.ensemble_scores import ensemble_scores
    from fedjax_lite.evaluate.uncertainty.member_probabilities import member_probabilities
    from fedjax_lite.evaluate.uncertainty.reliability import Reliability, reliability
    from fedjax_lite.evaluate.uncertainty.temperature import fit_temperature
    from fedjax_lite.evaluate.uncertainty.unfamiliar import ood_auroc

__all__ = [
    "Reliability",
    "Uncertainty",
    "client_members",
    "decompose",
    "decompose_regression",
    "ensemble_scores",
    "fit_temperature",
    "member_probabilities",
    "ood_auroc",
    "reliability",
]

load_when_asked(__name__)
