"""F1: the harmonic mean of precision and recall, by class or over classes."""

from __future__ import annotations

import functools
from typing import Any, Literal

import numpy as np

from fedjax_lite.checks.arguments import check_count, shown
from fedjax_lite.checks.made import made
from fedjax_lite.metrics.answers import answers_of, chosen, one_hot, per_example
from fedjax_lite.metrics.metric import Metric
from fedjax_lite.types import Array, PyTree


@made
def f1(num_classes: int, *, average: Literal["macro", "micro"] | None = "macro") -> Metric:
    r"""The F1 score of a classifier.

    .. math::  F_c = \frac{2\, \mathrm{TP}_c}{2\, \mathrm{TP}_c + \mathrm{FP}_c + \mathrm{FN}_c},
               \qquad F_{\mathrm{macro}} = \frac{1}{|C|} \sum_{c \in C} F_c, \qquad
               F_{\mathrm{micro}} = \frac{2 \sum_c \mathrm{TP}_c}
               {\sum_c 2\, \mathrm{TP}_c + \mathrm{FP}_c + \mathrm{FN}_c}

    A class that neither labels nor answers hold has no F1: it is NaN by class and absent from
    `C`, so that a client is not blamed for classes that it has never seen. Sums are counts by
    class, so the F1 of all data is that of their merged counts, not a mean of clients' F1.

    Args:
      num_classes: `K`, the outputs of the model; 2 for a model with one output.
      average: "macro", "micro" (of one label an example it is the accuracy), or None: by class.

    Returns:
      A `Metric`: one number, or `K` of them with ``average=None``.

    Raises:
      ValueError: from an evaluation, if labels are no classes, or the model has another number of
        outputs.

    Example:
      >>> import jax.numpy as jnp
      >>> metric = f1(2, average=None)
      >>> logits = jnp.array([[1.0, 0.0], [0.0, 1.0], [0.0, 1.0]])
      >>> counts = metric.measure(logits, {"y": jnp.array([0, 1, 0])})
      >>> sums = {name: np.asarray(leaf).sum(0)[None] for name, leaf in counts.items()}
      >>> np.round(metric.result(sums), 3).tolist()
      [[0.667, 0.667]]
    """
    check_count(num_classes, "num_classes", minimum=2)
    if average not in ("macro", "micro", None):
        raise ValueError(
            f"average must be 'macro', 'micro' or None (by class), got {shown(average)}"
        )
    return _f1(int(num_classes), average)


@functools.cache  # one metric, one compiled program, however often it is asked for
def _f1(num_classes: int, average: str | None) -> Metric:
    def measure(outputs: Array, examples: Any) -> PyTree:
        logits, labels, valid = answers_of(outputs, examples)
        if logits.shape[-1] != num_classes:
            raise ValueError(
                f"num_classes of f1 must be the model's {logits.shape[-1]} outputs, got "
                f"{num_classes}; give fl.metrics.f1({logits.shape[-1]})"
            )
        answered = one_hot(chosen(logits), num_classes, valid)
        wanted = one_hot(labels, num_classes, valid)
        return {
            "both": per_example(answered & wanted, labels.ndim),
            "answered": per_example(answered, labels.ndim),
            "wanted": per_example(wanted, labels.ndim),
        }

    def result(sums: PyTree) -> np.ndarray:
        right, either = 2 * sums["both"], sums["answered"] + sums["wanted"]
        if average == "micro":
            return right.sum(-1) / either.sum(-1)
        by_class = right / either
        if average is None:
            return by_class
        seen = either > 0
        return np.where(seen, by_class, 0).sum(-1) / seen.sum(-1)

    return Metric(measure, result)
