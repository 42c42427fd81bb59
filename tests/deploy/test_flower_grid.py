"""Exchanges over a grid: who is asked, who is waited for, and who is not."""

import time

import pytest

pytest.importorskip("flwr", reason='Flower is not installed: pip install "fedjax_lite[flower]"')
from flower_here import Grid, be_in_a_task, supernode
from flwr.app import ConfigRecord, Message, RecordDict

from fedjax_lite.deploy import flower_answers, grid_exchange
from fedjax_lite.deploy.flower_grid import packed, unpacked

SOON = 0.01


@pytest.fixture(autouse=True)
def in_a_task(monkeypatch):
    """As in a process that Flower started."""
    be_in_a_task(monkeypatch)


def node(answer, **config):
    """A SuperNode that runs the ClientApp as Flower does."""
    return supernode(flower_answers(lambda got: lambda request: answer(request, got)), config)


@pytest.fixture
def own(tmp_path):
    """The configuration of a client's node: its id, and the folder of its machine."""
    return lambda i, place="": {"client-id": i, "folder": str(tmp_path / f"{place}{i}")}


def silent(handle, kind="train"):
    """A SuperNode that never answers messages of a kind."""
    return lambda message: None if message.metadata.message_type == kind else handle(message)


def upper(request, config):
    return request.upper() + b"%d" % config["client-id"]


def test_packets_of_any_bytes_pass():
    for data in (b"", bytes(range(256)) * 100_000):
        message = Message(packed(data), dst_node_id=1, message_type="train")
        assert unpacked(message) == data
    for content in (RecordDict(), RecordDict({"packet": ConfigRecord({"packet": b"x"})})):
        assert unpacked(Message(content, dst_node_id=1, message_type="train")) is None


def test_clients_are_found_by_the_configuration_of_their_nodes():
    grid = Grid({70: node(upper, **{"client-id": 1}), 90: node(upper, **{"client-id": 0})})
    exchange = grid_exchange(grid, timeout=20, poll=SOON)
    assert exchange({0: b"a", 1: b"b"}) == {0: b"A0", 1: b"B1"}
    assert exchange({1: b"c"}) == {1: b"C1"}
    assert [kind for _, kind in grid.asked] == ["query.who"] * 2 + ["train"] * 3  # asked once
    assert grid.asked[-1] == (70, "train")


def test_the_first_exchange_waits_for_nodes_and_later_ones_do_not(own):
    late = node(upper, **own(1))
    grid = Grid({5: node(upper, **{"client-id": 0})})
    grid.at[5] = lambda: grid.nodes.update({6: late})
    exchange = grid_exchange(grid, timeout=20, poll=SOON)
    assert exchange({0: b"a", 1: b"b"}) == {0: b"A0", 1: b"B1"}
    del grid.nodes[6]
    start = time.monotonic()
    assert exchange({0: b"a", 1: b"b"}) == {0: b"A0"}
    assert time.monotonic() - start < 10
    grid.nodes[7] = node(upper, **own(1))  # back, as another node
    assert exchange({0: b"a", 1: b"b"}) == {0: b"A0", 1: b"B1"}


def test_a_client_is_the_machine_that_was_first_to_say_so(own, tmp_path, caplog):
    """Another one is not asked, neither beside it nor in its absence nor by another server of the
    run; the machine itself is, when it is back as another node."""
    grid = Grid({5: node(upper, **own(0)), 6: node(upper, **own(1))})
    settings = {"timeout": 20, "poll": SOON, "folder": tmp_path / "run"}
    exchange = grid_exchange(grid, **settings)
    assert exchange({0: b"a", 1: b"b"}) == {0: b"A0", 1: b"B1"}
    thief = node(lambda request, config: b"stolen", **own(1, "of the thief "))
    grid.nodes[7] = thief
    assert exchange({0: b"a", 1: b"b"}) == {0: b"A0", 1: b"B1"}
    assert "node 7 says that it is client 1, which is node 6" in caplog.text
    del grid.nodes[6]
    assert exchange({0: b"a", 1: b"b"}) == {0: b"A0"}
    again = grid_exchange(grid, **{**settings, "timeout": 0.3})
    assert again({0: b"a", 1: b"b"}) == {0: b"A0"}
    grid.nodes[8] = node(upper, **own(1))
    assert again({0: b"a", 1: b"b"}) == {0: b"A0", 1: b"B1"}
    assert grid.asked[-1] == (8, "train")
    assert (7, "train") not in grid.asked
    believing = grid_exchange(Grid({7: thief}), timeout=20, poll=SOON, bind=False)
    assert believing({1: b"b"}) == {1: b"stolen"}


def test_a_node_that_changes_its_claim_is_refused(own, caplog):
    """Client 1's machine says that it is client 0, which is free: it is asked as neither."""
    grid = Grid({6: node(upper, **own(1))})
    exchange = grid_exchange(grid, timeout=0.3, poll=SOON)
    assert exchange({1: b"b"}) == {1: b"B1"}
    gone = grid.nodes.pop(6)
    assert exchange({1: b"b"}) == {}
    grid.nodes[6] = node(upper, **own(0))
    asked = len(grid.asked)
    assert exchange({0: b"a", 1: b"b"}) == {}
    assert [kind for _, kind in grid.asked[asked:]] == ["query.who"]
    assert "node 6 says that it is client 0, and was client 1 before" in caplog.text
    grid.nodes[6] = gone
    assert exchange({1: b"b"}) == {1: b"B1"}


def test_who_is_silent_is_waited_for_until_the_time_is_up():
    quiet = silent(node(upper, **{"client-id": 1}))
    grid = Grid({5: node(upper, **{"client-id": 0}), 6: quiet})
    exchange = grid_exchange(grid, timeout=0.3, poll=SOON)
    start = time.monotonic()
    assert exchange({0: b"a", 1: b"b"}) == {0: b"A0"}
    assert time.monotonic() - start >= 0.3


@pytest.mark.parametrize("how", ["goes", "comes back as another node", "both"])
@pytest.mark.parametrize("bind", [True, False])
def test_a_node_that_is_lost_is_not_waited_for(how, bind, own):
    """It was killed in the middle of an exchange; its client is asked again in the next one. Where
    nodes are not bound, a machine needs no folder to come back."""
    back = node(upper, **(own(1) if bind else {"client-id": 1}))
    grid = Grid({5: node(upper, **{"client-id": 0}), 6: silent(back)})

    def happens():
        if how != "comes back as another node":
            del grid.nodes[6]
        if how != "goes":
            grid.nodes[8] = back

    exchange = grid_exchange(grid, timeout=20, poll=SOON, bind=bind)
    grid.at[4] = happens
    start = time.monotonic()
    assert exchange({0: b"a", 1: b"b"}) == {0: b"A0"}
    assert time.monotonic() - start < 10
    grid.nodes[8] = back
    assert exchange({1: b"b"}) == {1: b"B1"}
    assert grid.asked[-1] == (8, "train")


def test_an_app_that_fails_is_no_reply_and_its_reason_is_told(caplog):
    def fails(request, config):
        raise RuntimeError("the disk is full")

    grid = Grid({5: node(upper, **{"client-id": 0}), 6: node(fails, **{"client-id": 1})})
    exchange = grid_exchange(grid, timeout=20, poll=SOON)
    assert exchange({0: b"a", 1: b"b"}) == {0: b"A0"}
    assert "client 1, node 6: the disk is full" in caplog.text
    grid.nodes[6] = lambda message: Message(RecordDict(), reply_to=message)  # of another app
    assert exchange({0: b"a", 1: b"b"}) == {0: b"A0"}
    assert "its reply is of another kind" in caplog.text


@pytest.mark.parametrize(
    "config", [{}, {"client-id": "one"}, {"client-id": -1}, {"client-id": True}]
)
def test_a_node_that_is_nobody_is_refused_by_name(config, caplog):
    grid = Grid({5: node(upper, **{"client-id": 0}), 6: node(upper, **config)})
    exchange = grid_exchange(grid, timeout=20, poll=SOON)
    assert exchange({0: b"a"}) == {0: b"A0"}
    assert exchange({0: b"a", 1: b"b"}) == {0: b"A0"}
    assert "node 6 does not say which client it is" in caplog.text
    assert "--node-config 'client-id=2'" in caplog.text


def test_a_reply_that_comes_late_is_nobodys():
    """The next exchange does not take it for its own."""
    heard, slow = [], node(upper, **{"client-id": 0})

    def late(message):
        if message.metadata.message_type != "train" or len(heard) > 1:
            return slow(message)
        heard.append(message)
        return None

    grid = Grid({5: late})
    exchange = grid_exchange(grid, timeout=0.2, poll=0.15)
    assert exchange({0: b"old"}) == {}
    assert exchange({0: b"new"}) == {0: b"NEW0"}
