"""Additive sharing: uniform shares whose sum is the secret, and the mean by several servers."""

from __future__ import annotations

from typing import Any

import numpy as np

from fedjax_lite.checks.arguments import check_count, check_whole
from fedjax_lite.crypto.field import VECTOR_PRIME, random_elements
from fedjax_lite.crypto.fixed_point import check_ring, decode_mean, encode
from fedjax_lite.crypto.shamir import combine_array, elements, split_array

RING = 2**32


def share(
    values: Any,
    *,
    num_shares: int,
    modulus: int = RING,
    rng: np.random.Generator | None = None,
) -> np.ndarray:
    """Splits integers into shares: all but the last uniform, the last what is missing.

    Args:
      values: integers in ``[0, modulus)``, any shape.
      num_shares: holders, at least 2.
      modulus: of the ring, 2 to 2**32; default 2**32.
      rng: see `random_elements`.

    Returns:
      uint64 `[num_shares, ...]`; all of them are needed, any fewer are uniform.

    Raises:
      ValueError: if a value lies outside the ring or there are fewer than 2 holders.

    Example:
      >>> shares = share([12, 34], num_shares=3, modulus=97)
      >>> shares.shape, reveal(shares, modulus=97).tolist()
      ((3, 2), [12, 34])
    """
    check_count(num_shares, "num_shares", minimum=2)
    check_count(modulus, "modulus", minimum=2)
    if modulus > RING:
        raise ValueError(f"modulus must be at most 2**32, so that products fit, got {modulus}")
    values = elements(values, modulus=modulus)
    free = random_elements((num_shares - 1, *values.shape), modulus=modulus, rng=rng)
    ring = np.uint64(modulus)
    last = (values + ring - free.sum(0, dtype=np.uint64) % ring) % ring
    return np.concatenate([free, last[None]])


def reveal(shares: Any, *, modulus: int = RING) -> np.ndarray:
    """The sum of all shares `[num_shares, ...]` in the ring, uint64.

    Example:
      >>> reveal([[90], [10]], modulus=97).tolist()
      [3]
    """
    check_whole(shares, "shares")
    if np.ndim(shares) == 0:
        raise ValueError(f"shares must be [num_shares, ...], got {shares}; give one a holder")
    check_count(modulus, "modulus", minimum=2)
    return np.asarray(shares, np.uint64).sum(0, dtype=np.uint64) % np.uint64(modulus)


def mpc_mean(
    values: Any,
    *,
    weights: Any = None,
    max_abs: float,
    bits: int = 16,
    num_servers: int = 3,
    threshold: int | None = None,
    rng: np.random.Generator | None = None,
) -> np.ndarray:
    """The mean of clients' vectors, computed by servers that each see uniform shares only.

    Every client encodes its vector in fixed point and its integer weight beside it, and sends one
    share to each server; a server adds up what it gets; the sums are revealed and decoded. No set
    of servers below the threshold learns more than the mean (honest-but-curious servers).

    Args:
      values: floats `[C, D]`.
      weights: integers `[C]`, at least 0; default all 1.
      max_abs: `c`: entries are clipped to `[-c, c]`; see `encode`.
      bits: of a code.
      num_servers: how many.
      threshold: None for additive sharing, where all servers are needed; else Shamir's, where any
        `threshold` of them suffice and fewer learn nothing.
      rng: see `random_elements`.

    Returns:
      float64 `[D]`.

    Raises:
      ValueError: if shapes, weights or the threshold do not fit, or the sum could wrap.

    Example:
      >>> mpc_mean(np.array([[0.5, 1.0], [-0.5, 1.0]]), max_abs=1.0).round(4).tolist()
      [0.0, 1.0]

    Reference: Ben-Or, Goldwasser, Wigderson, "Completeness Theorems for Non-Cryptographic
    Fault-Tolerant Distributed Computation", STOC 1988.
    """
    values = np.asarray(values)
    if values.ndim != 2 or not len(values):
        raise ValueError(f"values must be [C, D] with C >= 1, got shape {list(values.shape)}")
    weights = np.ones(len(values), np.int64) if weights is None else np.asarray(weights)
    if weights.shape != values.shape[:1] or weights.dtype.kind not in "iu" or weights.min() < 0:
        raise ValueError(
            f"weights must be {len(values)} integers of at least 0, got {weights!r}; round them"
        )
    check_ring(len(values), max_weight=max(int(weights.max()), 1), bits=bits)
    modulus = RING if threshold is None else VECTOR_PRIME
    largest = int(weights.sum()) * (2**bits - 1)
    if largest >= modulus:
        raise ValueError(
            f"the weighted sum reaches {largest}, which would wrap around {modulus}; use fewer bits"
        )
    codes = encode(values, max_abs=max_abs, bits=bits).astype(np.uint64)
    sent = np.concatenate([codes, np.ones((len(values), 1), np.uint64)], axis=1)
    sent = sent * weights[:, None].astype(np.uint64)
    if threshold is None:
        shares = share(sent, num_shares=num_servers, modulus=modulus, rng=rng)
    else:
        shares = split_array(
            sent, num_shares=num_servers, threshold=threshold, prime=modulus, rng=rng
        )
    sums = shares.sum(1, dtype=np.uint64) % np.uint64(modulus)  # each server, over its clients
    if threshold is None:
        total = reveal(sums, modulus=modulus)
    else:
        points = list(range(1, num_servers + 1))[-threshold:]
        total = combine_array(sums[-threshold:], points=points, threshold=threshold, prime=modulus)
    return decode_mean(total[:-1], total[-1], max_abs=max_abs, bits=bits)
