"""Decompressed bytes as they come, with a bound: a small file may hold nearly endless zeros."""

from __future__ import annotations

import bz2
import gzip
import lzma
import zlib
from pathlib import Path
from typing import IO, Any

BROKEN = (EOFError, OSError, zlib.error, lzma.LZMAError, ValueError)
"""What readers of compressed files raise where one is damaged."""

_PIECE = 1 << 18
_XZ_MEMORY = 1 << 27
"""Bytes for the dictionary of xz, whose size the file itself asks for."""


class TooLarge(Exception):
    """More bytes came out of a file than it may hold."""


class ForwardReader:
    """Reads a file, decompressed by what its first bytes say, once and forwards.

    Args:
      file: plain bytes, or those of gzip, bzip2 or xz.
      limit: of decompressed bytes.

    Example:
      >>> import io
      >>> reader = ForwardReader(io.BytesIO(gzip.compress(b"abc")), limit=100)
      >>> reader.read(2), reader.tell()
      (b'ab', 2)
    """

    def __init__(self, file: IO[bytes], *, limit: int) -> None:
        start = file.read(6)
        file.seek(0)
        self._source: Any = file
        if start.startswith(b"\x1f\x8b"):
            self._source = gzip.GzipFile(fileobj=file)
        elif start.startswith(b"BZh"):
            self._source = bz2.BZ2File(file)
        elif start == b"\xfd7zXZ\0":
            self._source = _Xz(file)
        self._place, self._limit = 0, limit
        self.allowance: int | None = None
        """Bytes that may still be read (not skipped); None for any number."""

    def read(self, count: int) -> bytes:
        """The next `count` bytes, fewer at the end.

        Raises:
          TooLarge: if that is beyond the limit or the allowance.
        """
        if self.allowance is not None:
            if count < 0 or count > self.allowance:
                raise TooLarge("a header is too long")
            self.allowance -= count
        return self._pull(count)

    def _pull(self, count: int) -> bytes:
        if count < 0 or self._place + count > self._limit + _PIECE:
            raise TooLarge(f"it holds more than {self._limit:,} bytes")
        pieces = []
        while count > 0 and (piece := self._source.read(min(count, _PIECE))):
            pieces.append(piece)
            count -= len(piece)
            self._place += len(piece)
            if self._place > self._limit:
                raise TooLarge(f"it holds more than {self._limit:,} bytes")
        return b"".join(pieces)

    def tell(self) -> int:
        """Bytes behind."""
        return self._place

    def seek(self, place: int) -> int:
        """Skips to a place that is not yet behind."""
        if place < self._place:
            raise EOFError("a place that is behind")
        while self._place < place and self._pull(min(place - self._place, _PIECE)):
            pass
        return self._place


class _Xz:
    """Streams of xz with a bound on memory, which `lzma.LZMAFile` does not have."""

    def __init__(self, file: IO[bytes]) -> None:
        self._file, self._rest = file, b""
        self._decoder: lzma.LZMADecompressor | None = None

    def read(self, count: int) -> bytes:
        while True:
            if self._decoder is None or self._decoder.eof:
                if self._decoder is not None:
                    self._rest = self._decoder.unused_data
                self._rest = (self._rest or self._file.read(_PIECE)).lstrip(b"\0")
                if not self._rest:
                    return b""
                self._decoder = lzma.LZMADecompressor(lzma.FORMAT_XZ, memlimit=_XZ_MEMORY)
            elif self._decoder.needs_input:
                self._rest = self._file.read(_PIECE)
                if not self._rest:
                    raise EOFError("the compressed data end early")
            given, self._rest = self._rest, b""
            if piece := self._decoder.decompress(given, count):
                return piece


def read_gzip(path: Path, *, limit: int) -> bytearray:
    """The content of a gzip file, in memory for its real size only.

    Args:
      path: the file.
      limit: of decompressed bytes.

    Returns:
      At most ``limit + 1`` bytes: one more than may be tells that there are more. Where there are
      not, the checksum at the file's end has been compared.

    Raises:
      EOFError, OSError, zlib.error: if the file is damaged.

    Example:
      >>> import pathlib, tempfile
      >>> path = pathlib.Path(tempfile.mkdtemp()) / "a.gz"
      >>> _ = path.write_bytes(gzip.compress(b"abc"))
      >>> read_gzip(path, limit=3)
      bytearray(b'abc')
    """
    content = bytearray()
    with gzip.open(path) as file:
        while len(content) <= limit:
            piece = file.read(min(_PIECE, limit + 1 - len(content)))
            if not piece:
                break
            content += piece
    return content
