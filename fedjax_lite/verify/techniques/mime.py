"""Mime: the server's momentum, frozen in local steps, and gradients corrected at the anchor."""

from __future__ import annotations

import functools
from typing import Any

import numpy as np

from fedjax_lite.round.sampling import everyone
from fedjax_lite.verify.records import Check
from fedjax_lite.verify.testbeds import (
    ETA,
    OPTIMUM,
    STEPS,
    UNIFORM,
    UNIFORM_OPTIMUM,
    A,
    B,
    P,
    quadratic,
    trajectory,
    whole,
)


def mimed(momentum: float, *, lite: bool = False, steps: int = STEPS, **options: Any) -> Any:
    """Mime or MimeLite on Q2 with everyone."""
    from fedjax_lite.algorithms.mime import mime, mimelite

    factory = mimelite if lite else mime
    options = {"weighting": "examples", **options}
    return factory(
        quadratic, ETA, plan=whole(steps), sampler=everyone(), momentum=momentum, **options
    )


def loop(
    num_rounds: int, beta: float, *, lite: bool = False, weights: Any = P, steps: int = STEPS
) -> np.ndarray:
    """``y <- y - eta ((1 - beta) g + beta m)``, m frozen; then ``m <- (1 - beta) c + beta m``."""
    x, m, path = 0.0, 0.0, []
    for _ in range(num_rounds):
        anchor = A * (x - B)
        c = float(weights @ anchor)
        y = np.full(2, x)
        for _ in range(steps):
            g = A * (y - B) - (0 if lite else anchor - c)
            y = y - ETA * ((1 - beta) * g + beta * m)
        x, m = float(weights @ y), (1 - beta) * c + beta * m
        path.append(x)
    return np.array(path)


def checks() -> list[Check]:
    """Trajectories with and without momentum, limits, K = 1."""
    run = functools.cache(lambda beta: trajectory(mimed(beta), 900))
    return [
        Check("beta=0: three rounds", loop(3, 0.0), lambda: run(0.0)[:3]),
        Check("beta=.9: three rounds", loop(3, 0.9), lambda: run(0.9)[:3]),
        Check("beta=0: limit is the optimum", OPTIMUM, lambda: run(0.0)[-1]),
        Check("beta=.9: limit is the optimum", OPTIMUM, lambda: run(0.9)[-1]),
        Check(
            "uniform: limit is the optimum",
            UNIFORM_OPTIMUM,
            lambda: trajectory(mimed(0.0, weighting="uniform"), 300)[-1],
        ),
        Check(
            "beta=0, K=1 = FedSGD, uniform",
            UNIFORM_OPTIMUM * (1 - (1 - ETA * (UNIFORM @ A)) ** np.arange(1, 4)),
            lambda: trajectory(mimed(0.0, steps=1, weighting="uniform"), 3),
        ),
    ]
