"""Rounds of secure aggregation that are asked for again: what clients reveal then, and what not."""

import functools

import jax
import jax.numpy as jnp
import optax
import pytest
from federations import EVERYONE, KEY, PLAN, loss, population, start
from secure_world import N, begun, everyones, fedavg, hub_of, mean, new_run, nodes_of, same_bytes

import fedjax_lite as fl
from fedjax_lite.crypto import SecAggAbort
from fedjax_lite.deploy import RoundGivenUp, SecureSettings, decode, federate, in_process

ROUNDS = 2


@functools.cache
def algorithm():
    return fedavg(sampler=EVERYONE, aggregator=mean(), uplink=fl.error_feedback(fl.top_k(0.5)))


def simulated(algo, cohorts=None):
    _, data = population()
    state, states = algo.init(KEY, start(), data), []
    for r in range(ROUNDS):
        state, _ = algo.round(KEY, state, data, *([] if cohorts is None else [cohorts[r]]))
        states.append(state)
    return states


class Losing:
    """An exchange that loses replies: `lost` has, by phase and session, who is not heard."""

    def __init__(self, answers, lost):
        self.answers, self.lost, self.sessions = answers, lost, []

    def __call__(self, requests):
        packet = decode(next(iter(requests.values())))
        replies = dict(in_process(self.answers)(requests))
        if packet.kind == "sizes?":
            return replies
        if packet.fields["session"] not in self.sessions:
            self.sessions.append(packet.fields["session"])
        for client in self.lost.get((packet.kind, len(self.sessions)), ()):
            replies.pop(client, None)
        return replies


@pytest.mark.parametrize("phase", ["advertise", "share", "mask", "unmask"])
def test_a_sum_that_fails_twice_and_comes_then(phase, tmp_path):
    """Two of four are lost in a phase, below the threshold of three. In the third try everybody is
    there: bit for bit the simulation, and so is the next round, on the rows of the third try."""
    algo = algorithm()
    states = simulated(algo)
    exchange = Losing(nodes_of(algo, tmp_path), {(phase, 1): [0, 2], (phase, 2): [1, 2]})
    seen = []
    done = federate(
        hub_of(algo), exchange, num_rounds=ROUNDS, retries=2,
        evaluate=lambda state: seen.append(state) or {},
    )  # fmt: skip
    for mine, theirs in zip(seen, states, strict=True):
        same_bytes(mine.server, theirs.server)
    assert [row["tries"] for row in done.rows] == [3, 1]
    assert len(exchange.sessions) == 4


def test_used_up_it_names_who_was_missing(tmp_path):
    algo = algorithm()
    lost = {("share", 2): [3], ("mask", 2): [1], ("mask", 3): [1, 3]}
    exchange = Losing(nodes_of(algo, tmp_path / "rows"), lost)
    run = {"num_rounds": ROUNDS, "folder": tmp_path / "run"}
    with pytest.raises(
        RoundGivenUp,
        match=r"round 1: server: 2 clients sent .* after 2 tries, clients \[1, 3\] were missing",
    ) as caught:
        federate(hub_of(algo), exchange, **run, retries=1)
    assert caught.value.missing == [1, 3]
    done = federate(hub_of(algo), exchange, **run)
    same_bytes(done.served.state.server, simulated(algo)[-1].server)


def test_a_skipped_round_is_one_in_which_nobody_was_there(tmp_path):
    algo = algorithm()
    ids = jnp.arange(N)
    states = simulated(algo, [fl.Cohort(ids, ids < 0), fl.Cohort(ids, ids >= 0)])
    exchange = Losing(nodes_of(algo, tmp_path), {("unmask", 1): [0, 1]})
    done = federate(hub_of(algo), exchange, num_rounds=ROUNDS, when_given_up="skip")
    same_bytes(done.served.state.server, states[-1].server)
    assert done.rows[0]["secure_aborted"] == 1
    assert done.rows[0]["num_clients"] == 0
    assert "2 clients helped" in done.rows[0]["given_up"]


def test_who_helped_once_helps_with_that_sum_only(tmp_path):
    """In the first try all four masked and helped, and the server heard two: one share short. Had
    a third one come late, it would know the sum of all four; so in the second try, without client
    0, none of those who helped does so for the sum of three."""
    algo = algorithm()
    exchange = Losing(nodes_of(algo, tmp_path), {("unmask", 1): [0, 1], ("advertise", 2): [0]})
    with pytest.raises(
        RoundGivenUp, match=r"0 clients helped.*round 0 of clients \[0, 1, 2, 3\] already"
    ):
        federate(hub_of(algo), exchange, num_rounds=1, retries=1)


@pytest.fixture(scope="module")
def world(tmp_path_factory):
    algo = everyones()
    hub, answers = hub_of(algo), nodes_of(algo, tmp_path_factory.mktemp("rows"))
    return algo, hub, answers, begun(hub, answers)


def moved(served):
    """The same round of the same run, with another model."""
    server = jax.tree.map(lambda leaf: leaf + 1, served.state.server)
    return served._replace(state=served.state._replace(server=server))


def test_a_client_sends_one_vector_a_round(world, tmp_path):
    """Nobody lifted a mask in the first try. A server that asks with another model in the second
    one would, with help that comes late, have two messages of each client, minus one another."""
    algo, hub, _, served = world
    answers = nodes_of(algo, tmp_path)
    run = new_run(served)
    with pytest.raises(SecAggAbort, match="0 clients helped"):
        hub.round(run, Losing(answers, {("unmask", 1): range(N)}))
    again = nodes_of(algo, tmp_path)  # started again since
    with pytest.raises(SecAggAbort, match=r"0 clients advertised.*one vector a round"):
        hub.round(moved(run), in_process(again))
    assert hub.round(run, in_process(again)).counted == [0, 1, 2, 3]


def test_keys_alone_bind_nobody(world):
    """Before its vector nothing of a client has left it: another model may come."""
    _, hub, answers, served = world
    run = new_run(served)
    with pytest.raises(SecAggAbort, match="0 clients shared"):
        hub.round(run, Losing(answers, {("share", 1): range(N)}))
    assert hub.round(moved(run), in_process(answers)).counted == [0, 1, 2, 3]


def test_the_clients_own_noise_is_the_same_in_every_try(tmp_path):
    dp = fl.privacy.distributed_discrete_gaussian(
        clip=1.0, cohort_size=N, dimension=4, delta=1e-3, noise_multiplier=2.0, bits=16,
        num_rounds=5,
    )  # fmt: skip
    algo = fl.fedavg(loss, optax.sgd(0.1), plan=PLAN, privacy=dp)
    assert algo.accountant is not None
    secure = SecureSettings(threshold=3, min_survivors=N)
    exchange = Losing(nodes_of(algo, tmp_path, secure), {("mask", 1): [2], ("unmask", 2): [0, 1]})
    done = federate(hub_of(algo, secure), exchange, num_rounds=ROUNDS, retries=2)
    same_bytes(done.served.state.server, simulated(algo)[-1].server)
    spent = [algo.accountant.spent(r + 1)["epsilon"] for r in range(ROUNDS)]
    assert [row["epsilon"] for row in done.rows] == pytest.approx(spent)  # tries spend nothing
