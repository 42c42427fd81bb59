"""ood_auroc(): whether uncertainty tells what a model was not trained for."""

from __future__ import annotations

from typing import Any

import numpy as np

from fedjax_lite.checks.arguments import shown


def ood_auroc(familiar: Any, unfamiliar: Any) -> float:
    r"""How often an unfamiliar example has a higher score than a familiar one.

    .. math::
        \mathrm{AUROC} = P(s_u > s_f) + \tfrac12 P(s_u = s_f)
        = \frac{R_u - n_u (n_u + 1) / 2}{n_u n_f}

    with the sum `R_u` of the ranks of the unfamiliar, ties at their mean rank. Scores are
    uncertainties: ``total`` or ``epistemic`` of `decompose`, or one minus the confidence.

    Args:
      familiar: `[n_f]`, scores of examples such as the model was trained on.
      unfamiliar: `[n_u]`, of others.

    Returns:
      0.5 for a score that tells nothing, 1 for one that tells all.

    Raises:
      ValueError: if one of them is empty or not one number an example, or a score is NaN.

    Example:
      >>> ood_auroc([0.1, 0.2, 0.3], [0.2, 0.9])
      0.75

    Reference: Hendrycks, Gimpel, "A Baseline for Detecting Misclassified and Out-of-Distribution
    Examples in Neural Networks", 2017, arXiv:1610.02136.
    """
    inside, outside = (np.asarray(v, np.float64) for v in (familiar, unfamiliar))
    for name, scores, given in (
        ("familiar", inside, familiar),
        ("unfamiliar", outside, unfamiliar),
    ):
        if scores.ndim != 1 or not scores.size or np.isnan(scores).any():
            raise ValueError(
                f"{name} must be scores [n], numbers one an example, got {shown(given)}; "
                "fl.uncertainty.decompose(probabilities).epistemic"
            )
    ordered = np.sort(inside)
    below = np.searchsorted(ordered, outside, "left")
    up_to = np.searchsorted(ordered, outside, "right")
    return float((below + up_to).mean() / 2 / len(inside))
