"""A client that is put away and taken up between every two phases says the same, bit for bit."""

import dataclasses
import random
import secrets

import numpy as np
import pytest
from secagg_vectors import LENGTH, plain_sum, some_vectors

from fedjax_lite.crypto import Client, SecAggAbort, Server, Settings
from fedjax_lite.crypto.prg import expand, primitives
from fedjax_lite.crypto.secagg import kept
from fedjax_lite.crypto.secagg.kept import client_of, kept_of
from fedjax_lite.crypto.secagg.messages import EncryptedShares, UnmaskRequest

VECTORS = some_vectors(5)
IDS = sorted(VECTORS)
GONE = IDS[1]
KINDS = {
    "bonawitz": {"threshold": 3},
    "signed": {"threshold": 4, "signed": True},
    "sparse": {"threshold": 2, "min_survivors": 4, "degree": 2},
}


@pytest.fixture
def drawn(monkeypatch):
    """All randomness of clients from one generator, which is returned."""
    rng = random.Random(0)
    private = primitives().asymmetric.x25519.X25519PrivateKey
    monkeypatch.setattr(secrets, "token_bytes", rng.randbytes)
    monkeypatch.setattr(secrets, "randbelow", rng.randrange)
    monkeypatch.setattr(
        private, "generate", classmethod(lambda cls: cls.from_private_bytes(rng.randbytes(32)))
    )

    def unheard(*args, **kwargs):
        """A client whose own keys are thrown away at once."""
        state = rng.getstate()
        made = Client(*args, **kwargs)
        rng.setstate(state)
        return made

    monkeypatch.setattr(kept, "Client", unheard)
    return rng


def parties(signed=False, degree=None, **options):
    key = primitives().asymmetric.ed25519.Ed25519PrivateKey.from_private_bytes
    keys = {i: key(bytes([i + 1] * 32)) if signed else None for i in IDS}
    if signed:
        options["identities"] = {i: k.public_key().public_bytes_raw() for i, k in keys.items()}
    settings = Settings(b"round 7", length=LENGTH, **options)
    clients = {i: Client(i, settings, identity=keys[i]) for i in IDS}
    server = Server(settings, degree=degree, rng=np.random.default_rng(4))
    return settings, server, clients, keys


def in_memory(client, settings, key):
    return client


def stored(client, settings, key):
    return client_of(kept_of(client), settings, identity=key)


def whole_round(away, *, gone=(), **options):
    """All messages of clients, and the sum; `away` takes every client before every phase."""
    settings, server, clients, keys = parties(**options)
    said = []

    def each(whom, do):
        messages = []
        for i in whom:
            clients[i] = away(clients[i], settings, keys[i])
            messages.append(do(clients[i], i))
        said.append(messages)
        return messages

    rosters = server.roster(each(IDS, lambda client, i: client.advertise()))
    boxes = server.forward(each(IDS, lambda client, i: client.share(rosters[i])))
    there = [i for i in IDS if i not in gone]
    request = server.collect(each(there, lambda client, i: client.mask(boxes[i], VECTORS[i])))
    if settings.signed:
        request = server.confirm(each(there, lambda client, i: client.confirm(request)))
    answers = each(there, lambda client, i: client.unmask(request))
    return said, server.reveal(answers)


def plain(message):
    """With arrays as lists, so that messages can be compared."""
    if isinstance(message, list):
        return [plain(part) for part in message]
    fields = {f.name: getattr(message, f.name) for f in dataclasses.fields(message)}
    return {n: v.tolist() if isinstance(v, np.ndarray) else v for n, v in fields.items()}


@pytest.mark.parametrize("gone", [(), (GONE,)], ids=["all", "without one"])
@pytest.mark.parametrize("kind", KINDS)
def test_every_message_is_the_same(kind, gone, drawn):
    begin = drawn.getstate()
    said, total = whole_round(in_memory, gone=gone, **KINDS[kind])
    drawn.setstate(begin)
    again, total_again = whole_round(stored, gone=gone, **KINDS[kind])
    assert plain(said) == plain(again)
    np.testing.assert_array_equal(total, plain_sum(VECTORS, [i for i in IDS if i not in gone]))
    np.testing.assert_array_equal(total_again, total)


def masked(**options):
    """Clients of a round whose vectors are masked, and the request that follows."""
    settings, server, clients, _ = parties(threshold=3, **options)
    rosters = server.roster([client.advertise() for client in clients.values()])
    boxes = server.forward([clients[i].share(rosters[i]) for i in IDS])
    inputs = [clients[i].mask(boxes[i], VECTORS[i]) for i in IDS]
    return settings, clients, boxes, rosters, inputs, server.collect(inputs)


def test_of_a_masked_vector_nothing_is_kept_that_lifts_a_mask():
    """Before, what is kept gives the client's own mask. After, no secret of the client is in it,
    nor the key that would open the ciphertexts of shares, which the server has."""
    settings, server, clients, _ = parties(threshold=3)
    rosters = server.roster([client.advertise() for client in clients.values()])
    client = clients[IDS[0]]
    boxes = server.forward([clients[i].share(rosters[i]) for i in IDS])
    before = kept_of(client)
    hidden = [before.share_key, before.mask_key, before.seed]
    assert all(len(secret) == 32 for secret in hidden)
    sent = client.mask(boxes[client.id], VECTORS[client.id])
    after = repr(kept_of(client))
    for secret in hidden:
        assert repr(secret)[2:-1] not in after
        assert repr(secret)[2:-1] in repr(before)
    own = expand(before.seed, LENGTH)
    assert (sent.vector - own != sent.vector).all()
    assert {peer: len(both) for peer, both in kept_of(client).shares.items()} == {
        i: 66 for i in IDS[1:]
    }
    assert settings.threshold > 1  # shares of one holder


def test_shares_that_were_changed_are_found_at_the_same_phase():
    """They are opened when they are put away, and refused when they are asked for."""
    settings, server, clients, _ = parties(threshold=3)
    rosters = server.roster([client.advertise() for client in clients.values()])
    boxes = server.forward([clients[i].share(rosters[i]) for i in IDS])
    client, peer = clients[IDS[0]], IDS[2]
    changed = [
        EncryptedShares(box.sender, box.recipient, box.ciphertext[:-1] + b"x")
        if box.sender == peer
        else box
        for box in boxes[client.id]
    ]
    client.mask(changed, VECTORS[client.id])
    again = stored(client, settings, None)
    with pytest.raises(SecAggAbort, match=f"the shares of {peer} were changed"):
        again.unmask(UnmaskRequest(frozenset(IDS)))
    with pytest.raises(SecAggAbort, match="asked before"):
        stored(again, settings, None).unmask(UnmaskRequest(frozenset(IDS)))
    given_up = kept_of(again)
    assert (given_up.share_key, given_up.mask_key, given_up.seed) == (b"",) * 3
    assert not given_up.shares


def test_what_is_done_is_done():
    """Phases come once and in order, however often the client is put away; so does its help."""
    settings, clients, boxes, _, _, request = masked()
    client = stored(stored(clients[IDS[0]], settings, None), settings, None)
    with pytest.raises(SecAggAbort, match="to unmask, not to mask"):
        client.mask(boxes[client.id], VECTORS[client.id])
    client.unmask(request)
    with pytest.raises(SecAggAbort, match="asked before"):
        stored(client, settings, None).unmask(request)


def shared():
    settings, server, clients, _ = parties(threshold=3)
    rosters = server.roster([client.advertise() for client in clients.values()])
    client = clients[IDS[0]]
    client.share(rosters[client.id])
    return settings, client


LIES = {
    "done": lambda k: {"done": 9},
    "share_key": lambda k: {"share_key": b"short"},
    "mask_key": lambda k: {"mask_key": b""},
    "seed": lambda k: {"seed": k.seed[:-1]},
    "advertisements": lambda k: {"advertisements": k.advertisements[1:]},
    "advertisements ": lambda k: {"advertisements": k.advertisements + k.advertisements[:1]},
    "own": lambda k: {"own": b""},
    "shares": lambda k: {"shares": {IDS[1]: bytes(66)}},
    "confirmed": lambda k: {"confirmed": frozenset({99})},
    "private keys of its own": lambda k: {"share_key": bytes([7] * 32)},
    "can be used": lambda k: {
        "advertisements": (
            k.advertisements[0],
            dataclasses.replace(k.advertisements[1], mask_key=bytes(32)),
        )
    },
}


@pytest.mark.parametrize("what", LIES)
def test_what_no_client_keeps_is_refused(what):
    settings, client = shared()
    true = kept_of(client)
    client_of(true, settings)
    with pytest.raises(ValueError, match=f"kept must (be|have) .*{what.strip()}"):
        client_of(dataclasses.replace(true, **LIES[what](true)), settings)
