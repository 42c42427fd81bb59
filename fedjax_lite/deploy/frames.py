"""Frames: packets on a stream, each behind its number and length, which is looked at first."""

from __future__ import annotations

import asyncio
import socket
import struct
from collections.abc import Callable

FRAME = struct.Struct(">4sQQ")
"""Magic, number, length; then as many bytes."""
MAGIC = b"FJLF"
GREETING, GOODBYE = 0, 2**64 - 1
"""Numbers of frames that belong to no exchange."""
MAX_BYTES = 2**28
"""Of a frame, unless both sides agree on another limit."""
MAX_GREETING = 2**12
_CHUNK = 2**20


class FrameError(ConnectionError):
    """What came over a connection is no frame, or a longer one than was agreed on."""


class ConnectionClosed(ConnectionError):
    """The other side is gone."""


def frame(number: int, data: bytes, *, max_bytes: int) -> bytes:
    """Some bytes as a frame.

    Args:
      number: of the exchange; a reply has its request's.
      data: what travels.
      max_bytes: of `data`.

    Raises:
      FrameError: if there are more.

    Example:
      >>> frame(3, b"hello", max_bytes=10)[-5:]
      b'hello'
    """
    if len(data) > max_bytes:
        raise FrameError(
            f"a frame of {len(data)} bytes is above max_bytes={max_bytes}; raise it on both sides"
        )
    return FRAME.pack(MAGIC, number, len(data)) + data


def read_header(header: bytes, *, max_bytes: int) -> tuple[int, int]:
    """Number and length of a frame, before any room is made for it.

    Raises:
      FrameError: if it is none, or too long.

    Example:
      >>> read_header(frame(3, b"hello", max_bytes=10)[:20], max_bytes=10)
      (3, 5)
      >>> read_header(frame(3, b"hello", max_bytes=10)[:20], max_bytes=4)
      Traceback (most recent call last):
      ...
      fedjax_lite.deploy.frames.FrameError: a frame claims 5 bytes, max_bytes is 4
    """
    magic, number, length = FRAME.unpack(header)
    if magic != MAGIC:
        raise FrameError(f"no frame begins with {magic!r}: another protocol, or other versions")
    if length > max_bytes:
        raise FrameError(f"a frame claims {length} bytes, max_bytes is {max_bytes}")
    return number, length


async def receive_async(reader: asyncio.StreamReader, *, max_bytes: int) -> tuple[int, bytes]:
    """The next frame of a stream; memory grows with what really arrives.

    Raises:
      FrameError: if it is none, or too long.
      ConnectionClosed: if the stream ends.
    """
    try:
        number, length = read_header(await reader.readexactly(FRAME.size), max_bytes=max_bytes)
        return number, await reader.readexactly(length)
    except asyncio.IncompleteReadError:
        raise ConnectionClosed("the other side closed the connection") from None


def receive(
    connection: socket.socket, *, max_bytes: int, waits: Callable[[], bool] = lambda: True
) -> tuple[int, bytes] | None:
    """The next frame of a socket, as `receive_async`.

    Args:
      connection: blocking; with a timeout `waits` is asked whenever that has passed.
      max_bytes: of a frame.
      waits: whether to go on waiting.

    Returns:
      Number and bytes; None where `waits` ended it.

    Raises:
      FrameError: if it is none, or too long.
      ConnectionClosed: if the stream ends.

    Example:
      >>> left, right = socket.socketpair()
      >>> left.sendall(frame(7, b"hello", max_bytes=10))
      >>> receive(right, max_bytes=10)
      (7, b'hello')
      >>> left.close(), right.close()
      (None, None)
    """
    header = _receive(connection, FRAME.size, waits)
    if header is None:
        return None
    number, length = read_header(header, max_bytes=max_bytes)
    data = _receive(connection, length, waits)
    return None if data is None else (number, data)


def send(
    connection: socket.socket, data: bytes, *, waits: Callable[[], bool] = lambda: True
) -> bool:
    """Sends all bytes, as `sendall`, but asks `waits` whenever the timeout has passed.

    Returns:
      Whether all were sent.

    Example:
      >>> left, right = socket.socketpair()
      >>> send(left, b"hello"), right.recv(9)
      (True, b'hello')
      >>> left.close(), right.close()
      (None, None)
    """
    rest = memoryview(data)
    while rest:
        try:
            rest = rest[connection.send(rest[:_CHUNK]) :]
        except TimeoutError:
            if not waits():
                return False
    return True


def _receive(connection: socket.socket, size: int, waits: Callable[[], bool]) -> bytes | None:
    data = bytearray()
    while len(data) < size:
        try:
            part = connection.recv(min(size - len(data), _CHUNK))
        except TimeoutError:
            if not waits():
                return None
            continue
        if not part:
            raise ConnectionClosed("the other side closed the connection")
        data += part
    return bytes(data)
