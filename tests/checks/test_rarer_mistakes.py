"""Rarer mistakes of users, many found in trials: each message names the cause and the remedy."""

import collections
from typing import Any, cast

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from a_users_script import MODEL, OWNERS, W, X, Y, says, train, warns

import fedjax_lite as fl
from fedjax_lite.data.population.sharded import ShardedDataset
from fedjax_lite.data.stores.store import ArrayStore

KEY = jax.random.key(0)


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
