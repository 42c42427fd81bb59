"""What folders of examples have in common: a manifest of their arrays, and the clients' offsets."""

from __future__ import annotations

import hashlib
import json
import math
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from fedjax_lite.data.formats.errors import DatasetFormatError
from fedjax_lite.data.formats.npy_file import open_npy
from fedjax_lite.data.stores.store import Leaf, check_sizes

REWRITE = "write the folder again"
"""The remedy for a folder whose files do not fit each other."""

LAYOUT = 2
"""Of folders; the first had no digests."""

_FIRST = {"layout", "leaves", "clients"}
"""What a manifest of the first layout may say: one of the second that was robbed says more."""
_MAX_MANIFEST = 1 << 24
_NAME = re.compile(r"[A-Za-z0-9_-]{1,200}")
_DTYPE = re.compile(r"[<>|=][biuf][0-9]{1,2}")


def bad_file(path: Path, expected: str, found: str) -> DatasetFormatError:
    """The error of a folder's file, whose remedy is to write the folder again."""
    return DatasetFormatError(path, expected=expected, found=found, remedy=REWRITE)


def check_name(name: str) -> None:
    """Raises ValueError where the name of an array cannot be that of a file."""
    if not _NAME.fullmatch(name):
        raise ValueError(f"names must be letters, digits, _ and -, got {name!r:.80}; rename it")


def read_manifest(path: Path, *, writer: str) -> tuple[dict[str, Leaf], Any]:
    """The arrays that a folder's manifest describes, and the whole manifest.

    Args:
      path: ``manifest.json``: ``{"layout": 2, "leaves": {"x": ["|u1", [32]], ...}, ...}``.
      writer: who writes such folders, for the error.

    Returns:
      ``{name: Leaf}`` and the dict.

    Raises:
      FileNotFoundError: if there is no such file.
      DatasetFormatError: if it is not such a manifest, or was changed since it was written.

    Example:
      >>> import tempfile
      >>> path = Path(tempfile.mkdtemp()) / "manifest.json"
      >>> _ = path.write_text('{"layout": 1, "leaves": {"x": ["<f4", [2]]}}')
      >>> read_manifest(path, writer="write_streamed")[0]
      {'x': Leaf(dtype=dtype('float32'), shape=(2,))}
    """
    try:
        if path.stat().st_size > _MAX_MANIFEST:
            raise ValueError("it is too long")
        manifest = json.loads(path.read_text(encoding="utf-8"))
        if manifest["layout"] not in (1, LAYOUT):
            raise ValueError(
                f"layout {manifest['layout']!r:.40}, this version reads 1 and {LAYOUT}"
            )
        if manifest["layout"] != LAYOUT and not manifest.keys() <= _FIRST:
            raise ValueError("a folder of the first layout says less")
        leaves = {name: _leaf(*described) for name, described in manifest["leaves"].items()}
        if not leaves:
            raise ValueError("no arrays")
        for name in leaves:
            check_name(name)
        if manifest["layout"] == LAYOUT:
            if manifest.pop("digest", None) != manifest_digest(manifest):
                raise ValueError("it does not have the digest that it was written with")
            if not isinstance(manifest.get("files"), dict):
                raise ValueError("no digests of files")
    except FileNotFoundError:
        raise FileNotFoundError(
            f"folder must be one that {writer} wrote, got {str(path.parent)!r:.200}, which has no "
            f"{path.name}; give the path that {writer} returned"
        ) from None
    except (OSError, KeyError, TypeError, AttributeError, ValueError, RecursionError) as error:
        found = f"that {path.name} is not a manifest of {writer}: {str(error) or repr(error):.200}"
        raise bad_file(path, f"the manifest of {writer}", found) from None
    return leaves, manifest


def manifest_digest(manifest: Mapping[str, Any]) -> str:
    """SHA-256 of what a manifest says beside this."""
    text = json.dumps(manifest, sort_keys=True, separators=(",", ":"))
    return hashlib.sha256(text.encode()).hexdigest()


def described_leaves(leaves: Mapping[str, Leaf]) -> dict[str, Any]:
    """The arrays as a manifest has them.

    Example:
      >>> described_leaves({"x": Leaf(np.dtype("float32"), (2,))})
      {'x': ['<f4', [2]]}
    """
    return {name: [leaf.dtype.str, list(leaf.shape)] for name, leaf in leaves.items()}


def _leaf(dtype: Any, shape: Any) -> Leaf:
    if not isinstance(dtype, str) or not _DTYPE.fullmatch(dtype):
        raise ValueError(f"no dtype: {dtype!r:.40}")
    if not isinstance(shape, list) or len(shape) > 31:
        raise ValueError(f"no shape: {shape!r:.40}")
    if not all(type(size) is int and 0 <= size < 2**31 for size in shape):
        raise ValueError(f"no shape: {shape!r:.40}")
    if math.prod(size or 1 for size in shape) >= 2**40:
        raise ValueError(f"examples of an impossible size: {shape!r:.40}")
    return Leaf(np.dtype(dtype), tuple(shape))


def read_offsets(path: Path) -> tuple[np.ndarray, np.ndarray]:
    """``offsets.npy``: int64 `[N + 1]` that rise from 0; and the sizes, int32 `[N]`.

    Raises:
      FileNotFoundError: if there is no such file.
      DatasetFormatError: if it is damaged.

    Example:
      >>> import tempfile
      >>> path = Path(tempfile.mkdtemp()) / "offsets.npy"
      >>> np.save(path, np.array([0, 2, 3]))
      >>> read_offsets(path)[1].tolist()
      [2, 1]
    """
    expected = "int64 offsets [N + 1]"
    array = open_npy(path, expected=expected, remedy=REWRITE)
    if array.dtype != np.int64 or array.ndim != 1:
        raise bad_file(path, expected, f"that it holds {array.dtype}{list(array.shape)}")
    offsets = np.array(array, np.int64)
    # Compared, not subtracted: differences of hostile numbers wrap.
    if len(offsets) < 2 or offsets[0] != 0 or (offsets[1:] < offsets[:-1]).any():
        found = f"that {path.name} is damaged: offsets must rise from 0, one more than clients"
        raise bad_file(path, expected, found)
    try:
        return offsets, check_sizes(np.diff(offsets))
    except ValueError as error:
        raise bad_file(path, expected, str(error)) from None
