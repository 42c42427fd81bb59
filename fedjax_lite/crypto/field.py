"""Prime fields on the host: random elements, polynomials, Lagrange interpolation."""

from __future__ import annotations

import math
import secrets
from collections.abc import Sequence
from typing import Any

import numpy as np

MOST = 2**32
"""Elements that are drawn at a time; more is a slip, and beyond memory."""

SECRET_PRIME = 2**256 + 297
"""The smallest prime above 2**256: every secret of 32 bytes is an element; 33 bytes a share."""
VECTOR_PRIME = 2**32 - 5
"""The largest prime below 2**32: products of two elements fit into uint64."""


def lagrange_weights(points: Sequence[int], *, prime: int, at: int = 0) -> list[int]:
    r"""Weights that interpolate a polynomial: :math:`f(z) = \sum_i \lambda_i f(x_i)`.

    .. math::  \lambda_i = \prod_{j \ne i} \frac{z - x_j}{x_i - x_j} \bmod p

    Args:
      points: different points `x_i` modulo `prime`.
      prime: `p`.
      at: `z`, by default 0, where the secret is.

    Raises:
      ValueError: if points coincide modulo `prime`.

    Example:
      >>> lagrange_weights([1, 2, 3], prime=97), lagrange_weights([1, 3, 5], prime=97)
      ([3, 94, 1], [14, 23, 61])
    """
    if prime < 2:
        raise ValueError(f"prime must be at least 2, got {prime}; give a prime number")
    points = [int(point) % prime for point in points]
    if len(set(points)) != len(points):
        raise ValueError(f"points must differ modulo {prime}, got {points}")
    weights = []
    for i, x in enumerate(points):
        above, below = 1, 1
        for j, other in enumerate(points):
            if j != i:
                above = above * (at - other) % prime
                below = below * (x - other) % prime
        weights.append(above * pow(below, -1, prime) % prime)
    return weights


def polynomial(coefficients: Sequence[int], x: int, *, prime: int) -> int:
    """The value at `x` of a polynomial, constant coefficient first.

    Example:
      >>> [polynomial([42, 7, 13], x, prime=97) for x in range(1, 6)]
      [62, 11, 83, 84, 14]
    """
    if prime < 2:
        raise ValueError(f"prime must be at least 2, got {prime}; give a prime number")
    value = 0
    for coefficient in reversed(coefficients):
        value = (value * x + coefficient) % prime
    return value


def random_elements(shape: Any, *, modulus: int, rng: np.random.Generator | None = None) -> Any:
    """Independent uniform elements of ``[0, modulus)``, uint64.

    Args:
      shape: of the array.
      modulus: 2 to 2**63.
      rng: where from; None for the operating system's randomness, which secrecy needs. A seeded
        generator is for tests.

    Raises:
      ValueError: if `modulus` lies outside 2 to 2**63.

    Example:
      >>> bool((random_elements(1000, modulus=97) < 97).all())
      True
    """
    if not 2 <= modulus <= 2**63:
        raise ValueError(f"modulus must lie between 2 and 2**63, got {modulus}")
    _check_shape(shape)
    if rng is not None:
        return rng.integers(0, modulus, shape, dtype=np.uint64)
    size = int(np.prod(shape, dtype=np.int64))
    # Rejection: the largest multiple of the modulus below 2**64, so that no element is favoured.
    limit = 2**64 - 2**64 % modulus
    found = np.empty(0, np.uint64)
    while found.size < size:
        raw = np.frombuffer(secrets.token_bytes(8 * (size - found.size)), np.uint64)
        found = np.concatenate([found, raw[raw <= np.uint64(limit - 1)]])
    return (found % np.uint64(modulus)).reshape(shape)


def _check_shape(shape: Any) -> None:
    """Raises where a shape is none, or one of more elements than memory has."""
    sizes = [shape] if isinstance(shape, int | np.integer) else shape
    is_whole = isinstance(sizes, list | tuple) and all(
        isinstance(n, int | np.integer) and not isinstance(n, bool) and n >= 0 for n in sizes
    )
    if not is_whole:
        raise TypeError(f"shape must be integers, 0 or more, got {shape!r:.60}; give (3, 2)")
    if math.prod(int(n) for n in sizes) > MOST:
        raise ValueError(f"shape must have at most 2**32 elements, got {shape!r:.60}; give fewer")
