"""Private set intersection by elliptic-curve Diffie-Hellman: whom both know, and nobody else."""

from __future__ import annotations

import hashlib
import secrets
from collections.abc import Sequence
from typing import Any, NamedTuple

from fedjax_lite.checks.arguments import check_count
from fedjax_lite.crypto.prg import primitives

PRIME = 2**255 - 19
CURVE_A = 486662
"""Curve25519: v^2 = u^3 + A u^2 + u."""
POINT = 32
"""Bytes of a point's u-coordinate."""
DOMAIN = b"fedjax_lite.psi.v1"
Id = int | str | bytes


class Points(NamedTuple):
    """A list of points, as it is sent."""

    data: bytes
    """32 bytes each."""

    @property
    def count(self) -> int:
        """How many, padding included."""
        return len(self.data) // POINT

    def split(self) -> list[bytes]:
        """One by one."""
        return [self.data[i : i + POINT] for i in range(0, len(self.data), POINT)]


class PsiParty:
    r"""One of two sides of an intersection; an id is a point that its owner's key hides.

    .. math::  a \cdot H(x),\; b \cdot (a \cdot H(x)) = a \cdot (b \cdot H(x)):
               \quad \text{equal for equal ids, whoever began}

    One key hides a point: without it nobody tells whose it is; under both keys, and only there,
    equal ids are equal points. `H` hashes onto Curve25519 (SHA-512, counted up until a point is
    hit), the product is X25519. Three messages: ``first = asks.blinded()``,
    ``again, own = answers.answer(first)``, ``places = asks.intersect(again, own)``, and
    ``answers.told(places)``.

    **What leaks**, to a party that follows the protocol (honest but curious), where Diffie-Hellman
    on Curve25519 is hard and the hash is a random oracle: the padded size of the other's set
    (`size`, not the real number) and the intersection. Either side can probe: who puts ids into its
    set that it does not have learns whether the other knows them (who answers learns it by the
    places that it is told): agree on whose ids may be asked about. Nothing here hides that the two
    are talking, or stops one who breaks off after it has learnt the result.

    Args:
      ids: integers, strings or bytes, each once.
      size: points that are sent, ids and random padding together; default the next power of two, at
        least 16. Both sides see the other's.

    Raises:
      TypeError: if an id is of another kind.
      ValueError: if one is there twice, or there are more than `size`.
      ImportError: without ``cryptography``.

    Example:
      >>> asks, answers = PsiParty(["ann", "bob"]), PsiParty(["bob", "eve", "joe"])
      >>> places = asks.intersect(*answers.answer(asks.blinded()))
      >>> asks.found, answers.told(places)
      (['bob'], ['bob'])

    Reference: Meadows, "A More Efficient Cryptographic Matchmaking Protocol for Use in the Absence
    of a Continuously Available Third Party", IEEE Symposium on Security and Privacy, 1986.
    """

    def __init__(self, ids: Sequence[Id], *, size: int | None = None) -> None:
        ids = list(ids)
        encoded = [encoded_id(one) for one in ids]
        if len(set(encoded)) < len(encoded):
            twice = next(one for one, code in zip(ids, encoded) if encoded.count(code) > 1)
            raise ValueError(f"ids must be there once each, got {twice!r} twice; drop duplicates")
        if size is None:
            size = max(16, 1 << max(len(ids) - 1, 0).bit_length())
        check_count(size, "size", minimum=1)
        if size < len(ids):
            raise ValueError(f"size must hold all {len(ids)} ids, got {size}; give {len(ids)}")
        self._secret = _private_key()
        padding = [secrets.token_bytes(POINT) for _ in range(size - len(ids))]
        self._ids: list[Id | None] = [*ids, *[None] * len(padding)]
        points = [hash_to_curve(code) for code in (*encoded, *padding)]
        self._order = list(range(size))
        secrets.SystemRandom().shuffle(self._order)
        self._own = [_times(self._secret, points[i]) for i in self._order]
        self.found: list[Id] = []
        """What both know, once it is known; sorted, bytes before integers before strings."""

    def blinded(self) -> Points:
        """The first message: this party's ids, shuffled and padded, under its key."""
        return Points(b"".join(self._own))

    def answer(self, first: Points) -> tuple[Points, Points]:
        """The second message: the other's points under both keys, in their order, and one's own.

        Raises:
          ValueError: if the message is no list of different points, each spelt in one way.
        """
        again = [_times(self._secret, point) for point in _checked(first, "first")]
        return Points(b"".join(again)), self.blinded()

    def intersect(self, again: Points, own: Points) -> list[int]:
        """What both know (`found`), and where it stands in the other's message, for `told`.

        Raises:
          ValueError: if the answer does not belong to this party's message.
        """
        twice = _checked(again, "again")
        if len(twice) != len(self._own):
            raise ValueError(
                f"again must hold this party's {len(self._own)} points, got {len(twice)}; give the "
                "answer to its own message"
            )
        theirs = {_times(self._secret, p): place for place, p in enumerate(_checked(own, "own"))}
        places: dict[Any, int] = {}
        for mine, point in zip(self._order, twice, strict=True):
            if point in theirs and self._ids[mine] is not None:
                places[self._ids[mine]] = theirs[point]
        self.found = sorted(places, key=_in_order)
        return [places[one] for one in self.found]

    def told(self, places: Sequence[int]) -> list[Id]:
        """The ids behind places of this party's message; padding is refused.

        Raises:
          ValueError: if a place is outside, or there twice, or holds padding, which nobody can have
            matched.
        """
        found: list[Any] = []
        places = list(places)
        if len(set(places)) < len(places):
            twice = next(one for one in places if places.count(one) > 1)
            raise ValueError(
                f"places must be there once each, got {twice} twice; the other side lies: an id "
                "has one place"
            )
        for place in places:
            one = self._ids[self._order[place]] if 0 <= place < len(self._order) else None
            if one is None:
                raise ValueError(
                    f"places must be of ids that were sent, got {place}; the other side lies, or "
                    "answers another run"
                )
            found.append(one)
        self.found = sorted(found, key=_in_order)
        return self.found


def private_intersection(
    mine: Sequence[Id], theirs: Sequence[Id], *, size: int | None = None
) -> list[Id]:
    """Both sides of an intersection in one process; see `PsiParty` for what each would see.

    Args:
      mine: ids of who asks.
      theirs: ids of who answers.
      size: see `PsiParty`.

    Returns:
      The ids that both have, sorted.

    Raises:
      TypeError, ValueError, ImportError: as `PsiParty`.

    Example:
      >>> private_intersection([3, 1, 2], [2, 3, 4])
      [2, 3]
    """
    for name, ids in (("mine", mine), ("theirs", theirs)):
        for one in ids:
            encoded_id(one, name)
    asks, answers = PsiParty(mine, size=size), PsiParty(theirs, size=size)
    return answers.told(asks.intersect(*answers.answer(asks.blinded())))


def hash_to_curve(code: bytes) -> bytes:
    """The u-coordinate of a point on Curve25519, of which nobody knows the logarithm.

    Counted up until it lies on the curve and not on its twist: X25519 would take either, and which
    of the two a point lies on can be seen through any key.

    Example:
      >>> len(hash_to_curve(b"ann")), hash_to_curve(b"ann") == hash_to_curve(b"bob")
      (32, False)
    """
    for counter in range(256):
        digest = hashlib.sha512(DOMAIN + bytes([counter]) + code).digest()
        u = int.from_bytes(digest, "little") % PRIME
        right = (u * u * u + CURVE_A * u * u + u) % PRIME
        if pow(right, (PRIME - 1) // 2, PRIME) == 1:
            return u.to_bytes(POINT, "little")
    raise RuntimeError("no point on the curve in 256 tries")  # one in 2**256


def encoded_id(one: Any, name: str = "ids") -> bytes:
    """An id as bytes that no other id has; 7 and "7" differ.

    Raises:
      TypeError: if it is no integer, string or bytes.

    Example:
      >>> encoded_id(7), encoded_id("7")
      (b'i7', b's7')
    """
    if isinstance(one, bytes):
        return b"b" + one
    if isinstance(one, str):
        return b"s" + one.encode()
    if isinstance(one, int) and not isinstance(one, bool):
        return b"i%d" % one
    raise TypeError(
        f"{name} must be integers, strings or bytes, got {one!r:.60} ({type(one).__name__}); "
        "ids.tolist() of an array"
    )


def _in_order(one: Id) -> tuple[bytes, Any]:
    """By kind, then by value: a 7 and a "7" have no order of their own."""
    return encoded_id(one)[:1], one


def _private_key() -> Any:
    return primitives().asymmetric.x25519.X25519PrivateKey.generate()


def _times(secret: Any, point: bytes) -> bytes:
    """The product, an element of the other side's message or one's own.

    Raises:
      ValueError: if it is zero: a point of low order, that nobody's hash is.
    """
    public = primitives().asymmetric.x25519.X25519PublicKey.from_public_bytes(point)
    try:
        return secret.exchange(public)
    except ValueError as error:
        raise ValueError(
            f"points must not be of low order, got {point.hex()}; the other side does not follow "
            "the protocol"
        ) from error


def _checked(points: Any, name: str) -> list[bytes]:
    if not isinstance(points, Points) or len(points.data) % POINT or not points.data:
        raise ValueError(
            f"{name} must be Points of {POINT} bytes each, got {type(points).__name__}"
            + (f" of {len(points.data)} bytes" if isinstance(points, Points) else "")
            + "; hand on what the other side sent"
        )
    found = points.split()
    if len(set(found)) < len(found):
        raise ValueError(
            f"{name} must hold different points, got one twice; the other side does not follow the "
            "protocol"
        )
    for point in found:
        if int.from_bytes(point, "little") >= PRIME:  # X25519 would take it for a smaller number
            raise ValueError(
                f"{name} must hold numbers below 2**255 - 19, got {point.hex()}: a second spelling "
                "of a point; the other side does not follow the protocol"
            )
    return found
