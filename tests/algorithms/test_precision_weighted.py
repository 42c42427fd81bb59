"""Weights that clients measure: known answers, one-class clients, and what cannot be measured."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import fedjax_lite as fl
from fedjax_lite import verify

KEY = jax.random.key(0)


@pytest.mark.sample(2, of="all checks of a technique pass")
def test_known_answers():
    """KNOWN_ANSWERS 2: estimates 1, 2, 3 give 2.5714285714; the pitfall 9.8039215686, and 5."""
    np.testing.assert_allclose((18 / 7, 1000 / 102), (2.5714285714, 9.8039215686), atol=6e-11)
    records = verify.run(["precision"])
    assert len(records) == 5
    assert [record.verdict for record in records] == ["PASS"] * 5, records


@pytest.fixture(scope="module")
def one_class():
    """Two clients of both classes, a third of one, all alike; three floors."""
    rng = np.random.default_rng(0)
    owners = np.repeat(range(3), (60, 60, 20))
    y = np.concatenate([np.arange(60) % 2, np.arange(60) % 2, np.ones(20, int)])
    noise = rng.normal(size=(140, 2)) * np.where(owners == 2, 0.1, 1.0)[:, None]
    x = noise + np.stack([2 * y - 1, 0 * y], 1)
    data = fl.data.from_arrays({"x": x.astype(np.float32), "y": y}, owners)
    test = {"x": x[:120].astype(np.float32), "y": y[:120]}
    model = fl.models.linear(2, (2,))
    slots = {"plan": fl.Plan(batch_size=None, steps=5), "sampler": fl.everyone()}

    def make(floor):
        return fl.precision_weighted(model.loss, optax.sgd(0.5), floor=floor, **slots)

    floors = {"floor": [1e-6, 1.0, 1e6]}
    options = {"data": data, "num_rounds": 20, "evaluate": fl.evaluator(model, test)}
    return fl.sweep(make, floors, init=model.init, progress=False, **options).rows


def test_one_class_clients_take_over_and_a_floor_stops_them(one_class):
    tiny, high, plain = one_class  # a floor above every variance is FedAvg
    np.testing.assert_allclose(plain["largest_weight"], 3 / 7, rtol=1e-5)
    assert tiny["largest_weight"] > 0.99  # of a client that holds a seventh of the examples
    assert tiny["test_loss"] > 1.5 * plain["test_loss"]
    assert tiny["test_accuracy"] < plain["test_accuracy"] - 0.04
    assert high["largest_weight"] < 0.5
    assert abs(high["test_loss"] / plain["test_loss"] - 1) < 0.05


def test_who_cannot_measure_does_not_count_nor_does_who_measures_nan():
    data = fl.data.from_arrays({"b": np.array([1.0, 3.0, 50.0, -1.0, 7.0])}, [0, 0, 1, 2, 2])
    algo = fl.precision_weighted(
        lambda w, e, key: 0.5 * (w - e["b"]) ** 2,
        optax.sgd(1.0),
        floor=0.1,
        measure=lambda w, e, key: jnp.log(e["b"]),
        plan=fl.Plan(batch_size=None, steps=1),
        sampler=fl.everyone(),
    )
    state, metrics = algo.round(KEY, algo.init(KEY, jnp.array(0.0), data), data)
    assert state.server.params == 2.0
    np.testing.assert_allclose(metrics["variance"], np.log(3) ** 2 / 2, rtol=1e-5)
    assert metrics["largest_weight"] == 1.0


def test_a_floor_above_all_is_fedavg_among_those_of_two_examples_or_more():
    """Means 2 and 3 of two and three examples; the single one, 50, has no variance."""
    data = fl.data.from_arrays({"b": np.array([1.0, 3, 50, 2, 3, 4])}, [0, 0, 1, 2, 2, 2])
    plan = {"plan": fl.Plan(batch_size=None, steps=1), "sampler": fl.everyone()}
    algo = fl.precision_weighted(
        lambda w, e, key: 0.5 * (w - e["b"]) ** 2, optax.sgd(1.0), floor=1e9, **plan
    )
    state, _ = algo.round(KEY, algo.init(KEY, jnp.array(0.0), data), data)
    np.testing.assert_allclose(state.server.params, (2 * 2 + 3 * 3) / 5, rtol=1e-6)


def test_bad_input():
    slots = {"plan": fl.Plan(batch_size=2), "sampler": fl.everyone()}
    loss = fl.models.linear(2, (2,)).loss
    with pytest.raises(ValueError, match=r"floor must be positive, got 0.0.*decide alone"):
        fl.precision_weighted(loss, optax.sgd(0.1), floor=0.0, **slots)
