"""Noise of the server on a secure sum: the simulation's numbers, and what is spent."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from federations import KEY, PLAN, loss, population, start
from secure_world import SECURE, N, begun, hub_of, nodes_of, same_bytes

import fedjax_lite as fl
from fedjax_lite.deploy import decode, federate, in_process, node

ROUNDS = 2


@functools.cache
def algorithm(z, plan=PLAN, **options):
    dp = fl.privacy.secure_gaussian(
        clip=0.3, cohort_size=N, delta=1e-3, noise_multiplier=z, num_rounds=5, **options
    )
    return fl.fedavg(loss, optax.sgd(0.1), plan=plan, privacy=dp)


def simulated(algo, cohorts=None):
    _, data = population()
    state, states = algo.init(KEY, start(), data), []
    for r in range(ROUNDS):
        state, _ = algo.round(KEY, state, data, *([] if cohorts is None else [cohorts[r]]))
        states.append(state)
    return states


@pytest.mark.parametrize("z", [0.0, 1.0])
def test_equals_the_simulation_bit_for_bit(z, tmp_path):
    algo = algorithm(z)
    seen = []
    done = federate(
        hub_of(algo), in_process(nodes_of(algo, tmp_path)), num_rounds=ROUNDS,
        evaluate=lambda state: seen.append(state) or {},
    )  # fmt: skip
    for mine, theirs in zip(seen, simulated(algo), strict=True):
        same_bytes(mine.server, theirs.server)
    assert algo.accountant is not None
    for r, row in enumerate(done.rows):
        expected = fl.privacy.gdp_epsilon(1e-3, np.sqrt(r + 1) / z) if z else np.inf
        assert row["epsilon"] == pytest.approx(expected, rel=1e-6)
    assert "train_loss" not in done.rows[0]


def test_who_drops_out_takes_no_noise_along(tmp_path):
    """Of three survivors: the simulation's sum, noise and denominator."""
    algo = algorithm(1.0)
    ids = jnp.arange(N)
    with pytest.warns(UserWarning, match="explicit cohort"):
        states = simulated(algo, [fl.Cohort(ids, ids != 2), fl.Cohort(ids, ids >= 0)])
    answers = nodes_of(algo, tmp_path)

    def exchange(requests):
        packet = decode(next(iter(requests.values())))
        replies = dict(in_process(answers)(requests))
        if packet.kind == "mask" and packet.fields["round"] == 0:
            del replies[2]
        return replies

    done = federate(hub_of(algo), exchange, num_rounds=ROUNDS)
    same_bytes(done.served.state.server, states[-1].server)
    assert [row["num_clients"] for row in done.rows] == [3, 4]


def test_the_noise_is_the_servers_own(tmp_path):
    """Clients of full batches need no key: with keys of their own, and another one for the server,
    the model is that of the server's key. What they send has a word a coordinate, and no other."""
    algo = algorithm(1.0, plan=fl.Plan(batch_size=None))
    parts, _ = population()
    words = []

    def exchange(requests):
        replies = in_process(answers)(requests)
        words.extend(
            shape
            for reply in replies.values()
            for _, dtype, shape in decode(reply).leaves
            if dtype == "uint32"
        )
        return replies

    answers = {
        i: node(algo, jax.random.key(100 + i), start(), part, client_id=i, folder=tmp_path,
                secure=SECURE)
        for i, part in enumerate(parts)
    }  # fmt: skip
    hub = hub_of(algo)
    merged = hub.round(begun(hub, answers), exchange)
    same_bytes(merged.served.state.server, simulated(algo)[0].server)
    assert words == [(4,)] * N
    silent = simulated(algorithm(0.0, plan=fl.Plan(batch_size=None)))[0].server.params
    noise = jax.tree.map(lambda a, b: np.asarray(a - b), merged.served.state.server.params, silent)
    assert min(abs(leaf).min() for leaf in jax.tree.leaves(noise)) > 0


def test_a_budget_ends_the_run(tmp_path):
    algo = algorithm(None, epsilon=2.0)
    done = federate(hub_of(algo), in_process(nodes_of(algo, tmp_path)), num_rounds=5)
    assert 1.99 < done.rows[-1]["epsilon"] <= 2.0
    with pytest.raises(ValueError, match="budget"):
        federate(hub_of(algo), in_process(nodes_of(algo, tmp_path / "more")), num_rounds=6)
