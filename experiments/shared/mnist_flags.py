"""The flag of scripts whose data are MNIST as it comes."""

from __future__ import annotations

import dataclasses
from pathlib import Path


@dataclasses.dataclass(frozen=True)
class DataFlags:
    """The data."""

    data_dir: Path | None = None
    """Folder of the MNIST idx files (else FEDJAX_LITE_DATA, the cache, a download)."""
