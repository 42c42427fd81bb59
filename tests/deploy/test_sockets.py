"""A federation on sockets of this machine: equal numbers, killed clients, unwelcome guests."""

import os
import signal
import socket
import ssl
import struct
import subprocess
import sys
import threading
import time
from pathlib import Path

import jax
import numpy as np
import pytest
from federations import EVERYONE, NUM_ROUNDS, SIZES, algorithm, hub_of, nodes_of, population

from fedjax_lite.deploy import (
    TLS,
    FrameError,
    NotWelcome,
    answer_forever,
    decode,
    encode,
    federate,
    in_process,
    listen,
    make_certificates,
)
from fedjax_lite.deploy.frames import FRAME, GREETING, frame, receive

HERE, PATIENCE = "127.0.0.1", 240.0
ROOT = Path(__file__).parent.parent.parent


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    folder = tmp_path_factory.mktemp("certificates")
    return make_certificates(folder, num_clients=len(SIZES), host=HERE)


@pytest.fixture(scope="module")
def strangers(tmp_path_factory):
    folder = tmp_path_factory.mktemp("of-another-authority")
    return make_certificates(folder, num_clients=1, host=HERE)


def bytes_of(state):
    return [np.asarray(leaf).tobytes() for leaf in jax.tree.leaves(state)]


def client(answer, port, client_id, tls=None, **options):
    """A client in a thread."""
    options = {"client_id": client_id, "tls": tls, "give_up_after": PATIENCE, **options}
    thread = threading.Thread(target=answer_forever, args=(answer, HERE, port), kwargs=options)
    thread.start()
    return thread


def talk(port, tls=None, greets=0):
    """A connection by hand, after its greeting."""
    connection = socket.create_connection((HERE, port), timeout=PATIENCE)
    if tls is not None:
        connection = tls.context(server=False).wrap_socket(connection, server_hostname=HERE)
    connection.sendall(frame(GREETING, encode("hello", {"client": greets}), max_bytes=10**4))
    return connection


def heard(connection):
    return decode(receive(connection, max_bytes=10**4)[1])


@pytest.fixture(scope="module")
def local(tmp_path_factory):
    """The same run in one process."""
    algo = algorithm("scaffold", EVERYONE)
    exchange = in_process(nodes_of(algo, population()[0], tmp_path_factory.mktemp("local")))
    return federate(hub_of(algo), exchange, num_rounds=NUM_ROUNDS)


def test_tls_gives_the_bytes_of_one_process(made, local, tmp_path):
    algo = algorithm("scaffold", EVERYONE)
    parts, _ = population()
    answers = nodes_of(algo, parts, tmp_path / "b")
    options = {"num_clients": len(SIZES), "timeout": PATIENCE}
    with listen(HERE, 0, tls=made.server, **options) as exchange:
        threads = [client(answers[i], exchange.port, i, made.clients[i]) for i in answers]
        remote = federate(hub_of(algo), exchange, num_rounds=NUM_ROUNDS)
    for thread in threads:  # the server's goodbye ends them
        thread.join(PATIENCE)
        assert not thread.is_alive()
    assert bytes_of(remote.served.state) == bytes_of(local.served.state)
    assert [row["num_clients"] for row in remote.rows] == [len(SIZES)] * NUM_ROUNDS
    assert not exchange.refusals
    with pytest.raises(RuntimeError, match="is closed"):
        exchange({})


CLIENT = """
import sys
sys.path.insert(0, sys.argv[1])
from federations import EVERYONE, KEY, algorithm, population, start
from fedjax_lite.deploy import TLS, answer_forever, node
port, folder, certificates, index = int(sys.argv[2]), sys.argv[3], sys.argv[4], 1
tls = TLS(*(f"{certificates}/{name}" for name in ("client-1.pem", "client-1.key", "authority.pem")))
answer = node(algorithm("scaffold", EVERYONE), KEY, start(), population()[0][index],
              client_id=index, folder=folder)
answer_forever(answer, "127.0.0.1", port, client_id=index, tls=tls)
"""


def test_a_client_that_is_killed_comes_back_from_its_disk(made, local, tmp_path):
    """Client 1 is a process; it is killed after the first round, and another one takes its place
    while the exchange waits for it: the numbers are those of clients that live."""
    algo = algorithm("scaffold", EVERYONE)
    parts, _ = population()
    answers = nodes_of(algo, parts, tmp_path / "b")
    options = {"num_clients": len(SIZES), "timeout": PATIENCE}
    certificates = Path(made.server.certificate).parent

    def born(port):
        words = [Path(__file__).parent, port, tmp_path / "b", certificates]
        environment = {**os.environ, "PYTHONPATH": str(ROOT), "JAX_PLATFORMS": "cpu"}
        return subprocess.Popen([sys.executable, "-c", CLIENT, *map(str, words)], env=environment)

    with listen(HERE, 0, tls=made.server, **options) as exchange:
        processes = [born(exchange.port)]
        threads = [client(answers[i], exchange.port, i, made.clients[i]) for i in (0, 2, 3)]

        def between(state):
            if int(state.round) == 1:
                processes[0].send_signal(signal.SIGKILL)
                processes[0].wait()
                processes.append(born(exchange.port))
            return {}

        remote = federate(hub_of(algo), exchange, num_rounds=NUM_ROUNDS, evaluate=between)
    for thread in threads:
        thread.join(PATIENCE)
    assert processes[1].wait(PATIENCE) == 0
    assert bytes_of(remote.served.state) == bytes_of(local.served.state)
    assert [row["num_clients"] for row in remote.rows] == [len(SIZES)] * NUM_ROUNDS


def test_impostors_are_refused(made, strangers):
    """Of another authority, of another client, of nobody, without any certificate."""
    with listen(HERE, 0, num_clients=2, timeout=PATIENCE, tls=made.server) as exchange:
        with pytest.raises(ConnectionError):  # the alert, or the end of the connection
            answer_forever(
                bytes.upper, HERE, exchange.port, client_id=0, give_up_after=0.01,
                tls=TLS(strangers.clients[0].certificate, strangers.clients[0].key,
                        made.clients[0].authority),
            )  # fmt: skip
        assert "certificate" in exchange.refusals[-1].lower()
        with pytest.raises(NotWelcome, match="certificate of 'client-1', not of 'client-0'"):
            answer_forever(bytes.upper, HERE, exchange.port, client_id=0, tls=made.clients[1])
        with pytest.raises(NotWelcome, match=r"client 3 is none of \[0, 2\)"):
            answer_forever(bytes.upper, HERE, exchange.port, client_id=3, tls=made.clients[3])
        with pytest.raises(NotWelcome, match="does not hold"):  # the server's, for the client
            answer_forever(bytes.upper, HERE, exchange.port, client_id=0, tls=strangers.clients[0])
        said = len(exchange.refusals)
        bare = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
        bare.load_verify_locations(made.clients[0].authority)
        raw = socket.create_connection((HERE, exchange.port))
        with raw, pytest.raises(OSError):
            heard(bare.wrap_socket(raw, server_hostname=HERE))
        waited(lambda: len(exchange.refusals) > said)
        thread = client(bytes.upper, exchange.port, 0, made.clients[0])
        assert exchange({0: b"hello"}) == {0: b"HELLO"}
    thread.join(PATIENCE)


def waited(holds):
    """Until another thread has done something."""
    for _ in range(int(PATIENCE * 100)):
        if holds():
            return
        time.sleep(0.01)
    raise AssertionError("it never happened")


def test_one_machine_a_client():
    with listen(HERE, 0, num_clients=1, timeout=PATIENCE) as exchange:
        with talk(exchange.port) as first, talk(exchange.port) as second:
            assert heard(first).kind == "welcome"
            packet = heard(second)
            assert packet.kind == "refused"
            assert "connected already" in packet.fields["why"]
            assert packet.fields["final"] is False
        # Both are gone: the next one is welcome, however often it has to come.
        thread = client(bytes.upper, exchange.port, 0)
        assert exchange({0: b"x"}) == {0: b"X"}
    thread.join(PATIENCE)


def test_frames_that_are_too_long_are_refused_before_there_is_room():
    claimed = struct.pack(">4sQQ", b"FJLF", 1, 2**62)
    with listen(HERE, 0, num_clients=1, timeout=0.2, max_bytes=1000) as exchange:
        with talk(exchange.port) as liar:
            assert heard(liar).kind == "welcome"
            liar.sendall(claimed)
            packet = heard(liar)
            assert packet.kind == "refused"
            assert f"claims {2**62} bytes, max_bytes is 1000" in packet.fields["why"]
        with talk(exchange.port) as liar:
            liar.sendall(claimed)
            assert exchange({0: b"x"}) == {}
        for greeting in (claimed, FRAME.pack(b"HTTP", 0, 5)):
            with socket.create_connection((HERE, exchange.port), timeout=PATIENCE) as guest:
                guest.sendall(greeting)
                assert heard(guest).kind == "refused"
        with pytest.raises(FrameError, match="1001 bytes is above max_bytes=1000"):
            exchange({0: bytes(1001)})
    left, right = socket.socketpair()
    with left, right:
        left.sendall(claimed)
        with pytest.raises(FrameError, match="claims"):
            receive(right, max_bytes=1000)


def test_a_late_reply_is_nobodys():
    """The reply to an exchange that is over is not taken for that of the next one."""
    with listen(HERE, 0, num_clients=1, timeout=0.2) as exchange:
        with talk(exchange.port) as slow:
            assert heard(slow).kind == "welcome"
            assert exchange({0: b"first"}) == {}
            number, request = receive(slow, max_bytes=100)
            assert request == b"first"
            slow.sendall(frame(number, b"late", max_bytes=100))
            found = {}
            asking = threading.Thread(target=lambda: found.update(exchange({0: b"second"})))
            asking.start()
            again, request = receive(slow, max_bytes=100)
            assert (request, again) == (b"second", number + 1)
            slow.sendall(frame(number, b"late", max_bytes=100))
            asking.join()
        assert found == {}


def test_plain_text_stays_on_this_machine(made):
    options = {"num_clients": 1, "timeout": 1.0}
    for host in ("0.0.0.0", "192.0.2.1", "::"):
        with pytest.raises(ValueError, match="plain text"):
            listen(host, 0, **options)
    for host in ("192.0.2.1", "example.org"):
        with pytest.raises(ValueError, match="plain text"):
            answer_forever(bytes.upper, host, 8443, client_id=0)
    with pytest.raises(ValueError, match="one address to listen at, got 'localhost'"):
        listen("localhost", 0, **options)
    with pytest.raises(ValueError, match="fit together"):
        listen(HERE, 0, tls=TLS(made.server.certificate, made.clients[0].key,
                                made.server.authority), **options)  # fmt: skip
    with listen(HERE, 0, **options) as exchange, pytest.raises(OSError):
        listen(HERE, exchange.port, **options)
    with pytest.raises(FileExistsError):
        make_certificates(Path(made.server.key).parent, num_clients=1, host=HERE)
    assert Path(made.server.key).stat().st_mode & 0o077 == 0


def test_a_client_can_be_stopped():
    stop = threading.Event()
    with listen(HERE, 0, num_clients=1, timeout=PATIENCE) as exchange:
        thread = client(bytes.upper, exchange.port, 0, stop=stop)
        assert exchange({0: b"x"}) == {0: b"X"}
        stop.set()
        thread.join(PATIENCE)
        assert not thread.is_alive()
    with pytest.raises(ConnectionError, match="no connection of client 0"):
        answer_forever(bytes.upper, HERE, exchange.port, client_id=0, give_up_after=0.01)


def test_a_client_outlives_its_server():
    """One that is killed says no goodbye; the next one at its address is asked again."""
    with socket.create_server((HERE, 0)) as mortal:
        port = mortal.getsockname()[1]
        thread = client(bytes.upper, port, 0)
        mortal.accept()[0].close()
    with listen(HERE, port, num_clients=1, timeout=PATIENCE) as exchange:
        assert exchange({0: b"back?"}) == {0: b"BACK?"}
    thread.join(PATIENCE)
    assert not thread.is_alive()
