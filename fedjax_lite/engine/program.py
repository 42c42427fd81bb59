"""What every execution strategy runs: the client program, its work list and its result."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from fedjax_lite import trees
from fedjax_lite.counting import apply_counts
from fedjax_lite.data.dataset import ClientData
from fedjax_lite.engine.batches import Plan, take_batch
from fedjax_lite.engine.messages import CLIENT_COUNTED, CLIENT_STEPS, ENGINE_METRICS, well_formed
from fedjax_lite.transforms.chain import send
from fedjax_lite.types import (
    Aggregator,
    Array,
    Batch,
    ClientInfo,
    ClientUpdate,
    Key,
    Made,
    Message,
    PyTree,
    Transform,
)


class Program(NamedTuple):
    """The slots that a strategy needs: what one client does and where its message goes."""

    client: ClientUpdate
    plan: Plan
    uplink: Transform
    aggregator: Aggregator
    weighed: bool = True
    """A message of weight 0 counts nowhere, so it is not sent; False: all of the cohort send."""


class Work(NamedTuple):
    """The cohort as a work list, leaves `[C]` (or `[L]` for the clients of one chunk)."""

    ids: Array
    """int32: who the client is; its key is folded with this."""
    members: Array
    """int32: where its examples lie in the data set at hand; apart from ids, so that a strategy
    may be handed the data of a cohort or of a device only."""
    rows: Array
    """int32: where its row lies in the table at hand, for the same reason."""
    slots: Array
    """int32: its place in the cohort; a value of `C` or more is no place and is dropped."""
    sizes: Array
    """int32: its examples that count."""
    num_steps: Array
    mask: Array
    stored: Array | None = None
    """int32: all its examples, which its batches are drawn from; None: as `sizes`."""


class Table(NamedTuple):
    """Persistent rows of all clients, leaves `[N, ...]`."""

    clients: PyTree
    uplink: PyTree


class Strategy(NamedTuple):
    """How a cohort is executed. All strategies give equal results, up to rounding."""

    execute: Callable[..., tuple[Table, PyTree, dict[str, Any]]]
    """``(program, key, table, acc, broadcast, round, data, work) -> (table, acc, metrics [C])``."""
    name: str
    made: Made | None = None
    """Which factory made it; None: your own."""


def train_lanes(
    program: Program,
    key: Key,
    table: Table,
    broadcast: PyTree,
    round: Array,
    data: ClientData,
    work: Work,
) -> Finished:
    """Trains the `L` clients of `work` side by side, each to its own last step.

    The loop runs to the longest of them; a lane that has finished keeps its carry by a select, so
    its result is what it would be alone. One lane needs no select.

    Returns:
      What the clients end with, leaves `[L, ...]`.
    """
    num_lanes = work.ids.shape[0]
    over_lanes = lambda f: trees.map_lanes(f, num_lanes)  # noqa: E731
    rows = trees.gather_rows(table, work.rows)

    def start(work: Work, row: Table) -> Started:
        return start_client(program, key, broadcast, round, work, row)

    carry, seeds, keys_batch, keys_uplink = over_lanes(start)(work, rows)

    def body(step: Array, carry: PyTree) -> PyTree:
        def one(work: Work, seed: Array, key_batch: Key, carry: PyTree) -> PyTree:
            batch = client_batch(program, data, seed, key_batch, work.members, step)
            return program.client.step(broadcast, carry, batch)

        new = over_lanes(one)(work, seeds, keys_batch, carry)
        return new if num_lanes == 1 else trees.where(step < work.num_steps, new, carry)

    carry = jax.lax.fori_loop(0, work.num_steps.max(), body, carry)

    def finish(work: Work, row: Table, carry: PyTree, key_uplink: Key) -> Finished:
        return finish_client(program, broadcast, work, row, carry, key_uplink)

    return over_lanes(finish)(work, rows, carry, keys_uplink)


def client_batch(
    program: Program, data: ClientData, seed: Array, key: Key, client: Array, step: Array
) -> Batch:
    """`take_batch`, with the examples masked that do not count."""
    batch = take_batch(program.plan, data, seed, key, client, step)
    return batch._replace(mask=apply_counts(program.client.counts, batch.examples, batch.mask))


class Started(NamedTuple):
    """One client that is about to train."""

    carry: PyTree
    seed: Array
    """uint32 `[2]`: its shuffle of this round."""
    key_batch: Key
    key_uplink: Key


def start_client(
    program: Program, key: Key, broadcast: PyTree, round: Array, work: Work, row: Table
) -> Started:
    """The start of one client, everything random drawn by its id."""
    key_start, key_shuffle, key_batch, key_uplink = jax.random.split(
        jax.random.fold_in(key, work.ids), 4
    )
    seed = jax.random.bits(key_shuffle, (2,), jnp.uint32)
    info = ClientInfo(work.ids, work.sizes, work.num_steps, round, work.stored)
    carry = program.client.start(key_start, row.clients, broadcast, info)
    return Started(carry, seed, key_batch, key_uplink)


class Finished(NamedTuple):
    """One client that is done."""

    row: Table
    message: Message
    """After the uplink."""
    metrics: dict[str, Any]
    counts: Array
    """bool: whether its message counts in the aggregate."""
    moved: Array
    """bool: whether its row may change."""


def finish_client(
    program: Program, broadcast: PyTree, work: Work, row: Table, carry: PyTree, key_uplink: Key
) -> Finished:
    """The end of one client.

    It counts if it has data and its message weighs something, or has no weight at all. Steps are
    not asked for: an update may do its work here without any, and `weight_by` gives weight 0 to a
    client that did none. In a private round all of the cohort send, and all count.
    """
    client_row, message, metrics = well_formed(*program.client.finish(broadcast, carry))
    uplink_row, value, wire = send(program.uplink, key_uplink, row.uplink, message.value)
    counts = moved = work.sizes > 0
    weights = jax.tree.leaves(message.weight)
    if program.weighed and weights:  # what nobody hears stays in the memory of error feedback
        counts &= jnp.stack([~(weight <= 0).all() for weight in weights]).any()
        moved &= counts | (work.num_steps > 0)
        uplink_row = trees.where(counts, uplink_row, row.uplink)
        wire = jax.tree.map(lambda bits: jnp.where(counts, bits, 0), wire)
    metrics = {
        **metrics,
        "uplink_bits": wire.bits,
        "uplink_entropy_bits": wire.entropy,
        CLIENT_COUNTED: counts.astype(jnp.float32),
        CLIENT_STEPS: work.num_steps.astype(jnp.float32),
    }
    if not program.weighed:
        counts = moved = jnp.ones_like(counts)
    return Finished(
        Table(client_row, uplink_row), Message(value, message.weight), metrics, counts, moved
    )


def message_shape(
    program: Program, broadcast: PyTree, row: PyTree, uplink_row: PyTree | None = None
) -> tuple[Message, dict[str, Any]]:
    """Shapes of one client's message (before the uplink where `uplink_row` is None) and metrics."""

    def one(key: Key) -> tuple[Message, dict[str, Any]]:
        info = ClientInfo(*(jnp.int32(0) for _ in ClientInfo._fields))
        carry = program.client.start(key, row, broadcast, info)
        _, message, metrics = well_formed(*program.client.finish(broadcast, carry))
        if uplink_row is None:
            return message, metrics
        _, value = program.uplink.update(key, uplink_row, message.value)
        own = dict.fromkeys(ENGINE_METRICS, jnp.float32(0))
        return Message(value, message.weight), {**metrics, **own}

    return jax.eval_shape(one, jax.random.key(0))
