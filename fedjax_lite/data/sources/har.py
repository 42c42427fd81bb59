"""Smartphone activity by person: windows of 2.56 s of nine inertial signals.

Anguita, Ghio, Oneto, Parra, Reyes-Ortiz, "A Public Domain Dataset for Human Activity Recognition
Using Smartphones", 2013.
"""

from __future__ import annotations

import zipfile
from pathlib import Path

import numpy as np

from fedjax_lite.data.formats.errors import DatasetFormatError
from fedjax_lite.data.sources.cache import Arrays, Splits
from fedjax_lite.data.sources.source import Candidate, Source

ACTIVITIES = ("walking", "upstairs", "downstairs", "sitting", "standing", "laying")
"""What `y` numbers."""
SIGNALS = tuple(
    f"{kind}_{axis}" for kind in ("body_acc", "body_gyro", "total_acc") for axis in "xyz"
)
"""The nine channels of `x`, at 50 Hz: accelerations in g, angular velocities in rad/s."""
STEPS = 128
"""Samples of a window; it shares the first half with the window before it."""

_PARTS = ("train", "test")
_FOLDERS = ("UCI HAR Dataset", "uci_har", "har")
_PACKED = "uci_har.npz"
_UNIT = 4096
"""Packed signals are whole multiples of a 4096th, differenced in time."""
_MAX_PACKED = 1 << 27


def _files(place: Path, part: str) -> list[Path]:
    signals = [place / part / "Inertial Signals" / f"{name}_{part}.txt" for name in SIGNALS]
    return [*signals, *(place / part / f"{name}_{part}.txt" for name in ("y", "subject"))]


def _find(folder: Path) -> list[Candidate]:
    candidates = []
    for place in (*(folder / name for name in _FOLDERS), folder):
        files = [path for part in _PARTS for path in _files(place, part)]
        there = tuple(path for path in files if path.is_file())
        if there:
            missing = tuple(path.name for path in files if not path.is_file())
            candidates.append(Candidate("text", there, missing))
        if (place / _PACKED).is_file():
            candidates.append(Candidate("packed", (place / _PACKED,)))
    return candidates


def _read(candidate: Candidate) -> Splits:
    if candidate.layout == "packed":
        return _packed(candidate.files[0])
    half = len(candidate.files) // 2
    return _text(candidate.files[:half]), _text(candidate.files[half:])


def _text(files: tuple[Path, ...]) -> Arrays:
    """One part in its authors' layout: a file a signal, a line a window."""
    *signals, labels, people = files
    x = np.stack([_table(path, STEPS) for path in signals], axis=-1)
    y, subject = (_table(path, 1)[:, 0] for path in (labels, people))
    return _checked(x, y - 1, subject - 1, labels)


def _table(path: Path, width: int) -> np.ndarray:
    try:
        numbers = np.array(path.read_text(encoding="ascii").split(), np.float32)
    except ValueError as error:  # also what is not plain text
        raise DatasetFormatError(path, expected="numbers", found=str(error)) from error
    if not len(numbers) or len(numbers) % width or not np.isfinite(numbers).all():
        expected = f"finite numbers, {width} a line"
        raise DatasetFormatError(path, expected=expected, found=f"{len(numbers)} numbers")
    return numbers.reshape(-1, width)


def _packed(path: Path) -> Splits:
    """Both parts in one file: ``d`` int16 `[E, 9, 128]`, ``labels``, ``subject``, ``is_test``."""
    names = ("d", "labels", "subject", "is_test")
    try:
        with zipfile.ZipFile(path) as archive:
            size = sum(info.file_size for info in archive.infolist())
        if size > _MAX_PACKED:
            raise ValueError(f"{size} bytes")
        with np.load(path, allow_pickle=False) as file:
            d, labels, subject, is_test = (file[name] for name in names)
    except (ValueError, KeyError, EOFError, OSError, zipfile.BadZipFile) as error:
        expected = f"an archive of the arrays {', '.join(names)}"
        raise DatasetFormatError(path, expected=expected, found=str(error)) from error
    if d.dtype != np.int16 or d.shape[1:] != (len(SIGNALS), STEPS):
        found = f"{d.dtype}{list(d.shape)}"
        raise DatasetFormatError(path, expected="int16 [E, 9, 128] under d", found=found)
    if any(one.shape != (len(d),) for one in (labels, subject, is_test)):
        found = str([one.shape for one in (labels, subject, is_test)])
        raise DatasetFormatError(path, expected=f"{len(d)} of each array", found=found)
    x = d.cumsum(2, dtype=np.int16).transpose(0, 2, 1).astype(np.float32) / _UNIT
    rows = is_test.astype(bool)
    labels, subject = labels.astype(np.int32), subject.astype(np.int32) - 1
    train, test = (_checked(x[one], labels[one], subject[one], path) for one in (~rows, rows))
    return train, test


def _checked(x: np.ndarray, y: np.ndarray, subject: np.ndarray, path: Path) -> Arrays:
    found = {"y": y.astype(np.int32), "subject": subject.astype(np.int32)}
    counts = {len(x), len(y), len(subject)}
    if len(counts) > 1:
        expected = "as many windows of each signal as labels and subjects"
        raise DatasetFormatError(path, expected=expected, found=str(sorted(counts)))
    for name, most in (("y", len(ACTIVITIES)), ("subject", 30)):
        if len(y) and not (0 <= found[name].min() <= found[name].max() < most):
            low, high = found[name].min() + 1, found[name].max() + 1
            expected = f"{name} from 1 to {most}"
            raise DatasetFormatError(path, expected=expected, found=f"{low} to {high}")
    return {"x": x, **found}


SOURCES = (
    Source(
        name="uci_har",
        find=_find,
        read=_read,
        description=(
            'UCI human activity recognition by smartphone, 30 people ("subject"), 7,352 + 2,947 '
            "windows of 128 x 9, 6 classes; to be put in place by hand"
        ),
        remedies=(
            "get the archive from https://archive.ics.uci.edu/dataset/240/"
            "human+activity+recognition+using+smartphones, unpack it (a folder 'UCI HAR Dataset' "
            "with train/ and test/) and name the folder above it as data_dir",
        ),
    ),
)
