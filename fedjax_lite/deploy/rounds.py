"""What servers of a federation keep and ask: their state, requests, whose round counted."""

from __future__ import annotations

from typing import Any, NamedTuple

import jax.numpy as jnp
import numpy as np

from fedjax_lite.deploy.packets import digest
from fedjax_lite.deploy.parts import ToldSizes
from fedjax_lite.deploy.replies import Refusal
from fedjax_lite.round.wiring import Wired
from fedjax_lite.types import Array, Cohort, RoundState

NEVER = -1


class Served(NamedTuple):
    """The state of a federation's server, one immutable pytree; a checkpoint is this."""

    state: RoundState
    """As in a simulation, but for the clients' rows, which lie with them."""
    told: ToldSizes
    committed: Array
    """int32 `[N]`: the last round in which each client's reply counted; -1: none. Clients are told,
    so that one whose reply was lost goes on from where it was before."""
    holds: Array
    """uint32 `[N]`: which constants of the broadcast each client was sent, a word of their digest;
    0: none."""
    run: Array
    """uint8 `[16]`: names the run; replies of another one are refused."""


class Merged(NamedTuple):
    """What came of a round."""

    served: Served
    metrics: dict[str, Array]
    refusals: list[Refusal]
    asked: list[int]
    """Who was asked, by id."""
    counted: list[int]
    """Whose reply was merged."""


def without_data(wires: Wired) -> Wired:
    """The same slots, that look at no example: sizes are told as they count."""
    blind = lambda client: client._replace(counts=None)  # noqa: E731
    program = wires.program._replace(client=blind(wires.program.client))
    first = wires.prologue
    first = None if first is None else first._replace(client=blind(first.client))
    return wires._replace(program=program, prologue=first)


def members(cohort: Cohort, num_clients: int) -> list[int]:
    """The ids of a cohort."""
    ids, mask = np.asarray(cohort.ids), np.asarray(cohort.mask)
    return [int(i) for i, here in zip(ids, mask, strict=True) if here and 0 <= i < num_clients]


def request_to(
    served: Served, client: int, sent: Any, known: Any, found: Any = ()
) -> tuple[dict[str, Any], dict[str, Any]]:
    """What a client is told in the next round: fields and arrays of a request."""
    name = digest(known)
    fields = {
        "client": client,
        "run": run_name(served),
        "round": int(served.state.round),
        "known": name,
        "committed": int(served.committed[client]),
        "num_clients": served.told.num_clients,
    }
    body = {"sent": sent, "found": found}
    if known and int(served.holds[client]) != _word(name):
        body["known"] = known
    return fields, body


def commits(served: Served, asked: list[int], counted: list[int], known: Any) -> dict[str, Array]:
    """Whose round counted, and who holds the constants: not who did not reply as asked."""
    others = sorted(set(asked) - set(counted))
    who, rest = jnp.array(counted, jnp.int32), jnp.array(others, jnp.int32)
    return {
        "committed": served.committed.at[who].set(served.state.round),
        "holds": served.holds.at[rest].set(0).at[who].set(_word(digest(known))),
    }


def _word(name: str) -> np.uint32:
    """A word of a digest that is never 0."""
    return np.uint32(int(name[:8], 16) | 1)


def run_name(served: Served) -> str:
    """The name of a run, which its requests and replies carry."""
    return np.asarray(served.run).tobytes().hex()
