"""The compiled pass over clients with models of their own, each on its own examples."""

from __future__ import annotations

import functools
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax.sharding import Mesh, PartitionSpec

from fedjax_lite.engine.mesh.collective import AXIS, add_devices
from fedjax_lite.evaluate.metric_shapes import add_by_unit, metric_shapes, no_sums
from fedjax_lite.evaluate.programs import Scores, measure
from fedjax_lite.evaluate.what_counts import Kind
from fedjax_lite.metrics.metric import Named
from fedjax_lite.models.model import Model
from fedjax_lite.types import Array, Params, PyTree


class Own(NamedTuple):
    """What clients' own models make of their own examples."""

    scores: Scores
    """Sums `[n]`, by client."""
    sums: dict[str, PyTree]
    """Of metrics, leaves `[n, ...]`, by client."""
    group_sums: dict[str, PyTree]
    """Of metrics, leaves `[G, ...]`, by group of examples."""
    examples: tuple[Scores, dict[str, PyTree]] | tuple[()]
    """Scores and quantities of host metrics, leaves `[P, ...]`, client after client."""


@functools.partial(jax.jit, static_argnums=(7, 8, 9, 10, 11, 12, 13))
def score_own(
    models: Params,
    examples: PyTree,
    order: Array | None,
    starts: Array,
    sizes: Array,
    groups: Array | None,
    first: Array | int,
    model: Model,
    kind: Kind,
    batch_size: int,
    metrics: Named = (),
    num_groups: int = 0,
    keep: bool = False,
    mesh: Mesh | None = None,
) -> Own:
    """Clients' own models on their own examples, in own batches.

    Client `i` owns the examples ``order[starts[i]:starts[i] + sizes[i]]``; those of the clients
    that have any follow each other, from `first` on.

    Args:
      models: leaves `[n, ...]`.
      examples: leaves `[E, ...]`.
      order: int32 `[P]`; None: all examples, as they lie.
      starts: int32 `[n]`.
      sizes: int32 `[n]`.
      groups: int32 `[E]`, the group of each example; None: there are none.
      first: the least of the starts.
      model: what is scored.
      kind: how hits are found.
      batch_size: examples at a time.
      metrics: names and metrics.
      num_groups: `G`.
      keep: return what was found of each example, too.
      mesh: devices that the clients are dealt to, as they lie; None: one.
    """
    one = jax.tree.map(lambda leaf: jax.ShapeDtypeStruct(leaf.shape[1:], leaf.dtype), models)
    shapes = metric_shapes(model.predict, one, examples, batch_size, metrics)
    num_places = (jax.tree.leaves(examples)[0] if order is None else order).shape[0]

    def one_batch(
        params: Params, low: Array, size: Array, shared: Any, i: Array, total: Own
    ) -> Own:
        examples, order, groups, first = shared
        position = i * batch_size + jnp.arange(batch_size, dtype=jnp.int32)
        inside = position < size
        rows = low + position % jnp.maximum(size, 1)
        rows = rows if order is None else order[rows]
        batch = jax.tree.map(lambda leaf: leaf[rows], examples)
        new = measure(model, params, batch, kind, inside, metrics)
        scores = (s + n.sum(dtype=s.dtype) for s, n in zip(total.scores, new.scores, strict=True))
        sums = jax.tree.map(lambda s, n: s + n.sum(0, dtype=s.dtype), total.sums, new.sums)
        group_sums, kept = total.group_sums, total.examples
        if groups is not None:
            where = jnp.where(inside, groups[rows], -1)
            group_sums = add_by_unit(group_sums, new.sums, where)
        if keep:
            place = jnp.where(inside, low - first + position, num_places)
            kept = jax.tree.map(
                lambda table, value: table.at[place].set(value, mode="drop"),
                kept,
                (new.scores, new.kept),
            )
        return Own(Scores(*scores), sums, group_sums, kept)

    def one_client(shared: Any, carry: Any, client: tuple[Params, Array, Array]) -> Any:
        params, low, size = client
        none = Scores(jnp.zeros(()), *(jnp.int32(0),) * 4)
        no_sum = jax.tree.map(lambda leaf: leaf[0], no_sums(shapes, 1))
        found = jax.lax.fori_loop(
            0,
            (size + batch_size - 1) // batch_size,
            functools.partial(one_batch, params, low, size, shared),
            Own(none, no_sum, *carry),
        )
        return (found.group_sums, found.examples), (found.scores, found.sums)

    places: Any = ()
    if keep:
        batch = jax.tree.map(
            lambda leaf: jax.ShapeDtypeStruct((batch_size, *leaf.shape[1:]), leaf.dtype), examples
        )
        mask = jax.ShapeDtypeStruct((batch_size,), bool)
        found = jax.eval_shape(
            lambda p, b, m: measure(model, p, b, kind, m, metrics), one, batch, mask
        )
        places = jax.tree.map(
            lambda leaf: jnp.zeros((num_places, *leaf.shape[1:]), leaf.dtype),
            (found.scores, found.kept),
        )
    carry = (no_sums(shapes if groups is not None else {}, num_groups), places)

    def some(shared: Any, clients: tuple[Params, Array, Array]) -> Any:
        whole, each = jax.lax.scan(functools.partial(one_client, shared), carry, clients)
        return (whole if mesh is None else add_devices(whole)), each

    shared, clients = (examples, order, groups, first), (models, starts, sizes)
    if mesh is not None:  # every client is one device's, and so is every place: sums are exact
        whole, part = PartitionSpec(), PartitionSpec(AXIS)
        some = jax.shard_map(
            some, mesh=mesh, in_specs=(whole, part), out_specs=(whole, part), check_vma=False
        )
    (group_sums, places), (scores, sums) = some(shared, clients)
    return Own(scores, sums, group_sums, places)
