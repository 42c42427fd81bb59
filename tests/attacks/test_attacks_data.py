"""Attacks on data: only attackers' examples change, and backdoors are counted on other classes."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from fedjax_lite.attacks import (
    backdoor,
    backdoor_success_rate,
    flip_labels,
    label_flip,
    patch_trigger,
)
from fedjax_lite.data import from_arrays, split_clients, with_splits
from fedjax_lite.models import Model


@pytest.fixture
def data():
    rng = np.random.default_rng(0)
    examples = {
        "x": rng.integers(0, 100, size=(40, 6, 6, 1)).astype(np.uint8),
        "y": rng.integers(0, 10, size=40).astype(np.int32),
    }
    return from_arrays(examples, rng.permutation(np.repeat(np.arange(4), 10)), num_clients=4)


def test_label_flip_is_an_involution_on_the_attackers_only(data):
    flipped = label_flip(data, [1, 3], num_classes=10)
    for client in range(4):
        before, after = data.client(client), flipped.client(client)
        np.testing.assert_array_equal(after["x"], before["x"])
        expected = 9 - before["y"] if client in (1, 3) else before["y"]
        np.testing.assert_array_equal(after["y"], expected)
    again = label_flip(flipped, [1, 3], num_classes=10)
    np.testing.assert_array_equal(again.examples["y"], data.examples["y"])
    assert again.examples["y"].dtype == data.examples["y"].dtype


def test_source_to_target(data):
    flipped = label_flip(data, [0], num_classes=10, source=3, target=7)
    mine = np.asarray(data.client(0)["y"])
    np.testing.assert_array_equal(flipped.client(0)["y"], np.where(mine == 3, 7, mine))
    np.testing.assert_array_equal(flip_labels([-1, 0, 9], num_classes=10), [-1, 9, 0])


def test_classes_that_the_dtype_cannot_hold_are_refused():
    """300 in uint8 would be 44."""
    labels = np.array([1, 200], np.uint8)
    examples = {"x": np.zeros((2, 6, 6, 1), np.uint8), "y": labels}
    bytes_only = from_arrays(examples, np.array([0, 1]))
    with pytest.raises(ValueError, match="target must be at most 255 for labels of uint8, got 300"):
        backdoor(bytes_only, [0], trigger=patch_trigger(2), target=300, fraction=1.0)
    stamped = backdoor(bytes_only, [0], trigger=patch_trigger(2), target=255, fraction=1.0)
    assert stamped.examples["y"].tolist() == [255, 200]
    with pytest.raises(ValueError, match="at most 255 for labels of uint8, got 299"):
        flip_labels(labels, num_classes=300)
    with pytest.raises(ValueError, match="at most 255 for labels of uint8, got 280"):
        flip_labels(labels, num_classes=300, source=1, target=280)
    with pytest.raises(ValueError, match="source must be at most 255 for labels of uint8"):
        flip_labels(labels, num_classes=300, source=257, target=7)  # 257 in uint8 would be 1
    assert flip_labels(labels, num_classes=300, source=1, target=7).tolist() == [7, 200]
    assert flip_labels(labels, num_classes=256).tolist() == [254, 55]
    for options in ({}, {"source": 1, "target": 2}):
        with pytest.raises(ValueError, match="below num_classes=200, got 200"):
            flip_labels(labels, num_classes=200, **options)
    with pytest.raises(ValueError, match="below num_classes=200, got 200"):
        label_flip(bytes_only, [0], num_classes=200)
    traced = jax.jit(lambda y: flip_labels(y, num_classes=201))(labels)
    assert traced.tolist() == [199, 0]


def test_backdoor_stamps_a_share_of_the_attackers(data):
    poisoned = backdoor(data, [2], trigger=patch_trigger(2), target=5, fraction=0.35, seed=1)
    changed = (np.asarray(poisoned.examples["x"]) != np.asarray(data.examples["x"])).any((1, 2, 3))
    assert changed.sum() == 3  # floor(0.35 * 10)
    assert (np.asarray(data.client_of_example)[changed] == 2).all()
    assert (np.asarray(poisoned.examples["y"])[changed] == 5).all()
    same = ~changed
    np.testing.assert_array_equal(poisoned.examples["y"][same], data.examples["y"][same])
    stamped = np.asarray(poisoned.examples["x"])[changed]
    assert (stamped[:, 3:5, 3:5] == 255).all()
    assert (stamped[:, :3] < 100).all()


def test_rows_that_phases_read_beside_the_data_are_poisoned_too(data):
    train, held_out = split_clients(data, 0.4, seed=0)
    both = with_splits(train, {"held_out": held_out})
    flipped = label_flip(both, [1, 3], num_classes=10)
    poisoned = backdoor(both, [2], trigger=patch_trigger(2), target=5, fraction=1.0)
    assert list(flipped.splits) == list(poisoned.splits) == ["held_out"]
    for clean, attacked, marked in (
        (train, flipped, poisoned),
        (held_out, flipped.splits["held_out"], poisoned.splits["held_out"]),
    ):
        for client in range(4):
            y, x = clean.client(client)["y"], clean.client(client)["x"]
            assert len(y)
            expected = 9 - y if client in (1, 3) else y
            np.testing.assert_array_equal(attacked.client(client)["y"], expected)
            found, is_marked = marked.client(client), client == 2
            np.testing.assert_array_equal(found["y"], np.full_like(y, 5) if is_marked else y)
            assert (found["x"] != x).any() == is_marked


def test_success_rate_counts_other_classes_only():
    """A model that says "2" where the corner shines, else what is written in the first pixel."""

    def predict(params, examples):
        x = examples["x"].astype(jnp.int32)
        shines = (x[:, 3:5, 3:5, 0] == 255).all((1, 2)) & (x[:, 0, 0, 0] <= params)
        return jnp.eye(4)[jnp.where(shines, 2, x[:, 0, 0, 0])]

    model = Model(lambda key: None, lambda params, e, key: 0.0 * e["y"], predict)
    x = np.zeros((8, 6, 6, 1), np.uint8)
    y = np.array([0, 0, 0, 1, 1, 2, 2, 3])
    x[:, 0, 0, 0] = y
    x, y = np.concatenate([x, x[:2]]), np.append(y, [-1, -1])  # whose class nobody knows
    rate = backdoor_success_rate(model, {"x": x, "y": y}, trigger=patch_trigger(2), target=2)
    for limit, expected in ((-1, 0.0), (0, 3 / 6), (1, 5 / 6), (3, 1.0)):
        assert rate(limit)["backdoor_success_rate"] == pytest.approx(expected)


def test_bad_arguments_are_named(data):
    trigger = patch_trigger(2)
    model = Model(lambda key: None, lambda params, e, key: e["y"], lambda params, e: e["y"])
    for make, text in (
        (lambda: label_flip(data, [4], num_classes=10), "clients"),
        (lambda: label_flip(data, [0], num_classes=10, source=3), "both source and target"),
        (lambda: label_flip(data, [0], num_classes=10, source=3, target=10), "target"),
        (lambda: backdoor(data, [0], trigger=trigger, target=1, fraction=2.0), "fraction"),
        (lambda: patch_trigger(9)(jnp.zeros((1, 6, 6, 1))), "does not fit"),
        (lambda: backdoor(data, [0], trigger=lambda x: x[:1], target=1), "keep shape"),
        (
            lambda: backdoor_success_rate(
                model,
                {"x": np.zeros((2, 6, 6, 1)), "y": np.ones(2, int)},
                trigger=trigger,
                target=1,
            ),
            "other classes",
        ),
    ):
        with pytest.raises(ValueError, match=text):
            make()
    with pytest.raises(TypeError, match="labels"):
        label_flip(data, [0], num_classes=10, label="z")
    with pytest.raises(TypeError, match="FederatedDataset"):
        label_flip({}, [0], num_classes=10)
