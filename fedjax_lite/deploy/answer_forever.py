"""answer_forever(): the client's side of a federation on sockets: connect, answer, come back."""

from __future__ import annotations

import random
import socket
import ssl
import threading
import time

from fedjax_lite.checks.arguments import check_count, check_positive, shown
from fedjax_lite.deploy.exchange import Answer
from fedjax_lite.deploy.frames import (
    GOODBYE,
    GREETING,
    MAX_BYTES,
    MAX_GREETING,
    FrameError,
    frame,
    receive,
    send,
)
from fedjax_lite.deploy.listen import keep_alive
from fedjax_lite.deploy.packets import PacketError, decode, encode
from fedjax_lite.deploy.tls import TLS, check_side

FIRST_WAIT = 0.1
CONNECT_SECONDS = 20
_LOOK_SECONDS = 0.5
"""How often a client that waits looks whether it is to stop."""


class NotWelcome(ConnectionError):
    """The server does not want this client, or is not the one that was meant; it will not help to
    come again.
    """


class _NotNow(ConnectionError):
    """The server does not want this client yet."""


def answer_forever(
    answer: Answer,
    host: str,
    port: int,
    *,
    client_id: int,
    tls: TLS | None = None,
    max_bytes: int = MAX_BYTES,
    longest_wait: float = 30.0,
    give_up_after: float | None = None,
    stop: threading.Event | None = None,
) -> None:
    """Connects to a server, answers what it asks, and comes back whenever the connection breaks.

    Ends when the server says goodbye (`listen`'s ``close``). Between attempts it waits 0.1
    seconds, twice as long each time up to `longest_wait`, a random part of which, so that clients
    do not return all at once.

    Args:
      answer: `fedjax_lite.deploy.node`.
      host: the server's address or name; under TLS its certificate must be for it.
      port: of the server.
      client_id: which client this is.
      tls: certificates; None for plain text, to this machine's own addresses only.
      max_bytes: of a request or a reply.
      longest_wait: seconds between two attempts, at most.
      give_up_after: seconds without a connection; None: never.
      stop: ends it when set.

    Raises:
      TypeError, ValueError: if an argument makes no sense, or plain text would leave the machine.
      NotWelcome: if the server refuses this client for good, or shows another certificate.
      ConnectionError: where it gives up.

    Example:
      >>> from fedjax_lite.deploy.listen import listen
      >>> with listen("127.0.0.1", 0, num_clients=1, timeout=60) as exchange:
      ...     client = threading.Thread(target=answer_forever, args=(
      ...         bytes.upper, "127.0.0.1", exchange.port), kwargs={"client_id": 0})
      ...     client.start()
      ...     exchange({0: b"hello"})
      {0: b'HELLO'}
      >>> client.join()
    """
    if not callable(answer):
        raise TypeError(f"answer must be a function of bytes, got {shown(answer)}; fl.deploy.node")
    check_side(host, port, tls, listens=False)
    check_count(client_id, "client_id", minimum=0)
    check_count(max_bytes, "max_bytes", minimum=1)
    check_positive(longest_wait, "longest_wait")
    if give_up_after is not None:
        check_positive(give_up_after, "give_up_after")
    stop = threading.Event() if stop is None else stop
    context = None if tls is None else tls.context(server=False)
    wait, since = FIRST_WAIT, time.monotonic()
    while not stop.is_set():
        try:
            with _connected(host, port, client_id, context) as connection:
                wait = FIRST_WAIT
                try:
                    if _answers(answer, connection, max_bytes, stop):
                        return
                finally:
                    since = time.monotonic()
        except (NotWelcome, FrameError, PacketError):
            raise
        except OSError as error:
            if give_up_after is not None and time.monotonic() - since > give_up_after:
                raise ConnectionError(
                    f"no connection of client {client_id} to {host}:{port} for {give_up_after} "
                    f"seconds: {error}"
                ) from error
        stop.wait(random.uniform(wait / 2, wait))
        wait = min(2 * wait, longest_wait)


def _connected(
    host: str, port: int, client_id: int, context: ssl.SSLContext | None
) -> socket.socket:
    """A connection on which both sides know each other.

    Raises:
      NotWelcome: if one of them does not want the other.
      OSError: if there is no connection at present.
    """
    connection = socket.create_connection((host, port), timeout=CONNECT_SECONDS)
    try:
        keep_alive(connection)
        if context is not None:
            connection = context.wrap_socket(connection, server_hostname=host)
        hello = encode("hello", {"client": client_id})
        connection.sendall(frame(GREETING, hello, max_bytes=MAX_GREETING))
        came = receive(connection, max_bytes=MAX_GREETING, waits=lambda: False)
        if came is None:
            raise _NotNow("the server does not greet")
        _check_welcome(came[1])
    except ssl.SSLCertVerificationError as error:
        connection.close()
        raise NotWelcome(f"the certificate of {host}:{port} does not hold: {error}") from error
    except ssl.SSLError as error:
        connection.close()
        if "alert" in str(error).lower():
            raise NotWelcome(f"{host}:{port} refuses this certificate: {error}") from error
        raise
    except BaseException:
        connection.close()
        raise
    return connection


def _check_welcome(data: bytes) -> None:
    packet = decode(data, "welcome", "refused")
    if packet.kind == "refused":
        why = f"the server refused: {packet.fields.get('why')!s:.500}"
        raise NotWelcome(why) if packet.fields.get("final") else _NotNow(why)


def _answers(
    answer: Answer, connection: socket.socket, max_bytes: int, stop: threading.Event
) -> bool:
    """Answers until the server says goodbye or the client is to stop: True.

    Raises:
      NotWelcome: if the server refuses what it got.
      FrameError: if a request or a reply is too long.
      OSError: if the connection breaks.
    """
    connection.settimeout(_LOOK_SECONDS)

    def waits() -> bool:
        return not stop.is_set()

    while True:
        came = receive(connection, max_bytes=max_bytes, waits=waits)
        if came is None or came[0] == GOODBYE:
            return True
        number, request = came
        if number == GREETING:
            _check_welcome(request)
        reply = frame(number, answer(request), max_bytes=max_bytes)
        if not send(connection, reply, waits=waits):  # the server may have stopped reading
            return True
