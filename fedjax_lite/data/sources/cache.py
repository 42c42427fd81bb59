"""Parsed data sets as memory-mapped .npy files, so that the second start is instant."""

from __future__ import annotations

import contextlib
import hashlib
import json
import logging
import os
import shutil
import tempfile
import warnings
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, TypeAlias

import numpy as np

from fedjax_lite.checks.arguments import as_path
from fedjax_lite.data.formats.npy_file import map_npy

Arrays: TypeAlias = dict[str, np.ndarray]
"""``{"x": [E, ...], "y": [E], ...}``."""
Splits: TypeAlias = tuple[Arrays, Arrays]
"""``(train, test)``."""

_LOG = logging.getLogger("fedjax_lite")
_LAYOUT = 2
_LOCK_SECONDS = 60.0
"""How long a writer waits for another; after that it goes on without a cache."""
_MANIFEST = "manifest.json"
_MAX_MANIFEST = 1 << 24
_warned: set[str] = set()


def default_cache_dir(cache_dir: str | os.PathLike[str] | None = None) -> Path:
    """The cache folder: the argument, ``FEDJAX_LITE_CACHE``, else the user's cache folder.

    Args:
      cache_dir: wins over everything when given.

    Returns:
      `cache_dir`, ``$FEDJAX_LITE_CACHE``, ``$XDG_CACHE_HOME/fedjax_lite`` or
      ``~/.cache/fedjax_lite``: the first that is set. It need not exist.

    Example:
      >>> default_cache_dir("/tmp/here").name
      'here'
    """
    if cache_dir is not None:
        return as_path(cache_dir, "cache_dir")
    if given := os.environ.get("FEDJAX_LITE_CACHE"):
        return as_path(given, "FEDJAX_LITE_CACHE")
    if given := os.environ.get("XDG_CACHE_HOME"):
        return as_path(given, "XDG_CACHE_HOME") / "fedjax_lite"
    return Path.home() / ".cache" / "fedjax_lite"


def cached(
    parse: Callable[[], Splits],
    *,
    cache_dir: Path,
    name: str,
    files: Sequence[Path],
    version: int,
    options: Mapping[str, Any],
) -> Splits:
    """Returns the parsed arrays of `files`, from the cache where it is still true.

    A manifest records path, size and modification time of every source file, the parser's version
    and the options; if anything differs, `parse` runs anew. It also holds a SHA-256 digest of every
    array's file and of itself, which are compared at every reading: where one does not agree, the
    cache is rebuilt and the log says so. The cache is written to a temporary folder and renamed,
    so readers never see half of one; of several processes one writes at a time, and what a killed
    one left behind goes with the next writing. A folder that cannot be written costs one warning,
    not the run.

    Args:
      parse: ``() -> (train, test)``, dicts of arrays.
      cache_dir: the cache folder.
      name: the data set, part of the folder's name.
      files: the source files.
      version: the parser's; raise it when its output changes.
      options: whatever else the output depends on; JSON values.

    Returns:
      ``(train, test)``, memory-mapped and read-only, or as `parse` gave them if not cached.

    Example:
      >>> import pathlib, tempfile
      >>> folder = pathlib.Path(tempfile.mkdtemp())
      >>> source = folder / "source"; _ = source.write_text("1 2")
      >>> def parse():
      ...     numbers = np.array(source.read_text().split(), np.int32)
      ...     return {"x": numbers}, {"x": numbers[:1]}
      >>> arguments = dict(cache_dir=folder, name="a", files=[source], version=1, options={})
      >>> train, _ = cached(parse, **arguments)
      >>> train["x"].tolist(), isinstance(train["x"], np.memmap)
      ([1, 2], True)
    """
    manifest = {
        "layout": _LAYOUT,
        "name": name,
        "version": version,
        "options": dict(options),
        "files": [_stamp(path) for path in files],
    }
    where = json.dumps([name, [str(path) for path in files], dict(options)], sort_keys=True)
    digest = hashlib.sha256(where.encode()).hexdigest()[:16]
    folder = cache_dir / "parsed" / f"{name.replace('/', '-').replace(':', '-')}-{digest}"
    hit = _read(folder, manifest)
    if hit is not None:
        return hit
    splits = parse()
    try:
        _write(folder, manifest, splits)
    except OSError as error:
        if str(cache_dir) not in _warned:
            _warned.add(str(cache_dir))
            warnings.warn(
                f"cannot write the cache folder {cache_dir} ({error.strerror or error}): going on "
                "without; set FEDJAX_LITE_CACHE or cache_dir to a folder that can be written",
                RuntimeWarning,
                stacklevel=2,
            )
        return splits
    return _read(folder, manifest) or splits


def _stamp(path: Path) -> dict[str, Any]:
    stat = path.stat()
    return {"path": str(path), "size": stat.st_size, "mtime_ns": stat.st_mtime_ns}


def _read(folder: Path, manifest: dict[str, Any]) -> Splits | None:
    """The cached arrays, or None if they are absent, stale or damaged."""
    for _ in range(5):
        inode = _inode(folder)
        try:
            return _read_once(folder, manifest)
        # The digests agree with what was written: all else is damage.
        except (OSError, ValueError, AttributeError, KeyError, TypeError, RecursionError) as error:
            if inode is None:
                return None
            if inode == _inode(folder):
                _LOG.warning("rebuilding the damaged cache %s (%s)", folder, error)
                return None
        # Another process has swapped it meanwhile: what is there now?
    return None


def _inode(folder: Path) -> int | None:
    try:
        return folder.stat().st_ino
    except OSError:
        return None


def _read_once(folder: Path, manifest: dict[str, Any]) -> Splits | None:
    stored = _read_manifest(folder / _MANIFEST)
    described = stored.pop("arrays")
    # Through JSON, as tuples among the options become lists there.
    if stored != json.loads(json.dumps(manifest)):
        return None
    splits: dict[str, Arrays] = {"train": {}, "test": {}}
    for entry in described:
        splits[entry["split"]][entry["key"]] = _open_whole(folder, entry)
    return splits["train"], splits["test"]


def _read_manifest(path: Path) -> dict[str, Any]:
    if path.stat().st_size > _MAX_MANIFEST:
        raise ValueError("its manifest is too long")
    stored = json.loads(path.read_text(encoding="utf-8"))
    digest = stored.pop("digest", None)
    if digest is None and stored["layout"] == 1:  # of an earlier version, without digests
        return stored
    if digest != _digest_of(stored):
        raise ValueError("its manifest is not what was written")
    return stored


def _digest_of(manifest: Mapping[str, Any]) -> str:
    return hashlib.sha256(json.dumps(manifest, sort_keys=True).encode()).hexdigest()


def _open_whole(folder: Path, entry: Mapping[str, Any]) -> np.ndarray:
    """A cached array, after its file's digest was compared."""
    path = folder / entry["file"]
    with path.open("rb") as file:
        if hashlib.file_digest(file, "sha256").hexdigest() != entry["sha256"]:
            raise ValueError(f"{path.name} is not what was written")
        # Of this very file: by now another process may have put another one in its place.
        return map_npy(file, path, kinds="biufcSU")


def _write(folder: Path, manifest: dict[str, Any], splits: Splits) -> None:
    """Writes a new cache beside the old one and swaps them by renaming, one process at a time."""
    import filelock

    locks = folder.parent.parent / "locks"
    for place in (folder.parent, locks):
        place.mkdir(parents=True, exist_ok=True)
    try:
        # The system gives the lock up with the process that holds it.
        with filelock.FileLock(locks / folder.name, timeout=_LOCK_SECONDS):
            for left in folder.parent.glob(f".{folder.name}.writing-*"):
                shutil.rmtree(left, ignore_errors=True)  # by a process that was killed
            _write_alone(folder, manifest, splits)
    except filelock.Timeout as error:
        raise OSError(f"another process has been writing it for {_LOCK_SECONDS:g} s") from error


def _write_alone(folder: Path, manifest: dict[str, Any], splits: Splits) -> None:
    temporary = Path(tempfile.mkdtemp(prefix=f".{folder.name}.writing-", dir=folder.parent))
    try:
        fresh = temporary / "new"
        fresh.mkdir()
        described = []
        for split, arrays in zip(("train", "test"), splits):
            for number, (key, array) in enumerate(arrays.items()):
                path = fresh / f"{split}-{number}.npy"
                with path.open("wb") as file:
                    sink = _HashingSink(file)
                    np.save(sink, np.asarray(array, order="C"), allow_pickle=False)
                described.append(
                    {
                        "split": split,
                        "key": key,
                        "file": path.name,
                        "sha256": sink.digest.hexdigest(),
                    }
                )
        whole = json.loads(json.dumps({**manifest, "arrays": described}))
        text = json.dumps({**whole, "digest": _digest_of(whole)}, indent=1)
        (fresh / _MANIFEST).write_text(text, encoding="utf-8")
        # Absent where this is the first; a lock that does not hold everywhere (some network
        # file systems) can also let another process swap it at this moment.
        with contextlib.suppress(FileNotFoundError):
            os.replace(folder, temporary / "old")
        try:
            os.replace(fresh, folder)
        except OSError:
            # Another process was quicker: its cache is as good as ours.
            if not (folder / _MANIFEST).exists():
                raise
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


class _HashingSink:
    """A file for writing that digests what goes through."""

    def __init__(self, file: Any) -> None:
        self._file, self.digest = file, hashlib.sha256()

    def write(self, data: Any) -> int:
        self.digest.update(data)
        return self._file.write(data)
