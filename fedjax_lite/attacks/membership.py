"""Membership inference: was this example trained on? Attacks, their AUC, and what DP allows."""

from __future__ import annotations

import math
from collections.abc import Sequence
from statistics import NormalDist
from typing import NamedTuple

import jax
import numpy as np

from fedjax_lite.checks.about import about
from fedjax_lite.checks.arguments import check_count, check_fraction, check_non_negative
from fedjax_lite.checks.calls import check_calls
from fedjax_lite.data.population.counting import counted
from fedjax_lite.round.local import LossFn, check_loss
from fedjax_lite.types import Params, PyTree

Scores = Sequence[float] | np.ndarray


class MembershipReport(NamedTuple):
    """How well an attack tells members from others."""

    auc: float
    """P[member scores higher], ties half; 1/2 is chance."""
    auc_low: float
    auc_high: float
    """Ends of DeLong's interval."""
    advantage: float
    """max(TPR - FPR) over all thresholds."""
    threshold: float
    """Scores from here on are called members, where the advantage is largest."""
    tpr_at_fpr: dict[float, float]
    """The largest TPR with at most that FPR: what an attack proves that must not err."""
    num_members: int
    num_non_members: int


def membership_report(
    members: Scores,
    non_members: Scores,
    *,
    confidence: float = 0.95,
    fprs: Sequence[float] = (0.1, 0.01, 0.001),
) -> MembershipReport:
    r"""AUC with its interval, advantage, and TPR at low FPR, from an attack's scores.

    The interval is DeLong's, from how far the placements of members among others vary.

    Args:
      members: scores `[m]`, two or more; higher means more likely a member (minus the loss).
      non_members: scores `[n]`, two or more.
      confidence: of the interval, in `(0, 1)`.
      fprs: false positive rates to report.

    Returns:
      A `MembershipReport`.

    Raises:
      ValueError: if scores are not finite or too few, or a rate is out of range.

    Example:
      >>> report = membership_report([-0.1, -0.2, -0.4], [-0.3, -0.5, -0.6])
      >>> round(report.auc, 6), round(report.advantage, 6)
      (0.888889, 0.666667)

    Reference: DeLong, DeLong, Clarke-Pearson, "Comparing the Areas under Two or More Correlated
    Receiver Operating Characteristic Curves", 1988; Carlini et al., "Membership Inference Attacks
    From First Principles", 2021, arXiv:2112.03570.
    """
    inside, outside = _scores(members, "members"), _scores(non_members, "non_members")
    if not 0 < confidence < 1:
        raise ValueError(f"confidence must lie between 0 and 1, got {confidence}")
    # How many of the others a member beats, and the reverse, ties half.
    beaten = _placements(inside, outside)
    beating = 1 - _placements(outside, inside)
    auc = float(beaten.mean())
    deviation = math.sqrt(beaten.var(ddof=1) / len(inside) + beating.var(ddof=1) / len(outside))
    width = NormalDist().inv_cdf(0.5 + confidence / 2) * deviation
    thresholds = np.append(np.unique(np.concatenate([inside, outside])), math.inf)
    tpr = 1 - np.searchsorted(np.sort(inside), thresholds, side="left") / len(inside)
    fpr = 1 - np.searchsorted(np.sort(outside), thresholds, side="left") / len(outside)
    best = int(np.argmax(tpr - fpr))
    at = {}
    for rate in fprs:
        check_fraction(rate, "fprs")
        at[float(rate)] = float(tpr[fpr <= rate + 1e-12].max())
    return MembershipReport(
        auc=auc,
        auc_low=max(auc - width, 0.0),
        auc_high=min(auc + width, 1.0),
        advantage=float(tpr[best] - fpr[best]),
        threshold=float(thresholds[best]),
        tpr_at_fpr=at,
        num_members=len(inside),
        num_non_members=len(outside),
    )


def membership_inference(
    loss: LossFn,
    params: Params,
    *,
    members: PyTree,
    non_members: PyTree,
    references: Sequence[Params] | None = None,
    confidence: float = 0.95,
    batch_size: int = 1000,
) -> MembershipReport:
    """Attacks a trained model: members have a smaller loss than others.

    Examples that do not count in the loss (`fedjax_lite.models.with_counts`) are left out.
    Without references the score is minus the loss (Yeom et al.). With models that were trained on
    *other* data it is calibrated per example: how unlikely so high a confidence is among them
    (LiRA, offline), which tells an easy example from a memorised one.

    Args:
      loss: ``(params, examples, key) -> [B]``, a cross-entropy where references are given; it is
        given the key None: no dropout.
      params: the model under attack.
      members: examples it was trained on, leaves `[m, ...]`.
      non_members: examples it was not, of the same distribution, leaves `[n, ...]`.
      references: two models or more, trained without either set (or at random).
      confidence: of the AUC's interval.
      batch_size: examples evaluated at once.

    Returns:
      A `MembershipReport`.

    Raises:
      ValueError: if losses are not finite, there are too few examples or references.

    Example:
      >>> import jax.numpy as jnp
      >>> loss = lambda w, e, key: (e["x"] - w) ** 2
      >>> report = membership_inference(loss, jnp.array(1.0),
      ...     members={"x": jnp.array([0.9, 1.1])}, non_members={"x": jnp.array([0.0, 3.0])})
      >>> report.auc
      1.0

    Reference: Yeom, Giacomelli, Fredrikson, Jha, "Privacy Risk in Machine Learning: Analyzing the
    Connection to Overfitting", 2018, arXiv:1709.01604; Carlini et al., 2021, arXiv:2112.03570.
    """
    check_loss(loss)
    check_count(batch_size, "batch_size", minimum=1)
    if references is not None and len(references) < 2:
        raise ValueError(f"references must be two models or more, got {len(references)}")
    batch = jax.jit(lambda params, examples: loss(params, examples, None))  # type: ignore[arg-type]

    def losses(model: Params, examples: PyTree) -> np.ndarray:
        total = np.shape(jax.tree.leaves(examples)[0])[0]
        parts = [
            batch(model, jax.tree.map(lambda leaf: leaf[i : i + batch_size], examples))  # noqa: B023
            for i in range(0, total, batch_size)
        ]
        kept = np.asarray(counted(loss, examples))  # the 0 of a row without a label is no loss
        return np.concatenate([np.asarray(part, np.float64) for part in parts])[kept]

    def scores(examples: PyTree, name: str) -> np.ndarray:
        with about(name, examples, word="examples"):
            mine = losses(params, examples)
            if references is None:
                return -mine
            with about("references", references, word="params"):
                others = np.stack([losses(model, examples) for model in references])
            return offline_lira(mine, others)

    inside, outside = scores(members, "members"), scores(non_members, "non_members")
    return membership_report(inside, outside, confidence=confidence)


def offline_lira(losses: np.ndarray, reference_losses: np.ndarray) -> np.ndarray:
    r"""Scores of the offline likelihood-ratio attack, from cross-entropies.

    .. math::  \phi = \log\frac{p}{1 - p},\quad p = e^{-\ell}; \qquad
               \text{score} = \frac{\phi - \mathrm{mean}_k\, \phi_k}{\mathrm{std}}

    with the mean over the reference models per example, and one deviation for all examples: few
    models estimate none of their own. Its rank is that of the paper's probability.

    Args:
      losses: `[n]`, of the model under attack, positive.
      reference_losses: `[K, n]`, of models trained without the examples, `K >= 2`.

    Returns:
      float64 `[n]`, higher means more likely a member.

    Raises:
      ValueError: if shapes do not fit.

    Example:
      >>> offline_lira(np.array([0.1, 2.0]), np.array([[1.0, 2.1], [1.2, 1.9]])).round(0).tolist()
      [16.0, -0.0]

    Reference: Carlini et al., "Membership Inference Attacks From First Principles", 2021,
    arXiv:2112.03570.
    """
    losses, others = np.asarray(losses, np.float64), np.asarray(reference_losses, np.float64)
    if losses.ndim != 1 or others.ndim != 2 or others.shape[1:] != losses.shape or len(others) < 2:
        raise ValueError(
            f"losses must be [n] and reference_losses [K >= 2, n], got {list(losses.shape)} and "
            f"{list(others.shape)}"
        )
    centre = confidence_logit(others).mean(0)
    spread = math.sqrt(confidence_logit(others).var(0, ddof=1).mean())
    return (confidence_logit(losses) - centre) / max(spread, 1e-12)


def confidence_logit(losses: np.ndarray) -> np.ndarray:
    """``log(p / (1 - p))`` for ``p = exp(-loss)``, bounded where a loss underflows to 0.

    Example:
      >>> abs(float(confidence_logit(np.log(2.0)))) < 1e-12
      True
    """
    losses = np.clip(np.asarray(losses, np.float64), 1e-30, None)
    return -(losses + np.log(-np.expm1(-losses)))


def advantage_bound(epsilon: float, *, delta: float = 0.0) -> float:
    r"""The largest advantage that (epsilon, delta)-DP leaves to any membership attack.

    .. math::  \mathrm{TPR} - \mathrm{FPR} \le \frac{e^\varepsilon - 1 + 2\delta}{e^\varepsilon + 1}

    Args:
      epsilon: not negative.
      delta: in `[0, 1]`.

    Returns:
      In `[0, 1]`.

    Raises:
      ValueError: if an argument is out of range.

    Example:
      >>> round(advantage_bound(1.0), 7)
      0.4621172

    Reference: Humphries et al., "Investigating Membership Inference Attacks under Data
    Dependencies", 2020, arXiv:2010.12112.
    """
    check_non_negative(epsilon, "epsilon")
    check_fraction(delta, "delta")
    return min(math.tanh(epsilon / 2) + 2 * delta / (math.exp(min(epsilon, 700.0)) + 1), 1.0)


def gdp_advantage_bound(mu: float) -> float:
    r"""The largest advantage that mu-GDP leaves to any attack: :math:`2\Phi(\mu/2) - 1`.

    Args:
      mu: not negative.

    Returns:
      In `[0, 1]`.

    Raises:
      ValueError: if `mu` is negative.

    Example:
      >>> round(gdp_advantage_bound(1.0), 7)
      0.3829249

    Reference: Dong, Roth, Su, "Gaussian Differential Privacy", 2019, arXiv:1905.02383.
    """
    check_non_negative(mu, "mu")
    return math.erf(mu / (2 * math.sqrt(2)))


def _placements(scores: np.ndarray, others: np.ndarray) -> np.ndarray:
    """For each score the share of `others` below it, ties half."""
    ranked = np.sort(others)
    below = np.searchsorted(ranked, scores, side="left")
    up_to = np.searchsorted(ranked, scores, side="right")
    return (below + up_to) / (2 * len(others))


def _scores(values: Scores, name: str) -> np.ndarray:
    array = np.asarray(values, np.float64)
    if array.ndim != 1 or len(array) < 2:
        raise ValueError(f"{name} must be two scores or more, [m], got shape {list(array.shape)}")
    if not np.isfinite(array).all():
        raise ValueError(
            f"{name} must be finite, got {np.sum(~np.isfinite(array))} of {len(array)} that are "
            "not; did the model diverge?"
        )
    return array


check_calls(globals())
