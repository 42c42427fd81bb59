"""Downloads with time-outs, checksums and a progress bar; the only module that uses the network.

Why not pooch: it has neither several addresses for one file, nor a bound on what a server may send
beyond the stated size, nor a time-out on each read, and takes `requests` with it; what would be
left of this module around it is as long as this module.
"""

from __future__ import annotations

import contextlib
import hashlib
import logging
import os
import sys
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

_LOG = logging.getLogger("fedjax_lite")
_CHUNK = 1 << 18
TIMEOUT_SECONDS = 10.0
"""For the connection and for every single read."""


class Remote(NamedTuple):
    """A file on the network: any of `urls` serves it, its checksum says that it is the one."""

    filename: str
    urls: tuple[str, ...]
    sha256: str
    size: int
    """Bytes."""


class DownloadError(OSError):
    """None of a file's addresses gave it; the message holds one reason for each."""


def open_url(url: str, timeout: float) -> Any:
    """Opens an address for reading; tests put another opener in its place."""
    request = urllib.request.Request(url, headers={"User-Agent": "fedjax_lite"})
    return urllib.request.urlopen(request, timeout=timeout)


def fetch(remote: Remote, folder: Path, *, timeout: float = TIMEOUT_SECONDS) -> Path:
    """Downloads a file into a folder, unless it is there already.

    The bytes go to a temporary name in the same folder and are moved only when their number and
    their checksum are right, so a broken download never looks like a whole file.

    Args:
      remote: what to download.
      folder: where to, made if need be.
      timeout: seconds for the connection and for every read.

    Returns:
      The file's path, ``folder / remote.filename``.

    Raises:
      DownloadError: if no address gives the right bytes, or the folder cannot be written.

    Example:
      >>> import pathlib, tempfile
      >>> folder = pathlib.Path(tempfile.mkdtemp())
      >>> _ = (folder / "a.bin").write_bytes(b"abc")
      >>> fetch(Remote("a.bin", ("https://example.org/a.bin",), "", 3), folder).name
      'a.bin'
    """
    path = folder / remote.filename
    if path.is_file() and path.stat().st_size == remote.size:
        return path
    temporary = folder / f".{remote.filename}.{os.getpid()}.part"
    try:
        folder.mkdir(parents=True, exist_ok=True)
        temporary.touch()
    except OSError as error:
        raise DownloadError(f"cannot write to {folder}: {error.strerror or error}") from error
    reasons = []
    try:
        for url in remote.urls:
            try:
                _transfer(url, temporary, remote, timeout)
            # ValueError: an address that urllib cannot parse, from a proxy setting for instance.
            except (OSError, ValueError, EOFError, _http_errors()) as error:
                reasons.append(f"{url}: {_reason(error)}")
                continue
            os.replace(temporary, path)
            return path
    finally:
        temporary.unlink(missing_ok=True)
    raise DownloadError("; ".join(reasons))


def _http_errors() -> type[Exception]:
    import http.client

    return http.client.HTTPException


def _reason(error: BaseException) -> str:
    if isinstance(error, urllib.error.HTTPError):
        return f"HTTP status {error.code} ({error.reason})"
    if isinstance(error, urllib.error.URLError):
        return f"no connection ({error.reason})"
    if isinstance(error, TimeoutError):
        return "timed out"
    return str(error) or type(error).__name__


def _transfer(url: str, temporary: Path, remote: Remote, timeout: float) -> None:
    """Copies one address to the temporary file and checks what came."""
    digest, received = hashlib.sha256(), 0
    with (
        contextlib.closing(open_url(url, timeout)) as response,
        temporary.open("wb") as file,
        progress_bar(remote.filename, remote.size) as advance,
    ):
        while chunk := response.read(_CHUNK):
            received += len(chunk)
            if received > remote.size:
                raise OSError(f"more than the expected {remote.size:,} bytes came")
            digest.update(chunk)
            file.write(chunk)
            advance(len(chunk))
    if received != remote.size:
        raise OSError(f"{received:,} of {remote.size:,} bytes came")
    if digest.hexdigest() != remote.sha256:
        raise OSError(f"sha256 is {digest.hexdigest()}, expected {remote.sha256}")


@contextlib.contextmanager
def progress_bar(title: str, total: int) -> Iterator[Callable[[int], None]]:
    """Yields ``advance(num_bytes)``: a bar on a terminal, else a line at each end."""
    if sys.stderr.isatty():
        with contextlib.suppress(ImportError):
            yield from _rich_bar(title, total)
            return
    megabytes = total / 1e6
    _LOG.info("downloading %s (%.1f MB)", title, megabytes)
    print(f"downloading {title} ({megabytes:.1f} MB) ...", file=sys.stderr, flush=True)
    yield lambda num_bytes: None
    print(f"downloaded {title}", file=sys.stderr, flush=True)


def _rich_bar(title: str, total: int) -> Iterator[Callable[[int], None]]:
    import rich.console
    import rich.progress as bars

    columns = (
        bars.TextColumn("{task.description}"),
        bars.BarColumn(),
        bars.DownloadColumn(),
        bars.TransferSpeedColumn(),
        bars.TimeRemainingColumn(),
    )
    with bars.Progress(*columns, console=rich.console.Console(stderr=True)) as progress:
        task = progress.add_task(title, total=total)
        yield lambda num_bytes: progress.update(task, advance=num_bytes)
