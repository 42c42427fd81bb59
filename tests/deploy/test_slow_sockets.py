"""Clients that do not read, and exchanges that are closed while somebody waits."""

import random
import socket
import threading

import pytest
from test_sockets import HERE, PATIENCE, heard, talk, waited

from fedjax_lite.deploy import answer_forever, encode, listen, make_certificates
from fedjax_lite.deploy.frames import GREETING, frame, receive

LARGE = bytes(2**24)
"""More than sockets hold."""


def held(exchange):
    """Bytes that wait to be sent."""
    return sum(w.transport.get_write_buffer_size() for w in exchange._open.values())


def test_requests_that_nobody_reads_do_not_pile_up():
    """A client that is stopped, its connection alive: it holds the server to one request."""
    with listen(HERE, 0, num_clients=1, timeout=0.1) as exchange, talk(exchange.port) as deaf:
        assert heard(deaf).kind == "welcome"
        assert exchange({0: LARGE}) == {}
        assert 0 < held(exchange) <= len(LARGE) + 100
        assert exchange({0: LARGE}) == {}
        waited(lambda: not exchange._open)
        assert held(exchange) == 0
        assert "does not read" in exchange.refusals[-1]


def test_who_breaks_the_rules_without_reading_is_cut_off():
    """Its request is not kept until it would be read."""
    with listen(HERE, 0, num_clients=1, timeout=PATIENCE) as exchange:
        found = []

        def ask():
            with pytest.raises(RuntimeError) as error:
                exchange({0: LARGE})
            found.append(error)

        asking = threading.Thread(target=ask)
        asking.start()
        with talk(exchange.port) as deaf:
            assert heard(deaf).kind == "welcome"
            writers = []
            waited(lambda: writers.extend(exchange._open.values()) or held(exchange) > 0)
            deaf.sendall(b"HTTP" + bytes(100))
            waited(lambda: not exchange._open)
            waited(lambda: writers[0].transport.get_write_buffer_size() == 0)
            exchange.close()  # while the other thread waits
            asking.join(PATIENCE)
            assert not asking.is_alive()
    assert "was closed while it waited" in str(found[0].value)


def test_closing_frees_the_address():
    exchange = listen(HERE, 0, num_clients=1, timeout=PATIENCE)
    threads = threading.active_count()
    exchange.close()
    exchange.close()
    assert threading.active_count() == threads - 1
    with pytest.raises(OSError):
        socket.create_connection((HERE, exchange.port), timeout=1)


@pytest.mark.parametrize("encrypted", [False, True])
def test_a_client_stops_though_the_server_does_not_read(encrypted, tmp_path):
    """The server takes no byte of a reply that no buffer holds."""
    made = make_certificates(tmp_path, num_clients=1, host=HERE) if encrypted else None
    stop = threading.Event()
    with socket.create_server((HERE, 0)) as there:
        options = {"client_id": 0, "stop": stop, "tls": made and made.clients[0]}
        thread = threading.Thread(
            target=answer_forever,
            args=(lambda request: LARGE, HERE, there.getsockname()[1]),
            kwargs=options,
        )
        thread.start()
        connection, _ = there.accept()
        if made is not None:
            connection = made.server.context(server=True).wrap_socket(connection, server_side=True)
        with connection:
            receive(connection, max_bytes=10**4)
            welcome = encode("welcome", {"client": 0})
            connection.sendall(frame(GREETING, welcome, max_bytes=10**4))
            connection.sendall(frame(1, b"a request", max_bytes=10**4))
            assert connection.recv(1) == b"F"  # the reply is on its way
            stop.set()
            thread.join(PATIENCE)
            assert not thread.is_alive()


def test_a_large_reply_arrives_whole(tmp_path):
    """Over TLS, in pieces."""
    made = make_certificates(tmp_path, num_clients=1, host=HERE)
    data = random.Random(0).randbytes(2**23)
    options = {"num_clients": 1, "timeout": PATIENCE, "tls": made.server}
    with listen(HERE, 0, **options) as exchange:
        thread = threading.Thread(
            target=answer_forever,
            args=(lambda request: request[::-1], HERE, exchange.port),
            kwargs={"client_id": 0, "tls": made.clients[0]},
        )
        thread.start()
        assert exchange({0: data}) == {0: data[::-1]}
    thread.join(PATIENCE)
