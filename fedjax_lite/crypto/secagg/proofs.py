"""Proofs that a message is whole, of this round and of its sender: digests, or signatures."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from typing import Any

import numpy as np

from fedjax_lite.checks.arguments import shown
from fedjax_lite.crypto.prg import primitives
from fedjax_lite.crypto.secagg.messages import SecAggAbort
from fedjax_lite.crypto.secagg.settings import Settings


def packed(part: Any) -> bytes:
    """A message's content as bytes, of which no two contents have the same.

    Example:
      >>> packed((b"ab", b"c")) == packed((b"a", b"bc"))
      False
    """
    if isinstance(part, bytes):
        kind, body = b"b", part
    elif isinstance(part, int | np.integer):
        kind, body = b"i", str(int(part)).encode()
    elif isinstance(part, np.ndarray):
        kind, body = b"w", np.ascontiguousarray(part, "<u4").tobytes()
    elif isinstance(part, Mapping):
        kind, body = b"m", b"".join(map(packed, sorted(part.items())))
    elif isinstance(part, frozenset | set):
        kind, body = b"s", b"".join(map(packed, sorted(part)))
    else:
        kind, body = b"t", b"".join(map(packed, part))
    return kind + len(body).to_bytes(8, "big") + body


def digest(settings: Settings, purpose: bytes, *fields: Any) -> bytes:
    """SHA-256 of the round, a purpose and contents."""
    return hashlib.sha256(
        b"fedjax_lite secagg " + packed((settings.session, purpose, *fields))
    ).digest()


class Identity:
    """How a client proves what it sends: by its long-lived Ed25519 key, or by digests alone.

    Args:
      settings: of the round.
      client: whose.
      key: an ``Ed25519PrivateKey`` of the package cryptography; None where the settings have no
        identities.

    Raises:
      TypeError: if the key is missing, not one, or not asked for.
      ValueError: if it is not the one of the client among the identities.

    Example:
      >>> settings = Settings(b"round 7", threshold=2, length=4)
      >>> len(Identity(settings, 3, None).prove(b"advertise", 3, b"key"))
      32

    Reference: RFC 8032 (Ed25519), FIPS 180-4 (SHA-256).
    """

    def __init__(self, settings: Settings, client: int, key: Any) -> None:
        self._settings, self._key = settings, key
        if settings.identities is None:
            if key is not None:
                raise TypeError(
                    f"identity must be None without identities in the settings, got {shown(key)}; "
                    "give Settings(..., identities={client: public key, ...})"
                )
            return
        if client not in settings.identities:
            raise ValueError(
                f"client must be one of the settings' {len(settings.identities)} identities, got "
                f"{client}; add its public key"
            )
        if not isinstance(key, primitives().asymmetric.ed25519.Ed25519PrivateKey):
            raise TypeError(
                f"identity must be an Ed25519PrivateKey of the package cryptography, got "
                f"{shown(key)}; Ed25519PrivateKey.generate() makes one"
            )
        if key.public_key().public_bytes_raw() != settings.identities[client]:
            raise ValueError(
                f"identity must be the private key of client {client}, got one of another public "
                "key than the settings' identities have for it"
            )

    def prove(self, purpose: bytes, *fields: Any) -> bytes:
        """A digest of 32 bytes, or a signature of 64."""
        content = digest(self._settings, purpose, *fields)
        return content if self._key is None else self._key.sign(content)


def check_proof(
    settings: Settings, who: str, client: int, proof: bytes, purpose: bytes, *fields: Any
) -> None:
    """Raises where a proof of a client does not fit the content.

    Raises:
      SecAggAbort: that names the client and what of it does not fit.

    Example:
      >>> settings = Settings(b"round 7", threshold=2, length=4)
      >>> proof = Identity(settings, 3, None).prove(b"mask", 3, b"vector")
      >>> check_proof(settings, "server", 3, proof, b"mask", 3, b"vector")
      >>> try:
      ...     check_proof(settings, "server", 3, proof, b"mask", 3, b"other")
      ... except SecAggAbort as error:
      ...     print(error)
      server: what client 3 sent to mask was changed, or is not of this round and client
    """
    content = digest(settings, purpose, *fields)
    if settings.identities is None:
        fits = proof == content
    else:
        if client not in settings.identities:
            raise SecAggAbort(f"{who}: client {client} is not among the round's identities")
        fits = _is_signature(settings.identities[client], proof, content)
    if not fits:
        raise SecAggAbort(
            f"{who}: what client {client} sent to {purpose.decode()} was changed, or is not of "
            "this round and client"
        )


def _is_signature(public: bytes, proof: bytes, content: bytes) -> bool:
    from cryptography.exceptions import InvalidSignature

    try:
        key = primitives().asymmetric.ed25519.Ed25519PublicKey.from_public_bytes(public)
        key.verify(proof, content)
    except (InvalidSignature, ValueError):
        return False
    return True
