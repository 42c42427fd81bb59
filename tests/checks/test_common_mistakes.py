"""The ten likely mistakes of a new user: each message names the cause and the remedy."""

from typing import Any, cast

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from a_users_script import MODEL, OWNERS, W, X, Y, says, train, warns

import fedjax_lite as fl
from fedjax_lite.run.divergence import RunDiverged

KEY = jax.random.key(0)


# -- 1: dtypes ------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("examples", "words"),
    [
        ({"x": X, "y": Y.astype(np.float32)}, ("y must hold integer labels", "float32", "astype")),
        ({"x": X.astype(object), "y": Y}, ("examples['x']", "numeric", "object", "encode")),
        ({"x": X, "y": Y.astype(str)}, ("examples['y']", "numeric", "<U", "encode")),
        ({"x": (9 * X).astype(np.int32), "y": Y}, ("x must be uint8", "int32", "np.uint8")),
    ],
)
def test_wrong_dtypes(examples, words):
    with says(TypeError, *words):
        train(examples)


def test_wide_dtypes_are_narrowed_without_a_word():
    wide = train({"x": X.astype(np.float64), "y": Y.astype(np.int64)})
    narrow = train({"x": X, "y": Y.astype(np.int32)})
    assert wide[0]["train_loss"] == narrow[0]["train_loss"]


def test_integer_parameters():
    with says(TypeError, "params['head']['bias']", "floating", "int32", "keep counters"):
        train({"x": X, "y": Y}, params=jax.tree.map(lambda w: w.astype(int), W))


# -- 2: labels ------------------------------------------------------------------------------


def test_one_hot_labels():
    with says(ValueError, "y must hold integer labels", "(3, 3)", "one-hot", "y.argmax(-1)"):
        train({"x": X, "y": np.eye(3, dtype=np.float32)[Y]})


def test_integer_labels_for_a_loss_of_one_hot_ones():
    def loss(params, examples, key):
        return optax.softmax_cross_entropy(MODEL.predict(params, examples)[:, :2], examples["y"])

    with pytest.raises(ValueError, match="shapes") as caught:
        train({"x": X, "y": Y}, loss)
    note = caught.value.__notes__[0]
    for word in ("'y': int32[3]", "'x': float32[3, 4, 4, 1]", "cross_entropy(", "one_hot"):
        assert word in note


def test_labels_beyond_the_last_class():
    beyond = ("labels must lie in [0, 3)", "holds 1..3", "row 2", "y - 1", "num_classes=4")
    with says(ValueError, *beyond):
        train({"x": X, "y": Y + 1})
    with says(ValueError, *beyond):
        fl.evaluator(MODEL, {"x": X, "y": Y + 1})(W)


def test_labels_that_a_loss_maps_itself_are_left_alone():
    def coarse(params, examples, key):
        return MODEL.loss(params, {**examples, "y": examples["y"] // 10}, key)

    assert np.isfinite(train({"x": X, "y": 10 * Y}, coarse)[0]["train_loss"])


def test_negative_labels():
    with warns("negative labels (4 of 12, lowest -1)", "padding", "numbered from 0"):
        train({"x": X, "y": Y - 1})


# -- 3 and 4: images ------------------------------------------------------------------------


def test_channel_first_images():
    model = fl.models.linear(3, (8, 8, 3))
    images = np.zeros((12, 3, 8, 8), np.float32)
    with says(ValueError, "[B, 8, 8, 3]", "(3, 3, 8, 8)", "NCHW", "np.moveaxis(x, 1, -1)"):
        train({"x": images, "y": Y}, model.loss, params=model.init(KEY))


def test_channel_first_example_for_flax():
    from flax import linen as nn

    with warns("(1, 3, 8, 8)", "channel-first", "np.moveaxis(x, 1, -1)"):
        fl.models.from_linen(nn.Sequential([nn.Conv(2, (3, 3))]), jnp.zeros((1, 3, 8, 8)))


def test_other_image_size():
    with says(ValueError, "[B, 4, 4, 1]", "(3, 5, 5, 1)", "input_shape=(5, 5, 1)"):
        train({"x": np.zeros((12, 5, 5, 1), np.float32), "y": Y})


def test_bytes_are_scaled_by_models_and_floats_are_not():
    pixels = np.round(255 * X).astype(np.uint8)
    scaled = train({"x": pixels.astype(np.float32) / 255, "y": Y})
    raw = train({"x": pixels, "y": Y})
    assert raw[0]["train_loss"] == pytest.approx(scaled[0]["train_loss"], rel=1e-6)
    with warns("examples['x']", "float32", "divide by 255", "uint8"):
        fl.data.from_arrays({"x": pixels.astype(np.float32), "y": Y}, OWNERS)


def test_bytes_in_a_loss_of_ones_own():
    def loss(w, examples, key):
        return (examples["x"].reshape(3, -1).astype(jnp.float32) @ w - examples["y"]) ** 2

    with warns("uint8", "unscaled", "/ 255"):
        train({"x": np.full((12, 4, 4), 9, np.uint8), "y": Y}, loss, params=jnp.zeros(16))


def test_splits_that_are_scaled_differently():
    with warns("clients train on inputs up to 0.997", "both splits alike"):
        train({"x": X, "y": Y}, test={"x": 100 * X[:5] + 0.5, "y": Y[:5]})


# -- 5: divergence --------------------------------------------------------------------------


def quartic(w, examples, key):
    return (w - examples["x"]) ** 4


def test_divergence_stops_the_run():
    examples = {"x": np.arange(12.0)}
    with pytest.raises(RunDiverged, match=r"round \d.*diverged.*learning_rate.*lower") as caught:
        train(examples, quartic, params=jnp.array(0.0), learning_rate=10.0, rounds=100)
    assert caught.value.history[-1]["round"] == int(caught.value.state.round) < 100


def test_divergence_in_the_first_round_may_come_from_the_data():
    def loss(params, examples, key):
        logits = MODEL.predict(params, examples)
        return optax.softmax_cross_entropy_with_integer_labels(logits, examples["y"])

    message = r"round 1.*some examples.*labels 1\.\.3.*at least 4 outputs.*learning_rate"
    with pytest.warns(RuntimeWarning, match=message):
        train({"x": X, "y": Y + 1}, loss)


# -- 6 and 7: cohorts, batch normalisation ---------------------------------------------------


def test_cohort_larger_than_the_population():
    with says(ValueError, "cohort_size", "at most the population", "5 of 4", "sample fewer"):
        train({"x": X, "y": Y}, sampler=fl.uniform(5))


def test_undecided_batch_norm():
    from flax import linen as nn

    class Net(nn.Module):
        @nn.compact
        def __call__(self, x, train=False):
            return nn.BatchNorm(use_running_average=not train)(x)

    with says(ValueError, "statistics must be chosen", "'averaged'", "'local'", "'batch'"):
        fl.models.from_linen(Net(), jnp.zeros((1, 4)))


# -- 8: keys and order -----------------------------------------------------------------------


@pytest.mark.parametrize(
    ("call", "words"),
    [
        (lambda a, s, d: a.init(0, W, d), ("got int", "jax.random.key(0)")),
        (lambda a, s, d: a.init(jax.random.PRNGKey(0), W, d), ("uint32", "wrap_key_data")),
        (lambda a, s, d: a.init(W, d), ("got dict", "key comes first", "algo.init(key")),
        (lambda a, s, d: a.init(W, KEY, d), ("got dict", "key comes first", "algo.init(key")),
        (lambda a, s, d: a.init(KEY, d, W), ("params", "got data", "algo.init(key, params")),
        (lambda a, s, d: a.round(s, d), ("got RoundState", "algo.round(key, state, data)")),
        (lambda a, s, d: a.round(s, KEY, d), ("got RoundState", "algo.round(key, state")),
        (lambda a, s, d: a.round(KEY, W, d), ("got dict", "algo.round(key, state, data)")),
        (lambda a, s, d: fl.run(a, s, KEY, d, num_rounds=1), ("RoundState", "run(algo, key")),
        (lambda a, s, d: fl.run(a, s, d, num_rounds=1), ("RoundState", "run(algo, key")),
        (lambda a, s, d: fl.run(a, KEY, d, s, num_rounds=1), ("FederatedDataset", "order is run")),
        (lambda a, s, d: fl.run(a, KEY, W, d, num_rounds=1), ("got dict", "algo.init(key")),
        (
            lambda a, s, d: fl.run(cast(Any, fl.fedavg), KEY, s, d, num_rounds=1),
            ("function", "a factory"),
        ),
        (lambda a, s, d: fl.run(a, KEY, s, {"x": X}, num_rounds=1), ("got dict", "from_arrays")),
        (lambda a, s, d: MODEL.init(0), ("got int", "jax.random.key(0)")),
    ],
)
def test_forgotten_and_swapped(ready, call, words):
    with says(TypeError, *words):
        call(*ready)


# -- 9: the loss's contract ------------------------------------------------------------------


@pytest.mark.parametrize(
    ("loss", "error", "words"),
    [
        (lambda w, e, k: MODEL.loss(w, e, k).mean(), ValueError, ("[3], got []", "drop the mean")),
        (lambda w, e, k: MODEL.loss(w, e, k).sum(), ValueError, ("got []", "do not sum")),
        (lambda w, e, k: MODEL.loss(w, e, k)[:, None], ValueError, ("[3, 1]", "losses[..., 0]")),
        (lambda w, e, k: MODEL.predict(w, e).T[:2].T, ValueError, ("[3, 2]", "all axes but")),
        (lambda w, e, k: (MODEL.loss(w, e, k), {}), TypeError, ("tuple", "auxiliary")),
        (lambda w, e, k: None, TypeError, ("NoneType", "return missing")),
        (lambda w, e, k: MODEL.predict(w, e).argmax(-1) != e["y"], TypeError, ("bool", "smooth")),
        (lambda w, e: MODEL.loss(w, e, None), TypeError, ("three arguments", "got (w, e)")),
        (MODEL, TypeError, ("loss must be a function", "got a Model", "model.loss")),
    ],
)
def test_losses_that_are_not_per_example(loss, error, words):
    with says(error, *words):
        train({"x": X, "y": Y}, loss)


def test_a_loss_that_repeats_its_mean():
    def loss(params, examples, key):
        return jnp.broadcast_to(MODEL.loss(params, examples, key).mean(), (3,))

    with warns("repeats one number", "padding", "before the mean"):
        train({"x": X, "y": Y}, loss)


def test_every_prediction_against_every_label():
    def loss(w, examples, key):
        prediction = examples["x"].reshape(3, -1) @ w
        return ((prediction - examples["y"].astype(jnp.float32)) ** 2).mean(-1)

    with warns("[3, 1]", "[3, 3]", "every label", "predictions[..., 0]"):
        train({"x": X, "y": Y}, loss, params=jnp.zeros((16, 1)))


# -- 10: data that are closed over, or no arrays ----------------------------------------------


def test_a_loss_that_closes_over_a_large_array():
    table = np.ones((2**21, 1), np.float32)  # 8 MiB

    def loss(params, examples, key):
        return MODEL.loss(params, examples, key) * jnp.asarray(table)[examples["y"]][:, 0]

    with warns("closes over", "float32[2097152, 1]", "8 MiB", "into the examples"):
        train({"x": X, "y": Y}, loss)


def test_a_step_that_closes_over_the_data(ready):
    algo, state, _ = ready
    images = np.zeros((2**13, 4, 4, 16), np.float32)  # 8 MiB
    data = fl.data.from_arrays({"x": images, "y": np.zeros(2**13, int)}, np.arange(2**13) % 4)

    def loss(w, examples, key):
        return w * examples["x"].mean((1, 2, 3))

    algo = fl.fedsgd(loss, sampler=fl.uniform(1), server_optimizer=optax.sgd(0.1))
    state = algo.init(KEY, jnp.array(0.0), data)
    with warns("captured", "8 MiB", "[8192, 4, 4, 16]", "an argument", "state, data"):
        jax.eval_shape(lambda key, state: algo.round(key, state, data), KEY, state)


@pytest.mark.parametrize(
    ("examples", "words"),
    [
        (({"x": x} for x in X), ("generator", "collect it first", "np.stack")),
        ([{"x": X[0], "y": 0}, {"x": X[1], "y": 1}], ("list of dicts", "np.stack", "client_ids")),
        ({"a": {"x": X, "y": Y}, "b": {"x": X, "y": Y}}, ("one dict per client", "np.concaten")),
        ({"x": X.tolist(), "y": Y}, ("examples['x']", "Python list of 12", "np.asarray")),
        ({"x": list(X), "y": Y}, ("examples['x']", "list of 12 arrays", "np.stack")),
    ],
)
def test_examples_that_are_no_arrays(examples, words):
    with says(TypeError, *words):
        fl.data.from_arrays(examples, [0, 1])


def test_a_round_on_an_iterator(ready):
    algo, state, _ = ready
    with says(TypeError, "data must be arrays", "generator", "collect it first"):
        algo.round(KEY, state, (x for x in X))


def test_other_names_in_the_examples():
    with says(TypeError, '"x" and "y"', "'image', 'label'", "rename", 'examples["image"]'):
        train({"image": X, "label": Y})
    with says(TypeError, '"y"', "['image', 'label']", '{"x": images, "y": labels}'):
        fl.evaluator(MODEL, {"image": X, "label": Y})


def test_client_ids_of_another_length():
    with says(ValueError, "client_ids must have shape [12]", "got [11]", "np.repeat"):
        fl.data.from_arrays({"x": X, "y": Y}, OWNERS[:-1])


def test_empty_clients_are_no_mistake(ready):
    algo = ready[0]
    data = fl.data.from_arrays({"x": X, "y": Y}, OWNERS, num_clients=6)
    _, metrics = algo.round(KEY, algo.init(KEY, W, data), data)
    assert np.isfinite(metrics["train_loss"])
    assert int(metrics["num_steps"]) == 4
