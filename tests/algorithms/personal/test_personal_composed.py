"""Personal methods with the rest of the library: slots, streams, devices, sweeps, scores."""

import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import fedjax_lite as fl
from fedjax_lite.stream.dataset import StreamedDataset
from fedjax_lite.testing.algorithm_laws import same

KEY = jax.random.key(0)
SIZES = np.array([5, 0, 7, 3])
RNG = np.random.default_rng(0)
EXAMPLES = {"x": RNG.normal(size=(15, 3)).astype(np.float32), "y": RNG.integers(0, 2, 15)}
DATA = fl.data.from_arrays(EXAMPLES, np.repeat(np.arange(4), SIZES), num_clients=4)
MODEL = fl.models.from_functions(
    lambda key: {"body": 0.5 * jax.random.normal(key, (3, 2)), "head": jnp.eye(2)},
    lambda p, x, key: jnp.tanh(x @ p["body"]) @ p["head"],
)
PLAN = fl.Plan(batch_size=4)


def method(name, rate=0.5, strength=0.5, **slots):
    options: Any = {"sampler": fl.everyone(), "plan": PLAN, **slots}
    extra: dict[str, Any] = {
        "ditto": {"pull": strength},
        "apfl": {"mixing": strength, "mixing_rate": 0.1},
        "pfedme": {"pull": strength, "learning_rate": 0.5, "inner_steps": 2},
    }
    return getattr(fl, name)(MODEL.loss, optax.sgd(rate), **extra.get(name, {}), **options)


WITH_ONE_MODEL = ("ditto", "apfl", "pfedme")
WITH_HALVES = ("fedper", "lg_fedavg", "fedrep")
METHODS = (*WITH_ONE_MODEL, *WITH_HALVES)
SHARED = {"fedper": ("body",), "fedrep": ("body",), "lg_fedavg": ("head",)}


@functools.cache
def two_rounds(name, data=DATA, **slots):
    algo = method(name, **slots)
    state = algo.init(KEY, MODEL.init(KEY), data)
    return fl.run(algo, KEY, state, data, num_rounds=2, progress=False)


MESSAGES: dict[str, Any] = {
    "compressed": {"uplink": fl.chain(fl.clip(0.5), fl.error_feedback(fl.top_k(2)))},
    "median": {"aggregator": fl.median()},
    "private": {
        "sampler": None,
        "privacy": fl.privacy.central_gaussian(
            clip=0.1, num_clients=4, sampling_rate=1.0, noise_multiplier=5.0, delta=1e-2
        ),
    },
}


@functools.cache
def one_round(name, what=None):
    algo = method(name, **MESSAGES.get(what, {}))
    return algo.round(KEY, algo.init(KEY, MODEL.init(KEY), DATA), DATA)


@pytest.mark.sample(3, of="personal methods under slots")
@pytest.mark.parametrize("name", METHODS)
@pytest.mark.parametrize("what", MESSAGES)
def test_what_is_done_to_messages_touches_the_shared_part_alone(name, what):
    """Of that round: what a client keeps is what it is without compression, rules and noise."""
    (plain, full), (changed, sent) = one_round(name), one_round(name, what)
    same(changed.clients, plain.clients)
    parts = SHARED.get(name, ("body", "head"))
    moved = [not np.allclose(changed.server.params[p], plain.server.params[p]) for p in parts]
    assert all(moved)
    assert all(leaf is None for p, leaf in plain.server.params.items() if p not in parts)
    numbers = sum(MODEL.init(KEY)[p].size for p in parts)
    assert full["uplink_bits"] == 3 * 32 * numbers  # the client without data sends nothing
    if what == "compressed":
        assert sent["uplink_bits"] < full["uplink_bits"]
    if what == "private":
        assert changed.privacy != ()


@pytest.mark.sample(1)
@pytest.mark.parametrize("name", METHODS)
def test_rows_on_the_host(name):
    streamed = StreamedDataset(fl.data.ArrayStore(EXAMPLES, SIZES), "host")
    (there, _), (here, _) = two_rounds(name, streamed), two_rounds(name)
    same(jax.device_get(there.server), jax.device_get(here.server))
    same(fl.personal_models(there), jax.device_get(fl.personal_models(here)))
    some = fl.personal_models(there, [3, 0])
    same(some, jax.tree.map(lambda leaf: np.asarray(leaf)[[3, 0]], fl.personal_models(here)))


def test_a_hundred_thousand_clients_with_rows_on_the_host():
    """Memory grows with those who took part; the others have the initial model."""
    many = 100_000
    examples = {"x": np.resize(EXAMPLES["x"], (many, 3)), "y": np.resize(EXAMPLES["y"], many)}
    data = StreamedDataset(fl.data.ArrayStore(examples, np.ones(many, int)), "host")
    algo = method("ditto", sampler=fl.uniform(5))
    state = algo.init(KEY, MODEL.init(KEY), data)
    state, _ = fl.run(algo, KEY, state, data, num_rounds=2, progress=False)
    assert state.clients.num_clients == many
    assert 5 < state.clients.num_touched <= 10
    touched = np.flatnonzero(state.clients.index >= 0)[:2]
    others = np.flatnonzero(state.clients.index < 0)[:2]
    models = fl.personal_models(state, np.concatenate([touched, others]))
    begin = np.asarray(MODEL.init(KEY)["body"])
    assert (models["body"][:2] != begin).any(axis=(1, 2)).all()
    np.testing.assert_array_equal(models["body"][2:], np.stack([begin] * 2))


@pytest.mark.skipif(jax.device_count() < 2, reason="test_sharded.py's last test runs it")
@pytest.mark.sample(1)
@pytest.mark.parametrize("name", METHODS)
def test_several_devices(name):
    devices = jax.devices()[:4]
    (there, _) = two_rounds(name, strategy=fl.sharded(fl.client_mesh(devices)))
    here, _ = two_rounds(name)
    same(jax.device_get(there), jax.device_get(here))


@pytest.mark.sample(1)
@pytest.mark.parametrize("name", WITH_ONE_MODEL)
def test_a_sweep_of_its_strength_is_one_program(name):
    traces = []

    def make(strength):
        traces.append(strength)
        return method(name, strength=strength)

    grid = {"strength": [0.1, 0.5]}
    options: Any = {"init": MODEL.init, "data": DATA, "num_rounds": 2, "progress": False}
    swept = fl.sweep(make, grid, seeds=[0], **options)
    assert any(isinstance(one, jax.core.Tracer) for one in traces)
    models = [
        fl.personal_models(jax.tree.map(lambda leaf, i=i: leaf[i], swept.states)) for i in (0, 1)
    ]
    assert not np.allclose(models[0]["body"], models[1]["body"])
    alone, _ = two_rounds(name)  # of strength 0.5
    same(models[1], fl.personal_models(alone))


@pytest.mark.sample(1)
@pytest.mark.parametrize("name", METHODS)
def test_each_client_is_scored_with_its_own_model(name):
    state, _ = two_rounds(name)
    models = jax.device_get(fl.personal_models(state))
    scores = fl.client_evaluator(MODEL, DATA)(state)
    hits = np.zeros(15)
    for i, owner in enumerate(np.repeat(np.arange(4), SIZES)):
        own = jax.tree.map(lambda leaf, owner=owner: leaf[owner], models)
        logits = np.tanh(EXAMPLES["x"][i] @ own["body"]) @ own["head"]
        hits[i] = logits.argmax() == EXAMPLES["y"][i]
    assert scores["test_accuracy"] == pytest.approx(hits.mean())
    assert ("test_server_accuracy" in scores) == (name in WITH_ONE_MODEL)
    if name in WITH_HALVES:
        with pytest.raises(TypeError, match="evaluate_personal"):
            fl.evaluator(MODEL, EXAMPLES)(state)
    # The client without data has never trained: its own part is the initial one.
    begin = MODEL.init(KEY)
    own_part = {"fedper": ("head",), "fedrep": ("head",), "lg_fedavg": ("body",)}
    row = jax.tree.map(lambda leaf: leaf[1], models)
    if name in ("ditto", "pfedme", *WITH_HALVES):
        for part in own_part.get(name, ("body", "head")):
            np.testing.assert_array_equal(row[part], begin[part])


def test_a_head_at_rest_has_one_model_for_all_and_is_streamed_too():
    streamed = StreamedDataset(fl.data.ArrayStore(EXAMPLES, SIZES))
    (there, _), (here, _) = two_rounds("fedbabu", streamed), two_rounds("fedbabu")
    same(jax.device_get(there.server), jax.device_get(here.server))
    np.testing.assert_array_equal(here.server.params["head"], np.eye(2))
    scores = fl.evaluator(MODEL, EXAMPLES)(here)
    assert scores["test_accuracy"] == fl.client_evaluator(MODEL, DATA)(here)["test_accuracy"]
    squeezed, _ = two_rounds("fedbabu", downlink=fl.drive(), uplink=fl.scaled_sign())
    assert np.isfinite(squeezed.server.params["body"]).all()
