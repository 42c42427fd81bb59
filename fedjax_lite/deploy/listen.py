"""listen(): the server's side of a federation on sockets; clients connect, and are asked."""

from __future__ import annotations

import asyncio
import collections
import concurrent.futures
import contextlib
import os
import socket
import threading
from collections.abc import Mapping
from typing import Any

from fedjax_lite.checks.arguments import check_count, check_positive
from fedjax_lite.deploy.frames import (
    GOODBYE,
    GREETING,
    MAX_BYTES,
    MAX_GREETING,
    FrameError,
    frame,
    receive_async,
)
from fedjax_lite.deploy.packets import PacketError, decode, encode
from fedjax_lite.deploy.tls import TLS, check_side, common_name, name_in

HANDSHAKE_SECONDS = 20
"""Until a connection has said who it is."""
PARTING_SECONDS = 2
"""For a connection's last words."""
_LAST_WORDS = 2 * MAX_GREETING
_SPARE = 8
"""Connections beyond two a client: of who is no client yet."""


def listen(
    host: str,
    port: int,
    *,
    num_clients: int,
    timeout: float,
    tls: TLS | None = None,
    max_bytes: int = MAX_BYTES,
) -> Listener:
    """Listens at one address, and carries requests to the clients that connect to it.

    Clients may stand behind firewalls: they connect, with `fedjax_lite.deploy.answer_forever`, and
    may come back at any time; one that returns while an exchange waits for it is asked again. Who
    has not answered after `timeout` seconds is absent from the replies: it dropped out.

    One thread holds all connections, two a client and eight more at most. A frame's length is
    looked at before there is room for it. Who is not welcome is told why, and stands in
    ``refusals``: another id than that of its certificate, an id outside of the population, one
    that is connected already, a frame that is too long.

    Args:
      host: the address to listen at, and nothing else; not a name.
      port: 0 for a free one; see ``listener.port``.
      num_clients: `N`; clients have ids ``0 .. N - 1``.
      timeout: seconds of an exchange.
      tls: certificates; None for plain text, on this machine's own addresses only.
      max_bytes: of a request or a reply.

    Returns:
      A `Listener`, an `Exchange` with ``port``, ``refusals`` and ``close()``; a context manager.

    Raises:
      TypeError, ValueError: if an argument makes no sense, or plain text would leave the machine.
      OSError: if the address cannot be listened at.

    Example:
      >>> with listen("127.0.0.1", 0, num_clients=2, timeout=0.01) as exchange:
      ...     exchange({0: b"anybody?"})
      {}
    """
    check_side(host, port, tls, listens=True)
    check_count(num_clients, "num_clients", minimum=1)
    check_positive(timeout, "timeout")
    check_count(max_bytes, "max_bytes", minimum=1)
    return Listener(host, port, num_clients, float(timeout), tls, max_bytes)


class Listener:
    """An `Exchange` with the clients that are connected to an address; made by `listen`."""

    def __init__(
        self,
        host: str,
        port: int,
        num_clients: int,
        timeout: float,
        tls: TLS | None,
        max_bytes: int,
    ) -> None:
        self._num_clients, self._timeout, self._max_bytes = num_clients, timeout, max_bytes
        self._context = None if tls is None else tls.context(server=True)
        self.refusals: collections.deque[str] = collections.deque(maxlen=100)
        """Why the last connections were refused, a sentence each."""
        self._open: dict[int, asyncio.StreamWriter] = {}
        self._number = GREETING
        self._asking: dict[int, bytes] = {}
        self._exchanging: asyncio.Task[Any] | None = None
        self._replies: dict[int, bytes] = {}
        self._all_there = asyncio.Event()
        self._guests: set[asyncio.Task[None]] = set()
        family = socket.AF_INET6 if ":" in host else socket.AF_INET
        self._socket = socket.socket(family, socket.SOCK_STREAM)
        try:
            if os.name == "posix":  # a server that was killed may come back at once
                self._socket.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            self._socket.bind((host, port))
            self._socket.listen(num_clients + _SPARE)
            self._socket.setblocking(False)
        except OSError:
            self._socket.close()
            raise
        self.port: int = self._socket.getsockname()[1]
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._serve, name="fedjax_lite-listen", daemon=True)
        self._thread.start()

    def __call__(self, requests: Mapping[int, bytes]) -> dict[int, bytes]:
        """Asks some clients, and waits for their replies until the time is over.

        Raises:
          FrameError: if a request is longer than `max_bytes`.
          RuntimeError: if it was closed.
        """
        if not self._thread.is_alive():
            raise RuntimeError("this exchange is closed; fl.deploy.listen(...) opens another one")
        for request in requests.values():
            frame(0, request, max_bytes=self._max_bytes)
        asked = self._exchange(dict(requests))
        try:
            return asyncio.run_coroutine_threadsafe(asked, self._loop).result()
        except concurrent.futures.CancelledError:
            raise RuntimeError("this exchange was closed while it waited for replies") from None

    def close(self) -> None:
        """Says goodbye to the clients, whose loops end, and frees address and thread."""
        if self._thread.is_alive():
            asyncio.run_coroutine_threadsafe(self._part(), self._loop).result()
            self._loop.call_soon_threadsafe(self._loop.stop)
            self._thread.join()

    def __enter__(self) -> Listener:
        """Itself."""
        return self

    def __exit__(self, *error: object) -> None:
        """Closes."""
        self.close()

    def _serve(self) -> None:
        """The thread: a loop that accepts, greets and reads."""
        self._accepting = self._loop.create_task(self._accept())
        try:
            self._loop.run_forever()
        finally:
            self._loop.close()
            self._socket.close()

    async def _exchange(self, requests: dict[int, bytes]) -> dict[int, bytes]:
        self._exchanging = asyncio.current_task()
        self._number += 1
        self._asking, self._replies = requests, {}
        self._all_there = asyncio.Event()
        for client, writer in list(self._open.items()):
            if writer.transport.get_write_buffer_size():  # it does not even read the last request
                self.refusals.append(f"client {client} does not read; it may come back")
                writer.transport.abort()
            else:
                self._ask(client)
        if requests:
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(self._all_there.wait(), self._timeout)
        self._asking, self._exchanging = {}, None
        return {client: self._replies[client] for client in sorted(self._replies)}

    def _ask(self, client: int) -> None:
        if client in self._asking:
            request = frame(self._number, self._asking[client], max_bytes=self._max_bytes)
            self._open[client].write(request)

    async def _part(self) -> None:
        self._accepting.cancel()
        waits: list[asyncio.Task[Any]] = [self._exchanging] if self._exchanging is not None else []
        for task in waits:
            task.cancel()
        writers = list(self._open.values())
        for writer in writers:
            writer.write(frame(GOODBYE, b"", max_bytes=0))
            writer.close()
        if writers:
            closed = [asyncio.ensure_future(writer.wait_closed()) for writer in writers]
            await asyncio.wait(closed, timeout=PARTING_SECONDS)
        for guest in self._guests:
            guest.cancel()
        others: list[asyncio.Task[Any]] = [*waits, *self._guests, self._accepting]
        await asyncio.gather(*others, return_exceptions=True)
        await asyncio.sleep(0)  # whoever waits in another thread has been told

    async def _accept(self) -> None:
        while True:
            try:
                guest, address = await self._loop.sock_accept(self._socket)
            except OSError:  # out of file descriptors, or gone before it was greeted
                await asyncio.sleep(0.1)
                continue
            if len(self._guests) >= 2 * self._num_clients + _SPARE:
                self.refusals.append(f"{address[0]}: too many connections at once")
                guest.close()
                continue
            task = self._loop.create_task(self._receive(guest, f"{address[0]}:{address[1]}"))
            self._guests.add(task)
            task.add_done_callback(self._guests.discard)

    async def _receive(self, guest: socket.socket, place: str) -> None:
        """One connection, from its handshake to its end."""
        writer = None
        try:
            keep_alive(guest)
            reader, writer = await self._streams(guest)
            greeting = receive_async(reader, max_bytes=MAX_GREETING)
            number, data = await asyncio.wait_for(greeting, HANDSHAKE_SECONDS)
            client = self._welcomed(number, data, writer)
            self._open[client] = writer
            try:
                writer.write(_greeting(encode("welcome", {"client": client})))
                self._ask(client)
                await self._read(client, reader)
            finally:
                del self._open[client]
        except (OSError, PacketError, TimeoutError) as error:
            self._turn_away(place, error, writer)
        finally:
            if writer is None:
                guest.close()
            elif writer.transport.get_write_buffer_size() > _LAST_WORDS:
                writer.transport.abort()
            else:
                writer.close()
                self._loop.call_later(PARTING_SECONDS, writer.transport.abort)

    def _turn_away(self, place: str, error: Exception, writer: Any) -> None:
        """Writes down why, and says it, where it is more than a connection's end."""
        named = isinstance(error, FrameError | PacketError) or writer is None
        error_text = f"{error!s:.500}"
        if named:
            self.refusals.append(f"{place}: {error_text or type(error).__name__}")
        if named and writer is not None:
            fields = {"why": error_text, "final": not isinstance(error, Busy)}
            writer.write(_greeting(encode("refused", fields)))

    async def _streams(
        self, guest: socket.socket
    ) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
        reader = asyncio.StreamReader(loop=self._loop)
        protocol = asyncio.StreamReaderProtocol(reader, loop=self._loop)
        transport, _ = await self._loop.connect_accepted_socket(
            lambda: protocol,
            guest,
            ssl=self._context,
            ssl_handshake_timeout=None if self._context is None else HANDSHAKE_SECONDS,
            ssl_shutdown_timeout=None if self._context is None else PARTING_SECONDS,
        )
        return reader, asyncio.StreamWriter(transport, protocol, reader, self._loop)

    def _welcomed(self, number: int, data: bytes, writer: asyncio.StreamWriter) -> int:
        """Who greets, if it may.

        Raises:
          PacketError: if not.
        """
        packet = decode(data, "hello")
        client = packet.fields.get("client")
        if number != GREETING or not isinstance(client, int) or isinstance(client, bool):
            raise PacketError(f"a greeting names no client, got {client!r:.40}")
        if not 0 <= client < self._num_clients:
            raise PacketError(f"client {client} is none of [0, {self._num_clients})")
        if self._context is not None:
            name = name_in(writer.get_extra_info("peercert"))
            if name != common_name(client):
                raise PacketError(
                    f"who says to be client {client} has the certificate of {name!r:.60}, not of "
                    f"{common_name(client)!r}"
                )
        if client in self._open:
            raise Busy(f"client {client} is connected already; two machines with one id?")
        return client

    async def _read(self, client: int, reader: asyncio.StreamReader) -> None:
        """Takes the replies of a client until it is gone; one that comes late is dropped."""
        while True:
            number, data = await receive_async(reader, max_bytes=self._max_bytes)
            if number > self._number or number == GREETING:
                raise FrameError(f"client {client} answers what nobody asked")
            if number == self._number and client in self._asking:
                self._replies[client] = data
                del self._asking[client]
                if not self._asking:
                    self._all_there.set()


class Busy(PacketError):
    """A client that is connected already; it may come again."""


def keep_alive(connection: socket.socket) -> None:
    """Asks the system to notice within a minute that the other machine is gone."""
    connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    connection.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
    for name, value in {"TCP_KEEPIDLE": 20, "TCP_KEEPINTVL": 10, "TCP_KEEPCNT": 3}.items():
        if hasattr(socket, name):
            connection.setsockopt(socket.IPPROTO_TCP, getattr(socket, name), value)


def _greeting(data: bytes) -> bytes:
    return frame(GREETING, data, max_bytes=MAX_GREETING)
