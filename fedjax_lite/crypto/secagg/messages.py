"""What clients and server of a secure aggregation send each other: bytes, integers, vectors."""

from __future__ import annotations

import dataclasses
from typing import Any

import numpy as np

ID_BYTES = 4
"""A client's id on the wire."""
SHARE_BYTES = 33
"""An element of the field of ``2**256 + 297``."""
KEY_BYTES = 32
"""A public key of X25519 or Ed25519."""


class SecAggAbort(RuntimeError):
    """The round cannot be finished safely: too few clients are left, or somebody cheats."""


@dataclasses.dataclass(frozen=True)
class Advertisement:
    """Phase 0, client to server: two fresh public keys, and what binds the client to its seed."""

    client: int
    share_key: bytes
    """X25519: agrees on the keys that encrypt shares."""
    mask_key: bytes
    """X25519: agrees on the seeds of pairwise masks."""
    seed_digest: bytes = b""
    """Of the self mask's seed; with it the server notices shares that give another one."""
    proof: bytes = b""
    """A digest, or a signature; see `secagg_proofs`."""


@dataclasses.dataclass(frozen=True)
class Roster:
    """Phase 0, server to one client: the keys of its neighbours and its own."""

    advertisements: tuple[Advertisement, ...]


@dataclasses.dataclass(frozen=True)
class EncryptedShares:
    """Phase 1, client to client through the server: two shares, encrypted and authenticated."""

    sender: int
    recipient: int
    ciphertext: bytes
    """Bound to the round and to both clients' advertisements, as associated data."""


@dataclasses.dataclass(frozen=True)
class MaskedInput:
    """Phase 2, client to server: the vector under all its masks."""

    client: int
    vector: np.ndarray
    """uint32 `[length]`."""
    peers: frozenset[int] = frozenset()
    """Whose pairwise masks are in it: those whose shares arrived."""
    proof: bytes = b""


@dataclasses.dataclass(frozen=True)
class Confirmation:
    """Phase 3 of the signed protocol, client to server, for all: the survivors as it was told."""

    client: int
    proof: bytes
    """A signature over the round, its advertisement and the survivors."""


@dataclasses.dataclass(frozen=True)
class UnmaskRequest:
    """Phase 3, server to every survivor: whose vector arrived."""

    survivors: frozenset[int]
    confirmations: tuple[Confirmation, ...] = ()
    """Of the signed protocol: the survivors' signatures over the same list."""


@dataclasses.dataclass(frozen=True)
class Unmasking:
    """Phase 3, client to server: one share a neighbour, of one of its two secrets."""

    client: int
    self_shares: dict[int, bytes]
    """Of the self mask's seed, for survivors."""
    key_shares: dict[int, bytes]
    """Of the mask key, for those who dropped out."""
    proof: bytes = b""


def is_id(value: Any) -> bool:
    """Whether something is a client's id: an integer from 0 to ``2**31 - 1``.

    Example:
      >>> is_id(3), is_id(np.int64(3)), is_id(True), is_id(-1), is_id(2.0)
      (True, True, False, False, False)
    """
    if isinstance(value, bool) or not isinstance(value, int | np.integer):
        return False
    return bool(0 <= value < 2**31)


def _is_ids(value: Any) -> bool:
    return isinstance(value, frozenset | set) and all(map(is_id, value))


def _is_bytes(value: Any) -> bool:
    return isinstance(value, bytes)


def _is_key(value: Any) -> bool:
    return isinstance(value, bytes) and len(value) == KEY_BYTES


def _is_words(value: Any) -> bool:
    return isinstance(value, np.ndarray) and value.dtype == np.uint32 and value.ndim == 1


def _is_shares(value: Any) -> bool:
    return isinstance(value, dict) and all(
        is_id(owner) and isinstance(share, bytes) and len(share) == SHARE_BYTES
        for owner, share in value.items()
    )


def _is_tuple(value: Any) -> bool:
    return isinstance(value, tuple | list)


_FIELDS: dict[type, dict[str, tuple[str, Any]]] = {
    Advertisement: {
        "share_key": ("the public key", _is_key),
        "mask_key": ("the public key", _is_key),
        "seed_digest": ("the digest", _is_bytes),
        "proof": ("the proof", _is_bytes),
    },
    Roster: {"advertisements": ("the list of keys", _is_tuple)},
    EncryptedShares: {"ciphertext": ("the ciphertext", _is_bytes)},
    MaskedInput: {
        "vector": ("the masked vector", _is_words),
        "peers": ("the list of neighbours", _is_ids),
        "proof": ("the proof", _is_bytes),
    },
    Confirmation: {"proof": ("the proof", _is_bytes)},
    UnmaskRequest: {
        "survivors": ("the list of survivors", _is_ids),
        "confirmations": ("the list of confirmations", _is_tuple),
    },
    Unmasking: {
        "self_shares": ("the dict of seed shares", _is_shares),
        "key_shares": ("the dict of key shares", _is_shares),
        "proof": ("the proof", _is_bytes),
    },
}


def check_message(message: Any, kind: type, who: str) -> None:
    """Raises where something is not a message of this kind, with every field of its type.

    Args:
      message: what arrived.
      kind: what is due.
      who: is being sent it, for the error.

    Raises:
      SecAggAbort: that names the sender, as far as it is known, and what is wrong.

    Example:
      >>> check_message(UnmaskRequest(frozenset({1, 2})), UnmaskRequest, "client 1")
      >>> try:
      ...     check_message(None, Unmasking, "server")
      ... except SecAggAbort as error:
      ...     print(error)
      server: an Unmasking is due, got None
    """
    if not isinstance(message, kind):
        found = "None" if message is None else type(message).__name__
        article = "an" if kind.__name__[0] in "AEIOU" else "a"
        raise SecAggAbort(f"{who}: {article} {kind.__name__} is due, got {found}")
    for name in ("client", "sender", "recipient"):
        if hasattr(message, name) and not is_id(getattr(message, name)):
            raise SecAggAbort(
                f"{who}: the {name} of {kind.__name__} is no client's id, got "
                f"{getattr(message, name)!r:.40}"
            )
    sender = getattr(message, "client", getattr(message, "sender", "the server"))
    origin = sender if isinstance(sender, str) else f"client {sender}"
    for name, (label, holds) in _FIELDS[kind].items():
        if not holds(getattr(message, name)):
            raise SecAggAbort(
                f"{who}: {label} of {origin} is malformed ({name} of {kind.__name__})"
            )


def num_bytes(message: object) -> int:
    """What a message takes on the wire: its bytes and vectors, and 4 a client id.

    Example:
      >>> num_bytes(MaskedInput(3, np.zeros(10, np.uint32)))
      44
    """
    if isinstance(message, bytes):
        return len(message)
    if isinstance(message, np.ndarray):
        return message.nbytes
    if isinstance(message, int | np.integer):
        return ID_BYTES
    if isinstance(message, dict):
        return sum(num_bytes(part) for item in message.items() for part in item)
    if isinstance(message, list | tuple | frozenset | set):
        return sum(map(num_bytes, message))
    if dataclasses.is_dataclass(message):
        fields = dataclasses.fields(message)
        return sum(num_bytes(getattr(message, field.name)) for field in fields)
    raise TypeError(f"message must be one of the protocol's, got {type(message).__name__}")
