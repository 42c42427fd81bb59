"""Secure aggregation between clients and a server: sums, drop-outs, what nobody may learn."""

import dataclasses
import itertools

import numpy as np
import pytest
from secagg_vectors import LENGTH, plain_sum, some_vectors

from fedjax_lite import crypto
from fedjax_lite.crypto import PHASES, Client, SecAggAbort, Server, Settings, secure_sum
from fedjax_lite.crypto.secagg.messages import Roster, UnmaskRequest
from fedjax_lite.crypto.secagg.proofs import Identity


def test_known_masks():
    """x = (5, 9, 12), b = (1, 2, 4), s12 = 7, s13 = 3, s23 = 11 modulo 32; then 3 drops out."""
    x, b, s = {1: 5, 2: 9, 3: 12}, {1: 1, 2: 2, 3: 4}, {(1, 2): 7, (1, 3): 3, (2, 3): 11}
    word = lambda number: np.array([number], np.uint32)  # noqa: E731
    y = {
        u: crypto.add_masks(
            word(x[u]),
            client=u,
            own=word(b[u]),
            pairs={v: word(s[min(u, v), max(u, v)]) for v in x if v != u},
        )
        for u in x
    }
    assert [int(y[u][0]) % 32 for u in x] == [16, 15, 2]
    total = crypto.remove_masks(y[1] + y[2] + y[3], own=map(word, b.values()), pairs={})
    assert int(total[0]) % 32 == 26 == sum(x.values())
    left = crypto.remove_masks(y[1] + y[2], own=[word(1), word(2)], pairs={})
    assert int(left[0]) % 32 == 28
    both = {(1, 3): word(3), (2, 3): word(11)}
    total = crypto.remove_masks(y[1] + y[2], own=[word(1), word(2)], pairs=both)
    assert int(total[0]) % 32 == 14 == x[1] + x[2]


def test_every_drop_out_pattern_of_four():
    """Each of 4 clients drops before any phase or never: 625 rounds against the plain sum.

    Counted is who sent a vector; too few left in any phase abort, and nothing else does.
    """
    vectors, threshold = some_vectors(4), 3
    ids = sorted(vectors)
    aborted = 0
    for pattern in itertools.product(range(5), repeat=4):
        last = dict(zip(ids, pattern, strict=True))
        drops = {i: PHASES[phase] for i, phase in last.items() if phase < 4}
        reached = [sum(phase > p for phase in pattern) for p in range(4)]
        if min(reached) < threshold:
            with pytest.raises(SecAggAbort, match="threshold 3"):
                secure_sum(vectors, threshold=threshold, drops=drops)
            aborted += 1
            continue
        outcome = secure_sum(vectors, threshold=threshold, drops=drops)
        counted = [i for i in ids if last[i] > PHASES.index("mask")]
        assert outcome.survivors == tuple(counted)
        np.testing.assert_array_equal(outcome.total, plain_sum(vectors, counted))
    # At most one of four leaves early: 1 + 4 * 4 patterns go through.
    assert aborted == 5**4 - 17


def test_every_drop_out_before_the_vectors_of_five():
    vectors = some_vectors(5)
    ids = sorted(vectors)
    for phase in ("share", "mask"):
        for size in range(6):
            for gone in itertools.combinations(ids, size):
                drops = dict.fromkeys(gone, phase)
                if size > 2:
                    with pytest.raises(SecAggAbort):
                        secure_sum(vectors, threshold=3, drops=drops)
                    continue
                outcome = secure_sum(vectors, threshold=3, drops=drops)
                counted = [i for i in ids if i not in gone]
                np.testing.assert_array_equal(outcome.total, plain_sum(vectors, counted))


def test_min_survivors_at_its_border():
    """Of 6 clients two drop with their vectors unsent: 4 are enough, 5 would not be."""
    vectors = some_vectors(6)
    ids = sorted(vectors)
    drops = {ids[0]: "mask", ids[1]: "share", ids[2]: "unmask"}
    threshold = 4
    with pytest.raises(SecAggAbort, match="threshold 4"):
        secure_sum(vectors, threshold=threshold, drops=drops)
    del drops[ids[2]]
    outcome = secure_sum(vectors, threshold=threshold, min_survivors=4, drops=drops)
    np.testing.assert_array_equal(outcome.total, plain_sum(vectors, ids[2:]))
    with pytest.raises(SecAggAbort, match=r"4 clients sent .* min_survivors 5"):
        secure_sum(vectors, threshold=threshold, min_survivors=5, drops=drops)


def test_clients_check_min_survivors_themselves():
    """A server with laxer settings names 4 survivors; no client that wants 5 answers."""
    _, server, clients, inputs = after_masking(gone=(4,), min_survivors=5)
    request = server.collect(inputs)
    assert len(request.survivors) == 4
    for i in request.survivors:
        with pytest.raises(SecAggAbort, match=f"client {i}: a sum of 4 .* min_survivors 5"):
            clients[i].unmask(request)


def after_masking(num_clients=5, threshold=3, gone=(), min_survivors=None):
    """Clients (with `min_survivors`) and a server (without) that wait to unmask."""
    vectors = some_vectors(num_clients)
    server = Server(Settings(b"round", threshold, LENGTH))
    settings = dataclasses.replace(server.settings, min_survivors=min_survivors)
    clients = {i: Client(i, settings) for i in vectors}
    rosters = server.roster([client.advertise() for client in clients.values()])
    boxes = server.forward([clients[i].share(rosters[i]) for i in rosters])
    inputs = [clients[i].mask(boxes[i], vectors[i]) for i in boxes if i not in gone]
    return vectors, server, clients, inputs


def test_nobody_gives_both_secrets_of_a_peer():
    _, server, clients, inputs = after_masking(gone=(4,))
    request = server.collect(inputs)
    answer = clients[1].unmask(request)
    assert set(answer.self_shares) == set(request.survivors)
    assert set(answer.key_shares) == {4}
    assert not set(answer.self_shares) & set(answer.key_shares)
    # Asked again, as if others had survived (or the same), a client says nothing.
    for survivors in (frozenset(clients), request.survivors):
        with pytest.raises(SecAggAbort, match="asked before"):
            clients[1].unmask(UnmaskRequest(survivors))


def test_a_lying_server_cannot_collect_both_secrets():
    """Half is told that client 4 survived, half that it dropped: neither secret has 3 shares."""
    _, _, clients, _ = after_masking()
    everybody = frozenset(clients)
    answers = [clients[i].unmask(UnmaskRequest(everybody)) for i in (1, 7)]
    answers += [clients[i].unmask(UnmaskRequest(everybody - {4})) for i in (10, 13)]
    of_seed = [a for a in answers if 4 in a.self_shares]
    of_key = [a for a in answers if 4 in a.key_shares]
    assert len(of_seed) == len(of_key) == 2 < 3


def test_clients_refuse_what_is_unsafe():
    _, _, clients, _ = after_masking()
    with pytest.raises(SecAggAbort, match="threshold 3"):
        clients[1].unmask(UnmaskRequest(frozenset({1, 4})))
    _, _, clients, _ = after_masking()
    with pytest.raises(SecAggAbort, match="itself: False"):
        clients[1].unmask(UnmaskRequest(frozenset({4, 7, 10})))


def test_thresholds_of_half_or_less_are_refused():
    """Two disjoint groups of 2 out of 4 could each reveal one secret."""
    vectors = some_vectors(4)
    with pytest.raises(ValueError, match="above half"):
        secure_sum(vectors, threshold=2)
    with pytest.raises(ValueError, match="above half"):
        secure_sum(vectors, threshold=5)
    with pytest.raises(ValueError, match="above half"):
        Server(Settings(b"r", 2, LENGTH), degree=4)
    # A client does not rely on the server's check.
    settings = Settings(b"r", 2, LENGTH)
    clients = {i: Client(i, settings) for i in range(4)}
    ads = tuple(client.advertise() for client in clients.values())
    with pytest.raises(SecAggAbort, match="two disjoint"):
        clients[0].share(Roster(ads))


def test_rosters_are_checked():
    settings = Settings(b"r", 2, LENGTH)

    def ads_of(*ids):
        clients = {i: Client(i, settings) for i in ids}
        return clients, [client.advertise() for client in clients.values()]

    clients, ads = ads_of(0, 1, 2)
    with pytest.raises(SecAggAbort, match="its own keys"):
        clients[0].share(Roster(tuple(ads[1:])))
    for field in ("share_key", "mask_key"):
        clients, ads = ads_of(0, 1, 2)
        changed = dataclasses.replace(ads[0], **{field: bytes(31) + b"\x09"})
        with pytest.raises(SecAggAbort, match="its own keys"):
            clients[0].share(Roster((changed, *ads[1:])))
    clients, ads = ads_of(0, 1, 2)
    with pytest.raises(SecAggAbort, match="twice"):
        clients[0].share(Roster((*ads[:2], dataclasses.replace(ads[1], client=2))))
    clients, ads = ads_of(0, 1, 2)
    with pytest.raises(SecAggAbort, match="1 clients would hold"):
        clients[0].share(Roster(tuple(ads[:1])))


# The points 0 and 1 of curve25519 are of low order (RFC 7748, section 6.1: the secret is zero).
@pytest.mark.parametrize(
    "public", [bytes(32), b"\x01" + bytes(31), b"short"], ids=["zero", "one", "short"]
)
def test_keys_of_low_order_abort_and_name_the_peer(public):
    settings = Settings(b"r", 2, LENGTH)
    vector = np.zeros(LENGTH, np.uint32)

    def start():
        clients = {i: Client(i, settings) for i in range(3)}
        return clients, [client.advertise() for client in clients.values()]

    def lie(ad, **changed):
        """An advertisement whose sender vouches for the bad key."""
        bad = dataclasses.replace(ad, **changed)
        fields = (bad.client, bad.share_key, bad.mask_key, bad.seed_digest)
        proof = Identity(settings, bad.client, None).prove(b"advertise", *fields)
        return dataclasses.replace(bad, proof=proof)

    for field in ("share_key", "mask_key"):
        clients, ads = start()
        bad = lie(ads[1], **{field: public})
        with pytest.raises(SecAggAbort, match="client 0: the public key of client 1"):
            clients[0].share(Roster((ads[0], bad, ads[2])))

    # The server meets the key of survivor 1 when it takes off its mask with the drop-out 2.
    clients, ads = start()
    bad = lie(ads[1], mask_key=public)
    server = Server(settings)
    if public == b"short":
        with pytest.raises(SecAggAbort, match="server: the public key of client 1"):
            server.roster([ads[0], bad, ads[2]])
        return
    server.roster([ads[0], bad, ads[2]])
    boxes = server.forward([client.share(Roster(tuple(ads))) for client in clients.values()])
    vouch = Identity(settings, 1, None).prove
    clients[1]._prove = lambda purpose, *fields: vouch(purpose, 1, bad.proof, *fields)
    request = server.collect([clients[i].mask(boxes[i], vector) for i in (0, 1)])
    answers = [clients[i].unmask(request) for i in (0, 1)]
    with pytest.raises(SecAggAbort, match="server: the public key of client 1"):
        server.reveal(answers)


@pytest.mark.parametrize("place", [0, 20, -1])
def test_changed_ciphertexts_are_noticed(place):
    vectors = some_vectors(3)
    settings = Settings(b"r", 2, LENGTH)
    server, clients = Server(settings), {i: Client(i, settings) for i in vectors}
    rosters = server.roster([client.advertise() for client in clients.values()])
    boxes = server.forward([clients[i].share(rosters[i]) for i in rosters])
    broken = bytearray(boxes[1][0].ciphertext)
    broken[place] ^= 1
    boxes[1][0] = dataclasses.replace(boxes[1][0], ciphertext=bytes(broken))
    inputs = [clients[i].mask(boxes[i], vectors[i]) for i in boxes]
    with pytest.raises(SecAggAbort, match="were changed"):
        clients[1].unmask(server.collect(inputs))


def test_shares_cannot_be_sent_back_or_elsewhere():
    vectors = some_vectors(3)
    settings = Settings(b"r", 2, LENGTH)
    server, clients = Server(settings), {i: Client(i, settings) for i in vectors}
    rosters = server.roster([client.advertise() for client in clients.values()])
    sent = {i: clients[i].share(rosters[i]) for i in rosters}
    with pytest.raises(SecAggAbort, match="do not belong here"):
        clients[1].mask([s for s in sent[4] if s.recipient == 7], vectors[1])
    # Client 7's box gets its own ciphertext for 4 back, relabelled: keys agree, directions do not.
    mine = next(s for s in sent[7] if s.recipient == 4)
    boxes = [dataclasses.replace(mine, sender=4, recipient=7)]
    boxes += [s for s in sent[1] if s.recipient == 7]
    clients[7].mask(boxes, vectors[7])
    with pytest.raises(SecAggAbort, match="were changed"):
        clients[7].unmask(UnmaskRequest(frozenset({1, 4, 7})))


def test_masked_vectors_are_uniform():
    """A vector of zeros, masked: chi-square of its bytes, 255 degrees of freedom, 1e-6: 378."""
    vectors = {i: np.zeros(4000, np.uint32) for i in range(3)}
    outcome = secure_sum(vectors, threshold=2)
    assert not outcome.total.any()
    for message in outcome.masked:
        counts = np.bincount(message.vector.view(np.uint8), minlength=256)
        expected = 16_000 / 256
        assert ((counts - expected) ** 2 / expected).sum() < 378
    # And pairs of them: their difference is uniform, too.
    a, b = (message.vector for message in outcome.masked[:2])
    counts = np.bincount((a - b).view(np.uint8), minlength=256)
    assert ((counts - 62.5) ** 2 / 62.5).sum() < 378


def test_a_fresh_mask_every_round():
    """Even where the round's name is the same: keys and seeds are new."""
    vectors = some_vectors(3)
    first, second = (secure_sum(vectors, threshold=2, round_id=b"same") for _ in range(2))
    np.testing.assert_array_equal(first.total, second.total)
    for a, b in zip(first.masked, second.masked, strict=True):
        assert (a.vector != b.vector).all()


def test_a_client_serves_one_round_in_order():
    client = Client(0, Settings(b"r", 2, LENGTH))
    with pytest.raises(RuntimeError, match="is to advertise"):
        client.share(Roster(()))
    client.advertise()
    with pytest.raises(RuntimeError, match="every round needs new clients"):
        client.advertise()


@pytest.mark.parametrize(
    ("call", "match"),
    [
        (lambda: Settings(b"", 2, 3), "round_id"),
        (lambda: Settings(b"r", 1, 3), "threshold"),
        (lambda: Settings(b"r", 2, 0), "length"),
        (lambda: Settings(b"r", 3, 4, min_survivors=2), "min_survivors"),
        (lambda: secure_sum(some_vectors(3), threshold=2, min_survivors=4), "min_survivors"),
        (lambda: Client(-1, Settings(b"r", 2, 3)), "client"),
        (lambda: secure_sum(some_vectors(3), threshold=2, drops={2: "mask"}), "drops"),
        (lambda: secure_sum(some_vectors(3), threshold=2, drops={1: "later"}), "drops"),
        (
            lambda: secure_sum({0: np.zeros(2, np.uint32), 1: np.zeros(3, np.uint32)}, threshold=2),
            "vectors",
        ),
        (lambda: secure_sum({0: np.zeros(2), 1: np.zeros(2)}, threshold=2), "uint32"),
    ],
)
def test_bad_input_is_named(call, match):
    with pytest.raises(ValueError, match=match):
        call()
