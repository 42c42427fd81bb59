"""frechet_distance(): the distance of two samples, as far as mean and covariance tell."""

from __future__ import annotations

from typing import Any

import numpy as np

from fedjax_lite.checks.arguments import shown


def frechet_distance(real: Any, made: Any) -> float:
    r"""The squared Wasserstein distance of normal distributions fitted to two samples.

    .. math::
        \lVert \mu_r - \mu_m \rVert^2 +
        \mathrm{tr}(\Sigma_r + \Sigma_m - 2 (\Sigma_r^{1/2} \Sigma_m \Sigma_r^{1/2})^{1/2})

    Samples are features of a network, such as logits or hidden units of a classifier that was
    trained on the same kind of data: figures of two classifiers cannot be compared. It is biased
    upwards for few examples; compare samples of one size.

    Args:
      real: `[n, D]`, features of real examples, `n` at least 2.
      made: `[m, D]`, of generated ones.

    Returns:
      At least 0, in units of features squared; in float64.

    Raises:
      ValueError: if they are not matrices of one width, of two rows or more, and finite.

    Example:
      >>> frechet_distance([[0.0], [2.0]], [[3.0], [5.0]])  # the same shape, 3 apart
      9.0

    Reference: Heusel, Ramsauer, Unterthiner, Nessler, Hochreiter, "GANs Trained by a Two
    Time-Scale Update Rule Converge to a Local Nash Equilibrium", 2017, arXiv:1706.08500.
    """
    real, made = features(real, "real"), features(made, "made")
    if real.shape[1] != made.shape[1]:
        raise ValueError(
            f"made must have the {real.shape[1]} features of real, got {made.shape[1]}; "
            "take features of one classifier"
        )
    means = real.mean(0), made.mean(0)
    left, right = (np.atleast_2d(np.cov(sample.T)) for sample in (real, made))
    values, vectors = np.linalg.eigh(left)
    root = (vectors * np.sqrt(np.maximum(values, 0))) @ vectors.T
    crossed = np.linalg.eigvalsh(root @ right @ root)
    overlap = np.sqrt(np.maximum(crossed, 0)).sum()
    apart = ((means[0] - means[1]) ** 2).sum()
    return float(max(apart + np.trace(left) + np.trace(right) - 2 * overlap, 0.0))


def features(sample: Any, name: str) -> np.ndarray:
    """A sample `[n, D]` in float64.

    Raises:
      ValueError: if it is no matrix of two rows or more, or not finite.

    Example:
      >>> features([[1, 2], [3, 4]], "real").shape
      (2, 2)
    """
    found = np.asarray(sample)
    if found.ndim != 2 or found.shape[0] < 2 or found.dtype.kind not in "iuf" or not found.size:
        raise ValueError(
            f"{name} must be features [n, D] of two examples or more, got {shown(sample)}; "
            "np.asarray(model.predict(params, examples)) are some"
        )
    if not np.isfinite(found).all():
        raise ValueError(f"{name} must be finite, got {shown(sample)}; did the generator diverge?")
    return found.astype(np.float64)
