"""One round as a pure function: cohort, prologue, training, server, metrics."""

from __future__ import annotations

from typing import Any, NamedTuple

import jax.numpy as jnp

from fedjax_lite.engine.one_pass import Pass, measured_by, one_pass
from fedjax_lite.engine.program import Table
from fedjax_lite.engine.prologue import (
    Prefaced,
    Prologue,
    measured_in,
    narrowed,
    prologue_program,
)
from fedjax_lite.engine.round_keys import PassKeys, RoundKeys, round_keys
from fedjax_lite.round.downlink import downlink_cost
from fedjax_lite.round.errand import told
from fedjax_lite.round.metrics import COSTS, round_metrics
from fedjax_lite.round.private_runs import recorded
from fedjax_lite.round.private_slots import without_repeats
from fedjax_lite.round.wiring import Wired
from fedjax_lite.types import Array, Cohort, Key, RoundState, Sampler


def next_state(
    wires: Wired, key: Key, state: RoundState, data: Any, cohort: Cohort | None
) -> tuple[RoundState, dict[str, Array]]:
    """The state after one more round, and what it measured.

    Args:
      wires: the slots of the round.
      key: of the run; ``state.round`` is folded in.
      state: of the round before.
      data: the population, or that of the cohort.
      cohort: who takes part; None: the sampler draws.
    """
    ledger = recorded(wires.privacy, state, data, cohort)
    keys, sampler_state, asked, sent, first = opened(wires, key, state, data, cohort)
    done = one_pass(
        wires.program,
        *(wires.strategy, keys.training, Table(state.clients, state.uplink), state.aggregator),
        *(first.broadcast, first.cohort, state.round, data, first.found),
    )
    value, metrics = done.value, done.metrics
    if first.done is not None:
        value = Prefaced(value, first.done.value)
        metrics |= {name: metrics[name] + first.done.metrics[name] for name in COSTS}
    server = wires.server.update(keys.server, state.server, value, done.cohort, metrics)
    if wires.sampler.learn is not None and cohort is None:
        sampler_state = wires.sampler.learn(sampler_state, done.cohort, metrics)
    new = RoundState(
        round=state.round + 1,
        server=server,
        clients=done.table.clients,
        uplink=done.table.uplink,
        aggregator=done.aggregator,
        sampler=sampler_state,
        privacy=ledger,
    )
    down = downlink_cost(
        state.server,
        sent,
        took_part=asked.mask.sum() + (0 if asked.late is None else asked.late.sum()),
        num_clients=data.num_clients,
        counted=done.cohort.mask.sum(),
        preface=Prefaced(first.done and first.done.value, first.cohort.mask.sum()),
    )
    return new, {
        **round_metrics(metrics, done.work, asked.mask),
        **down,
        **done.measured,
        **measured_by(server),
        **measured_by(sampler_state),
    }


class FirstPass(NamedTuple):
    """What a prologue leaves to the training after it."""

    done: Pass | None
    broadcast: Any
    cohort: Cohort
    found: Any
    """What each client measured, leaves `[C]`."""


class Opened(NamedTuple):
    """A round before its clients train."""

    keys: RoundKeys
    sampler: Any
    """The sampler's next state."""
    asked: Cohort
    """Who was drawn, without ids that nobody has."""
    sent: Any
    """What the server broadcasts."""
    first: FirstPass


def opened(wires: Wired, key: Key, state: RoundState, data: Any, cohort: Cohort | None) -> Opened:
    """The beginning of a round: the cohort is drawn, and the prologue, where there is one, done.

    Args:
      wires: the slots of the round.
      key: of the run; ``state.round`` is folded in.
      state: of the round before.
      data: the population, or that of the cohort.
      cohort: who takes part; None: the sampler draws.
    """
    keys = round_keys(key, state.round)
    sampler = told(wires, key, state.round)
    sampler_state, asked = _drawn(wires, sampler, keys.sample, state, data, cohort)
    sent = wires.server.broadcast(state.server)
    rehearsal = wires.prologue is not None and wires.prologue.rehearsal
    keys_first = keys.training.clone() if rehearsal else keys.prologue
    first = _first_pass(wires, keys_first, keys.choice, state, sent, asked, data)
    return Opened(keys, sampler_state, asked, sent, first)


def _drawn(
    wires: Wired, sampler: Sampler, key: Key, state: RoundState, data: Any, cohort: Cohort | None
) -> tuple[Any, Cohort]:
    """The sampler's next state, and the cohort without ids that nobody has."""
    sampler_state = state.sampler
    if cohort is None:
        sampler_state, cohort = sampler.sample(key, state.sampler, data.sizes)
    elif wires.privacy is not None:
        cohort = without_repeats(cohort)  # one client, one bounded contribution
    known = (cohort.ids >= 0) & (cohort.ids < data.num_clients)
    late = None if cohort.late is None else cohort.late & known & ~cohort.mask
    return sampler_state, Cohort(cohort.ids.astype(jnp.int32), cohort.mask & known, late)


def _first_pass(
    wires: Wired,
    keys: PassKeys,
    key_choice: Key,
    state: RoundState,
    broadcast: Any,
    cohort: Cohort,
    data: Any,
) -> FirstPass:
    prologue: Prologue | None = wires.prologue
    if prologue is None:
        return FirstPass(None, broadcast, cohort, ())
    done = one_pass(
        prologue_program(prologue),
        *(wires.strategy, keys, Table((), ()), ()),
        *(broadcast, cohort, state.round, data),
    )
    found = measured_in(done.metrics)
    cohort = narrowed(prologue, key_choice, cohort, found)
    return FirstPass(done, Prefaced(broadcast, done.value), cohort, found)
