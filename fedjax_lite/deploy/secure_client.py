"""A node's part in secure aggregation: what it sends of a round is masked, once, for one sum."""

from __future__ import annotations

import contextlib
import functools
import hashlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from fedjax_lite.checks.arguments import shown
from fedjax_lite.crypto.secagg.client import Client
from fedjax_lite.crypto.secagg.messages import (
    EncryptedShares,
    Roster,
    SecAggAbort,
    UnmaskRequest,
)
from fedjax_lite.deploy.packets import (
    Packet,
    PacketError,
    check_finite_leaves,
    decode,
    encode,
)
from fedjax_lite.deploy.parts import deployed
from fedjax_lite.deploy.secure_messages import from_fields, several_from, to_fields
from fedjax_lite.deploy.secure_session import Session, SessionFile
from fedjax_lite.deploy.secure_settings import SecureSettings
from fedjax_lite.deploy.secure_sums import check_sums, layout_of, one_vector
from fedjax_lite.run.files import save_bytes_atomic
from fedjax_lite.types import Aggregator, Array, FederatedAlgorithm, Message

PHASES = ("advertise", "share", "mask", "confirm", "unmask")
"""Kinds of a server's requests; what answers one has the same kind with "ed"."""
REPLIES = {phase: phase.removesuffix("e") + "ed" for phase in PHASES}
MOST_SLOTS = 2**20


class SecureClient:
    """What a node answers to the phases of secure aggregation.

    It remembers one session. In memory: a machine that was killed in the middle of one has dropped
    out of it. With `keep_session` in its folder, for transports that start a process a message:
    the next process goes on where the last one was, with the same bytes. What lies there, and who
    must not read it: `fedjax_lite.deploy.secure_session.SessionFile`.

    And it remembers on its disk which vector it last sent under masks, and of which sum it helped
    to lift them: of a round that the server repeats it sends the same vector, and lifts masks of
    the same sum only. Two vectors of one client, or two sums that differ by single clients, would
    tell what masks are to hide. What left this machine before its vector, keys and shares of
    secrets that were made for a session which is over, tells nothing of it.

    The same note says which requests of a session it answered, so that a session's file alone that
    is set back by a backup gives nothing new: the client masks for one list of neighbours, confirms
    one list of survivors, and lifts masks for that one. A folder that is set back as a whole
    forgets the note as well. A server that knows of it could ask for more: such a client counts as
    one that conspires with the server. It may lose its own vector then, and others do not as long
    as fewer than the threshold do so. So keep the folder out of backups, or begin a new run after
    one was restored.

    Args:
      algo: the server's algorithm.
      client_id: whose part.
      folder: of the node.
      secure: what was agreed on.
      identity: of the signed protocol.
      keep_session: on the disk.

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
        *,
        keep_session: bool = False,
    ) -> None:
        check_secure(secure)
        self._aggregator = deployed(algo).program.aggregator
        check_sums(self._aggregator, secure)
        Client(client_id, secure.of_round("", 0, "", 1), identity=identity)  # refuses early
        self._client, self._folder = client_id, folder
        self._secure, self._identity = secure, identity
        self._session: Session | None = None
        self._file = SessionFile(folder, client_id, secure, identity) if keep_session else None

    def alone(self) -> contextlib.AbstractContextManager[None]:
        """Around all that is done for a request, where a session is on the disk."""
        return contextlib.nullcontext() if self._file is None else self._file.alone()

    def known(self, request: bytes) -> bytes | None:
        """The reply to a request that was answered before."""
        now = None
        with contextlib.suppress(PacketError):  # of a damaged file nothing is known
            now = self._now()
        return None if now is None else now.replies.get(_digest(request))

    def end(self) -> None:
        """What was begun before is over: another session begins."""
        self._session = None
        if self._file is not None:
            self._file.remove()

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
        self._check_repeatable(run, round, size)
        settings = self._secure.of_round(run, round, name, layout.length)
        party = Client(self._client, settings, identity=self._identity)
        now = Session(name, run, round, party, np.asarray(vector), digest, {})
        return self._reply(now, request, "advertise", {"message": to_fields(party.advertise())})

    def answer(self, packet: Packet, request: bytes) -> bytes:
        """Any later phase.

        Raises:
          PacketError, SecAggAbort: if it does not fit.
        """
        now = self._now()
        asked = tuple(packet.fields.get(name) for name in ("session", "run", "round"))
        if now is None or asked != (now.name, now.run, now.round):
            if now is not None and asked[1] == now.run and _number(asked[2]) > now.round:
                self.end()
            raise PacketError(
                f"{packet.kind}: this client knows no session {asked[0]!r:.80} of round "
                f"{asked[2]!r:.40}: it is stale or over, or this machine was started again since"
            )
        if (before := now.replies.get(_digest(request))) is not None:
            return before
        try:
            return self._next(now, packet, request)
        except SecAggAbort:  # the party gave up, and does so for good
            if self._file is not None and now is not self._session:
                self._file.save(now)
            raise

    def _next(self, now: Session, packet: Packet, request: bytes) -> bytes:
        what, fields = f"the server's {packet.kind}", packet.fields
        if packet.kind == "share":
            roster = from_fields(Roster, fields.get("message"), what=what)
            boxes = [to_fields(shares) for shares in now.party.share(roster)]
            return self._reply(now, request, "share", {"messages": boxes})
        if packet.kind == "mask":
            boxes = several_from(EncryptedShares, fields.get("messages"), what=what)
            self._check_asked(now, "mask", request)
            masked = now.party.mask(boxes, now.vector)
            self._remember(now, "mask", request)
            tree = {"vector": masked.vector}
            return self._reply(now, request, "mask", {"message": to_fields(masked)}, tree)
        survivors = from_fields(UnmaskRequest, fields.get("message"), what=what)
        self._check_same_sum(now, survivors)
        self._check_asked(now, packet.kind, request)
        if packet.kind == "confirm":
            confirmation = now.party.confirm(survivors)
            self._remember(now, "confirm", request)
            return self._reply(now, request, "confirm", {"message": to_fields(confirmation)})
        shares = now.party.unmask(survivors)
        self._remember(now, "unmask", request, sorted(survivors.survivors))
        return self._reply(now, request, "unmask", {"message": to_fields(shares)})

    def _now(self) -> Session | None:
        """The session; of one that is over and off the disk this process knows what it replied."""
        found = None if self._file is None else self._file.load()
        return self._session if found is None else found

    def _reply(
        self, now: Session, request: bytes, phase: str, fields: dict[str, Any], tree: Any = ()
    ) -> bytes:
        """A reply, once the session with it is where the next request will look for it."""
        whose = {"client": self._client, "run": now.run, "round": now.round, "session": now.name}
        reply = encode(REPLIES[phase], {**whose, **fields}, tree)
        now.replies[_digest(request)] = reply
        is_over = phase == "unmask"
        if self._file is None or is_over:
            self._session = now
        if self._file is not None:
            self._file.remove() if is_over else self._file.save(now)
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

    def _check_asked(self, now: Session, phase: str, request: bytes) -> None:
        """Raises where the note knows of another request than the session's file does."""
        last = self._last(now.run, now.round)
        asked = last.get("asked", {}) if last.get("session") == now.name else {}
        if asked.get(phase, _digest(request).hex()) != _digest(request).hex():
            raise PacketError(
                f"{phase}: this client answered another request of this phase before, and the file "
                "of its session was set back since: it dropped out of this session, and is there "
                "again in the next one"
            )

    def _check_repeatable(self, run: str, round: int, cohort_size: int) -> None:
        """Raises where two sums of one round could be had of disjoint helpers in a sparse graph.

        Of `m` survivors each has `t` helpers among its at most `k + 1` holders, and a helper holds
        for as many: ``t m / (k + 1)`` of the cohort, and twice that is more than all of it.
        """
        degree = self._secure.degree
        if degree is None or "vector" not in self._last(run, round):
            return
        holders = degree + degree % 2 + 1  # an odd degree of an odd number of clients is one more
        threshold, fewest = self._secure.threshold, self._secure.fewest
        if 2 * threshold * fewest <= holders * cohort_size:
            least = holders * cohort_size // (2 * threshold) + 1
            raise PacketError(
                f"round {round} is asked for again, with masks among {degree} neighbours and "
                f"min_survivors {fewest} of {cohort_size}: two sums of it could be had, whose "
                f"difference tells of single clients; use min_survivors={least} (fewer with a "
                "smaller degree), or go on with the next round"
            )

    def _remember(
        self, now: Session, phase: str, request: bytes, survivors: list[int] | None = None
    ) -> None:
        """Before what it says leaves this machine."""
        last = self._last(now.run, now.round)
        asked = last.get("asked", {}) if last.get("session") == now.name else {}
        fields = {
            "round": now.round,
            "vector": now.digest,
            "survivors": last.get("survivors") if survivors is None else survivors,
            "session": now.name,
            "asked": {**asked, phase: _digest(request).hex()},
        }
        save_bytes_atomic(self._path(now.run), encode("revealed", fields))


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
