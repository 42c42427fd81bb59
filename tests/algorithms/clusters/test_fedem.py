"""FedEM: mixtures that are kept, scored, billed; who sends nothing; planted defects."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import fedjax_lite as fl
from fedjax_lite.algorithms.clusters import fedem as module
from fedjax_lite.models.weighted import WeightedModels, weighted_models
from fedjax_lite.verify import records
from fedjax_lite.verify.techniques import mixtures

KEY = jax.random.key(0)


def test_mixtures_of_label_flipped_clients():
    """Two of four clients see labels flipped; a mixture tells both kinds apart."""
    model = fl.models.linear(num_classes=2, input_shape=(3,))
    mixture = weighted_models(model, 2)
    x = np.random.default_rng(0).normal(size=(40, 3)).astype(np.float32)
    y = ((x[:, 0] > 0) ^ (np.arange(40) % 4 >= 2)).astype(np.int32)
    data = fl.data.from_arrays({"x": x, "y": y}, np.arange(40) % 4)
    algo = fl.fedem(
        model.loss, optax.sgd(0.5), num_models=2, plan=fl.Plan(10, epochs=2), sampler=fl.everyone()
    )
    zero = model.init(KEY)
    apart = jax.tree.map(
        lambda leaf: jnp.stack([leaf, leaf])
        + 0.1 * jnp.array([-1.0, 1.0]).reshape((2,) + (1,) * leaf.ndim)
        * jnp.linspace(-1, 1, leaf.size).reshape(leaf.shape),
        zero,
    )  # fmt: skip
    state = algo.init(KEY, apart, data)
    assert fl.cluster_assignments(state).tolist() == [-1] * 4
    score = fl.client_evaluator(mixture, data, name="train_set")
    state, rows = fl.run(
        algo, KEY, state, data, num_rounds=12, evaluate=score, every=12, progress=False
    )
    found = fl.cluster_assignments(state)
    assert fl.cluster_purity(found, [0, 0, 1, 1]) == 1.0
    weights = np.asarray(state.clients.weights)
    np.testing.assert_allclose(weights.sum(1), 1, rtol=1e-5)
    np.testing.assert_allclose(rows[-1]["weight_0"], weights[:, 0].mean(), rtol=1e-5)
    bits = 2 * 32 * (3 * 2 + 2) * 4  # two models of eight numbers, four clients
    assert (rows[-1]["uplink_bits"], rows[-1]["downlink_bits"]) == (bits, bits)
    scores = fl.evaluate_clients(mixture, state, data)
    assert rows[-1]["train_set_accuracy"] == scores["all"]["accuracy"] > 0.8
    models = state.server.params
    each = np.stack([
        np.exp(model.predict(jax.tree.map(lambda leaf: leaf[k], models), {"x": x}))  # noqa: B023
        for k in range(2)
    ])  # fmt: skip
    each /= each.sum(-1, keepdims=True)
    right = np.einsum("ek,kec->ec", weights[np.arange(40) % 4], each).argmax(1) == y
    for i in range(4):
        np.testing.assert_allclose(scores["accuracy"][i], right[np.arange(40) % 4 == i].mean())
    with pytest.raises(TypeError, match="one whole model for all"):
        fl.evaluator(model, {"x": x, "y": y})(state)


def test_who_has_no_finite_loss_sends_nothing():
    """Neither who has none by any model, nor who has an infinite one by one of them."""

    def loss(w, e, key):
        bad = jnp.where(e["b"] == 9, jnp.nan, jnp.inf)
        return jnp.where((e["b"] == 9) | ((e["b"] == 7) & (w > 0)), bad, 0.5 * (w - e["b"]) ** 2)

    data = fl.data.from_arrays({"b": jnp.array([-2.0, 9.0, 3.0, 7.0])}, range(4))
    algo = fl.fedem(
        loss, optax.sgd(0.5), num_models=2, plan=fl.Plan(None, steps=1), sampler=fl.everyone()
    )
    start, b = np.array([-1.0, 1.0]), np.array([-2.0, 3.0])
    state, metrics = algo.round(KEY, algo.init(KEY, jnp.array(start), data), data)
    part = np.exp(-0.5 * (start - b[:, None]) ** 2)
    nll = -np.log(part.mean(1))
    part /= part.sum(1, keepdims=True)
    ends = start - 0.5 * part * (start - b[:, None])
    np.testing.assert_allclose(state.server.params, ends.mean(0), rtol=1e-5)
    np.testing.assert_allclose(state.clients.weights[jnp.array([1, 3])], 0.5)
    np.testing.assert_allclose(state.clients.weights[jnp.array([0, 2])], part, rtol=1e-5)
    assert metrics["num_clients"] == 2
    np.testing.assert_allclose(metrics["loss"], nll.mean(), rtol=1e-5)
    assert np.isfinite(metrics["train_loss"])


def test_a_model_far_away_stops_everybody():
    """Its losses overflow: at half the square of 1e20 nobody can say how much to train it."""
    far = jnp.array([0.0, 1e20])
    data = fl.data.from_arrays({"b": jnp.array([-2.0, 3.0])}, range(2))
    algo = fl.fedem(
        lambda w, e, key: (w - e["b"]) ** 2 / 2, optax.sgd(0.5), num_models=2,
        plan=fl.Plan(None, steps=1), sampler=fl.everyone(),
    )  # fmt: skip
    state, metrics = algo.round(KEY, algo.init(KEY, far, data), data)
    assert state.server.params.tolist() == far.tolist()
    assert state.clients.weights.tolist() == [[0.5, 0.5]] * 2
    assert metrics["num_clients"] == 0


def test_a_mixture_of_one_is_its_model():
    model = fl.models.linear(num_classes=3, input_shape=(2,))
    params = jax.tree.map(
        lambda leaf: leaf + jnp.arange(leaf.size).reshape(leaf.shape), model.init(KEY)
    )
    one = WeightedModels(jax.tree.map(lambda leaf: leaf[None], params), jnp.ones(1))
    examples = {"x": jnp.array([[0.3, -0.2], [1.0, 0.4]]), "y": jnp.array([2, -1])}
    mixed = weighted_models(model, 1)
    np.testing.assert_allclose(
        mixed.loss(one, examples, None)[0], model.loss(params, examples, None)[0], rtol=1e-5
    )
    np.testing.assert_allclose(
        mixed.predict(one, examples), jax.nn.log_softmax(model.predict(params, examples)), rtol=1e-5
    )
    assert fl.models.counted(mixed.loss, examples).tolist() == [True, False]


def test_refusals():
    model = fl.models.linear(2, (3,))
    options: Any = {"plan": fl.Plan(2), "sampler": fl.everyone()}
    with pytest.raises(ValueError, match="num_models"):
        fl.fedem(model.loss, optax.sgd(0.1), num_models=0, **options)
    algo = fl.fedem(model.loss, optax.sgd(0.1), num_models=2, **options)
    data = fl.data.from_arrays({"x": np.zeros((2, 3), np.float32), "y": np.zeros(2, int)}, [0, 1])
    with pytest.raises(ValueError, match=r"num_models=2 models.*several_models"):
        algo.init(KEY, model.init(KEY), data)


def unweighted(patch):
    """Every model trains on every example alike."""
    good = module.responsibilities
    patch.setattr(
        module, "responsibilities", lambda losses, weights: jnp.ones_like(good(losses, weights))
    )


def without_prior(patch):
    """Responsibilities forget the client's own weights."""
    good = module.responsibilities
    patch.setattr(module, "responsibilities", lambda losses, w: good(losses, jnp.ones_like(w)))


ROUND, ROUNDS, ONE = "one round of one step", "four rounds of three steps", "one model = FedAvg"


@pytest.mark.parametrize(
    ("defect", "caught", "right"),
    [(unweighted, (ROUND, ROUNDS), (ONE,)), (without_prior, (ROUNDS,), (ROUND, ONE))],
)
def test_planted_defects(monkeypatch, defect, caught, right):
    defect(monkeypatch)
    chosen = [check for check in mixtures.checks() if check.name in caught + right]
    verdicts = {r.check: r.verdict for r in records.run_checks("mixtures", chosen)}
    assert verdicts == dict.fromkeys(caught, "FAIL") | dict.fromkeys(right, "PASS")
