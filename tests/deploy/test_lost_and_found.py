"""Clients that are killed, replies that are lost, a server that resumes, packets that lie."""

import hashlib
import json
import struct
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from federations import (
    EVERYONE,
    KEY,
    NUM_ROUNDS,
    PLAN,
    SIZES,
    algorithm,
    hub_of,
    loss,
    near,
    nodes_of,
    population,
    simulated,
    start,
)

import fedjax_lite as fl
from fedjax_lite.deploy import (
    FederationAborted,
    decode,
    encode,
    federate,
    in_process,
    node,
    server,
    unpack,
)


class Killed(BaseException):
    """What ends a process."""


def everyone(name):
    return algorithm(name, EVERYONE)


@pytest.mark.parametrize("name", ["scaffold", "feedback"])
def test_a_lost_reply_is_a_client_that_dropped_out(name, tmp_path):
    """Client 1 trains in round 1, but its reply is lost; in round 2 client 2 is down."""
    algo = everyone(name)
    parts, data = population()
    ids = jnp.arange(len(SIZES))
    masks = [ids >= 0, ids != 1, ids != 2]
    states, _ = simulated(algo, data, [fl.Cohort(ids, mask) for mask in masks])
    answers = nodes_of(algo, parts, tmp_path)
    rounds = []

    def exchange(requests):
        replies = dict(in_process(answers)(requests))
        if decode(next(iter(requests.values()))).kind == "train":
            rounds.append(len(rounds))
            down = {1: 1, 2: 2}.get(rounds[-1], -1)
            replies.pop(down, None)
            if down == 1:  # and the machine itself starts again, from its disk
                answers[1] = nodes_of(algo, parts, tmp_path)[1]
        return replies

    seen = []
    federate(hub_of(algo), exchange, num_rounds=NUM_ROUNDS, evaluate=lambda s: seen.append(s) or {})
    for mine, theirs in zip(seen, states, strict=True):
        near(mine.server, theirs.server)


@pytest.mark.parametrize("name", ["mime", "power_of_choice"])
def test_who_misses_the_prologue_is_out_of_the_round(name, tmp_path):
    algo = everyone(name)
    parts, data = population()
    ids = jnp.arange(len(SIZES))
    masks = [ids != 3, ids != 0, ids >= 0]
    states, rows = simulated(algo, data, [fl.Cohort(ids, mask) for mask in masks])
    rehearsals = []

    def exchange(requests):
        replies = dict(in_process(nodes)(requests))
        if decode(next(iter(requests.values()))).kind == "rehearse":
            rehearsals.append(sorted(requests))
            replies.pop({1: 3, 2: 0}.get(len(rehearsals), -1), None)
        return replies

    nodes = nodes_of(algo, parts, tmp_path)
    seen = []
    done = federate(
        hub_of(algo), exchange, num_rounds=NUM_ROUNDS, evaluate=lambda s: seen.append(s) or {}
    )
    for mine, theirs in zip(seen, states, strict=True):
        near(mine.server, theirs.server)
    assert [row["num_clients"] for row in done.rows] == [int(m["num_clients"]) for m in rows]
    assert rehearsals == [list(range(len(SIZES)))] * NUM_ROUNDS


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """A run whose server lives."""
    algo, folder = everyone("scaffold"), tmp_path_factory.mktemp("whole")
    exchange = in_process(nodes_of(algo, population()[0], folder / "rows"))
    return federate(hub_of(algo), exchange, num_rounds=NUM_ROUNDS, folder=folder / "run")


@pytest.mark.parametrize("moment", ["before", "half", "after"])
def test_a_killed_server_goes_on_to_the_same_bytes(moment, whole, tmp_path):
    """Killed in round 1, before anybody, after some, or after all clients have trained."""
    algo = everyone("scaffold")
    parts, _ = population()
    answers = nodes_of(algo, parts, tmp_path / "b")

    def dying(requests):
        packet = decode(next(iter(requests.values())))
        if packet.kind == "train" and packet.fields["round"] == 1:
            few = {"before": 0, "half": 2, "after": len(SIZES)}[moment]
            in_process(answers)(dict(list(requests.items())[:few]))
            raise Killed
        return in_process(answers)(requests)

    with pytest.raises(Killed):
        federate(hub_of(algo), dying, num_rounds=NUM_ROUNDS, folder=tmp_path / "run")
    again = federate(
        hub_of(algo), in_process(answers), num_rounds=NUM_ROUNDS, folder=tmp_path / "run"
    )
    for mine, theirs in zip(
        jax.tree.leaves(again.served.state), jax.tree.leaves(whole.served.state), strict=True
    ):
        assert np.asarray(mine).tobytes() == np.asarray(theirs).tobytes()
    assert [row["round"] for row in again.rows] == list(range(1, NUM_ROUNDS + 1))
    assert again.rows == whole.rows


def test_lies_are_refused_by_name_and_the_round_goes_on(tmp_path):
    algo = everyone("fedavg")
    parts, data = population()
    ids = jnp.arange(len(SIZES))
    states, _ = simulated(algo, data, [fl.Cohort(ids, ids == 3)] * NUM_ROUNDS)
    honest = nodes_of(algo, parts, tmp_path)
    hub = hub_of(algo)
    greetings = in_process(honest)(dict.fromkeys(range(len(SIZES)), hub.hello()))
    earlier = in_process(honest)(hub.requests(hub.init(hub.told(greetings))))
    answers = {
        0: lambda request: diverged(honest[0](request)),
        1: lambda request: earlier[1],  # replayed, of another run
        3: honest[3],
    }
    served = hub.init(hub.told(greetings))
    for r in range(NUM_ROUNDS):
        replies = in_process(answers)(hub.requests(served))
        replies = {**replies, 2: replies[3], 7: b"from nobody"}
        merged = hub.merge(served, replies)
        why = {refusal.client: refusal.why for refusal in merged.refusals}
        assert "is not finite" in why[0]
        assert "of run" in why[1]
        assert "of client 3, not 2" in why[2]
        assert "was not asked" in why[7]
        assert merged.counted == [3]
        served = merged.served
        near(served.state.server, states[r].server)
        late = hub.merge(served, replies)  # a round behind
        assert "of round" in {refusal.client: refusal.why for refusal in late.refusals}[3]
        near(late.served.state.server, served.state.server)  # nobody counted


def diverged(reply):
    """The same reply with a NaN in the middle of its model."""
    packet = decode(reply)
    template = {path: jnp.zeros(shape, dtype) for path, dtype, shape in packet.leaves}
    numbered = [(f"[{i}]", *leaf[1:]) for i, leaf in enumerate(packet.leaves)]
    values = unpack(packet._replace(leaves=numbered), list(template.values()))
    (place,) = (i for i, path in enumerate(template) if path == "['message'].value['w']")
    values[place] = values[place].at[1].set(jnp.nan)
    return encode_named(packet.fields, dict(zip(template, values, strict=True)))


def encode_named(fields, named):
    """A packet whose arrays have these very paths."""
    text = json.dumps(
        {
            "kind": "trained",
            "fields": fields,
            "leaves": [[path, leaf.dtype.name, list(leaf.shape)] for path, leaf in named.items()],
            "deflated": False,
        }
    ).encode()
    body = b"FJLP" + struct.pack("<HI", 1, len(text)) + text
    body += b"".join(np.asarray(leaf).tobytes() for leaf in named.values())
    return body + hashlib.sha256(body).digest()


def test_aborts_as_configured(tmp_path):
    algo = everyone("fedavg")
    parts, _ = population()
    answers = nodes_of(algo, parts, tmp_path / "rows")
    honest = answers[2]
    answers[2] = lambda request: honest(request)[:-1]

    def only_training(requests):
        kind = decode(next(iter(requests.values()))).kind
        return in_process(answers if kind == "train" else {**answers, 2: honest})(requests)

    with pytest.raises(FederationAborted, match="checksum"):
        federate(hub_of(algo), only_training, num_rounds=1, on_refusal="abort")
    with pytest.raises(FederationAborted, match="3 of 4 clients replied"):
        federate(hub_of(algo), only_training, num_rounds=1, min_clients=4)
    assert federate(hub_of(algo), only_training, num_rounds=1).rows[0]["refused"] == 1


def test_a_budget_of_privacy_ends_the_run_before_anybody_trains(tmp_path):
    mechanism = fl.privacy.central_gaussian(
        clip=0.5,
        num_clients=len(SIZES),
        delta=1e-3,
        sampling_rate=0.9,
        noise_multiplier=1.0,
        num_rounds=2,
    )
    algo = fl.fedavg(loss, optax.sgd(0.1), plan=PLAN, privacy=mechanism)
    parts, _ = population()
    kinds = []

    def exchange(requests):
        kinds.extend(decode(request).kind for request in requests.values())
        return in_process(answers)(requests)

    answers = nodes_of(algo, parts, tmp_path / "rows")
    done = federate(hub_of(algo), exchange, num_rounds=2, folder=tmp_path / "run")
    spent = [row["epsilon"] for row in done.rows]
    assert spent == pytest.approx([mechanism.accountant.spent(r)["epsilon"] for r in (1, 2)])
    kinds.clear()
    with pytest.raises(ValueError, match="budget"):
        federate(hub_of(algo), exchange, num_rounds=3, folder=tmp_path / "run")
    assert kinds == []


def test_all_must_tell_their_sizes(tmp_path):
    algo = everyone("fedavg")
    answers = nodes_of(algo, population()[0], tmp_path)
    del answers[2]
    with pytest.raises(FederationAborted, match=r"\[2\] of 4 did not tell"):
        federate(hub_of(algo), in_process(answers), num_rounds=1)


def test_a_client_refuses_what_it_cannot_answer(tmp_path):
    algo = everyone("scaffold")
    parts, _ = population()
    answers = nodes_of(algo, parts, tmp_path)
    hub = hub_of(algo)
    served = hub.init(hub.told(in_process(answers)(dict.fromkeys(range(4), hub.hello()))))
    request = hub.requests(served)[0]
    fields = decode(request).fields
    sent = {"sent": [jnp.zeros(3)]}

    def why(data):
        packet = decode(answers[0](data))
        assert packet.kind == "refused"
        return packet.fields["why"]

    assert "checksum" in why(request[:-1] + b"?")
    assert "waited for sizes?" in why(encode("row", {}))
    assert "lacks" in why(encode("train", fields, sent)) or "float32" in why(
        encode("train", fields, sent)
    )
    assert "names no run" in why(encode("train", {**fields, "run": "../../etc"}, sent))
    assert "which is no round" in why(encode("train", {**fields, "round": "1"}, sent))
    assert "for client 2, I am 0" in why(hub.requests(served)[2])
    assert "of which I am 0" in why(encode("train", {**fields, "num_clients": 0}, sent))
    assert "does not know" in why(encode("train", {**fields, "committed": 4, "round": 5}, sent))
    assert decode(answers[0](request)).kind == "trained"
    (file,) = tmp_path.glob("client-0-*")
    later = hub.merge(served, in_process(answers)(hub.requests(served))).served
    assert decode(answers[0](hub.requests(later)[0])).kind == "trained"
    assert "trained in round 1 since" in why(request)
    data = bytearray(file.read_bytes())
    data[-40] ^= 1
    file.write_bytes(bytes(data))
    assert "checksum" in why(hub.requests(later)[0])
    assert not list(tmp_path.glob(".*tmp"))


def test_methods_without_a_client_of_their_own_say_so(tmp_path):
    parts, _ = population()
    buffered = fl.fedbuff(
        loss, optax.sgd(0.1), plan=PLAN, concurrency=2, buffer=1, latency=lambda *_: 1.0
    )
    ask = encode("sizes?", {"num_clients": 1})
    plain = algorithm("fedavg")

    def warm(key, params, data):
        return plain.init(key, jax.tree.map(jnp.ones_like, params), data)

    cases: list[tuple[Any, type, str]] = [
        (plain._replace(init=warm), TypeError, "init around theirs"),
        (buffered, TypeError, "drawn and waited for"),
        (None, TypeError, "FederatedAlgorithm"),
    ]
    for algo, error, why in cases:
        with pytest.raises(error, match=why):
            server(algo, KEY, start(), num_clients=4)
        with pytest.raises(error, match=why):
            node(algo, KEY, start(), parts[0], client_id=0, folder=tmp_path)(ask)
