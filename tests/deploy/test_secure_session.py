"""Sessions of secure aggregation on the disk: a new process for every message says the same."""

import itertools
import random
import secrets

import jax.numpy as jnp
import numpy as np
import pytest
from federations import KEY, population, start
from secure_world import (
    SECURE,
    N,
    anew,
    begun,
    dropping,
    hub_of,
    new_run,
    nodes_of,
    same_bytes,
)
from secure_world import everyones as mean_of_all

import fedjax_lite as fl
from fedjax_lite.crypto import PHASES, SecAggAbort, secure_sum
from fedjax_lite.crypto.prg import primitives
from fedjax_lite.crypto.secagg import kept
from fedjax_lite.deploy import SecureSettings, decode, in_process, node
from fedjax_lite.deploy.secure_client import SecureClient

RNG = random.Random(0)


def unheard(make):
    """The same function; what it draws, nobody misses."""

    def made(*args, **kwargs):
        state = RNG.getstate()
        try:
            return make(*args, **kwargs)
        finally:
            RNG.setstate(state)

    return made


@pytest.fixture
def drawn(monkeypatch):
    """All randomness of both sides from one generator, by the order in which they draw."""
    private = primitives().asymmetric.x25519.X25519PrivateKey
    monkeypatch.setattr(secrets, "token_bytes", RNG.randbytes)
    monkeypatch.setattr(secrets, "randbelow", RNG.randrange)
    monkeypatch.setattr(
        private, "generate", classmethod(lambda cls: cls.from_private_bytes(RNG.randbytes(32)))
    )
    monkeypatch.setattr(kept, "Client", unheard(kept.Client))
    monkeypatch.setattr(SecureClient, "__init__", unheard(SecureClient.__init__))
    ring = np.random.default_rng
    monkeypatch.setattr(np.random, "default_rng", lambda seed=5: ring(seed))


@pytest.fixture(scope="module")
def everyones(tmp_path_factory):
    algo = mean_of_all()
    hub, answers = hub_of(algo), nodes_of(algo, tmp_path_factory.mktemp("rows"))
    return algo, hub, answers, begun(hub, answers)


def signing_keys():
    key = primitives().asymmetric.ed25519.Ed25519PrivateKey.from_private_bytes
    keys = {i: key(bytes([i + 1] * 32)) for i in range(N)}
    return keys, {i: key.public_key().public_bytes_raw() for i, key in keys.items()}


KINDS = {
    "bonawitz": {"threshold": 3},
    "signed": {"threshold": 3, "identities": signing_keys()[1]},
    "sparse": {"threshold": 2, "min_survivors": 3, "degree": 2},
}


@pytest.mark.parametrize("kind", KINDS)
def test_every_byte_is_that_of_a_session_in_memory(kind, everyones, tmp_path, drawn):
    """Of requests and replies, also where one client is gone before it masks; so is the sum."""
    algo, _, _, served = everyones
    secure = SecureSettings(**KINDS[kind])
    keys = signing_keys()[0] if kind == "signed" else None
    hub = hub_of(algo, secure)
    for turn, gone in enumerate(({}, {2: "mask"})):
        run = new_run(served)
        heard = []
        for place, make in (("memory", nodes_of), ("disk", anew)):
            clients = make(algo, tmp_path / f"{place}-{turn}", secure, keys)
            RNG.seed(turn)
            said = []
            merged = hub.round(run, tapped(dropping(clients, gone), said))
            heard.append((said, merged))
        (said, there), (again, here) = heard
        assert said == again
        assert len(said) == (5 if kind == "signed" else 4)
        assert here.counted == [i for i in range(N) if i not in gone]
        same_bytes(here.served, there.served)
        assert not list((tmp_path / "disk-0").glob("*.session"))


def tapped(exchange, said):
    def carried(requests):
        replies = exchange(requests)
        said.append((dict(requests), dict(replies)))
        return replies

    return carried


@pytest.mark.slow
@pytest.mark.sample(2)
@pytest.mark.parametrize("part", range(5))
def test_every_pattern_of_drop_outs(everyones, part, tmp_path):
    """Of four clients, each at one of four phases or never, up to renaming: survivors and aborts of
    `secure_sum`, the simulation's state, and no session left of those who stayed to the end."""
    algo, hub, _, served = everyones
    _, data = population()
    fresh, ids = algo.init(KEY, start(), data), jnp.arange(N)
    patterns = list(itertools.combinations_with_replacement((*PHASES, None), N))
    patterns.sort(key=lambda pattern: pattern.count(None))  # the last five have enough survivors
    assert len(patterns) == 70
    aborted, some = 0, range(part, len(patterns), 5)
    for turn in some:
        pattern = patterns[turn]
        drops = {(i + turn) % N: phase for i, phase in enumerate(pattern) if phase is not None}
        run, folder = new_run(served), tmp_path / str(turn)
        exchange = dropping(anew(algo, folder), drops)
        try:
            outcome = secure_sum(
                {i: np.ones(2, np.uint32) for i in range(N)}, threshold=3, drops=drops
            )
        except SecAggAbort as error:
            with pytest.raises(SecAggAbort, match=str(error).split(",")[0]):
                hub.round(run, exchange)
            aborted += 1
            continue
        merged = hub.round(run, exchange)
        assert tuple(merged.counted) == outcome.survivors
        assert not merged.refusals
        mask = jnp.array([i in outcome.survivors for i in range(N)])
        state, _ = algo.round(KEY, fresh, data, fl.Cohort(ids, mask))
        same_bytes(merged.served.state.server, state.server)
        left = {f"client-{i}.session" for i, phase in drops.items() if phase != "advertise"}
        assert {path.name for path in folder.glob("*.session")} == left
    assert aborted == len(some) - 1


def test_the_file_is_the_owners_alone_and_goes(everyones, tmp_path):
    """From its first byte on, though another process was killed over it and left one for all."""
    algo, hub, _, served = everyones
    modes = []
    for i in range(N):
        (tmp_path / f".client-{i}.session.tmp").touch(0o666)

    def exchange(requests):
        replies = in_process(anew(algo, tmp_path))(requests)
        modes.append(
            {oct(path.stat().st_mode & 0o777) for path in tmp_path.glob("client-*.session")}
        )
        return replies

    assert hub.round(new_run(served), exchange).counted == [0, 1, 2, 3]
    assert modes == [{"0o600"}] * 3 + [set()]
    assert not list(tmp_path.glob(".*.tmp"))


def test_no_key_lies_there_once_the_vector_is_masked(everyones, tmp_path):
    """Nor the vector itself, nor what would open what was sealed; before, all of it."""
    algo, hub, _, served = everyones
    file, found, secret = tmp_path / "client-1.session", [], {}

    def exchange(requests):
        replies = in_process(anew(algo, tmp_path))(requests)
        if file.exists():
            session = SecureClient(algo, 1, tmp_path, SECURE, None, keep_session=True)._file.load()
            put_away = kept.kept_of(session.party)
            for name in ("share_key", "mask_key", "seed"):
                secret.setdefault(name, getattr(put_away, name))
            secret.setdefault("vector", session.vector.tobytes())
            data = repr(inflated(file.read_bytes()))
            found.append(
                {
                    name: repr(value)[2:-1] in data or value.hex() in data
                    for name, value in secret.items()
                }
            )
        return replies

    hub.round(new_run(served), exchange)
    assert all(map(len, secret.values()))
    names = ("share_key", "mask_key", "seed", "vector")
    assert found == [dict.fromkeys(names, True)] * 2 + [dict.fromkeys(names, False)]


def inflated(data):
    import zlib

    packet = decode(data)
    return zlib.decompress(packet.payload) if packet.deflated else packet.payload


def test_asked_again_it_says_the_same(everyones, tmp_path):
    """By another process each time, but for the last phase: with the shares the session is over,
    and what was its file is gone. The process that said them says them again."""
    algo, hub, _, served = everyones
    clients, told = anew(algo, tmp_path), []

    def exchange(requests):
        replies = in_process(clients)(requests)
        if decode(requests[0]).kind != "unmask":
            assert in_process(clients)(requests) == replies
        else:
            told.extend(decode(clients[i](requests[i])).fields["why"] for i in requests)
        return replies

    assert hub.round(new_run(served), exchange).counted == [0, 1, 2, 3]
    assert len(told) == N
    assert all("knows no session" in why and "stale or over" in why for why in told)
    staying = {
        i: node(algo, KEY, start(), part, client_id=i, folder=tmp_path / "stays", secure=SECURE,
                keep_session=True)
        for i, part in enumerate(population()[0])
    }  # fmt: skip

    def doubled(requests):
        replies = in_process(staying)(requests)
        assert in_process(staying)(requests) == replies
        return replies

    assert hub.round(new_run(served), doubled).counted == [0, 1, 2, 3]


def test_a_newer_session_ends_the_one_before(everyones, tmp_path):
    """Though nothing comes of it; and a request of a later round says that the round is over."""
    algo, hub, _, served = everyones
    clients, run = anew(algo, tmp_path), new_run(served)
    file = tmp_path / "client-0.session"
    requests = {}

    def noting(answers):
        def exchange(asked):
            requests[decode(asked[0]).kind] = asked[0]
            return in_process(answers)(asked)

        return exchange

    with pytest.raises(SecAggAbort, match="0 clients helped"):
        hub.round(run, dropping(clients, dict.fromkeys(range(N), "unmask")))
    assert file.exists()
    first = hub.round(run, noting(clients))  # the same round, with new keys
    assert first.counted == [0, 1, 2, 3]
    old = dict(requests)
    with pytest.raises(SecAggAbort, match="0 clients sent"):
        hub.round(first.served, dropping(clients, dict.fromkeys(range(N), "mask")))
    before = file.read_bytes()
    for phase in ("share", "mask", "unmask"):  # of a session that is over
        assert "knows no session" in decode(clients[0](old[phase])).fields["why"]
    assert "trained in round 1 since" in decode(clients[0](old["advertise"])).fields["why"]
    assert file.read_bytes() == before
    packet = decode(old["share"])
    later = fl.deploy.encode("share", {**packet.fields, "round": 2})
    assert "knows no session" in decode(clients[0](later)).fields["why"]
    assert not file.exists()


def test_bad_arguments(everyones, tmp_path):
    algo, *_ = everyones
    parts, _ = population()
    own = {"client_id": 0, "folder": tmp_path}
    with pytest.raises(ValueError, match="keep_session must be False without secure, got True"):
        node(algo, KEY, start(), parts[0], **own, keep_session=True)
    with pytest.raises(TypeError, match="keep_session must be True or False, got 'yes'"):
        node(algo, KEY, start(), parts[0], **own, secure=SECURE, keep_session="yes")
