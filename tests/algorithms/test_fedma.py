"""FedMA: copies in other orders agree, layers rest once they are matched, one client is itself."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import fedjax_lite as fl
from fedjax_lite.types import Cohort

KEY = jax.random.key(0)
MODEL = fl.models.mlp((4, 3), num_classes=2, input_shape=(3,))
RNG = np.random.default_rng(0)
X = RNG.normal(size=(12, 3)).astype(np.float32)
Y = (X.sum(1) > 0).astype(np.int64)
DATA = fl.data.from_arrays({"x": X, "y": Y}, np.repeat(range(3), 4))
NET = MODEL.init(jax.random.key(1))


IDS = jnp.arange(3, dtype=jnp.int32)
EVERYONE = Cohort(IDS, jnp.ones(3, bool))
SLOTS = {"plan": fl.Plan(batch_size=None, steps=2), "sampler": fl.everyone()}


@pytest.fixture(scope="module")
def algo():
    """One compiled round for all tests but one."""
    return fl.fedma(MODEL.loss, optax.sgd(0.5), **SLOTS)


@pytest.fixture(scope="module")
def path(algo):
    """States after each of four rounds."""
    states = [algo.init(KEY, NET, DATA)]
    for _ in range(4):
        states.append(algo.round(KEY, states[-1], DATA, EVERYONE)[0])
    return states


def test_clients_that_start_with_permuted_copies_give_the_network_back():
    """No client moves (rate 0): after a cycle the server has one of their networks, exactly."""
    model = fl.models.mlp((4,), num_classes=2, input_shape=(3,))
    net = model.init(jax.random.key(1))
    (layer,) = fl.matching.hidden_layers(net)

    def init(key):
        return fl.matching.reorder(net, layer, jax.random.permutation(key, 4))

    algo = fl.fedma(model.loss, optax.sgd(0.0), init=init, iterations=1, **SLOTS)
    state = algo.init(KEY, model.init(jax.random.key(2)), DATA)
    for _ in range(2):
        state, _ = algo.round(KEY, state, DATA, EVERYONE)
    orders = [state.clients.net["dense1"]["kernel"][i].tolist() for i in range(3)]
    assert orders[0] == orders[1] == orders[2]  # in order with the server's

    def units(params):
        kernel, bias = (np.asarray(params["dense1"][name]) for name in ("kernel", "bias"))
        return sorted(np.c_[kernel.T, bias, params["head"]["kernel"]].tolist())

    assert units(state.server.params) == units(net)


@pytest.fixture(scope="module")
def by_hand():
    """Two units that nobody moves, matched as (1, 3), under a head (10, -10) of the clients'."""
    own = {"w": jnp.array([[1.0, 3.0]]), "v": jnp.array([[10.0], [-10.0]])}
    layers = [fl.matching.Layer(2, (("w", -1),), (("v", -2),))]
    algo = fl.fedma(
        lambda net, e, key: e["x"] * (net["w"] @ net["v"]).sum(),
        optax.sgd(0.0),
        init=lambda key: own,
        layers=layers,
        **SLOTS,
    )
    return algo, own


def test_a_head_of_the_cycle_before_does_not_turn_units_around(by_hand):
    """The server's old head is nearer to the clients' with the units turned: 8 against 800."""
    algo, own = by_hand
    data = fl.data.from_arrays({"x": np.ones(3, np.float32)}, range(3))
    state = algo.init(KEY, {"w": jnp.zeros((1, 2)), "v": -own["v"]}, data)
    for _ in range(2):
        state, _ = algo.round(KEY, state, data, EVERYONE)
    for name, leaf in own.items():
        np.testing.assert_array_equal(state.server.params[name], leaf)
        np.testing.assert_array_equal(state.clients.net[name], np.stack([leaf] * 3))


def test_a_client_that_diverges_is_reported(by_hand):
    """Its gradient overflows, its network is NaN: the round ends all the same, as does the run."""
    algo, own = by_hand
    data = fl.data.from_arrays({"x": np.array([1.0, 3e38, 1.0], np.float32)}, range(3))
    state = algo.init(KEY, own, data)
    with pytest.raises(fl.RunDiverged):
        fl.run(algo, KEY, state, data, num_rounds=2, progress=False)


def test_a_layer_a_round_is_taken_and_rests(path):
    params = [state.server.params for state in path]

    def moved(before, after):
        return {name for name in NET if (before[name]["kernel"] != after[name]["kernel"]).any()}

    for round, name in enumerate(["dense1", "dense2", "head", "dense1"]):
        assert moved(params[round], params[round + 1]) == {name}
    # In the second round clients train on from their own networks, with the first layer at rest.
    kept = path[2].clients.net
    np.testing.assert_array_equal(
        kept["dense1"]["kernel"], np.stack([params[1]["dense1"]["kernel"]] * 3)
    )
    assert bool((kept["head"]["kernel"][0] != kept["head"]["kernel"][1]).any())


def test_one_client_is_its_own_training_with_one_layer_less_each_round(algo):
    alone = Cohort(IDS, jnp.array([True, False, False]))
    state = algo.init(KEY, NET, DATA)
    for _ in range(3):
        state, _ = algo.round(KEY, state, DATA, alone)
    mine = {"x": X[:4], "y": Y[:4]}
    net, gradient = NET, jax.jit(jax.grad(lambda p: MODEL.loss(p, mine, None).mean()))
    for resting in ((), ("dense1",), ("dense1", "dense2")):
        for _ in range(2):
            grad = gradient(net)
            for name in set(NET) - set(resting):
                step = jax.tree.map(lambda w, g: w - 0.5 * g, net[name], grad[name])
                net = {**net, name: step}
    for found, due in zip(*map(jax.tree.leaves, (state.server.params, net)), strict=True):
        np.testing.assert_allclose(found, due, atol=1e-6)


def test_who_missed_a_round_starts_from_the_servers_network(algo):
    """Whatever network is left with a client of which the last round was without it."""
    first = algo.init(KEY, NET, DATA)
    first, _ = algo.round(KEY, first, DATA, Cohort(IDS, jnp.array([True, False, True])))
    rows = first.clients._replace(net=jax.tree.map(lambda leaf: leaf + 9, first.clients.net))
    only = jnp.array([False, True, False])
    second, third = (
        algo.round(KEY, state, DATA, Cohort(IDS, only))[0]
        for state in (first, first._replace(clients=rows))
    )
    for mine, theirs in zip(*map(jax.tree.leaves, (second.server, third.server)), strict=True):
        np.testing.assert_array_equal(mine, theirs)


def test_bad_input():
    slots = {"plan": fl.Plan(batch_size=2), "sampler": fl.everyone()}
    with pytest.raises(ValueError, match="aggregator must be left out of fedma"):
        fl.fedma(MODEL.loss, optax.sgd(0.1), aggregator=fl.median(), **slots)
    wider = fl.models.mlp((9, 3), num_classes=2, input_shape=(3,)).init
    algo = fl.fedma(MODEL.loss, optax.sgd(0.1), init=wider, **slots)
    with pytest.raises(ValueError, match="init must give parameters shaped as"):
        algo.init(KEY, NET, DATA)
    layers = [fl.matching.Layer(7, (("dense1/kernel", -1),), ())]
    algo = fl.fedma(MODEL.loss, optax.sgd(0.1), layers=layers, **slots)
    with pytest.raises(ValueError, match="layers must name axes of 7 units"):
        algo.init(KEY, NET, DATA)
