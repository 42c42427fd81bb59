"""FedSGD: gradient descent on the weighted mean of the clients' losses."""

from __future__ import annotations

import numpy as np
import optax

from fedjax_lite.algorithms.fedavg import fedavg
from fedjax_lite.algorithms.fedsgd import fedsgd
from fedjax_lite.round.sampling import everyone
from fedjax_lite.verify.records import Check
from fedjax_lite.verify.testbeds import (
    ETA,
    OPTIMUM,
    UNIFORM_OPTIMUM,
    A,
    P,
    quadratic,
    trajectory,
    whole,
)


def checks() -> list[Check]:
    """``x_r = x* (1 - (1 - eta sum p_i a_i)^r)`` from 0."""
    algo = fedsgd(quadratic, optax.sgd(ETA), sampler=everyone())
    uniform = fedsgd(quadratic, optax.sgd(ETA), sampler=everyone(), weighting="uniform")
    one_step = fedavg(quadratic, optax.sgd(ETA), plan=whole(1), sampler=everyone())
    path = OPTIMUM * (1 - (1 - ETA * (P * A).sum()) ** np.arange(1, 11))
    return [
        Check("ten rounds on Q2", path, lambda: trajectory(algo, 10)),
        Check("limit is the optimum", OPTIMUM, lambda: trajectory(algo, 300)[-1]),
        Check("uniform weights: limit", UNIFORM_OPTIMUM, lambda: trajectory(uniform, 300)[-1]),
        Check("= FedAvg with one full-batch step", path, lambda: trajectory(one_step, 10)),
    ]
