"""Rates of answers, of which groups are compared: parity, equal opportunity, equalised odds."""

from __future__ import annotations

import functools
from typing import Any

import numpy as np

from fedjax_lite.checks.arguments import check_count
from fedjax_lite.checks.made import made
from fedjax_lite.metrics.answers import answers_of, chosen, per_example
from fedjax_lite.metrics.metric import Metric
from fedjax_lite.types import Array, PyTree


@made
def positive_rate(positive: int = 1) -> Metric:
    r"""The share of examples that are answered with the class `positive`, whatever their label.

    .. math::  P(\hat y = c); \qquad \text{demographic parity: equal in all groups.}

    Args:
      positive: the class that is an advantage: a loan, a place, a treatment.

    Returns:
      A `Metric`: one number, NaN where there is no example.

    Example:
      >>> import jax.numpy as jnp
      >>> measured = positive_rate().measure(jnp.array([-1.0, 2.0]), {"y": jnp.array([0, 0])})
      >>> measured["positive"].tolist(), measured["all"].tolist()
      ([0, 1], [1, 1])

    Reference: Dwork, Hardt, Pitassi, Reingold, Zemel, "Fairness Through Awareness", 2012,
    arXiv:1104.3913.
    """
    check_count(positive, "positive", minimum=0)
    return _rate(int(positive), None)


@made
def true_positive_rate(positive: int = 1) -> Metric:
    r"""The share of examples of class `positive` that are answered so: the class's recall.

    .. math::  P(\hat y = c \mid y = c); \qquad \text{equal opportunity: equal in all groups.}

    Args:
      positive: the class that is an advantage.

    Returns:
      A `Metric`: one number, NaN where no example has that label.

    Example:
      >>> import jax.numpy as jnp
      >>> measured = true_positive_rate().measure(jnp.array([-1.0, 2.0]), {"y": jnp.array([1, 0])})
      >>> measured["positive"].tolist(), measured["all"].tolist()
      ([0, 0], [1, 0])

    Reference: Hardt, Price, Srebro, "Equality of Opportunity in Supervised Learning", 2016,
    arXiv:1610.02413.
    """
    check_count(positive, "positive", minimum=0)
    return _rate(int(positive), True)


@made
def false_positive_rate(positive: int = 1) -> Metric:
    r"""The share of examples of other classes that are answered with `positive`.

    .. math::  P(\hat y = c \mid y \ne c); \qquad \text{equalised odds: equal in all groups, and so
               is the true positive rate.}

    Args:
      positive: the class that is an advantage.

    Returns:
      A `Metric`: one number, NaN where every example has that label; lower is better.

    Example:
      >>> import jax.numpy as jnp
      >>> measured = false_positive_rate().measure(jnp.array([1.0, 2.0]), {"y": jnp.array([1, 0])})
      >>> measured["positive"].tolist(), measured["all"].tolist()
      ([0, 1], [0, 1])

    Reference: Hardt, Price, Srebro, "Equality of Opportunity in Supervised Learning", 2016,
    arXiv:1610.02413.
    """
    check_count(positive, "positive", minimum=0)
    return _rate(int(positive), False)


@functools.cache  # one metric, one compiled program, however often it is asked for
def _rate(positive: int, of: bool | None) -> Metric:
    def measure(outputs: Array, examples: Any) -> PyTree:
        logits, labels, valid = answers_of(outputs, examples)
        if positive >= logits.shape[-1]:
            raise ValueError(
                f"positive must be one of the model's {logits.shape[-1]} classes, got {positive}; "
                "number them from 0"
            )
        asked = valid if of is None else valid & ((labels == positive) == of)
        return {
            "positive": per_example(asked & (chosen(logits) == positive), labels.ndim),
            "all": per_example(asked, labels.ndim),
        }

    def result(sums: PyTree) -> np.ndarray:
        return sums["positive"] / sums["all"]

    return Metric(measure, result, higher_is_better=of is not False)
