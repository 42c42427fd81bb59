"""IFCA: what is chosen, sent, billed, kept and reported, and what must not go wrong."""

import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import fedjax_lite as fl
from fedjax_lite import testing
from fedjax_lite.stream.dataset import StreamedDataset
from fedjax_lite.testing.algorithm_laws import same
from fedjax_lite.verify.techniques.clusters import groups
from fedjax_lite.verify.testbeds import quadratic, whole

KEY = jax.random.key(0)
DATA = testing.population()
START = fl.several_models(testing.init_params, jax.random.key(7), 2)


def method(loss=testing.loss, **slots) -> Any:
    options: Any = {"sampler": fl.uniform(4), "plan": fl.Plan(batch_size=3), **slots}
    options = {"num_clusters": 2, **options}
    return fl.ifca(loss, optax.sgd(0.05), **options)


def run(data: Any = DATA, **slots):
    algo = method(**slots)
    state = algo.init(KEY, START, data)
    return fl.run(algo, KEY, state, data, num_rounds=2, progress=False)


plain = functools.cache(run)


def test_streamed_and_sharded():
    order, sizes = np.asarray(DATA.order), np.asarray(DATA.sizes)
    examples = {key: np.asarray(leaf)[order] for key, leaf in DATA.examples.items()}
    streamed, _ = run(StreamedDataset(fl.data.ArrayStore(examples, sizes), "host"))
    same(streamed.server, plain()[0].server)
    found = fl.cluster_assignments(streamed)
    np.testing.assert_array_equal(found, fl.cluster_assignments(plain()[0]))
    np.testing.assert_array_equal(found[[5, 0]], fl.cluster_assignments(streamed, [5, 0]))
    sharded, _ = run(strategy=fl.sharded(fl.client_mesh()))
    same(sharded.server, plain()[0].server)


def test_bills_all_models_down_and_one_up():
    _, rows = plain()
    one = 32 * 4  # three weights and a bias
    assert rows[-1]["downlink_bits"] == 2 * one * 4
    assert rows[-1]["uplink_bits"] == one * rows[-1]["num_clients"]


def test_compressed_and_robust():
    """Rules see one model a client; a median needs no one-hot messages."""
    state, rows = run(uplink=fl.error_feedback(fl.top_k(2)), aggregator=fl.median())
    assert rows[-1]["uplink_bits"] < plain()[1][-1]["uplink_bits"]
    assert np.isfinite(np.asarray(state.server.params["w"])).all()
    data = fl.data.from_arrays({"b": jnp.array([-9.0, -5, -4, 5, 6, 30])}, range(6))
    algo = fl.ifca(
        lambda w, e, key: 0.5 * (w - e["b"]) ** 2, optax.sgd(1.0), num_clusters=2,
        plan=fl.Plan(batch_size=1), sampler=fl.everyone(), aggregator=fl.median(),
    )  # fmt: skip
    state = algo.round(KEY, algo.init(KEY, jnp.array([-1.0, 1.0]), data), data)[0]
    np.testing.assert_allclose(state.server.params, [-5.0, 6.0], rtol=1e-6)


def test_shares_and_changes_in_the_history():
    """Clients 0, 1 begin in cluster 1, which then leaves them for the clients above 0."""
    data = groups()
    algo = method(quadratic, plan=whole(1), sampler=fl.everyone())
    state = algo.init(KEY, jnp.array([-30.0, 1.0]), data)
    assert fl.cluster_assignments(state).tolist() == [-1] * 4
    state, first = algo.round(KEY, state, data)
    assert (first["cluster_0"], first["cluster_1"], first["cluster_changes"]) == (0, 1, 0)
    state = state._replace(server=state.server._replace(params=jnp.array([-5.0, 5.0])))
    state, second = algo.round(KEY, state, data)
    assert (second["cluster_0"], second["cluster_1"], second["cluster_changes"]) == (0.5, 0.5, 0.5)
    # ((0)^2 + 3 (.2)^2 + 2 (0)^2 + 2 (.2)^2) / 8 / 2, over examples
    np.testing.assert_allclose(second["loss"], (30 * 0.04 + 20 * 0.04) / 80 / 2, rtol=1e-4)
    assert fl.cluster_assignments(state).tolist() == [0, 0, 1, 1]
    assert fl.cluster_purity(fl.cluster_assignments(state), [0, 0, 1, 1]) == 1.0


def test_all_of_the_data_decide_and_unlabelled_rows_do_not():
    """A loss that counts by label: rows of label -1 would pull client 0 to the other model."""

    def bare(w, e, key):
        return 0.5 * (w - e["b"]) ** 2

    loss: Any = fl.models.with_counts(bare, lambda e: e["y"] >= 0)
    examples = {
        "b": jnp.array([-3.0, -3, 9, 9, 9, 2, -1, 2]),
        "y": jnp.array([0, 0] + [-1] * 3 + [0] * 3),
    }
    data = fl.data.from_arrays(examples, [0] * 5 + [1] * 3)
    for loss_fn, wanted in ((loss, [0, 1]), (bare, [1, 1])):
        algo = method(loss_fn, plan=fl.Plan(batch_size=2, steps=1), sampler=fl.everyone())
        state = algo.round(KEY, algo.init(KEY, jnp.array([-1.0, 1.0]), data), data)[0]
        assert fl.cluster_assignments(state).tolist() == wanted


@pytest.mark.parametrize("centres", [(jnp.nan, 7.0), (jnp.inf, 7.0)])
def test_nan_never_wins(centres):
    data = groups()
    algo = method(quadratic, plan=whole(1), sampler=fl.everyone())
    state, _ = algo.round(KEY, algo.init(KEY, jnp.array(centres), data), data)
    assert fl.cluster_assignments(state).tolist() == [1] * 4
    assert np.isfinite(state.server.params[1])


def test_who_has_no_finite_loss_sends_nothing():
    """The others' clusters move as if that client were not there; its cluster stays."""

    def loss(w, e, key):
        return jnp.where(e["b"] == 9, jnp.nan, 0.5 * (w - e["b"]) ** 2)

    data = fl.data.from_arrays({"b": jnp.array([-5.0, -4.0, 9.0, 5.0])}, range(4))
    algo = method(loss, plan=whole(1), sampler=fl.everyone())
    state, metrics = algo.round(KEY, algo.init(KEY, jnp.array([-1.0, 1.0]), data), data)
    np.testing.assert_allclose(state.server.params, [-1 - 0.05 * 3.5, 1 + 0.05 * 4], rtol=1e-6)
    assert fl.cluster_assignments(state).tolist() == [0, 0, -1, 1]
    assert metrics["num_clients"] == 3


def test_every_client_is_scored_with_its_own_model():
    model = fl.models.linear(num_classes=2, input_shape=(3,))
    x = np.random.default_rng(0).normal(size=(40, 3)).astype(np.float32)
    y = (x[:, 0] > 0) ^ (np.arange(40) % 4 >= 2)  # two clients see labels flipped
    data = fl.data.from_arrays({"x": x, "y": y.astype(np.int32)}, np.arange(40) % 4)
    algo = fl.ifca(
        model.loss,
        optax.sgd(0.5),
        num_clusters=2,
        plan=fl.Plan(10, epochs=2),
        sampler=fl.everyone(),
    )
    state = algo.init(KEY, fl.several_models(model.init, jax.random.key(1), 2), data)
    evaluate = fl.client_evaluator(model, data, name="train_set")
    state, _ = fl.run(
        algo, KEY, state, data, num_rounds=10, evaluate=evaluate, every=10, progress=False
    )
    found = fl.cluster_assignments(state)
    assert fl.cluster_purity(found, [0, 0, 1, 1]) == 1.0
    scores = fl.evaluate_clients(model, state, data)
    for i in range(4):
        own = jax.tree.map(lambda leaf, i=i: leaf[found[i]], state.server.params)
        alone = fl.evaluate_clients(model, own, data)
        np.testing.assert_allclose(scores["accuracy"][i], alone["accuracy"][i], rtol=1e-6)
    assert scores["accuracy"].min() > 0.7
    with pytest.raises(TypeError, match="one for each cluster"):
        fl.evaluator(model, {"x": x, "y": y.astype(np.int32)})(state)


def test_swept_over_rates():
    init = lambda key: START  # noqa: E731
    swept = fl.sweep(
        lambda rate: fl.ifca(
            testing.loss, optax.sgd(rate), num_clusters=2, plan=fl.Plan(3), sampler=fl.uniform(4)
        ),
        {"rate": [0.0, 0.05]}, init=init, data=DATA, num_rounds=2, progress=False,
    )  # fmt: skip
    params = swept.states.server.params["w"]
    np.testing.assert_allclose(params[1], plain()[0].server.params["w"], rtol=1e-5)
    np.testing.assert_array_equal(params[0], START["w"])


def test_refusals():
    mechanism = fl.privacy.central_gaussian(
        clip=1.0, num_clients=7, sampling_rate=0.5, noise_multiplier=1.0, delta=1e-2
    )
    with pytest.raises(ValueError, match=r"privacy does not cover ifca.*number of a client's clus"):
        method(sampler=None, privacy=mechanism)
    with pytest.raises(ValueError, match="num_clusters"):
        method(num_clusters=0)
    with pytest.raises(ValueError, match=r"averaging must be one of .* got 'models'"):
        method(averaging="models")
    with pytest.raises(ValueError, match=r"leaves \[3, \.\.\.\], got shape .*several_models"):
        method(num_clusters=3).init(KEY, START, DATA)
    with pytest.raises(ValueError, match="aggregator must be the same in every round"):
        method(aggregator=fl.privacy.adaptive_sum(
            noise_multiplier=0.0, count_noise_multiplier=0.0, denominator=3.0, initial_clip=1.0
        ))  # fmt: skip
    fedavg = fl.fedavg(testing.loss, optax.sgd(0.1), plan=fl.Plan(3), sampler=fl.everyone())
    with pytest.raises(ValueError, match=r"ids must lie in the population"):
        fl.cluster_assignments(plain()[0], [7])
    with pytest.raises(TypeError, match=r"such as fl\.ifca"):
        fl.cluster_assignments(fedavg.init(KEY, testing.init_params(KEY), DATA))
