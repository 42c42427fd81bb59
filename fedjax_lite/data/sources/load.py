"""load(): every data set by its name. The registry, and the way from a name to arrays."""

from __future__ import annotations

import difflib
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from fedjax_lite.checks.arguments import as_path
from fedjax_lite.data.sources import cifar, digits, har, heart, idx, shakespeare
from fedjax_lite.data.sources import tfds as tfds_source
from fedjax_lite.data.sources.cache import Splits, cached, default_cache_dir
from fedjax_lite.data.sources.locate import locate, provenance
from fedjax_lite.data.sources.source import Provenance, Source

# By name, since the package exports a function that is called as its module is.
from fedjax_lite.data.sources.synthetic import SOURCES as SYNTHETIC

SOURCES: dict[str, Source] = {
    source.name: source
    for source in (
        *(*cifar.SOURCES, *idx.SOURCES, *shakespeare.SOURCES),
        *(*heart.SOURCES, *har.SOURCES, *digits.SOURCES, *SYNTHETIC),
    )
}
"""Every data set but those of TFDS, by name."""


def names() -> dict[str, str]:
    """The known data sets with one line on each; ``tfds:NAME`` comes on top of them.

    Returns:
      Descriptions by name.

    Example:
      >>> "cifar10" in names()
      True
    """
    return {name: source.description for name, source in SOURCES.items()}


def load(
    name: str,
    *,
    data_dir: str | os.PathLike[str] | None = None,
    cache_dir: str | os.PathLike[str] | None = None,
    download: bool = True,
    **options: Any,
) -> Splits:
    """Loads a data set as plain arrays: from files at hand, else from the network.

    Naming a data set is asking for it, so `download` is on by default; the network is used only
    when the files are nowhere to be found: not in `data_dir`, the folder of the environment
    variable ``FEDJAX_LITE_DATA``, the cache, a system package, or among prepared TFDS data
    (`data_dir`, ``TFDS_DATA_DIR``, ``~/tensorflow_datasets``), in this order. Downloads are checked
    against the authors' archives by sha256. Large data sets are parsed once and then mapped from
    the cache, read-only.

    ============= ======================================= ===================================
    name          x, y                                    further
    ============= ======================================= ===================================
    cifar10       uint8 `[E, 32, 32, 3]`, int32 `[E]`
    cifar100      as above, 100 classes                   ``coarse`` int32 `[E]`, 20 classes
    mnist         uint8 `[E, 28, 28, 1]`, int32 `[E]`     ``writer`` int32, if its files are there
    fashion_mnist uint8 `[E, 28, 28, 1]`, int32 `[E]`
    shakespeare   int32 `[E, T]` both, y = -1 on padding  ``role`` strings; ``sequence_length=80``
    heart_disease float32 `[E, 13]`, int32 `[E]`          ``hospital`` int32, 0..3
    uci_har       float32 `[E, 128, 9]`, int32 `[E]`      ``subject`` int32, 0..29
    digits        float32 `[E, 8, 8, 1]` in [0, 1], int32
    synthetic     float32 `[E, 60]`, int32 `[E]`          ``client`` int32; options of `synthetic`
    tfds:NAME     features ``image`` and ``label``        all other features by their names
    ============= ======================================= ===================================

    Args:
      name: of the data set; see `names`.
      data_dir: a folder to look into first.
      cache_dir: for downloads and parsed arrays; default ``FEDJAX_LITE_CACHE``, else
        ``XDG_CACHE_HOME`` or ``~/.cache``, there ``fedjax_lite``.
      download: whether the network may be used. The connection and every read time out after 10 s.
      **options: of the data set, as in the table.

    Returns:
      ``(train, test)``, dicts of numpy arrays. The values under a further key are the natural
      clients: ``from_arrays({"x": train["x"], "y": train["y"]}, train["writer"])``.

    Raises:
      DatasetNotFoundError: if there are no files; the message has the reasons and the remedies.
      DatasetFormatError: if a file is corrupt, cut short or another one than its name says.
      ValueError: if the name is unknown.
      TypeError: if an option is unknown.

    Example:
      >>> train, test = load("digits")
      >>> train["x"].shape, test["y"].shape
      ((1437, 8, 8, 1), (360,))
    """
    source, chosen = _lookup(name, options)
    data_dir, cache_dir = _places(data_dir, cache_dir)
    candidate = locate(source, data_dir=data_dir, cache_dir=cache_dir, download=download)
    if not source.cached:
        return source.read(candidate, **chosen)
    return cached(
        lambda: source.read(candidate, **chosen),
        cache_dir=default_cache_dir(cache_dir),
        name=source.name,
        files=[path.absolute() for path in candidate.files],
        version=source.version,
        options={"layout": candidate.layout, **chosen},
    )


def source_of(
    name: str,
    *,
    data_dir: str | os.PathLike[str] | None = None,
    cache_dir: str | os.PathLike[str] | None = None,
    **options: Any,
) -> Provenance:
    """Says where `load` with the same arguments takes a data set from; never uses the network.

    Args:
      name: of the data set.
      data_dir: as for `load`.
      cache_dir: as for `load`.
      **options: as for `load`.

    Returns:
      Layout, files, their address if they were downloaded, and all options: what an experiment
      records (``source_of(...)._asdict()`` is fit for JSON).

    Raises:
      DatasetNotFoundError: if there are no files (yet).

    Example:
      >>> source_of("digits").layout
      'scikit-learn'
    """
    source, chosen = _lookup(name, options)
    data_dir, cache_dir = _places(data_dir, cache_dir)
    candidate = locate(source, data_dir=data_dir, cache_dir=cache_dir)
    return provenance(source, candidate, cache_dir=default_cache_dir(cache_dir), options=chosen)


def _places(data_dir: Any, cache_dir: Any) -> list[Path | None]:
    """Both folders as paths, looked at also where the data set needs neither."""
    given = (("data_dir", data_dir), ("cache_dir", cache_dir))
    return [None if value is None else as_path(value, name) for name, value in given]


def _lookup(name: str, options: Mapping[str, Any]) -> tuple[Source, dict[str, Any]]:
    """The source of a name and its options, defaults filled in."""
    if not isinstance(name, str):
        raise TypeError(f"name must be a string, got {name!r}")
    if name.startswith("tfds:"):
        source = tfds_source.source(name.removeprefix("tfds:"))
    else:
        plain = {_plain(known): known for known in SOURCES}
        if _plain(name) not in plain:
            close = difflib.get_close_matches(_plain(name), plain, n=1)
            hint = f"did you mean {plain[close[0]]!r}? " if close else ""
            raise ValueError(
                f"unknown data set {name!r}; {hint}known are {', '.join(SOURCES)} and tfds:NAME"
            )
        source = SOURCES[plain[_plain(name)]]
    unknown = [option for option in options if option not in source.options]
    if unknown:
        known = ", ".join(source.options) or "none"
        raise TypeError(f"{source.name} has no option {unknown[0]!r}; its options: {known}")
    return source, {**source.options, **options}


def _plain(name: str) -> str:
    return name.lower().replace("-", "").replace("_", "")
