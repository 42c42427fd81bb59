"""A client of secure aggregation: fresh keys, shares, a masked vector, at most one secret each."""

from __future__ import annotations

import secrets
from collections.abc import Sequence
from typing import Any

import numpy as np

from fedjax_lite.checks.arguments import check_count, shown
from fedjax_lite.crypto.field import SECRET_PRIME
from fedjax_lite.crypto.prg import SEED_BYTES, expand, primitives
from fedjax_lite.crypto.secagg.keys import agree, mask_seed, usable_key
from fedjax_lite.crypto.secagg.masks import add_masks
from fedjax_lite.crypto.secagg.messages import (
    SHARE_BYTES,
    Advertisement,
    Confirmation,
    EncryptedShares,
    MaskedInput,
    Roster,
    SecAggAbort,
    Unmasking,
    UnmaskRequest,
    check_message,
    is_id,
)
from fedjax_lite.crypto.secagg.proofs import Identity, check_proof, digest, packed
from fedjax_lite.crypto.secagg.settings import Settings
from fedjax_lite.crypto.secagg.turns import Turns
from fedjax_lite.crypto.shamir import split


class Client:
    r"""One client in one round; a new object, hence new keys, for every round.

    .. math::
        y_u = x_u + \mathrm{PRG}(b_u) + \sum_{v > u} \mathrm{PRG}(s_{uv})
              - \sum_{v < u} \mathrm{PRG}(s_{uv}) \pmod{2^{32}}

    Call `advertise`, `share`, `mask` and `unmask` in this order (in a signed round `confirm` before
    `unmask`); a client that drops out is simply not called again, and one that raised answers
    nothing more. The seed `b_u` and the private key behind all `s_uv` are shared `t` of `n`
    among the neighbours and itself; for each peer `unmask` gives away a share of one of the two,
    once.

    Args:
      client: the id; its place in the order of ids decides the signs of masks.
      settings: of the round, the same for all.
      identity: the client's long-lived ``Ed25519PrivateKey`` where the settings have identities.

    Raises:
      TypeError: if the id is no int, the settings are none, or the identity is missing or not asked
        for.
      ValueError: if the id does not fit into 31 bits, or is not among the identities.

    Example:
      >>> client = Client(3, Settings(b"round 7", threshold=2, length=4))
      >>> len(client.advertise().mask_key)
      32

    Reference: Bonawitz et al., "Practical Secure Aggregation for Privacy-Preserving Machine
    Learning", CCS 2017, ePrint 2017/281.
    """

    def __init__(self, client: int, settings: Settings, *, identity: Any = None) -> None:
        if not is_id(client):
            check_count(client, "client", minimum=0)
            raise ValueError(
                f"client must be an id from 0 to 2**31 - 1, got {client}; number the clients"
            )
        if not isinstance(settings, Settings):
            raise TypeError(
                f"settings must be a Settings, got {shown(settings)}; Settings(round_id, "
                "threshold, length)"
            )
        self.id, self.settings = int(client), settings
        self._who = f"client {self.id}"
        confirms = ("confirm",) if settings.signed else ()
        self._phases = ("advertise", "share", "mask", *confirms, "unmask")
        self._turns = Turns(self._who, self._phases)
        self._identity = Identity(settings, self.id, identity)
        private = primitives().asymmetric.x25519.X25519PrivateKey
        self._share_key, self._mask_key = private.generate(), private.generate()
        self._seed = secrets.token_bytes(SEED_BYTES)
        self._ads: dict[int, Advertisement] = {}
        self._ciphers: dict[int, Any] = {}
        self._pair_seeds: dict[int, bytes] = {}
        self._received: dict[int, bytes] = {}
        self._opened: dict[int, bytes] = {}
        self._own: tuple[bytes, bytes] = (b"", b"")
        self._confirmed: frozenset[int] = frozenset()

    def advertise(self) -> Advertisement:
        """Phase 0: two fresh public keys."""
        with self._turns.take("advertise"):
            publics = [
                key.public_key().public_bytes_raw() for key in (self._share_key, self._mask_key)
            ]
            bound = seed_digest(self.settings, self.id, self._seed)
            proof = self._identity.prove(b"advertise", self.id, *publics, bound)
            mine = Advertisement(self.id, publics[0], publics[1], bound, proof)
            self._ads = {self.id: mine}
            return mine

    def share(self, roster: Roster) -> list[EncryptedShares]:
        """Phase 1: a share of both secrets for every neighbour, encrypted for it alone.

        Raises:
          SecAggAbort: if fewer than the threshold hold shares, keys occur twice, its own are not
            as it advertised them, a peer's were changed or are of another round (in a signed
            round: not its own), of low order or malformed, or the threshold is not above half of
            the holders.
        """
        with self._turns.take("share"):
            self._check_roster(roster)
            self._agree()
            ids = [self.id, *self._peers()]
            points = [i + 1 for i in ids]  # at 0 is the secret
            of_seed, of_key = (
                split(int.from_bytes(secret, "big"), points, threshold=self.settings.threshold)
                for secret in (self._seed, self._mask_key.private_bytes_raw())
            )
            plain = {
                i: to_bytes(seed.value) + to_bytes(key.value)
                for i, seed, key in zip(ids, of_seed, of_key, strict=True)
            }
            self._own = halves(plain.pop(self.id))
            return [
                EncryptedShares(self.id, peer, self._seal(peer, text))
                for peer, text in plain.items()
            ]

    def mask(self, received: Sequence[EncryptedShares], vector: Any) -> MaskedInput:
        """Phase 2: the vector under its own mask and one with every neighbour that sent shares.

        Args:
          received: what neighbours encrypted for this client.
          vector: uint32 `[length]`.

        Raises:
          SecAggAbort: if fewer than the threshold shared, or a message is malformed, from a
            stranger, for somebody else or there twice.
          ValueError: if the vector has another shape or dtype; the client may be asked again.
        """
        vector = np.asarray(vector)
        if vector.shape != (self.settings.length,) or vector.dtype != np.uint32:
            raise ValueError(
                f"vector must be uint32 [{self.settings.length}], got {vector.dtype} "
                f"{list(vector.shape)}; encode it first"
            )
        with self._turns.take("mask"):
            for shares in several(received, self._who):
                check_message(shares, EncryptedShares, self._who)
                known = shares.sender in self._ciphers and shares.recipient == self.id
                if not known or shares.sender in self._received:
                    raise SecAggAbort(
                        f"{self._who}: shares of client {shares.sender} for client "
                        f"{shares.recipient} do not belong here: they came twice, or of a stranger"
                    )
                self._received[int(shares.sender)] = shares.ciphertext
            if len(self._received) + 1 < self.settings.threshold:
                raise SecAggAbort(
                    f"{self._who}: {len(self._received) + 1} clients shared, threshold "
                    f"{self.settings.threshold}"
                )
            pairs = {peer: expand(self._pair_seeds[peer], vector.size) for peer in self._received}
            own = expand(self._seed, vector.size)
            masked = add_masks(vector, client=self.id, own=own, pairs=pairs)
            peers = frozenset(self._received)
            proof = self._prove(b"mask", peers, masked)
            return MaskedInput(self.id, masked, peers, proof)

    def confirm(self, request: UnmaskRequest) -> Confirmation:
        """Phase 3 of a signed round: signs the survivors' list, for the others to compare.

        Raises:
          SecAggAbort: if the list is one that `unmask` would refuse.
        """
        with self._turns.take("confirm"):
            self._confirmed = self._checked_survivors(request)
            return Confirmation(self.id, self._prove(b"confirm", self._confirmed))

    def unmask(self, request: UnmaskRequest) -> Unmasking:
        """Phase 3: of survivors a share of the self mask's seed, of the others one of the key.

        Raises:
          SecAggAbort: if it was asked before, the survivors are fewer than `min_survivors` in all
            or than the threshold among those it knows, do not contain this client, or a ciphertext
            was tampered with; in a signed round if fewer than the threshold confirm the same list.
        """
        if self._turns.due is None:
            raise SecAggAbort(
                f"{self._who}: was asked before; another answer could reveal both secrets of a peer"
            )
        with self._turns.take("unmask"):
            survivors = self._checked_survivors(request)
            if self.settings.signed:
                self._check_confirmations(survivors, request.confirmations)
            self_shares, key_shares = {self.id: self._own[0]}, {}
            for peer in self._received:
                of_seed, of_key = halves(self._open(peer))
                if peer in survivors:
                    self_shares[peer] = of_seed
                else:
                    key_shares[peer] = of_key
            proof = self._prove(b"unmask", survivors, self_shares, key_shares)
            return Unmasking(self.id, self_shares, key_shares, proof)

    def _peers(self) -> list[int]:
        return [i for i in self._ads if i != self.id]

    def _agree(self) -> None:
        """With every neighbour on the key of their shares and on the seed of their mask."""
        for peer in self._peers():
            ad = self._ads[peer]
            with usable_key(self._who, peer):
                key = agree(self._share_key, ad.share_key, self.settings.round_id, b"shares")
                self._pair_seeds[peer] = mask_seed(
                    self._mask_key, ad.mask_key, self.settings.round_id
                )
            self._ciphers[peer] = primitives().ciphers.aead.AESGCM(key)

    def _prove(self, purpose: bytes, *fields: Any) -> bytes:
        """Bound to the fresh keys as well: an older round of the same name does not fit."""
        return self._identity.prove(purpose, self.id, self._ads[self.id].proof, *fields)

    def _check_roster(self, roster: Roster) -> None:
        check_message(roster, Roster, self._who)
        ads = roster.advertisements
        for ad in ads:
            check_message(ad, Advertisement, self._who)
        keys = [key for ad in ads for key in (ad.share_key, ad.mask_key)]
        if len(set(keys)) != len(keys) or len({ad.client for ad in ads}) != len(ads):
            raise SecAggAbort(f"{self._who}: the roster names a client or a key twice")
        if self._ads[self.id] not in ads:
            raise SecAggAbort(f"{self._who}: the roster lacks or changes its own keys")
        for ad in ads:
            check_advertisement(self.settings, self._who, ad)
        holders, threshold = len(ads), self.settings.threshold
        if holders < threshold:
            raise SecAggAbort(
                f"{self._who}: {holders} clients would hold shares, threshold {threshold}"
            )
        if 2 * threshold <= holders:
            raise SecAggAbort(
                f"{self._who}: threshold {threshold} of {holders} would let two disjoint "
                "groups reveal both of its secrets; it must be above half"
            )
        self._ads.update({int(ad.client): ad for ad in ads})

    def _checked_survivors(self, request: UnmaskRequest) -> frozenset[int]:
        check_message(request, UnmaskRequest, self._who)
        survivors = frozenset(map(int, request.survivors))
        here = {peer for peer in self._received if peer in survivors} | {self.id}
        if self.id not in survivors or len(here) < self.settings.threshold:
            raise SecAggAbort(
                f"{self._who}: {len(here)} of the clients that it knows survived "
                f"(itself: {self.id in survivors}), threshold {self.settings.threshold}"
            )
        # In a sparse round most of them are strangers here: invented ids are not covered.
        if len(survivors) < self.settings.fewest:
            raise SecAggAbort(
                f"{self._who}: a sum of {len(survivors)} survivors is to be revealed, "
                f"min_survivors {self.settings.fewest}"
            )
        known = survivors if self.settings.signed else survivors & set(self._peers())
        strangers = known - set(self._received) - {self.id}
        if strangers:
            raise SecAggAbort(f"{self._who}: survivors {sorted(strangers)} never shared")
        return survivors

    def _check_confirmations(self, survivors: frozenset[int], confirmations: Any) -> None:
        if survivors != self._confirmed:
            raise SecAggAbort(
                f"{self._who}: the survivors are not those that it confirmed: "
                f"{sorted(survivors ^ self._confirmed)} differ"
            )
        seen = set()
        for confirmation in confirmations:
            check_message(confirmation, Confirmation, self._who)
            peer = int(confirmation.client)
            if peer not in survivors or peer in seen:
                raise SecAggAbort(
                    f"{self._who}: a confirmation of client {peer} does not belong here"
                )
            seen.add(peer)
            content = (peer, self._ads[peer].proof, survivors)
            check_proof(self.settings, self._who, peer, confirmation.proof, b"confirm", *content)
        if len(seen) < self.settings.threshold:
            raise SecAggAbort(
                f"{self._who}: {len(seen)} clients confirm the survivors, threshold "
                f"{self.settings.threshold}"
            )

    def _bound(self, sender: int, recipient: int) -> bytes:
        """Authenticated with shares: they cannot go back, elsewhere or into another round."""
        ends = (sender, recipient, self._ads[sender].proof, self._ads[recipient].proof)
        return packed((self.settings.session, *ends))

    def _seal(self, peer: int, plain: bytes) -> bytes:
        nonce = secrets.token_bytes(12)
        return nonce + self._ciphers[peer].encrypt(nonce, plain, self._bound(self.id, peer))

    def _decrypted(self, peer: int) -> bytes:
        """What a peer sealed for this client; nothing where that was changed."""
        from cryptography.exceptions import InvalidTag

        sealed = self._received[peer]
        try:
            return self._ciphers[peer].decrypt(sealed[:12], sealed[12:], self._bound(peer, self.id))
        except (InvalidTag, ValueError):
            return b""

    def _open(self, peer: int) -> bytes:
        plain = self._opened[peer] if peer in self._opened else self._decrypted(peer)
        if not plain:
            raise SecAggAbort(f"{self._who}: the shares of {peer} were changed")
        if len(plain) != 2 * SHARE_BYTES:
            raise SecAggAbort(
                f"{self._who}: the shares of {peer} have {len(plain)} bytes, not {2 * SHARE_BYTES}"
            )
        return plain


def check_advertisement(settings: Settings, who: str, ad: Advertisement) -> None:
    """Raises where an advertisement was changed, or is not of this round and client."""
    fields = (ad.client, ad.share_key, ad.mask_key, ad.seed_digest)
    check_proof(settings, who, ad.client, ad.proof, b"advertise", *fields)


def seed_digest(settings: Settings, client: int, seed: bytes) -> bytes:
    """What a client is bound to: no other 32 bytes have this digest."""
    return digest(settings, b"seed", client, seed)


def several(messages: Any, who: str) -> list[Any]:
    """Messages as a list.

    Raises:
      SecAggAbort: if they are not several of something.
    """
    try:
        return list(messages)
    except TypeError as error:
        raise SecAggAbort(f"{who}: a list of messages is due, got {shown(messages)}") from error


def to_bytes(share: int) -> bytes:
    """A share of a secret on the wire."""
    assert 0 <= share < SECRET_PRIME
    return share.to_bytes(SHARE_BYTES, "big")


def halves(plain: bytes) -> tuple[bytes, bytes]:
    """The shares of the self mask's seed and of the mask key."""
    return plain[:SHARE_BYTES], plain[SHARE_BYTES:]
