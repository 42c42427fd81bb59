"""Files of sessions that are damaged, set back or cannot be written; two processes at once."""

import os
import threading

import filelock
import numpy as np
import pytest
from secure_world import (
    SECURE,
    N,
    anew,
    begun,
    dropping,
    everyones,
    hub_of,
    new_run,
    nodes_of,
    same_bytes,
)

import fedjax_lite as fl
from fedjax_lite.crypto import SecAggAbort
from fedjax_lite.deploy import (
    FederationAborted,
    SecureSettings,
    decode,
    encode,
    federate,
    in_process,
)
from fedjax_lite.deploy.secure_session import SessionFile

PHASES = ("advertise", "share", "mask", "unmask")


@pytest.fixture(scope="module")
def world(tmp_path_factory):
    algo = everyones()
    hub, answers = hub_of(algo), nodes_of(algo, tmp_path_factory.mktemp("rows"))
    return algo, hub, answers, begun(hub, answers)


def before(answers, phase, happens):
    """An exchange before whose phase something happens."""

    def exchange(requests):
        if decode(next(iter(requests.values()))).kind == phase:
            happens(requests)
        return in_process(answers)(requests)

    return exchange


def flip(data):
    return data[:40] + bytes([data[40] ^ 1]) + data[41:]


def other_fields(**fields):
    def change(data):
        packet = decode(data)
        shapes = [np.zeros(shape, dtype) for _, dtype, shape in packet.leaves]
        tree = [np.asarray(leaf) for leaf in fl.deploy.unpack(packet, shapes)]
        return encode("session", {**packet.fields, **fields}, tree)

    return change


def other_parts(which, part):
    def change(data):
        packet = decode(data)
        shapes = [np.zeros(shape, dtype) for _, dtype, shape in packet.leaves]
        tree = [np.asarray(leaf) for leaf in fl.deploy.unpack(packet, shapes)]
        tree[which] = part
        return encode("session", packet.fields, tree)

    return change


DAMAGES = {
    "cut": (lambda data: data[: len(data) // 2], "checksum"),
    "empty": (lambda data: b"", "0 bytes, which are too few"),
    "flipped": (flip, "checksum"),
    "a row": (lambda data: encode("row", {}), "is a 'row', waited for session"),
    "no fields": (lambda data: encode("session", {}), "client"),
    "another client": (other_fields(client=2), "another client"),
    "other settings": (other_fields(secure={"threshold": 2}), "other settings"),
    "no name": (other_fields(session=7), "names no session"),
    "no length": (other_fields(length=0), "length must be at least 1"),
    "another length": (other_fields(length=3), "its vector has the shape"),
    "asked nothing": (other_fields(asked=[]), "other parts"),
    "asked words": (other_fields(asked=["words"]), "hexadecimal"),
    "no party": (other_parts(1, np.frombuffer(b"[]", np.uint8)), "is no Kept"),
    "no JSON": (other_parts(1, np.frombuffer(b"{", np.uint8)), "is no session of client 1"),
    "another vector": (other_parts(0, np.zeros(2, np.uint32)), "its vector has the shape"),
}


@pytest.mark.parametrize("damage", DAMAGES)
def test_a_damaged_file_is_refused_by_name(damage, world, tmp_path):
    """Its client dropped out, as one that is not there, and is there again in the next round."""
    algo, hub, answers, served = world
    change, why = DAMAGES[damage]
    file, clients = tmp_path / "client-1.session", anew(algo, tmp_path)
    run = new_run(served)
    spoil = before(clients, "share", lambda _: file.write_bytes(change(file.read_bytes())))
    merged = hub.round(run, spoil)
    (refusal,) = merged.refusals
    assert refusal.client == 1
    assert f"{file} is no session of client 1" in refusal.why
    assert why in refusal.why
    assert merged.counted == [0, 2, 3]
    without = hub.round(new_run(served), in_process({i: answers[i] for i in (0, 2, 3)}))
    same_bytes(merged.served.state.server, without.served.state.server)
    assert hub.round(merged.served, in_process(clients)).counted == [0, 1, 2, 3]
    assert not file.exists()


@pytest.mark.parametrize("phase", ["share", "mask", "unmask"])
def test_files_that_are_lost(phase, world, tmp_path):
    """One is a client that dropped out in that phase. Two, of threshold three: the try is in vain,
    and the next one of the same round is not; refusals that may not be end the run."""
    algo, hub, answers, served = world
    clients = anew(algo, tmp_path)

    def losing(*whose):
        files = [tmp_path / f"client-{i}.session" for i in whose]
        return before(clients, phase, lambda _: [file.unlink(missing_ok=True) for file in files])

    merged = hub.round(new_run(served), losing(1))
    assert "knows no session" in merged.refusals[0].why
    gone = hub.round(new_run(served), dropping(answers, {1: phase}))
    assert merged.counted == gone.counted
    same_bytes(merged.served.state.server, gone.served.state.server)
    run, lost = new_run(served), losing(1, 2)
    with pytest.raises(SecAggAbort, match="server: 2 clients"):
        hub.round(run, lost)
    assert hub.round(run, in_process(clients)).counted == [0, 1, 2, 3]
    with pytest.raises(FederationAborted, match="client 1 refused"):
        federate(hub, lost, num_rounds=1, on_refusal="abort")


def test_a_file_that_is_set_back_gives_nothing_new(world, tmp_path):
    """It masks for the list of neighbours of before, to the same bytes, and for no other one; and
    so with the list of survivors. The note beside it knows."""
    algo, hub, _, served = world
    clients, file = anew(algo, tmp_path), tmp_path / "client-1.session"
    kept, requests, replies = {}, {}, {}

    def exchange(asked):
        phase = decode(asked[0]).kind
        kept[phase] = file.read_bytes() if phase != "advertise" else b""
        requests[phase] = asked[1]
        found = in_process(clients)(asked)
        replies[phase] = found[1]
        return found

    hub.round(new_run(served), exchange)
    assert not file.exists()
    for phase, names in {"mask": ["messages"], "unmask": ["message", "survivors"]}.items():
        file.write_bytes(kept[phase])
        assert clients[1](requests[phase]) == replies[phase]
        file.write_bytes(kept[phase])
        packet = decode(requests[phase])
        if phase == "mask":
            other = {**packet.fields, "messages": packet.fields["messages"][1:]}
        else:
            other = {**packet.fields, "message": {"survivors": [0, 1, 2], "confirmations": []}}
        assert names[0] in other
        said = decode(clients[1](encode(phase, other)))
        assert said.kind == "refused"
        told = {"mask": "session was set back since", "unmask": "tell single clients apart"}
        assert told[phase] in said.fields["why"]
    file.write_bytes(kept["mask"])
    (tmp_path / f"client-1-{decode(requests['mask']).fields['run']}.revealed").unlink()
    packet = decode(requests["mask"])
    other = {**packet.fields, "messages": packet.fields["messages"][1:]}
    assert decode(clients[1](encode("mask", other))).kind == "masked"  # the note gone, too


def test_a_party_that_gave_up_stays_so(world, tmp_path):
    """A list of neighbours that is not one ends the session for this client, and erases its keys:
    the right one comes too late."""
    algo, hub, _, served = world
    clients, told = anew(algo, tmp_path), {}
    file = tmp_path / "client-1.session"

    def lie(requests):
        packet = decode(requests[1])
        stranger = {**packet.fields["messages"][0], "sender": 9}
        wrong = encode("mask", {**packet.fields, "messages": [stranger]})
        told["first"] = decode(clients[1](wrong)).fields["why"]

    merged = hub.round(new_run(served), before(clients, "mask", lie))
    assert "do not belong here" in told["first"]
    assert "gave up this round before" in merged.refusals[0].why
    assert merged.counted == [0, 2, 3]
    party = SessionFile(tmp_path, 1, SECURE, None).load().party
    assert party._share_key is None
    assert party._seed == b""
    assert file.stat().st_size > 0


class Killed(BaseException):
    """What ends a process."""


def test_a_machine_that_dies_before_its_reply_leaves_goes_on(world, tmp_path, monkeypatch):
    """Killed when the note is written and the session's file is not: asked the same again it says
    what it would have said, and nothing to another list."""
    algo, hub, _, served = world
    clients, died = anew(algo, tmp_path), []
    save = SessionFile.save

    def dies(self, session):
        if session.party._turns.due == "unmask" and not died:
            died.append(self)
            raise Killed
        save(self, session)

    monkeypatch.setattr(SessionFile, "save", dies)

    def dying(requests):
        with pytest.raises(Killed):
            clients[0](requests[0])
        packet = decode(requests[0])
        fewer = {**packet.fields, "messages": packet.fields["messages"][1:]}
        assert "set back" in decode(clients[0](encode("mask", fewer))).fields["why"]

    merged = hub.round(new_run(served), before(clients, "mask", dying))
    assert merged.counted == [0, 1, 2, 3]
    assert len(died) == 1


def test_a_full_disk_is_a_refusal(world, tmp_path, monkeypatch):
    """Nothing has left the machine then; asked again, when there is room, it goes on."""
    algo, hub, _, served = world
    clients, told = anew(algo, tmp_path), []

    def full(number):
        raise OSError(28, "No space left on device")

    def no_room(requests):
        with monkeypatch.context() as patch:
            patch.setattr(os, "fsync", full)
            told.append(decode(clients[2](requests[2])).fields["why"])

    for phase in ("advertise", "share", "mask", "unmask"):
        merged = hub.round(new_run(served), before(clients, phase, no_room))
        assert merged.counted == [0, 1, 2, 3], phase
        assert "No space left on device" in told[-1]
    assert not list(tmp_path.glob(".*"))


def test_two_processes_wait_for_one_another(world, tmp_path):
    """Both would know the session before either has answered, and answer two lists of survivors."""
    algo, hub, _, served = world
    clients, said, order = anew(algo, tmp_path), [], []

    def held(requests):
        with filelock.FileLock(tmp_path / "client-3.lock"):
            thread = threading.Thread(
                target=lambda: (said.append(clients[3](requests[3])), order.append("answered"))
            )
            thread.start()
            thread.join(1.0)
            order.append("let go")
        thread.join(60)
        assert decode(said[0]).kind == "masked"

    merged = hub.round(new_run(served), before(clients, "mask", held))
    assert merged.counted == [0, 1, 2, 3]
    assert order == ["let go", "answered"]


@pytest.mark.parametrize(("fewest", "again"), [(3, False), (4, True)])
def test_sums_in_a_sparse_graph_are_asked_for_again_where_one_only_can_be_had(
    fewest, again, world, tmp_path
):
    """2 t m > (k + 1) C with t = k = 2: of four clients 3 are too few, since 12 = 12, and 4 are
    enough. Nobody has helped in the first try, in which all vectors were sent."""
    algo, _, _, served = world
    secure = SecureSettings(threshold=2, min_survivors=fewest, degree=2)
    hub, clients, run = hub_of(algo, secure), anew(algo, tmp_path, secure), new_run(served)
    with pytest.raises(SecAggAbort, match="0 clients helped"):
        hub.round(run, dropping(clients, dict.fromkeys(range(N), "unmask")))
    if again:
        assert hub.round(run, in_process(clients)).counted == [0, 1, 2, 3]
        return
    with pytest.raises(
        SecAggAbort, match=r"round 0 is asked for again, .* min_survivors 3 of 4.*min_survivors=4"
    ):
        hub.round(run, in_process(clients))
