"""The uncertainty of an ensemble in two parts: of the data, and of what is not known."""

from __future__ import annotations

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from fedjax_lite.checks.arguments import check_finite, check_non_negative, shown
from fedjax_lite.types import Array


class Uncertainty(NamedTuple):
    """Of each answer, `[...]`: nats of classes, variances of regressions."""

    total: Array
    aleatoric: Array
    """Noise of the data, which more data do not take away."""
    epistemic: Array
    """What members disagree on, which more data would settle."""


def decompose(probabilities: Any) -> Uncertainty:
    r"""The entropy of an ensemble's answer, and how much of it is disagreement.

    .. math::
        \underbrace{H\Big(\tfrac1M \sum_m p_m\Big)}_{\text{total}} =
        \underbrace{\tfrac1M \sum_m H(p_m)}_{\text{aleatoric}} +
        \underbrace{I}_{\text{epistemic}}, \qquad H(p) = -\sum_k p_k \ln p_k

    The epistemic part is the mutual information of answer and member: 0 where members agree, at
    most ``ln M``.

    Args:
      probabilities: `[M, ..., K]`, of each member, summing to 1 over the last axis.

    Returns:
      `Uncertainty`, in nats, leaves `[...]`.

    Raises:
      ValueError: if they have fewer than two axes, or no distribution is in the last one.

    Example:
      >>> parts = decompose([[0.9, 0.1], [0.5, 0.5]])
      >>> [round(float(part), 4) for part in parts]
      [0.6109, 0.5091, 0.1017]

    Reference: Lakshminarayanan, Pritzel, Blundell, "Simple and Scalable Predictive Uncertainty
    Estimation using Deep Ensembles", 2017, arXiv:1612.01474.
    """
    given = probabilities if isinstance(probabilities, jax.Array) else np.asarray(probabilities)
    if given.ndim < 2 or not given.size or given.dtype.kind not in "iufV":
        raise ValueError(
            f"probabilities must be [M, ..., K], a member a row, got {shown(probabilities)}; "
            "fl.uncertainty.member_probabilities makes them"
        )
    if not isinstance(given, jax.core.Tracer):
        sums = np.asarray(given, np.float64).sum(-1)
        if np.asarray(given).min() < 0 or not np.allclose(sums, 1, atol=1e-2):
            raise ValueError(
                "probabilities must not be negative and sum to 1 over the last axis, got a sum of "
                f"{shown(sums.reshape(-1)[np.argmax(np.abs(sums.reshape(-1) - 1))])}; give "
                "jax.nn.softmax(logits)"
            )
    return _decompose(jnp.asarray(given, jnp.result_type(float)))


@jax.jit
def _decompose(p: Array) -> Uncertainty:
    total, aleatoric = _entropy(p.mean(0)), _entropy(p).mean(0)
    return Uncertainty(total, aleatoric, jnp.maximum(total - aleatoric, 0))


def _entropy(p: Array) -> Array:
    """Over the last axis, with 0 ln 0 = 0."""
    return -jnp.where(p > 0, p * jnp.log(jnp.where(p > 0, p, 1)), 0).sum(-1)


def decompose_regression(means: Any, variances: Any) -> Uncertainty:
    r"""The variance of an ensemble's answer, a mixture of its members' distributions.

    .. math::
        \underbrace{\tfrac1M \sum_m \sigma_m^2}_{\text{aleatoric}} +
        \underbrace{\tfrac1M \sum_m (\mu_m - \bar\mu)^2}_{\text{epistemic}}

    Args:
      means: `[M, ...]`, of each member, in the units of the target.
      variances: `[M, ...]`, at least 0, in its units squared.

    Returns:
      `Uncertainty`, variances `[...]`.

    Raises:
      ValueError: if shapes differ, a value is not finite, or a variance is negative.

    Example:
      >>> [float(part) for part in decompose_regression([1.0, 3.0], [0.5, 1.5])]
      [2.0, 1.0, 1.0]

    Reference: Lakshminarayanan, Pritzel, Blundell, 2017, arXiv:1612.01474.
    """
    if np.shape(means) != np.shape(variances) or not np.ndim(means):
        raise ValueError(
            f"means and variances must both be [M, ...], got {shown(means)} and "
            f"{shown(variances)} of shapes {np.shape(means)} and {np.shape(variances)}; "
            "give one of each a member"
        )
    means, variances = (jnp.asarray(v, jnp.result_type(float)) for v in (means, variances))
    check_finite(means, "means")
    check_finite(variances, "variances")
    check_non_negative(variances, "variances")
    return Uncertainty(means.var(0) + variances.mean(0), variances.mean(0), means.var(0))
