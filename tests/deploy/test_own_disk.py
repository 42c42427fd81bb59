"""What a client's disk takes, keeps and gives away: full disks, many runs, one noise a round."""

import os

import jax
import jax.numpy as jnp
import numpy as np
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
    nodes_of,
    population,
    start,
)

import fedjax_lite as fl
from fedjax_lite.deploy import decode, encode, federate, in_process, node


class Killed(BaseException):
    """What ends a process."""


def refused(reply):
    packet = decode(reply)
    assert packet.kind == "refused"
    return packet.fields["why"]


def world(algo, folder):
    hub = hub_of(algo)
    answers = nodes_of(algo, population()[0], folder)
    served = hub.init(hub.told(in_process(answers)(dict.fromkeys(range(4), hub.hello()))))
    return hub, served, answers


def test_a_full_disk_is_a_refusal_and_leaves_the_row_as_it_was(tmp_path, monkeypatch):
    """The client whose disk was full in round 0 dropped out of it, and is back in round 1."""
    algo = algorithm("scaffold", EVERYONE)
    _, data = population()
    hub, served, answers = world(algo, tmp_path)

    def full(number):
        raise OSError(28, "No space left on device")

    requests = hub.requests(served)
    replies = in_process(answers)({i: requests[i] for i in (0, 1, 2)})
    with monkeypatch.context() as patch:
        patch.setattr(os, "fsync", full)
        replies[3] = answers[3](requests[3])
    assert "No space left on device" in refused(replies[3])
    assert not list(tmp_path.glob(".*"))
    served = hub.merge(served, replies).served
    served = hub.merge(served, in_process(answers)(hub.requests(served))).served
    ids = jnp.arange(len(SIZES))
    state = algo.init(KEY, start(), data)
    for mask in (ids != 3, ids >= 0):
        state, _ = algo.round(KEY, state, data, fl.Cohort(ids, mask))
    near(served.state.server, state.server)


def test_populations_that_cannot_be_are_refused_in_words(tmp_path):
    (answer, *_) = nodes_of(algorithm("private"), population()[0], tmp_path).values()
    assert "none of 5" in refused(answer(encode("sizes?", {"num_clients": 5})))
    assert "of which I am 0" in refused(answer(encode("sizes?", {"num_clients": 10**12})))
    assert decode(answer(encode("sizes?", {"num_clients": 4}))).kind == "sizes"


def test_servers_that_name_many_runs_do_not_fill_the_disk(tmp_path):
    hub, served, answers = world(algorithm("fedavg", EVERYONE), tmp_path)
    packet = decode(hub.requests(served)[0])
    sent = {"sent": [jnp.float32(0), jnp.zeros(3)], "found": ()}
    for i in range(64):
        name = f"{i:032x}"
        assert decode(answers[0](encode("train", {**packet.fields, "run": name}, sent))).kind == (
            "trained"
        )
    assert "remove those that are over" in refused(answers[0](hub.requests(served)[0]))
    assert len(list(tmp_path.glob("client-0-*"))) == 64
    again = encode("train", {**packet.fields, "run": f"{3:032x}"}, sent)
    assert decode(answers[0](again)).kind == "trained"


def test_a_server_that_is_killed_in_its_first_round_keeps_the_run(tmp_path):
    algo = algorithm("scaffold", EVERYONE)
    answers = nodes_of(algo, population()[0], tmp_path / "rows")

    def dying(requests):
        replies = in_process(answers)(requests)
        if decode(requests[0]).kind == "train":
            raise Killed
        return replies

    hub = hub_of(algo)
    with pytest.raises(Killed):
        federate(hub, dying, num_rounds=1, folder=tmp_path / "run")
    done = federate(hub, in_process(answers), num_rounds=1, folder=tmp_path / "run")
    assert done.rows[0]["num_clients"] == len(SIZES)
    assert len(list((tmp_path / "rows").glob("client-0-*"))) == 1


NOISY = fl.privacy.local_gaussian(
    clip=0.5,
    epsilon=1.0,
    delta=1e-3,
    num_clients=len(SIZES),
    cohort_size=len(SIZES),
    num_rounds=2,
)


def test_local_noise_covers_one_reply_a_round(tmp_path):
    """Two replies under one noise would differ by what it hides."""
    algo = fl.fedavg(loss, optax.sgd(0.1), plan=PLAN, privacy=NOISY)
    parts, _ = population()
    hub, served, answers = world(algo, tmp_path)
    own = {"client_id": 0, "folder": tmp_path}
    answer = node(algo, jax.random.key(99), start(), parts[0], **own)
    request = hub.requests(served)[0]
    first = answer(request)
    assert decode(first).kind == "trained"
    assert answer(request) == first
    other = served._replace(
        state=served.state._replace(server=jax.tree.map(lambda leaf: leaf + 1, served.state.server))
    )
    assert "one reply a round" in refused(answer(hub.requests(other)[0]))
    assert answer(request) == first
    foreign = served._replace(run=served.run ^ 1)
    assert "served another run" in refused(answer(hub.requests(foreign)[0]))
    for round in (1, 2):
        replies = {**in_process(answers)(hub.requests(served)), 0: answer(hub.requests(served)[0])}
        served = hub.merge(served, replies).served
        assert int(served.state.round) == round
    fields = {**decode(request).fields, "round": 2, "committed": 1}
    sent = {"sent": [jnp.float32(0), jnp.zeros(3)], "found": ()}
    assert "ends after 2 rounds" in refused(answer(encode("train", fields, sent)))
    assert np.isfinite(served.state.server.params["w"]).all()
