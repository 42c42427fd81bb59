"""Whether a model is as often right as it says."""

from __future__ import annotations

import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from fedjax_lite.checks.arguments import check_count
from fedjax_lite.checks.made import made
from fedjax_lite.metrics.answers import answers_of, chosen, one_hot, per_example
from fedjax_lite.metrics.metric import Metric
from fedjax_lite.types import Array, PyTree


@made
def expected_calibration_error(bins: int = 15) -> Metric:
    r"""Expected calibration error: mean distance between confidence and accuracy, over bins.

    With the confidence `p_j`, the largest of the softmax, in `M` bins
    ``B_m = {j : (m - 1) / M < p_j <= m / M}``,

    .. math::  \mathrm{ECE} = \sum_m \frac{|B_m|}{n}
               \left| \mathrm{acc}(B_m) - \mathrm{conf}(B_m) \right|

    It is biased upwards where bins hold few examples: that of a small client is noise before it is
    a fault of the model.

    Args:
      bins: `M`.

    Returns:
      A `Metric`: one number, lower is better.

    Raises:
      ValueError: if `bins` is below 1; from an evaluation, if labels are no classes.

    Example:
      >>> sure = jnp.array([[0.0, 100.0], [0.0, 100.0]])  # certain, and right once in two
      >>> metric = expected_calibration_error()
      >>> values = metric.measure(sure, {"y": jnp.array([1, 0])})
      >>> sums = {name: np.asarray(leaf).sum(0)[None] for name, leaf in values.items()}
      >>> metric.result(sums).tolist()
      [0.5]

    Reference: Guo, Pleiss, Sun, Weinberger, "On Calibration of Modern Neural Networks", 2017,
    arXiv:1706.04599.
    """
    check_count(bins, "bins", minimum=1)
    return _ece(int(bins))


@functools.cache  # one metric, one compiled program, however often it is asked for
def _ece(bins: int) -> Metric:
    def measure(outputs: Array, examples: Any) -> PyTree:
        logits, labels, valid = answers_of(outputs, examples)
        confidence = jax.nn.softmax(logits).max(-1)
        place = jnp.clip(jnp.ceil(confidence * bins) - 1, 0, bins - 1).astype(jnp.int32)
        binned = one_hot(place, bins, valid)
        right = binned & (chosen(logits) == labels)[..., None]
        return {
            "count": per_example(binned, labels.ndim),
            "hits": per_example(right, labels.ndim),
            "confidence": per_example(jnp.where(binned, confidence[..., None], 0.0), labels.ndim),
        }

    def result(sums: PyTree) -> np.ndarray:
        gaps = np.abs(sums["hits"] - sums["confidence"])
        return gaps.sum(-1) / sums["count"].sum(-1)

    return Metric(measure, result, higher_is_better=False)
