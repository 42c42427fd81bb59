"""Replies of real clients: read against what was asked, and put in the place of training."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from fedjax_lite import trees
from fedjax_lite.deploy.packets import PacketError, check_finite_leaves, decode, unpack
from fedjax_lite.deploy.parts import ToldSizes
from fedjax_lite.engine.messages import CLIENT_COUNTED, CLIENT_STEPS
from fedjax_lite.engine.program import Job, Program, Strategy, Table, message_shape
from fedjax_lite.types import Array, Cohort, Key, PyTree, Sampler


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
    kind: str = "trained"
    weighed: bool = True
    """As of the pass's `Program`."""


class Arrived(NamedTuple):
    """The replies of a cohort."""

    replies: PyTree
    """Leaves `[C, ...]`, as `reply_template` has one; zeros for who is absent."""
    came: Array
    """bool `[C]`: whose reply was taken."""


def received(trained: Arrived, rehearsed: Arrived | None = None, first: Any = None) -> Strategy:
    """The strategy of a server: the cohort has trained already, here is what it sent.

    Args:
      trained: what came of training.
      rehearsed: what came of the prologue, where there is one.
      first: the prologue's `ClientUpdate`, to know its pass by.
    """

    def execute(job: Job, table: Table, acc: PyTree) -> tuple[Table, PyTree, dict[str, Any]]:
        is_first = rehearsed is not None and job.program.client is first
        replies, came = rehearsed if rehearsed is not None and is_first else trained
        here = job.work.mask & came
        acc = job.program.aggregator.add(
            acc, replies["message"], job.work.slots, here & replies["counts"]
        )
        metrics = replies["metrics"]  # a client in two slots may be left out in one of them
        return table, acc, trees.where(here, metrics, trees.zeros(metrics))

    return Strategy(execute, "received()")


def stacked(taken: Mapping[int, PyTree], slots: list[int], template: PyTree) -> Arrived:
    """Replies in the order of a cohort's slots.

    Args:
      taken: by client.
      slots: the clients of the cohort, `[C]`.
      template: shapes of one reply.
    """
    blank = trees.zeros(template)
    replies = jax.tree.map(lambda *leaves: jnp.stack(leaves), *(taken.get(i, blank) for i in slots))
    return Arrived(replies, jnp.array([i in taken for i in slots]))


def present(sampler: Sampler, came: Array) -> Sampler:
    """The same cohorts, without those who did not come: they were sent the broadcast, no more.

    Args:
      sampler: any.
      came: bool `[C]`.
    """

    def sample(key: Key, state: PyTree, sizes: Array) -> tuple[PyTree, Cohort]:
        state, cohort = sampler.sample(key, state, sizes)
        late = cohort.mask & ~came
        late = late if cohort.late is None else late | cohort.late
        return state, cohort._replace(mask=cohort.mask & came, late=late)

    at = sampler.at
    narrowed = None if at is None else lambda errand: present(at(errand), came)
    return sampler._replace(sample=sample, at=narrowed)


def reply_template(program: Program, broadcast: PyTree, row: Table, found: PyTree = ()) -> PyTree:
    """Shapes of what one client replies after a pass.

    Args:
      program: of the pass.
      broadcast: what it downloaded.
      row: its row, leaves `[1, ...]`.
      found: shapes of what it measured in a prologue.
    """
    own = jax.tree.map(lambda leaf: leaf[0], row)
    message, metrics = message_shape(program, broadcast, own.clients, own.uplink, found)
    counts = jax.ShapeDtypeStruct((), jnp.bool_)
    return {"message": message, "metrics": metrics, "counts": counts}


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
            refusals.append(Refusal(client, f"{error!s:.1000}"))
    return taken, refusals


def read_reply(client: int, data: bytes, expected: Expected) -> PyTree:
    """One client's reply.

    Raises:
      PacketError: if it is not what this client was asked for.
    """
    if client not in expected.asked:
        raise PacketError(f"client {client} was not asked in round {expected.round}")
    what = f"the reply of client {client}"
    packet = decode(data, expected.kind, "refused")
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
    counts, said = bool(tree["counts"]), float(tree["metrics"][CLIENT_COUNTED])
    if said not in (0.0, 1.0) or (counts != bool(said) if expected.weighed else not counts):
        raise PacketError(f"{what} counts: {counts}, and says {CLIENT_COUNTED} {said}")
    return {**tree, "metrics": _checked_metrics(tree["metrics"], counts, what)}


def _checked_metrics(metrics: dict[str, Any], counts: bool, what: str) -> dict[str, Any]:
    """A client's metrics, which servers and samplers may go by; of who does not count, finite.

    Raises:
      PacketError: if one is not finite, or an amount is negative.
    """
    checked = {}
    for name, metric in metrics.items():
        parts = [np.asarray(part, np.float64) for part in jax.tree.leaves(metric)]
        is_amount = name.endswith("_bits") or name.startswith(CLIENT_STEPS)
        amounts = parts if is_amount else parts[1:]  # a Mean is total and count
        if not np.isfinite(parts).all() and (counts or is_amount):
            raise PacketError(
                f"{what} has a metric {name!r} that is not finite: {list(map(float, parts))}; a "
                "model that diverged, or 0 / 0: Mean(total, count) merges without dividing"
            )
        if any(part < 0 for part in amounts) or (
            name.startswith(CLIENT_STEPS) and parts[0] > 2**31
        ):
            raise PacketError(
                f"{what} has a metric {name!r} that is no amount: {list(map(float, parts))}"
            )
        checked[name] = jax.tree.map(lambda part: jnp.nan_to_num(part, posinf=0, neginf=0), metric)
    return checked


def read_sizes(replies: Mapping[int, bytes], num_clients: int, splits: Iterable[str]) -> ToldSizes:
    """The sizes that clients told.

    Raises:
      PacketError: if a reply is none, or a client outside of the population sent it.
    """
    names = ("", *sorted(splits))
    sizes = {name: np.zeros(num_clients, np.int64) for name in (*names, None)}
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
        counted = packet.fields.get("counted")
        if type(counted) is not int or not 0 <= counted <= sizes[""][client]:
            raise PacketError(
                f"{what} says that {counted!r:.40} of {sizes[''][client]} examples count"
            )
        sizes[None][client] = counted
    for name in names:  # as offsets of a population are, and sums of sizes on the device
        if (total := int(sizes[name].sum())) >= 2**31:
            who = int(sizes[name].argmax())
            raise PacketError(
                f"the sizes of {name or 'examples'} add up to {total}, more than 2**31 - 1; client "
                f"{who} says {sizes[name][who]}"
            )
    whole, *rest, counted = (jnp.asarray(size, jnp.int32) for size in sizes.values())
    parts = {name: ToldSizes(size) for name, size in zip(names[1:], rest, strict=True)}
    return ToldSizes(whole, parts, counted)
