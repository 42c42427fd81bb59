"""The server of secure aggregation: forwards what it cannot read, learns the sum."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

import numpy as np

from fedjax_lite.checks.arguments import check_count, shown
from fedjax_lite.crypto.prg import expand, primitives
from fedjax_lite.crypto.secagg import graph as graphs
from fedjax_lite.crypto.secagg.client import check_advertisement, seed_digest, several
from fedjax_lite.crypto.secagg.keys import mask_seed, usable_key
from fedjax_lite.crypto.secagg.masks import remove_masks
from fedjax_lite.crypto.secagg.messages import (
    Advertisement,
    Confirmation,
    EncryptedShares,
    MaskedInput,
    Roster,
    SecAggAbort,
    Unmasking,
    UnmaskRequest,
    check_message,
)
from fedjax_lite.crypto.secagg.proofs import check_proof
from fedjax_lite.crypto.secagg.secrets import Secrets
from fedjax_lite.crypto.secagg.settings import Settings
from fedjax_lite.crypto.secagg.turns import Turns


class Server:
    """The server in one round: `roster`, `forward`, `collect` and `reveal`, in this order.

    In a signed round `confirm` comes before `reveal`. A client that sends nothing has dropped out;
    one that sends what does not fit (malformed, twice, changed, of another round, incomplete) ends
    the round: every method raises `SecAggAbort` with the client and what is wrong, and a server
    that raised does nothing more.

    Args:
      settings: of the round.
      degree: None: everybody masks with everybody (Bonawitz et al.); `k`: with `k` neighbours of
        a random ring (SecAgg+), where the threshold is out of ``k + 1`` holders and says nothing
        about the size of a sum: set the settings' `min_survivors`. An odd `k` becomes ``k + 1``
        where an odd number of clients advertise.
      rng: draws the ring; None for a generator seeded by the operating system.

    Raises:
      TypeError: if an argument has another type.
      ValueError: if the threshold is not above half of ``k + 1``, or above ``k + 1``, or the
        settings have identities and `degree` is given.

    Example:
      >>> server = Server(Settings(b"round 7", threshold=2, length=4))
      >>> try:
      ...     server.roster([])
      ... except SecAggAbort as error:
      ...     print(error)
      server: 0 clients advertised keys, threshold 2
    """

    def __init__(
        self,
        settings: Settings,
        *,
        degree: int | None = None,
        rng: np.random.Generator | None = None,
    ) -> None:
        if not isinstance(settings, Settings):
            raise TypeError(
                f"settings must be a Settings, got {shown(settings)}; Settings(round_id, "
                "threshold, length)"
            )
        if rng is not None and not isinstance(rng, np.random.Generator):
            raise TypeError(
                f"rng must be a Generator or None, got {shown(rng)}; np.random.default_rng(0)"
            )
        if degree is not None:
            check_degree(degree, settings)
        self.settings, self.degree = settings, degree
        self._rng = np.random.default_rng() if rng is None else rng
        confirms = ("confirm",) if settings.signed else ()
        self._turns = Turns("server", ("roster", "forward", "collect", *confirms, "reveal"))
        self.graph: graphs.Graph = {}
        self._ads: dict[int, Advertisement] = {}
        self._shared: frozenset[int] = frozenset()
        self._vectors: dict[int, np.ndarray] = {}

    def roster(self, advertisements: Sequence[Advertisement]) -> dict[int, Roster]:
        """After phase 0: for every client the keys of its neighbours.

        Raises:
          SecAggAbort: if fewer than the threshold advertised, or an advertisement does not fit.
        """
        with self._turns.take("roster"):
            ads: dict[int, Advertisement] = {}
            for ad in several(advertisements, "server"):
                check_message(ad, Advertisement, "server")
                self._once(ad.client, ads, "an advertisement")
                check_advertisement(self.settings, "server", ad)
                ads[int(ad.client)] = ad
            self._enough(len(ads), "advertised keys")
            ids = sorted(ads)
            if self.degree is None or self.degree >= len(ids) - 1:
                self.graph = graphs.complete(ids)
            else:
                # No graph has an odd number of odd degrees, and a drop-out must not end the round.
                # The threshold, above half of an even k + 1, is above half of k + 2 as well.
                degree = self.degree + self.degree % 2 * (len(ids) % 2)
                self.graph = graphs.harary(ids, degree=degree, rng=self._rng)
            self._ads = ads
            return {
                client: Roster(tuple(ads[i] for i in sorted({client, *self.graph[client]})))
                for client in ids
            }

    def forward(self, sent: Sequence[Sequence[EncryptedShares]]) -> dict[int, list]:
        """After phase 1: for every client that shared, what its neighbours encrypted for it.

        Raises:
          SecAggAbort: if fewer than the threshold shared, or one did not share with each neighbour
            once.
        """
        with self._turns.take("forward"):
            by_sender: dict[int, dict[int, EncryptedShares]] = {}
            for group in several(sent, "server"):
                for shares in several(group, "server"):
                    check_message(shares, EncryptedShares, "server")
                    sender, recipient = int(shares.sender), int(shares.recipient)
                    mine = by_sender.setdefault(sender, {})
                    if recipient not in self.graph.get(sender, ()) or recipient in mine:
                        raise SecAggAbort(
                            f"server: shares of client {sender} for client {recipient} do not "
                            "belong here: they came twice, or the two are no neighbours"
                        )
                    mine[recipient] = shares
            for sender, mine in by_sender.items():
                if missing := self.graph[sender] - set(mine):
                    raise SecAggAbort(
                        f"server: client {sender} did not share with {sorted(missing)}: lost on "
                        "the way, or withheld"
                    )
            self._shared = frozenset(by_sender)
            self._enough(len(self._shared), "shared their secrets")
            boxes: dict[int, list[EncryptedShares]] = {i: [] for i in sorted(self._shared)}
            for mine in by_sender.values():
                for recipient, shares in mine.items():
                    if recipient in boxes:
                        boxes[recipient].append(shares)
            return boxes

    def collect(self, inputs: Sequence[MaskedInput]) -> UnmaskRequest:
        """After phase 2: names the survivors, whose sum will be revealed.

        Raises:
          SecAggAbort: if fewer than `min_survivors` survive, the survivors fall apart into groups
            that share no masks, or a vector has another length, was changed, or was masked with
            others than the neighbours that shared.
        """
        with self._turns.take("collect"):
            for message in several(inputs, "server"):
                check_message(message, MaskedInput, "server")
                client = int(message.client)
                if client not in self._shared or client in self._vectors:
                    raise SecAggAbort(
                        f"server: an input of client {client} does not belong here: it came twice, "
                        "or the client did not share"
                    )
                if message.vector.shape != (self.settings.length,):
                    raise SecAggAbort(
                        f"server: the masked vector of client {client} has {message.vector.size} "
                        f"words, not {self.settings.length}"
                    )
                content = (message.peers, message.vector)
                self._check_proof(client, message.proof, b"mask", *content)
                if wrong := message.peers ^ (self.graph[client] & self._shared):
                    raise SecAggAbort(
                        f"server: client {client} masked without the shares of {sorted(wrong)}, "
                        "which were lost on the way to it"
                    )
                self._vectors[client] = message.vector
            survivors = frozenset(self._vectors)
            self._enough(len(survivors), "sent their masked vectors")
            if len(survivors) < self.settings.fewest:
                raise SecAggAbort(
                    f"server: {len(survivors)} clients sent their masked vectors, min_survivors "
                    f"{self.settings.fewest}"
                )
            if not graphs.is_connected(self.graph, survivors):
                raise SecAggAbort(
                    "server: the survivors fall apart into groups without common masks"
                )
            return UnmaskRequest(survivors)

    def confirm(self, confirmations: Sequence[Confirmation]) -> UnmaskRequest:
        """In a signed round, after `collect`: the survivors' signatures, for all of them.

        Raises:
          SecAggAbort: if fewer than the threshold confirm, or one does not fit.
        """
        with self._turns.take("confirm"):
            seen: dict[int, Confirmation] = {}
            survivors = frozenset(self._vectors)
            for confirmation in several(confirmations, "server"):
                check_message(confirmation, Confirmation, "server")
                client = int(confirmation.client)
                self._among(client, survivors, "a confirmation")
                self._once(client, seen, "a confirmation")
                self._check_proof(client, confirmation.proof, b"confirm", survivors)
                seen[client] = confirmation
            self._enough(len(seen), "confirmed the survivors")
            return UnmaskRequest(survivors, tuple(seen[i] for i in sorted(seen)))

    def reveal(self, answers: Sequence[Unmasking]) -> np.ndarray:
        """After phase 3: the sum of the survivors' vectors modulo 2**32, uint32 `[length]`.

        Survivors that do not answer are counted, as long as enough others hold their shares. Every
        secret that shares give is held against what its owner advertised: the seed's digest, the
        public key.

        Raises:
          SecAggAbort: if fewer than the threshold answered for a secret that is needed, or an
            answer or a share does not fit.
        """
        with self._turns.take("reveal"):
            given = self._checked_answers(answers)
            found = Secrets(self.settings.threshold)
            length = self.settings.length
            total = np.stack(list(self._vectors.values())).sum(0, dtype=np.uint32)
            own = []
            for i in sorted(self._vectors):
                held = {h: a.self_shares[i] for h, a in given.items() if i in a.self_shares}
                expected = self._ads[i].seed_digest
                seed = found.recover(
                    "seed",
                    i,
                    held,
                    lambda s, i=i, e=expected: seed_digest(self.settings, i, s) == e,
                )
                own.append(expand(seed, length))
            pairs = {}
            private = primitives().asymmetric.x25519.X25519PrivateKey.from_private_bytes
            for dropped in sorted(self._shared - set(self._vectors)):
                partners = self.graph[dropped] & set(self._vectors)
                if not partners:
                    continue
                held = {
                    h: a.key_shares[dropped] for h, a in given.items() if dropped in a.key_shares
                }
                expected = self._ads[dropped].mask_key
                secret = found.recover(
                    "key",
                    dropped,
                    held,
                    lambda s, e=expected: private(s).public_key().public_bytes_raw() == e,
                )
                for survivor in partners:
                    with usable_key("server", survivor):
                        seed = mask_seed(
                            private(secret), self._ads[survivor].mask_key, self.settings.round_id
                        )
                    pairs[survivor, dropped] = expand(seed, length)
            return remove_masks(total, own=own, pairs=pairs)

    def _checked_answers(self, answers: Sequence[Unmasking]) -> dict[int, Unmasking]:
        survivors = frozenset(self._vectors)
        given: dict[int, Unmasking] = {}
        for answer in several(answers, "server"):
            check_message(answer, Unmasking, "server")
            client = int(answer.client)
            self._among(client, survivors, "an answer")
            self._once(client, given, "an answer")
            known = (self.graph[client] & self._shared) | {client}
            for label, shares, due in (
                ("seed", answer.self_shares, known & survivors),
                ("key", answer.key_shares, known - survivors),
            ):
                if set(shares) != due:
                    raise SecAggAbort(
                        f"server: client {client} sent {label} shares of {sorted(shares)}, not of "
                        f"{sorted(due)}: it was told other survivors, or they were changed"
                    )
            content = (survivors, answer.self_shares, answer.key_shares)
            self._check_proof(client, answer.proof, b"unmask", *content)
            given[client] = dataclasses.replace(answer, client=client)
        self._enough(len(given), "helped to unmask")
        return given

    def _check_proof(self, client: int, proof: bytes, purpose: bytes, *fields: object) -> None:
        bound = (client, self._ads[client].proof, *fields)
        check_proof(self.settings, "server", client, proof, purpose, *bound)

    def _once(self, client: int, seen: dict, what: str) -> None:
        if client in seen:
            raise SecAggAbort(f"server: {what} of client {client} came twice")

    def _among(self, client: int, survivors: frozenset[int], what: str) -> None:
        if client not in survivors:
            raise SecAggAbort(
                f"server: {what} of client {client} does not belong here: it did not survive"
            )

    def _enough(self, count: int, what: str) -> None:
        if count < self.settings.threshold:
            raise SecAggAbort(
                f"server: {count} clients {what}, threshold {self.settings.threshold}"
            )


def check_degree(degree: int, settings: Settings) -> None:
    """Raises where a sparse graph's degree does not fit the settings.

    Raises:
      TypeError: if it is not an int.
      ValueError: if the threshold is not above half of ``degree + 1`` holders and at most all of
        them, or the round is signed.

    Example:
      >>> check_degree(4, Settings(b"round 7", threshold=3, length=4))
    """
    check_count(degree, "degree", minimum=2)
    if settings.signed:
        raise ValueError(
            f"degree must be None with identities, got {degree}: lists of survivors are confirmed "
            "between all clients; Bell et al.'s own active protocol for sparse graphs is not here"
        )
    if not degree + 1 < 2 * settings.threshold <= 2 * (degree + 1):
        raise ValueError(
            f"threshold must be above half of the degree + 1 = {degree + 1} holders of a "
            f"secret and at most all of them, got {settings.threshold}"
        )
