"""IFCA on four quadratics: two groups that are far apart, by hand."""

from __future__ import annotations

from typing import Any

import jax.numpy as jnp
import numpy as np
import optax

from fedjax_lite.algorithms.clusters.ifca import ifca
from fedjax_lite.algorithms.fedavg import fedavg
from fedjax_lite.data.population.dataset import FederatedDataset
from fedjax_lite.round.sampling import everyone
from fedjax_lite.types import Cohort
from fedjax_lite.verify.records import Check
from fedjax_lite.verify.testbeds import q2, quadratic, trajectory, whole

OPTIMA = np.array([-5.0, -4.8, 5.0, 5.2])
SIZES = np.array([10, 30, 20, 20])


def groups(sizes: Any = SIZES) -> FederatedDataset:
    """``f_i(x) = (x - b_i)^2 / 2``, two clients below 0 and two above."""
    return q2(np.ones(4), OPTIMA, sizes)


def by_hand(
    start: Any, num_rounds: int, rate: float, *, steps: int = 1, weights: Any = SIZES,
    averaging: str = "model",
) -> np.ndarray:  # fmt: skip
    """Models and assignments of IFCA, `[R, K + 4]`, a numpy loop over clients."""
    x, path = np.array(start), []
    weights = np.asarray(weights, float)
    for _ in range(num_rounds):
        chosen = np.array([np.argmin((x - b) ** 2) for b in OPTIMA])
        ends = OPTIMA + (1 - rate) ** steps * (x[chosen] - OPTIMA)
        new = x.copy()
        for k in range(len(x)):
            inside = chosen == k
            if inside.any():
                among = weights.sum() if averaging == "gradient" else weights[inside].sum()
                new[k] = x[k] + (weights[inside] * (ends[inside] - x[k])).sum() / among
        x = new
        path.append([*x, *chosen])
    return np.array(path)


def found(start: Any, num_rounds: int, rate: float, *, steps: int = 1, **options: Any) -> Any:
    """The same of the library."""
    algo = ifca(
        quadratic, optax.sgd(rate), num_clusters=len(start), plan=whole(steps), sampler=everyone(),
        **options,
    )  # fmt: skip
    return trajectory(
        algo, num_rounds, data=groups(), start=np.array(start),
        read=lambda state: jnp.concatenate([state.server.params, state.clients.cluster]),
    )  # fmt: skip


def checks() -> list[Check]:
    """Assignments, averages of either kind, empty clusters, one cluster."""
    near, far, tied = (-1.0, 1.0), (20.0, 1.0), (0.0, 0.0, 3.0)
    plain = fedavg(quadratic, optax.sgd(0.1), plan=whole(3), sampler=everyone())
    adam = {"server_optimizer": optax.adam(0.1)}

    def away() -> Any:
        """Adam at the server; in the second round only cluster 1's clients come."""
        algo = ifca(
            quadratic, optax.sgd(0.5), num_clusters=2, plan=whole(1), sampler=everyone(), **adam
        )
        ids, mask = np.tile(np.arange(4, dtype=np.int32), (2, 1)), np.ones((2, 4), bool)
        mask[1, :2] = False
        cohorts = Cohort(jnp.asarray(ids), jnp.asarray(mask))
        path = trajectory(algo, 2, data=groups(), start=np.array(near), cohorts=cohorts)
        return path[1, 0] - path[0, 0]

    return [
        Check(
            "two groups: assignments and weighted means",
            [-4.85, 5.1, 0, 0, 1, 1],
            lambda: found(near, 1, 1.0)[0],
        ),
        Check(
            "uniform weights",
            [-4.9, 5.1, 0, 0, 1, 1],
            lambda: found(near, 1, 1.0, weighting="uniform")[0],
        ),
        Check(
            "five rounds of local steps",
            by_hand(near, 5, 0.1, steps=3),
            lambda: found(near, 5, 0.1, steps=3),
        ),
        Check(
            "gradient averaging: five rounds",
            by_hand(near, 5, 0.3, averaging="gradient"),
            lambda: found(near, 5, 0.3, averaging="gradient"),
        ),
        Check(
            "a cluster of nobody keeps its model", by_hand(far, 3, 0.5), lambda: found(far, 3, 0.5)
        ),
        Check("ties go to the lowest number", by_hand(tied, 1, 0.5), lambda: found(tied, 1, 0.5)),
        Check("Adam at the server rests where nobody comes", 0.0, away),
        Check(
            "one cluster = FedAvg",
            np.zeros(3),
            lambda: (
                found((0.5,), 3, 0.1, steps=3)[:, 0]
                - trajectory(plain, 3, data=groups(), start=0.5)
            ),
        ),
    ]
