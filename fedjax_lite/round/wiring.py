"""The slots of a round, filled, checked, and wired to one another."""

from __future__ import annotations

from typing import Any, NamedTuple

from fedjax_lite.aggregation.mean import mean
from fedjax_lite.checks.arguments import check_slot
from fedjax_lite.engine.auto import auto
from fedjax_lite.engine.batches import Plan
from fedjax_lite.engine.program import Program, Strategy
from fedjax_lite.engine.prologue import Prologue, prologue_program
from fedjax_lite.round.downlink import Downlink, downlinked
from fedjax_lite.round.private_runs import prepared
from fedjax_lite.round.private_slots import blindfolded, private_slots
from fedjax_lite.round.server import standing_still
from fedjax_lite.transforms.chain import identity
from fedjax_lite.types import (
    Aggregator,
    ClientUpdate,
    Mechanism,
    Phase,
    Sampler,
    ServerUpdate,
    Slots,
    Transform,
)


class Wired(NamedTuple):
    """What a round runs on."""

    program: Program
    phases: tuple[Phase, ...]
    """Its local work, looked at before anything is traced."""
    sampler: Sampler
    server: ServerUpdate
    """As it is called: with its downlink, standing still where nobody counts, blindfolded."""
    strategy: Strategy
    prologue: Prologue | None
    privacy: Mechanism | None
    slots: Slots
    """As they were given."""


def wired(
    client: ClientUpdate,
    plan: Plan,
    sampler: Sampler | None,
    server: ServerUpdate,
    aggregator: Aggregator | None,
    uplink: Transform | None,
    downlink: Downlink | Transform | None,
    privacy: Mechanism | None,
    strategy: Strategy | None,
    prologue: Prologue | None,
) -> Wired:
    """Fills in what was left out, checks what was given, and puts the server's coats on.

    The slots are those of `fedjax_lite.federated_algorithm`; None is what its defaults are.

    Raises:
      TypeError: if a slot has the wrong type, or no sampler is there.
      ValueError: if `privacy` is joined with another sampler or aggregator.

    Example:
      >>> import fedjax_lite as fl, optax
      >>> client = fl.local_sgd(lambda w, e, key: (w - e["b"]) ** 2, optax.sgd(1.0))
      >>> server = fl.optimizer_server(optax.sgd(1.0))
      >>> wires = wired(client, fl.Plan(1), fl.everyone(), server, *[None] * 6)
      >>> wires.slots.aggregator.made.name, wires.strategy.made.name
      ('mean', 'auto')
    """
    given = uplink
    if privacy is not None:
        sampler, aggregator, uplink = private_slots(privacy, sampler, aggregator, uplink, prologue)
        privacy = prepared(privacy)
    if sampler is None:
        raise TypeError(
            "sampler must be given, e.g. sampler=fl.uniform(10), or a privacy mechanism"
        )
    aggregator = mean() if aggregator is None else aggregator
    uplink = identity() if uplink is None else uplink
    strategy = auto() if strategy is None else strategy
    kinds: dict[str, tuple[Any, type]] = {
        "client": (client, ClientUpdate),
        "plan": (plan, Plan),
        "sampler": (sampler, Sampler),
        "server": (server, ServerUpdate),
        "aggregator": (aggregator, Aggregator),
        "uplink": (uplink, Transform),
        "strategy": (strategy, Strategy),
    }
    if prologue is not None:
        kinds["prologue"] = (prologue, Prologue)
    for name, (slot, kind) in kinds.items():
        check_slot(slot, name, kind)
    slots = Slots(
        client=client,
        plan=plan,
        sampler=sampler,
        server=server,
        aggregator=aggregator,
        uplink=uplink if privacy is None else given,
        downlink=Downlink(downlink) if isinstance(downlink, Transform) else downlink,
        privacy=privacy,
        strategy=strategy,
        prologue=prologue,
    )
    program = Program(client, plan, uplink, aggregator, weighed=privacy is None)
    worn = dressed(server, downlink, privacy)
    return Wired(program, program.phases, sampler, worn, strategy, prologue, privacy, slots)


def read_phases(wires: Wired) -> tuple[Phase, ...]:
    """The phases of a round that read data, a prologue's among them."""
    if wires.prologue is None:
        return wires.phases
    return (*prologue_program(wires.prologue).phases, *wires.phases)


def dressed(
    server: ServerUpdate, downlink: Downlink | Transform | None, privacy: Mechanism | None
) -> ServerUpdate:
    """A server as a round calls it.

    Its broadcast goes over the downlink; where nobody counts it stands still; under privacy it is
    shown neither metrics nor who took part, and the downlink is not either.
    """
    if downlink is not None:
        server = downlinked(server, downlink)
    server = standing_still(server)
    return server if privacy is None else blindfolded(server)
