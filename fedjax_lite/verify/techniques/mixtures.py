"""FedEM on the quadratics of IFCA: losses, responsibilities and weighted steps by a numpy loop."""

from __future__ import annotations

from typing import Any

import jax.numpy as jnp
import numpy as np
import optax

from fedjax_lite.algorithms.clusters.fedem import fedem
from fedjax_lite.algorithms.fedavg import fedavg
from fedjax_lite.round.sampling import everyone
from fedjax_lite.verify.records import Check
from fedjax_lite.verify.techniques.clusters import OPTIMA, SIZES, groups
from fedjax_lite.verify.testbeds import quadratic, trajectory, whole


def by_hand(start: Any, num_rounds: int, rate: float, steps: int = 1) -> np.ndarray:
    """Models and proportions of FedEM, `[R, K + 4 K]`.

    All examples of a client are alike, so each has the same responsibilities `q`, and a step on
    model `k` is ``y <- y - rate q_k (y - b)``.
    """
    x = np.array(start, float)
    pi, path = np.full((4, len(x)), 1 / len(x)), []
    for _ in range(num_rounds):
        part = pi * np.exp(-0.5 * (x - OPTIMA[:, None]) ** 2)
        part = part / part.sum(1, keepdims=True)
        ends = OPTIMA[:, None] + (1 - rate * part) ** steps * (x - OPTIMA[:, None])
        x, pi = SIZES @ ends / SIZES.sum(), part
        path.append([*x, *pi.ravel()])
    return np.array(path)


def found(start: Any, num_rounds: int, rate: float, steps: int = 1) -> Any:
    """The same of the library."""
    algo = fedem(
        quadratic, optax.sgd(rate), num_models=len(start), plan=whole(steps), sampler=everyone()
    )
    return trajectory(
        algo, num_rounds, data=groups(), start=np.array(start, float),
        read=lambda state: jnp.concatenate([state.server.params, state.clients.weights.ravel()]),
    )  # fmt: skip


def checks() -> list[Check]:
    """Responsibilities, proportions, weighted steps, one model, equal models."""
    plain = fedavg(quadratic, optax.sgd(0.1), plan=whole(3), sampler=everyone())
    near, three = (-1.0, 1.0), (-1.0, 0.5, 2.0)

    def one() -> Any:
        path = found((0.5,), 3, 0.1, steps=3)[:, 0]
        return path - trajectory(plain, 3, data=groups(), start=0.5)

    def of_equals() -> Any:
        path = found((0.5, 0.5), 3, 0.2)
        return np.concatenate([path[:, 0] - path[:, 1], path[:, 2:].ravel() - 0.5])

    return [
        Check("one round of one step", by_hand(near, 1, 0.3), lambda: found(near, 1, 0.3)),
        Check(
            "four rounds of three steps",
            by_hand(near, 4, 0.2, steps=3),
            lambda: found(near, 4, 0.2, steps=3),
        ),
        Check("three models", by_hand(three, 3, 0.2), lambda: found(three, 3, 0.2)),
        Check("one model = FedAvg", np.zeros(3), one),
        Check("equal models stay equal, weights uniform", np.zeros(3 + 24), of_equals),
    ]
