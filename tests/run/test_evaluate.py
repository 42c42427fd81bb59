import jax
import jax.numpy as jnp
import numpy as np
import pytest
from toy_algorithm import start, toy

import fedjax_lite as fl
from fedjax_lite.data.population.dataset import from_arrays
from fedjax_lite.evaluate import evaluate_clients, evaluator, summarize_clients
from fedjax_lite.models.model import Model


def linear(traces=None):
    def predict(params, examples):
        return examples["x"].astype(jnp.float32) @ params

    def loss(params, examples, key):
        assert key is None
        if traces is not None:
            traces.append(examples["x"].dtype)
        return jnp.sum(predict(params, examples) ** 2, axis=-1) + examples["y"]

    return Model(lambda key: jnp.zeros((4, 3)), loss, predict)


def examples(num, seed=0):
    rng = np.random.default_rng(seed)
    x = rng.integers(0, 255, (num, 4), dtype=np.uint8)
    return {"x": x, "y": rng.integers(0, 3, num).astype(np.int32)}, rng.normal(size=(4, 3))


def by_hand(found, params):
    logits = found["x"].astype(np.float64) @ params
    return (logits**2).sum(1) + found["y"], logits.argmax(1) == found["y"]


@pytest.mark.parametrize("batch_size", [1, 7, 23, 24, 1000])
def test_evaluator_is_the_mean_over_examples_for_every_batch_size(batch_size):
    found, params = examples(23)
    traces = []
    score = evaluator(linear(traces), found, name="valid", batch_size=batch_size)
    loss, hits = by_hand(found, params)
    for _ in range(2):
        result = score(jnp.asarray(params, jnp.float32))
    assert result["valid_loss"] == pytest.approx(loss.mean(), rel=1e-5)
    assert result["valid_accuracy"] == pytest.approx(hits.mean(), abs=1e-12)
    assert traces == [jnp.uint8]  # raw dtype, one trace


def test_evaluator_takes_the_parameters_of_a_round_state():
    found, params = examples(5)
    _, state = start(toy())
    params = jnp.asarray(params, jnp.float32)
    state = state._replace(server=state.server._replace(params=params))
    score = evaluator(linear(), found)
    assert score(state) == score(params)


def test_sequences_leave_negative_labels_out():
    logits = jnp.asarray(np.eye(3)[[[0, 1, 2], [2, 2, 2]]])
    model = Model(
        lambda key: None,
        lambda p, b, key: jnp.zeros(b["y"].shape[0]),
        lambda p, b: logits[b["i"]],
    )
    found = {"i": np.arange(2), "y": np.array([[0, 0, -1], [2, -1, -1]])}
    assert evaluator(model, found)(None)["test_accuracy"] == pytest.approx(2 / 3)
    data = from_arrays(found, [1, 0], num_clients=2)
    np.testing.assert_allclose(evaluate_clients(model, None, data)["accuracy"], [1.0, 0.5])


def test_float_labels_have_no_accuracy_and_bad_examples_are_named():
    model = Model(lambda k: None, lambda p, b, k: (p - b["y"]) ** 2, lambda p, b: b["y"])
    assert evaluator(model, {"y": np.array([1.0, 3.0])})(1.0) == {"test_loss": 2.0}
    with pytest.raises(TypeError, match='"y"'):
        evaluator(model, {"x": np.ones(3)})
    with pytest.raises(ValueError, match="batch_size"):
        evaluator(model, {"y": np.ones(3)}, batch_size=0)


def test_clients_agree_with_each_client_alone_and_empty_ones_are_nan():
    found, params = examples(40)
    owner = np.random.default_rng(3).choice([0, 1, 3, 4], 40)
    data = from_arrays(found, owner, num_clients=6)
    result = evaluate_clients(linear(), jnp.asarray(params, jnp.float32), data, batch_size=7)
    loss, hits = by_hand(found, params)
    for client in range(6):
        mine = owner == client
        assert result["size"][client] == mine.sum()
        if mine.any():
            assert result["loss"][client] == pytest.approx(loss[mine].mean(), rel=1e-5)
            assert result["accuracy"][client] == pytest.approx(hits[mine].mean())
        else:
            assert np.isnan(result["loss"][client])
            assert np.isnan(result["accuracy"][client])
    summary = summarize_clients(result["accuracy"], result["size"])
    assert summary["num_clients"] == 4
    assert summary["weighted_mean"] == pytest.approx(hits.mean())


def test_known_fairness_figures():
    values = np.random.default_rng(1).permutation(np.arange(1, 11) / 10)
    summary = summarize_clients(values, np.ones(10))
    known = {
        "mean": 0.55, "weighted_mean": 0.55, "std": 0.2872281323, "worst": 0.1, "best": 1.0,
        "gini": 0.3, "jain": 0.7857142857, "cosine": 0.8864052604, "entropy": 2.1512817207,
        "kl_uniform": 0.1513033723,
    }  # fmt: skip
    for name, value in known.items():
        assert summary[name] == pytest.approx(value, abs=1e-9), name
    assert summarize_clients(values, np.ones(10), fraction=0.2)["worst"] == pytest.approx(0.15)
    assert summary["histogram_counts"].sum() == 10
    assert summary["histogram_edges"][[0, -1]].tolist() == [0.0, 1.0]


def test_worst_share_rounds_up_but_not_over_rounding_errors():
    values = np.arange(31.0)
    assert summarize_clients(values, values)["worst"] == 1.5  # ceil(3.1) = 4 of 31
    assert summarize_clients(values[:30], values[:30])["worst"] == 1.0  # 3 of 30


def test_sizes_follow_their_values_and_no_client_is_nan():
    assert summarize_clients([1.0, 0.0, np.nan], [1, 3, 9])["weighted_mean"] == 0.25
    assert np.isnan(summarize_clients([np.nan], [0])["mean"])
    with pytest.raises(ValueError, match="shape"):
        summarize_clients([1.0], [1, 2])


def test_a_model_may_have_none_in_its_parameters():
    """As a partitioned Equinox module has; what stays with clients is refused all the same."""
    train, test = fl.data.load("digits")
    data = fl.data.partition(train, fl.data.iid(num_clients=10, seed=0))
    model = fl.models.from_functions(
        lambda key: {"w": jnp.zeros((64, 10)), "activation": None},
        lambda params, x, key: x.reshape(len(x), -1) @ params["w"],
    )
    slots = {"plan": fl.Plan(batch_size=20), "sampler": fl.uniform(3)}
    algo = fl.scaffold(model.loss, 0.1, **slots)
    key = jax.random.key(0)
    state, _ = algo.round(key, algo.init(key, model.init(key), data), data)
    scores = fl.evaluator(model, test)(state)
    assert scores == fl.evaluator(model, test)(state.server.params)
    assert scores["test_accuracy"] > 0.3  # of zeros: 0.1
