"""Secure aggregation against clients and servers that cheat and vouch for it."""

import dataclasses

import numpy as np
import pytest

from fedjax_lite.crypto import (
    Client,
    Confirmation,
    SecAggAbort,
    Server,
    Settings,
    UnmaskRequest,
    secure_sum,
)
from fedjax_lite.crypto.prg import primitives
from fedjax_lite.crypto.secagg.messages import Roster
from fedjax_lite.crypto.secagg.proofs import Identity

VECTOR = np.arange(4, dtype=np.uint32)


def signing_key():
    return primitives().asymmetric.ed25519.Ed25519PrivateKey.generate()


def public(key) -> bytes:
    return key.public_key().public_bytes_raw()


def party(num_clients=5, threshold=4, *, signed=False):
    """Settings, the clients and their signing keys."""
    keys = {i: signing_key() if signed else None for i in range(num_clients)}
    identities = {i: public(key) for i, key in keys.items()} if signed else None
    settings = Settings(b"round", threshold, len(VECTOR), identities=identities)
    clients = {i: Client(i, settings, identity=keys[i]) for i in keys}
    return settings, clients, keys


def to_unmask(num_clients=5, threshold=4, *, signed=False, gone=()):
    """Everybody up to the masked vectors, which `gone` do not send."""
    settings, clients, keys = party(num_clients, threshold, signed=signed)
    server = Server(settings)
    rosters = server.roster([client.advertise() for client in clients.values()])
    boxes = server.forward([clients[i].share(rosters[i]) for i in rosters])
    inputs = [clients[i].mask(boxes[i], VECTOR + np.uint32(i)) for i in boxes if i not in gone]
    return server, clients, server.collect(inputs), keys


def answers_with_a_wrong_share(clients, request, liar, owner, which):
    """All answers; a liar hands on another share of one owner, and vouches for it."""
    opened = clients[liar]._open

    def lie(peer):
        halves = [opened(peer)[:33], opened(peer)[33:]]
        if peer == owner:
            halves[which] = bytes([0, *halves[which][1:-1], halves[which][-1] ^ 1])
        return b"".join(halves)

    clients[liar]._open = lie
    return [clients[i].unmask(request) for i in sorted(request.survivors)]


@pytest.mark.parametrize("liar", [0, 2])
def test_a_wrong_seed_share_names_its_holder(liar):
    """5 shares, 4 needed: one of the first that is wrong stands out against the fifth."""
    server, clients, request, _ = to_unmask()
    answers = answers_with_a_wrong_share(clients, request, liar, 1, 0)
    with pytest.raises(SecAggAbort, match=f"client 1's seed that client {liar} sent does not fit"):
        server.reveal(answers)


def test_a_wrong_share_that_is_not_needed_does_no_harm():
    server, clients, request, _ = to_unmask()
    answers = answers_with_a_wrong_share(clients, request, 4, 1, 0)
    expected = sum(VECTOR + np.uint32(i) for i in range(5))
    np.testing.assert_array_equal(server.reveal(answers), expected)


@pytest.mark.parametrize(("which", "what", "owner"), [(0, "seed", 1), (1, "key", 3)])
def test_a_wrong_share_without_a_spare_aborts(which, what, owner):
    """4 shares, 4 needed: nobody can tell who, so all who sent shares are named."""
    server, clients, request, _ = to_unmask(gone=(3,))
    answers = answers_with_a_wrong_share(clients, request, 2, owner, which)
    with pytest.raises(SecAggAbort, match=rf"client {owner}'s {what} .* clients \[0, 1, 2, 4\]"):
        server.reveal(answers)


def test_an_owner_that_shares_another_seed_aborts():
    """It masks with one seed and deals shares of another: they agree, but not with the digest."""
    settings, clients, _ = party(4, 3)
    server = Server(settings)
    rosters = server.roster([client.advertise() for client in clients.values()])
    true, clients[2]._seed = clients[2]._seed, bytes(32)
    sent = [clients[i].share(rosters[i]) for i in rosters]
    clients[2]._seed = true
    boxes = server.forward(sent)
    request = server.collect([clients[i].mask(boxes[i], VECTOR) for i in boxes])
    with pytest.raises(SecAggAbort, match="client 2's seed do not fit what it advertised"):
        server.reveal([clients[i].unmask(request) for i in boxes])


def test_shares_of_the_wrong_size_are_refused():
    """Encrypted as it should be, but of 65 bytes."""
    settings, clients, _ = party(3, 2)
    server = Server(settings)
    rosters = server.roster([client.advertise() for client in clients.values()])
    sealed = clients[1]._seal
    clients[1]._seal = lambda peer, plain: sealed(peer, plain[:-1])
    boxes = server.forward([clients[i].share(rosters[i]) for i in rosters])
    request = server.collect([clients[i].mask(boxes[i], VECTOR) for i in boxes])
    with pytest.raises(SecAggAbort, match="client 0: the shares of 1 have 65 bytes"):
        clients[0].unmask(request)


def test_signed_sums_and_their_bytes():
    vectors = {i: VECTOR * np.uint32(i) for i in range(7)}
    outcome = secure_sum(vectors, threshold=5, signed=True, drops={1: "mask", 2: "unmask"})
    assert outcome.survivors == (0, 2, 3, 4, 5, 6)
    np.testing.assert_array_equal(outcome.total, VECTOR * np.uint32(20))
    assert set(outcome.sent["advertise"].values()) == {4 + 3 * 32 + 64}
    assert outcome.sent["confirm"] == dict.fromkeys((0, 2, 3, 4, 5, 6), 4 + 64)
    # Each of 5 that are left is sent 6 ids, and 6 confirmations.
    assert outcome.received["unmask"] == dict.fromkeys((0, 3, 4, 5, 6), 6 * 4 + 6 * (4 + 64))


def test_two_lists_of_survivors_get_no_confirmation():
    """A server that tells half of 5 clients that client 4 dropped: 4 signatures for no list."""
    _, clients, _, _ = to_unmask(signed=True)
    everybody, fewer = frozenset(range(5)), frozenset(range(4))
    lists = {0: everybody, 1: everybody, 2: fewer, 3: fewer}
    signed = {i: clients[i].confirm(UnmaskRequest(told)) for i, told in lists.items()}
    for confirmations in ((signed[0], signed[1]), tuple(signed.values())):
        with pytest.raises(SecAggAbort, match=r"client 0: (2 clients confirm|what client 2 sent)"):
            clients[0].unmask(UnmaskRequest(everybody, confirmations))
        clients[0]._turns._done, clients[0]._turns._why = 4, ""


def test_confirmations_are_counted_once_and_checked():
    server, clients, request, keys = to_unmask(signed=True)
    confirmations = [clients[i].confirm(request) for i in range(5)]
    full = server.confirm(confirmations)
    stranger = Confirmation(9, confirmations[0].proof)
    forged = Confirmation(2, signing_key().sign(b"anything"))
    for wrong, match in (
        (confirmations[:3], "3 clients confirm the survivors, threshold 4"),
        ([confirmations[0]] * 4, "client 0 does not belong"),
        ([*confirmations[:4], stranger], "client 9 does not belong"),
        ([*confirmations[:2], forged, *confirmations[3:]], "what client 2 sent to confirm"),
        ((), "0 clients confirm"),
    ):
        with pytest.raises(SecAggAbort, match=match):
            clients[1].unmask(UnmaskRequest(request.survivors, tuple(wrong)))
        clients[1]._turns._done, clients[1]._turns._why = 4, ""
    with pytest.raises(SecAggAbort, match=r"not those that it confirmed: \[0\] differ"):
        clients[1].unmask(UnmaskRequest(request.survivors - {0}, full.confirmations))
    clients[1]._turns._done, clients[1]._turns._why = 4, ""
    assert clients[1].unmask(full).self_shares.keys() == request.survivors
    assert set(keys) == set(range(5))


def test_exchanged_keys_are_refused_without_the_owners_signature():
    """The server puts its own keys under a client's name: a digest is easy, a signature is not."""
    settings, clients, _ = party(4, 3, signed=True)
    ads = [client.advertise() for client in clients.values()]
    eve = Client(1, dataclasses.replace(settings, identities=None)).advertise()
    for proof in (eve.proof, ads[1].proof, signing_key().sign(b"keys"), b""):
        with pytest.raises(SecAggAbort, match="client 0: what client 1 sent to advertise"):
            clients[0].share(Roster((ads[0], dataclasses.replace(eve, proof=proof), *ads[2:])))
        clients[0]._turns._done, clients[0]._turns._why = 1, ""
    stranger = dataclasses.replace(eve, client=7)
    with pytest.raises(SecAggAbort, match="client 7 is not among the round's identities"):
        clients[0].share(Roster((*ads, stranger)))


def test_a_party_that_gave_up_does_nothing_more():
    settings, clients, _ = party(3, 2)
    ads = [client.advertise() for client in clients.values()]
    with pytest.raises(SecAggAbort, match="lacks or changes"):
        clients[0].share(Roster(tuple(ads[1:])))
    with pytest.raises(SecAggAbort, match=r"client 0: gave up this round before: .* lacks"):
        clients[0].share(Roster(tuple(ads)))
    server = Server(settings)
    with pytest.raises(SecAggAbort, match="client 1 came twice"):
        server.roster([*ads, ads[1]])
    with pytest.raises(SecAggAbort, match="server: gave up"):
        server.roster(ads)
    with pytest.raises(SecAggAbort, match="server is to roster, not to reveal"):
        Server(settings).reveal([])


def test_a_wrong_vector_may_be_mended():
    """The caller's mistake, before anything is sent: the client goes on with a right one."""
    settings, clients, _ = party(3, 2)
    server = Server(settings)
    rosters = server.roster([client.advertise() for client in clients.values()])
    boxes = server.forward([clients[i].share(rosters[i]) for i in rosters])
    for wrong in (VECTOR[:3], VECTOR.astype(float), np.full(4, np.nan), "vector", VECTOR[None]):
        with pytest.raises(ValueError, match=r"vector must be uint32 \[4\], got .*; encode it"):
            clients[0].mask(boxes[0], wrong)
    assert clients[0].mask(boxes[0], VECTOR).vector.shape == (4,)


KEY = signing_key()
TWO = {0: public(KEY), 1: public(signing_key())}


@pytest.mark.parametrize(
    ("call", "error", "match"),
    [
        (lambda: Settings("r", 2, 3), TypeError, "round_id must be bytes, got 'r'"),
        (lambda: Settings(b"r", 2.0, 3), TypeError, "threshold must be an int, got 2.0"),
        (lambda: Settings(b"r", float("nan"), 3), TypeError, "threshold must be an int, got nan"),
        (lambda: Settings(b"r", 2, True), TypeError, "length must be an int, got True"),
        (lambda: Settings(b"r", 2, 3, "4"), TypeError, "min_survivors must be an int, got '4'"),
        (lambda: Settings(b"r", 2, 3, identities=[]), TypeError, "identities must map"),
        (lambda: Settings(b"r", 2, 3, identities={"a": TWO[0]}), ValueError, "identities.* 'a'"),
        (lambda: Settings(b"r", 2, 3, identities={0: b"short"}), ValueError, "32 bytes"),
        (lambda: Settings(b"r", 2, 3, identities={0: TWO[0], 1: TWO[0]}), ValueError, "differ"),
        (lambda: Settings(b"r", 3, 3, identities=TWO), ValueError, "threshold .* two thirds"),
        (
            lambda: Settings(b"r", 2, 3, identities={i: bytes([i] * 32) for i in range(3)}),
            ValueError,
            "threshold must be above two thirds of the 3 clients.* got 2; use 3",
        ),
        (lambda: Client("1", Settings(b"r", 2, 3)), TypeError, "client must be an int, got '1'"),
        (lambda: Client(1.0, Settings(b"r", 2, 3)), TypeError, r"client must be an int, got 1\.0"),
        (lambda: Client(True, Settings(b"r", 2, 3)), TypeError, "client must be an int, got True"),
        (lambda: Client(2**31, Settings(b"r", 2, 3)), ValueError, "client must be an id"),
        (lambda: Client(1, b"r"), TypeError, "settings must be a Settings"),
        (lambda: Client(1, Settings(b"r", 2, 3), identity=KEY), TypeError, "identity must be None"),
        (lambda: Client(0, Settings(b"r", 2, 3, None, TWO)), TypeError, "identity must be an Ed"),
        (
            lambda: Client(1, Settings(b"r", 2, 3, None, TWO), identity=KEY),
            ValueError,
            "identity must be the private key of client 1",
        ),
        (
            lambda: Client(5, Settings(b"r", 2, 3, None, TWO), identity=KEY),
            ValueError,
            "client must be one of the settings' 2 identities, got 5",
        ),
        (lambda: Server(None), TypeError, "settings must be a Settings, got None"),
        (lambda: Server(Settings(b"r", 2, 3), rng=3), TypeError, "rng must be a Generator"),
        (lambda: Server(Settings(b"r", 2, 3), degree=2.5), TypeError, "degree must be an int"),
        (
            lambda: Server(Settings(b"r", 2, 3, None, TWO), degree=2),
            ValueError,
            "degree must be None with identities",
        ),
        (lambda: secure_sum([VECTOR], threshold=2), TypeError, "vectors must be a mapping"),
        (lambda: secure_sum({}, threshold=2), ValueError, "vectors must be of one client"),
        (lambda: secure_sum({"a": VECTOR}, threshold=2), ValueError, "vectors must map ids.* 'a'"),
        (
            lambda: secure_sum(dict.fromkeys(range(3), VECTOR), threshold="2"),
            TypeError,
            "threshold must be an int, got '2'",
        ),
        (
            lambda: secure_sum(dict.fromkeys(range(3), VECTOR), threshold=2, signed="yes"),
            TypeError,
            "signed must be True or False, got 'yes'",
        ),
        (
            lambda: secure_sum(dict.fromkeys(range(3), VECTOR), threshold=2, signed=True),
            ValueError,
            "threshold must be above two thirds of the 3 .* use 3",
        ),
        (
            lambda: secure_sum(dict.fromkeys(range(3), VECTOR), threshold=2, drops=[1]),
            TypeError,
            "drops must be a mapping",
        ),
        (
            lambda: secure_sum(dict.fromkeys(range(3), VECTOR), threshold=2, drops={1: "confirm"}),
            ValueError,
            "drops must map clients to one of .* phases \\['confirm'\\]",
        ),
    ],
)
def test_bad_arguments_are_named(call, error, match):
    with pytest.raises(error, match=match):
        call()


def test_the_threshold_of_a_signed_round():
    """Two lists of t signatures from n clients, m of which sign both: 2 t <= n + m is possible.

    The least t that is refused this for every m below n / 3 is the least that settings take.
    """
    for n in range(3, 40):
        identities = {i: bytes([i] * 32) for i in range(n)}
        m = (n - 1) // 3  # the most below n / 3

        def taken(t, identities=identities):
            try:
                Settings(b"r", t, 1, identities=identities)
            except ValueError:
                return False
            return True

        allowed = [t for t in range(2, n + 1) if taken(t)]
        assert all(2 * t > n + m for t in allowed)
        assert allowed == list(range(2 * n // 3 + 1, n + 1))


def test_proofs_tell_contents_apart():
    """Fields do not run into each other, nor kinds of messages, rounds and clients."""
    settings = Settings(b"r", 2, 3)
    prove = Identity(settings, 1, None).prove
    other = Identity(Settings(b"s", 2, 3), 1, None).prove
    proofs = [
        prove(b"mask", 1, b"ab", b"c"),
        prove(b"mask", 1, b"a", b"bc"),
        prove(b"mask", 1, b"abc"),
        prove(b"mask", 2, b"abc"),
        prove(b"unmask", 1, b"abc"),
        other(b"mask", 1, b"abc"),
        prove(b"mask", 1, frozenset({1, 2})),
        prove(b"mask", 1, (1, 2)),
        prove(b"mask", 1, {1: b"a"}),
        prove(b"mask", 1, {1: b"a", 2: b""}),
        prove(b"mask", 1, np.array([1, 2], np.uint32)),
    ]
    assert len(set(proofs)) == len(proofs)
    assert prove(b"mask", {2: b"b", 1: b"a"}) == prove(b"mask", {1: b"a", 2: b"b"})
