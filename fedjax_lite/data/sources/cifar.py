"""CIFAR-10 and CIFAR-100 in the authors' layouts: binary or Python, folder or archive.

Krizhevsky, "Learning Multiple Layers of Features from Tiny Images", 2009.
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import numpy as np

from fedjax_lite.data.formats.archive import read_members
from fedjax_lite.data.formats.errors import DatasetFormatError
from fedjax_lite.data.formats.safe_pickle import load_plain
from fedjax_lite.data.sources import tfds as tfds_source
from fedjax_lite.data.sources.cache import Arrays, Splits
from fedjax_lite.data.sources.download import Remote
from fedjax_lite.data.sources.source import Candidate, Source

_LOG = logging.getLogger("fedjax_lite")
_PIXELS = 3 * 32 * 32


class _Variant(NamedTuple):
    """The names that tell CIFAR-10 from CIFAR-100."""

    stem: str
    """Of the archives, ``<stem>-binary.tar.gz``."""
    folders: tuple[str, str]
    """Of the binary and of the Python layout."""
    train: tuple[str, ...]
    test: str
    labels: tuple[tuple[str, str, int], ...]
    """Label bytes in order: our key, the key in the Python layout, classes."""
    rows: int
    """Of each training file in the official data."""


_CIFAR10 = _Variant(
    "cifar-10",
    ("cifar-10-batches-bin", "cifar-10-batches-py"),
    tuple(f"data_batch_{number}" for number in range(1, 6)),
    "test_batch",
    (("y", "labels", 10),),
    10_000,
)
_CIFAR100 = _Variant(
    "cifar-100",
    ("cifar-100-binary", "cifar-100-python"),
    ("train",),
    "test",
    (("coarse", "coarse_labels", 20), ("y", "fine_labels", 100)),
    50_000,
)


def to_images(rows: np.ndarray) -> np.ndarray:
    """Turns channel-first rows into images, channels last.

    A row holds 1,024 red, then 1,024 green, then 1,024 blue values, each plane row by row, so
    ``image[i, j, c] = row[1024 c + 32 i + j]``. A plain reshape to (32, 32, 3) scrambles them.

    Args:
      rows: uint8 `[E, 3072]`.

    Returns:
      uint8 `[E, 32, 32, 3]`.

    Example:
      >>> to_images(np.arange(3072).reshape(1, -1) // 1024)[0, 5, 7].tolist()
      [0, 1, 2]
    """
    return np.ascontiguousarray(rows.reshape(-1, 3, 32, 32).transpose(0, 2, 3, 1))


def parse_binary(content: bytes, variant: _Variant, path: Path | str) -> Arrays:
    """Parses a file of the binary layout: label bytes, then 3,072 pixel bytes, row after row."""
    width = len(variant.labels) + _PIXELS
    if not content or len(content) % width:
        raise DatasetFormatError(
            path,
            expected=f"rows of {width} bytes ({len(variant.labels)} label, {_PIXELS} pixels)",
            found=f"{len(content):,} bytes, {len(content) % width} too many for whole rows"
            if content
            else "an empty file",
        )
    table = np.frombuffer(content, np.uint8).reshape(-1, width)
    columns = {key: table[:, place] for place, (key, _, _) in enumerate(variant.labels)}
    return _examples(table[:, len(variant.labels) :], columns, variant, path)


def parse_python(content: bytes, variant: _Variant, path: Path | str) -> Arrays:
    """Parses a file of the Python layout: a pickled dict with ``data`` and label lists."""
    loaded = load_plain(content, path=path)
    del content  # what of it the array does not need is of no more use
    if not isinstance(loaded, dict):
        raise DatasetFormatError(path, expected="a dict", found=f"a {type(loaded).__name__}")
    named = {k.decode("latin-1") if isinstance(k, bytes) else k: v for k, v in loaded.items()}
    entries = {key: named.get(key) for key in ("data", *(name for _, name, _ in variant.labels))}
    del loaded, named  # with ten thousand names of files
    rows = entries["data"]
    if (
        not isinstance(rows, np.ndarray)
        or rows.dtype != np.uint8
        or rows.ndim != 2
        or rows.shape[1] != _PIXELS
        or not len(rows)
    ):
        found = f"{rows.dtype} {list(rows.shape)}" if isinstance(rows, np.ndarray) else "none"
        raise DatasetFormatError(
            path, expected=f"an entry 'data', a uint8 array [E, {_PIXELS}]", found=found
        )
    columns = {}
    for key, theirs, _ in variant.labels:
        values = entries[theirs]
        listed = values if isinstance(values, list) else []
        kinds = sorted({type(value).__name__ for value in listed})
        if len(listed) != len(rows) or kinds != ["int"]:
            found = f"{'int64' if kinds == ['int'] else kinds} [{len(listed)}]"
            raise DatasetFormatError(
                path,
                expected=f"an entry {theirs!r} with {len(rows)} integers",
                found="none" if values is None else found,
            )
        columns[key] = np.array(listed, np.int64)
    return _examples(rows, columns, variant, path)


def _examples(rows: np.ndarray, columns: Arrays, variant: _Variant, path: Path | str) -> Arrays:
    for key, name, classes in variant.labels:
        low, high = int(columns[key].min()), int(columns[key].max())
        if low < 0 or high >= classes:
            raise DatasetFormatError(
                path,
                expected=f"{name} in 0..{classes - 1}",
                found=f"{low}..{high}",
                remedy="the file is corrupt or of another data set; get the official one",
            )
    labels = {key: columns[key].astype(np.int32) for key in sorted(columns, reverse=True)}
    return {"x": to_images(rows), **labels}


def _find(variant: _Variant) -> Callable[[Path], list[Candidate]]:
    def find(folder: Path) -> list[Candidate]:
        candidates = []
        bases = (folder, folder / variant.stem.replace("-", ""))
        names = (*variant.train, variant.test)
        # Without pickles first.
        for layout, name, suffix, archive in (
            ("binary", variant.folders[0], ".bin", f"{variant.stem}-binary.tar.gz"),
            ("python", variant.folders[1], "", f"{variant.stem}-python.tar.gz"),
        ):
            for base in bases:
                for place in (base / name, base):
                    files = [place / f"{stem}{suffix}" for stem in names]
                    there = tuple(path for path in files if path.is_file())
                    # Names as plain as "train" count as CIFAR's only where all are there.
                    if there and (place != base or len(there) == len(files)):
                        missing = tuple(path.name for path in files if not path.is_file())
                        candidates.append(Candidate(layout, there, missing))
                if (base / archive).is_file():
                    candidates.append(Candidate(f"{layout} archive", (base / archive,)))
        return candidates

    return find


def _read(variant: _Variant) -> Callable[..., Splits]:
    def read(candidate: Candidate) -> Splits:
        if candidate.layout == "tfds":
            return _from_tfds(candidate)
        binary = candidate.layout.startswith("binary")
        parse = parse_binary if binary else parse_python
        suffix, folder = (".bin" if binary else ""), variant.folders[0 if binary else 1]
        names = [f"{stem}{suffix}" for stem in (*variant.train, variant.test)]
        if candidate.layout.endswith("archive"):
            archive = candidate.files[0]
            members = read_members(archive, [f"{folder}/{name}" for name in names])
            parts = [
                parse(members.pop(f"{folder}/{name}"), variant, f"{archive}:{folder}/{name}")
                for name in names
            ]
        else:
            parts = [parse(path.read_bytes(), variant, path) for path in candidate.files]
        counts = [len(part["x"]) for part in parts]
        if counts != [variant.rows] * len(variant.train) + [10_000]:
            _LOG.warning(
                "%s holds %s images by file, the official data %s: not the whole data set",
                candidate.files[0].parent,
                counts,
                [variant.rows] * len(variant.train) + [10_000],
            )
        train, test = parts[:-1], parts[-1]
        return {key: np.concatenate([part[key] for part in train]) for key in test}, test

    return read


def _from_tfds(candidate: Candidate) -> Splits:
    train, test = tfds_source.read(candidate)
    for split in (train, test):
        if "coarse_label" in split:
            split["coarse"] = split.pop("coarse_label").astype(np.int32)
    return train, test


def _remote(stem: str, sha256: str, size: int) -> Remote:
    filename = f"{stem}-binary.tar.gz"
    return Remote(filename, (f"https://www.cs.toronto.edu/~kriz/{filename}",), sha256, size)


def _source(variant: _Variant, remote: Remote, description: str) -> Source:
    name = variant.stem.replace("-", "")
    return Source(
        name=name,
        find=_find(variant),
        read=_read(variant),
        description=description,
        remedies=(
            f"put the folder {variant.folders[0]} or {variant.folders[1]}, or the archive "
            f"{variant.stem}-binary.tar.gz or {variant.stem}-python.tar.gz, into a folder and "
            "name that folder as data_dir",
        ),
        remotes=(remote,),
        tfds=name,
    )


SOURCES = (
    _source(
        _CIFAR10,
        _remote(
            "cifar-10",
            "c4a38c50a1bc5f3a1c5537f2155ab9d68f9f25eb1ed8d9ddda3db29a59bca1dd",
            170_052_171,
        ),
        "CIFAR-10: 50,000 + 10,000 images 32x32x3, 10 classes; download of 170 MB",
    ),
    _source(
        _CIFAR100,
        _remote(
            "cifar-100",
            "58a81ae192c23a4be8b1804d68e518ed807d710a4eb253b1f2a199162a40d8ec",
            168_513_733,
        ),
        'CIFAR-100: as CIFAR-10, 100 classes in "y", 20 in "coarse"; download of 169 MB',
    ),
)
