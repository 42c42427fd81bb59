"""Fine-tune, then score: the models are local training's, wherever data and rows lie."""

import functools

import chex
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import fedjax_lite as fl
from fedjax_lite.algorithms import client_models
from fedjax_lite.evaluate import passes
from fedjax_lite.stream.dataset import StreamedDataset

KEY = jax.random.key(0)
SIZES = np.array([5, 0, 7, 3, 1])
RNG = np.random.default_rng(0)
X = RNG.normal(size=(16, 3)).astype(np.float32)
Y = RNG.integers(0, 2, 16)
TRAIN = fl.data.from_arrays({"x": X, "y": Y}, np.repeat(np.arange(5), SIZES), num_clients=5)
TEST_OWNERS = np.tile(np.arange(5), 3)
TEST = fl.data.from_arrays({"x": X[:15], "y": Y[:15]}, TEST_OWNERS, num_clients=5)
MODEL = fl.models.from_functions(
    lambda key: {"w": 0.1 * jax.random.normal(key, (3, 2)), "b": jnp.zeros(2)},
    lambda p, x, key: x @ p["w"] + p["b"],
)
PARAMS = MODEL.init(jax.random.key(1))
PLAN = fl.Plan(batch_size=2, epochs=2)
FEDAVG = fl.fedavg(MODEL.loss, optax.sgd(0.5), plan=PLAN, sampler=fl.everyone())


def tuned(data=TRAIN, **options):
    return fl.fine_tuned(MODEL.loss, optax.adam(0.1), data, plan=PLAN, key=KEY, **options)


@functools.cache
def in_memory():
    return tuned()


def local(**options):
    return fl.local_only(MODEL.loss, optax.adam(0.1), plan=PLAN, keep_optimizer=False, **options)


@functools.cache
def trained():
    algo = local()
    return algo.round(KEY, jax.jit(algo.init)(KEY, PARAMS, TRAIN), TRAIN)[0]


@functools.cache
def alone():
    """What a round of local training makes of the same model, with the same keys."""
    return jax.device_get(client_models(trained()))


@functools.cache
def scores():
    return fl.evaluate_personal(MODEL, alone(), TEST)


same = functools.partial(chex.assert_trees_all_close, rtol=1e-5, atol=1e-6)


@pytest.mark.sample(1)
@pytest.mark.parametrize("num_lanes", [1, 2, 8])
def test_models_are_those_of_local_training(num_lanes):
    models = tuned(num_lanes=num_lanes)(PARAMS)
    assert models.num_clients == 5
    same(models.models(), alone())
    ids = np.array([3, 0, 3, 1])
    same(models.models(ids), jax.tree.map(lambda leaf: leaf[ids], alone()))
    same(jax.tree.map(lambda leaf: leaf[1], models.models()), PARAMS, atol=0)  # without data
    assert jax.tree.map(lambda x: x.shape, models.one) == {"w": (3, 2), "b": (2,)}


def test_streamed_populations_in_small_blocks(monkeypatch):
    store = fl.data.ArrayStore({"x": X, "y": Y}, SIZES)
    streamed = StreamedDataset(store)
    expected = scores()
    monkeypatch.setattr(passes, "MOST", 2)
    for data in (TRAIN, streamed):
        found = fl.evaluate_personal(MODEL, tuned(data, num_lanes=2)(PARAMS), TEST)
        np.testing.assert_allclose(found["loss"], expected["loss"], rtol=1e-5)
        np.testing.assert_array_equal(found["accuracy"], expected["accuracy"])
    monkeypatch.undo()
    whole = fl.evaluate_clients(MODEL, in_memory()(PARAMS), TEST, groups=[0, 0, 1, 1, 1])
    np.testing.assert_allclose(whole["loss"], expected["loss"], rtol=1e-5)
    assert set(whole) >= {"groups", "all", "size"}


@pytest.mark.skipif(jax.device_count() < 2, reason="test_sharded.py's last test runs it")
def test_populations_on_devices():
    mesh = fl.client_mesh()
    split, held_out = (fl.shard_population(data, mesh=mesh) for data in (TRAIN, TEST))
    tune, ids = tuned(split, num_lanes=2), np.array([3, 0, 3, 4])
    models = tune(PARAMS)
    same(models.models(ids), jax.tree.map(lambda leaf: leaf[ids], alone()))
    for test in (held_out, TEST):
        found = fl.evaluate_personal(MODEL, models, test)
        np.testing.assert_allclose(found["loss"], scores()["loss"], rtol=1e-5)
    algo = local(strategy=fl.sharded(mesh))
    state = fl.init_state(algo, KEY, PARAMS, split, mesh=mesh)  # rows of nobody at the end
    state, _ = algo.round(KEY, state, split)
    of_one = jax.device_get(in_memory()(trained()).models())
    same(tune(state).models(ids), jax.tree.map(lambda leaf: leaf[ids], of_one))


def test_models_of_their_own_are_the_start():
    state = trained()
    found = in_memory()(state).models()
    own = client_models(state)
    # In round 1 of the state: from its rows, with the batches of that round.
    slots = fl.fedavg(MODEL.loss, optax.adam(0.1), plan=PLAN, sampler=fl.everyone()).slots
    train = jax.jit(functools.partial(fl.engine.train_clients, slots))
    once = train(KEY, own, fl.engine.Table((), ()), jnp.arange(5), state.round, TRAIN)
    same(found, jax.tree.map(jnp.subtract, own, once.messages.value))
    fewer = fl.data.from_arrays({"x": X, "y": Y}, np.repeat([0, 1], 8))
    with pytest.raises(ValueError, match="state must have models of the 2 clients of data"):
        tuned(fewer)(state)


def test_new_clients_are_another_data_set():
    state, _ = FEDAVG.round(KEY, FEDAVG.init(KEY, PARAMS, TRAIN), TRAIN)
    fresh = fl.data.from_arrays({"x": -X, "y": Y}, np.repeat(np.arange(8), 2))
    models = tuned(fresh)(state)
    found = fl.evaluate_clients(MODEL, models, fresh)
    assert found["loss"].shape == (8,)
    before = fl.evaluate_clients(MODEL, state, fresh)
    assert (found["loss"] < before["loss"]).all()  # scored on what they were tuned on
    with pytest.raises(ValueError, match="models must be fine-tuned for the clients of data"):
        fl.evaluate_personal(MODEL, models, TEST)


def test_in_a_run_the_servers_model_stands_beside():
    evaluate = fl.client_evaluator(MODEL, TEST, name="tuned", adapt=in_memory())
    state = FEDAVG.init(KEY, PARAMS, TRAIN)
    state, history = fl.run(
        FEDAVG, KEY, state, TRAIN, num_rounds=2, every=1, evaluate=evaluate, progress=False
    )
    expected = fl.evaluate_personal(MODEL, in_memory()(state).models(), TEST)
    assert history[-1]["tuned_loss"] == pytest.approx(expected["all"]["loss"], rel=1e-5)
    plain = fl.client_evaluator(MODEL, TEST)(state)
    assert history[-1]["tuned_server_accuracy"] == plain["test_accuracy"]
    assert history[-1]["tuned_accuracy_worst"] <= history[-1]["tuned_accuracy_mean"]


def test_a_second_state_compiles_nothing():
    traces = []

    def loss(params, examples, key):
        traces.append(1)
        return MODEL.loss(params, examples, key)

    tune = fl.fine_tuned(loss, optax.sgd(0.1), TRAIN, plan=PLAN)
    state = FEDAVG.init(KEY, PARAMS, TRAIN)
    tune(state).models()
    count = len(traces)
    tune(FEDAVG.round(KEY, state, TRAIN)[0]).models()
    assert len(traces) == count


def test_wrong_input():
    with pytest.raises(TypeError, match="data must be a FederatedDataset, a StreamedDataset or"):
        tuned({"x": X})
    with pytest.raises(ValueError, match="num_lanes"):
        tuned(num_lanes=0)
    with pytest.raises(ValueError, match="ids must lie in the population"):
        tuned()(PARAMS).models([5])
    with pytest.raises(TypeError, match="adapt must be a function"):
        fl.client_evaluator(MODEL, TEST, adapt=tuned()(PARAMS))
