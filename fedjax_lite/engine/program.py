"""What every execution strategy runs: the client program, its work list and its result."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from fedjax_lite import trees
from fedjax_lite.checks.made import Made
from fedjax_lite.data.population.counting import Counts, apply_counts
from fedjax_lite.data.population.dataset import ClientData
from fedjax_lite.engine.batches import Plan, take_batch
from fedjax_lite.engine.messages import CLIENT_COUNTED, CLIENT_STEPS, ENGINE_METRICS, well_formed
from fedjax_lite.engine.phases import (
    phases_of,
    read_by,
    step_names,
    stream_key,
    stream_seed,
)
from fedjax_lite.engine.round_keys import client_keys
from fedjax_lite.transforms.chain import send
from fedjax_lite.types import (
    Aggregator,
    Array,
    Batch,
    ClientInfo,
    ClientUpdate,
    Key,
    Message,
    Phase,
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

    @property
    def phases(self) -> tuple[Phase, ...]:
        """The phases of local work, each with its plan."""
        return phases_of(self.client, self.plan)


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
    """int32: its steps, of all phases."""
    mask: Array
    stored: Array | None = None
    """int32: all its examples, which its batches are drawn from; None: as `sizes`."""
    phase_steps: tuple[Array, ...] = ()
    """int32: its steps in each phase, where there are several."""
    found: Any = ()
    """What it measured in the prologue."""

    def steps_of(self, phase: int) -> Array:
        """int32: its steps in one phase."""
        return self.phase_steps[phase] if self.phase_steps else self.num_steps

    def only(self, some: Array) -> Work:
        """The same list, in which the others have no steps."""
        keep = lambda steps: jnp.where(some, steps, 0)  # noqa: E731
        return self._replace(
            num_steps=keep(self.num_steps), phase_steps=tuple(map(keep, self.phase_steps))
        )


class Table(NamedTuple):
    """Persistent rows of all clients, leaves `[N, ...]`."""

    clients: PyTree
    uplink: PyTree


class Job(NamedTuple):
    """What a cohort has to do in a round, whoever executes it."""

    program: Program
    key: Key
    """Of the round; a client's own is folded with its id."""
    broadcast: PyTree
    """What clients downloaded."""
    round: Array
    """int32 scalar."""
    data: ClientData
    work: Work


class Strategy(NamedTuple):
    """How a cohort is executed. All strategies give equal results, up to rounding."""

    execute: Callable[[Job, Table, PyTree], tuple[Table, PyTree, dict[str, Any]]]
    """``(job, table, acc) -> (table, acc, metrics [C])``."""
    name: str
    made: Made | None = None
    """Which factory made it; None: your own."""


def train_lanes(job: Job, table: Table, *, own_broadcast: bool = False) -> Finished:
    """Trains the `L` clients of a job side by side, each to its own last step.

    Each phase is one loop to the longest of them; a lane that has finished keeps its carry by a
    select, so its result is what it would be alone. One lane needs no select, and no axis: with a
    leading one in the carry, XLA:CPU copies the largest weights in every step.

    Args:
      job: its work has leaves `[L]`.
      table: rows of all clients.
      own_broadcast: whether each lane has a broadcast of its own, leaves `[L, ...]`.

    Returns:
      What the clients end with, leaves `[L, ...]`.
    """
    program, work = job.program, job.work
    num_lanes = work.ids.shape[0]
    rows = trees.gather_rows(table, work.rows)
    downloaded = (job.broadcast,) if own_broadcast else ()
    if num_lanes == 1:
        work, rows, downloaded = jax.tree.map(lambda leaf: leaf[0], (work, rows, downloaded))

    def over_lanes(function: Callable[..., Any]) -> Callable[..., Any]:
        """The function with the broadcast as its first argument, for all lanes."""

        def with_broadcast(*args: Any) -> Any:
            if own_broadcast:
                return function(args[-1], *args[:-1])
            return function(job.broadcast, *args)

        return with_broadcast if num_lanes == 1 else jax.vmap(with_broadcast)

    def start(broadcast: PyTree, work: Work, row: Table) -> Started:
        return start_client(program, job.key, broadcast, job.round, work, row)

    carry, seeds, keys_batch, keys_uplink = over_lanes(start)(work, rows, *downloaded)

    for i, phase in enumerate(program.phases):

        def body(step: Array, carry: PyTree, i: int = i, phase: Phase = phase) -> PyTree:
            def one(
                broadcast: PyTree, work: Work, seed: Array, key_batch: Key, carry: PyTree
            ) -> PyTree:
                batch = client_batch(
                    phase, program.client.counts, job.data, seed, key_batch, work.members, step
                )
                return phase.step(broadcast, carry, batch)

            new = over_lanes(one)(work, seeds, keys_batch, carry, *downloaded)
            return new if num_lanes == 1 else trees.where(step < work.steps_of(i), new, carry)

        carry = jax.lax.fori_loop(0, work.steps_of(i).max(), body, carry)

    def finish(
        broadcast: PyTree, work: Work, row: Table, carry: PyTree, key_uplink: Key
    ) -> Finished:
        return finish_client(program, broadcast, work, row, carry, key_uplink)

    done = over_lanes(finish)(work, rows, carry, keys_uplink, *downloaded)
    return jax.tree.map(lambda leaf: leaf[None], done) if num_lanes == 1 else done


def client_batch(
    phase: Phase,
    counts: Counts | None,
    data: ClientData,
    seed: Array,
    key: Key,
    client: Array,
    step: Array,
) -> Batch:
    """`take_batch` of a phase, from what it reads, with the examples masked that do not count."""
    assert phase.stream is not None
    seed, key = stream_seed(seed, phase.stream), stream_key(key, phase.stream)
    batch = take_batch(phase.plan, read_by(phase, data), seed, key, client, step)
    return batch._replace(mask=apply_counts(counts, batch.examples, batch.mask))


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
    keys = client_keys(key, work.ids)
    info = ClientInfo(
        work.ids, work.sizes, work.num_steps, round, work.stored, work.phase_steps, work.found
    )
    carry = program.client.start(keys.start, row.clients, broadcast, info)
    return Started(carry, keys.seed, keys.batch, keys.uplink)


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
        **{
            name: work.steps_of(i).astype(jnp.float32)
            for name, i in step_names(program.phases).items()
        },
    }
    if not program.weighed:
        counts = moved = jnp.ones_like(counts)
    return Finished(
        Table(client_row, uplink_row), Message(value, message.weight), metrics, counts, moved
    )


def message_shape(
    program: Program,
    broadcast: PyTree,
    row: PyTree,
    uplink_row: PyTree | None = None,
    found: Any = (),
) -> tuple[Message, dict[str, Any]]:
    """Shapes of one client's message (before the uplink where `uplink_row` is None) and metrics.

    ``found`` is what a client measured in a prologue, arrays or shapes.
    """
    found = trees.zeros(found)

    def one(key: Key) -> tuple[Message, dict[str, Any]]:
        none = jnp.int32(0)
        phases = program.phases
        several = (none,) * len(phases) if len(phases) > 1 else ()
        info = ClientInfo(none, none, none, none, none, several, found)
        carry = program.client.start(key, row, broadcast, info)
        _, message, metrics = well_formed(*program.client.finish(broadcast, carry))
        if uplink_row is None:
            return message, metrics
        _, value = program.uplink.update(key, uplink_row, message.value)
        names = (*ENGINE_METRICS, *step_names(phases))
        own = dict.fromkeys(names, jnp.float32(0))
        return Message(value, message.weight), {**metrics, **own}

    return jax.eval_shape(one, jax.random.key(0))


def empty_metrics(job: Job, table: Table) -> dict[str, Any]:
    """Zeros for the metrics `[C]` of a job."""
    row = jax.tree.map(lambda leaf: leaf[0], table)
    found = jax.tree.map(lambda leaf: leaf[0], job.work.found)
    _, shapes = message_shape(job.program, job.broadcast, row.clients, row.uplink, found)
    size = job.work.ids.shape[0]
    return jax.tree.map(lambda s: jnp.zeros((size, *s.shape), s.dtype), shapes)
