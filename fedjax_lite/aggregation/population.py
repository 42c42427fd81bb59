"""What a server must know of all clients, whether they take part or not."""

from __future__ import annotations

from typing import NamedTuple

import jax
import jax.numpy as jnp

from fedjax_lite.aggregation.mean import Weighting, weight_by
from fedjax_lite.counting import Counts
from fedjax_lite.data.dataset import SizedPopulation
from fedjax_lite.engine.counted import counted_sizes
from fedjax_lite.types import Array, ClientInfo


class Population(NamedTuple):
    """Sums over all clients that have data; part of the server's state, so that streaming a
    cohort's data only does not change them.
    """

    num_clients: Array
    """float32 scalar, `N`."""
    total_weight: Array
    """float32 scalar: the sum of all their weights."""


def empty_population() -> Population:
    """A placeholder until the data are known."""
    return Population(jnp.float32(0), jnp.float32(0))


def measure_population(
    data: SizedPopulation, weighting: Weighting, counts: Counts | None = None
) -> Population:
    r"""Counts the clients that have data, and sums their weights.

    .. math::  N = \sum_j [n_j > 0], \qquad W = \sum_j w_j

    Clients without data never take part, so they do not count, and neither do those of whose
    examples none counts.

    Args:
      data: the population.
      weighting: "examples", "uniform" or a function of `ClientInfo`; see `weight_by`. It sees
        round 0 and one step.
      counts: which examples count, of the loss; None: all. Of a stream all do: nobody reads it
        here.

    Returns:
      The `Population`.

    Raises:
      ValueError: if the name of the weighting is unknown.

    Example:
      >>> from fedjax_lite.data.dataset import from_arrays
      >>> data = from_arrays({"x": jnp.zeros(4)}, jnp.array([0, 2, 2, 2]), num_clients=3)
      >>> [float(total) for total in measure_population(data, "examples")]
      [2.0, 4.0]
    """
    weight = weight_by(weighting)
    sizes = counted_sizes(counts, data)
    ids = jnp.arange(data.num_clients, dtype=jnp.int32)
    present = (sizes > 0).astype(jnp.int32)
    infos = ClientInfo(ids, sizes, present, jnp.zeros_like(ids))
    weights = jax.vmap(weight)(infos)
    return Population(present.sum().astype(jnp.float32), weights.sum().astype(jnp.float32))
