"""A federation of machines reaches, round by round, what the simulation reaches."""

import jax.numpy as jnp
import numpy as np
import pytest
from federations import (
    EVERYONE,
    KEY,
    MAKERS,
    NUM_ROUNDS,
    SIZES,
    algorithm,
    hub_of,
    near,
    nodes_of,
    population,
    simulated,
    start,
)

import fedjax_lite as fl
from fedjax_lite.deploy import decode, federate, in_process


@pytest.mark.sample(2)
@pytest.mark.parametrize("name", MAKERS)
def test_reaches_what_the_simulation_reaches(name, tmp_path):
    algo = algorithm(name)
    parts, data = population()
    nodes = nodes_of(algo, parts, tmp_path)
    hub = hub_of(algo)
    states, rows = simulated(algo, data)
    seen = []
    done = federate(
        hub, in_process(nodes), num_rounds=NUM_ROUNDS, evaluate=lambda s: seen.append(s) or {}
    )
    for mine, theirs in zip(seen, states, strict=True):
        near(mine.server, theirs.server)
        near(mine.aggregator, theirs.aggregator)
    for row, metrics in zip(done.rows, rows, strict=True):
        assert {*metrics} <= {*row}
        for metric, value in metrics.items():
            assert row[metric] == pytest.approx(float(value), rel=1e-5, abs=1e-6), metric


def test_replaced_constants_reach_the_clients(tmp_path):
    """`with_frozen` between two rounds: the next request carries the new leaves, the one after
    that does not."""
    algo = algorithm("frozen", EVERYONE)
    parts, data = population()
    exchange = in_process(nodes_of(algo, parts, tmp_path))
    hub = hub_of(algo)
    served = hub.init(hub.told(exchange(dict.fromkeys(range(len(SIZES)), hub.hello()))))
    state = algo.init(KEY, start(), data)
    carried = []
    for r in range(4):
        if r == 2:
            new = {"w": None, "b": jnp.float32(0.7)}
            state = fl.with_frozen(state, new)
            served = served._replace(state=fl.with_frozen(served.state, new))
        requests = hub.requests(served)
        carried.append("['known'][0]" in [path for path, *_ in decode(requests[0]).leaves])
        merged = hub.merge(served, exchange(requests))
        assert not merged.refusals
        served = merged.served
        state, _ = algo.round(KEY, state, data)
        near(served.state.server, state.server)
    assert carried == [True, False, True, False]


def test_a_client_without_data_counts_for_nothing(tmp_path):
    algo = algorithm("fedavg", EVERYONE)
    parts, _ = population()
    none = {name: leaf[:0] for name, leaf in parts[0].items()}
    ids = np.repeat([1, 2, 3], SIZES[1:])
    pooled = {name: np.concatenate([part[name] for part in parts[1:]]) for name in none}
    data = fl.data.from_arrays(pooled, ids, num_clients=len(SIZES))
    hub = hub_of(algo)
    answers = nodes_of(algo, [none, *parts[1:]], tmp_path)
    done = federate(hub, in_process(answers), num_rounds=1)
    assert done.served.told.sizes.tolist() == [0, *SIZES[1:]]
    state, metrics = algo.round(KEY, algo.init(KEY, start(), data), data)
    near(done.served.state.server, state.server)
    assert done.rows[0]["num_clients"] == int(metrics["num_clients"]) == 3
