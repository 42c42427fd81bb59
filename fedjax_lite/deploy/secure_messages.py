"""The messages of secure aggregation, and what a client keeps, as fields of packets, and back."""

from __future__ import annotations

import dataclasses
from typing import Any, TypeVar, cast

import numpy as np

from fedjax_lite.crypto.secagg.kept import Kept
from fedjax_lite.crypto.secagg.messages import (
    Advertisement,
    Confirmation,
    EncryptedShares,
    MaskedInput,
    Roster,
    Unmasking,
    UnmaskRequest,
    is_id,
)
from fedjax_lite.deploy.packets import PacketError

Message = TypeVar("Message")

_FORMS: dict[type, dict[str, Any]] = {
    Advertisement: {
        "client": "id",
        "share_key": "bytes",
        "mask_key": "bytes",
        "seed_digest": "bytes",
        "proof": "bytes",
    },
    Roster: {"advertisements": Advertisement},
    EncryptedShares: {"sender": "id", "recipient": "id", "ciphertext": "bytes"},
    MaskedInput: {"client": "id", "peers": "ids", "proof": "bytes"},
    Confirmation: {"client": "id", "proof": "bytes"},
    UnmaskRequest: {"survivors": "ids", "confirmations": Confirmation},
    Unmasking: {
        "client": "id",
        "self_shares": "shares",
        "key_shares": "shares",
        "proof": "bytes",
    },
    Kept: {
        "client": "id",
        "done": "id",
        "why": "text",
        "share_key": "bytes",
        "mask_key": "bytes",
        "seed": "bytes",
        "advertisements": Advertisement,
        "own": "bytes",
        "shares": "shares",
        "confirmed": "ids",
    },
}
"""Fields of each kind; a type stands for several of it. A vector travels as an array."""
MOST_BYTES = 4096
"""Of a key, a share, a proof or a ciphertext."""


def to_fields(message: Any) -> dict[str, Any]:
    """A message as what JSON knows; bytes as hexadecimal digits, without its vector.

    Example:
      >>> to_fields(Confirmation(3, b"ok"))
      {'client': 3, 'proof': '6f6b'}
    """
    fields = {f.name: getattr(message, f.name) for f in dataclasses.fields(message)}
    return {name: _plain(v) for name, v in fields.items() if not isinstance(v, np.ndarray)}


def from_fields(kind: type[Message], fields: Any, *, what: str, **arrays: Any) -> Message:
    """A message from what `to_fields` made of one.

    Args:
      kind: of message.
      fields: as they came.
      what: for errors.
      **arrays: its vector.

    Raises:
      PacketError: if they are not of this form; whether they fit is the protocol's to say.

    Example:
      >>> from_fields(Confirmation, {"client": 3, "proof": "6f6b"}, what="a reply")
      Confirmation(client=3, proof=b'ok')
    """
    form = _FORMS[kind]
    if not isinstance(fields, dict) or set(fields) != set(form):
        raise PacketError(f"{what} is no {kind.__name__}: it has other fields")
    read = {name: _read(form[name], fields[name], f"{name} of {what}") for name in form}
    return cast(Any, kind)(**read, **arrays)


def several_from(kind: type[Message], values: Any, *, what: str) -> list[Message]:
    """Messages of one kind from a list.

    Raises:
      PacketError: if it is none.

    Example:
      >>> several_from(Confirmation, [], what="a reply")
      []
    """
    if not isinstance(values, list):
        raise PacketError(f"{what} is no list of messages")
    return [from_fields(kind, value, what=what) for value in values]


def _plain(value: Any) -> Any:
    if isinstance(value, bytes):
        return value.hex()
    if isinstance(value, str):
        return value
    if isinstance(value, frozenset | set):
        return sorted(map(int, value))
    if isinstance(value, dict):
        return [[int(owner), share.hex()] for owner, share in sorted(value.items())]
    if isinstance(value, tuple | list):
        return [to_fields(part) for part in value]
    return int(value)


def _read(form: Any, value: Any, what: str) -> Any:
    if isinstance(form, type):
        return tuple(several_from(form, value, what=what))
    if form == "id" and is_id(value):
        return value
    if form == "bytes":
        return _bytes(value, what)
    if form == "text" and isinstance(value, str):
        return value
    if form == "ids" and isinstance(value, list) and all(map(is_id, value)):
        return frozenset(value)
    if form == "shares" and isinstance(value, list):
        pairs = [pair for pair in value if isinstance(pair, list) and len(pair) == 2]
        shares = {owner: _bytes(share, what) for owner, share in pairs if is_id(owner)}
        if len(shares) == len(value):
            return shares
    raise PacketError(f"{what} is malformed, got {value!r:.60}")


def _bytes(value: Any, what: str) -> bytes:
    if isinstance(value, str) and len(value) <= 2 * MOST_BYTES:
        try:
            return bytes.fromhex(value)
        except ValueError:
            pass
    raise PacketError(f"{what} is malformed, got {value!r:.60}")
