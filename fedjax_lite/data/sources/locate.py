"""Where a data set is: the search order over folders, prepared TFDS data and the network."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from fedjax_lite.checks.arguments import as_path
from fedjax_lite.data.formats.errors import DatasetNotFoundError
from fedjax_lite.data.sources import tfds as tfds_source
from fedjax_lite.data.sources.cache import default_cache_dir
from fedjax_lite.data.sources.download import DownloadError, fetch
from fedjax_lite.data.sources.source import Candidate, Provenance, Source


def search_folders(
    source: Source, *, data_dir: str | os.PathLike[str] | None, cache_dir: Path
) -> list[tuple[str, Path]]:
    """The folders to look into, in order, each with the reason why."""
    folders = []
    if data_dir is not None:
        folders.append(("data_dir", as_path(data_dir, "data_dir")))
    if given := os.environ.get("FEDJAX_LITE_DATA"):
        folders.append(("FEDJAX_LITE_DATA", as_path(given, "FEDJAX_LITE_DATA")))
    folders.append(("cache", cache_dir / "downloads" / source.name))
    folders += [("system", folder) for folder in source.folders]
    return folders


def tfds_folders(data_dir: str | os.PathLike[str] | None) -> list[Path]:
    """The folders that may hold prepared TFDS data, in order."""
    given = {"data_dir": data_dir}
    given |= {name: os.environ.get(name) or None for name in ("FEDJAX_LITE_DATA", "TFDS_DATA_DIR")}
    folders = [as_path(folder, name) for name, folder in given.items() if folder is not None]
    return [*folders, Path.home() / "tensorflow_datasets"]


def locate(
    source: Source,
    *,
    data_dir: str | os.PathLike[str] | None = None,
    cache_dir: str | os.PathLike[str] | None = None,
    download: bool = False,
) -> Candidate:
    """Finds a data set's files.

    In this order: `data_dir`; the folder of the environment variable ``FEDJAX_LITE_DATA``; the
    download folder in the cache; the folder of a system package; a prepared TFDS folder in any of
    these, in ``TFDS_DATA_DIR`` or in ``~/tensorflow_datasets``; the network, if `download`.

    Args:
      source: the data set.
      data_dir: a folder to look into first.
      cache_dir: the cache folder, see `default_cache_dir`.
      download: whether the network may be used if nothing else works.

    Returns:
      A complete `Candidate`.

    Raises:
      DatasetNotFoundError: with a reason for every place and all the ways to get the data.
    """
    if source.local:
        return Candidate(source.local, ())
    cache = default_cache_dir(cache_dir)
    reasons = []
    for why, folder in search_folders(source, data_dir=data_dir, cache_dir=cache):
        found = source.find(folder) if folder.is_dir() else []
        for candidate in found:
            if not candidate.missing:
                return candidate
            reasons.append(
                f"{why} {folder}: {candidate.layout} layout, but without "
                f"{', '.join(candidate.missing)}"
            )
        if not found:
            lack = "no such files in it" if folder.is_dir() else "no such folder"
            reasons.append(f"{why} {folder}: {lack}")
    if source.tfds is not None:
        candidate, reason = tfds_source.find_prepared(source.tfds, tfds_folders(data_dir))
        if candidate is not None:
            return candidate
        reasons.append(reason)
    if source.remotes and download:
        folder = cache / "downloads" / source.name
        try:
            for remote in source.remotes:
                fetch(remote, folder)
        except DownloadError as error:
            reasons.append(f"download: {error}")
        else:
            return next(found for found in source.find(folder) if not found.missing)
    elif source.remotes:
        reasons.append("download: not tried, as download=False")
    raise DatasetNotFoundError(source.name, reasons=reasons, remedies=_remedies(source))


def _remedies(source: Source) -> list[str]:
    remedies = []
    if source.remotes:
        urls = ", ".join(remote.urls[0] for remote in source.remotes)
        remedies.append(f"with a network connection, load({source.name!r}, download=True)")
        remedies.append(f"get {urls} elsewhere and name the folder as data_dir")
    remedies += source.remedies
    remedies.append("set the environment variable FEDJAX_LITE_DATA to the folder that holds it")
    if source.tfds is not None:
        remedies.append(
            f"prepare it where TensorFlow is: tfds build {source.tfds} --file_format=array_record, "
            "and name the folder as data_dir or TFDS_DATA_DIR"
        )
    remedies.append('try without any data at hand: load("digits") comes with scikit-learn')
    return remedies


def provenance(
    source: Source, candidate: Candidate, *, cache_dir: Path, options: Mapping[str, Any]
) -> Provenance:
    """The record of what `candidate` is."""
    downloads = cache_dir / "downloads" / source.name
    known = {remote.filename: remote.urls[0] for remote in source.remotes}
    urls = [known[f.name] for f in candidate.files if f.parent == downloads and f.name in known]
    files = tuple(str(path.absolute()) for path in candidate.files)
    return Provenance(source.name, candidate.layout, files, tuple(urls), dict(options))
