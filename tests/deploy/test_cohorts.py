"""Whoever is drawn, and whichever examples count: the simulation's numbers."""

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
)

import fedjax_lite as fl
from fedjax_lite.deploy import FederationAborted, decode, federate, in_process, node, server, unpack
from fedjax_lite.engine.prologue import Prologue
from fedjax_lite.models import with_counts

MISSING = -99.0


def with_missing_labels():
    """Client 0 has labels for one of five examples, client 1 for none."""
    parts = [dict(part) for part in population()[0]]
    parts[0]["y"] = np.where(np.arange(5) < 4, MISSING, parts[0]["y"]).astype(np.float32)
    parts[1]["y"] = np.full(3, MISSING, np.float32)
    pooled = {name: np.concatenate([part[name] for part in parts]) for name in ("x", "y")}
    return parts, fl.data.from_arrays(pooled, np.repeat(np.arange(len(SIZES)), SIZES))


def labelled(params, example, key):
    return loss(params, example, key)


labelled = with_counts(labelled, lambda e: e["y"] != MISSING)


def fedavg(sampler, of=loss):
    return fl.fedavg(of, optax.sgd(0.1), plan=PLAN, sampler=sampler)


def held_against(algo, parts, data, folder):
    states, rows = simulated(algo, data)
    seen = []
    hub = hub_of(algo)
    done = federate(
        hub,
        in_process(nodes_of(algo, parts, folder)),
        num_rounds=NUM_ROUNDS,
        evaluate=lambda s: seen.append(s) or {},
    )
    for mine, theirs in zip(seen, states, strict=True):
        near((mine.server, mine.sampler), (theirs.server, theirs.sampler))
    for row, metrics in zip(done.rows, rows, strict=True):
        for name, value in metrics.items():
            assert row[name] == pytest.approx(float(value), rel=1e-5, nan_ok=True), name
    return done


def test_samplers_go_by_all_examples_servers_by_those_that_count(tmp_path):
    parts, data = with_missing_labels()
    done = held_against(fedavg(fl.weighted(2), labelled), parts, data, tmp_path)
    assert done.served.told.sizes.tolist() == list(SIZES)
    assert done.served.told.counted.tolist() == [1, 0, *SIZES[2:]]


def test_poisson_sampling_may_draw_nobody(tmp_path):
    done = held_against(fedavg(fl.poisson(0.1)), *population(), tmp_path)
    assert 0 in [row["asked"] for row in done.rows]  # as the simulation's own rows say


def test_a_client_in_two_slots_may_be_left_out_in_one(tmp_path):
    algo = fl.selection.power_of_choice(fedavg(fl.selection.multinomial(4)), loss, cohort_size=2)
    held_against(algo, *population(), tmp_path)


def test_who_missed_the_prologue_is_missed(tmp_path):
    """All of four are drawn, and two are down: fewer than three count."""
    algo = algorithm("mime", EVERYONE)
    answers = nodes_of(algo, population()[0], tmp_path)

    def exchange(requests):
        replies = in_process(answers)(requests)
        if decode(next(iter(requests.values()))).kind != "sizes?":
            replies = {i: reply for i, reply in replies.items() if i < 2}
        return replies

    hub = hub_of(algo)
    with pytest.raises(FederationAborted, match="2 of 4 clients replied"):
        federate(hub, exchange, num_rounds=1, min_clients=3)
    assert federate(hub, exchange, num_rounds=1).rows[0]["num_clients"] == 2


def test_a_prologue_may_read_a_split(tmp_path):
    """Its clients send the sum of their held-out labels; all download the mean of these sums."""

    def client(step):
        return fl.ClientUpdate(
            lambda params: (),
            lambda key, row, broadcast, info: jnp.zeros(()),
            step,
            lambda broadcast, total: ((), fl.Message({"w": total}, 1.0), {}),
        )

    def add(broadcast, total, batch):
        return total + jnp.where(batch.mask, batch.examples["y"], 0).sum()

    algo = fl.federated_algorithm(
        client(lambda broadcast, total, batch: broadcast.preface["w"]),
        plan=PLAN,
        sampler=EVERYONE,
        server=fl.optimizer_server(optax.sgd(1.0)),
        prologue=Prologue(
            client((fl.Phase(add, fl.Plan(batch_size=2), data="held"),)),
            PLAN,
            fl.aggregation.mean(),
        ),
    )
    held = [{"x": np.ones((n, 3), np.float32), "y": np.arange(1.0, n + 1)} for n in SIZES]
    params = {"w": jnp.float32(0)}
    parts, _ = population()
    answers = {}
    for i, part in enumerate(parts):
        given = {"client_id": i, "folder": tmp_path}
        answers[i] = node(algo, KEY, params, part, splits={"held": held[i]}, **given)
    hub = server(algo, KEY, params, num_clients=len(SIZES))
    served = hub.init(hub.told(in_process(answers)(dict.fromkeys(range(4), hub.hello()))))
    requests = hub.requests(served, in_process(answers)(hub.rehearsal(served)))
    sent = unpack(decode(requests[0]), {"found": {}, "sent": [jnp.float32(0)] * 2})["sent"]
    assert [float(leaf) for leaf in sent] == [0.0, np.mean([part["y"].sum() for part in held])]
    assert decode(answers[0](requests[0])).kind == "trained"
    with pytest.raises(ValueError, match=r"splits must have \['held'\]"):
        node(algo, KEY, params, parts[0], client_id=0, folder=tmp_path)


def test_a_broadcast_may_hold_a_typed_key(tmp_path):
    """Clients send what the key that they download draws; the same for all."""
    own = jax.random.key(11)
    plain = fl.optimizer_server(optax.sgd(1.0))
    keyed = plain._replace(
        broadcast=lambda server: {"params": plain.broadcast(server), "key": own}, made=None
    )
    algo = fl.federated_algorithm(
        fl.ClientUpdate(
            lambda params: (),
            lambda key, row, broadcast, info: broadcast["params"],
            lambda broadcast, carry, batch: carry,
            lambda broadcast, carry: (
                (),
                fl.Message({"w": -jax.random.normal(broadcast["key"], (3,))}, 1.0),
                {},
            ),
        ),
        plan=PLAN,
        sampler=EVERYONE,
        server=keyed,
    )
    params = {"w": jnp.zeros(3)}
    answers = {
        i: node(algo, KEY, params, part, client_id=i, folder=tmp_path)
        for i, part in enumerate(population()[0])
    }
    hub = server(algo, KEY, params, num_clients=len(SIZES))
    done = federate(hub, in_process(answers), num_rounds=1)
    near(done.served.state.server.params, {"w": jax.random.normal(own, (3,))})
