"""Metrics of evaluations: ``metrics={"f1": fl.metrics.f1(10)}`` in every one of them."""

from typing import TYPE_CHECKING

from fedjax_lite.checks.later import load_when_asked

if TYPE_CHECKING:
    from fedjax_lite.metrics.absolute_error import mean_absolute_error
    from fedjax_lite.metrics.auc import auc
    from fedjax_lite.metrics.calibration_error import expected_calibration_error
    from fedjax_lite.metrics.f1 import f1
    from fedjax_lite.metrics.hits import accuracy, top_k_accuracy
    from fedjax_lite.metrics.metric import HostMetric, Metric
    from fedjax_lite.metrics.rates import (
        false_positive_rate,
        positive_rate,
        true_positive_rate,
    )

__all__ = [
    "HostMetric",
    "Metric",
    "accuracy",
    "auc",
    "expected_calibration_error",
    "f1",
    "false_positive_rate",
    "mean_absolute_error",
    "positive_rate",
    "top_k_accuracy",
    "true_positive_rate",
]

load_when_asked(__name__)
