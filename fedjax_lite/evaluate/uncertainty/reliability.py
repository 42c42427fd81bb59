"""reliability(): how often a model is right when it says so, bin by bin."""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np

from fedjax_lite.checks.arguments import check_count, shown


class Reliability(NamedTuple):
    """A reliability diagram: by confidence, in `bins` bins of equal width over (0, 1]."""

    edges: np.ndarray
    """float64 `[bins + 1]`; a bin holds its upper edge, not its lower."""
    counts: np.ndarray
    """int64 `[bins]`, answers in each."""
    confidence: np.ndarray
    """float64 `[bins]`, its mean; NaN for an empty bin."""
    accuracy: np.ndarray
    """float64 `[bins]`, the share that is right; NaN for an empty bin."""
    error: float
    """The expected calibration error: mean distance of the two, weighed by `counts`."""
    largest: float
    """The maximum calibration error: the largest distance."""


def reliability(probabilities: Any, labels: Any, *, bins: int = 15) -> Reliability:
    r"""The data of a reliability diagram: accuracy against confidence.

    With `B_m` the answers whose confidence ``max_k p_k`` lies in bin `m`,

    .. math::
        \mathrm{ECE} = \sum_m \frac{|B_m|}{n} |\mathrm{acc}(B_m) - \mathrm{conf}(B_m)|, \qquad
        \mathrm{MCE} = \max_m |\mathrm{acc}(B_m) - \mathrm{conf}(B_m)|

    `fedjax_lite.metrics.expected_calibration_error` is the same ECE within an evaluation, and
    `fedjax_lite.report.plot_reliability` the picture.

    Args:
      probabilities: `[E, ..., K]`, of one model or the mean of an ensemble.
      labels: integers `[E, ...]`; those below 0 do not count.
      bins: `M`.

    Returns:
      `Reliability`; the two errors are NaN where no label counts.

    Raises:
      ValueError: if shapes do not fit, or a probability lies outside of [0, 1].

    Example:
      >>> found = reliability([[0.9, 0.1], [0.8, 0.2], [0.3, 0.7]], [0, 1, 1], bins=2)
      >>> found.counts.tolist(), round(float(found.accuracy[1]), 4), round(found.error, 4)
      ([0, 3], 0.6667, 0.1333)

    Reference: Guo, Pleiss, Sun, Weinberger, "On Calibration of Modern Neural Networks", 2017,
    arXiv:1706.04599.
    """
    check_count(bins, "bins", minimum=1)
    given, labels = np.asarray(probabilities, np.float64), np.asarray(labels)
    if given.ndim < 2 or given.shape[:-1] != labels.shape or labels.dtype.kind not in "iu":
        raise ValueError(
            "probabilities must be [E, ..., K] and labels integers [E, ...], got "
            f"{list(given.shape)} and {labels.dtype} {list(labels.shape)}; the mean over axis 0 of "
            "members is one model"
        )
    if given.size and not (given.min() >= 0 and given.max() <= 1 + 1e-6):
        raise ValueError(
            f"probabilities must lie in [0, 1], got {shown(given.reshape(-1)[:4])}; "
            "give jax.nn.softmax(logits)"
        )
    counted = labels >= 0
    given, labels = given[counted], labels[counted]
    sure, right = given.max(-1, initial=0), given.argmax(-1) == labels
    # In float32, as the metric within evaluations bins: else an edge would fall elsewhere.
    place = np.ceil(sure.astype(np.float32) * np.float32(bins)) - 1
    place = np.clip(place, 0, bins - 1).astype(int)
    counts = np.bincount(place, minlength=bins)
    with np.errstate(invalid="ignore", divide="ignore"):
        confidence = np.bincount(place, sure, bins) / counts
        accuracy = np.bincount(place, right, bins) / counts
    gaps = np.abs(confidence - accuracy)[counts > 0]
    known = len(labels) > 0
    error = float(gaps @ counts[counts > 0] / len(labels)) if known else float("nan")
    largest = float(gaps.max()) if known else float("nan")
    return Reliability(np.linspace(0, 1, bins + 1), counts, confidence, accuracy, error, largest)
