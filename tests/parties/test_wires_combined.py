"""What crosses a cut, changed both ways: against the network in one place with the wire inside.

There the wire is a function with a gradient of its own: forward what goes up becomes, backward what
comes down becomes, example by example.
"""

import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import fedjax_lite as fl
from fedjax_lite.data.stores.store import ArrayStore
from fedjax_lite.parties import (
    Part,
    cut_layers,
    fedbcd,
    joint,
    regression,
    split_learning,
    splitfed,
    vertical_model,
    vertical_sgd,
    wiretap,
)
from fedjax_lite.stream import StreamedDataset
from fedjax_lite.transforms.chain import send
from fedjax_lite.types import Transform

KEY = jax.random.key(0)
RNG = np.random.default_rng(7)
PLAN = fl.Plan(batch_size=2)
SIZES = (4, 3, 0, 2)
EXAMPLES = {"x": RNG.normal(size=(9, 3)).astype(np.float32), "y": RNG.integers(0, 2, 9)}
CLIENTS = fl.data.from_arrays(EXAMPLES, np.repeat(np.arange(4), SIZES), num_clients=4)
ALONE = fl.data.from_arrays(EXAMPLES, np.zeros(9, int), num_clients=1)
X = {p: RNG.normal(size=(9, d)).astype(np.float32) for p, d in (("a", 2), ("b", 3), ("c", 1))}
COLUMNS = fl.parties.from_columns(X, {"b": EXAMPLES["y"]})
TABLE = fl.data.from_arrays(COLUMNS.examples_of(), np.zeros(9, int), num_clients=1)
EXACT = {
    "none": None,
    "clip": fl.clip(0.05),
    "sparse": fl.top_k(2),
    "signs": fl.transforms.scaled_sign(),
    "clip, then sparse": fl.chain(fl.clip(0.5), fl.top_k(1)),
}
"""Wires that draw nothing, so that what they make can be written down elsewhere."""
PAIRS = [("clip", "sparse"), ("signs", "clip"), ("clip, then sparse", "signs"), ("sparse", "none")]


def wire(up, down):
    """``(h) -> h`` of a batch, with what is sent up forward and what is sent down backward."""

    def each(transform, value):
        if transform is None:
            return value
        return jax.vmap(lambda one: transform.update(KEY, transform.init(one), one)[1])(value)

    @jax.custom_vjp
    def sent(h):
        return each(up, h)

    sent.defvjp(lambda h: (each(up, h), None), lambda _, g: (each(down, g),))
    return sent


def dense(size, out, before=lambda x: x):
    def init(key):
        return jax.random.normal(key, (size, out))

    return Part(init, lambda w, x, key: jnp.tanh(before(x) @ w))


def layers(first=lambda h: h, second=lambda h: h):
    return [dense(3, 4), dense(4, 4, first), dense(4, 2, second)]


def after(algo, params, data):
    return algo.round(KEY, algo.init(KEY, params, data), data)


def close(found, expected):
    jax.tree.map(
        lambda a, b: np.testing.assert_allclose(a, b, rtol=2e-5, atol=2e-6), found, expected
    )


def distance(found, expected):
    gaps = jax.tree.map(lambda a, b: np.abs(np.asarray(a) - b).max(), found, expected)
    return max(jax.tree.leaves(gaps))


METHODS: dict[str, Any] = {
    "splitfed 1": (splitfed, {}, CLIENTS, 1),
    "splitfed 1 in a U": (splitfed, {}, CLIENTS, (1, 2)),
    "splitfed 2": (splitfed, {"version": 2}, ALONE, 1),
    "in turn": (split_learning, {}, ALONE, 1),
    "in turn in a U": (split_learning, {}, ALONE, (1, 2)),
}


def split(method, up, down):
    """The algorithm of a cut network."""
    factory, options, data, at = METHODS[method]
    cut = cut_layers(layers(), at=at)
    options = {**options, "plan": PLAN, "sampler": fl.everyone(), "uplink": up, "downlink": down}
    return factory(cut, optax.sgd(0.3), **options), cut, data


@pytest.mark.sample(2)
@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("pair", PAIRS, ids=" / ".join)
def test_cut_networks_with_both_wires_changed(method, pair):
    up, down = (EXACT[name] for name in pair)
    algo, cut, data = split(method, up, down)
    params = cut.model.init(jax.random.key(5))
    # In a U activations come down behind the server, and their gradients go up.
    second = wire(down, up) if cut.labels_stay else lambda h: h
    inside = cut_layers(layers(wire(up, down), second), at=1).model
    options: Any = {"plan": PLAN, "sampler": fl.everyone()}
    expected, _ = after(fl.fedavg(inside.loss, optax.sgd(0.3), **options), params, data)
    found, metrics = after(algo, params, data)
    close(found.server.params, expected.server.params)
    plain = unchanged(data is ALONE)
    assert distance(found.server.params, plain) > 1e-3
    # Nine examples once, each message as it costs alone; labels, where they go up.
    one_up, one_down = (bits(transform, (4,)) for transform in (up, down))
    labels = 0 if cut.labels_stay else 32
    if cut.labels_stay:
        one_up, one_down = 2 * one_up, 2 * one_down
    assert metrics["activation_bits"] == 9 * (one_up + labels)
    assert metrics["gradient_bits"] == 9 * one_down


@functools.cache
def unchanged(alone):
    """The end of training without any wire; in a U the model is the same."""
    model = cut_layers(layers(), at=1).model
    algo = fl.fedavg(model.loss, optax.sgd(0.3), plan=PLAN, sampler=fl.everyone())
    params = model.init(jax.random.key(5))
    return after(algo, params, ALONE if alone else CLIENTS)[0].server.params


@functools.cache
def bits(transform, shape):
    """What one message costs."""
    if transform is None:
        return 32 * int(np.prod(shape))
    sent = jax.jit(lambda one: send(transform, KEY, transform.init(one), one)[2].bits)
    return float(sent(np.ones(shape, "f4")))


@pytest.mark.sample(1)
@pytest.mark.parametrize("pair", PAIRS, ids=" / ".join)
def test_networks_over_columns_with_both_wires_changed(pair):
    up, down = (EXACT[name] for name in pair)

    def network(crossing):
        bottoms = {
            party: Part(
                lambda key, size=x.shape[1]: jax.random.normal(key, (size, 3)),
                lambda w, x, key, own=party == "b": (
                    jnp.tanh(x @ w) if own else crossing(jnp.tanh(x @ w))
                ),
            )
            for party, x in X.items()
        }
        return vertical_model(bottoms, fl.models.linear(2, (9,)), holder="b")

    model, inside = network(lambda h: h), network(wire(up, down))
    params = jax.tree.map(
        lambda w: w + jnp.asarray(0.3 * np.cos(np.arange(w.size)).reshape(w.shape)),
        jax.jit(model.init)(KEY),
    )
    algo = vertical_sgd(model, optax.sgd(0.3), plan=PLAN, uplink=up, downlink=down)
    found, metrics = after(algo, params, COLUMNS)
    whole = fl.fedavg(joint(inside).loss, optax.sgd(0.3), plan=PLAN, sampler=fl.everyone())
    expected = after(whole, params, TABLE)[0].server.params
    mine = found.server.params
    close((mine.bottoms, mine.heads), (expected.bottoms, expected.heads))
    assert metrics["uplink_bits"] == 9 * 2 * bits(up, (3,))
    assert metrics["downlink_bits"] == 9 * 2 * bits(down, (3,))


def test_a_regression_whose_batch_is_one_message():
    """Numbers of a batch are sparsified together; of a FedBCD step so are the stale ones."""
    model = regression("logistic", fl.parties.from_columns(X, {"b": EXAMPLES["y"].astype("f4")}))
    data = fl.parties.from_columns(X, {"b": EXAMPLES["y"].astype("f4")})
    y, rate, steps = EXAMPLES["y"], 0.4, 2
    whole = fl.Plan(batch_size=None)
    algo = fedbcd(
        model, optax.sgd(rate), plan=whole, local_steps=steps, uplink=fl.top_k(3),
        downlink=fl.top_k(2),
    )  # fmt: skip
    w = {p: np.cos(np.arange(x.shape[1])) for p, x in X.items()}
    params = model.init(KEY)._replace(bottoms={p: jnp.asarray(v, "f4") for p, v in w.items()})
    sent = {p: kept(X[p] @ w[p], 3) for p in ("a", "c")}
    r = kept((1 / (1 + np.exp(-(sent["a"] + sent["c"] + X["b"] @ w["b"]))) - y) / 9, 2)
    for party in ("a", "c"):
        w[party] = w[party] - steps * rate * X[party].T @ r
    bias = 0.0
    for _ in range(steps):
        fresh = 1 / (1 + np.exp(-(sent["a"] + sent["c"] + X["b"] @ w["b"] + bias))) - y
        w["b"], bias = w["b"] - rate * X["b"].T @ fresh / 9, bias - rate * fresh.mean()
    state, metrics = after(algo, params, data)
    close(state.server.params.bottoms, w)
    np.testing.assert_allclose(state.server.params.heads["b"]["intercept"], bias, rtol=1e-4)
    # Floats, and which of nine they are, four bits each; two parties.
    assert (metrics["uplink_bits"], metrics["downlink_bits"]) == (2 * 3 * 36, 2 * 2 * 36)


def kept(values, number):
    """The largest in size, the others zero."""
    smallest = np.sort(np.abs(values))[-number]
    return np.where(np.abs(values) >= smallest, values, 0)


NOISED = fl.chain(fl.clip(0.5), fl.gaussian_noise(0.1))
QUANTISED = fl.chain(fl.clip(2.0), fl.qsgd(7))


@pytest.mark.sample(1)
@pytest.mark.parametrize("method", ["splitfed 1", "splitfed 2", "in turn in a U"])
def test_noise_up_and_levels_down(method):
    """A function of the key, and another one of another key; bits as of one message each."""
    algo, cut, data = split(method, NOISED, QUANTISED)
    params = cut.model.init(jax.random.key(5))
    start = algo.init(KEY, params, data)
    state, metrics = algo.round(KEY, start, data)
    assert distance(algo.round(KEY, start, data)[0].server.params, state.server.params) == 0
    other = algo.round(jax.random.key(1), start, data)[0]
    assert distance(other.server.params, state.server.params) > 1e-4
    assert all(np.isfinite(leaf).all() for leaf in jax.tree.leaves((state, metrics)))
    both = 2 if cut.labels_stay else 1
    assert metrics["gradient_bits"] == 9 * both * bits(fl.qsgd(7), (4,))
    assert metrics["activation_bits"] == 9 * (both * 128 + (0 if cut.labels_stay else 32))


def test_noise_and_absence_may_be_swept():
    """One program for all values: no noise is no wire, an absent party sends nothing."""
    cut, traced = cut_layers(layers(), at=1), []
    params = cut.model.init(KEY)
    slots: Any = {"plan": PLAN, "sampler": fl.everyone()}
    quiet = split_learning(cut, optax.sgd(0.3), **slots)

    @jax.jit
    def noised(level):
        traced.append(level)
        algo = split_learning(cut, optax.sgd(0.3), uplink=fl.gaussian_noise(level), **slots)
        return after(algo, params, ALONE)[0].server.params

    found = [noised(level) for level in (0.0, 0.5)]
    close(found[0], after(quiet, params, ALONE)[0].server.params)
    assert distance(found[0], found[1]) > 1e-3
    data = fl.parties.from_columns(X, {"b": EXAMPLES["y"].astype("f4")})

    @jax.jit
    def absent(share):
        traced.append(share)
        algo = vertical_sgd(regression("logistic", data), optax.sgd(0.1), plan=PLAN, absence=share)
        return after(algo, None, data)[1]["uplink_bits"]

    assert [float(absent(share)) for share in (0.0, 1.0)] == [2 * 9 * 32, 0]
    assert len(traced) == 2


def own_memory():
    """A transform of one's own that says nothing of its kind, and keeps what it was given."""
    return Transform(jnp.zeros_like, lambda key, state, value: (value, value - state))


MEMORIES = {
    "feedback": fl.error_feedback(fl.top_k(1)),
    "a transform": fl.transforms.ef21(fl.top_k(1)),
    "momentum": fl.transforms.worker_momentum(0.9),
    "chained": fl.chain(fl.clip(1.0), fl.error_feedback(fl.qsgd(3))),
    "own": own_memory(),
}


@pytest.mark.parametrize("name", MEMORIES)
@pytest.mark.parametrize("direction", ["uplink", "downlink"])
def test_memory_is_refused_in_both_directions(name, direction):
    """By every method and by the wiretap: the next batch is of other examples."""
    options: Any = {direction: MEMORIES[name]}
    message = f"{direction} must not remember one message for the next, got .*give the compressor"
    cut = cut_layers(layers(), at=1)
    model = regression("logistic", fl.parties.from_columns(X, {"b": EXAMPLES["y"].astype("f4")}))
    slots: Any = {"plan": PLAN, "sampler": fl.everyone()}
    calls = (
        lambda: splitfed(cut, optax.sgd(0.1), **slots, **options),
        lambda: splitfed(cut, optax.sgd(0.1), version=2, **slots, **options),
        lambda: split_learning(cut, optax.sgd(0.1), **slots, **options),
        lambda: vertical_sgd(model, optax.sgd(0.1), plan=PLAN, **options),
        lambda: fedbcd(model, optax.sgd(0.1), plan=PLAN, local_steps=2, **options),
        lambda: wiretap(cut, cut.model.init(KEY), EXAMPLES, key=KEY, **options),
    )
    for call in calls:
        with pytest.raises(ValueError, match=message):
            call()


def test_compressors_that_are_warm_for_matrices_only_are_taken():
    """PowerSGD keeps a start for matrices; what crosses begins anew each time."""
    cut = cut_layers(layers(), at=1)
    slots: Any = {"plan": PLAN, "sampler": fl.everyone()}
    algo = splitfed(cut, optax.sgd(0.1), uplink=fl.transforms.powersgd(1), **slots)
    state, _ = after(algo, cut.model.init(KEY), CLIENTS)
    assert np.isfinite(state.server.params[0]).all()


@pytest.mark.skipif(jax.device_count() < 2, reason="test_sharded.py's last test runs it")
def test_several_devices():
    """SplitFed 1 over a mesh is SplitFed 1."""
    cut = cut_layers(layers(), at=1)
    params = cut.model.init(KEY)
    mesh = fl.client_mesh()
    slots: Any = {"plan": PLAN, "sampler": fl.everyone(), "uplink": NOISED, "downlink": QUANTISED}
    expected = after(
        splitfed(cut, optax.sgd(0.3), strategy=fl.sequential(), **slots), params, CLIENTS
    )
    algo = splitfed(cut, optax.sgd(0.3), strategy=fl.sharded(mesh, fl.sequential()), **slots)
    spread = fl.shard_population(CLIENTS, mesh=mesh)
    for data in (CLIENTS, spread):
        state, metrics = after(algo, params, data)
        close(state.server.params, expected[0].server.params)
        close(metrics, expected[1])
    # Turns are one scan: they are refused by name, as are rows of columns on explicit axes.
    for make in (split_learning, splitfed):
        of_2: Any = {"version": 2} if make is splitfed else {}
        turns = make(cut, optax.sgd(0.3), **of_2, **slots)
        with pytest.raises(TypeError, match=r"got a ShardedDataset; clients in turn .*version=1"):
            turns.init(KEY, params, spread)
        with pytest.raises(TypeError, match=r"got a ShardedDataset; clients in turn .*version=1"):
            turns.round(KEY, turns.init(KEY, params, CLIENTS), spread)


@pytest.mark.skipif(jax.device_count() < 2, reason="test_sharded.py's last test runs it")
def test_columns_on_several_devices():
    """Rows over automatic axes are the same numbers; over explicit ones they are refused."""
    model = regression("linear", fl.parties.from_columns(X, {"b": EXAMPLES["y"].astype("f4")}))
    size = 8  # divides by one, two and four devices
    data = fl.parties.from_columns(X, {"b": EXAMPLES["y"].astype("f4")}).take(range(size))
    algo = vertical_sgd(model, optax.sgd(0.1), plan=fl.Plan(batch_size=None), uplink=fl.top_k(3))
    expected = after(algo, None, data)
    devices = np.asarray(jax.devices())

    def spread(kind):
        mesh = jax.sharding.Mesh(devices, ("rows",), axis_types=(kind,))
        rows = jax.sharding.NamedSharding(mesh, jax.sharding.PartitionSpec("rows"))
        return jax.device_put(data, rows)

    state, metrics = after(algo, None, spread(jax.sharding.AxisType.Auto))
    close((state.server.params, metrics), (expected[0].server.params, expected[1]))
    with pytest.raises(ValueError, match="data must lie on one device, or on a mesh of automatic"):
        algo.init(KEY, None, spread(jax.sharding.AxisType.Explicit))
    with pytest.raises(TypeError, match="neither streamed nor dealt to devices"):
        algo.init(KEY, None, fl.shard_population(CLIENTS, mesh=fl.client_mesh()))


def test_streaming():
    """SplitFed 1 streams, and is billed as in memory; the others say that they do not."""
    streamed = StreamedDataset(ArrayStore(EXAMPLES, np.asarray(SIZES)))
    cut, params = cut_layers(layers(), at=1), cut_layers(layers(), at=1).model.init(KEY)
    slots: Any = {"plan": PLAN, "sampler": fl.uniform(2), "uplink": NOISED, "downlink": QUANTISED}
    algo = splitfed(cut, optax.sgd(0.3), **slots)
    found = []
    for data in (CLIENTS, streamed):
        state = algo.init(KEY, params, data)
        state, rows = fl.run(algo, KEY, state, data, num_rounds=3, progress=False)
        names = [name for name in rows[-1] if name.endswith("bits_total")]
        assert len(names) >= 4
        found.append((state.server.params, {name: rows[-1][name] for name in names}))
    close(found[0][0], found[1][0])
    assert found[0][1] == found[1][1]
    for turns in (
        split_learning(cut, optax.sgd(0.3), **slots),
        splitfed(cut, optax.sgd(0.3), version=2, **slots),
    ):
        with pytest.raises(TypeError, match=r"got a StreamedDataset; clients in turn .* streams"):
            turns.init(KEY, params, streamed)
    model = regression("linear", fl.parties.from_columns(X, {"b": EXAMPLES["y"].astype("f4")}))
    columns = vertical_sgd(model, optax.sgd(0.1), plan=PLAN)
    with pytest.raises(TypeError, match="got a StreamedDataset; columns are neither streamed"):
        columns.init(KEY, None, streamed)
