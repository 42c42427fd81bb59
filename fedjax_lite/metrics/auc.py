"""AUC: how often a positive example has a higher score than a negative one."""

from __future__ import annotations

import functools
from typing import Any

import jax.numpy as jnp
import numpy as np

from fedjax_lite.checks.arguments import check_count
from fedjax_lite.checks.made import made
from fedjax_lite.metrics.answers import answers_of, one_hot, per_example
from fedjax_lite.metrics.metric import HostMetric, Metric
from fedjax_lite.types import Array, PyTree


@made
def auc(bins: int | None = 1000) -> Metric | HostMetric:
    r"""Area under the ROC curve of two classes: P(score of a positive > score of a negative).

    The score `x` is the log-odds of class 1: the one output, or the difference of two. With
    `bins` it is counted into bins of equal width of `x / (1 + |x|)`, in the compiled program, and
    pairs within one bin count one half, as ties do. With `P_b` positives and `N_b` negatives of
    `P` and `N` in bin `b`,

    .. math::  \widehat{\mathrm{AUC}} = \frac{1}{PN} \sum_b N_b \Big(\sum_{b' > b} P_{b'} +
               \tfrac12 P_b\Big), \qquad |\widehat{\mathrm{AUC}} - \mathrm{AUC}| \le
               \frac{1}{2PN} \sum_b P_b N_b

    A bin is about ``2 (1 + |x|)^2 / bins`` wide: 0.002 log-odds at 0, 0.24 at 10. Counts merge by
    ``+``. Exact (``bins=None``), every score goes to the host and is ranked there:

    .. math::  \mathrm{AUC} = \frac{R_+ - P (P + 1) / 2}{PN}

    with the sum `R_+` of the ranks of positives, ties at their mean rank.

    Args:
      bins: of the histogram; the sums of each client are 2 `bins` counts. None: exact, O(examples)
        on the host.

    Returns:
      A metric of one number; NaN where one class is absent.

    Raises:
      ValueError: if `bins` is below 2; from an evaluation, if the model has more than two classes.

    Example:
      >>> import jax.numpy as jnp
      >>> exact = auc(None)
      >>> values = exact.measure(jnp.array([2.0, 1.0, 0.0]), {"y": jnp.array([1, 0, 1])})
      >>> host = {name: np.asarray(leaf) for name, leaf in values.items()}
      >>> exact.result(host, np.zeros(3, int), 1).tolist()
      [0.5]

    Reference: Hanley, McNeil, "The Meaning and Use of the Area under a Receiver Operating
    Characteristic (ROC) Curve", 1982, Radiology 143.
    """
    if bins is not None:
        check_count(bins, "bins", minimum=2)
    return _exact() if bins is None else _histogram(int(bins))


def _scores(outputs: Array, examples: Any) -> tuple[Array, Array, Array]:
    logits, labels, valid = answers_of(outputs, examples)
    if logits.shape[-1] != 2:
        raise ValueError(
            f"auc needs two classes, but the model has {logits.shape[-1]} outputs; score one class "
            "against the rest with a fl.metrics.Metric of your own"
        )
    return logits[..., 1] - logits[..., 0], labels, valid


@functools.cache  # one metric, one compiled program, however often it is asked for
def _histogram(bins: int) -> Metric:
    def measure(outputs: Array, examples: Any) -> PyTree:
        score, labels, valid = _scores(outputs, examples)
        score = jnp.clip(score, -1e30, 1e30)  # infinity over infinity is NaN
        place = jnp.floor((score / (1 + jnp.abs(score)) + 1) / 2 * bins)
        place = jnp.clip(place, 0, bins - 1).astype(jnp.int32)
        return {
            name: per_example(one_hot(place, bins, valid & (labels == label)), labels.ndim)
            for name, label in (("positive", 1), ("negative", 0))
        }

    def result(sums: PyTree) -> np.ndarray:
        positive, negative = (sums[name].astype(np.float64) for name in ("positive", "negative"))
        above = positive[..., ::-1].cumsum(-1)[..., ::-1] - positive
        pairs = positive.sum(-1) * negative.sum(-1)
        return (negative * (above + positive / 2)).sum(-1) / pairs

    return Metric(measure, result)


@functools.cache
def _exact() -> HostMetric:
    def measure(outputs: Array, examples: Any) -> PyTree:
        score, labels, valid = _scores(outputs, examples)
        return {"score": score, "label": jnp.where(valid, labels, -1)}

    def result(values: PyTree, units: np.ndarray, num_units: int) -> np.ndarray:
        score, label = values["score"].reshape(-1), values["label"].reshape(-1)
        units = np.repeat(units, len(score) // max(len(units), 1))
        known = label >= 0
        score, label, units = score[known], label[known], units[known]
        ranked = np.lexsort((score, units))
        score, label, units = score[ranked], label[ranked], units[ranked]
        before = np.concatenate([[0], np.cumsum(np.bincount(units, minlength=num_units))])
        new = np.ones(len(score), bool)
        new[1:] = (score[1:] != score[:-1]) | (units[1:] != units[:-1])
        tie = np.cumsum(new) - 1
        first = np.flatnonzero(new)
        last = np.append(first[1:], len(score))  # ranks first + 1 .. last, of all units together
        rank = ((first + 1 + last) / 2)[tie] - before[units]
        positives = np.bincount(units, label == 1, num_units)
        negatives = np.bincount(units, label == 0, num_units)
        ranks = np.bincount(units, rank * (label == 1), num_units)
        return (ranks - positives * (positives + 1) / 2) / (positives * negatives)

    return HostMetric(measure, result)
