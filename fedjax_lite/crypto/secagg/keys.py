"""Keys of secure aggregation: what two clients agree on, and which public keys are refused."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from fedjax_lite.crypto.prg import primitives
from fedjax_lite.crypto.secagg.messages import SecAggAbort


def agree(private: Any, public: bytes, round_id: bytes, purpose: bytes) -> bytes:
    """32 bytes that two clients agree on: X25519, then HKDF-SHA256 bound to round and purpose.

    Raises:
      ValueError: if the public key is not 32 bytes, or of low order: the secret would be zero.

    Example:
      >>> x25519 = primitives().asymmetric.x25519
      >>> a, b = (x25519.X25519PrivateKey.generate() for _ in range(2))
      >>> publics = [key.public_key().public_bytes_raw() for key in (a, b)]
      >>> agree(a, publics[1], b"1", b"mask") == agree(b, publics[0], b"1", b"mask")
      True
    """
    parts = primitives()
    secret = private.exchange(parts.asymmetric.x25519.X25519PublicKey.from_public_bytes(public))
    derive = parts.kdf.hkdf.HKDF(
        parts.hashes.SHA256(), length=32, salt=round_id, info=b"fedjax_lite secagg " + purpose
    )
    return derive.derive(secret)


def mask_seed(private: Any, public: bytes, round_id: bytes) -> bytes:
    """The seed `s_uv` of a pairwise mask; see `agree`."""
    return agree(private, public, round_id, b"mask")


@contextmanager
def usable_key(who: str, peer: int) -> Iterator[None]:
    """Turns the refusal of a peer's public key by X25519 into an abort that names the peer.

    Raises:
      SecAggAbort: if the body raises ValueError.

    Example:
      >>> private = primitives().asymmetric.x25519.X25519PrivateKey.generate()
      >>> try:
      ...     with usable_key("client 3", 7):
      ...         key = agree(private, bytes(32), b"round 7", b"mask")
      ... except SecAggAbort as error:
      ...     print(error)
      client 3: the public key of client 7 is of low order or malformed
    """
    try:
        yield
    except ValueError as error:
        raise SecAggAbort(
            f"{who}: the public key of client {peer} is of low order or malformed"
        ) from error
