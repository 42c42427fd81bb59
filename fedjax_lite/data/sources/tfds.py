"""Data sets prepared by TensorFlow Datasets, read without TensorFlow and without the network.

Only a prepared directory is ever opened. `tfds` itself would try to prepare what it does not find,
which cannot be done without TensorFlow and hangs where there is no network.
"""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from fedjax_lite.data.formats.errors import DatasetFormatError
from fedjax_lite.data.sources.cache import Arrays, Splits
from fedjax_lite.data.sources.source import Candidate, Source

_INFO = "dataset_info.json"
_NAME = re.compile(r"[a-zA-Z]\w*(/[\w.\-]+)?(:\d+\.\d+\.\d+)?")
_VERSION = re.compile(r"(\d+)\.(\d+)\.(\d+)")


def find_prepared(name: str, folders: Sequence[Path]) -> tuple[Candidate | None, str]:
    """Looks for a prepared data set.

    Args:
      name: ``NAME[/CONFIG][:VERSION]``; without a version the newest counts.
      folders: TFDS data folders, in order; a prepared set is ``NAME[/CONFIG]/VERSION/``.

    Returns:
      The candidate (its first file is ``dataset_info.json``) or None, and why it is None.

    Example:
      >>> find_prepared("mnist", [Path("/nowhere")])
      (None, 'prepared TFDS data: no mnist/**/dataset_info.json in /nowhere')
    """
    path, _, version = name.partition(":")
    for folder in folders:
        infos = [
            info
            for depth in (f"{path}/*/{_INFO}", f"{path}/*/*/{_INFO}")
            for info in folder.glob(depth)
            if _VERSION.fullmatch(info.parent.name) and version in ("", info.parent.name)
        ]
        if infos:
            newest = max(infos, key=lambda info: (_version(info.parent.name), str(info)))
            files = [newest, *sorted(p for p in newest.parent.iterdir() if p.name != newest.name)]
            return Candidate("tfds", tuple(file for file in files if file.is_file())), ""
    places = ", ".join(str(folder) for folder in dict.fromkeys(folders))
    return None, f"prepared TFDS data: no {name}/**/{_INFO} in {places}"


def _version(text: str) -> tuple[int, ...]:
    return tuple(int(part) for part in text.split("."))


def source(name: str) -> Source:
    """The `Source` of ``load("tfds:NAME")``.

    Args:
      name: ``NAME[/CONFIG][:VERSION]``.

    Returns:
      A source that looks in prepared TFDS folders only.

    Raises:
      ValueError: if the name has another form.

    Example:
      >>> source("mnist:3.0.1").name
      'tfds:mnist:3.0.1'
    """
    if not _NAME.fullmatch(name):
        raise ValueError(f"a TFDS name has the form NAME[/CONFIG][:X.Y.Z], got {name!r}")
    return Source(
        name=f"tfds:{name}",
        find=lambda folder: [],
        read=read,
        description=f"{name} of TensorFlow Datasets, prepared beforehand",
        remedies=(),
        tfds=name,
    )


def read(candidate: Candidate) -> Splits:
    """Reads a prepared data set, in the original order where its features have an ``id``.

    Args:
      candidate: as `find_prepared` gives it.

    Returns:
      ``(train, test)``. Features ``image`` and ``label`` become ``"x"`` and ``"y"`` (int32), ``id``
      orders the rows and goes; all else keeps its name (nested ones joined by ``/``). Test is the
      split ``test``, else ``validation``.

    Raises:
      DatasetFormatError: if files are damaged, of a format that needs TensorFlow, have no training
        or test split, or hold examples of differing shapes.
      ImportError: if tensorflow-datasets or array-record is not installed.
    """
    info_path = candidate.files[0]
    splits = _check_info(info_path)
    try:
        import array_record.python.array_record_data_source
        import tensorflow_datasets as tfds
    except ImportError as error:
        raise ImportError(
            f"{info_path.parent} is prepared TFDS data, but {error}; pip install "
            "tensorflow-datasets array-record importlib_resources pillow"
        ) from error
    del array_record
    try:
        builder: Any = tfds.builder_from_directory(str(info_path.parent))
        # One split at a time: raw dicts of a whole data set weigh more than its arrays.
        read_splits = [
            _arrays(list(builder.as_data_source(split=split)), info_path) for split in splits
        ]
    except DatasetFormatError:
        raise
    # Readers of three packages are behind this, each with errors of its own.
    except Exception as error:
        raise DatasetFormatError(
            info_path.parent,
            expected="a whole prepared TFDS data set",
            found=f"one that cannot be read ({type(error).__name__}: {error})",
            remedy="prepare it anew with tfds build --file_format=array_record",
        ) from error
    return read_splits[0], read_splits[1]


def _check_info(path: Path) -> tuple[str, str]:
    """Checks the format and returns the names of the training and the test split."""
    remedy = "prepare it anew with tfds build --file_format=array_record"
    try:
        info = json.loads(path.read_text(encoding="utf-8"))
        names = [split["name"] for split in info["splits"]]
        file_format = info.get("fileFormat", "tfrecord")
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise DatasetFormatError(
            path, expected="a TFDS dataset_info.json with splits", found=repr(error), remedy=remedy
        ) from error
    if file_format != "array_record":
        raise DatasetFormatError(
            path,
            expected="the file format array_record, which can be read without TensorFlow",
            found=f"the format {file_format}",
            remedy=remedy,
        )
    tests = [name for name in ("test", "validation") if name in names]
    if "train" not in names or not tests:
        raise DatasetFormatError(
            path,
            expected="the splits train and test (or validation)",
            found=f"{names}",
            remedy="read it with tfds.data_source and hand the arrays to fl.data.from_arrays",
        )
    return "train", tests[0]


def _arrays(records: list[Any], path: Path) -> Arrays:
    """Stacks records, sorted by their id."""
    if not records:
        raise DatasetFormatError(path, expected="examples in every split", found="an empty split")
    flat = [_flatten(record) for record in records]
    if "id" in flat[0]:
        flat.sort(key=lambda record: _natural(record["id"]))
    names = {"image": "x", "label": "y"} if {"image", "label"} <= set(flat[0]) else {}
    arrays = {}
    for key in sorted(flat[0], key=lambda key: (names.get(key, "z"), key)):
        if key == "id" and names:
            continue
        try:
            array = np.array([record[key] for record in flat])
        except (ValueError, KeyError) as error:
            raise _ragged(path, key) from error
        if array.dtype == object:
            raise _ragged(path, key)
        arrays[names.get(key, key)] = array.astype(np.int32) if names.get(key) == "y" else array
    return arrays


def _ragged(path: Path, key: str) -> DatasetFormatError:
    return DatasetFormatError(
        path,
        expected=f"examples of one shape in the feature {key!r}",
        found="differing shapes or kinds",
        remedy="read it with tfds.data_source, resize, and hand the arrays to fl.data.from_arrays",
    )


def _flatten(record: Any, prefix: str = "") -> dict[str, Any]:
    flat = {}
    for key, value in record.items():
        if isinstance(value, dict):
            flat |= _flatten(value, f"{prefix}{key}/")
        else:
            flat[f"{prefix}{key}"] = value
    return flat


def _natural(value: Any) -> Any:
    """Orders ``test_2`` before ``test_10``; numbers as they are."""
    if isinstance(value, bytes):
        value = value.decode("utf-8", "replace")
    if not isinstance(value, str):
        return (int(value), [])
    parts = re.split(r"(\d+)", value)
    return (0, [(int(part), "") if part.isdigit() else (-1, part) for part in parts])
