"""Machines that lost their folder: who comes back as a new one, and who must not."""

import jax
import jax.numpy as jnp
import optax
import pytest
from federations import (
    EVERYONE,
    KEY,
    PLAN,
    SIZES,
    algorithm,
    hub_of,
    loss,
    near,
    population,
    start,
)
from secure_world import SECURE, everyones
from secure_world import hub_of as secure_hub_of

import fedjax_lite as fl
from fedjax_lite.deploy import decode, federate, in_process, node

IDS = jnp.arange(len(SIZES))
ROUNDS = 3


def world(algo, folder, secure=None):
    def new(i):
        place = folder / f"client-{i}"
        part = population()[0][i]
        return node(algo, KEY, start(), part, client_id=i, folder=place, secure=secure)

    return {i: new(i) for i in range(len(SIZES))}, new


def losing(answers, new, folder, whose, *, before):
    """An exchange before whose round of this number a client's folder is gone, its machine too."""
    lost = []

    def exchange(requests):
        packet = decode(next(iter(requests.values())))
        if packet.fields.get("round") == before and not lost:
            gone = list((folder / f"client-{whose}").glob("*"))
            assert gone
            for path in gone:
                path.unlink()
            answers[whose] = new(whose)
            lost.extend(gone)
        return in_process(answers)(requests)

    return exchange


def simulated(algo, masks):
    _, data = population()
    state = algo.init(KEY, start(), data)
    for mask in masks:
        state, _ = algo.round(KEY, state, data, fl.Cohort(IDS, mask))
    return state


@pytest.mark.parametrize("name", ["fedavg", "mime", "median"])
def test_a_client_without_a_row_comes_back(name, tmp_path):
    """Nothing was in its file that the round reads: the simulation with everybody."""
    algo = algorithm(name, EVERYONE)
    answers, new = world(algo, tmp_path)
    hub = hub_of(algo)
    exchange = losing(answers, new, tmp_path, 1, before=1)
    done = federate(hub, exchange, num_rounds=ROUNDS)
    assert [row["refused"] for row in done.rows] == [0] * ROUNDS
    near(done.served.state.server, simulated(algo, [IDS >= 0] * ROUNDS).server)


def test_constants_of_the_broadcast_are_sent_again(tmp_path):
    """It misses the round in which the server builds on what it held, and is back in the next."""
    algo = algorithm("frozen", EVERYONE)
    answers, new = world(algo, tmp_path)
    hub = hub_of(algo)
    done = federate(hub, losing(answers, new, tmp_path, 1, before=1), num_rounds=ROUNDS)
    assert [row["num_clients"] for row in done.rows] == [4, 3, 4]
    assert "the server sends them with its next request" in done.rows[1]["refusals"][0]
    near(done.served.state.server, simulated(algo, [IDS >= 0, IDS != 1, IDS >= 0]).server)


def test_a_file_of_an_older_round_is_as_good_as_none(tmp_path):
    """A backup of round 0 comes back before round 2."""
    algo = algorithm("fedavg", EVERYONE)
    answers, _ = world(algo, tmp_path)
    saved = []

    def exchange(requests):
        round = decode(next(iter(requests.values()))).fields.get("round")
        if round == 1:
            (path,) = (tmp_path / "client-1").glob("*.packet")
            saved.append(path.read_bytes())
        if round == 2:
            (path,) = (tmp_path / "client-1").glob("*.packet")
            path.write_bytes(saved[0])
        return in_process(answers)(requests)

    hub = hub_of(algo)
    done = federate(hub, exchange, num_rounds=ROUNDS)
    assert [row["refused"] for row in done.rows] == [0] * ROUNDS
    near(done.served.state.server, simulated(algo, [IDS >= 0] * ROUNDS).server)


def noisy():
    dp = fl.privacy.local_gaussian(
        clip=0.5, noise_multiplier=1.0, delta=1e-3, num_clients=4, cohort_size=4, num_rounds=5
    )
    return fl.fedavg(loss, optax.sgd(0.1), plan=PLAN, privacy=dp)


KEEPERS = {
    "a row": lambda: algorithm("scaffold", EVERYONE),
    "what its uplink has not sent yet": lambda: algorithm("feedback", EVERYONE),
    "under which noise it replied": noisy,
}


@pytest.mark.parametrize("what", KEEPERS)
def test_who_kept_something_is_refused_and_told_what_helps(what, tmp_path):
    """The others go on without it, in every round that follows."""
    algo = KEEPERS[what]()
    answers, new = world(algo, tmp_path)
    hub = hub_of(algo)
    done = federate(hub, losing(answers, new, tmp_path, 1, before=1), num_rounds=ROUNDS)
    assert [row["num_clients"] for row in done.rows] == [4, 3, 3]
    (why,) = done.rows[2]["refusals"]
    assert f"counted round 0 of this client, which {tmp_path}/client-1/" in why
    assert f"does not know; it has {what}: restore that file, or begin a new run" in why
    assert ("with a new key" in why) == (what == "under which noise it replied")


def test_a_secure_client_is_refused(tmp_path):
    """Its file knew of which round it helped to reveal the sum, and for whom."""
    algo = everyones()
    answers, new = world(algo, tmp_path, SECURE)
    hub = secure_hub_of(algo)
    done = federate(hub, losing(answers, new, tmp_path, 1, before=1), num_rounds=2)
    assert [row["num_clients"] for row in done.rows] == [4, 3]
    assert "it has which sums it helped to reveal: restore" in done.rows[1]["refusals"][0]


@pytest.mark.parametrize(("name", "helps"), [("fedavg", "or remove it"), ("scaffold", "a new run")])
def test_a_damaged_file_says_what_helps(name, helps, tmp_path):
    algo = algorithm(name, EVERYONE)
    answers, _ = world(algo, tmp_path)
    hub = hub_of(algo)
    served = hub.init(hub.told(in_process(answers)(dict.fromkeys(range(4), hub.hello()))))
    served = hub.merge(served, in_process(answers)(hub.requests(served))).served
    (path,) = (tmp_path / "client-1").glob("*.packet")
    path.write_bytes(path.read_bytes()[:-1])
    request = hub.requests(served)[1]
    why = decode(answers[1](request)).fields["why"]
    assert "checksum" in why
    assert helps in why
    if name == "fedavg":
        path.unlink()
        assert decode(answers[1](request)).kind == "trained"
        assert jax.tree.leaves(hub.merge(served, in_process(answers)(hub.requests(served))).counted)
