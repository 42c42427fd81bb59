"""node(): one client's machine: it answers requests, and keeps its row on its own disk."""

from __future__ import annotations

import contextlib
import hashlib
import os
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax

from fedjax_lite import trees
from fedjax_lite.checks.arguments import (
    as_path,
    check_bool,
    check_count,
    check_key,
    check_params,
    shown,
)
from fedjax_lite.crypto.secagg.messages import SecAggAbort
from fedjax_lite.deploy.one_client import Kept, OneClient, one_client, own_data
from fedjax_lite.deploy.packets import Packet, PacketError, decode, encode, unpack
from fedjax_lite.deploy.parts import deployed, splits_of
from fedjax_lite.deploy.rounds import NEVER
from fedjax_lite.deploy.secure_client import PHASES, SecureClient
from fedjax_lite.deploy.secure_settings import SecureSettings
from fedjax_lite.run.files import save_bytes_atomic
from fedjax_lite.types import FederatedAlgorithm, Key, Params, PyTree


def node(
    algo: FederatedAlgorithm,
    key: Key,
    params: Params,
    examples: PyTree,
    *,
    client_id: int,
    folder: str | os.PathLike[str],
    splits: dict[str, PyTree] | None = None,
    secure: SecureSettings | None = None,
    identity: Any = None,
    keep_session: bool = False,
) -> Callable[[bytes], bytes]:
    """A client's machine as one function, ``request -> reply``; any transport may carry them.

    Its data and its row stay on it. The row is written before a reply leaves, with the row before
    the round beside it: the server's next request says which round of this client counted last,
    and a client whose reply was lost, or that was killed, goes on from where that left it. A round
    that is asked for again gives the same reply.

    A machine that lost its folder comes back as a new one where nothing was in it that counts: no
    row, no state of an uplink (error feedback), no noise of its own, no secure aggregation. Else it
    refuses rounds of a run that counted it before.

    What it cannot answer it refuses in words, as a packet: a request that is damaged, of another
    version, shape or run, one that builds on a round that this machine does not know, or one whose
    row the disk does not take.

    Where it adds noise of its own (local privacy), the same noise never covers two replies: a round
    that is asked for again with another model, and a second run with the same folder, are refused,
    and so are rounds behind the mechanism's last. That holds as long as the folder does.

    Args:
      algo: the server's algorithm; another model or message is refused, other hyper-parameters of
        local training cannot be seen from outside.
      key: of this client's randomness. The simulation's key gives the simulation's numbers. Where
        noise of its own is to protect the client (local privacy), take a key that nobody else has,
        and another one for another run; where the server's noise is to protect it from other
        clients, not the server's.
      params: a model of the same shapes.
      examples: the machine's own arrays, leaves `[n, ...]`.
      client_id: which client of the population this is.
      folder: of its rows, on its own disk: a file a run, of at most 64 runs.
      splits: other data of this client, which phases read, by name.
      secure: answer `fedjax_lite.deploy.secure_server` only: neither a message nor a metric of this
        client leaves it but in a sum.
      identity: its ``Ed25519PrivateKey``, where `secure` has identities.
      keep_session: keep a session of secure aggregation in the folder, so that the node may be made
        anew for every request, as behind Flower. While a session lasts the file has private keys
        and, until the vector is masked, the vector: the folder must be the node's alone (mode 0700)
        and of no backup; see `fedjax_lite.deploy.secure_session.SessionFile`. False: it lives in
        this process, and ends with it.

    Returns:
      ``(bytes) -> bytes``.

    Raises:
      TypeError, ValueError: as `fedjax_lite.deploy.one_client`; if `secure` does not fit `algo`.

    Example:
      >>> import optax, tempfile, jax.numpy as jnp, fedjax_lite as fl
      >>> algo = fl.fedavg(lambda w, e, key: 0.5 * (w - e["b"]) ** 2, optax.sgd(0.5),
      ...                  plan=fl.Plan(batch_size=1), sampler=fl.everyone())
      >>> with tempfile.TemporaryDirectory() as folder:
      ...     answer = node(algo, jax.random.key(0), jnp.float32(0), {"b": jnp.ones(3)},
      ...                   client_id=0, folder=folder)
      ...     decode(answer(encode("sizes?", {"num_clients": 1}))).fields
      {'client': 0, 'sizes': {'': 3}, 'counted': 3}
    """
    check_key(key)
    check_count(client_id, "client_id", minimum=0)
    wires = deployed(algo)
    check_params(params)
    trees.check_floating(params, "params")
    own_data(examples, splits, num_clients=1)
    if lacking := sorted({*splits_of(wires)} - {*(splits or {})}):
        raise ValueError(
            f"splits must have {lacking}, which phases of local work read, got "
            f"{sorted(splits or {})}; splits={{{lacking[0]!r}: examples}}"
        )
    mechanism = wires.privacy
    once = mechanism is not None and mechanism.uplink is not None
    last_round = mechanism.accountant.max_rounds if mechanism is not None and once else None
    folder = as_path(folder, "folder")
    folder.mkdir(parents=True, exist_ok=True)
    made: dict[int, tuple[OneClient, Any]] = {}
    secretive = None
    if secure is None and identity is not None:
        raise TypeError(
            f"identity must be None without secure, got {shown(identity)}; "
            "secure=fl.deploy.SecureSettings(threshold, identities={...})"
        )
    check_bool(keep_session, "keep_session")
    if secure is None and keep_session:
        raise ValueError(
            "keep_session must be False without secure, got True: there is no session; "
            "secure=fl.deploy.SecureSettings(threshold)"
        )
    if secure is not None:
        secretive = SecureClient(
            algo, client_id, folder, secure, identity, keep_session=keep_session
        )
    alone = contextlib.nullcontext if secretive is None else secretive.alone
    kinds = ("sizes?", *(("rehearse", "train") if secretive is None else PHASES))

    def client_of(packet: Packet) -> tuple[OneClient, Any]:
        number = packet.fields.get("num_clients")
        if type(number) is not int or not client_id < number <= MOST_CLIENTS:
            raise PacketError(f"the server has {number!r:.40} clients, of which I am {client_id}")
        if number not in made:
            made.clear()
            try:
                client = one_client(algo, params, client_id=client_id, num_clients=number)
            except (TypeError, ValueError) as error:
                raise PacketError(f"this client is none of {number}: {error}") from error
            made[number] = client, client.data(examples, splits)
        return made[number]

    def answer(request: bytes) -> bytes:
        try:
            with alone():
                return answered(request)
        except (PacketError, SecAggAbort) as error:
            return encode("refused", {"client": client_id, "why": f"{error!s:.2000}"})
        except OSError as error:
            why = f"the disk of this client: {error!s:.1000}"
            return encode("refused", {"client": client_id, "why": why})

    def answered(request: bytes) -> bytes:
        packet = decode(request, *kinds)
        client, data = client_of(packet)
        if packet.kind == "sizes?":
            told = {"sizes": client.sizes(data), "counted": client.counted(data)}
            return encode("sizes", {"client": client_id, **told})
        if (whose := packet.fields.get("client")) != client_id:
            raise PacketError(f"the request is for client {whose!r:.40}, I am {client_id}")
        if secretive is not None and packet.kind != "advertise":
            return secretive.answer(packet, request)
        shelf = Shelf(
            *(folder, client_id, packet.fields, client.init),
            once=once,
            secretive=secretive is not None,
        )
        if last_round is not None and shelf.round >= last_round:
            raise PacketError(
                f"round {shelf.round} is asked for, this client's budget of privacy ends after "
                f"{last_round} rounds"
            )
        before = shelf.before()
        if packet.kind == "rehearse":
            return client.rehearse(key, request, before, data)
        if secretive is None:
            reply, after = client.train(key, request, before, data)
            shelf.put(before, after, reply)
            return reply
        if (known := secretive.known(request)) is not None:
            return known
        secretive.end()
        tree, after = client.local(key, packet, before, data)
        shelf.put(before, after, encode("local", {}, tree) if once else b"")
        return secretive.begin(packet, request, tree)

    return answer


MOST_RUNS = 64
"""Whose rows a client keeps: servers name runs, and must not fill its disk."""
MOST_CLIENTS = 2**24
"""Of a population that a client takes part in: it holds a few words a client."""


class Shelf:
    """The file of a client's row in a run: before and after the last round that it trained in.

    Args:
      folder: of the files, one a run.
      client_id: whose row.
      fields: of the server's request.
      fresh: ``() -> kept`` of a client that never trained.
      once: whether a round has one reply only, whatever is asked, and the folder one run.
      secretive: whether the client aggregates securely.

    Raises:
      PacketError: if the request does not name its run, its round and the last that counted.
    """

    def __init__(
        self,
        folder: Path,
        client_id: int,
        fields: dict[str, Any],
        fresh: Callable[[], Kept],
        *,
        once: bool = False,
        secretive: bool = False,
    ) -> None:
        run = fields.get("run")
        if not isinstance(run, str) or not re.fullmatch("[0-9a-f]{32}", run):
            raise PacketError(f"the server's request names no run, got {run!r:.60}")
        self.round, self._committed = (_number(fields, name) for name in ("round", "committed"))
        self._path = folder / f"client-{client_id}-{run}.packet"
        self._fresh, self._once, self._secretive = fresh, once, secretive
        self._replied: dict[int, str] = {}
        others = [
            path for path in folder.glob(f"client-{client_id}-*.packet") if path != self._path
        ]
        if once and others:
            raise PacketError(
                f"this client's noise served another run, of {others[0]}: for a new run it needs "
                "a new key and a folder of its own; what both spend of its privacy adds up"
            )
        if len(others) >= MOST_RUNS:
            raise PacketError(
                f"{folder} holds rows of {len(others)} other runs of this client, which is as many "
                "as it keeps; remove those that are over"
            )

    def before(self) -> Kept:
        """What this client held when the round of the request began.

        Raises:
          PacketError: if the file is damaged, or if it does not know the round that counted last
            and holds what this client cannot go on without.
        """
        fresh = self._fresh()
        if not self._path.exists():
            if self._committed != NEVER:
                self._check_replaceable(fresh)
            return fresh
        try:
            packet = decode(self._path.read_bytes(), "row")
        except PacketError as error:
            raise PacketError(f"{self._path}: {error}; restore it{self._or_else(fresh)}") from None
        last = packet.fields["round"]
        if self.round < last:
            raise PacketError(
                f"round {self.round} is asked for, but this client trained in round {last} since"
            )
        self._replied = {last: packet.fields.get("reply", "")}
        known = [jax.ShapeDtypeStruct(shape, dtype) for _, dtype, shape in _known(packet)]
        template = {"before": fresh.row, "after": fresh.row, "known": known}
        got = unpack(packet, template, what=str(self._path))
        if self._committed == last and self.round > last:
            return Kept(got["after"], got["known"])
        if self._committed != packet.fields["committed"]:
            self._check_replaceable(fresh)
        return Kept(got["before"], got["known"])

    def put(self, before: Kept, after: Kept, reply: bytes = b"") -> None:
        """Writes both rows under a temporary name, and moves them into place.

        Raises:
          PacketError: if the round had another reply before, and there may be one only.
          OSError: if the disk does not take them; the file is as it was.
        """
        name = hashlib.sha256(reply).hexdigest() if self._once else ""
        if self._once and self._replied.get(self.round, name) != name:
            raise PacketError(
                f"round {self.round} is asked for again, with another model or other constants: "
                "this client's noise covers one reply a round; go on with the next round"
            )
        fields = {"round": self.round, "committed": self._committed, "reply": name}
        tree = {"before": before.row, "after": after.row, "known": after.known}
        save_bytes_atomic(self._path, encode("row", fields, tree))

    def _keeps(self, fresh: Kept) -> str:
        """What a client cannot go on without, in words; "" where that is nothing."""
        kept = {
            "a row": jax.tree.leaves(fresh.row.clients),
            "what its uplink has not sent yet": jax.tree.leaves(fresh.row.uplink),
            "under which noise it replied": self._once,
            "which sums it helped to reveal": self._secretive,
        }
        return " and ".join(what for what, there in kept.items() if there)

    def _or_else(self, fresh: Kept) -> str:
        """Another remedy than the file itself."""
        if not self._keeps(fresh):
            return ", or remove it: nothing in it is needed"
        own = ", with a new key and a folder of its own" if self._once else ""
        return f", or begin a new run from the model that the server saved{own}"

    def _check_replaceable(self, fresh: Kept) -> None:
        """Raises where a file that is lost or behind held what is needed."""
        if keeps := self._keeps(fresh):
            raise PacketError(
                f"the server counted round {self._committed} of this client, which {self._path} "
                f"does not know; it has {keeps}: restore that file{self._or_else(fresh)}"
            )


def _number(fields: dict[str, Any], name: str) -> int:
    number = fields.get(name)
    if not isinstance(number, int) or isinstance(number, bool) or not NEVER <= number < 2**31:
        raise PacketError(f"the server's request has {name} {number!r:.40}, which is no round")
    return number


def _known(packet: Packet) -> list[tuple[str, str, tuple[int, ...]]]:
    return [leaf for leaf in packet.leaves if leaf[0].startswith("['known']")]
