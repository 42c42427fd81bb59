"""Methods of several models that must pass the laws."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import optax

from fedjax_lite.algorithms import fedem, ifca
from fedjax_lite.checks.made import signed
from fedjax_lite.engine import Plan
from fedjax_lite.testing.algorithm_laws import Make
from fedjax_lite.testing.problem import loss
from fedjax_lite.types import FederatedAlgorithm

PLAN = Plan(batch_size=2, epochs=2)


def clusters() -> dict[str, Make]:
    """Entries of the registry.

    Example:
      >>> sorted(clusters())
      ['fedem', 'ifca', 'ifca gradient']
    """
    return {
        "fedem": of_two(fedem, optax.sgd, num_models=2),
        "ifca": of_two(ifca, optax.sgd, num_clusters=2),
        "ifca gradient": of_two(ifca, optax.adam, num_clusters=2, averaging="gradient"),
    }


def of_two(method: Any, client: Any, **options: Any) -> Make:
    """Two models: the problem's own, and one on its other side."""

    def make(learning_rate, sampler, strategy) -> FederatedAlgorithm:
        algo = method(
            loss,
            client(learning_rate),
            plan=PLAN,
            sampler=sampler,
            strategy=strategy,
            **options,
        )

        def init(key, params, data):
            both = jax.tree.map(lambda leaf: jnp.stack([leaf, -0.5 - leaf]), params)
            return algo.init(key, both, data)

        return signed(algo._replace(init=init), algo.made)

    return make
