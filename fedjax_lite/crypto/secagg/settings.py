"""What all parties of a secure aggregation agree on before a round."""

from __future__ import annotations

import dataclasses
import functools
import hashlib
from collections.abc import Mapping

from fedjax_lite.checks.arguments import check_count, shown
from fedjax_lite.crypto.secagg.messages import KEY_BYTES, is_id


@dataclasses.dataclass(frozen=True)
class Settings:
    """What all parties of a round agree on beforehand.

    Raises:
      TypeError: if a field has another type.
      ValueError: if a field makes no sense, or the threshold of a signed round is not above two
        thirds of its clients.

    Example:
      >>> Settings(b"round 7", threshold=3, length=4).signed
      False
    """

    round_id: bytes
    """Different in every round; binds keys, ciphertexts and proofs to it."""
    threshold: int
    """`t`: shares that reveal a secret. More than half of those who hold a secret's shares."""
    length: int
    """Words of a vector."""
    min_survivors: int | None = None
    """Clients that a revealed sum has at least, of all in the round; None for the threshold. In
    SecAgg+ the threshold is one of a neighbourhood, so that this alone keeps sums large."""
    identities: Mapping[int, bytes] | None = None
    """Ed25519 public keys (32 bytes) of all `n` clients that may take part, known to everybody
    beforehand: the public-key infrastructure of the active model. With them every message of a
    client is signed, the survivors confirm their list to each other, and the threshold must be
    above ``2n / 3``. None: messages carry digests, which show damage and mix-ups, not malice."""

    def __post_init__(self) -> None:
        """Raises TypeError or ValueError where a field makes no sense."""
        if not isinstance(self.round_id, bytes):
            raise TypeError(
                f"round_id must be bytes, got {shown(self.round_id)}; encode it, e.g. b'round 7'"
            )
        if not self.round_id:
            raise ValueError(
                "round_id must not be empty, got b'': it keeps rounds apart, e.g. b'round 7'"
            )
        check_count(self.threshold, "threshold", minimum=2)
        check_count(self.length, "length", minimum=1)
        if self.min_survivors is not None:
            check_count(self.min_survivors, "min_survivors", minimum=1)
            if self.min_survivors < self.threshold:
                raise ValueError(
                    f"min_survivors must be at least the threshold {self.threshold}, got "
                    f"{self.min_survivors}; None takes the threshold"
                )
        if self.identities is not None:
            self._check_identities(self.identities)

    def _check_identities(self, identities: Mapping[int, bytes]) -> None:
        if not isinstance(identities, Mapping):
            raise TypeError(
                f"identities must map clients to public keys, got {shown(identities)}; "
                "{client: private_key.public_key().public_bytes_raw()}"
            )
        for client, key in identities.items():
            if not is_id(client) or not isinstance(key, bytes) or len(key) != KEY_BYTES:
                raise ValueError(
                    f"identities must map ids from 0 to 2**31 - 1 to the {KEY_BYTES} bytes of an "
                    f"Ed25519 public key, got {shown(client)}: {shown(key)}; "
                    "private_key.public_key().public_bytes_raw() gives them"
                )
        if len(set(identities.values())) != len(identities):
            raise ValueError(
                f"identities must differ, got {len(set(identities.values()))} keys for "
                f"{len(identities)} clients; give every client its own"
            )
        if not 2 * len(identities) < 3 * self.threshold <= 3 * len(identities):
            raise ValueError(
                f"threshold must be above two thirds of the {len(identities)} clients of a signed "
                f"round and at most all of them, got {self.threshold}; use "
                f"{2 * len(identities) // 3 + 1}: with fewer, colluding clients could confirm two "
                "different lists of survivors"
            )

    @property
    def fewest(self) -> int:
        """`min_survivors`, or the threshold where that is None.

        Example:
          >>> Settings(b"r", 2, 4).fewest, Settings(b"r", 2, 4, min_survivors=9).fewest
          (2, 9)
        """
        return self.threshold if self.min_survivors is None else self.min_survivors

    @property
    def signed(self) -> bool:
        """Whether messages are signed and survivors confirm their list."""
        return self.identities is not None

    @functools.cached_property
    def session(self) -> bytes:
        """32 bytes that name the round; `min_survivors` is each party's own affair.

        Example:
          >>> Settings(b"r", 2, 4).session == Settings(b"s", 2, 4).session
          False
        """
        name = hashlib.sha256(b"fedjax_lite secagg session")
        parts = [self.round_id, str(int(self.threshold)).encode(), str(int(self.length)).encode()]
        for client, key in sorted((self.identities or {}).items()):
            parts += [str(int(client)).encode(), key]
        for part in parts:
            name.update(len(part).to_bytes(8, "big") + part)
        return name.digest()
