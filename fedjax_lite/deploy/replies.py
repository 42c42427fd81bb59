"""Replies of real clients: read against what was asked, and put in the place of training."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from fedjax_lite.deploy.packets import PacketError, check_finite_leaves, decode, unpack
from fedjax_lite.deploy.parts import ToldSizes
from fedjax_lite.engine.messages import CLIENT_COUNTED
from fedjax_lite.engine.program import Job, Strategy, Table, message_shape
from fedjax_lite.round.wiring import Wired
from fedjax_lite.types import Array, PyTree, RoundState


class Refusal(NamedTuple):
    """A reply that was not taken, and why."""

    client: int
    why: str


class Expected(NamedTuple):
    """What a reply has to be."""

    run: str
    round: int
    asked: tuple[int, ...]
    template: PyTree
    """Shapes of a reply's tree."""


def received(replies: PyTree, came: Array) -> Strategy:
    """The strategy of a server: the cohort has trained already, here is what it sent.

    Args:
      replies: leaves `[C, ...]`, those of `reply_template`.
      came: bool `[C]`: whose reply was taken.
    """

    def execute(job: Job, table: Table, acc: PyTree) -> tuple[Table, PyTree, dict[str, Any]]:
        counts = job.work.mask & came & replies["counts"]
        acc = job.program.aggregator.add(acc, replies["message"], job.work.slots, counts)
        metrics = dict(replies["metrics"])
        metrics[CLIENT_COUNTED] = jnp.where(job.work.mask & came, metrics[CLIENT_COUNTED], 0)
        return table, acc, metrics

    return Strategy(execute, "received()")


def reply_template(wires: Wired, state: RoundState) -> PyTree:
    """Shapes of what one client replies."""
    row = jax.tree.map(lambda leaf: leaf[0], (state.clients, state.uplink))
    broadcast = wires.server.broadcast(state.server)
    program = wires.program
    if program.aggregator.at is not None:
        program = program._replace(aggregator=program.aggregator.at(state.aggregator))
    message, metrics = message_shape(program, broadcast, *row)
    return {
        "message": message,
        "metrics": metrics,
        "counts": jax.ShapeDtypeStruct((), jnp.bool_),
    }


def read_replies(
    replies: Mapping[int, bytes], expected: Expected
) -> tuple[dict[int, PyTree], list[Refusal]]:
    """The replies that are what was asked for, by client, and why the others are not.

    Args:
      replies: by the id of who sent them, as the transport knows it.
      expected: of this round.
    """
    taken: dict[int, PyTree] = {}
    refusals: list[Refusal] = []
    for client in sorted(replies):
        try:
            taken[client] = read_reply(client, replies[client], expected)
        except PacketError as error:
            refusals.append(Refusal(client, str(error)))
    return taken, refusals


def read_reply(client: int, data: bytes, expected: Expected) -> PyTree:
    """One client's reply.

    Raises:
      PacketError: if it is not what this client was asked for.
    """
    if client not in expected.asked:
        raise PacketError(f"client {client} was not asked in round {expected.round}")
    what = f"the reply of client {client}"
    packet = decode(data, "trained", "refused")
    if packet.kind == "refused":
        raise PacketError(f"client {client} refused: {packet.fields.get('why')!s:.500}")
    for name, wanted in {"run": expected.run, "round": expected.round, "client": client}.items():
        if (found := packet.fields.get(name)) != wanted:
            raise PacketError(
                f"{what} is of {name} {found!r:.60}, not {wanted!r}: stale or foreign"
            )
    tree = unpack(packet, expected.template, what=what)
    check_finite_leaves(
        {"value": tree["message"].value, "weight": tree["message"].weight}, what=what
    )
    weights = [np.asarray(leaf) for leaf in jax.tree.leaves(tree["message"].weight)]
    if any((weight < 0).any() for weight in weights):
        raise PacketError(f"{what} has a negative weight")
    return tree


def read_sizes(replies: Mapping[int, bytes], num_clients: int, splits: Iterable[str]) -> ToldSizes:
    """The sizes that clients told.

    Raises:
      PacketError: if a reply is none, or a client outside of the population sent it.
    """
    names = ("", *sorted(splits))
    sizes = {name: np.zeros(num_clients, np.int32) for name in names}
    for client, data in replies.items():
        what = f"the greeting of client {client}"
        if not 0 <= client < num_clients:
            raise PacketError(f"{what} is of nobody in [0, {num_clients})")
        packet = decode(data, "sizes", "refused")
        if packet.kind == "refused":
            raise PacketError(f"client {client} refused: {packet.fields.get('why')!s:.500}")
        told = packet.fields.get("sizes")
        for name in names:
            size = told.get(name) if isinstance(told, dict) else None
            if not isinstance(size, int) or isinstance(size, bool) or not 0 <= size < 2**31:
                raise PacketError(f"{what} lacks the size of {name or 'its examples'}")
            sizes[name][client] = size
    parts = {name: ToldSizes(jnp.asarray(sizes[name])) for name in names[1:]}
    return ToldSizes(jnp.asarray(sizes[""]), parts)
