"""pack() and unpack(): the bytes that a compressed vector really takes, on the host."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from fedjax_lite.transforms.wire import Field


def pack(fields: tuple[Field, ...], symbols: Mapping[str, Any]) -> bytes:
    """Writes the symbols of a message one after the other, each in as many bits as its field says.

    Args:
      fields: of a `Code`.
      symbols: an array for each field.

    Returns:
      Bytes; the last one is padded with zero bits.

    Raises:
      ValueError: if an array has not as many numbers as its field, or one does not fit into the
        field's width.

    Example:
      >>> pack((Field("negative", 4, 1), Field("level", 2, 3)), {"negative": [1, 0, 0, 1],
      ...                                                         "level": [5, 2]}).hex()
      '9a80'
    """
    return np.packbits(np.concatenate([_bits(field, symbols) for field in fields])).tobytes()


def unpack(fields: tuple[Field, ...], packed: bytes) -> dict[str, np.ndarray]:
    """Reads what `pack` wrote.

    Args:
      fields: the same as were packed.
      packed: the bytes.

    Returns:
      An array for each field: uint32 (uint64 beyond 32 bits), or float32 or float64.

    Raises:
      ValueError: if the bytes are not as many as the fields take.

    Example:
      >>> fields = (Field("scale", 1, 32, real=True), Field("negative", 3, 1))
      >>> found = unpack(fields, pack(fields, {"scale": [2.5], "negative": [0, 1, 1]}))
      >>> found["scale"].tolist(), found["negative"].tolist()
      ([2.5], [0, 1, 1])
    """
    total = sum(field.count * field.width for field in fields)
    if len(packed) != -(-total // 8):
        raise ValueError(
            f"packed must have the {-(-total // 8)} bytes of its {len(fields)} fields, got "
            f"{len(packed)}; give those that it was packed with"
        )
    bits = np.unpackbits(np.frombuffer(packed, np.uint8))
    found, start = {}, 0
    for field in fields:
        stop = start + field.count * field.width
        some = bits[start:stop].reshape(field.count, field.width).astype(np.uint64)
        shifts = np.arange(field.width - 1, -1, -1, dtype=np.uint64)
        numbers = (some << shifts).sum(1, dtype=np.uint64)
        narrow = numbers.astype(np.uint64 if field.width > 32 else np.uint32)
        if field.real:
            narrow = narrow.view(np.float64 if field.width == 64 else np.float32)
        found[field.name] = narrow
        start = stop
    return found


def _bits(field: Field, symbols: Mapping[str, Any]) -> np.ndarray:
    """0s and 1s, the highest bit of each number first."""
    values = np.asarray(symbols[field.name])
    if field.real:
        wide = field.width == 64
        values = values.astype(np.float64 if wide else np.float32)
        values = values.view(np.uint64 if wide else np.uint32)
    values = values.ravel().astype(np.uint64)
    if values.size != field.count:
        raise ValueError(f"symbols[{field.name!r}] must hold {field.count}, got {values.size}")
    if values.size and field.width < 64 and int(values.max()) >> field.width:
        raise ValueError(
            f"symbols[{field.name!r}] must be below 2**{field.width}, got {int(values.max())}"
        )
    shifts = np.arange(field.width - 1, -1, -1, dtype=np.uint64)
    return ((values[:, None] >> shifts) & np.uint64(1)).astype(np.uint8).ravel()
