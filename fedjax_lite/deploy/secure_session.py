"""A client's session of secure aggregation on its own disk, between two messages of the server."""

from __future__ import annotations

import contextlib
import dataclasses
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import jax
import numpy as np

from fedjax_lite.crypto.secagg.client import Client
from fedjax_lite.crypto.secagg.kept import Kept, client_of, is_spent, kept_of
from fedjax_lite.deploy.packets import PacketError, decode, encode, unpack
from fedjax_lite.deploy.secure_messages import from_fields, to_fields
from fedjax_lite.deploy.secure_settings import SecureSettings
from fedjax_lite.run.files import naming, save_bytes_atomic, sync_folder

MOST_REPLIES = 8
"""More than a session has."""


@dataclasses.dataclass
class Session:
    """One attempt at a round."""

    name: str
    run: str
    round: int
    party: Client
    vector: np.ndarray
    """Zeros where it was masked before this process began, or never will be."""
    digest: str
    """Of the vector."""
    replies: dict[bytes, bytes]
    """By the digest of what was asked: who asks the same again hears the same."""


class SessionFile:
    """The file of a client's session: as of its last reply, before that leaves.

    There is one a client. It is written under another name and moved into place, readable by its
    owner only (mode 0600), and on the disk before `save` returns. It holds, without pickle and with
    a checksum of all, what the session's replies were and what the protocol still needs:

    - until the vector is masked: the private keys, the seed of its own mask, the vector. Who reads
      the folder then has this client's vector, and could have its masks;
    - from then on: a share of each secret that others entrusted to it, and one of its own. No key
      is left that opens a ciphertext or makes a mask, so who reads the folder then learns no more
      than the server learns of a client that conspires with it;
    - once the masks are lifted: nothing, the file is gone. So it is when another session begins,
      and when a request says that the round is over.

    Blocks that a file system leaves behind, journals, snapshots and backups are not erased: the
    folder must be the node's alone, and best of no backup.

    Args:
      folder: of the node.
      client: whose.
      secure: what was agreed on.
      identity: of the signed protocol; it is not written.
    """

    def __init__(self, folder: Path, client: int, secure: SecureSettings, identity: Any) -> None:
        self._path = folder / f"client-{client}.session"
        self._lock = folder / f"client-{client}.lock"
        self._client, self._secure, self._identity = client, secure, identity

    @contextlib.contextmanager
    def alone(self) -> Iterator[None]:
        """Keeps other processes of this client waiting.

        Two that go on with the same session at once could give away both secrets of a peer.
        """
        import filelock

        with filelock.FileLock(self._lock, mode=0o600):
            yield

    def load(self) -> Session | None:
        """The session; None where there is none.

        Raises:
          PacketError: if the file is damaged, or of other settings or another client.
        """
        if not self._path.exists():
            return None
        try:
            return self._read(self._path.read_bytes())
        except (ValueError, TypeError, KeyError, OverflowError) as error:
            raise PacketError(
                f"{self._path} is no session of client {self._client}: {error!s:.300}; this "
                "client dropped out of it, and is there again in the next one"
            ) from None

    def save(self, session: Session) -> None:
        """Writes it.

        Raises:
          OSError: if the disk does not take it; the file is as it was.
        """
        kept = kept_of(session.party)
        vector = session.vector[:0] if is_spent(kept) else session.vector
        asked = list(session.replies)
        fields = {
            "client": self._client,
            "run": session.run,
            "round": session.round,
            "session": session.name,
            "length": session.party.settings.length,
            "vector": session.digest,
            "secure": self._secure.told(),
            "asked": [digest.hex() for digest in asked],
        }
        texts = [json.dumps(to_fields(kept)).encode(), *(session.replies[name] for name in asked)]
        tree = [vector, *(np.frombuffer(text, np.uint8) for text in texts)]
        save_bytes_atomic(self._path, encode("session", fields, tree), mode=0o600)

    def remove(self) -> None:
        """The session is over."""
        if not self._path.exists():
            return
        with naming(self._path):
            self._path.unlink()
            sync_folder(self._path.parent)

    def _read(self, data: bytes) -> Session:
        packet = decode(data, "session")
        fields = packet.fields
        if fields["client"] != self._client or fields["secure"] != self._secure.told():
            raise PacketError("it is of another client or of other settings")
        name, run, round, length = (fields[key] for key in ("session", "run", "round", "length"))
        if not isinstance(name, str) or not isinstance(run, str) or type(round) is not int:
            raise PacketError("it names no session")
        asked = [bytes.fromhex(digest) for digest in fields["asked"]]
        dtypes = [dtype for _, dtype, _ in packet.leaves]
        if dtypes != ["uint32", *["uint8"] * (1 + len(asked))] or len(asked) > MOST_REPLIES:
            raise PacketError("it has other parts")
        shapes = [jax.ShapeDtypeStruct(shape, dtype) for _, dtype, shape in packet.leaves]
        vector, text, *replies = map(np.asarray, unpack(packet, shapes, what="it"))
        kept = from_fields(Kept, json.loads(text.tobytes()), what="its part of the protocol")
        if kept.client != self._client:
            raise PacketError(f"its part of the protocol is of client {kept.client}")
        settings = self._secure.of_round(run, round, name, length)
        party = client_of(kept, settings, identity=self._identity)
        if vector.shape != ((0,) if is_spent(kept) else (length,)):
            raise PacketError(f"its vector has the shape {list(vector.shape)}")
        if is_spent(kept):
            vector = np.zeros(length, np.uint32)  # the party refuses to mask it
        said = dict(zip(asked, (reply.tobytes() for reply in replies), strict=True))
        return Session(name, run, round, party, vector, fields["vector"], said)
