"""Public conformance suites: the laws that every algorithm and every slot must obey.

>>> import optax, fedjax_lite as fl
>>> from fedjax_lite import testing
>>> def make(learning_rate, sampler, strategy):
...     return fl.fedavg(testing.loss, optax.sgd(learning_rate), plan=fl.Plan(batch_size=2),
...                      sampler=sampler, strategy=strategy)
>>> testing.check_algorithm(make, laws=["finite", "empty_cohort_changes_nothing"])
"""

from typing import TYPE_CHECKING

from fedjax_lite.checks.later import load_when_asked

if TYPE_CHECKING:
    from fedjax_lite.testing.algorithm_laws import ALGORITHM_LAWS, check_algorithm
    from fedjax_lite.testing.metric_laws import METRIC_LAWS, check_metric
    from fedjax_lite.testing.party_laws import PARTY_LAWS, PartyCase, check_parties
    from fedjax_lite.testing.problem import init_params, loss, population
    from fedjax_lite.testing.registered_parties import PARTIES
    from fedjax_lite.testing.registry import AGGREGATORS, ALGORITHMS, SAMPLERS, TRANSFORMS
    from fedjax_lite.testing.slot_laws import (
        AGGREGATOR_LAWS,
        LAWS_OF_NOISE,
        SAMPLER_LAWS,
        TRANSFORM_LAWS,
        check_aggregator,
        check_sampler,
        check_transform,
    )

__all__ = [
    "AGGREGATORS",
    "AGGREGATOR_LAWS",
    "ALGORITHMS",
    "ALGORITHM_LAWS",
    "LAWS_OF_NOISE",
    "METRIC_LAWS",
    "PARTIES",
    "PARTY_LAWS",
    "SAMPLERS",
    "SAMPLER_LAWS",
    "TRANSFORMS",
    "TRANSFORM_LAWS",
    "PartyCase",
    "check_aggregator",
    "check_algorithm",
    "check_metric",
    "check_parties",
    "check_sampler",
    "check_transform",
    "init_params",
    "loss",
    "population",
]

load_when_asked(__name__)
