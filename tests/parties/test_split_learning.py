"""Split learning and SplitFed: equal to training of the whole; who is billed for what."""

import dataclasses
import itertools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import fedjax_lite as fl
from fedjax_lite import trees
from fedjax_lite.engine.one_client import train_clients
from fedjax_lite.engine.program import Table
from fedjax_lite.parties import Part, cut_layers, split_learning, splitfed
from fedjax_lite.parties.wires import carried

KEY = jax.random.key(0)
RNG = np.random.default_rng(3)
SIZES = (3, 5, 0, 2)
OWNERS = np.repeat(np.arange(4), SIZES)
EXAMPLES = {"x": RNG.normal(size=(10, 3)).astype(np.float32), "y": RNG.integers(0, 2, 10)}
DATA = fl.data.from_arrays(EXAMPLES, OWNERS, num_clients=4)
PLAN = fl.Plan(batch_size=2, epochs=1)
EVERYONE = fl.everyone()


def dense(size, out):
    return Part(lambda key: jax.random.normal(key, (size, out)), lambda w, x, key: jnp.tanh(x @ w))


LAYERS = [dense(3, 4), dense(4, 4), dense(4, 2)]
CUT, U = cut_layers(LAYERS, at=1), cut_layers(LAYERS, at=(1, 2))
PARAMS = CUT.model.init(jax.random.key(5))
HALF = 32 * 3 * 4
"""Bits of the first layer."""
CROSSING = 32 * 10 * 4
"""Bits of ten activations, or of their gradients."""


def same(found, expected, tolerance=1e-6):
    jax.tree.map(
        lambda a, b: np.testing.assert_allclose(a, b, rtol=tolerance, atol=tolerance),
        *(found, expected),
    )


def distance(found, expected):
    gaps = jax.tree.map(lambda a, b: np.abs(np.asarray(a) - b).max(), found, expected)
    return max(jax.tree.leaves(gaps))


def once(algo, data=DATA, cohort: Any = None):
    return algo.round(KEY, algo.init(KEY, PARAMS, data), data, cohort)


WHOLE = fl.fedavg(CUT.model.loss, optax.sgd(0.3), plan=PLAN, sampler=EVERYONE)
"""Of the uncut network: whose clients train on the same batches."""


@jax.jit
def trained_alone(params, client):
    """What one client makes of a whole network, by the engine."""
    some = jax.tree.map(lambda leaf: leaf[None], params)
    done = train_clients(WHOLE.slots, KEY, some, Table((), ()), client[None], jnp.int32(0), DATA)
    return trees.subtract(params, jax.tree.map(lambda leaf: leaf[0], done.messages.value))


@pytest.mark.parametrize("cut", [CUT, U], ids=["two parts", "U"])
def test_splitfed_1_is_fedavg_of_the_whole(cut):
    adam = optax.adam(0.05)
    state, metrics = once(splitfed(cut, adam, plan=PLAN, sampler=EVERYONE))
    whole = fl.fedavg(cut.model.loss, adam, plan=PLAN, sampler=EVERYONE)
    expected, rows = once(whole)
    same(state.server.params, expected.server.params)
    assert distance(state.server.params, PARAMS) > 0.01
    np.testing.assert_allclose(metrics["train_loss"], rows["train_loss"], rtol=1e-6)
    assert (metrics["num_clients"], metrics["num_steps"]) == (3, 2 + 3 + 1)
    # Three clients with data send the halves that are theirs; all four were sent them.
    half = HALF + (32 * 4 * 2 if cut.labels_stay else 0)
    up = 2 * CROSSING if cut.labels_stay else CROSSING + 32 * 10
    down = 2 * CROSSING if cut.labels_stay else CROSSING
    assert (metrics["activation_bits"], metrics["gradient_bits"]) == (up, down)
    assert metrics["uplink_bits"] == metrics["uplink_entropy_bits"] == 3 * half + up
    assert metrics["downlink_bits"] == 4 * half + down


def test_strategies_of_splitfed_1():
    algo = splitfed(CUT, optax.sgd(0.3), plan=PLAN, sampler=EVERYONE)
    with_strategy: Any = algo.with_strategy
    one, other = (with_strategy(s) for s in (fl.vmapped(), fl.sequential()))
    same(once(one), once(other))
    assert fl.describe(other).splitlines()[0] == fl.describe(algo).splitlines()[0]


@pytest.fixture(scope="module")
def in_turn():
    algo = split_learning(CUT, optax.sgd(0.3), plan=PLAN, sampler=EVERYONE)
    return algo, once(algo)


def test_in_turn_is_one_network_that_is_handed_on(in_turn):
    """In some order of the clients with data, and in no other."""
    _, (state, metrics) = in_turn
    gaps = []
    for order in itertools.permutations([0, 1, 3]):
        params = PARAMS
        for client in order:
            params = trained_alone(params, jnp.int32(client))
        gaps.append(distance(state.server.params, params))
    assert sorted(gaps)[0] < 1e-6
    assert sorted(gaps)[1] > 1e-4
    assert (metrics["num_clients"], metrics["num_steps"]) == (3, 6)
    assert metrics["activation_bits"] == CROSSING + 32 * 10
    assert metrics["uplink_bits"] == CROSSING + 32 * 10 + 3 * HALF
    assert metrics["downlink_bits"] == CROSSING + 4 * HALF


def test_orders_differ_from_round_to_round(in_turn):
    """Else the last client would always have the last word."""
    algo, (state, _) = in_turn
    orders = set()
    for number in range(8):
        begun = algo.init(KEY, PARAMS, DATA)._replace(round=jnp.int32(number))
        after = algo.round(KEY, begun, DATA)[0].server.params
        orders.add(tuple(np.asarray(jax.tree.leaves(after)[0]).ravel().round(5).tolist()))
    assert len(orders) > 2
    assert state.round == 1


@pytest.fixture(scope="module")
def version_2():
    return splitfed(CUT, optax.sgd(0.3), plan=PLAN, sampler=EVERYONE, version=2)


def test_splitfed_2_averages_the_clients_halves_only(version_2):
    state, metrics = once(version_2)
    gaps = []
    for order in itertools.permutations([0, 1, 3]):
        begun, server = CUT.halves(PARAMS)
        total = jax.tree.map(jnp.zeros_like, begun)
        for client in order:
            mine, server = CUT.halves(trained_alone(CUT.whole(begun, server), jnp.int32(client)))
            share = SIZES[client] / sum(SIZES)
            total = jax.tree.map(lambda t, m, share=share: t + share * m, total, mine)
        gaps.append(distance(state.server.params, CUT.whole(total, server)))
    assert sorted(gaps)[0] < 1e-6
    assert sorted(gaps)[1] > 1e-5
    assert metrics["uplink_bits"] == CROSSING + 32 * 10 + 3 * HALF


@pytest.mark.parametrize("kind", ["in turn", "splitfed 1", "splitfed 2"])
def test_who_does_not_take_part_leaves_no_trace(kind):
    """Not even with NaN in its data; and a round of nobody changes nothing."""
    options: Any = {"plan": PLAN, "sampler": EVERYONE}
    algo = {
        "in turn": lambda: split_learning(CUT, optax.adam(0.1), **options),
        "splitfed 1": lambda: splitfed(CUT, optax.adam(0.1), **options),
        "splitfed 2": lambda: splitfed(CUT, optax.adam(0.1), version=2, **options),
    }[kind]()
    x = np.where((OWNERS == 1)[:, None], np.nan, EXAMPLES["x"])
    data = dataclasses.replace(DATA, examples={**DATA.examples, "x": jnp.asarray(x)})
    some = fl.Cohort(jnp.array([3, 1, 0]), jnp.array([True, False, True]))
    state, metrics = once(algo, data, some)
    assert all(bool(jnp.isfinite(leaf).all()) for leaf in jax.tree.leaves(state))
    assert metrics["activation_bits"] == (3 + 2) * (4 * 32 + 32)
    assert metrics["downlink_bits"] == (3 + 2) * 4 * 32 + 2 * HALF
    nobody, metrics = once(algo, data, fl.Cohort(some.ids, jnp.zeros(3, bool)))
    same(nobody.server.params, PARAMS, 0)
    assert metrics["uplink_bits"] == metrics["downlink_bits"] == 0


def test_on_the_wire():
    """Sparse activations cost less and change what is learnt; a memory is refused."""
    sparse = splitfed(
        CUT, optax.sgd(0.3), plan=PLAN, sampler=EVERYONE, uplink=fl.top_k(1), downlink=fl.top_k(2)
    )
    state, metrics = once(sparse)
    one = 32 + 2  # a float, and which of four it is
    assert metrics["activation_bits"] == 10 * (one + 32)
    assert metrics["gradient_bits"] == 10 * 2 * one
    assert distance(state.server.params, once(WHOLE)[0].server.params) > 1e-3  # the plain one
    for make in (splitfed, split_learning):
        with pytest.raises(ValueError, match="downlink must not remember"):
            make(
                CUT, optax.sgd(0.3), plan=PLAN, sampler=EVERYONE,
                downlink=fl.error_feedback(fl.top_k(1)),
            )  # fmt: skip


def test_a_proximal_pull_is_towards_what_was_handed_over():
    """Version 1 is FedProx of the uncut network, and so is any of them with one client."""
    pulled = optax.chain(fl.proximal(2.0), optax.sgd(0.3))
    whole = fl.fedavg(CUT.model.loss, pulled, plan=PLAN, sampler=EVERYONE)
    ids = jnp.arange(4)
    everybody = fl.Cohort(ids, ids >= 0)
    expected = once(whole, DATA, everybody)[0].server.params
    split = splitfed(CUT, pulled, plan=PLAN, sampler=EVERYONE)
    same(once(split, DATA, everybody)[0].server.params, expected)
    assert distance(expected, once(WHOLE)[0].server.params) > 1e-3
    alone = fl.Cohort(ids, ids == 1)  # five examples, three steps
    expected = once(whole, DATA, alone)[0].server.params
    in_turn = split_learning(CUT, pulled, plan=PLAN, sampler=EVERYONE)
    same(once(in_turn, DATA, alone)[0].server.params, expected)


def test_who_has_no_label_counts_nowhere(version_2):
    """A client without any is as one that was not asked, but for what it downloads."""
    y = np.where(OWNERS == 0, -1, EXAMPLES["y"])
    data = dataclasses.replace(DATA, examples={**DATA.examples, "y": jnp.asarray(y)})
    ids = jnp.array([0, 1])
    both, metrics = once(version_2, data, fl.Cohort(ids, jnp.array([True, True])))
    one, alone = once(version_2, data, fl.Cohort(ids, jnp.array([False, True])))
    same(both.server.params, one.server.params, 0)
    assert (metrics["num_clients"], metrics["num_steps"]) == (1, 3)
    assert metrics["uplink_bits"] == alone["uplink_bits"] == 5 * (4 * 32 + 32) + HALF
    assert metrics["downlink_bits"] == alone["downlink_bits"] + HALF
    assert metrics["train_loss"] == alone["train_loss"]


def test_who_is_late_was_sent_its_half(version_2):
    ids, mask = jnp.array([0, 1]), jnp.array([False, True])
    _, late = once(version_2, DATA, fl.Cohort(ids, mask, late=jnp.array([True, False])))
    _, gone = once(version_2, DATA, fl.Cohort(ids, mask))
    assert late["downlink_bits"] == gone["downlink_bits"] + HALF
    assert late["uplink_bits"] == gone["uplink_bits"]


def test_single_numbers_are_billed_whole():
    """The batch is what the transform is given: its largest number and its place cost as such."""
    h, mask = jnp.array([3.0, 1.0, 2.0, 5.0]), jnp.array([True, False, False, False])
    sparse = jax.jit(lambda mask: carried(fl.top_k(1), KEY, h, mask))
    got, wire = sparse(mask)
    assert wire.bits == 32 + 2  # a float, and which of four it is
    assert got[0] == 3
    assert sparse(mask & False)[1].bits == 0
    assert carried(None, KEY, h, mask)[1].bits == 32


def test_run_resume_and_sweep(in_turn, tmp_path):
    algo, _ = in_turn
    start = algo.init(KEY, PARAMS, DATA)
    state, rows = fl.run(algo, KEY, start, DATA, num_rounds=4, every=2, progress=False)
    assert rows[-1]["uplink_bits_total"] == 4 * rows[-1]["uplink_bits"]
    options: Any = {"every": 2, "progress": False, "output_dir": tmp_path / "run"}
    fl.run(algo, KEY, start, DATA, num_rounds=2, **options)
    again, _ = fl.run(algo, KEY, start, DATA, num_rounds=4, resume=True, **options)
    same(again, state, 0)  # byte for byte
    swept = fl.sweep(
        lambda rate: splitfed(CUT, optax.sgd(rate), plan=PLAN, sampler=EVERYONE),
        {"rate": [0.3, 0.1]}, init=lambda key: PARAMS, data=DATA, num_rounds=1, progress=False,
    )  # fmt: skip
    first = jax.tree.map(lambda leaf: leaf[0], swept.states.server.params)
    same(first, once(WHOLE)[0].server.params, 1e-5)


def test_refusals():
    options: Any = {"plan": PLAN, "sampler": EVERYONE}
    with pytest.raises(ValueError, match="version must be 1 or 2, got 3"):
        splitfed(CUT, optax.sgd(0.1), version=3, **options)  # pyright: ignore
    with pytest.raises(ValueError, match="strategy must be left out with version=2"):
        splitfed(CUT, optax.sgd(0.1), version=2, strategy=fl.vmapped(), **options)
    learning = fl.selection.oort(2)
    with pytest.raises(ValueError, match="sampler must draw clients without a clock"):
        split_learning(CUT, optax.sgd(0.1), plan=PLAN, sampler=learning)
    algo = split_learning(CUT, optax.sgd(0.1), plan=PLAN, sampler=EVERYONE)
    with pytest.raises(TypeError, match="data must be a FederatedDataset, got a dict"):
        algo.init(KEY, PARAMS, EXAMPLES)
