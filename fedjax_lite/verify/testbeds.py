"""Problems whose answers can be written down, and plain numpy versions of what clients do.

Q2: ``f_i(x) = a_i / 2 (x - b_i)^2`` with a = (1, 4), b = (-1, 2), n = (30, 10) examples, from
x = 0 with rate 0.05. `K` exact gradient steps give ``y_i = b_i + (1 - eta a_i)^K (x - b_i)``, so
a method whose fixed point solves ``sum w_i s_i (b_i - x) = 0`` ends in ``fixed(s, w)``.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from fedjax_lite.data.population.dataset import FederatedDataset, from_owners
from fedjax_lite.engine.batches import Plan
from fedjax_lite.types import Array, Cohort, FederatedAlgorithm

A, B, N = np.array([1.0, 4.0]), np.array([-1.0, 2.0]), np.array([30, 10])
P, UNIFORM = N / N.sum(), np.array([0.5, 0.5])
ETA, STEPS = 0.05, 5
ROUNDS = 120
"""Enough for every fixed point on Q2 at 1e-12: rounds contract by at most 0.8."""
OPTIMUM = float((P * A * B).sum() / (P * A).sum())
UNIFORM_OPTIMUM = float((A * B).sum() / A.sum())


def fixed(s: Any, weights: Any = P) -> float:
    """``sum w_i s_i b_i / sum w_i s_i``."""
    return float((weights * s * B).sum() / (weights * s).sum())


def shrink(steps: Any = STEPS, rate: float = ETA) -> np.ndarray:
    """``s_i = 1 - (1 - eta a_i)^K``: the part of the way to its optimum that a client goes."""
    return 1 - (1 - rate * A) ** np.asarray(steps)


def locally(x: float, steps: Any = STEPS, *, correction: Any = 0.0, mu: float = 0.0) -> np.ndarray:
    """Local models `[2]` after gradient steps ``a (y - b) + correction + mu (y - x)``."""
    y = np.full(2, float(x))
    correction = np.broadcast_to(correction, 2)
    for i, number in enumerate(np.broadcast_to(steps, 2)):
        for _ in range(number):
            y[i] -= ETA * (A[i] * (y[i] - B[i]) + correction[i] + mu * (y[i] - x))
    return y


def averaging(num_rounds: int, *, weights: Any = P, steps: Any = STEPS, **options: Any) -> list:
    """Models of FedAvg (with `mu` of FedProx) on Q2, a numpy loop."""
    x, models = 0.0, []
    for _ in range(num_rounds):
        x = float(weights @ locally(x, steps, **options))
        models.append(x)
    return models


def quadratic(params: Array, examples: dict[str, Array], key: Any) -> Array:
    """The loss of Q2's examples."""
    return 0.5 * examples["a"] * (params - examples["b"]) ** 2


def q2(a: Any = A, b: Any = B, n: Any = N) -> FederatedDataset:
    """`n_i` copies of ``(a_i, b_i)`` a client: every batch has the exact gradient."""
    owners = np.repeat(np.arange(len(n)), n)
    return from_owners({"a": np.asarray(a)[owners], "b": np.asarray(b)[owners]}, owners, len(n))


def whole(steps: Any = STEPS) -> Plan:
    """Steps on a client's whole data set."""
    return Plan(batch_size=None, steps=steps if np.ndim(steps) == 0 else np.asarray(steps))


def alternating(num_rounds: int) -> Cohort:
    """Cohorts {1}, {2}, {1}, {2} ..., leaves `[R, 1]`."""
    ids = (np.arange(num_rounds) % 2).astype(np.int32)[:, None]
    return Cohort(jnp.asarray(ids), jnp.ones(ids.shape, bool))


def trajectory(
    algo: FederatedAlgorithm,
    num_rounds: int,
    *,
    data: FederatedDataset | None = None,
    start: Any = 0.0,
    cohorts: Cohort | None = None,
    read: Callable[[Any], Any] = lambda state: state.server.params,
) -> Any:
    """What `read` finds in the state after each round, `[R, ...]`; one compiled program.

    Args:
      algo: the algorithm.
      num_rounds: `R`.
      data: default Q2.
      start: initial parameters.
      cohorts: leaves `[R, C]`, default the sampler's.
      read: ``(state) -> arrays``.

    Returns:
      numpy arrays.

    Example:
      >>> import optax, fedjax_lite as fl
      >>> algo = fl.fedsgd(quadratic, optax.sgd(0.5), sampler=fl.everyone())
      >>> [f"{x:.4f}" for x in trajectory(algo, 2)]  # x - 0.5 * 1.75 (x - 5/7)
      ['0.6250', '0.7031']
    """
    params = jax.tree.map(lambda leaf: jnp.asarray(leaf, jnp.result_type(float)), start)

    @jax.jit
    def run(params: Any, data: FederatedDataset, cohorts: Cohort | None) -> Any:
        key = jax.random.key(0)

        def one(state: Any, cohort: Cohort | None) -> tuple[Any, Any]:
            state, _ = algo.round(key, state, data, cohort)
            return state, read(state)

        return jax.lax.scan(one, algo.init(key, params, data), cohorts, length=num_rounds)[1]

    return jax.tree.map(np.asarray, run(params, q2() if data is None else data, cohorts))


def sweep(make: Callable[[Array], FederatedAlgorithm], values: Any, num_rounds: int) -> np.ndarray:
    """Last models on Q2 for several values of a traced hyper-parameter, in one program."""

    def last(value: Array, data: FederatedDataset) -> Array:
        algo, key = make(value), jax.random.key(0)
        state = algo.init(key, jnp.zeros((), jnp.result_type(float)), data)
        step = lambda _, state: algo.round(key, state, data)[0]  # noqa: E731
        return jax.lax.fori_loop(0, num_rounds, step, state).server.params

    run = jax.jit(lambda values, data: jax.lax.map(lambda v: last(v, data), values))
    return np.asarray(run(jnp.asarray(values, jnp.result_type(float)), q2()))
