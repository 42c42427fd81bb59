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

from fedjax_lite.checks import as_path

Arrays: TypeAlias = dict[str, np.ndarray]
"""``{"x": [E, ...], "y": [E], ...}``."""
Splits: TypeAlias = tuple[Arrays, Arrays]
"""``(train, test)``."""

_LOG = logging.getLogger("fedjax_lite")
_LAYOUT = 1
_MANIFEST = "manifest.json"
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
    and the options; if anything differs, or the cache is damaged, `parse` runs anew. The cache is
    written to a temporary folder and renamed, so readers never see half of one. A folder that
    cannot be written costs one warning, not the run.

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
    try:
        stored = json.loads((folder / _MANIFEST).read_text(encoding="utf-8"))
        described = stored.pop("arrays")
    except FileNotFoundError:
        return None
    except (OSError, ValueError, AttributeError, KeyError, TypeError) as error:
        _LOG.warning("rebuilding the damaged cache %s (%s)", folder, error)
        return None
    # Through JSON, as tuples among the options become lists there.
    if stored != json.loads(json.dumps(manifest)):
        return None
    splits: dict[str, Arrays] = {"train": {}, "test": {}}
    try:
        for entry in described:
            path = folder / entry["file"]
            # Cheap, and sees what the header of the array cannot tell.
            if path.stat().st_size != entry["bytes"]:
                raise ValueError(f"{path.name} has the wrong size")
            empty = 0 in entry["shape"]
            array = np.load(path, mmap_mode=None if empty else "r", allow_pickle=False)
            if list(array.shape) != entry["shape"] or array.dtype.str != entry["dtype"]:
                raise ValueError(f"{path.name} has the wrong shape or dtype")
            splits[entry["split"]][entry["key"]] = array
    except (OSError, ValueError, KeyError, TypeError, EOFError, SyntaxError) as error:
        _LOG.warning("rebuilding the damaged cache %s (%s)", folder, error)
        return None
    return splits["train"], splits["test"]


def _write(folder: Path, manifest: dict[str, Any], splits: Splits) -> None:
    """Writes a new cache beside the old one and swaps them by renaming."""
    folder.parent.mkdir(parents=True, exist_ok=True)
    temporary = Path(tempfile.mkdtemp(prefix=f".{folder.name}.", dir=folder.parent))
    try:
        fresh = temporary / "new"
        fresh.mkdir()
        described = []
        for split, arrays in zip(("train", "test"), splits):
            for number, (key, array) in enumerate(arrays.items()):
                path = fresh / f"{split}-{number}.npy"
                np.save(path, array, allow_pickle=False)
                described.append(
                    {
                        "split": split,
                        "key": key,
                        "file": path.name,
                        "bytes": path.stat().st_size,
                        "shape": list(array.shape),
                        "dtype": array.dtype.str,
                    }
                )
        text = json.dumps({**manifest, "arrays": described}, indent=1)
        (fresh / _MANIFEST).write_text(text, encoding="utf-8")
        # Gone already if another process swaps it at this moment.
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
