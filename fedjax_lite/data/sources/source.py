"""How one data set is found and read, and which data were really used."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

from fedjax_lite.data.sources.cache import Splits
from fedjax_lite.data.sources.download import Remote


class Candidate(NamedTuple):
    """A layout of a data set in some folder."""

    layout: str
    """Its name, e.g. ``"binary"``."""
    files: tuple[Path, ...]
    """The files that are there."""
    missing: tuple[str, ...] = ()
    """The files that are not; empty if it can be read."""


class Source(NamedTuple):
    """How one data set is found and read; the registry of `load.py` holds one for each."""

    name: str
    find: Callable[[Path], list[Candidate]]
    """``(folder) -> candidates``, the preferred first; those without any file left out."""
    read: Callable[..., Splits]
    """``(candidate, **options) -> (train, test)``."""
    description: str
    """One line for the list of data sets."""
    remedies: tuple[str, ...]
    """How to get it by hand."""
    remotes: tuple[Remote, ...] = ()
    """What to download; after that `find` must succeed in the folder."""
    folders: tuple[Path, ...] = ()
    """Places outside the usual ones, e.g. of a Linux distribution's package."""
    tfds: str | None = None
    """Its name at TensorFlow Datasets."""
    options: Mapping[str, Any] = {}
    """The reader's options and their defaults."""
    version: int = 1
    """The reader's; raised when its output changes, which makes caches stale."""
    cached: bool = True
    """False if reading is as quick as a cache."""
    local: str = ""
    """Where it is made on the spot or comes with a package, how: there is nothing to look for."""


class Provenance(NamedTuple):
    """Which data were really used, to be recorded with an experiment."""

    name: str
    layout: str
    """E.g. ``"binary"``, ``"python archive"``, ``"idx"``, ``"tfds"``, ``"generated"``."""
    files: tuple[str, ...]
    """Absolute paths; empty for generated data."""
    urls: tuple[str, ...]
    """Where the files were downloaded from; empty if they were put there by hand."""
    options: dict[str, Any]
