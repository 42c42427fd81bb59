"""What a server has to know of all clients, whether they take part or not."""

from __future__ import annotations

from typing import NamedTuple

import jax
import jax.numpy as jnp

from fedjax_lite.aggregation.mean import Weighting, weight_by
from fedjax_lite.data.population.population import Population
from fedjax_lite.types import Array, ClientInfo


class Totals(NamedTuple):
    """Sums over all clients that have data."""

    num_clients: Array
    """float32 scalar, `N`."""
    weight: Array
    """float32 scalar: the sum of all their weights, `W`."""


def totals(population: Population, weighting: Weighting) -> Totals:
    r"""Counts the clients that have data, and sums their weights.

    .. math::  N = \sum_j [n_j > 0], \qquad W = \sum_j w_j

    Clients without data never take part, so they do not count, and neither do those of whose
    examples none counts.

    Args:
      population: as `ServerUpdate.init` is given it. Of a stream all examples count: nobody reads
        them here.
      weighting: "examples", "uniform" or a function of `ClientInfo`; see `weight_by`. It sees
        round 0 and one step.

    Returns:
      The `Totals`.

    Raises:
      ValueError: if the name of the weighting is unknown.

    Example:
      >>> [float(total) for total in totals(Population.of([1, 0, 3]), "examples")]
      [2.0, 4.0]
    """
    weight = weight_by(weighting)
    sizes = population.sizes
    ids = jnp.arange(population.num_clients, dtype=jnp.int32)
    present = (sizes > 0).astype(jnp.int32)
    infos = ClientInfo(ids, sizes, present, jnp.zeros_like(ids))
    weights = jax.vmap(weight)(infos)
    return Totals(present.sum().astype(jnp.float32), weights.sum().astype(jnp.float32))
