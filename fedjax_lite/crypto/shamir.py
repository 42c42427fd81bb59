"""Shamir's secret sharing: any `t` shares give the secret, fewer say nothing."""

from __future__ import annotations

import secrets
from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np

from fedjax_lite.checks.arguments import check_count
from fedjax_lite.crypto.field import (
    SECRET_PRIME,
    VECTOR_PRIME,
    lagrange_weights,
    polynomial,
    random_elements,
)


class Share(NamedTuple):
    """One holder's share: the polynomial's value at its point."""

    point: int
    value: int


def split(
    secret: int,
    points: Sequence[int],
    *,
    threshold: int,
    prime: int = SECRET_PRIME,
    coefficients: Sequence[int] | None = None,
) -> list[Share]:
    r"""Shares a secret among holders, one point each.

    .. math::  f(X) = s + a_1 X + \dots + a_{t-1} X^{t-1} \bmod p, \qquad \text{share}_i = f(x_i)

    Args:
      secret: `s` in ``[0, prime)``.
      points: the holders' points, different and not 0 modulo `prime`.
      threshold: `t`, 1 to the number of points.
      prime: `p`; default ``2**256 + 297``, so that a secret may be any 32 bytes.
      coefficients: ``a_1 .. a_(t-1)`` instead of random ones, for tests.

    Raises:
      ValueError: if the secret, the points or the threshold do not fit.

    Guarantees:
      Any ``t - 1`` shares have the same distribution for every secret.

    Example:
      >>> [s.value for s in split(42, [1, 2, 3, 4, 5], threshold=3, prime=97,
      ...                         coefficients=[7, 13])]
      [62, 11, 83, 84, 14]

    Reference: Shamir, "How to Share a Secret", Communications of the ACM 22(11), 1979.
    """
    if not 0 <= secret < prime:
        raise ValueError(
            f"secret must lie in [0, prime), got one of {int(secret).bit_length()} bits"
        )
    _check_points(points, threshold, prime)
    if coefficients is None:
        coefficients = [secrets.randbelow(prime) for _ in range(threshold - 1)]
    if len(coefficients) != threshold - 1:
        raise ValueError(
            f"coefficients must be threshold - 1 = {threshold - 1}, got {len(coefficients)}"
        )
    curve = [secret, *coefficients]
    return [Share(int(x), polynomial(curve, int(x), prime=prime)) for x in points]


def combine(shares: Sequence[Share], *, threshold: int, prime: int = SECRET_PRIME) -> int:
    """The secret from at least `threshold` shares.

    Args:
      shares: of different points; the first `threshold` give the secret, and the others are held
        against them.
      threshold: `t` of `split`.
      prime: of `split`.

    Raises:
      ValueError: if there are fewer than `threshold` shares, points coincide, or more shares than
        `threshold` do not lie on one polynomial: one was changed.

    Example:
      >>> combine([Share(1, 62), Share(3, 83), Share(5, 14)], threshold=3, prime=97)
      42
    """
    if len(shares) < threshold:
        raise ValueError(f"shares must be at least threshold = {threshold}, got {len(shares)}")
    used = list(shares)[:threshold]
    points = [share.point for share in used]

    def value(at: int) -> int:
        weights = lagrange_weights(points, prime=prime, at=at)
        return sum(w * share.value for w, share in zip(weights, used, strict=True)) % prime

    for share in list(shares)[threshold:]:
        if value(share.point) != share.value % prime:
            raise _not_one_polynomial(share.point, threshold)
    return value(0)


def split_array(
    values: Any,
    *,
    num_shares: int,
    threshold: int,
    prime: int = VECTOR_PRIME,
    rng: np.random.Generator | None = None,
) -> np.ndarray:
    """Shares every entry of an array at the points ``1 .. num_shares``.

    Args:
      values: integers in ``[0, prime)``, any shape.
      num_shares: holders.
      threshold: `t`.
      prime: at most ``2**32``; default ``2**32 - 5``.
      rng: see `random_elements`.

    Returns:
      uint64 `[num_shares, ...]`. Shares of sums are sums of shares modulo `prime`.

    Raises:
      ValueError: if the values, the prime or the threshold do not fit.

    Example:
      >>> shares = split_array([5, 96], num_shares=4, threshold=2, prime=97)
      >>> combine_array(shares[[3, 1]], points=[4, 2], threshold=2, prime=97).tolist()
      [5, 96]
    """
    check_count(num_shares, "num_shares", minimum=1)
    points = list(range(1, num_shares + 1))
    _check_points(points, threshold, prime)
    values = elements(values, modulus=prime)
    if prime > 2**32:
        raise ValueError(f"prime must be at most 2**32, so that products fit, got {prime}")
    random = random_elements((threshold - 1, *values.shape), modulus=prime, rng=rng)
    p = np.uint64(prime)
    shares = []
    for x in points:
        share = np.zeros_like(values)
        for coefficient in random[::-1]:
            share = (share + coefficient) % p * np.uint64(x) % p
        shares.append((share + values) % p)
    return np.stack(shares)


def combine_array(
    shares: Any, *, points: Sequence[int], threshold: int, prime: int = VECTOR_PRIME
) -> np.ndarray:
    """The array back from shares `[>= threshold, ...]` at their points; see `split_array`.

    Raises:
      ValueError: as `combine`.

    Example:
      >>> combine_array([[62], [83], [14]], points=[1, 3, 5], threshold=3, prime=97).tolist()
      [42]
    """
    shares = np.asarray(shares, np.uint64)
    if len(shares) < threshold or len(shares) != len(points):
        raise ValueError(
            f"shares must be at least threshold = {threshold} and one a point, got {len(shares)} "
            f"shares for {len(points)} points"
        )
    p = np.uint64(prime)

    def value(at: int) -> np.ndarray:
        total = np.zeros(shares.shape[1:], np.uint64)
        weights = lagrange_weights(points[:threshold], prime=prime, at=at)
        for weight, share in zip(weights, shares[:threshold], strict=True):
            total = (total + np.uint64(weight) * share % p) % p
        return total

    for point, share in zip(points[threshold:], shares[threshold:], strict=True):
        if (value(point) != share % p).any():
            raise _not_one_polynomial(point, threshold)
    return value(0)


def _not_one_polynomial(point: int, threshold: int) -> ValueError:
    return ValueError(
        f"shares must lie on one polynomial of threshold {threshold}, got another value at point "
        f"{point} than the first {threshold} give: one of them was changed; leave it out"
    )


def elements(values: Any, *, modulus: int) -> np.ndarray:
    """Integers as uint64 elements of ``[0, modulus)``; raises where one lies outside.

    Example:
      >>> elements([0, 96], modulus=97).dtype
      dtype('uint64')
    """
    array = np.asarray(values)
    if array.dtype.kind not in "iu":
        raise TypeError(f"values must be integers, got {array.dtype}; encode them first")
    if array.size and (int(array.min()) < 0 or int(array.max()) >= modulus):
        raise ValueError(
            f"values must lie in [0, {modulus}), got {int(array.min())} to {int(array.max())}"
        )
    return array.astype(np.uint64)


def _check_points(points: Sequence[int], threshold: int, prime: int) -> None:
    check_count(threshold, "threshold", minimum=1)
    if threshold > len(points):
        raise ValueError(
            f"threshold must be at most the number of points, got {threshold} of {len(points)}; "
            "give fewer, or more holders"
        )
    residues = {int(x) % prime for x in points}
    if 0 in residues or len(residues) != len(points):
        raise ValueError(
            f"points must differ and not be 0 modulo the prime (at 0 is the secret), got {points}"
        )
