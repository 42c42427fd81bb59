"""CKKS: the mean of updates under homomorphic encryption, by tenseal (optional)."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import jax
import numpy as np

from fedjax_lite.checks.arguments import check_count
from fedjax_lite.types import Message, PyTree

SECURE_BITS = {1024: 27, 2048: 54, 4096: 109, 8192: 218, 16384: 438}
"""Bits of the whole modulus, at most, for 128-bit security with ternary secrets
(HomomorphicEncryption.org's standard, 2018), by polynomial degree."""


class Ciphertexts(NamedTuple):
    """A vector under encryption, ``degree / 2`` floats a ciphertext."""

    parts: tuple[bytes, ...]
    size: int
    """Floats, the padding of the last part not counted."""

    @property
    def num_bytes(self) -> int:
        """What they take on the wire."""
        return sum(map(len, self.parts))


class CkksSecret:
    """The clients' side: holds the secret key. The server gets `public` only.

    All clients share the secret key, as is usual between institutions: whoever has it and sees a
    ciphertext can read it, so clients must not listen to each other's wire nor collude with the
    server.

    Args:
      degree: of the polynomials, `N`; ``N / 2`` floats fit into a ciphertext.
      modulus_bits: of the chain of moduli; one inner modulus is used up by a product.
      scale_bits: of the scale: floats keep about ``scale_bits - 25`` bits after the point.

    Raises:
      ValueError: if the moduli are too many for 128-bit security at this degree.
      ImportError: without tenseal.

    Example:
      >>> sum((60, 40, 40, 60)) <= SECURE_BITS[8192]
      True

    Reference: Cheon, Kim, Kim, Song, "Homomorphic Encryption for Arithmetic of Approximate
    Numbers", ASIACRYPT 2017, ePrint 2016/421.
    """

    def __init__(
        self,
        *,
        degree: int = 8192,
        modulus_bits: Sequence[int] = (60, 40, 40, 60),
        scale_bits: int = 40,
    ) -> None:
        check_count(scale_bits, "scale_bits", minimum=20)
        if degree not in SECURE_BITS or sum(modulus_bits) > SECURE_BITS[degree]:
            raise ValueError(
                f"modulus_bits must sum to at most {SECURE_BITS.get(degree)} for degree {degree} "
                f"(128-bit security), got {tuple(modulus_bits)} = {sum(modulus_bits)} bits; "
                f"degrees: {sorted(SECURE_BITS)}"
            )
        tenseal = _tenseal()
        self._context = tenseal.context(
            tenseal.SCHEME_TYPE.CKKS,
            poly_modulus_degree=degree,
            coeff_mod_bit_sizes=list(modulus_bits),
        )
        self._context.global_scale = 2.0**scale_bits
        self.slots = degree // 2

    @property
    def public(self) -> bytes:
        """The context without the secret key, for the server."""
        return self._context.serialize(
            save_public_key=True,
            save_secret_key=False,
            save_galois_keys=False,
            save_relin_keys=False,
        )

    def encrypt(self, values: Any) -> Ciphertexts:
        """A float vector `[D]`, packed and encrypted."""
        values = np.asarray(values, np.float64).ravel()
        if not values.size or not np.isfinite(values).all():
            raise ValueError(
                "values must be finite and not empty: one NaN would spoil a whole ciphertext, and "
                "the server cannot see it"
            )
        tenseal = _tenseal()
        parts = tuple(
            tenseal.ckks_vector(self._context, values[low : low + self.slots].tolist()).serialize()
            for low in range(0, values.size, self.slots)
        )
        return Ciphertexts(parts, values.size)

    def decrypt(self, encrypted: Ciphertexts) -> np.ndarray:
        """The floats, float64 `[D]`."""
        tenseal = _tenseal()
        parts = [
            tenseal.ckks_vector_from(self._context, part).decrypt() for part in encrypted.parts
        ]
        return np.concatenate(parts)[: encrypted.size]


class CkksServer:
    """The server's side: adds what it cannot read.

    Args:
      public: of `CkksSecret`.

    Raises:
      ValueError: if the bytes hold the secret key.

    Example:
      >>> CkksServer.__init__.__annotations__["public"]
      'bytes'
    """

    def __init__(self, public: bytes) -> None:
        self._context = _tenseal().context_from(public)
        if self._context.is_private():
            raise ValueError("public must not hold the secret key; give the server secret.public")

    def add(self, messages: Sequence[Ciphertexts]) -> Ciphertexts:
        """The sum of equally long vectors."""
        sizes = {message.size for message in messages}
        if len(sizes) != 1:
            raise ValueError(f"messages must have one size, got sizes {sorted(sizes)}")
        tenseal, parts = _tenseal(), []
        for same_place in zip(*(message.parts for message in messages), strict=True):
            total = tenseal.ckks_vector_from(self._context, same_place[0])
            for part in same_place[1:]:
                total += tenseal.ckks_vector_from(self._context, part)
            parts.append(total.serialize())
        return Ciphertexts(tuple(parts), messages[0].size)

    def scale(self, message: Ciphertexts, factor: float) -> Ciphertexts:
        """The product with one plain number, such as 1 / the sum of weights; uses up a modulus."""
        tenseal, parts = _tenseal(), []
        for part in message.parts:
            parts.append((tenseal.ckks_vector_from(self._context, part) * factor).serialize())
        return Ciphertexts(tuple(parts), message.size)

    def multiply(self, message: Ciphertexts, values: Any) -> Ciphertexts:
        """The product with plain floats `[D]`, one by one; uses up a modulus."""
        return self._with(message, values, lambda vector, plain: vector * plain)

    def shift(self, message: Ciphertexts, values: Any) -> Ciphertexts:
        """The sum with floats `[D]` of this side, one by one, which are encrypted for it.

        So it has randomness of its own: who holds the key and knows the message cannot tell by the
        ciphertext what else was done to it, as after a product, which is computed the same for
        everybody.
        """
        encrypt = _tenseal().ckks_vector
        return self._with(
            message, values, lambda vector, plain: vector + encrypt(self._context, plain)
        )

    def _with(self, message: Ciphertexts, values: Any, combine: Any) -> Ciphertexts:
        plain = np.asarray(values, np.float64)
        if plain.shape != (message.size,) or not np.isfinite(plain).all():
            raise ValueError(
                f"values must be [{message.size}] finite floats, as many as the message holds, got "
                f"shape {list(plain.shape)}"
            )
        tenseal, parts, low = _tenseal(), [], 0
        for part in message.parts:
            vector = tenseal.ckks_vector_from(self._context, part)
            some = plain[low : low + vector.size()]
            low += len(some)
            parts.append(combine(vector, some.tolist()).serialize())
        return Ciphertexts(tuple(parts), message.size)


class CkksReport(NamedTuple):
    """What encryption cost."""

    uplink_bytes: int
    """Of all clients together."""
    plain_bytes: int
    """The same updates as float32."""
    bytes_per_float: float
    """Ciphertext bytes a float of an update."""
    downlink_bytes: int
    """Of the aggregate, for one client."""

    @property
    def blow_up(self) -> float:
        """Ciphertext over plain bytes, uplink."""
        return self.uplink_bytes / self.plain_bytes


def ckks_mean(
    messages: Message, *, secret: CkksSecret | None = None, divide: str = "client"
) -> tuple[PyTree, CkksReport]:
    r"""The weighted mean of a stack of updates, of which the server sees ciphertexts only.

    .. math::
        \bar\Delta = \mathrm{Dec}\Big(\sum_i \mathrm{Enc}(w_i \Delta_i)\Big) \Big/ \sum_i w_i

    Each client multiplies by its weight, packs all leaves into vectors of ``N / 2`` slots and
    encrypts; the server adds; clients decrypt the sum. Weights travel in the clear. On the host.

    Args:
      messages: values, leaves `[C, ...]`, and weights `[C]`.
      secret: keys; default fresh ones with ``N = 8192``, moduli 60/40/40/60 and scale 2**40.
      divide: "client": after decryption; "server": by a product under encryption, which costs some
        precision and makes the aggregate's ciphertext shorter.

    Returns:
      The mean, leaves float64 numpy of one value's shape, and a `CkksReport`.

    Raises:
      ValueError: if `divide` is unknown, values are not finite or no weight is positive.
      ImportError: without tenseal.

    Example:
      >>> try:
      ...     ckks_mean(Message(np.ones((2, 3)), np.zeros(2)))
      ... except ValueError as error:
      ...     print(error)
      weights must be [C], at least 0 and not all 0, got [0. 0.]

    Reference: Cheon, Kim, Kim, Song, "Homomorphic Encryption for Arithmetic of Approximate
    Numbers", ASIACRYPT 2017, ePrint 2016/421.
    """
    if divide not in ("client", "server"):
        raise ValueError(f"divide must be 'client' or 'server', got {divide!r}")
    weights = np.asarray(messages.weight, np.float64)
    if weights.ndim != 1 or not (weights >= 0).all() or not weights.sum() > 0:
        raise ValueError(f"weights must be [C], at least 0 and not all 0, got {weights}")
    leaves, structure = jax.tree.flatten(messages.value)
    leaves = [np.asarray(leaf, np.float64) for leaf in leaves]
    rows = np.concatenate([leaf.reshape(len(weights), -1) for leaf in leaves], axis=1)
    secret = CkksSecret() if secret is None else secret
    server = CkksServer(secret.public)
    sent = [secret.encrypt(w * row) for w, row in zip(weights, rows, strict=True) if w > 0]
    total, factor = server.add(sent), 1.0 / float(weights.sum())
    if divide == "server":
        total, factor = server.scale(total, factor), 1.0
    flat, parts, low = secret.decrypt(total) * factor, [], 0
    for leaf in leaves:
        size = leaf[0].size
        parts.append(flat[low : low + size].reshape(leaf.shape[1:]))
        low += size
    up, floats = sum(message.num_bytes for message in sent), len(sent) * rows.shape[1]
    report = CkksReport(up, 4 * floats, up / floats, total.num_bytes)
    return jax.tree.unflatten(structure, parts), report


def _tenseal() -> Any:
    try:
        import tenseal
    except ImportError as error:
        raise ImportError(
            'CKKS needs the package tenseal; pip install "fedjax_lite[he]"'
        ) from error
    return tenseal
