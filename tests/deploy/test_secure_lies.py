"""Packets of secure aggregation that were changed, are stale or of somebody else; repeated rounds;
what is refused before anything is asked."""

import dataclasses
import hashlib
import json
import struct

import jax.numpy as jnp
import numpy as np
import pytest
from federations import KEY, PLAN, loss, population, start
from secure_world import (
    SECURE,
    N,
    begun,
    everyones,
    fedavg,
    hub_of,
    mean,
    new_run,
    nodes_of,
    same_bytes,
)

import fedjax_lite as fl
from fedjax_lite.crypto import SecAggAbort
from fedjax_lite.crypto.secagg.messages import (
    Advertisement,
    Confirmation,
    EncryptedShares,
    MaskedInput,
    Roster,
    Unmasking,
    UnmaskRequest,
)
from fedjax_lite.deploy import (
    PacketError,
    SecureSettings,
    decode,
    encode,
    in_process,
    node,
    server,
)
from fedjax_lite.deploy.secure_messages import from_fields, several_from, to_fields


@pytest.fixture(scope="module")
def world(tmp_path_factory):
    algo = everyones()
    hub, answers = hub_of(algo), nodes_of(algo, tmp_path_factory.mktemp("rows"))
    return algo, hub, answers, begun(hub, answers)


def changed(data, change):
    """The same packet with other fields or words, and a checksum that holds."""
    (length,) = struct.unpack_from("<I", data, 6)
    header = json.loads(data[10 : 10 + length])
    payload = bytearray(data[10 + length : -32])
    change(header["fields"], payload)
    text = json.dumps(header).encode()
    body = b"FJLP" + struct.pack("<HI", 1, len(text)) + text + bytes(payload)
    return body + hashlib.sha256(body).digest()


def meddling(answers, phase, change, whose=1, requests_too=False):
    """An exchange that changes one client's reply in a phase (or the request before it)."""

    def exchange(requests):
        requests = dict(requests)
        hit = decode(next(iter(requests.values()))).kind == phase and whose in requests
        if hit and requests_too:
            requests[whose] = change(requests[whose])
        replies = in_process(answers)(requests)
        if hit and not requests_too:
            replies[whose] = change(replies[whose])
        return replies

    return exchange


def flip(data):
    return data[:-40] + bytes([data[-40] ^ 1]) + data[-39:]


def set_field(**fields):
    return lambda data: changed(data, lambda found, _: found.update(fields))


def set_in(name, value):
    return lambda data: changed(data, lambda found, _: found["message"].update({name: value}))


def word_changed(data):
    def change(_, payload):
        payload[5] ^= 1

    return changed(data, change)


@pytest.mark.parametrize(
    ("phase", "change", "why"),
    [
        ("advertise", flip, "checksum"),
        ("advertise", set_field(session="f" * 32), "of session 'ffff"),
        ("advertise", set_in("mask_key", "00" * 32), "client 1"),
        ("advertise", set_in("client", 2), "client 2"),
        ("advertise", set_in("mask_key", "zz"), "mask_key of .* client 1 is malformed"),
        ("share", set_field(messages=[]), "shares of client 1 are not for"),
        ("share", set_field(messages="none"), "no list of messages"),
        ("mask", flip, "checksum"),
        ("mask", set_field(round=7), "of round 7, not 0: stale"),
        ("mask", word_changed, "client 1"),
        ("mask", lambda d: encode("masked", decode(d).fields, {"vector": np.ones(3)}), "float"),
    ],
)  # fmt: skip
def test_who_sends_what_does_not_fit_dropped_out(world, phase, change, why):
    """The round goes on without it, to the numbers of a client that is not there."""
    _, hub, answers, served = world
    merged = hub.round(new_run(served), meddling(answers, phase, change))
    (refusal,) = merged.refusals
    assert refusal.client == 1
    with pytest.raises(ValueError, match=why):
        raise ValueError(refusal.why)
    assert merged.counted == [0, 2, 3]
    without = hub.round(new_run(served), in_process({i: answers[i] for i in (0, 2, 3)}))
    same_bytes(merged.served.state.server, without.served.state.server)


@pytest.mark.parametrize(
    ("change", "why"),
    [
        (set_in("self_shares", []), "seed shares of"),
        (flip, "checksum"),
        (set_in("proof", "00" * 32), "client 1"),
    ],
)
def test_lies_about_shares_end_the_round_or_cost_nothing(world, change, why):
    """Three others are the threshold; what a share is not is found out."""
    _, hub, answers, served = world
    exchange = meddling(answers, "unmask", change)
    try:
        merged = hub.round(new_run(served), exchange)
        text, counted = merged.refusals[0].why, merged.counted
    except SecAggAbort as error:
        text, counted = str(error), None
    with pytest.raises(ValueError, match=why):
        raise ValueError(text)
    assert counted in (None, [0, 1, 2, 3])  # whose vector was there counts


@pytest.mark.parametrize("phase", ["share", "mask", "unmask"])
def test_clients_refuse_what_does_not_fit(world, phase):
    """A request that was changed, one that came before, one of another session."""
    _, hub, answers, served = world
    run = new_run(served)
    changes = {
        "share": (set_in("advertisements", []), "roster"),
        "mask": (set_field(messages=[{"sender": 1, "recipient": 1, "ciphertext": ""}]), "belong"),
        "unmask": (set_in("survivors", [1]), "survived"),
    }
    change, why = changes[phase]
    text = ""
    try:
        merged = hub.round(run, meddling(answers, phase, change, requests_too=True))
        text = merged.refusals[0].why
    except SecAggAbort as error:
        text = str(error)
    assert "client 1 refused" in text
    assert why in text
    stale = set_field(session="0" * 32)
    merged = hub.round(new_run(served), meddling(answers, phase, stale, requests_too=True))
    assert "knows no session '0000" in merged.refusals[0].why
    with pytest.raises(SecAggAbort, match=r"server: 2 clients .*; refused: client 1 refused"):
        hub.round(
            new_run(served),
            meddling({i: answers[i] for i in (0, 1, 2)}, phase, stale, requests_too=True),
        )


def test_asked_again_a_client_says_the_same(world):
    """As after a connection that broke; other survivors get nothing, though they be enough."""
    _, hub, answers, served = world
    asked = {}

    def doubled(requests):
        first = in_process(answers)(requests)
        asked[decode(requests[0]).kind] = requests[0]
        assert first == in_process(answers)(requests)
        return first

    hub.round(new_run(served), doubled)
    other = changed(asked["unmask"], lambda f, _: f["message"].update(survivors=[0, 1, 2]))
    assert "would tell single clients apart" in decode(answers[0](other)).fields["why"]


def test_a_round_is_revealed_for_one_set_of_clients(world, tmp_path):
    """The difference of two sums of a round would be a client's message: clients refuse the second
    one, also after they were started again; the same sum they give as often as it is asked for."""
    algo, hub, _, served = world
    answers = nodes_of(algo, tmp_path)
    run = new_run(served)
    three = {i: answers[i] for i in (0, 1, 2)}
    first = hub.round(run, in_process(answers))
    again = nodes_of(algo, tmp_path)
    same_bytes(hub.round(run, in_process(again)).served.state.server, first.served.state.server)
    with pytest.raises(SecAggAbort, match=r"0 clients helped to unmask.*reveal round 0 of clients"):
        hub.round(run, in_process(three))
    with pytest.raises(SecAggAbort, match="would tell single clients apart"):
        hub.round(run, in_process({i: again[i] for i in (0, 1, 2)}))
    after = hub.round(first.served, in_process(three))  # the next round is another one
    assert after.counted == [0, 1, 2]


def test_a_machine_that_starts_again_in_a_round_dropped_out(world, tmp_path):
    algo, hub, answers, served = world
    restarted = dict(answers)

    def exchange(requests):
        if decode(requests[0]).kind == "mask":
            restarted[1] = nodes_of(algo, tmp_path)[1]
        return in_process(restarted)(requests)

    merged = hub.round(new_run(served), exchange)
    assert merged.counted == [0, 2, 3]
    assert "started again since" in merged.refusals[0].why


def test_nothing_goes_in_the_clear(world, tmp_path):
    """A node that aggregates securely answers no other server, nor one that asks for less."""
    algo, hub, answers, served = world
    plain = server(algo, KEY, start(), num_clients=N)
    requests = plain.requests(served)
    assert "waited for sizes? or advertise" in decode(answers[0](requests[0])).fields["why"]
    open_node = node(algo, KEY, start(), population()[0][0], client_id=0, folder=tmp_path)
    merged = hub.round(new_run(served), in_process({**answers, 0: open_node}))
    assert "waited for sizes? or rehearse or train" in merged.refusals[0].why
    for field, value in {"threshold": 2, "min_survivors": 1, "signed": True, "degree": 4}.items():
        lax = meddling(answers, "advertise", set_field(**{field: value}), requests_too=True)
        merged = hub.round(new_run(served), lax)
        assert f"{field} {value}, agreed was" in merged.refusals[0].why
    for fields in ({"slots": [N]}, {"slots": []}, {"slots": [1, 1]}, {"cohort_size": 2**40}):
        odd = meddling(answers, "advertise", set_field(**fields), requests_too=True)
        assert "no slots" in hub.round(new_run(served), odd).refusals[0].why


def test_a_client_that_diverged_says_so(world, tmp_path):
    algo, hub, answers, served = world
    part = {name: np.full_like(leaf, 1e30) for name, leaf in population()[0][1].items()}
    lost = node(algo, KEY, start(), part, client_id=1, folder=tmp_path, secure=SECURE)
    merged = hub.round(new_run(served), in_process({**answers, 1: lost}))
    assert "not finite" in merged.refusals[0].why
    assert merged.counted == [0, 2, 3]


def test_methods_that_do_not_sum_integers_say_so(tmp_path):
    everyone = fl.everyone()
    cases = [
        (fedavg(sampler=everyone), SECURE, "must sum integers .* got mean"),
        (fedavg(sampler=everyone, aggregator=fl.median()), SECURE, "must sum integers"),
        (fedavg(sampler=everyone, aggregator=mean(masks="pairwise")), SECURE, "must be 'none'"),
        (fedavg(sampler=everyone, aggregator=mean(threshold=4)), SECURE, "at least 4, which the"),
        (fl.scaffold(loss, 0.1, plan=PLAN, sampler=everyone, aggregator=mean()), SECURE,
         "reads 'weight' of each client"),
    ]  # fmt: skip
    for algo, secure, why in cases:
        with pytest.raises(ValueError, match=why):
            hub_of(algo, secure)
    for algo, secure, why in cases[:4]:
        with pytest.raises(ValueError, match=why):
            nodes_of(algo, tmp_path, secure)
    good = everyones()
    low = SecureSettings(threshold=2)
    hub = hub_of(good, low)
    with pytest.raises(ValueError, match="above half of the cohort, got 2 of 4; use 3"):
        hub.round(begun(hub, nodes_of(good, tmp_path, low)), in_process({}))
    with pytest.raises(TypeError, match="secure must be"):
        hub_of(good, "yes")
    with pytest.raises(ValueError, match="threshold must be"):
        SecureSettings(threshold=1)
    with pytest.raises(ValueError, match="threshold must be above half"):
        SecureSettings(threshold=2, degree=4)


MESSAGES = [
    Advertisement(3, b"s" * 32, b"m" * 32, b"d" * 32, b"p"),
    Roster((Advertisement(1, b"s" * 32, b"m" * 32), Advertisement(2, b"t" * 32, b"n" * 32))),
    EncryptedShares(1, 2, bytes(range(100))),
    Confirmation(2, b"proof"),
    UnmaskRequest(frozenset({4, 1}), (Confirmation(1, b"a"),)),
    Unmasking(2, {1: b"x" * 33, 2: b"y" * 33}, {3: b"z" * 33}, b"p"),
]


@pytest.mark.parametrize("message", MESSAGES, ids=lambda message: type(message).__name__)
def test_messages_come_back_from_json(message):
    fields = json.loads(json.dumps(to_fields(message)))
    assert from_fields(type(message), fields, what="it") == message
    for name in fields:
        lacking = {key: value for key, value in fields.items() if key != name}
        with pytest.raises(PacketError, match="other fields"):
            from_fields(type(message), lacking, what="it")
        for wrong in (None, -1, 1.5, "no hex", [1, "x"], {"a": 1}, [[1, 2, 3]], True, "ab" * 5000):
            with pytest.raises(PacketError, match=r"malformed|no list|other fields"):
                from_fields(type(message), {**fields, name: wrong}, what="it")


def test_a_vector_travels_apart():
    message = MaskedInput(1, np.arange(3, dtype=np.uint32), frozenset({2}), b"p")
    fields = to_fields(message)
    assert "vector" not in fields
    back = from_fields(MaskedInput, fields, what="it", vector=message.vector)
    assert dataclasses.astuple(back)[2:] == dataclasses.astuple(message)[2:]
    assert several_from(MaskedInput, [], what="it") == []
    assert jnp.array_equal(back.vector, message.vector)
