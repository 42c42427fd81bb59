"""Differential privacy: mechanisms that bundle what has to agree, and their accounting.

A `Mechanism` brings the sampler, the clipping and noisy aggregator and the accountant together, so
``fl.fedavg(..., privacy=fl.privacy.central_gaussian(...))`` cannot weight by examples, divide by
the realised cohort, or sample otherwise than is accounted for.

What every guarantee presumes: noise is a function of the run's key. Keep the key secret, and use it
for one run only: two runs of one key, or a sweep over hyper-parameters, have the same noise, and
their difference has none. The run's state, its checkpoints and its ``config.json`` (which holds the
key) belong to the trusted server: the states of tree and matrix noise hold the noise itself, and
metrics are exact. Publish ``state.server.params`` and nothing else.

Epsilon belongs to a state's history. Its ledger, ``state.privacy``, holds the mechanisms of all
its rounds, and ``accountant.spent(state)`` composes them (see `history.with_history`). Parameters
alone have no history: whoever begins a new state with them adds what they have spent.
"""

from typing import TYPE_CHECKING

from fedjax_lite.checks.later import load_when_asked

if TYPE_CHECKING:
    from fedjax_lite.privacy import audit
    from fedjax_lite.privacy.accounting.analytic_gaussian import (
        gaussian_stddev,
        gdp_delta,
        gdp_epsilon,
        gdp_mu,
    )
    from fedjax_lite.privacy.accounting.calibrate_mechanism import calibrate
    from fedjax_lite.privacy.accounting.calibrate_noise import noise_multiplier
    from fedjax_lite.privacy.accounting.poisson import delta, epsilon, event
    from fedjax_lite.privacy.accounting.tree_sensitivity import tree_levels, tree_sensitivity
    from fedjax_lite.privacy.adaptive import adaptive_clipping, adaptive_sum, update_noise
    from fedjax_lite.privacy.clipping import clip_clients
    from fedjax_lite.privacy.discrete.mechanism import distributed_discrete_gaussian
    from fedjax_lite.privacy.discrete.sampler import discrete_gaussian
    from fedjax_lite.privacy.example_level import dp_sgd, dp_sgd_epsilon
    from fedjax_lite.privacy.gaussian import central_gaussian, gaussian_sum
    from fedjax_lite.privacy.local import local_gaussian, uniform_mean
    from fedjax_lite.privacy.matrix_noise import (
        banded_coefficients,
        matrix_noise,
        matrix_sensitivity,
        matrix_sum,
    )
    from fedjax_lite.privacy.participation import (
        once_an_epoch,
        overflow_probability,
        poisson_cohorts,
    )
    from fedjax_lite.privacy.secure_gaussian import secure_gaussian, secure_gaussian_sum
    from fedjax_lite.privacy.tree_noise import tree_noise, tree_sum

__all__ = [
    "audit",
    "adaptive_clipping",
    "adaptive_sum",
    "banded_coefficients",
    "calibrate",
    "central_gaussian",
    "clip_clients",
    "delta",
    "discrete_gaussian",
    "distributed_discrete_gaussian",
    "dp_sgd",
    "dp_sgd_epsilon",
    "epsilon",
    "event",
    "gaussian_stddev",
    "gaussian_sum",
    "gdp_delta",
    "gdp_epsilon",
    "gdp_mu",
    "local_gaussian",
    "matrix_noise",
    "matrix_sensitivity",
    "matrix_sum",
    "noise_multiplier",
    "once_an_epoch",
    "overflow_probability",
    "poisson_cohorts",
    "secure_gaussian",
    "secure_gaussian_sum",
    "tree_levels",
    "tree_noise",
    "tree_sensitivity",
    "tree_sum",
    "uniform_mean",
    "update_noise",
]

load_when_asked(__name__)
