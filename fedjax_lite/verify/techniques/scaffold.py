"""SCAFFOLD: trajectories of model and control variate, their invariant, partial participation."""

from __future__ import annotations

import functools
from collections.abc import Sequence
from typing import Any

import numpy as np

from fedjax_lite.round.sampling import everyone
from fedjax_lite.verify.records import Check
from fedjax_lite.verify.testbeds import (
    ETA,
    OPTIMUM,
    ROUNDS,
    STEPS,
    UNIFORM,
    UNIFORM_OPTIMUM,
    A,
    B,
    P,
    alternating,
    averaging,
    locally,
    quadratic,
    trajectory,
    whole,
)

BOTH = (0, 1)


def corrected(steps: Any = STEPS, **options: Any) -> Any:
    """SCAFFOLD on Q2 with everyone."""
    from fedjax_lite.algorithms.scaffold import scaffold

    return scaffold(quadratic, ETA, plan=whole(steps), sampler=everyone(), **options)


def loop(
    cohorts: Sequence[Sequence[int]],
    *,
    option: int = 2,
    weights: Any = UNIFORM,
    steps: Any = STEPS,
    start: float = 0.0,
    server_rate: float = 1.0,
) -> np.ndarray:
    """``(x, c, c_1, c_2)`` after each round, `[R, 4]`, as the paper has it, from controls of zero.

    The reference of all of the project's tests of SCAFFOLD. Args: who takes part in each round, the
    option of the paper's line 12, weights of the clients, their local steps, and the server's rate.
    """
    x, c, own, path = start, 0.0, np.zeros(2), []
    steps = np.broadcast_to(steps, 2)
    for cohort in cohorts:
        members = list(cohort)
        y = locally(x, steps, correction=c - own)
        new = A * (x - B) if option == 1 else own - c + (x - y) / (steps * ETA)
        shares = weights[members] / weights[members].sum()
        change = (weights * (new - own))[members].sum()  # 1/N or p_i, also where few take part
        own[members] = new[members]
        x, c = x + server_rate * float(shares @ (y[members] - x)), c + float(change)
        path.append((x, c, *own))
    return np.array(path)


def checks() -> list[Check]:
    """Both options, both weightings, full and partial participation."""
    alone = [(r % 2,) for r in range(4)]
    full, rounds = [BOTH] * 3, ROUNDS

    def kept(state: Any) -> Any:
        return state.server.params, state.server.control, state.clients

    @functools.cache  # one compiled run serves its trajectory, its invariant and its limit
    def run(partial: bool = False, **options: Any) -> Any:
        return trajectory(
            corrected(**options),
            rounds,
            cohorts=alternating(rounds) if partial else None,
            read=kept,
        )

    def path(num_rounds: int, **options: Any) -> np.ndarray:
        return np.column_stack(run(**options))[:num_rounds]

    def from_three() -> np.ndarray:
        """Controls start at zero, not at the weights: only a start elsewhere can tell."""
        return np.column_stack(trajectory(corrected(), 3, start=3.0, read=kept))

    def gap() -> np.ndarray:
        """``c - mean of all c_i`` after every round of one client each."""
        _, c, own = run(partial=True)
        return (c - own.mean(axis=1))[:8]

    def limit(**options: Any) -> float:
        return float(run(**options)[0][-1])

    return [
        Check("round 1 = FedAvg, uniform", averaging(1, weights=UNIFORM), lambda: path(1)[:, 0]),
        Check("option II: x, c, c_i", loop(full), lambda: path(3)),
        Check("from x=3: x, c, c_i", loop(full, start=3.0), from_three),
        Check("option I: x, c, c_i", loop(full, option=1), lambda: path(3, option=1)),
        Check("p weights: x, c, c_i", loop(full, weights=P), lambda: path(3, weighting="examples")),
        Check("K=(7,2): steps done count", loop(full, steps=(7, 2)), lambda: path(3, steps=(7, 2))),
        Check("cohorts {1},{2},..: x, c, c_i", loop(alone), lambda: path(4, partial=True)),
        Check("cohorts {1},{2},..: c = mean c_i", np.zeros(8), gap),
        Check("limit is the optimum, uniform", UNIFORM_OPTIMUM, limit),
        Check("p weights: limit is the optimum", OPTIMUM, lambda: limit(weighting="examples")),
        Check(
            "cohorts {1},{2},..: limit is the optimum",
            UNIFORM_OPTIMUM,
            lambda: limit(partial=True),
        ),
    ]
