"""Lifelong learning: where the pulls of old tasks and of other clients end on quadratics."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax

from fedjax_lite.algorithms.ewc import ewc, with_old_tasks
from fedjax_lite.algorithms.fedcurv import fedcurv
from fedjax_lite.algorithms.three_way import three_way
from fedjax_lite.data.population.dataset import from_owners
from fedjax_lite.evaluate.fisher import fisher_information
from fedjax_lite.objectives.ewc import remember
from fedjax_lite.objectives.fisher import empirical_fisher, exact_fisher
from fedjax_lite.round.sampling import everyone
from fedjax_lite.types import Array, Cohort
from fedjax_lite.verify.records import Check
from fedjax_lite.verify.testbeds import averaging, quadratic, trajectory, whole

TASKS = ((2.0, 1.0), (3.0, 0.5))
"""Fisher information and optimum of two old tasks; the new one is ``4 / 2 (w + 1)^2``."""
P, X = np.array([1.0, 2.0, 3.0]) / 6, np.array([1.0, 2.0])


def one_client(a: float = 4.0, b: float = -1.0) -> Any:
    """The new task, of one client."""
    return from_owners({"a": np.array([a]), "b": np.array([b])}, np.zeros(1, int), 1)


def ends(factory: Any, tasks: Any, **options: Any) -> float:
    """Where a client ends that knows some old tasks, from 1."""
    algo = factory(quadratic, optax.sgd(0.05), plan=whole(200), sampler=everyone(), **options)
    data, key = one_client(), jax.random.key(0)
    state = algo.init(key, jnp.array(1.0), data)
    old = state.server.old
    for fisher, optimum in tasks:
        old = remember(old, jnp.array(fisher), jnp.array(optimum))
    return float(algo.round(key, with_old_tasks(state, old), data)[0].server.params)


def after_another() -> float:
    """FedCurv: where a client ends, after one that stays at 1 and knows 2 of it."""
    data = from_owners({"a": np.array([1.0, 4.0]), "b": np.array([1.0, -1.0])}, np.arange(2), 2)
    algo = fedcurv(
        *(quadratic, optax.sgd(0.05)),
        lam=1.0,
        plan=whole(200),
        sampler=everyone(),
        fisher=lambda params, batch: 2.0 * batch.mask.sum(),
    )
    turns = Cohort(jnp.array([[0], [1]], jnp.int32), jnp.ones((2, 1), bool))
    return float(trajectory(algo, 2, data=data, start=1.0, cohorts=turns)[-1])


def softmax(w: Array, e: Any) -> Array:
    """Logits of softmax regression."""
    return e["x"] @ w


def cross_entropy(w: Array, e: Any, key: Any) -> Array:
    """Its loss."""
    return -jnp.take_along_axis(jax.nn.log_softmax(softmax(w, e)), e["y"][:, None], 1)[:, 0]


def information(fisher: Any) -> np.ndarray:
    """At probabilities 1/6, 1/3, 1/2 of x = (1, 2), whose label is 2."""
    data = from_owners({"x": X[None], "y": np.array([2])}, np.zeros(1, int), 1)
    return np.asarray(fisher_information(fisher, jnp.array(np.outer(X, np.log(P)) / 5), data))


def checks() -> list[Check]:
    """Known optima of EWC, FedCurv and the three-way objective; the Fisher information."""
    none: tuple[Any, ...] = ()
    return [
        Check("EWC, lam=1: optimum", -1 / 3, lambda: ends(ewc, TASKS[:1], lam=1.0)),
        Check("EWC, lam=3: optimum", 0.2, lambda: ends(ewc, TASKS[:1], lam=3.0)),
        Check("EWC, two old tasks: optimum", -1 / 18, lambda: ends(ewc, TASKS, lam=1.0)),
        Check("EWC without old tasks = local optimum", -1.0, lambda: ends(ewc, none, lam=1.0)),
        Check(  # 4 (w + 1) + 2 (w - 1) + 2 (w - 1) = 0
            "three-way, mu=2: optimum", 0.0, lambda: ends(three_way, TASKS[:1], lam=1.0, mu=2.0)
        ),
        Check("FedCurv, lam=1: optimum beside another", 0.0, after_another),
        Check(
            "FedCurv, lam=0 = FedAvg",
            averaging(3),
            lambda: trajectory(
                fedcurv(quadratic, optax.sgd(0.05), lam=0.0, plan=whole(), sampler=everyone()), 3
            ),
            1e-14,
        ),
        Check(
            "exact Fisher information of softmax regression",
            np.outer(X**2, P * (1 - P)),
            lambda: information(exact_fisher(softmax)),
        ),
        Check(
            "empirical Fisher information at a label",
            np.outer(X**2, (P - np.array([0.0, 0.0, 1.0])) ** 2),
            lambda: information(empirical_fisher(cross_entropy)),
        ),
    ]
