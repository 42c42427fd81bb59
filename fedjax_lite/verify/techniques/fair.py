"""Fair methods on quadratics: rounds by hand, and the points where they end."""

from __future__ import annotations

from typing import Any

import numpy as np
import optax

from fedjax_lite.aggregation.min_norm import min_norm
from fedjax_lite.aggregation.stacked import aggregate_stack
from fedjax_lite.algorithms.fair.afl import afl
from fedjax_lite.algorithms.fair.fedmgda import fedmgda
from fedjax_lite.algorithms.fair.q_fedavg import q_fedavg
from fedjax_lite.algorithms.fair.q_fedsgd import q_fedsgd
from fedjax_lite.algorithms.fair.term import term
from fedjax_lite.round.sampling import everyone
from fedjax_lite.verify.records import Check
from fedjax_lite.verify.testbeds import (
    ETA,
    ROUNDS,
    UNIFORM,
    A,
    B,
    P,
    averaging,
    locally,
    quadratic,
    trajectory,
    whole,
)


def losses(x: float) -> np.ndarray:
    """`F_i(x)` on Q2, `[2]`."""
    return 0.5 * A * (x - B) ** 2


def q_loop(num_rounds: int, q: float, *, steps: int = 5, weights: Any = UNIFORM) -> list[float]:
    """Models of q-FedAvg on Q2, the paper's formulas."""
    x, models = 0.0, []
    for _ in range(num_rounds):
        F, change = losses(x), (x - locally(x, steps)) / ETA
        h = q * F ** (q - 1) * change**2 + F**q / ETA
        x = x - float((weights * F**q * change).sum() / (weights * h).sum())
        models.append(x)
    return models


def afl_loop(num_rounds: int, rate: float) -> np.ndarray:
    """`x` and `lambda` of AFL on Q2 with one step a round, `[R, 3]`."""
    x, mixture, path = 0.0, UNIFORM, []
    for _ in range(num_rounds):
        raised = mixture + rate * losses(x)
        x = x - ETA * float((mixture * A * (x - B)).sum())
        mixture = simplex(raised)
        path.append([x, *mixture])
    return np.array(path)


def simplex(point: np.ndarray) -> np.ndarray:
    """The nearest point of the simplex: the largest support whose shift leaves it positive."""
    for k in range(len(point), 0, -1):
        top = np.sort(point)[-k:]
        shift = (top.sum() - 1) / k
        if top[0] - shift > 0:
            return np.maximum(point - shift, 0)
    raise AssertionError("a support of one is always positive")


def term_loop(num_rounds: int, tilt: float) -> list[float]:
    """Models of TERM on Q2."""
    x, models = 0.0, []
    for _ in range(num_rounds):
        weights = P * np.exp(tilt * losses(x))
        x = float(weights @ locally(x)) / float(weights.sum())
        models.append(x)
    return models


def root(slope: Any) -> float:
    """Where a rising function of `x` is 0, between the clients' optima."""
    low, high = float(B[0]), float(B[1])
    for _ in range(200):
        middle = (low + high) / 2
        low, high = (middle, high) if slope(middle) < 0 else (low, middle)
    return low


def q_optimum(q: float, weights: Any = UNIFORM) -> float:
    """The minimiser of ``sum w_i F_i^(q + 1)``."""
    return root(lambda x: (weights * losses(x) ** q * A * (x - B)).sum())


def tilted_optimum(tilt: float) -> float:
    """The minimiser of ``sum p_i exp(t F_i)``."""
    return root(lambda x: (P * np.exp(tilt * losses(x)) * A * (x - B)).sum())


def fair(factory: Any, rate: Any, steps: int = 5, **options: Any) -> Any:
    """A method on Q2 with everyone."""
    return factory(quadratic, rate, plan=whole(steps), sampler=everyone(), **options)


def checks() -> list[Check]:
    """q-FedAvg, q-FedSGD, AFL, TERM and FedMGDA+."""
    sgd = optax.sgd(ETA)

    def one_gradient(q: float, **more: Any) -> Any:
        algo = q_fedsgd(quadratic, ETA, q=q, sampler=everyone(), **more)
        return trajectory(algo, 40 * ROUNDS)[-1]

    def mixture(state: Any) -> Any:
        return state.server.mixture

    def average(state: Any) -> Any:
        return state.server.mean_mixture

    agnostic = fair(afl, sgd, 1, mixture_rate=0.05)
    path = afl_loop(50, 0.05)
    opposite = np.array([[2.0, 0.0, 1.0], [0.0, 1.0, 1.0]])
    return [
        *(
            Check(
                f"q-FedAvg, q={q}: three rounds",
                q_loop(3, q),
                lambda q=q: trajectory(fair(q_fedavg, ETA, q=q), 3),
            )
            for q in (0.1, 1.0, 2.0)
        ),
        Check(
            "q-FedAvg, q=1, example weights: three rounds",
            q_loop(3, 1.0, weights=P),
            lambda: trajectory(fair(q_fedavg, ETA, q=1.0, weighting="examples"), 3),
        ),
        Check(
            "q-FedAvg, q=0 = FedAvg, uniform weights",
            averaging(3, weights=UNIFORM),
            lambda: trajectory(fair(q_fedavg, ETA, q=0.0), 3),
        ),
        *(
            Check(f"q-FedSGD, q={q}: minimiser", q_optimum(q), lambda q=q: one_gradient(q))
            for q in (0.1, 1.0, 5.0)
        ),
        Check(
            "q-FedSGD in batches = the whole gradient",
            q_loop(3, 1.0, steps=1),
            lambda: trajectory(
                q_fedsgd(quadratic, ETA, q=1.0, sampler=everyone(), batch_size=4), 3
            ),
        ),
        Check("AFL: model of fifty rounds", path[:, 0], lambda: trajectory(agnostic, 50)),
        Check(
            "AFL: mixture of fifty rounds",
            path[:, 1:],
            lambda: trajectory(agnostic, 50, read=mixture),
        ),
        Check(
            "AFL: averages go to the minimax mixture",
            [2 / 3, 1 / 3],
            lambda: trajectory(agnostic, 4000, read=average)[-1],
            5e-3,
        ),
        Check(
            "AFL, mixture at rest = FedAvg, uniform weights",
            averaging(3, weights=UNIFORM),
            lambda: trajectory(fair(afl, sgd, mixture_rate=0.0), 3),
        ),
        Check(
            "TERM, tilt=.5: three rounds",
            term_loop(3, 0.5),
            lambda: trajectory(fair(term, sgd, tilt=0.5), 3),
        ),
        Check(
            "TERM, tilt=2: minimiser",
            tilted_optimum(2.0),
            lambda: trajectory(fair(term, optax.sgd(0.01), 1, tilt=2.0), 20 * ROUNDS)[-1],
        ),
        Check(
            "TERM, tilt=0 = FedAvg", averaging(3), lambda: trajectory(fair(term, sgd, tilt=0.0), 3)
        ),
        Check(
            "FedMGDA without deviation and lengths = FedAvg",
            averaging(3),
            lambda: trajectory(fair(fedmgda, sgd, deviation=0.0, normalise=False), 3),
        ),
        Check(
            "min-norm point of two messages",
            nearest(*opposite),
            lambda: aggregate_stack(min_norm(normalise=False), opposite),
        ),
        Check(
            "min-norm point of two directions: their bisector",
            (opposite / np.linalg.norm(opposite, axis=1)[:, None]).mean(0),
            lambda: aggregate_stack(min_norm(), opposite),
        ),
    ]


def nearest(u: np.ndarray, v: np.ndarray) -> np.ndarray:
    """The point of the segment from `u` to `v` that is nearest to 0."""
    share = np.clip(((v - u) @ v) / ((u - v) @ (u - v)), 0, 1)
    return share * u + (1 - share) * v
