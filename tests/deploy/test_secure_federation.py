"""Secure aggregation between machines: the simulation's numbers under every drop-out."""

import itertools
import json
import tempfile
import threading

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from federations import KEY, PLAN, loss, population, start
from secure_world import N, begun, fedavg, hub_of, mean, new_run, nodes_of, same_bytes

import fedjax_lite as fl
from fedjax_lite.crypto import SecAggAbort, secure_sum
from fedjax_lite.crypto.prg import primitives
from fedjax_lite.deploy import (
    FederationAborted,
    SecureSettings,
    answer_forever,
    decode,
    federate,
    in_process,
    listen,
    node,
)

ROUNDS = 2
PHASES = ("advertise", "share", "mask", "unmask")


def simulated(algo, cohorts=None):
    _, data = population()
    state, states, rows = algo.init(KEY, start(), data), [], []
    for r in range(ROUNDS):
        cohort = [] if cohorts is None else [cohorts[r]]
        state, metrics = algo.round(KEY, state, data, *cohort)
        states.append(state)
        rows.append(metrics)
    return states, rows


@pytest.mark.sample(1)
@pytest.mark.parametrize("name", ["fedavg", "feedback", "weighted"])
def test_equals_the_simulation_bit_for_bit(name, tmp_path):
    algo = {
        "fedavg": lambda: fedavg(sampler=fl.uniform(3), aggregator=mean()),
        "feedback": lambda: fedavg(
            sampler=fl.uniform(3), aggregator=mean(), uplink=fl.error_feedback(fl.top_k(0.5))
        ),
        "weighted": lambda: fedavg(
            sampler=fl.everyone(), aggregator=mean(weighting="message", max_weight=8)
        ),
    }[name]()
    states, rows = simulated(algo)
    seen = []
    done = federate(
        hub_of(algo, SecureSettings(threshold=3)),
        in_process(nodes_of(algo, tmp_path)),
        num_rounds=ROUNDS,
        evaluate=lambda state: seen.append(state) or {},
    )
    for mine, theirs in zip(seen, states, strict=True):
        same_bytes(mine.server, theirs.server)
        same_bytes(mine.aggregator.seed, theirs.aggregator.seed)
    for row, metrics in zip(done.rows, rows, strict=True):
        for metric in ("num_clients", "num_steps", "downlink_bits", "secure_aborted"):
            assert row[metric] == float(metrics[metric]), metric
        assert "train_loss" not in row  # of which the server knows nothing
        assert "secure_clipped" not in row
        assert row["bytes_up"] > 0


@pytest.fixture(scope="module")
def everyones(tmp_path_factory):
    algo = fedavg(sampler=fl.everyone(), aggregator=mean())
    hub, answers = hub_of(algo), nodes_of(algo, tmp_path_factory.mktemp("rows"))
    return algo, hub, answers, begun(hub, answers)


def dropping(answers, drops):
    """An exchange in which clients are gone from a phase on."""

    def exchange(requests):
        phase = decode(next(iter(requests.values()))).kind
        there = {
            i: answer
            for i, answer in answers.items()
            if i not in drops or PHASES.index(phase) < PHASES.index(drops[i])
        }
        return in_process(there)(requests)

    return exchange


def test_every_pattern_of_drop_outs(everyones):
    """Of four clients, each at one of four phases or never, up to renaming: the survivors and the
    aborts of `secure_sum`, and the simulation's state with those survivors as the cohort."""
    algo, hub, answers, served = everyones
    _, data = population()
    fresh, ids = algo.init(KEY, start(), data), jnp.arange(N)
    patterns = list(itertools.combinations_with_replacement((*PHASES, None), N))
    assert len(patterns) == 70
    aborted = 0
    for turn, pattern in enumerate(patterns):
        drops = {(i + turn) % N: phase for i, phase in enumerate(pattern) if phase is not None}
        run = new_run(served)
        try:
            outcome = secure_sum(
                {i: np.ones(2, np.uint32) for i in range(N)}, threshold=3, drops=drops
            )
        except SecAggAbort as error:
            why = str(error).split(",")[0]  # "server: 2 clients advertised keys"
            with pytest.raises(SecAggAbort, match=why):
                hub.round(run, dropping(answers, drops))
            aborted += 1
            continue
        merged = hub.round(run, dropping(answers, drops))
        assert tuple(merged.counted) == outcome.survivors
        assert not merged.refusals
        mask = jnp.array([i in outcome.survivors for i in range(N)])
        state, _ = algo.round(KEY, fresh, data, fl.Cohort(ids, mask))
        same_bytes(merged.served.state.server, state.server)
        committed = [0 if i in outcome.survivors else -1 for i in range(N)]
        assert merged.served.committed.tolist() == committed
    assert 0 < aborted < len(patterns)


def test_a_federation_aborts_by_name(everyones):
    _, hub, answers, _ = everyones
    told = []

    def exchange(requests):
        kind = decode(next(iter(requests.values()))).kind
        told.append(kind)
        return in_process(answers)(requests) if kind != "mask" else {}

    with pytest.raises(FederationAborted, match=r"round 0: server: 0 clients sent their masked"):
        federate(hub, exchange, num_rounds=1)
    assert told == ["sizes?", "advertise", "share", "mask"]


def test_the_server_sees_masks_only(everyones):
    """All that clients send: no array but the masked vectors, of which each word is another one
    than the plain vector's, and another one in each attempt; no message, no metric, no count."""
    algo, hub, answers, served = everyones
    heard = {}

    def tapped(requests):
        replies = in_process(answers)(requests)
        heard.update({(decode(data).kind, i): data for i, data in replies.items()})
        return replies

    run = new_run(served)
    first = hub.round(run, tapped)
    seen = dict(heard)
    again = hub.round(run, tapped)  # as a server does that was killed
    same_bytes(first.served.state.server, again.served.state.server)
    plain = plain_vectors(algo)
    total = sum(plain.values(), np.zeros(9, np.uint32))
    assert total[-4:].tolist() == [1] * N  # everybody counted, each in its slot
    for (kind, i), data in seen.items():
        packet = decode(data)
        assert bool(packet.leaves) == (kind == "masked")
        text = json.dumps(packet.fields)
        assert "loss" not in text
        assert "steps" not in text
        if kind == "masked":
            assert packet.leaves == [("['vector']", "uint32", (9,))]
            sent, later = (
                np.frombuffer(d, np.uint32) for d in (words(data), words(heard[kind, i]))
            )
            assert (sent != plain[i]).all()
            assert (sent != later).all()
            assert (sent >= 2**16).mean() > 0.5  # plain codes of 12 bits are below
        assert plain[i][:3].tobytes() not in data


def words(data):
    """The nine words at the end of a packet, which random ones are too dense to be deflated."""
    packet = decode(data)
    assert not packet.deflated
    return np.frombuffer(packet.payload, np.uint32)


def plain_vectors(algo):
    """What each client's vector would be in the clear: codes of its update, weight, slots."""
    _, data = population()
    vectors = {}
    for i in range(N):
        state = algo.init(KEY, start(), data)
        ids = jnp.arange(N)
        alone, _ = fedavg(sampler=fl.everyone(), aggregator=fl.mean()).round(
            KEY, state._replace(aggregator=fl.mean().init_state(start())), data,
            fl.Cohort(ids, ids == i),
        )  # fmt: skip
        update = jax.tree.map(lambda old, new: old - new, start(), alone.server.params)
        flat = np.concatenate([np.ravel(update["b"]), np.ravel(update["w"])])
        codes = np.round((np.clip(flat, -2, 2) + 2) / 4 * (2**12 - 2)).astype(np.uint32)
        vectors[i] = np.concatenate([codes, [1], np.eye(N, dtype=np.uint32)[i]]).astype(np.uint32)
    return vectors


def test_an_active_server_meets_signatures(tmp_path):
    generate = primitives().asymmetric.ed25519.Ed25519PrivateKey.generate
    keys = {i: generate() for i in range(N)}
    public = {i: key.public_key().public_bytes_raw() for i, key in keys.items()}
    secure = SecureSettings(threshold=3, identities=public)
    algo = fedavg(sampler=fl.everyone(), aggregator=mean())
    answers = nodes_of(algo, tmp_path, secure, keys)
    done = federate(hub_of(algo, secure), in_process(answers), num_rounds=1)
    same_bytes(done.served.state.server, simulated(algo)[0][0].server)
    parts, _ = population()
    options = {"client_id": 0, "folder": tmp_path / "thief"}
    with pytest.raises(TypeError, match="identity must be an Ed25519PrivateKey"):
        node(algo, KEY, start(), parts[0], secure=secure, **options)
    own = generate()  # of who has not the key of client 0
    mine = {**public, 0: own.public_key().public_bytes_raw()}
    told = SecureSettings(threshold=3, identities=mine)
    thief = node(algo, KEY, start(), parts[0], secure=told, identity=own, **options)
    hub = hub_of(algo, secure)
    merged = hub.round(begun(hub, answers), in_process({**answers, 0: thief}))
    assert merged.counted == [1, 2, 3]
    (refusal,) = merged.refusals
    assert "client 0" in refusal.why


def test_clients_that_add_their_own_noise(tmp_path):
    """The distributed discrete Gaussian: accounted for at the server, summed by the protocol, equal
    to the simulation where nodes have its key; and another model where each has one of its own."""
    dp = fl.privacy.distributed_discrete_gaussian(
        clip=1.0,
        cohort_size=N,
        dimension=4,
        delta=1e-3,
        noise_multiplier=2.0,
        bits=16,
        num_rounds=5,
    )
    algo = fl.fedavg(loss, optax.sgd(0.1), plan=PLAN, privacy=dp)
    secure = SecureSettings(threshold=3, min_survivors=N)
    answers = nodes_of(algo, tmp_path, secure)
    hub = hub_of(algo, secure)
    done = federate(hub, in_process(answers), num_rounds=ROUNDS)
    same_bytes(done.served.state.server, simulated(algo)[0][-1].server)
    for r, row in enumerate(done.rows):
        assert row["epsilon"] == pytest.approx(algo.accountant.spent(r + 1)["epsilon"])
    parts, _ = population()
    own = {
        i: node(algo, jax.random.key(100 + i), start(), part, client_id=i,
                folder=tmp_path / "own", secure=secure)
        for i, part in enumerate(parts)
    }  # fmt: skip
    other = hub.round(begun(hub, own), in_process(own))
    params = jax.tree.leaves(other.served.state.server.params)
    assert all(
        (np.asarray(a) != np.asarray(b)).all()
        for a, b in zip(params, jax.tree.leaves(simulated(algo)[0][0].server.params), strict=True)
    )
    with pytest.raises(SecAggAbort, match="min_survivors 4"):  # three clients' noise would not do
        hub.round(other.served, dropping(own, {2: "mask"}))
    with pytest.raises(SecAggAbort, match="noise served another run"):
        hub.round(begun(hub, own), in_process(own))  # the same key in a second run
    with pytest.raises(ValueError, match="min_survivors of secure must be at least 4"):
        hub_of(algo, SecureSettings(threshold=3))


class Killed(BaseException):
    """What ends a process."""


@pytest.mark.parametrize("phase", ["share", "unmask"])
def test_a_killed_server_goes_on_to_the_same_bytes(everyones, phase, tmp_path):
    """Killed in round 1, when all clients had answered in a phase: in the last one they have given
    their shares away, and give them for the same sum again."""
    algo, hub, _, _ = everyones
    whole = federate(hub, in_process(nodes_of(algo, tmp_path / "a")), num_rounds=ROUNDS)
    answers = nodes_of(algo, tmp_path / "b")

    def dying(requests):
        replies = in_process(answers)(requests)
        packet = decode(requests[0])
        if packet.kind == phase and packet.fields["round"] == 1:
            raise Killed
        return replies

    run = {"num_rounds": ROUNDS, "folder": tmp_path / "run"}
    with pytest.raises(Killed):
        federate(hub, dying, **run)
    again = federate(hub, in_process(answers), **run)
    same_bytes(again.served.state.server, whole.served.state.server)
    assert [row["round"] for row in again.rows] == [1, 2]


def test_a_sparse_graph_of_masks(everyones):
    """SecAgg+: each client masks with two of the three others, of any three survivors the sum."""
    algo, _, _, _ = everyones
    secure = SecureSettings(threshold=2, min_survivors=3, degree=2)
    hub = hub_of(algo, secure)
    with tempfile.TemporaryDirectory() as folder:
        answers = nodes_of(algo, folder, secure)
        served = begun(hub, answers)
        all_of_them = hub.round(new_run(served), in_process(answers))
        assert all_of_them.counted == [0, 1, 2, 3]
        three = hub.round(new_run(served), dropping(answers, {1: "mask"}))
        assert three.counted == [0, 2, 3]
        with pytest.raises(SecAggAbort, match="min_survivors 3"):
            hub.round(new_run(served), dropping(answers, {1: "mask", 2: "mask"}))
    _, data = population()
    fresh, ids = algo.init(KEY, start(), data), jnp.arange(N)
    for merged in (all_of_them, three):
        mask = jnp.array([i in merged.counted for i in range(N)])
        state, _ = algo.round(KEY, fresh, data, fl.Cohort(ids, mask))
        same_bytes(merged.served.state.server, state.server)


def test_over_sockets(everyones, tmp_path):
    """The phases are exchanges like any other."""
    algo, hub, _, served = everyones
    answers = nodes_of(algo, tmp_path)
    here = hub.round(new_run(served), in_process(answers))
    with listen("127.0.0.1", 0, num_clients=N, timeout=240) as exchange:
        threads = [
            threading.Thread(
                target=answer_forever,
                args=(answer, "127.0.0.1", exchange.port),
                kwargs={"client_id": i, "give_up_after": 240},
            )
            for i, answer in answers.items()
        ]
        for thread in threads:
            thread.start()
        there = hub.round(new_run(served), exchange)
    for thread in threads:
        thread.join()
    assert there.counted == [0, 1, 2, 3]
    same_bytes(there.served.state.server, here.served.state.server)
