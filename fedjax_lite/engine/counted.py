"""How many examples of each client count."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp

from fedjax_lite.data.population.counting import Counts, apply_counts
from fedjax_lite.data.population.dataset import ClientData, ShardedDataset
from fedjax_lite.data.population.population import Population
from fedjax_lite.data.population.task_stream import TaskStream
from fedjax_lite.engine.program import Work
from fedjax_lite.types import Array


def count_work(counts: Counts | None, data: ClientData, work: Work) -> Work:
    """The work list with the examples that count as sizes; a client without any has no steps.

    Where every example of the data counts, which one pass over the labels tells, nothing else is
    computed. A population that is split over devices is left as it is: each device asks again for
    its own block.

    Args:
      counts: of the client update; None: all examples count.
      data: where the clients' examples lie.
      work: leaves `[C]`.

    Returns:
      The work list; ``stored`` then holds the sizes with the examples that do not count.
    """
    if counts is None or isinstance(data, ShardedDataset):
        return work
    flags = apply_counts(counts, data.examples)

    def exact(_: None) -> Array:
        ends = jnp.stack([data.offsets[work.members], data.offsets[work.members + 1]])
        low, high = _before(flags, data.order)[ends]
        return (high - low).astype(work.sizes.dtype)

    sizes = jax.lax.cond(flags.all(), lambda _: work.sizes, exact, None)
    return work.only(sizes > 0)._replace(sizes=sizes, stored=work.sizes)


def counted_sizes(counts: Counts | None, data: Any) -> Array:
    """The examples that count of every client of a population, int32 `[N]`.

    Of a population whose examples lie elsewhere (a stream) all count, for nobody has read them;
    where clients have told (`fedjax_lite.deploy`), what they told.

    Example:
      >>> from fedjax_lite.data.population.dataset import from_arrays
      >>> data = from_arrays({"y": jnp.array([0, -1, 2, -1])}, [0, 0, 0, 1])
      >>> counted_sizes(lambda e: e["y"] >= 0, data).tolist()
      [2, 0]
    """
    if isinstance(data, TaskStream):  # as its `sizes`
        stages = [counted_sizes(counts, data.stage(i)) for i in range(data.num_stages)]
        return jnp.stack(stages).max(0)
    if (told := getattr(data, "counted", None)) is not None:
        return jnp.asarray(told)
    if counts is None or not hasattr(data, "examples"):
        return jnp.asarray(data.sizes)
    return _counted_sizes(counts, data)


def population_of(data: Any, counts: Counts | None) -> Population:
    """What a server is told of the clients of some data.

    Example:
      >>> from fedjax_lite.data.population.dataset import from_arrays
      >>> population_of(from_arrays({"y": jnp.arange(3)}, [0, 1, 1]), None).sizes.tolist()
      [1, 2]
    """
    return Population(data.num_clients, lambda: counted_sizes(counts, data))


def _counted_sizes(counts: Counts, data: ClientData) -> Array:
    flags = apply_counts(counts, data.examples)
    if isinstance(data, ShardedDataset):
        flags = flags.reshape(data.num_blocks, -1)
        ends = data.block_offsets.reshape(data.num_blocks, -1)
        per_block = jax.vmap(lambda f, e: jnp.diff(_before(f, None)[e]))(flags, ends)
        return per_block.reshape(-1)[: data.num_clients]
    return jnp.diff(_before(flags, data.order)[data.offsets])


def _before(flags: Array, order: Array | None) -> Array:
    """How many of the examples count before each place, int32 `[E + 1]`."""
    flags = flags if order is None else flags[order]
    return jnp.pad(jnp.cumsum(flags, dtype=jnp.int32), (1, 0))
