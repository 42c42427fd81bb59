"""FedProx: the second step shows the penalty, and exact solves have their own fixed point."""

from __future__ import annotations

from typing import Any

import numpy as np
import optax

from fedjax_lite.round.sampling import everyone
from fedjax_lite.verify.records import Check
from fedjax_lite.verify.testbeds import (
    ETA,
    ROUNDS,
    UNIFORM,
    A,
    P,
    averaging,
    fixed,
    quadratic,
    sweep,
    trajectory,
    whole,
)


def proximal_averaging(mu: Any, steps: Any, **options: Any) -> Any:
    """FedProx on Q2 with everyone."""
    from fedjax_lite.algorithms.fedprox import fedprox

    plan = whole(steps)
    return fedprox(quadratic, optax.sgd(ETA), mu=mu, plan=plan, sampler=everyone(), **options)


def checks() -> list[Check]:
    """Second-step values, fixed points of gradient steps and of exact solves, mu = 0."""
    mus = np.array([1.0, 0.1])

    def inexact(mu: float) -> float:
        return fixed((1 - (1 - ETA * (A + mu)) ** 5) * A / (A + mu))

    exact = [fixed(A / (A + mu)) for mu in (1.0, 10.0)]
    after_two = float(P @ np.array([-0.095, 0.7]))
    return [
        Check(
            "mu=1: K=2, round 1", after_two, lambda: trajectory(proximal_averaging(1.0, 2), 1)[0]
        ),
        Check(
            "mu=1: K=5, three rounds",
            averaging(3, mu=1.0),
            lambda: trajectory(proximal_averaging(1.0, 5), 3),
        ),
        Check(
            "K=5: fixed points, mu=(1, .1)",
            [inexact(mu) for mu in mus],
            lambda: sweep(lambda mu: proximal_averaging(mu, 5), mus, ROUNDS),
        ),
        Check(
            "exact solve: fixed points, mu=(1, 10)",
            exact,
            lambda: sweep(lambda mu: proximal_averaging(mu, 400), [1.0, 10.0], 2 * ROUNDS),
        ),
        Check(
            "exact solve, uniform: fixed point, mu=1",
            fixed(A / (A + 1), UNIFORM),
            lambda: trajectory(proximal_averaging(1.0, 400, weighting="uniform"), ROUNDS)[-1],
        ),
        Check(
            "mu=0 = FedAvg", averaging(3), lambda: trajectory(proximal_averaging(0.0, 5), 3), 1e-14
        ),
    ]
