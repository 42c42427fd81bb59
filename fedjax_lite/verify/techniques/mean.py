"""The weighted mean, and who leaves no trace in it."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from fedjax_lite.aggregation.mean import mean
from fedjax_lite.types import Cohort, Message
from fedjax_lite.verify.records import Check

U, WEIGHTS = np.array([[1.0, 2.0], [3.0, 4.0], [5.0, 6.0]]), np.array([10.0, 20.0, 70.0])


def aggregate(values: Any, weights: Any, mask: Any = None) -> np.ndarray:
    """The library's mean of messages, added in two parts."""
    values, weights = jnp.asarray(values), jnp.asarray(weights)
    mask = jnp.ones(len(weights), bool) if mask is None else jnp.asarray(mask)
    aggregator, slots = mean(), jnp.arange(len(weights))
    acc = aggregator.init(Message(values[0], weights[0]), len(weights))
    for part in (slice(0, 1), slice(1, None)):
        acc = aggregator.add(acc, Message(values[part], weights[part]), slots[part], mask[part])
    cohort = Cohort(slots.astype(jnp.int32), mask)
    return np.asarray(aggregator.finish(jax.random.key(0), (), acc, cohort)[1])


def checks() -> list[Check]:
    """``sum w_i u_i / sum w_i`` with 0/0 := 0."""
    expected = (WEIGHTS[:, None] * U).sum(0) / WEIGHTS.sum()
    bad = np.concatenate([U, [[np.nan, np.inf]]])
    more = np.append(WEIGHTS, 5.0)
    return [
        Check("three clients", expected, lambda: aggregate(U, WEIGHTS)),
        Check("another order", expected, lambda: aggregate(U[::-1], WEIGHTS[::-1])),
        Check("weights scaled by 7", expected, lambda: aggregate(U, 7 * WEIGHTS)),
        Check(
            "masked client full of NaN",
            expected,
            lambda: aggregate(bad, more, [True, True, True, False]),
        ),
        Check("client of weight 0", expected, lambda: aggregate(bad, np.append(WEIGHTS, 0.0))),
        Check("nobody: 0/0 := 0", np.zeros(2), lambda: aggregate(U, np.zeros(3))),
    ]
