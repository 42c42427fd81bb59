"""A client between two phases as bytes and integers, and back: for processes that do not stay."""

from __future__ import annotations

import dataclasses
from typing import Any

from fedjax_lite.crypto.prg import SEED_BYTES, primitives
from fedjax_lite.crypto.secagg.client import Client, halves
from fedjax_lite.crypto.secagg.messages import (
    KEY_BYTES,
    SHARE_BYTES,
    Advertisement,
    SecAggAbort,
)
from fedjax_lite.crypto.secagg.settings import Settings
from fedjax_lite.crypto.secagg.turns import Turns

MASKED = 3
"""Phases that are done when the masked vector is made."""


@dataclasses.dataclass(frozen=True)
class Kept:
    """What a client knows between two phases; see `kept_of`.

    Until the vector is masked whoever reads it can lift this client's own masks. From then on it
    has no key and no seed, only what a client that conspires with the server could tell: one share
    of each secret, its own among them, of which nobody learns anything with less than a threshold.
    """

    client: int
    done: int
    """Phases."""
    why: str
    """It gave up; "": it did not."""
    share_key: bytes
    """X25519, private. Empty from the masked vector on and where the client gave up, as are
    `mask_key` and `seed`."""
    mask_key: bytes
    seed: bytes
    """Of its own mask."""
    advertisements: tuple[Advertisement, ...]
    """Its own first."""
    own: bytes
    """Its shares of its own seed and key, once it has dealt them."""
    shares: dict[int, bytes]
    """By peer, once the vector is masked: both shares; empty where they were changed on the way."""
    confirmed: frozenset[int]


def kept_of(client: Client) -> Kept:
    """What of a client must be kept for its next phase, and nothing else.

    Example:
      >>> settings = Settings(b"round 7", threshold=2, length=4)
      >>> client = Client(3, settings)
      >>> mine = client.advertise()
      >>> again = client_of(kept_of(client), settings)
      >>> again._ads[3] == mine, again._turns.due
      (True, 'share')
    """
    done, why = client._turns.state
    shares: dict[int, bytes] = {}
    share_key, mask_key, seed = b"", b"", b""
    if why:
        pass  # nothing of it will be asked
    elif done < MASKED:
        share_key, mask_key = (
            key.private_bytes_raw() for key in (client._share_key, client._mask_key)
        )
        seed = client._seed
    else:
        # Opened now, so that the key that opens them, and those that this client sent, can go.
        shares = {
            peer: client._opened[peer] if peer in client._opened else client._decrypted(peer)
            for peer in client._received
        }
    return Kept(
        client=client.id,
        done=done,
        why=why,
        share_key=share_key,
        mask_key=mask_key,
        seed=seed,
        advertisements=tuple(client._ads.values()),
        own=b"".join(client._own),
        shares=shares,
        confirmed=client._confirmed,
    )


def client_of(kept: Kept, settings: Settings, *, identity: Any = None) -> Client:
    """The client that goes on where `kept_of` looked at one.

    Args:
      kept: of `kept_of`.
      settings: of the same round.
      identity: as of `Client`; it is not among what is kept.

    Raises:
      TypeError: as `Client`.
      ValueError: as `Client`; if it is none of `kept_of`, or of other settings.
    """
    client = Client(kept.client, settings, identity=identity)
    _check(kept, len(client._phases))
    client._turns = Turns(client._who, client._phases, done=kept.done, why=kept.why)
    client._ads = {ad.client: ad for ad in kept.advertisements}
    client._own = halves(kept.own)
    client._received = dict.fromkeys(kept.shares, b"")
    client._opened = dict(kept.shares)
    client._confirmed = kept.confirmed
    if is_spent(kept):
        client._seed = b""
        client._share_key = client._mask_key = None
        return client
    private = primitives().asymmetric.x25519.X25519PrivateKey.from_private_bytes
    client._share_key, client._mask_key = private(kept.share_key), private(kept.mask_key)
    client._seed = kept.seed
    mine = client._ads.get(kept.client)
    keys = (client._share_key, client._mask_key)
    if mine is not None and [key.public_key().public_bytes_raw() for key in keys] != [
        mine.share_key,
        mine.mask_key,
    ]:
        raise ValueError("kept must have the private keys of its own advertisement, got others")
    try:
        client._agree()
    except SecAggAbort as error:  # it met these keys before it was kept
        raise ValueError(f"kept must have keys of peers that can be used: {error}") from error
    return client


def is_spent(kept: Kept) -> bool:
    """Whether it needs its keys, and the vector that it is to mask, no more."""
    return kept.done >= MASKED or bool(kept.why)


def _check(kept: Kept, phases: int) -> None:
    """Raises ValueError where this is not what a client keeps after so many phases."""
    spent = is_spent(kept)
    names = [ad.client for ad in kept.advertisements]
    due = {
        "done": 0 <= kept.done <= phases,
        "share_key": len(kept.share_key) == (0 if spent else KEY_BYTES),
        "mask_key": len(kept.mask_key) == (0 if spent else KEY_BYTES),
        "seed": len(kept.seed) == (0 if spent else SEED_BYTES),
        "advertisements": len(set(names)) == len(names)
        and names[:1] == [kept.client][: min(kept.done, 1)],
        "own": len(kept.own) in (0, 2 * SHARE_BYTES)
        and (bool(kept.own) == (kept.done > 1) or bool(kept.why)),
        "shares": kept.shares.keys() <= set(names) - {kept.client}
        and (kept.done >= MASKED or not kept.shares),
        "confirmed": kept.confirmed <= set(names),
    }
    if wrong := [name for name, fits in due.items() if not fits]:
        raise ValueError(
            f"kept must be what a client keeps after {kept.done} phases, got another {wrong[0]}"
        )
