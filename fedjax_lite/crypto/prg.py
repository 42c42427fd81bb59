"""A seed of 32 bytes stretched into a mask: AES-256 in counter mode."""

from __future__ import annotations

import functools
import importlib
from typing import Any

import numpy as np

SEED_BYTES = 32
KINDS = ("asymmetric.ed25519", "asymmetric.x25519", "ciphers.aead", "hashes", "kdf.hkdf")


def expand(seed: bytes, length: int) -> np.ndarray:
    """The first `length` words of the seed's keystream.

    The counter starts at 0, which is safe because a seed keys one stream only.

    Args:
      seed: 32 secret bytes, fresh for every mask.
      length: words, at least 0.

    Returns:
      uint32 `[length]`, little-endian.

    Raises:
      ValueError: if the seed does not have 32 bytes.
      ImportError: without the extra ``crypto``.

    Example:
      >>> expand(bytes(32), 2).tolist() == expand(bytes(32), 4)[:2].tolist()
      True

    Reference: NIST SP 800-38A (counter mode), FIPS 197 (AES).
    """
    if len(seed) != SEED_BYTES:
        raise ValueError(f"seed must have {SEED_BYTES} bytes, got {len(seed)}")
    ciphers = primitives().ciphers
    cipher = ciphers.Cipher(ciphers.algorithms.AES(seed), ciphers.modes.CTR(bytes(16)))
    stream = cipher.encryptor().update(bytes(4 * length))
    return np.frombuffer(stream, "<u4").astype(np.uint32)


@functools.cache
def primitives() -> Any:
    """``cryptography.hazmat.primitives`` with what the protocols need loaded.

    Raises:
      ImportError: that names the extra, where the package is missing.
    """
    try:
        for name in KINDS:
            importlib.import_module(f"cryptography.hazmat.primitives.{name}")
        from cryptography.hazmat import primitives
    except ImportError as error:
        raise ImportError(
            "the protocols on the host need the package cryptography; "
            'pip install "fedjax_lite[crypto]"'
        ) from error
    return primitives
