"""The likely mistakes of a new user: each message names the cause and the remedy."""

import collections
import re
from typing import Any, cast

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import fedjax_lite as fl
from fedjax_lite.data.population.sharded import ShardedDataset
from fedjax_lite.data.stores.store import ArrayStore
from fedjax_lite.run.divergence import RunDiverged

KEY = jax.random.key(0)
X = np.random.default_rng(0).random((12, 4, 4, 1)).astype(np.float32)
Y = np.arange(12) % 3
OWNERS = np.arange(12) % 4
MODEL = fl.models.linear(3, (4, 4, 1))
W = MODEL.init(KEY)


def train(examples, loss=MODEL.loss, *, learning_rate=0.1, rounds=1, params=W, test=None, **slots):
    """What a user's script does, from arrays to the history."""
    data = fl.data.from_arrays(examples, OWNERS)
    slots = {"plan": fl.Plan(batch_size=3), "sampler": fl.everyone(), **slots}
    algo = fl.fedavg(loss, optax.sgd(learning_rate), **slots)
    state = algo.init(KEY, params, data)
    evaluate = None if test is None else fl.evaluator(MODEL, test)
    options = {"num_rounds": rounds, "every": 2, "evaluate": evaluate, "progress": False}
    return fl.run(algo, KEY, state, data, **options)[1]


def says(error, *words):
    """Expects an error whose text holds all words, in order."""
    return pytest.raises(error, match="(?s)" + ".*".join(re.escape(word) for word in words))


def warns(*words):
    return pytest.warns(UserWarning, match="(?s)" + ".*".join(re.escape(word) for word in words))


@pytest.fixture(scope="module")
def ready():
    data = fl.data.from_arrays({"x": X, "y": Y}, OWNERS)
    plan, sampler = fl.Plan(batch_size=3), fl.everyone()
    algo = fl.fedavg(MODEL.loss, optax.sgd(0.1), plan=plan, sampler=sampler)
    return algo, algo.init(KEY, W, data), data


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


# -- and others -------------------------------------------------------------------------------


def test_a_state_after_its_donation(ready):
    algo, _, data = ready
    state = algo.init(KEY, W, data)
    jax.tree.map(lambda leaf: leaf.delete(), state)
    for use in (
        lambda: algo.round(KEY, state, data),
        lambda: fl.run(algo, KEY, state, data, num_rounds=1),
        lambda: fl.evaluator(MODEL, {"x": X, "y": Y})(state),
    ):
        with says(ValueError, "state was donated", "donate_argnums", "state, metrics ="):
            use()


def test_the_wrong_split(ready):
    with warns("12 examples", "'test'", "training data", "name='train_set'"):
        train({"x": X, "y": Y}, test={"x": X, "y": Y})


@pytest.mark.parametrize(
    ("call", "words"),
    [
        (
            lambda s, d: fl.evaluator(cast(Any, MODEL.loss), {"x": X, "y": Y}),
            ("function", "not model.loss"),
        ),
        (
            lambda s, d: fl.evaluator(cast(Any, {"x": X, "y": Y}), MODEL),
            ("got dict", "(model, examples)"),
        ),
        (lambda s, d: fl.evaluator(MODEL, d), ("FederatedDataset", "evaluate_clients(model")),
        (lambda s, d: fl.evaluator(MODEL, {"x": X, "y": Y})((s, {})), ("tuple", "state, metrics")),
    ],
)
def test_evaluators(ready, call, words):
    with says(TypeError, *words):
        call(*ready[1:])


@pytest.mark.parametrize(
    ("slots", "words"),
    [
        ({"sampler": 10}, ("sampler must be a Sampler, got 10", "sampler=fl.uniform(10)")),
        ({"sampler": fl.uniform}, ("Sampler", "factory not called", "fl.uniform(10)")),
        ({"plan": 20}, ("plan must be a Plan, got 20", "fl.Plan(batch_size=20")),
        ({"server_optimizer": optax.adam}, ("server_optimizer", "adam", "optax.sgd(1.0)")),
    ],
)
def test_slots(slots, words):
    with says(TypeError, *words):
        train({"x": X, "y": Y}, **slots)


def test_optimizers_that_were_not_made():
    for wrong in (optax.adam, 0.1):
        with says(TypeError, "client_optimizer", "optax.sgd(0.1)", "neither 0.1 nor"):
            fl.fedavg(MODEL.loss, wrong, plan=fl.Plan(batch_size=3), sampler=fl.everyone())


def test_a_plan_that_is_missing():
    with says(TypeError, "'plan'"):
        fl.fedavg(MODEL.loss, optax.sgd(0.1), sampler=fl.everyone())  # type: ignore[call-arg]


def test_parameters_of_another_model():
    other = fl.models.mlp((5,), num_classes=3, input_shape=(4, 4, 1))
    with says(ValueError, "params belong to another model", "expected keys [dense1.bias", "head."):
        train({"x": X, "y": Y}, other.loss)
    wide = fl.models.linear(3, (4, 5, 1)).init(KEY)
    with says(ValueError, "another model", "head.kernel [16, 3]", "got [20, 3]"):
        MODEL.predict(wide, {"x": X})


@pytest.mark.parametrize("kind", ["linen", "nnx"])
def test_parameters_of_another_model_for_flax(kind):
    from flax import linen, nnx

    if kind == "linen":
        model = fl.models.from_linen(linen.Dense(3), jnp.zeros((1, 4, 4, 1)))
    else:
        model = fl.models.from_nnx(lambda rngs: nnx.Linear(1, 3, rngs=rngs))
    with says(ValueError, "another model: expected keys [bias, kernel], got [head.bias, head.k"):
        train({"x": X, "y": Y}, model.loss)


def test_other_errors_of_a_network_stay_what_they_are():
    def broken(w, x, key):
        raise KeyError("mine")

    model = fl.models.from_functions(lambda key: jnp.zeros(2), broken)
    with pytest.raises(KeyError, match="mine"):
        model.predict(jnp.zeros(2), {"x": X})
    with says(ValueError, "another model: expected an array [2], got [3]"):
        model.predict(jnp.zeros(3), {"x": X})


def test_a_state_for_parameters(ready):
    _, state, _ = ready
    with says(TypeError, "params", "got a RoundState", "state.server.params"):
        MODEL.predict(state, {"x": X})
    with says(TypeError, "begins with a RoundState", "[0].server.params"):
        MODEL.predict((state, {}), {"x": X})


@pytest.mark.parametrize(
    ("partitioner", "words"),
    [
        ("dirichlet", ("Partitioner, got 'dirichlet'", "fl.data.dirichlet(alpha=0.3")),
        (fl.data.iid, ("got function", "factory not called", "fl.data.dirichlet(")),
    ],
)
def test_partitioners(partitioner, words):
    with says(TypeError, "partitioner must be", *words):
        fl.data.partition({"x": X, "y": Y}, partitioner)


def test_data_are_printed_without_their_values(ready):
    data = ready[2]
    words = "FederatedDataset(4 clients, 12 examples, x float32[4,4,1], y int32[])"
    assert repr(data) == words
    told = []
    jax.jit(lambda traced: told.append(repr(traced)))(data)
    assert told == [words]
    bare = fl.data.from_arrays((np.zeros((2, 3)), {"a": np.zeros(2, bool)}), [0, 1])
    assert repr(bare).endswith("2 examples, 0 float32[3], 1.a bool[])")
    assert repr(fl.data.from_arrays(np.zeros(2), [0, 1])).endswith("2 examples, float32[])")
    sharded = ShardedDataset(
        data.examples, np.zeros(6, np.int32), np.ones(4, np.int32), num_blocks=2, max_client_size=3
    )
    words = "4 clients in 2 blocks, 12 rows with padding, x float32[4,4,1], y int32[])"
    assert repr(sharded) == f"ShardedDataset({words}"
    assert repr(jax.tree.map(lambda leaf: None, sharded)).startswith("ShardedDataset(? clients in")
    streamed = fl.stream.StreamedDataset(ArrayStore({"x": X}, [5, 7]))
    words = "2 clients, 12 examples, ArrayStore, client rows: device"
    assert repr(streamed) == f"StreamedDataset({words})"
    for tree in (jax.tree.map(lambda leaf: "text", data), jax.tree.map(lambda leaf: None, data)):
        assert repr(tree).startswith("FederatedDataset(? clients")


@pytest.mark.parametrize(
    ("slots", "words"),
    [
        ({"aggregator": "median"}, "aggregator must be an Aggregator, got 'median'; give "
         "fl.median(), not 'median'"),
        ({"sampler": "uniform"}, "give fl.uniform(...), not 'uniform'"),
        ({"aggregator": "fedavg"}, "got 'fedavg'; for example aggregator=fl.mean()"),
        ({"aggregator": fl.uniform(2)}, "aggregator must be an Aggregator, got a Sampler; for"),
        ({"uplink": np.zeros(9)}, "uplink must be a Transform, got a ndarray; for example"),
        ({"plan": fl.Plan}, "plan must be a Plan, got the class Plan; was a factory not called?"),
    ],
)  # fmt: skip
def test_slots_are_told_by_what_they_are(slots, words):
    with says(TypeError, words):
        train({"x": X, "y": Y}, **slots)


@pytest.mark.parametrize(
    ("value", "words"),
    [
        (0.1, ("got 0.1", "fl.poisson(0.1)", "round(0.1 * num_clients)")),
        (2.0, ("got 2.0; give 2",)),
        (2.5, ("got 2.5; round it",)),
    ],
)
def test_counts_that_are_floats(value, words):
    with says(TypeError, "cohort_size must be an int", *words) as caught:
        fl.uniform(value)
    assert "traced" not in str(caught.value)


def test_counts_that_are_traced():
    with says(TypeError, "got a traced value", "fixes shapes", "cannot be traced"):
        jax.jit(lambda n: (fl.uniform(n), n)[1])(2)


# -- found in later trials ----------------------------------------------------------------------


@pytest.mark.parametrize(
    ("params", "words"),
    [(None, "got None"), (MODEL, "got a Model"), (MODEL.init, "got the function checked_init")],
)
def test_what_is_given_for_parameters(ready, params, words):
    algo, _, data = ready
    with says(TypeError, "params must be the model's parameters", words, "model.init(key)"):
        algo.init(KEY, params, data)


def test_parameters_from_numpy(ready):
    algo, _, data = ready
    wide = jax.tree.map(lambda w: np.asarray(w, np.float64), W)
    told = algo.init(KEY, wide, data).server.params
    assert jax.tree.map(lambda w: w.dtype, told) == jax.tree.map(lambda w: w.dtype, W)
    own = collections.namedtuple("Model", "w")  # as equinox' modules, which are parameters
    assert algo.init(KEY, own(W), data).server.params.w.keys() == W.keys()
    with warns("params are float16", "float32", "with_precision"):
        algo.init(KEY, jax.tree.map(lambda w: np.asarray(w, np.float16), W), data)


@pytest.mark.parametrize(
    ("optimizer", "rate"),
    [
        (optax.sgd(-0.1), "-0.1"),
        (optax.chain(optax.clip(1.0), optax.adam(-0.25)), "-0.25"),
        (optax.chain(optax.scale(2.0), optax.scale(0.25)), "-0.5"),
        (optax.scale_by_adam(), "-1"),  # the rate was forgotten
        (optax.sgd(optax.linear_schedule(-0.1, 0.0, 5)), "-0.1"),
    ],
)
def test_a_negative_learning_rate(optimizer, rate):
    for name, use in (("client", fl.local_sgd), ("server", None)):
        with warns(f"{name}_optimizer has the learning rate {rate}", "climbs", "give a positive"):
            fl.optimizer_server(optimizer) if use is None else use(MODEL.loss, optimizer)


def scale_by_the_opposite():
    """A stage of the user's own; named as optax names those that keep the sign."""
    return optax.stateless(lambda updates, params: jax.tree.map(jnp.negative, updates))


def test_learning_rates_that_are_fine_or_unknown():
    schedule = optax.linear_schedule(0.1, 0.0, 5)
    with jax.transfer_guard("disallow"):  # and nothing is run
        for optimizer in (
            optax.sgd(0.1, momentum=0.9), optax.adamw(0.1), optax.sgd(schedule),
            fl.server.yogi(0.1), optax.chain(optax.scale(2.0), optax.sgd(0.1)),
            optax.inject_hyperparams(optax.sgd)(0.1), optax.contrib.cocob(),
            optax.chain(scale_by_the_opposite(), optax.scale(0.1)),
        ):  # fmt: skip
            fl.local_sgd(MODEL.loss, optimizer)
    jax.jit(lambda rate: (fl.local_sgd(MODEL.loss, optax.sgd(rate)), rate)[1])(0.1)


@pytest.mark.parametrize(
    ("call", "error", "words"),
    [
        (lambda: fl.local_sgd(MODEL.loss, lambda: optax.sgd(0.1)), TypeError,
         ("client_optimizer", "take the round's number", "<lambda>()", "optax.sgd(0.1)")),
        (lambda: fl.local_sgd(MODEL.loss, optax.sgd), TypeError,
         ("client_optimizer", "got the function sgd; optax.sgd(0.1)")),
        (lambda: MODEL.loss(W, (X, Y), None), TypeError, ("got a tuple", '"x": inputs')),
        (lambda: MODEL.predict(W, X), TypeError, ("examples", "got an array", '"x": inputs')),
        (lambda: MODEL.predict(W, {"x": X[0]}), ValueError, ("got (4, 4, 1)", "x[None]")),
        (lambda: fl.models.accuracy(np.zeros((12, 3)), np.eye(3)[Y]), ValueError,
         ("y must hold integer labels", "one-hot", "argmax")),
        (lambda: fl.models.cross_entropy(np.zeros((12, 3)), Y[:, None]), ValueError,
         ("y must have shape (12,), got (12, 1)", "y[..., 0]")),
        (lambda: fl.models.linear(3, cast(Any, 4)), TypeError, ("input_shape", "got 4; give (4,)")),
        (lambda: fl.models.mlp(cast(Any, 200), num_classes=3, input_shape=(4,)), TypeError,
         ("hidden", "got 200; give (200,)")),
        (lambda: fl.chain(cast(Any, [fl.clip(1.0)])), TypeError,
         ("chain takes Transforms, got a list", "chain(*transforms)")),
        (lambda: fl.data.iid(num_clients=3, seed=cast(Any, KEY)), TypeError,
         ("seed must be an int, got a key of JAX; pass an int",)),
        (lambda: fl.data.from_arrays({"x": X[:0], "y": Y[:0]}, OWNERS[:0]), ValueError,
         ("examples must not be empty", "0 rows", "the split or the filter")),
        (lambda: fl.uniform(0), ValueError, ("cohort_size must be at least 1, got 0",)),
        (lambda: fl.scaffold(MODEL.loss, -0.1, plan=fl.Plan(batch_size=3), sampler=fl.uniform(1)),
         ValueError, ("learning_rate must be positive, got -0.1",)),
    ],
)  # fmt: skip
def test_other_values_that_cannot_be_right(call, error, words):
    with says(error, *words):
        call()


def test_a_loss_that_returns_logits():
    with says(ValueError, "[3, 3]", "logits are no losses", "cross_entropy(logits, labels)"):
        train({"x": X, "y": Y}, lambda w, e, key: MODEL.predict(w, e))


def test_what_run_is_given(ready, tmp_path):
    algo, state, data = ready
    (tmp_path / "file").touch()
    with says(NotADirectoryError, "output_dir must be a folder", "the file", "/file"):
        fl.run(algo, KEY, state, data, num_rounds=1, output_dir=tmp_path / "file")
    with says(TypeError, "num_rounds must be an int, got 10.0; give 10"):
        fl.run(algo, KEY, state, data, num_rounds=cast(Any, 10.0))
    with says(TypeError, "downlink", "got 'qsgd'", "fl.qsgd(15)"):
        train({"x": X, "y": Y}, downlink="qsgd")
    with says(TypeError, "data must be", "got a dict", "(model, params, data)"):
        fl.evaluate_clients(MODEL, data, W)


# -- at no cost --------------------------------------------------------------------------------


def test_later_rounds_look_at_nothing(ready, monkeypatch):
    """The first round compiles; the next ones neither trace nor read a value on the host."""
    algo, state, data = ready
    state, _ = algo.round(KEY, state, data)
    from fedjax_lite.checks import labels as label_checks
    from fedjax_lite.checks import loss as first_look

    def never(*args, **options):
        raise AssertionError("looked again")

    monkeypatch.setattr(first_look, "look", never)
    monkeypatch.setattr(label_checks, "_read", never)
    with jax.transfer_guard("disallow"):
        jax.block_until_ready(algo.round(KEY, state, data))
