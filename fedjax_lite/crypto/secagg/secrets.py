"""Secrets from shares, held against what their owner advertised: a wrong share is noticed."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from fedjax_lite.crypto.field import SECRET_PRIME, lagrange_weights
from fedjax_lite.crypto.prg import SEED_BYTES
from fedjax_lite.crypto.secagg.messages import SecAggAbort
from fedjax_lite.crypto.shamir import Share


class Secrets:
    """The server's reconstruction of many secrets, mostly from the same holders.

    Args:
      threshold: `t`.

    Example:
      >>> from fedjax_lite.crypto.shamir import split
      >>> shares = split(7, [1, 2, 3], threshold=2)
      >>> given = {s.point - 1: s.value.to_bytes(33, "big") for s in shares}
      >>> secret = (7).to_bytes(32, "big")
      >>> Secrets(2).recover("seed", 0, given, lambda found: found == secret) == secret
      True
    """

    def __init__(self, threshold: int) -> None:
        self._threshold = threshold
        self._weights: dict[tuple[int, ...], list[int]] = {}

    def recover(
        self, what: str, owner: int, given: dict[int, bytes], fits: Callable[[bytes], bool]
    ) -> bytes:
        """The secret that its owner advertised.

        Args:
          what: the secret, for errors.
          owner: whose.
          given: shares by holder.
          fits: whether bytes are what the owner advertised.

        Raises:
          SecAggAbort: if there are fewer shares than the threshold, or the first `t` of them give
            something else. It names the holder whose share is wrong where others tell (there is
            one more share than the threshold, and one of the first is wrong), else all.
        """
        if len(given) < self._threshold:
            raise SecAggAbort(
                f"server: {len(given)} clients hold shares of client {owner}'s {what}, threshold "
                f"{self._threshold}"
            )
        shares = [Share(i + 1, int.from_bytes(given[i], "big")) for i in sorted(given)]
        first, others = shares[: self._threshold], shares[self._threshold :]
        if (secret := self._combine(first)) is not None and fits(secret):
            return secret
        for extra in others[:1]:
            for i, suspect in enumerate(first):
                rest = [*first[:i], *first[i + 1 :], extra]
                if (secret := self._combine(rest)) is not None and fits(secret):
                    raise SecAggAbort(
                        f"server: the share of client {owner}'s {what} that client "
                        f"{suspect.point - 1} sent does not fit; one of the two cheats, or it was "
                        "damaged"
                    )
        raise SecAggAbort(
            f"server: the shares of client {owner}'s {what} do not fit what it advertised; they "
            f"came from clients {sorted(given)}"
        )

    def _combine(self, shares: Sequence[Share]) -> bytes | None:
        points = tuple(share.point for share in shares)
        if points not in self._weights:
            self._weights[points] = lagrange_weights(points, prime=SECRET_PRIME)
        weights = self._weights[points]
        secret = sum(w * s.value for w, s in zip(weights, shares, strict=True)) % SECRET_PRIME
        return secret.to_bytes(SEED_BYTES, "big") if secret < 2 ** (8 * SEED_BYTES) else None
