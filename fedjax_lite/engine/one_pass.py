"""One pass over a cohort: its work list, its training, and the aggregate of what it sent."""

from __future__ import annotations

from typing import Any, NamedTuple, Protocol, runtime_checkable

import jax
import jax.numpy as jnp

from fedjax_lite import trees
from fedjax_lite.data.population.dataset import ClientData
from fedjax_lite.engine.counted import count_work
from fedjax_lite.engine.messages import CLIENT_COUNTED
from fedjax_lite.engine.phases import read_by
from fedjax_lite.engine.program import Job, Program, Strategy, Table, Work, message_shape
from fedjax_lite.engine.round_keys import PassKeys
from fedjax_lite.types import Array, Cohort, Key, Phase


@runtime_checkable
class HasMetrics(Protocol):
    """A slot's state that measures something: scalars that become metrics of the round."""

    metrics: dict[str, Array]


class Pass(NamedTuple):
    """What one pass over a cohort gives."""

    table: Table
    aggregator: Any
    value: Any
    metrics: dict[str, Any]
    work: Work
    cohort: Cohort
    """Who counts: of a private round all who were drawn."""
    measured: dict[str, Array]
    """What the aggregator measured in this round."""


def one_pass(
    program: Program,
    strategy: Strategy,
    keys: PassKeys,
    table: Table,
    aggregator_state: Any,
    broadcast: Any,
    cohort: Cohort,
    round: Array,
    data: ClientData,
    found: Any = (),
) -> Pass:
    """Runs a program over the cohort and finishes its aggregate.

    Where nobody counts the aggregator's state stays as it is, but in a private round: what came of
    it must not tell whether anybody was there. ``found``, leaves `[C]`, is what clients measured in
    a pass before this one.
    """
    work = work_list(program.phases, keys.clients, cohort, data, round)
    work = count_work(program.client.counts, data, work)._replace(found=found)
    if program.aggregator.at is not None:
        program = program._replace(aggregator=program.aggregator.at(aggregator_state))
    job = Job(program, keys.clients, broadcast, round, data, work)
    row, own = jax.tree.map(lambda leaf: leaf[0], (table, found))
    message, _ = message_shape(program, broadcast, row.clients, row.uplink, own)
    acc = program.aggregator.init(message, cohort.ids.shape[0])
    table, acc, metrics = strategy.execute(job, table, acc)
    if program.weighed:
        cohort = cohort._replace(mask=metrics[CLIENT_COUNTED] > 0)
    state, value = program.aggregator.finish(keys.aggregate, aggregator_state, acc, cohort)
    measured = measured_by(state)
    if program.weighed:
        state = trees.where(cohort.mask.any(), state, aggregator_state)
    return Pass(table, state, value, metrics, work, cohort, measured)


def measured_by(state: Any) -> dict[str, Array]:
    """The metrics that a slot's state carries; none where it has no such field."""
    return dict(state.metrics) if isinstance(state, HasMetrics) else {}


def work_list(
    phases: tuple[Phase, ...], key: Key, cohort: Cohort, data: ClientData, round: Array
) -> Work:
    """The cohort as a work list: a masked client has no steps, an empty one neither.

    Empty is who has nothing to train on, whatever a split of it holds.
    """
    ids = jnp.clip(cohort.ids, 0, data.num_clients - 1)
    slots = jnp.arange(ids.shape[0], dtype=jnp.int32)
    found = data.find(ids, slots)

    def steps_of(phase: Phase) -> Array:
        if not phase.data:
            return jnp.where(cohort.mask, steps_in(phase, key, ids, found.sizes, round), 0)
        sizes = jnp.where(found.sizes > 0, read_by(phase, data).find(ids, slots).sizes, 0)
        return jnp.where(cohort.mask, steps_in(phase, key, ids, sizes, round), 0)

    steps = tuple(map(steps_of, phases))
    return Work(
        ids=ids,
        members=found.members,
        rows=found.rows,
        slots=slots,
        sizes=found.sizes,
        num_steps=sum(steps[1:], start=steps[0]),
        mask=cohort.mask,
        phase_steps=steps if len(steps) > 1 else (),
    )


def steps_in(phase: Phase, key: Key, ids: Array, sizes: Array, round: Array) -> Array:
    """The steps that clients `ids` with `sizes` examples, both `[C]`, do in a phase: int32 `[C]`.

    Args:
      phase: with its plan.
      key: the clients', of the pass.
      ids: whose amounts are asked for.
      sizes: their examples, of those that the phase reads.
      round: int32 scalar, the round's number.
    """

    def of_client(client: Array, size: Array) -> Array:
        own = None
        if phase.plan.is_random:  # apart from the client's keys 0..3, which its training uses
            own = jax.random.fold_in(jax.random.fold_in(key, client), 4 + (phase.stream or 0))
        return phase.plan.num_steps(own, client, size, round)

    return jax.vmap(of_client)(ids, sizes)
