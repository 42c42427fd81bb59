"""Secure aggregation under every kind of damage: the exact sum, or an abort that says whom and why.

Rounds are played message by message, and one of them is lost, doubled, replayed, cut, flipped,
emptied or exchanged. Clients that give up count as dropped out.
"""

import contextlib
import dataclasses
import itertools
import re

import numpy as np
import pytest

from fedjax_lite.crypto import Client, SecAggAbort, Server, Settings
from fedjax_lite.crypto.prg import primitives

LENGTH = 4
VECTORS = np.random.default_rng(5).integers(0, 2**32, (10, LENGTH), dtype=np.uint32)


@dataclasses.dataclass
class Round:
    """A round of `num_clients` that passes every message through `wire`."""

    num_clients: int = 4
    threshold: int = 3
    signed: bool = False
    degree: int | None = None
    drops: dict = dataclasses.field(default_factory=dict)
    round_id: bytes = b"round"
    seed: int = 0

    def play(self, wire=lambda kind, who, message: [message]):
        """The sum, who is in it, and what clients said when they gave up."""
        keys = {}
        if self.signed:
            keys = {i: KEYS[i] for i in range(self.num_clients)}
        identities = {i: key.public_key().public_bytes_raw() for i, key in keys.items()} or None
        settings = Settings(self.round_id, self.threshold, LENGTH, identities=identities)
        rng = np.random.default_rng(self.seed)
        server = Server(settings, degree=self.degree, rng=rng)
        clients = {i: Client(i, settings, identity=keys.get(i)) for i in range(self.num_clients)}
        said = self.said = []
        self.seen = []

        def pass_on(kind, who, message):
            self.seen.append((kind, who, message))
            return wire(kind, who, message)

        def ask(phase, i, *arguments):
            if self.drops.get(i) == phase:
                del clients[i]
            if i not in clients:
                return []
            try:
                return [getattr(clients[i], phase)(*arguments)]
            except SecAggAbort as error:
                said.append(str(error))
                return []

        def up(kind, phase, inbox, *more):
            """Replies of all clients to what is in their inbox, as they reach the server."""
            replies = []
            for i, messages in inbox.items():
                for message in messages:
                    for reply in ask(phase, i, *message, *(m[i] for m in more)):
                        replies.extend(pass_on(kind, i, reply))
            return replies

        everybody = {i: [()] for i in clients}
        rosters = server.roster(up("advertisement", "advertise", everybody))
        inbox = {i: [(m,) for m in pass_on("roster", i, r)] for i, r in rosters.items()}
        groups = []
        for i, messages in inbox.items():
            for message in messages:
                for group in ask("share", i, *message):
                    one_by_one = [m for s in group for m in pass_on("shares", i, s)]
                    groups += [one_by_one]
        boxes = server.forward(groups)
        inbox = {i: [([m for s in b for m in pass_on("box", i, s)],)] for i, b in boxes.items()}
        request = server.collect(up("input", "mask", inbox, VECTORS))
        survivors = sorted(request.survivors)
        if self.signed:
            inbox = {i: [(m,) for m in pass_on("list", i, request)] for i in survivors}
            request = server.confirm(up("confirmation", "confirm", inbox))
        inbox = {i: [(m,) for m in pass_on("request", i, request)] for i in survivors}
        total = server.reveal(up("answer", "unmask", inbox))
        return total, survivors, said


def new_key():
    return primitives().asymmetric.ed25519.Ed25519PrivateKey.generate()


KEYS = [new_key() for _ in range(10)]


def is_exact(total, survivors) -> bool:
    expected = VECTORS[survivors].astype(object).sum(0) % 2**32
    return total.tolist() == expected.tolist()


def changes(message):
    """Damaged forms of a message, by name: every field cut, flipped, emptied, of another type."""
    yield "none", None
    yield "text", "message"
    yield "number", 3
    yield "array", np.zeros(LENGTH, np.uint32)
    for field in dataclasses.fields(message):
        value = getattr(message, field.name)
        for name, other in damaged(value):
            yield f"{field.name} {name}", dataclasses.replace(message, **{field.name: other})


def damaged(value):
    yield "none", None
    yield "text", "x"
    yield "float", 1.5
    if isinstance(value, int):
        yield "next", value + 1
        yield "negative", -1
        yield "huge", 2**70
    elif isinstance(value, bytes):
        yield "empty", b""
        yield "cut", value[:-1]
        yield "longer", value + b"\0"
        for place in (0, len(value) // 2, -1):
            flipped = bytearray(value or b"\0")
            flipped[place] ^= 4
            yield f"flipped {place}", bytes(flipped)
    elif isinstance(value, np.ndarray):
        yield "empty", value[:0]
        yield "cut", value[:-1]
        yield "longer", np.append(value, value[:1])
        yield "nan", np.full(value.shape, np.nan)
        yield "flipped", value ^ np.eye(1, len(value), dtype=np.uint32)[0]
        yield "square", value[None]
    elif isinstance(value, frozenset):
        yield "empty", frozenset()
        yield "less", value - {max(value, default=0)}
        yield "more", value | {7}
        yield "text inside", value | {"x"}
    elif isinstance(value, tuple):
        yield "empty", ()
        yield "less", value[:-1]
        yield "twice", value + value[:1]
        yield "none inside", (*value, None)
    elif isinstance(value, dict) and value:
        first, share = next(iter(value.items()))
        yield "empty", {}
        yield "less", {k: v for k, v in value.items() if k != first}
        yield "more", {**value, 9: share}
        yield "no share", {**value, first: b""}
        yield "number", {**value, first: 5}
        yield "flipped", {**value, first: bytes([*share[:-1], share[-1] ^ 1])}
        yield "huge", {**value, first: b"\xff" * 33}


def targets(signed):
    """One message of each kind, by kind and client; box and shares by their other end, too."""
    kinds = ["advertisement", "roster", "shares", "box", "input", "request", "answer"]
    return [(kind, 1) for kind in (*kinds, *(("list", "confirmation") if signed else ()))]


def play_with(setup, kind, who, deliver):
    """Plays a round in which the first message of a kind from or to a client is exchanged."""
    hit = []

    def wire(here, client, message):
        if (here, client) == (kind, who) and not hit:
            hit.append(message)
            return deliver(message)
        return [message]

    try:
        total, survivors, said = setup.play(wire)
    except SecAggAbort as error:
        assert hit
        return None, [*setup.said, str(error)]
    assert hit
    assert is_exact(total, survivors), (kind, who, survivors)
    return survivors, said


SETUPS = [
    Round(threshold=3),
    Round(threshold=4),
    Round(threshold=3, drops={3: "mask"}),
    Round(threshold=3, signed=True),
    Round(threshold=3, drops={3: "mask"}, signed=True),
    Round(num_clients=6, threshold=3, degree=4, drops={5: "mask"}),
]


def named(setup):
    sparse = "" if setup.degree is None else "-sparse"
    return f"{setup.threshold}{'-signed' * setup.signed}{'-drop' * bool(setup.drops)}{sparse}"


@pytest.mark.parametrize("setup", SETUPS, ids=named)
def test_damage_is_noticed(setup):
    """Whatever is changed: somebody aborts and names a client, and a sum is the survivors'."""
    setup.play()
    originals = {(kind, who): message for kind, who, message in reversed(setup.seen)}
    outcomes = set()
    for kind, who in targets(setup.signed):
        for name, _ in changes(originals[kind, who]):

            def deliver(message, name=name):
                return [dict(changes(message))[name]]

            survivors, said = play_with(setup, kind, who, deliver)
            # A request without what a round of digests does not read is no damage.
            harmless = kind in ("request", "list") and name.startswith("confirmations")
            assert said or harmless, (kind, name)
            assert all(
                re.search(r"client \d|is due|is no client's id|server: .* threshold", text)
                for text in said
            ), said
            if not harmless:
                outcomes.add(survivors is None)
    # With a client to spare, damage to one message costs no more than that client.
    spare = setup.num_clients - len(setup.drops) > setup.threshold
    assert outcomes == ({True, False} if spare else {True})


@pytest.mark.parametrize("setup", SETUPS, ids=named)
def test_messages_of_another_round_or_client_are_noticed(setup):
    """Of an older round of the same name, of another name, and of another client, relabelled."""
    older = dataclasses.replace(setup)
    older.play()
    other = dataclasses.replace(setup, round_id=b"other")
    other.play()
    for kind, who in targets(setup.signed):
        for source in (older, other):
            message = next(m for k, w, m in source.seen if (k, w) == (kind, who))
            _, said = play_with(setup, kind, who, lambda _, m=message: [m])
            # Requests hold nothing but ids (and signatures, which are noticed).
            assert said or (
                kind in ("request", "list") and not (setup.signed and kind == "request")
            )
        kept = []

        def from_another(message, kind=kind, kept=kept):
            """Another client's of this round cannot be had before it is sent: the older one's."""
            found = next(m for k, w, m in older.seen if k == kind and w == 2)
            label = {"shares": "sender", "box": "recipient"}.get(kind, "client")
            kept.append(found)
            return [
                found if not hasattr(found, label) else dataclasses.replace(found, **{label: 1})
            ]

        _, said = play_with(setup, kind, who, from_another)
        assert said or kind in ("request", "list", "roster"), kind


@pytest.mark.parametrize("setup", SETUPS, ids=named)
def test_lost_and_doubled_messages(setup):
    """A lost message is a drop-out where nobody else depends on it, else an abort with a name."""
    for kind, who in targets(setup.signed):
        survivors, said = play_with(setup, kind, who, lambda message: [])
        if kind in ("shares", "box"):
            assert survivors is None
            assert "client 1" in said[0]
            assert re.search("lost on the way|3 clients shared, threshold 4", said[0])
        spare = setup.num_clients - len(setup.drops) > setup.threshold
        if kind in ("advertisement", "roster", "input") and spare:
            assert survivors is not None
            assert 1 not in survivors
        if kind in ("request", "answer", "list", "confirmation") and spare:
            assert 1 in survivors
        _, said = play_with(setup, kind, who, lambda message: [message, message])
        assert said
        assert "1" in said[0]


def test_swapped_messages_of_one_round():
    """Two clients' messages under each other's names."""
    for kind in ("advertisement", "input", "answer"):
        held = {}

        def wire(here, client, message, kind=kind, held=held):
            if here != kind or client > 1:
                return [message]
            held[client] = message
            if client == 0:
                return []
            return [dataclasses.replace(held[i], client=1 - i) for i in (0, 1)]

        with pytest.raises(SecAggAbort, match=r"server: what client [01] sent .* was changed"):
            Round().play(wire)


@pytest.mark.parametrize("threshold", [3, 4])
def test_every_signed_drop_out_pattern_of_four(threshold):
    """6 ** 4 patterns of 5 phases or never; those that reach the end in every phase are exact."""
    phases = ("advertise", "share", "mask", "confirm", "unmask")
    gone_through = 0
    for pattern in itertools.product(range(6), repeat=4):
        if sum(phase < 5 for phase in pattern) > 5 - threshold:
            continue  # at least two too many
        drops = {i: phases[p] for i, p in enumerate(pattern) if p < 5}
        if min(sum(p > k for p in pattern) for k in range(5)) < threshold:
            with pytest.raises(SecAggAbort, match=f"threshold {threshold}"):
                Round(threshold=threshold, signed=True, drops=drops).play()
            continue
        total, survivors, said = Round(threshold=threshold, signed=True, drops=drops).play()
        assert survivors == [i for i, p in enumerate(pattern) if p > 2]
        assert is_exact(total, survivors)
        assert not said
        gone_through += 1
    assert gone_through == (1 if threshold == 4 else 1 + 4 * 5)


@pytest.mark.parametrize("seed", range(12))
def test_random_damage_and_drop_outs_in_sparse_rounds(seed):
    """10 clients, 4 to 6 neighbours: drop-outs at random, then a random change of a message."""
    rng = np.random.default_rng(seed)
    degree = int(rng.integers(4, 7))
    threshold = (degree + 1) // 2 + 1
    phases = ("advertise", "share", "mask", "unmask")
    gone = rng.permutation(10)[: rng.integers(0, 3)]
    drops = {int(i): phases[rng.integers(4)] for i in gone}
    setup = Round(10, threshold, False, degree, drops, seed=seed)
    total, survivors = None, ()
    with contextlib.suppress(SecAggAbort):
        total, survivors, _ = setup.play()
        assert is_exact(total, survivors)
    for _ in range(8):
        place = int(rng.integers(len(setup.seen)))
        kind, who, message = setup.seen[place]
        if total is None or (kind in ("box", "request") and who in drops):
            continue  # who is not there reads nothing
        names = [name for name, _ in changes(message) if not name.startswith("confirmations")]
        name = names[rng.integers(len(names))]
        again = dataclasses.replace(setup)
        _, said = play_with(again, kind, who, lambda m, n=name: [dict(changes(m))[n]])
        assert said, (kind, name)
