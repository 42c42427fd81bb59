"""A state is scored with the models that its clients use, wherever their rows lie."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import fedjax_lite as fl
from fedjax_lite.algorithms import client_models
from fedjax_lite.evaluate import blocks, models_of, passes
from fedjax_lite.stream.dataset import StreamedDataset

KEY = jax.random.key(0)
SIZES = np.array([5, 0, 7, 3])
RNG = np.random.default_rng(0)
X = RNG.normal(size=(15, 3)).astype(np.float32)
Y = RNG.integers(0, 2, 15)
OWNERS = np.repeat(np.arange(4), SIZES)
FULL = fl.data.from_arrays({"x": X, "y": Y}, OWNERS, num_clients=4)
MODEL = fl.models.from_functions(
    lambda key: {"w": jnp.zeros((3, 2)), "b": jnp.zeros(2)}, lambda p, x, key: x @ p["w"] + p["b"]
)
PLAN = fl.Plan(batch_size=4)


def streamed(place, tmp_path):
    store = fl.data.ArrayStore({"x": X, "y": Y}, SIZES)
    return StreamedDataset(store, place, tmp_path / "rows" if place == "disk" else None)


def alone():
    return fl.local_only(MODEL.loss, optax.sgd(0.5), plan=PLAN)


def personal_bias():
    return fl.local_leaves(
        fl.local_sgd(MODEL.loss, optax.sgd(0.5)),
        is_local=lambda params: {"w": False, "b": True},
        plan=PLAN,
        sampler=fl.everyone(),
        server=fl.optimizer_server(optax.sgd(1.0)),
    )


def models_by(algo, state, ids=None):
    assert algo.models is not None
    return algo.models(state, ids)


def by_hand(models):
    """Loss and accuracy of each client's data by numpy, from models `[4, ...]`."""
    losses, shares = np.full(4, np.nan), np.full(4, np.nan)
    for i in np.flatnonzero(SIZES):
        x, y = X[i == OWNERS].astype(np.float64), Y[i == OWNERS]
        logits = x @ np.asarray(models["w"][i]) + np.asarray(models["b"][i])
        losses[i] = (np.log(np.exp(logits).sum(1)) - logits[np.arange(len(y)), y]).mean()
        shares[i] = (logits.argmax(1) == y).mean()
    return losses, shares


def check(scores, models):
    loss, accuracy = by_hand(models)
    np.testing.assert_allclose(scores["loss"], loss, rtol=2e-5)
    np.testing.assert_allclose(scores["accuracy"], accuracy, atol=1e-12)
    assert scores["size"].tolist() == SIZES.tolist()


def rows_of(state):
    rows = state.clients.rows(range(4)) if hasattr(state.clients, "rows") else state.clients
    if hasattr(rows, "params"):
        return rows.params
    return {"w": np.broadcast_to(state.server.params["w"], (4, 3, 2)), "b": rows.leaves["b"]}


@pytest.mark.sample(2)
@pytest.mark.parametrize("make", [alone, personal_bias])
@pytest.mark.parametrize("place", ["memory", "device", "host", "disk"])
def test_clients_are_scored_with_their_own_models(make, place, tmp_path, monkeypatch):
    algo = make()
    data = FULL if place == "memory" else streamed(place, tmp_path)
    state = algo.init(KEY, MODEL.init(KEY), data)
    state, _ = fl.run(algo, KEY, state, data, num_rounds=2, progress=False)
    models = rows_of(state)
    assert not np.allclose(models["b"][0], models["b"][2])  # they are not one model
    for found in (models_of(state), models_by(algo, state), fl.personal_models(state)):
        for name in ("w", "b"):
            np.testing.assert_allclose(found[name], models[name], rtol=1e-6)
    some = client_models(state, [2, 0])
    np.testing.assert_allclose(some["b"], np.asarray(models["b"])[[2, 0]], rtol=1e-6)
    monkeypatch.setattr(passes, "MOST", 3)  # two blocks of clients
    monkeypatch.setattr(blocks, "BYTES", 8 * 16)  # 8 examples at a time
    for population in (FULL, data):
        check(fl.evaluate_personal(MODEL, state, population), models)
        check(fl.evaluate_clients(MODEL, state, population), models)
    with pytest.raises(TypeError, match=r"evaluate_personal\(model, state, data\)"):
        fl.evaluator(MODEL, {"x": X, "y": Y})(state)


def test_one_model_for_all_is_scored_alike_by_all(tmp_path, monkeypatch):
    monkeypatch.setattr(blocks, "BYTES", 8 * 16)
    algo = fl.fedavg(MODEL.loss, optax.sgd(0.5), plan=PLAN, sampler=fl.everyone())
    state = algo.init(KEY, MODEL.init(KEY), FULL)
    state, _ = algo.round(KEY, state, FULL)
    models = models_by(algo, state, np.arange(4))
    np.testing.assert_array_equal(models["w"][3], state.server.params["w"])
    with pytest.raises(ValueError, match=r"ids=np.arange\(data.num_clients\)"):
        models_by(algo, state)
    for data in (FULL, streamed("host", tmp_path)):
        check(fl.evaluate_personal(MODEL, state, data), models)
        check(fl.evaluate_clients(MODEL, state, data), models)
        check(fl.evaluate_clients(MODEL, state.server.params, data), models)
    scores = fl.evaluator(MODEL, {"x": X, "y": Y})(state)
    loss, accuracy = by_hand(models)
    assert scores["test_loss"] == pytest.approx(np.nansum(loss * SIZES) / 15, rel=1e-5)
    assert scores["test_accuracy"] == pytest.approx(np.nansum(accuracy * SIZES) / 15)


def test_the_union_is_scored_as_one_model():
    algo = fl.centralised(MODEL.loss, optax.sgd(0.5), plan=PLAN)
    state, _ = algo.round(KEY, algo.init(KEY, MODEL.init(KEY), FULL), FULL)
    check(fl.evaluate_personal(MODEL, state, FULL), models_by(algo, state, np.arange(4)))
    with pytest.raises(ValueError, match="all clients are one"):
        models_by(algo, state)


def test_clients_of_another_number_are_refused():
    """Client 1 of data that were numbered anew is not client 1 of the rows."""
    algo = alone()
    state = algo.init(KEY, MODEL.init(KEY), FULL)
    three = fl.data.from_arrays({"x": X, "y": Y}, OWNERS)  # client 1 has no data: 3 distinct ids
    assert three.num_clients == 3
    for score in (fl.evaluate_personal, fl.evaluate_clients):
        with pytest.raises(ValueError, match=r"4 clients and data of 3.*num_clients=4"):
            score(MODEL, state, three)
    for ids in ([4], [-1], [[0]], [0.5]):
        with pytest.raises(ValueError, match="ids must"):
            models_by(algo, state, ids)


def test_states_without_own_models_say_so():
    algo = fl.scaffold(MODEL.loss, 0.1, plan=PLAN, sampler=fl.uniform(2))
    state = algo.init(KEY, MODEL.init(KEY), FULL)
    assert models_by(algo, state)["b"].shape == (4, 2)  # its rows tell the number of clients
    check(fl.evaluate_personal(MODEL, state, FULL), models_by(algo, state))
    for models in (fl.personal_models, client_models):
        with pytest.raises(TypeError, match="local_only"):
            models(state)
