"""FedAvg: trajectories and fixed points, also with unequal work and non-commuting Hessians."""

from __future__ import annotations

import functools
from typing import Any

import jax.numpy as jnp
import numpy as np
import optax

from fedjax_lite.algorithms.baselines import pooled
from fedjax_lite.algorithms.fedavg import fedavg
from fedjax_lite.data.population.dataset import from_owners
from fedjax_lite.engine.batches import Plan
from fedjax_lite.round.sampling import everyone
from fedjax_lite.verify.records import Check
from fedjax_lite.verify.testbeds import (
    ETA,
    OPTIMUM,
    ROUNDS,
    UNIFORM,
    A,
    P,
    alternating,
    averaging,
    fixed,
    locally,
    q2,
    quadratic,
    shrink,
    trajectory,
    whole,
)

H = np.array([[[2.0, 1.0], [1.0, 2.0]], [[1.0, 0.0], [0.0, 4.0]]])
W = np.array([[1.0, -1.0], [-2.0, 3.0]])


def averaged(plan: Plan, *, rate: float = ETA, loss: Any = quadratic, **options: Any) -> Any:
    """FedAvg with everyone."""
    return fedavg(loss, optax.sgd(rate), plan=plan, sampler=everyone(), **options)


def matrix_fixed_point(steps: tuple[int, int], rate: float) -> np.ndarray:
    """``(sum p_i Q_i)^-1 sum p_i Q_i w_i`` with ``Q_i = I - (I - eta H_i)^K_i``."""
    one = np.eye(2)
    q = np.stack([one - np.linalg.matrix_power(one - rate * h, k) for h, k in zip(H, steps)])
    q = P[:, None, None] * q
    return np.linalg.solve(q.sum(0), np.einsum("nij,nj->i", q, W))


def matrix_models(steps: tuple[int, int], rate: float) -> np.ndarray:
    """The last model on M2."""
    owners = np.array([0, 0, 0, 1])

    def loss(x: Any, e: Any, key: Any) -> Any:
        d = x - e["w"]
        return 0.5 * jnp.einsum("bi,bij,bj->b", d, e["h"], d)

    data = from_owners({"h": H[owners], "w": W[owners]}, owners, 2)
    algo = averaged(whole(steps), rate=rate, loss=loss)
    return trajectory(algo, 200, data=data, start=np.zeros(2))[-1]


def tyranny() -> list[float]:
    """The limit on T4, where 900 of 1000 examples say 0 and 100 say 3, and both sides' losses."""
    data = q2(np.ones(4), np.array([0.0, 0.0, 3.0, 3.0]), np.array([450, 450, 50, 50]))
    x = float(trajectory(averaged(whole(1), rate=0.5), 60, data=data, start=2.0)[-1])
    return [x, 0.5 * x**2, 0.5 * (x - 3) ** 2]


def checks() -> list[Check]:
    """Q2, M2, T4, unequal work, partial participation, one client."""
    five = functools.cache(lambda: trajectory(averaged(whole()), ROUNDS))
    unequal, epoch = whole((20, 2)), Plan(batch_size=10, epochs=1)
    visits, x = [], 0.0
    for r in range(4):  # cohorts of one client: its own model
        x = float(locally(x)[r % 2])
        visits.append(x)
    shares = OPTIMUM * (1 - (1 - ETA * (P * A).sum()) ** (5 * np.arange(1, 4)))
    return [
        Check("K=5, three rounds on Q2", averaging(3), lambda: five()[:3]),
        Check("K=5, fixed point", fixed(shrink()), lambda: five()[-1]),
        Check(
            "K=5, uniform, fixed point",
            fixed(shrink(), UNIFORM),
            lambda: trajectory(averaged(whole(), weighting="uniform"), ROUNDS)[-1],
        ),
        Check(
            "K=(20,2), fixed point",
            fixed(shrink((20, 2))),
            lambda: trajectory(averaged(unequal), ROUNDS)[-1],
        ),
        Check(
            "E=1 B=10 is K=(3,1), fixed point",
            fixed(shrink((3, 1))),
            lambda: trajectory(averaged(epoch), 2 * ROUNDS)[-1],
        ),
        Check(
            "M2 K=5, fixed point",
            matrix_fixed_point((5, 5), 0.1),
            lambda: matrix_models((5, 5), 0.1),
        ),
        Check(
            "M2 K=(3,7), fixed point",
            matrix_fixed_point((3, 7), 0.1),
            lambda: matrix_models((3, 7), 0.1),
        ),
        Check("T4: limit, loss of majority and minority", [0.3, 0.045, 3.645], tyranny),
        Check(
            "cohorts {1},{2},...: weights of the cohort only",
            visits,
            lambda: trajectory(averaged(whole()), 4, cohorts=alternating(4)),
        ),
        Check(
            "one client = gradient descent",
            shares,
            lambda: trajectory(averaged(whole()), 3, data=pooled(q2())),
        ),
    ]
