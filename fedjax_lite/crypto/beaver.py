"""Beaver triples: products of shared secrets, with one round of communication."""

from __future__ import annotations

from typing import Any

import numpy as np

from fedjax_lite.checks.arguments import check_count
from fedjax_lite.crypto.additive import reveal, share
from fedjax_lite.crypto.field import random_elements
from fedjax_lite.crypto.shamir import elements


class TripleReusedError(RuntimeError):
    """A triple was asked to hide a second product."""


class Triple:
    """Shares of random `a`, `b` and of ``c = a b``; hides one product, then it is used up.

    A second use would reveal the difference of the secrets.
    """

    def __init__(self, a: np.ndarray, b: np.ndarray, c: np.ndarray, *, modulus: int) -> None:
        """Shares uint64 `[num_parties, ...]` of each, and their ring."""
        self._shares = (a, b, c)
        self.modulus = modulus
        self.used = False

    def take(self) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """The shares, once.

        Raises:
          TripleReusedError: the second time.
        """
        if self.used:
            raise TripleReusedError(
                "triple was used before: it hides one product only; deal another one"
            )
        self.used = True
        return self._shares


def deal_triple(
    shape: Any,
    *,
    num_parties: int,
    modulus: int,
    values: tuple[Any, Any] | None = None,
    rng: np.random.Generator | None = None,
) -> Triple:
    """A trusted dealer's triple for arrays of a shape.

    Args:
      shape: of the factors.
      num_parties: at least 2.
      modulus: of the ring, at most 2**32.
      values: `a` and `b` instead of random ones, for tests.
      rng: see `random_elements`.

    Example:
      >>> deal_triple((2,), num_parties=3, modulus=97).used
      False
    """
    check_count(num_parties, "num_parties", minimum=2)
    if values is None:
        a, b = (random_elements(shape, modulus=modulus, rng=rng) for _ in range(2))
    else:
        a, b = (elements(np.broadcast_to(v, shape), modulus=modulus) for v in values)
    c = a * b % np.uint64(modulus)
    parts = [share(v, num_shares=num_parties, modulus=modulus, rng=rng) for v in (a, b, c)]
    return Triple(*parts, modulus=modulus)


def multiply(x: Any, y: Any, *, triple: Triple) -> np.ndarray:
    r"""Shares of the product, from shares of the factors.

    .. math::  d = x - a, \quad e = y - b \ \text{(revealed)}, \qquad xy = c + d\,b + e\,a + d\,e

    Every party computes its share alone; the first also adds `d e`.

    Args:
      x: shares `[num_parties, ...]`, see `additive.share`.
      y: the same of the other factor.
      triple: of the same shape, ring and number of parties; used up by this.

    Returns:
      uint64 shares `[num_parties, ...]`.

    Raises:
      ValueError: if shapes do not agree.
      TripleReusedError: if the triple was used before.

    Example:
      >>> x, y = (share(v, num_shares=2, modulus=97) for v in (12, 34))
      >>> triple = deal_triple((), num_parties=2, modulus=97)
      >>> int(reveal(multiply(x, y, triple=triple), modulus=97))
      20

    Reference: Beaver, "Efficient Multiparty Protocols Using Circuit Randomization", CRYPTO 1991.
    """
    x, y = np.asarray(x, np.uint64), np.asarray(y, np.uint64)
    if not x.shape == y.shape == triple._shares[0].shape:
        raise ValueError(
            f"x, y and the triple must have shares of one shape, got {list(x.shape)}, "
            f"{list(y.shape)} and {list(triple._shares[0].shape)}"
        )
    a, b, c = triple.take()
    ring = np.uint64(triple.modulus)
    d = reveal((x + ring - a) % ring, modulus=triple.modulus)
    e = reveal((y + ring - b) % ring, modulus=triple.modulus)
    product = (c + d * b % ring + e * a % ring) % ring
    product[0] = (product[0] + d * e % ring) % ring
    return product
