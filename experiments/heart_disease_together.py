"""Training rows of the four hospitals as FLamby's pooled training has them: standardised together.

Its federated methods, and all tests, have rows that are standardised by hospital.
"""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np

import fedjax_lite as fl
from fedjax_lite.data.sources.heart import HOSPITALS, read_hospital


def raw_training_rows(data_dir: Path | None) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """The benchmark's training rows of all hospitals in the files' order, not standardised.

    Args:
      data_dir: folder with heart_disease/processed.*.data; None: that of FEDJAX_LITE_DATA.

    Returns:
      ``(x, y, hospital)``: `[E, 13]`, `[E]`, `[E]`.

    Raises:
      FileNotFoundError: saying which files are wanted.
    """
    from sklearn.model_selection import train_test_split

    home = data_dir or Path(os.environ.get("FEDJAX_LITE_DATA", "."))
    places = [place for place in (home / "heart_disease", home) if any(place.glob("processed.*"))]
    if not places:
        raise FileNotFoundError(
            f"--data-dir must hold heart_disease/processed.*.data, {home} does not; set it, or "
            'leave "pooled together" out of --methods'
        )
    parts = []
    for place, hospital in enumerate(HOSPITALS):
        x, y = read_hospital(places[0] / f"processed.{hospital}.data")
        stratify = y if (np.bincount(y, minlength=2) > 2).all() else None
        train, _ = train_test_split(
            np.arange(len(y)), test_size=1.0 - 0.66, train_size=0.66, random_state=43,
            stratify=stratify,
        )  # fmt: skip
        train = np.sort(train)
        parts.append((x[train], y[train], np.full(len(train), place)))
    x, y, hospital = (np.concatenate(leaves) for leaves in zip(*parts, strict=True))
    return x, y, hospital


def together(data_dir: Path | None) -> fl.data.FederatedDataset:
    """One client with all rows: ``x`` `[E, 13]` of mean 0 and deviation 1, and ``y`` `[E]`."""
    x, y, _ = raw_training_rows(data_dir)
    scaled = ((x - x.mean(0)) / x.std(0, ddof=1)).astype(np.float32)
    return fl.data.from_arrays({"x": scaled, "y": y}, np.zeros(len(y), int))
