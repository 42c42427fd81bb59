"""The manifest of a checkpoint: what is inside, and digests that tell whether it still is.

    {"format": 2, "step": 10, "leaves": {name: dtype and shape}, "tables": {...}, "num_clients": 5,
     "files": {"arrays/d/3f..": [bytes, SHA-256], ...}, "digest": SHA-256 of all else in here}

Orbax does not verify what it reads: a flipped bit in its files restores a wrong number. So a step
is read only where every file has the size and the digest that it had when it was saved, and where
the manifest, by its own digest and its step, is the one that was written for this folder.
"""

from __future__ import annotations

import hashlib
import json
import os
from pathlib import Path
from typing import Any

NAME = "manifest.json"
FORMAT = 2
_FIRST_FORMAT = {"step", "leaves", "tables", "num_clients"}
"""Keys of a manifest before there were digests."""


class CheckpointDamaged(ValueError):
    """A checkpoint is not what was saved: a file is missing, cut, or has other bytes."""


def write_manifest(folder: Path, content: dict[str, Any]) -> None:
    """Writes the manifest of a step, last of all its files, with the digests of the others.

    Args:
      folder: that holds the files.
      content: ``step``, ``leaves``, ``tables`` and ``num_clients``.

    Example:
      >>> import tempfile
      >>> content = {"step": 7, "leaves": {}, "tables": {}, "num_clients": None}
      >>> with tempfile.TemporaryDirectory() as name:
      ...     folder = Path(name, "00000007")
      ...     folder.mkdir()
      ...     write_manifest(folder, content)
      ...     read_manifest(folder)["step"]
      7
    """
    files = {
        path.relative_to(folder).as_posix(): [path.stat().st_size, digest_of(path)]
        for path in sorted(folder.rglob("*"))
        if path.is_file() and not path.name.startswith(".nfs")  # deleted, but still open somewhere
    }
    manifest = {"format": FORMAT, **content, "files": files}
    manifest["digest"] = _own_digest(manifest)
    with (folder / NAME).open("w", encoding="utf-8") as file:
        file.write(json.dumps(manifest, indent=1) + "\n")
        file.flush()
        os.fsync(file.fileno())


def read_manifest(folder: Path) -> dict[str, Any]:
    """Reads a manifest and checks it against its own digest and the folder's name.

    Args:
      folder: of a step, named by its number.

    Returns:
      The manifest; one without ``files`` is of a version that kept no digests.

    Raises:
      CheckpointDamaged: if it is not what was written for this folder.
    """
    path = folder / NAME
    try:
        manifest = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise CheckpointDamaged(f"{path} is missing") from None
    except (ValueError, RecursionError, IsADirectoryError, NotADirectoryError) as error:
        raise CheckpointDamaged(f"{path} cannot be read: {error}") from error
    if not isinstance(manifest, dict):
        raise CheckpointDamaged(f"{path} holds no object of JSON")
    if not _is_first_format(manifest):
        digest = manifest.pop("digest", None)
        if manifest.get("format", FORMAT) != FORMAT and digest == _own_digest(manifest):
            raise ValueError(
                f"{path} is of format {manifest['format']}, which a later version of fedjax_lite "
                f"wrote, and this one reads {FORMAT}: update fedjax_lite"
            )
        if digest != _own_digest(manifest):
            raise CheckpointDamaged(f"{path} does not have the digest that it was written with")
    if manifest["step"] != int(folder.name):
        raise CheckpointDamaged(
            f"{path} is of step {manifest['step']}: the folder was renamed from "
            f"{manifest['step']:08d}, or files of two steps were mixed"
        )
    return manifest


def check_files(folder: Path, manifest: dict[str, Any]) -> None:
    """Checks every file of a step against its size and digest.

    Args:
      folder: of the step.
      manifest: from `read_manifest`.

    Raises:
      CheckpointDamaged: naming the first file that is not what was saved.
    """
    for name, (size, digest) in manifest.get("files", {}).items():
        path = folder / name
        try:
            found = path.stat().st_size
            if found != size:
                how = "is truncated: it has" if found < size else "has"
                raise CheckpointDamaged(f"{path} {how} {found} bytes instead of {size}")
            if digest_of(path) != digest:
                raise CheckpointDamaged(f"{path} does not hold the bytes that were saved")
        except FileNotFoundError:
            raise CheckpointDamaged(f"{path} is missing") from None
        except PermissionError:
            raise  # nothing is known of it
        except OSError as error:
            raise CheckpointDamaged(f"{path} cannot be read: {error}") from error


def digest_of(path: Path) -> str:
    """SHA-256 of a file's bytes."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _own_digest(manifest: dict[str, Any]) -> str:
    text = json.dumps(manifest, sort_keys=True, separators=(",", ":"))
    return hashlib.sha256(text.encode()).hexdigest()


def _is_first_format(manifest: dict[str, Any]) -> bool:
    """Whether it was written before there were digests, and not robbed of them since."""
    leaves, step = manifest.get("leaves"), manifest.get("step")
    return (
        manifest.keys() <= _FIRST_FORMAT
        and isinstance(step, int)
        and isinstance(leaves, dict)
        and isinstance(manifest.get("tables", {}), dict)
        and all(isinstance(text, str) for text in leaves.values())
    )
