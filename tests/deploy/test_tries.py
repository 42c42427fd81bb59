"""Rounds that are asked for again: to the same numbers, or given up by name, or skipped."""

import jax.numpy as jnp
import numpy as np
import pytest
from federations import (
    EVERYONE,
    KEY,
    NUM_ROUNDS,
    SIZES,
    algorithm,
    hub_of,
    near,
    nodes_of,
    population,
    simulated,
    start,
)

import fedjax_lite as fl
from fedjax_lite.deploy import (
    FederationAborted,
    RoundGivenUp,
    decode,
    federate,
    in_process,
    server,
)
from fedjax_lite.deploy import tries as tries_module
from fedjax_lite.run import checkpoint

IDS = jnp.arange(len(SIZES))
EVERYBODY = [fl.Cohort(IDS, IDS >= 0)] * NUM_ROUNDS


class Killed(BaseException):
    """What ends a process."""


@pytest.fixture(autouse=True)
def waited(monkeypatch):
    """How long was waited, without waiting."""
    seconds = []
    monkeypatch.setattr(tries_module.time, "sleep", seconds.append)
    return seconds


def world(name, folder, **options):
    algo = algorithm(name, EVERYONE)
    hub = hub_of(algo)
    return algo, hub, nodes_of(algo, population()[0], folder)


class Losing:
    """An exchange that loses replies: `lost` has, by round and try, who is not heard."""

    def __init__(self, answers, lost):
        self.answers, self.lost = answers, lost
        self.asked, self.turns = [], {}

    def __call__(self, requests):
        packet = decode(next(iter(requests.values())))
        replies = dict(in_process(self.answers)(requests))
        if packet.kind == "sizes?":
            return replies
        where = (packet.kind, packet.fields["round"])
        turn = self.turns[where] = self.turns.get(where, 0) + 1
        self.asked.append((*where, sorted(requests)))
        for client in self.lost.get((*where, turn), ()):
            replies.pop(client, None)
        return replies


@pytest.mark.parametrize("name", ["scaffold", "feedback"])
def test_replies_that_are_lost_twice_and_come_then(name, tmp_path, waited):
    """Rows of clients, too, are the simulation's in which everybody was there: those of the clients
    that were asked three times, and of one that started again in between."""
    algo, hub, answers = world(name, tmp_path)
    states, rows = simulated(algo, population()[1], EVERYBODY)
    exchange = Losing(answers, {("train", 1, 1): [0, 2], ("train", 1, 2): [2]})
    seen, restarted = [], []

    def restarting(requests):
        replies = exchange(requests)
        if exchange.turns == {("train", 0): 1, ("train", 1): 2}:
            answers[2] = nodes_of(algo, population()[0], tmp_path)[2]
            restarted.append(2)
        return replies

    done = federate(
        hub, restarting, num_rounds=NUM_ROUNDS, min_clients=4, retries=2, patience=7.0,
        evaluate=lambda state: seen.append(state) or {},
    )  # fmt: skip
    for mine, theirs in zip(seen, states, strict=True):
        near(mine.server, theirs.server)
    assert [row["tries"] for row in done.rows] == [1, 3, 1]
    assert [row["num_clients"] for row in done.rows] == [int(m["num_clients"]) for m in rows]
    assert [who for _, round, who in exchange.asked if round == 1] == [[0, 1, 2, 3], [0, 2], [2]]
    assert waited == [7.0, 7.0]
    assert restarted == [2]


def test_enough_are_there_in_a_later_try(tmp_path):
    """Two of four are too few, three are not: client 1 trained in round 0 and its reply is lost in
    each of two tries. It dropped out; its row stays that of before."""
    algo, hub, answers = world("scaffold", tmp_path)
    masks = [IDS != 1, IDS >= 0, IDS >= 0]
    states, _ = simulated(algo, population()[1], [fl.Cohort(IDS, mask) for mask in masks])
    exchange = Losing(answers, {("train", 0, 1): [1, 2], ("train", 0, 2): [1]})
    seen = []
    done = federate(
        hub, exchange, num_rounds=NUM_ROUNDS, min_clients=3, retries=1,
        evaluate=lambda state: seen.append(state) or {},
    )  # fmt: skip
    for mine, theirs in zip(seen, states, strict=True):
        near(mine.server, theirs.server)
    assert [row["num_clients"] for row in done.rows] == [3, 4, 4]


def test_a_prologue_is_rehearsed_anew(tmp_path):
    """Mime's clients train on what all of them rehearsed. Client 3 misses the first prologue, and
    client 2's reply to it counts for nothing when the second one, with everybody, moved the model:
    no reply to another request is kept, and no row of one."""
    algo, hub, answers = world("mime", tmp_path)
    states, _ = simulated(algo, population()[1], EVERYBODY)
    lost = {("rehearse", 1, 1): [3], ("train", 1, 1): [0], ("train", 1, 2): []}
    exchange = Losing(answers, lost)
    done = federate(hub, exchange, num_rounds=NUM_ROUNDS, min_clients=4, retries=1)
    near(done.served.state.server, states[-1].server)
    everybody = [0, 1, 2, 3]
    assert [who for kind, round, who in exchange.asked if (kind, round) == ("train", 1)] == [
        everybody[:3],
        everybody,
    ]


def test_used_up_it_names_who_was_missing_and_a_restarted_server_goes_on(tmp_path, waited):
    algo, hub, answers = world("scaffold", tmp_path / "rows")
    states, _ = simulated(algo, population()[1], EVERYBODY)
    lost = {("train", 1, turn): [1, 3] for turn in (1, 2, 3)} | {("train", 1, 2): [3]}
    exchange = Losing(answers, lost)
    run = {"num_rounds": NUM_ROUNDS, "folder": tmp_path / "run", "min_clients": 4}
    why = r"round 1: 3 of 4 clients .* 3 tries, clients \[3\] were missing.* retries="
    with pytest.raises(RoundGivenUp, match=why) as caught:
        federate(hub, exchange, **run, retries=2, patience=1.0)
    assert (caught.value.round, caught.value.tries, caught.value.missing) == (1, 3, [3])
    assert isinstance(caught.value, FederationAborted)
    assert waited == [1.0, 1.0]
    assert checkpoint.steps(tmp_path / "run" / "checkpoints")[-1] == 1
    hub = server(algo, KEY, start(), num_clients=len(SIZES))
    done = federate(hub, in_process(answers), **run)
    near(done.served.state.server, states[-1].server)
    assert [row["round"] for row in done.rows] == [1, 2, 3]


def test_a_server_that_is_killed_between_two_tries_goes_on(tmp_path, monkeypatch):
    algo, hub, answers = world("feedback", tmp_path / "rows")
    states, _ = simulated(algo, population()[1], EVERYBODY)
    exchange = Losing(answers, {("train", 1, 1): [0, 2]})
    run = {"num_rounds": NUM_ROUNDS, "folder": tmp_path / "run", "min_clients": 4}

    def dies(seconds):
        raise Killed

    with monkeypatch.context() as patch:
        patch.setattr(tries_module.time, "sleep", dies)
        with pytest.raises(Killed):
            federate(hub, exchange, **run, retries=1)
    done = federate(hub, exchange, **run)
    near(done.served.state.server, states[-1].server)
    assert [row["tries"] for row in done.rows] == [1, 1, 1]


def test_a_damaged_reply_is_asked_for_again(tmp_path):
    """It is no reply; who sent it sends it once more. Refusals of all tries stand in the row."""
    algo, hub, answers = world("scaffold", tmp_path)
    states, _ = simulated(algo, population()[1], EVERYBODY)
    honest, damaged = answers[2], []

    def flaky(request):
        reply = honest(request)
        if decode(request).kind == "train" and len(damaged) < 2:
            damaged.append(reply)
            return reply[:-1]
        return reply

    exchange = Losing({**answers, 2: flaky}, {})
    done = federate(hub, exchange, num_rounds=NUM_ROUNDS, min_clients=4, retries=2)
    near(done.served.state.server, states[-1].server)
    assert [row["refused"] for row in done.rows] == [2, 0, 0]
    assert all("checksum" in why for why in done.rows[0]["refusals"])
    assert [who for _, round, who in exchange.asked if round == 0] == [[0, 1, 2, 3], [2], [2]]
    damaged.clear()
    with pytest.raises(FederationAborted, match="checksum") as caught:
        federate(hub, exchange, num_rounds=1, min_clients=4, retries=2, on_refusal="abort")
    assert not isinstance(caught.value, RoundGivenUp)
    assert len(damaged) == 1


@pytest.mark.parametrize("name", ["scaffold", "private"])
def test_a_round_is_skipped_as_one_in_which_nobody_was_there(name, tmp_path):
    """Clients trained in it, and forget that; noise of a mechanism is in the model, and spent."""
    algo, hub, answers = world(name, tmp_path)
    _, data = population()
    drawn = algo.init(KEY, start(), data)
    state, states, cohorts = drawn, [], []
    for round in range(NUM_ROUNDS):
        _, cohort = algo.sample(KEY, state.round, state.sampler, data.sizes)
        mask = cohort.mask & (round != 1)
        cohorts.append(np.asarray(cohort.mask).sum())
        state, _ = algo.round(KEY, state, data, cohort._replace(mask=mask))
        states.append(state)
    assert cohorts[1] > 1
    exchange = Losing(answers, {("train", 1, turn): [0, 1, 2, 3] for turn in (1, 2)})
    seen = []
    done = federate(
        hub, exchange, num_rounds=NUM_ROUNDS, retries=1, when_given_up="skip",
        evaluate=lambda state: seen.append(state) or {},
    )  # fmt: skip
    for mine, theirs in zip(seen, states, strict=True):
        near(mine.server, theirs.server)
    assert [row["tries"] for row in done.rows] == [1, 2, 1]
    assert ["given_up" in row for row in done.rows] == [False, True, False]
    assert "were missing" in done.rows[1]["given_up"]
    assert done.rows[1]["num_clients"] == 0
    if name == "private":
        spent = [algo.accountant.spent(r + 1)["epsilon"] for r in range(NUM_ROUNDS)]
        assert [row["epsilon"] for row in done.rows] == pytest.approx(spent)


def test_sizes_that_are_missing_are_asked_for_again(tmp_path, waited):
    _, hub, answers = world("fedavg", tmp_path)
    greeted = []

    def exchange(requests):
        there = answers
        if decode(next(iter(requests.values()))).kind == "sizes?":
            greeted.append(sorted(requests))
            there = answers if len(greeted) == 3 else {i: answers[i] for i in range(len(greeted))}
        return in_process(there)(requests)

    with pytest.raises(FederationAborted, match=r"\[1, 2, 3\] of 4 did not tell"):
        federate(hub, exchange, num_rounds=1)
    greeted[:] = [[]]
    done = federate(hub, exchange, num_rounds=1, retries=1, patience=2.0)
    assert done.rows[0]["num_clients"] == 4
    assert greeted[1:] == [[0, 1, 2, 3], [2, 3]]
    assert waited == [2.0]


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("retries", -1),
        ("retries", 1.5),
        ("patience", -1.0),
        ("patience", float("inf")),
        ("when_given_up", "ignore"),
    ],
)
def test_what_makes_no_sense_is_refused_by_name(name, value, tmp_path):
    _, hub, answers = world("fedavg", tmp_path)
    with pytest.raises((TypeError, ValueError), match=name):
        federate(hub, in_process(answers), num_rounds=1, **{name: value})


def test_a_reply_is_kept_for_the_last_request_only():
    """A client that was asked for something else meanwhile has the row of that: what it replied to
    the first request is no reply any more, though the first one come again."""
    asked, lost = [], []

    def exchange(requests):
        asked.append(dict(requests))
        return {i: request.upper() for i, request in requests.items() if i not in lost}

    traffic = tries_module.Traffic(exchange)
    assert traffic({0: b"a", 1: b"a"}) == {0: b"A", 1: b"A"}
    assert traffic({0: b"a", 1: b"b"}) == {0: b"A", 1: b"B"}
    assert asked[-1] == {1: b"b"}
    lost.append(1)
    assert traffic({0: b"a", 1: b"c"}) == {0: b"A"}  # whose row it has now nobody knows
    lost.clear()
    assert traffic({0: b"a", 1: b"b"}) == {0: b"A", 1: b"B"}
    assert asked[-1] == {1: b"b"}
    traffic.forget([0, 7])
    assert traffic({0: b"a", 1: b"b"}) == {0: b"A", 1: b"B"}
    assert asked[-1] == {0: b"a"}
    assert (traffic.down, traffic.up) == (6, 5)
