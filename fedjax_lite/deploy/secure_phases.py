"""The phases of secure aggregation over an exchange, at the server."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, TypeVar

import jax
import numpy as np

from fedjax_lite.crypto.secagg.client import check_advertisement
from fedjax_lite.crypto.secagg.messages import (
    Advertisement,
    Confirmation,
    EncryptedShares,
    MaskedInput,
    SecAggAbort,
    Unmasking,
)
from fedjax_lite.crypto.secagg.proofs import check_proof
from fedjax_lite.crypto.secagg.server import Server
from fedjax_lite.crypto.secagg.settings import Settings
from fedjax_lite.deploy.exchange import Exchange
from fedjax_lite.deploy.packets import Packet, PacketError, decode, encode, unpack
from fedjax_lite.deploy.replies import Refusal
from fedjax_lite.deploy.secure_client import REPLIES
from fedjax_lite.deploy.secure_messages import from_fields, several_from, to_fields

Read = TypeVar("Read")
Bodies = Mapping[int, tuple[dict[str, Any], Any]]
"""Fields and arrays of a request, by client."""


class SumAborted(SecAggAbort):
    """No sum was revealed, or one that cannot be.

    ``missing`` are the clients that were asked in the beginning and did not answer in the last
    phase.
    """

    def __init__(self, why: str, *, missing: list[int], refusals: list[Refusal]) -> None:
        super().__init__(why)
        self.missing, self.refusals = missing, refusals


class Talk:
    """An attempt at a round over an exchange: requests that name it, replies that must.

    Args:
      exchange: carries bytes.
      run: its name.
      round: its number.
      session: of the attempt.
      num_clients: `N`.
    """

    def __init__(
        self, exchange: Exchange, run: str, round: int, session: str, num_clients: int
    ) -> None:
        self._exchange = exchange
        self._names = {"run": run, "round": round, "session": session}
        self._num_clients = num_clients
        self.refusals: list[Refusal] = []
        self.missing: list[int] = []
        """Who was asked in the first phase and did not answer as asked in the last one."""
        self._asked: frozenset[int] = frozenset()

    def ask(
        self, phase: str, bodies: Bodies, read: Callable[[int, Packet], Read]
    ) -> dict[int, Read]:
        """What clients answer in a phase; who is absent dropped out, or was refused.

        Args:
          phase: kind of the request.
          bodies: by client.
          read: ``(client, packet) -> message``; raises where it does not fit.
        """
        requests = {
            i: encode(
                phase,
                {**fields, **self._names, "client": i, "num_clients": self._num_clients},
                tree,
            )
            for i, (fields, tree) in bodies.items()
        }
        found: dict[int, Read] = {}
        replies = self._exchange(requests)
        for client in sorted(replies):
            try:
                if client not in requests:
                    raise PacketError(f"client {client} was not asked to {phase}")
                found[client] = read(client, self._packet(client, phase, replies[client]))
            except (PacketError, SecAggAbort) as error:
                self.refusals.append(Refusal(client, str(error)))
        self._asked |= requests.keys()
        self.missing = sorted(self._asked - found.keys())
        return found

    def _packet(self, client: int, phase: str, data: bytes) -> Packet:
        packet = decode(data, REPLIES[phase], "refused")
        if packet.kind == "refused":
            raise PacketError(f"client {client} refused: {packet.fields.get('why')!s:.500}")
        for name, wanted in {**self._names, "client": client}.items():
            if (found := packet.fields.get(name)) != wanted:
                raise PacketError(
                    f"the {packet.kind} reply of client {client} is of {name} {found!r:.60}, not "
                    f"{wanted!r}: stale or foreign"
                )
        return packet


def sum_of_survivors(
    talk: Talk, settings: Settings, begin: Bodies, *, degree: int | None
) -> tuple[np.ndarray, frozenset[int]]:
    """The sum of the vectors of those who got as far as sending them, and who they are.

    Args:
      talk: with the clients.
      settings: of this attempt.
      begin: what each of them is asked with the first phase.
      degree: of SecAgg+, or None.

    Returns:
      uint32 `[length]`, and ids.

    Raises:
      SecAggAbort: if too few are left in a phase, or somebody breaks the protocol.
    """
    server = Server(settings, degree=degree)

    def one(kind: type[Read]) -> Callable[[int, Packet], Read]:
        def read(client: int, packet: Packet) -> Read:
            what = f"the {packet.kind} message of client {client}"
            message = from_fields(kind, packet.fields.get("message"), what=what)
            if (whose := getattr(message, "client", client)) != client:
                raise PacketError(f"{what} is of client {whose}")
            return message

        return read

    def advertised(client: int, packet: Packet) -> Advertisement:
        ad = one(Advertisement)(client, packet)
        check_advertisement(settings, "server", ad)
        return ad

    def shared(client: int, packet: Packet) -> list[EncryptedShares]:
        what = f"the shares of client {client}"
        boxes = several_from(EncryptedShares, packet.fields.get("messages"), what=what)
        due = server.graph[client]
        if {box.sender for box in boxes} - {client} or {box.recipient for box in boxes} != due:
            raise PacketError(f"{what} are not for {sorted(due)}, one each")
        if len(boxes) != len(due):
            raise PacketError(f"{what} came twice")
        return boxes

    def masked(client: int, packet: Packet) -> MaskedInput:
        what = f"the masked vector of client {client}"
        shape = {"vector": jax.ShapeDtypeStruct((settings.length,), np.uint32)}
        vector = np.asarray(unpack(packet, shape, what=what)["vector"])
        message = from_fields(MaskedInput, packet.fields.get("message"), what=what, vector=vector)
        if message.client != client:
            raise PacketError(f"{what} is of client {message.client}")
        content = (client, ads[client].proof, message.peers, vector)
        check_proof(settings, "server", client, message.proof, b"mask", *content)
        return message

    def to_all(whom: Any, message: Any) -> Bodies:
        return dict.fromkeys(whom, ({"message": to_fields(message)}, ()))

    ads = talk.ask("advertise", begin, advertised)
    rosters = server.roster(list(ads.values()))
    told = {i: ({"message": to_fields(roster)}, ()) for i, roster in rosters.items()}
    boxes = server.forward(list(talk.ask("share", told, shared).values()))
    told = {i: ({"messages": [to_fields(box) for box in own]}, ()) for i, own in boxes.items()}
    request = server.collect(list(talk.ask("mask", told, masked).values()))
    survivors = request.survivors
    there: Any = survivors
    if settings.signed:
        said = talk.ask("confirm", to_all(there, request), one(Confirmation))
        request = server.confirm(list(said.values()))
        there = said
    answers = talk.ask("unmask", to_all(there, request), one(Unmasking))
    return server.reveal(list(answers.values())), survivors
