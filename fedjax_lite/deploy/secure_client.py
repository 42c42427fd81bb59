"""A node's part in secure aggregation: what it sends of a round is masked, once, for one sum."""

from __future__ import annotations

import dataclasses
import functools
import hashlib
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from fedjax_lite.checks.arguments import shown
from fedjax_lite.crypto.secagg.client import Client
from fedjax_lite.crypto.secagg.messages import EncryptedShares, Roster, UnmaskRequest
from fedjax_lite.deploy.packets import (
    Packet,
    PacketError,
    check_finite_leaves,
    decode,
    encode,
)
from fedjax_lite.deploy.parts import deployed
from fedjax_lite.deploy.secure_messages import from_fields, several_from, to_fields
from fedjax_lite.deploy.secure_settings import SecureSettings
from fedjax_lite.deploy.secure_sums import check_sums, layout_of, one_vector
from fedjax_lite.run.files import naming
from fedjax_lite.types import Aggregator, Array, FederatedAlgorithm, Message

PHASES = ("advertise", "share", "mask", "confirm", "unmask")
"""Kinds of a server's requests; what answers one has the same kind with "ed"."""
REPLIES = {phase: phase.removesuffix("e") + "ed" for phase in PHASES}
MOST_SLOTS = 2**20


@dataclasses.dataclass
class Session:
    """One attempt at a round."""

    name: str
    run: str
    round: int
    party: Client
    vector: np.ndarray
    digest: str
    """Of the vector."""
    replies: dict[bytes, bytes]
    """By the digest of what was asked: who asks the same again hears the same."""


class SecureClient:
    """What a node answers to the phases of secure aggregation.

    It remembers one session. A machine that was killed in the middle of one has dropped out of it.
    And it remembers on its disk which vector it last sent under masks, and of which sum it helped
    to lift them: of a round that the server repeats it sends the same vector, and lifts masks of
    the same sum only. Two vectors of one client, or two sums that differ by single clients, would
    tell what masks are to hide. What left this machine before its vector, keys and shares of
    secrets that were made for a session which is over, tells nothing of it.

    Args:
      algo: the server's algorithm.
      client_id: whose part.
      folder: of the node.
      secure: what was agreed on.
      identity: of the signed protocol.

    Raises:
      TypeError, ValueError: if the algorithm does not sum integers, or the settings do not fit.
    """

    def __init__(
        self,
        algo: FederatedAlgorithm,
        client_id: int,
        folder: Path,
        secure: SecureSettings,
        identity: Any,
    ) -> None:
        check_secure(secure)
        self._aggregator = deployed(algo).program.aggregator
        check_sums(self._aggregator, secure)
        Client(client_id, secure.of_round("", 0, "", 1), identity=identity)  # refuses early
        self._client, self._folder = client_id, folder
        self._secure, self._identity = secure, identity
        self._session: Session | None = None

    def known(self, request: bytes) -> bytes | None:
        """The reply to a request that was answered before."""
        return None if self._session is None else self._session.replies.get(_digest(request))

    def begin(self, packet: Packet, request: bytes, tree: dict[str, Any]) -> bytes:
        """The first phase, with what this client made of the round.

        Args:
          packet: of the server.
          request: its bytes.
          tree: message, metrics and counts, none of which will leave this machine.

        Raises:
          PacketError: if the server asks for less than was agreed on, or training diverged.
        """
        fields = packet.fields
        for name, agreed in self._secure.told().items():
            if fields.get(name) != agreed:
                raise PacketError(
                    f"the server wants secure aggregation with {name} {fields.get(name)!r:.40}, "
                    f"agreed was {agreed}"
                )
        name = fields.get("session")
        if not isinstance(name, str) or not 16 <= len(name) <= 64:
            raise PacketError(f"the server's request names no session, got {name!r:.80}")
        slots, size = fields.get("slots"), _number(fields.get("cohort_size"))
        if not 1 <= size <= MOST_SLOTS or not _are_slots(slots, size):
            raise PacketError(f"the server's request names no slots of its cohort: {slots!r:.80}")
        message = tree["message"]
        check_finite_leaves({"value": message.value, "weight": message.weight}, what="my message")
        layout = layout_of(self._aggregator, message, size)
        vector = _vectors(self._aggregator)(
            size, message, tree["counts"], jnp.asarray(slots, jnp.int32)
        )
        run, round = str(fields["run"]), int(fields["round"])
        digest = hashlib.sha256(np.asarray(vector).tobytes()).hexdigest()
        self._check_same_vector(run, round, digest)
        settings = self._secure.of_round(run, round, name, layout.length)
        party = Client(self._client, settings, identity=self._identity)
        self._session = Session(name, run, round, party, np.asarray(vector), digest, {})
        return self._reply(request, "advertise", {"message": to_fields(party.advertise())})

    def answer(self, packet: Packet, request: bytes) -> bytes:
        """Any later phase.

        Raises:
          PacketError, SecAggAbort: if it does not fit.
        """
        now = self._session
        asked = tuple(packet.fields.get(name) for name in ("session", "run", "round"))
        if now is None or asked != (now.name, now.run, now.round):
            raise PacketError(
                f"{packet.kind}: this client knows no session {asked[0]!r:.80} of round "
                f"{asked[2]!r:.40}: it is stale, or this machine was started again since"
            )
        if (before := now.replies.get(_digest(request))) is not None:
            return before
        what, fields = f"the server's {packet.kind}", packet.fields
        if packet.kind == "share":
            roster = from_fields(Roster, fields.get("message"), what=what)
            boxes = [to_fields(shares) for shares in now.party.share(roster)]
            return self._reply(request, "share", {"messages": boxes})
        if packet.kind == "mask":
            boxes = several_from(EncryptedShares, fields.get("messages"), what=what)
            masked = now.party.mask(boxes, now.vector)
            self._remember(now, self._last(now.run, now.round).get("survivors"))
            tree = {"vector": masked.vector}
            return self._reply(request, "mask", {"message": to_fields(masked)}, tree)
        survivors = from_fields(UnmaskRequest, fields.get("message"), what=what)
        if packet.kind == "confirm":
            self._check_same_sum(now, survivors)
            confirmation = now.party.confirm(survivors)
            return self._reply(request, "confirm", {"message": to_fields(confirmation)})
        self._check_same_sum(now, survivors)
        shares = now.party.unmask(survivors)
        self._remember(now, sorted(survivors.survivors))
        return self._reply(request, "unmask", {"message": to_fields(shares)})

    def _reply(self, request: bytes, phase: str, fields: dict[str, Any], tree: Any = ()) -> bytes:
        now = self._session
        assert now is not None
        whose = {"client": self._client, "run": now.run, "round": now.round, "session": now.name}
        reply = encode(REPLIES[phase], {**whose, **fields}, tree)
        now.replies[_digest(request)] = reply
        return reply

    def _path(self, run: str) -> Path:
        return self._folder / f"client-{self._client}-{run}.revealed"

    def _last(self, run: str, round: int) -> dict[str, Any]:
        """What this client has told of a round; nothing, if its last one is before that.

        Raises:
          PacketError: if it is behind that.
        """
        path = self._path(run)
        if not path.exists():
            return {}
        last = decode(path.read_bytes(), "revealed").fields
        if last["round"] > round:
            raise PacketError(
                f"round {round} is asked for, but this client helped to sum round {last['round']}"
            )
        return last if last["round"] == round else {}

    def _check_same_vector(self, run: str, round: int, digest: str) -> None:
        if self._last(run, round).get("vector", digest) != digest:
            raise PacketError(
                f"round {round} is asked for again, with another model or other constants: this "
                "client sends one vector a round, or the sums would differ by it; ask for the "
                "round as before, or go on with the next one"
            )

    def _check_same_sum(self, now: Session, request: UnmaskRequest) -> None:
        last = self._last(now.run, now.round).get("survivors")
        if last not in (None, sorted(request.survivors)):
            raise PacketError(
                f"this client helped to reveal round {now.round} of clients {last} already; the "
                f"sum of {sorted(request.survivors)} would tell single clients apart: repeat the "
                "round with the same clients, go on with the next round, or begin a new run"
            )

    def _remember(self, now: Session, survivors: list[int] | None) -> None:
        """Before what it says leaves this machine."""
        path = self._path(now.run)
        temporary = path.with_name(f".{path.name}.tmp")
        fields = {"round": now.round, "vector": now.digest, "survivors": survivors}
        with naming(path):
            with temporary.open("wb") as file:
                file.write(encode("revealed", fields))
                file.flush()
                os.fsync(file.fileno())
            os.replace(temporary, path)


# Clients of one algorithm in one process share a program.
@functools.lru_cache(maxsize=8)
def _vectors(aggregator: Aggregator) -> Callable[..., Array]:
    @functools.partial(jax.jit, static_argnums=0)
    def vector(size: int, message: Message, counts: Array, slots: Array) -> Array:
        layout = layout_of(aggregator, message, size)
        return one_vector(aggregator, layout, message, counts, slots)

    return vector


def check_secure(secure: Any) -> None:
    """Raises TypeError where the settings are none."""
    if not isinstance(secure, SecureSettings):
        raise TypeError(
            f"secure must be SecureSettings, got {shown(secure)}; "
            "fl.deploy.SecureSettings(threshold=3)"
        )


def _digest(request: bytes) -> bytes:
    return hashlib.sha256(request).digest()


def _number(value: Any) -> int:
    """An int; -1 where it is none."""
    return value if isinstance(value, int) and not isinstance(value, bool) else -1


def _are_slots(slots: Any, size: int) -> bool:
    return (
        isinstance(slots, list)
        and 1 <= len(slots) <= size
        and all(0 <= _number(slot) < size for slot in slots)
        and len(set(slots)) == len(slots)
    )
