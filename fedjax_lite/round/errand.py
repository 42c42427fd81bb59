"""What a round asks of a client, before anybody has trained: steps, and bits on the wire."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from fedjax_lite import trees
from fedjax_lite.engine.one_pass import steps_in
from fedjax_lite.engine.prologue import prologue_program
from fedjax_lite.engine.round_keys import round_keys
from fedjax_lite.round.downlink import Downlinked, travelling
from fedjax_lite.round.wiring import Wired, read_phases
from fedjax_lite.transforms.chain import send
from fedjax_lite.types import Array, ClientInfo, Key, PyTree, Sampler


class Traffic(NamedTuple):
    """What one client is sent and sends in a round, in bits; float32 scalars."""

    down: Array
    up: Array


class Errand(NamedTuple):
    """What a round asks of its clients, for samplers that decide by it (`Sampler.at`)."""

    infos: Callable[[Array, Array], ClientInfo]
    """``(ids [C], sizes [C]) ->`` what each client is told, leaves `[C]`; a prologue's steps count
    with the others."""
    first: Traffic | None = None
    """What a client is sent and sends in the first round. Known when a state is made, where a
    sampler puts down what it needs; None in a round."""
    later: Traffic | None = None
    """The same of all other rounds: a compressed downlink starts with the exact model."""


def told(wires: Wired, key: Key, round: Array, *traffic: Traffic) -> Sampler:
    """The sampler of a round, told what clients are asked to do where it wants to know.

    Args:
      wires: the slots of the round.
      key: of the run.
      round: int32 scalar.
      traffic: when a state is made: of the first round, and of all others.
    """
    sampler = wires.sampler
    if sampler.at is None:
        return sampler
    if names := {phase.data for phase in read_phases(wires) if phase.data}:
        raise ValueError(
            "sampler must not decide by clients' steps where a phase reads a split, of whose sizes "
            f"nobody tells it, got {sampler.made} and splits {sorted(names)}; take one that draws "
            "blind (fl.uniform ...), or let all phases read what clients train on"
        )
    keys = round_keys(key, round)

    def infos(ids: Array, sizes: Array) -> ClientInfo:
        own = tuple(
            steps_in(phase, keys.training.clients, ids, sizes, round) for phase in wires.phases
        )
        steps = sum(own[1:], start=own[0])
        if wires.prologue is not None:
            again = wires.prologue.rehearsal
            key_first = (keys.training if again else keys.prologue).clients
            for phase in prologue_program(wires.prologue).phases:
                steps = steps + steps_in(phase, key_first, ids, sizes, round)
        rounds = jnp.broadcast_to(jnp.asarray(round, jnp.int32), ids.shape)
        several = own if len(own) > 1 else ()
        return ClientInfo(ids, sizes, steps, rounds, None, several)

    return sampler.at(Errand(infos, *traffic))


def traffic_of(
    wires: Wired, server: PyTree, broadcast: PyTree, message: PyTree, preface: PyTree
) -> tuple[Traffic, Traffic]:
    """Bits of a client in the first round and in all others, from shapes alone.

    A message has the packed size that its transform states for zeros: fields of fixed width.

    Args:
      wires: the slots of the round.
      server: its first state.
      broadcast: what clients download of it.
      message: shapes of a client's message, before the uplink.
      preface: shapes of a prologue's aggregate, which a client sends its part of and downloads.
    """
    share = getattr(server, "downloaded_share", 1.0)
    beside = trees.num_bits(preface)
    up = _packed(wires.program.uplink, message) + beside
    first = jnp.float32(trees.num_bits(travelling(broadcast)) * share + beside)
    later = first
    if isinstance(server, Downlinked) and wires.slots.downlink is not None:
        later = _packed(wires.slots.downlink.transform, server.received) + beside
    return Traffic(first, up), Traffic(later, up)


def _packed(transform: Any, value: PyTree) -> Array:
    @jax.jit
    def bits(key: Key) -> Array:
        zeros = trees.zeros(value)
        return send(transform, key, transform.init(zeros), zeros)[2].bits

    return jnp.float32(bits(jax.random.key(0)))
