"""Methods beyond one mean of one network: weights that clients measure, matched and paired nets."""

from __future__ import annotations

from typing import Any

import optax

from fedjax_lite.algorithms import precision_weighted
from fedjax_lite.engine import Plan
from fedjax_lite.testing.algorithm_laws import Make
from fedjax_lite.testing.problem import loss
from fedjax_lite.types import FederatedAlgorithm

PLAN = Plan(batch_size=2, epochs=2)


def beyond() -> dict[str, Make]:
    """Entries of the registry.

    Example:
      >>> sorted(beyond())
      ['precision weighted', 'precision weighted by labels']
    """
    return {
        "precision weighted": _precise(),
        "precision weighted by labels": _precise(measure=lambda params, e, key: e["y"]),
    }


def _precise(**options: Any) -> Make:
    def make(learning_rate, sampler, strategy) -> FederatedAlgorithm:
        return precision_weighted(
            loss,
            optax.sgd(learning_rate),
            floor=0.1,
            plan=PLAN,
            sampler=sampler,
            strategy=strategy,
            **options,
        )

    return make
