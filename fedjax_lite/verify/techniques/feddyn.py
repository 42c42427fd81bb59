"""FedDyn: exact local solves on Q2 in closed form; the limit does not depend on alpha."""

from __future__ import annotations

import functools
from collections.abc import Sequence
from typing import Any

import numpy as np
import optax

from fedjax_lite.round.sampling import everyone
from fedjax_lite.verify.records import Check
from fedjax_lite.verify.testbeds import (
    ETA,
    OPTIMUM,
    ROUNDS,
    UNIFORM,
    UNIFORM_OPTIMUM,
    A,
    B,
    P,
    alternating,
    quadratic,
    sweep,
    trajectory,
    whole,
)

SOLVED = 400
"""Gradient steps that solve a local problem to 1e-16 at alpha = 1."""


def dynamic(alpha: Any = 1.0, *, steps: int = SOLVED, **options: Any) -> Any:
    """FedDyn on Q2 with everyone."""
    from fedjax_lite.algorithms.feddyn import feddyn

    optimizer, plan = optax.sgd(ETA), whole(steps)
    return feddyn(quadratic, optimizer, alpha=alpha, plan=plan, sampler=everyone(), **options)


def loop(
    cohorts: Sequence[Sequence[int]], *, alpha: float = 1.0, weights: Any = UNIFORM
) -> np.ndarray:
    """``x`` after each round with exact solves, ``alpha_i = alpha / (N p_i)`` locally."""
    x, h, g, path = 0.0, 0.0, np.zeros(2), []
    local = alpha / (2 * weights)
    for cohort in cohorts:
        members = list(cohort)
        y = (A * B + g + local * x) / (A + local)
        g[members] -= (local * (y - x))[members]
        h -= alpha / 2 * float((y - x)[members].sum())
        x = float(y[members].mean()) - h / alpha
        path.append(x)
    return np.array(path)


def checks() -> list[Check]:
    """Trajectories and limits, full and partial participation, uniform and weighted."""
    rounds = ROUNDS
    full, alone = [(0, 1)] * 3, [(r % 2,) for r in range(4)]

    @functools.cache  # one compiled run serves its trajectory, its invariant and its limit
    def run(partial: bool = False, **options: Any) -> Any:
        return trajectory(
            dynamic(**options),
            rounds,
            cohorts=alternating(rounds) if partial else None,
            read=lambda state: (state.server.params, state.server.correction, state.clients),
        )

    def path(num_rounds: int, **options: Any) -> np.ndarray:
        return run(**options)[0][:num_rounds]

    def gap() -> np.ndarray:
        """``h - mean of all g_i`` after every round of one client each."""
        _, h, own = run(partial=True)
        return (h - own.mean(axis=1))[:8]

    return [
        Check("cohorts {1},{2},..: h = mean g_i", np.zeros(8), gap),
        Check("alpha=1: three rounds", loop(full), lambda: path(3)),
        Check("cohorts {1},{2},..: four rounds", loop(alone), lambda: path(4, partial=True)),
        Check(
            "limit is the optimum, uniform, alpha=(.5, 1, 5)",
            np.full(3, UNIFORM_OPTIMUM),
            lambda: sweep(dynamic, [0.5, 1.0, 5.0], 2 * ROUNDS),
        ),
        Check(
            "cohorts {1},{2},..: limit is the optimum",
            UNIFORM_OPTIMUM,
            lambda: path(rounds, partial=True)[-1],
        ),
        Check(
            "p weights: three rounds",
            loop(full, weights=P),
            lambda: path(3, weighting="examples"),
        ),
        Check(
            "p weights: limit is the optimum",
            OPTIMUM,
            lambda: path(rounds, weighting="examples")[-1],
        ),
    ]
