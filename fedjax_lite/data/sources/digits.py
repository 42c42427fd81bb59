"""scikit-learn's handwritten digits: real data that come with a package, for work offline.

Alpaydin and Kaynak, "Cascading classifiers", 1998 (the test part of UCI's optdigits).
"""

from __future__ import annotations

import numpy as np

from fedjax_lite.data.formats.errors import DatasetNotFoundError
from fedjax_lite.data.sources.cache import Splits
from fedjax_lite.data.sources.source import Candidate, Source


def _read(candidate: Candidate) -> Splits:
    del candidate
    try:
        from sklearn.datasets import load_digits
        from sklearn.model_selection import train_test_split
    except ImportError as error:
        raise DatasetNotFoundError(
            "digits",
            reasons=[f"it comes with scikit-learn, which cannot be imported ({error})"],
            remedies=["pip install scikit-learn"],
        ) from error
    x, y = load_digits(return_X_y=True)
    # Counts 0..16: as floats in [0, 1], since models take uint8 to mean 0..255.
    images = (np.asarray(x) / 16.0).astype(np.float32).reshape(-1, 8, 8, 1)
    labels = np.asarray(y).astype(np.int32)
    rows = np.arange(len(labels))
    train, test = train_test_split(rows, test_size=0.2, random_state=0, stratify=labels)
    return (
        {"x": images[train], "y": labels[train]},
        {"x": images[test], "y": labels[test]},
    )


SOURCES = (
    Source(
        name="digits",
        find=lambda folder: [],
        read=_read,
        description="scikit-learn's digits: 1,437 + 360 images 8x8x1, 10 classes; no download",
        remedies=(),
        cached=False,
        local="scikit-learn",
    ),
)
