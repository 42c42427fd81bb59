"""Inverse-variance weights that clients measure, against sums by hand."""

from __future__ import annotations

import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax

from fedjax_lite.algorithms.precision_weighted import precision_weighted
from fedjax_lite.data.population.dataset import FederatedDataset, from_owners
from fedjax_lite.engine.batches import Plan
from fedjax_lite.round.sampling import everyone
from fedjax_lite.types import Array
from fedjax_lite.verify.records import Check
from fedjax_lite.verify.testbeds import quadratic

SPREAD = (1.0, 2.0, 0.5)
SIZES = (10, 40, 5)
PLAN = Plan(batch_size=None, steps=1)


def pairs(centres: Any = (0.0, 0.0, 10.0), apart: Any = (1.0, 1.0, 0.1)) -> FederatedDataset:
    """Clients of two examples, ``centre +- apart``: their means have the variance ``apart^2``."""
    values = np.stack([np.subtract(centres, apart), np.add(centres, apart)], 1).reshape(-1)
    owners = np.repeat(np.arange(len(centres)), 2)
    return from_owners({"a": np.ones(len(values)), "b": values}, owners, len(centres))


def examples() -> list[np.ndarray]:
    """Normal examples of three clients."""
    rng = np.random.default_rng(0)
    return [i + rng.normal(0, SPREAD[i], SIZES[i]) for i in range(3)]


def scattered() -> FederatedDataset:
    """A population of them."""
    values = np.concatenate(examples())
    return from_owners({"a": np.ones(len(values)), "b": values}, np.repeat(range(3), SIZES), 3)


def weights_of(floor: float) -> np.ndarray:
    """Shares by numpy's variances."""
    weights = np.array([len(v) / max(v.var(ddof=1), floor) for v in examples()])
    return weights / weights.sum()


def by_hand(floor: float) -> float:
    """One exact step of each client to its mean, weighed by numpy's variances."""
    return float(weights_of(floor) @ [v.mean() for v in examples()])


@functools.partial(jax.jit, static_argnums=2)
def found(data: FederatedDataset, floors: Any, plan: Plan) -> Array:
    """Models and largest weights of a round from 1000, `[F, 2]`, by the library."""

    def one(floor: Array) -> Array:
        algo = precision_weighted(
            quadratic, optax.sgd(1.0), floor=floor, plan=plan, sampler=everyone()
        )
        key = jax.random.key(0)
        state, metrics = algo.round(key, algo.init(key, jnp.array(1000.0), data), data)
        return jnp.stack([state.server.params, metrics["largest_weight"]])

    return jax.vmap(one)(floors)


def of_pairs(*floors: float, **options: Any) -> np.ndarray:
    """The same of two examples a client."""
    return np.asarray(found(pairs(**options), jnp.array(floors), PLAN))


def checks() -> list[Check]:
    """Variances by numpy, floors, batches, the pitfall, and FedAvg where the floor is high."""
    means = {"centres": (1.0, 2.0, 3.0), "apart": (1.0, 2.0, 0.5)}
    values = np.concatenate(examples())
    floors = np.array([0.1, 1.0, 1e6])
    batches = Plan(batch_size=7, steps=1)
    return [
        Check(
            "variances 1, 4, .25 of the estimates 1, 2, 3",
            18 / 7,
            lambda: of_pairs(1e-9, 1.0, **means)[0, 0],
        ),
        Check(
            "a precise client decides, until a floor stops it",
            [[1000 / 102, 100 / 102], [5.0, 0.5]],
            lambda: of_pairs(1e-9, 1.0),
        ),
        Check(
            "weights that are measured",
            [by_hand(floor) for floor in floors[:2]],
            lambda: found(scattered(), jnp.array(floors), PLAN)[:2, 0],
        ),
        Check(
            "measured in batches of seven",
            [weights_of(floor).max() for floor in floors],
            lambda: found(scattered(), jnp.array(floors), batches)[:, 1],
        ),
        Check(
            "a floor above every variance = FedAvg",
            values.mean(),
            lambda: found(scattered(), jnp.array(floors), PLAN)[2, 0],
        ),
    ]
