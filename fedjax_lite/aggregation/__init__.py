"""Aggregators: what becomes of the messages of a cohort."""

from fedjax_lite.aggregation.diagnosed import diagnosed
from fedjax_lite.aggregation.inverse_variance import inverse_variance, inverse_variance_weights
from fedjax_lite.aggregation.mean import mean, weight_by

__all__ = ["diagnosed", "inverse_variance", "inverse_variance_weights", "mean", "weight_by"]
