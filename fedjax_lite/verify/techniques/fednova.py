"""FedNova: directions normalised by the work done; the error vanishes with the rate, O(eta)."""

from __future__ import annotations

from typing import Any

import numpy as np

from fedjax_lite.data.population.dataset import from_owners
from fedjax_lite.round.sampling import everyone
from fedjax_lite.verify.records import Check
from fedjax_lite.verify.testbeds import (
    ETA,
    OPTIMUM,
    ROUNDS,
    A,
    B,
    P,
    averaging,
    fixed,
    locally,
    quadratic,
    shrink,
    sweep,
    trajectory,
    whole,
)

WORK = np.array([20, 2])


def normalised(steps: Any, *, rate: Any = ETA, loss: Any = quadratic, **options: Any) -> Any:
    """FedNova on Q2 with everyone."""
    from fedjax_lite.algorithms.fednova import fednova

    return fednova(loss, rate, plan=whole(steps), sampler=everyone(), **options)


def first_round() -> float:
    """``x = -tau_eff eta sum p_i d_i`` with ``d_i = (x - y_i) / (eta K_i)``."""
    directions = (0.0 - locally(0.0, WORK)) / (ETA * WORK)
    return float(-(P @ WORK) * ETA * (P @ directions))


def momentum_round() -> float:
    """K = (2, 3) steps with momentum .9: ``|a|_1 = 2.9`` and 5.61."""
    work, norm = np.array([2, 3]), np.array([2.9, 5.61])
    y, v = np.zeros(2), np.zeros(2)
    for step in range(3):
        active = step < work
        v = np.where(active, 0.9 * v + A * (y - B), v)
        y = np.where(active, y - ETA * v, y)
    return float(-(P @ norm) * (P @ (-y / norm)))


def proximal_round() -> float:
    """K = (3, 2), mu = 1: ``a_j = (1 - alpha)^(K-1-j)``, and ``tau_eff = sum p_i K_i``."""
    work, alpha = np.array([3, 2]), ETA * 1.0
    norm = np.array([sum((1 - alpha) ** j for j in range(k)) for k in work])
    return float(-(P @ work) * (P @ (-locally(0.0, work, mu=1.0) / norm)))


def linear_direction() -> float:
    """On ``f_i = g_i x``, g = (1, -2), K = (20, 2): the model moves by -tau_eff eta sum p_i g_i."""
    owners = np.repeat([0, 1], [30, 10])
    data = from_owners({"g": np.array([1.0, -2.0])[owners]}, owners, 2)
    algo = normalised(WORK, loss=lambda w, e, key: w * e["g"])
    x = trajectory(algo, 1, data=data)[0]
    return float(-x / (ETA * (P @ WORK)))


def checks() -> list[Check]:
    """Rounds, fixed points, momentum, the proximal vector, the order of the error."""
    rates = np.array([1e-2, 1e-3])
    errors = [fixed(shrink(WORK, rate) / WORK) - OPTIMUM for rate in rates]
    return [
        Check("K=(20,2), round 1", first_round(), lambda: trajectory(normalised(WORK), 1)[0]),
        Check(
            "K=(20,2), fixed point",
            fixed(shrink(WORK) / WORK),
            lambda: trajectory(normalised(WORK), ROUNDS)[-1],
        ),
        Check(
            "error at eta=(1e-2, 1e-3) is O(eta)",
            errors,
            lambda: sweep(lambda rate: normalised(WORK, rate=rate), rates, 1200) - OPTIMUM,
        ),
        Check(
            "momentum .9, K=(2,3), round 1",
            momentum_round(),
            lambda: trajectory(normalised((2, 3), momentum=0.9), 1)[0],
        ),
        Check(
            "proximal mu=1, K=(3,2), round 1",
            proximal_round(),
            lambda: trajectory(normalised((3, 2), mu=1.0), 1)[0],
        ),
        Check("linear losses: exact direction", float(P @ [1.0, -2.0]), linear_direction),
        Check("equal steps = FedAvg", averaging(3), lambda: trajectory(normalised(5), 3)),
    ]
