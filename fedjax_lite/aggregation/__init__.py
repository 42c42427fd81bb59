"""Aggregators: what becomes of the messages of a cohort."""

from typing import TYPE_CHECKING

from fedjax_lite.checks.later import load_when_asked

if TYPE_CHECKING:
    from fedjax_lite.aggregation.bucketing import bucketing
    from fedjax_lite.aggregation.bulyan import bulyan
    from fedjax_lite.aggregation.centered_clipping import centered_clipping
    from fedjax_lite.aggregation.coordinates import median, trimmed_mean
    from fedjax_lite.aggregation.diagnosed import diagnosed
    from fedjax_lite.aggregation.encrypted import encrypted_mean
    from fedjax_lite.aggregation.geometric_median import geometric_median
    from fedjax_lite.aggregation.hierarchical import hierarchical
    from fedjax_lite.aggregation.inverse_variance import inverse_variance, inverse_variance_weights
    from fedjax_lite.aggregation.krum import krum, multi_krum
    from fedjax_lite.aggregation.majority_vote import majority_vote
    from fedjax_lite.aggregation.mean import mean, weight_by
    from fedjax_lite.aggregation.min_norm import min_norm
    from fedjax_lite.aggregation.norm_bound import norm_bound
    from fedjax_lite.aggregation.redundancy import redundancy
    from fedjax_lite.aggregation.secure import secure_mean
    from fedjax_lite.aggregation.stacked import Stack, aggregate_stack, stacked
    from fedjax_lite.aggregation.total import total

__all__ = [
    "Stack",
    "aggregate_stack",
    "bucketing",
    "bulyan",
    "centered_clipping",
    "diagnosed",
    "encrypted_mean",
    "geometric_median",
    "hierarchical",
    "inverse_variance",
    "inverse_variance_weights",
    "krum",
    "majority_vote",
    "mean",
    "median",
    "min_norm",
    "multi_krum",
    "norm_bound",
    "redundancy",
    "secure_mean",
    "stacked",
    "total",
    "trimmed_mean",
    "weight_by",
]

load_when_asked(__name__)
