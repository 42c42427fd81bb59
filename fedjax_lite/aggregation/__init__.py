"""Aggregators: what becomes of the messages of a cohort."""

from fedjax_lite.aggregation.mean import mean, weight_by

__all__ = ["mean", "weight_by"]
