"""Heart disease by hospital, prepared as FLamby does.

Janosi et al., UCI Machine Learning Repository, 1988; Ogier du Terrail et al., "FLamby", 2022,
arXiv:2210.04620.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np

from fedjax_lite.data.formats.errors import DatasetFormatError
from fedjax_lite.data.sources.cache import Arrays, Splits
from fedjax_lite.data.sources.source import Candidate, Source

HOSPITALS = ("cleveland", "hungarian", "switzerland", "va")
FEATURES = (
    *("age", "sex", "trestbps", "chol", "fbs", "thalach", "exang", "oldpeak"),
    *("cp_2", "cp_3", "cp_4", "restecg_1", "restecg_2"),
)
"""The 13 columns of `x`."""

_COLUMNS = (
    *("age", "sex", "cp", "trestbps", "chol", "fbs", "restecg"),
    *("thalach", "exang", "oldpeak", "slope", "ca", "thal", "num"),
)
_DROPPED = ("slope", "ca", "thal")
_LEVELS = {"cp": (1, 2, 3, 4), "restecg": (0, 1, 2)}


def _find(folder: Path) -> list[Candidate]:
    candidates = []
    for place in (folder / "heart_disease", folder):
        files = [place / f"processed.{hospital}.data" for hospital in HOSPITALS]
        there = tuple(path for path in files if path.is_file())
        if there:
            missing = tuple(path.name for path in files if not path.is_file())
            candidates.append(Candidate("uci", there, missing))
    return candidates


def read_hospital(path: Path) -> tuple[np.ndarray, np.ndarray]:
    r"""Reads one hospital's complete rows, not yet standardised.

    The columns slope, ca and thal are dropped, then rows with a missing value; cp and restecg
    become one-hot without their first level; the label is ``num > 0``.

    Args:
      path: ``processed.<hospital>.data``: 14 comma-separated columns, ``?`` is missing.

    Returns:
      ``(x, y)``: float64 `[E, 13]` in the order of `FEATURES`, int32 `[E]`.

    Raises:
      DatasetFormatError: naming the line that is not as it should be.

    Example:
      >>> import pathlib, tempfile
      >>> path = pathlib.Path(tempfile.mkdtemp()) / "processed.va.data"
      >>> _ = path.write_text("63,1,4,140,260,0,1,112,1,3,2,?,?,2\n")
      >>> x, y = read_hospital(path)
      >>> x[0].tolist()[-5:], y.tolist()
      ([0.0, 0.0, 1.0, 1.0, 0.0], [1])
    """
    rows = []
    expected = "14 comma-separated numbers or ?"
    for number, line in enumerate(_lines(path), start=1):
        if not line.strip():
            continue
        fields = [field.strip() for field in line.split(",")]
        try:
            row = [np.nan if field == "?" else float(field) for field in fields]
        except ValueError as error:
            found = f"line {number}: {error}"
            raise DatasetFormatError(path, expected=expected, found=found) from error
        if np.isinf(row).any():
            raise DatasetFormatError(path, expected=expected, found=f"line {number}: infinity")
        if len(row) != len(_COLUMNS):
            found = f"line {number} with {len(row)}"
            raise DatasetFormatError(path, expected=expected, found=found)
        rows.append(row)
    if not rows:
        raise DatasetFormatError(path, expected=expected, found="an empty file")
    table = dict(zip(_COLUMNS, np.array(rows).T))
    kept = {name: column for name, column in table.items() if name not in _DROPPED}
    complete = ~np.isnan(np.stack(list(kept.values()))).any(axis=0)
    kept = {name: column[complete] for name, column in kept.items()}
    for name, levels in {**_LEVELS, "num": (0, 1, 2, 3, 4)}.items():
        strange = kept[name][~np.isin(kept[name], levels)]
        if len(strange):
            raise DatasetFormatError(
                path, expected=f"{name} among {levels}", found=f"{strange[0]:g}"
            )
    columns = [column for name, column in kept.items() if name not in _LEVELS and name != "num"]
    columns += [kept[name] == level for name, levels in _LEVELS.items() for level in levels[1:]]
    return np.stack(columns, axis=1).astype(np.float64), (kept["num"] > 0).astype(np.int32)


def one_hospital(path: Path) -> Splits:
    r"""Train and test rows of one hospital's file, as `load` has them, for its own machine.

    Args:
      path: ``processed.<hospital>.data``.

    Returns:
      ``(train, test)``, dicts of ``x`` float32 `[E, 13]`, ``y`` and ``hospital`` int32 `[E]`.

    Raises:
      DatasetFormatError: as `read_hospital`, and where the file is of no hospital.

    Example:
      >>> import pathlib, tempfile
      >>> path = pathlib.Path(tempfile.mkdtemp()) / "processed.va.data"
      >>> line = "{},1,4,140,260,0,1,112,1,3,2,?,?,{}"
      >>> _ = path.write_text("\n".join(line.format(60 + i, i % 2) for i in range(9)))
      >>> train, test = one_hospital(path)
      >>> len(train["y"]), len(test["y"]), train["hospital"][0].item()
      (5, 4, 3)
    """
    names = [f"processed.{hospital}.data" for hospital in HOSPITALS]
    if path.name not in names:
        raise DatasetFormatError(path, expected=f"one of {', '.join(names)}", found=path.name)
    return _split(names.index(path.name), *read_hospital(path), path)


def _lines(path: Path) -> list[str]:
    try:
        return path.read_text(encoding="ascii").splitlines()
    except UnicodeDecodeError as error:
        raise DatasetFormatError(path, expected="plain text", found=str(error)) from error


def _read(candidate: Candidate) -> Splits:
    parts = [
        _split(index, *read_hospital(path), path) for index, path in enumerate(candidate.files)
    ]
    return _join([train for train, _ in parts]), _join([test for _, test in parts])


def _split(hospital: int, x: np.ndarray, y: np.ndarray, path: Path) -> Splits:
    """Splits 66 / 34, stratified where each class has over two rows, and standardises.

    Mean and (unbiased) deviation are those of the training rows; a column that is constant there
    is only centred.
    """
    from sklearn.model_selection import train_test_split

    if len(y) < 4:
        raise DatasetFormatError(
            path, expected="four or more complete rows", found=f"{len(y)} of them"
        )
    counts = np.bincount(y, minlength=2)
    train, test = train_test_split(
        np.arange(len(y)),
        test_size=1.0 - 0.66,
        train_size=0.66,
        random_state=43,
        stratify=y if (counts > 2).all() else None,
    )
    # In the order of the file.
    train, test = np.sort(train), np.sort(test)
    mean, deviation = x[train].mean(axis=0), x[train].std(axis=0, ddof=1)
    scaled = ((x - mean) / np.where(deviation > 0, deviation, 1.0)).astype(np.float32)
    return _rows(scaled[train], y[train], hospital), _rows(scaled[test], y[test], hospital)


def _rows(x: np.ndarray, y: np.ndarray, hospital: int) -> Arrays:
    return {"x": x, "y": y, "hospital": np.full(len(y), hospital, np.int32)}


def _join(parts: list[Arrays]) -> Arrays:
    return {key: np.concatenate([part[key] for part in parts]) for key in parts[0]}


SOURCES = (
    Source(
        name="heart_disease",
        find=_find,
        read=_read,
        description=(
            'UCI heart disease of four hospitals ("hospital"), 486 + 254 rows, 13 features, '
            "2 classes; four files to be put in place by hand"
        ),
        remedies=(
            "get processed.cleveland.data, processed.hungarian.data, processed.switzerland.data "
            "and processed.va.data from https://archive.ics.uci.edu/dataset/45/heart+disease, put "
            "them into a folder heart_disease/ and name the folder above it as data_dir",
        ),
        cached=False,
    ),
)
