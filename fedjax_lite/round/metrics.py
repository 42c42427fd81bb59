"""The metrics of a round, from those of its clients."""

from __future__ import annotations

from typing import Any

import jax.numpy as jnp

from fedjax_lite.engine.messages import CLIENT_COUNTED, CLIENT_STEPS
from fedjax_lite.engine.program import Work
from fedjax_lite.types import Array, Mean

COSTS = ("uplink_bits", "uplink_entropy_bits")
"""Summed over the cohort: they are what the round cost."""


def round_metrics(metrics: dict[str, Any], work: Work, asked: Array) -> dict[str, Array]:
    """Merges metrics `[C]` into the round's: `Mean`s as ratios of sums, scalars as means.

    Both are over the clients that count, which ``num_clients`` is the number of. What is named
    ``*_bits`` is summed over all that were asked, `[C]`: it is what the round cost. A ratio over
    nothing is NaN, not a number that nobody measured. Steps in a named phase are summed as
    ``<name>_steps``.
    """
    counted = work.mask & (metrics[CLIENT_COUNTED] > 0)
    num_clients = counted.sum()

    def total_of(part: Array, mask: Array) -> Array:
        wide = jnp.promote_types(part.dtype, jnp.float32)  # a sum of integers would wrap around
        return jnp.where(mask, part.astype(wide), 0).sum()

    def merge(name: str, metric: Any) -> Array:
        if name.endswith("_bits"):
            return total_of(metric, asked)
        if isinstance(metric, Mean):
            total, count = (total_of(part, counted) for part in metric)
            return total / count
        return total_of(metric, counted) / num_clients

    def steps(name: str) -> Array:
        return jnp.where(work.mask, metrics[name], 0).astype(jnp.int32).sum()

    phases = [name for name in metrics if name.startswith(CLIENT_STEPS) and name != CLIENT_STEPS]
    own = (CLIENT_COUNTED, CLIENT_STEPS, *COSTS, *phases)
    return {
        **{name: merge(name, metric) for name, metric in metrics.items() if name not in own},
        "num_clients": num_clients,
        "num_steps": steps(CLIENT_STEPS),
        **{f"{name.removeprefix(CLIENT_STEPS + '_')}_steps": steps(name) for name in phases},
        **{name: merge(name, metrics[name]) for name in COSTS},
    }
