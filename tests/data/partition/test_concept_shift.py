"""Concept shift: labels by group, features as they were, groups as `rotation` deals them."""

import numpy as np
import pytest

import fedjax_lite as fl
from fedjax_lite.data.partition.partition import iid, owners

TRAIN = {"x": np.arange(60.0), "y": np.arange(60) % 3 - (np.arange(60) == 7)}
TABLE = np.array([[0, 1, 2], [1, 2, 0], [2, 1, 0]])


def test_each_group_has_its_permutation():
    dealt = iid(num_clients=7, seed=1)
    data = fl.data.partition(TRAIN, dealt, fl.data.label_permutation(TABLE, seed=5))
    group = fl.data.dealt_groups(7, 3, seed=5)
    assert sorted(np.bincount(group).tolist()) == [2, 2, 3]
    for i, owner in enumerate(owners(TRAIN, dealt)):
        y = int(TRAIN["y"][i])
        assert int(data.examples["y"][i]) == (TABLE[group[owner]][y] if y >= 0 else y)
    np.testing.assert_array_equal(data.examples["x"], TRAIN["x"])
    assert data.examples["y"].dtype == fl.data.partition(TRAIN, dealt).examples["y"].dtype


def test_signs_turn_the_relation():
    """Least squares of either group on its own: slopes 2 and -2."""
    train = {"x": np.linspace(-1, 1, 40), "y": 2 * np.linspace(-1, 1, 40)}
    dealt = iid(num_clients=4, seed=0)
    data = fl.data.partition(train, dealt, fl.data.label_sign(seed=3))
    group = fl.data.dealt_groups(4, 2, seed=3)[owners(train, dealt)]
    for g, slope in ((0, 2.0), (1, -2.0)):
        x, y = (
            np.asarray(data.examples["x"])[group == g],
            np.asarray(data.examples["y"])[group == g],
        )
        np.testing.assert_allclose((x @ y) / (x @ x), slope, rtol=1e-6)


def test_groups_are_those_of_rotation():
    """A picture whose corner is lit: where the corner went tells the client's angle."""
    image = np.zeros((8, 5, 5), np.uint8)
    image[:, 0, 0] = 255
    data = fl.data.partition(
        {"x": image},
        fl.data.iid(num_clients=8, seed=0),
        fl.data.rotation([0, 90, 180, 270], seed=2),
    )
    dealt = owners({"x": image}, fl.data.iid(num_clients=8, seed=0))
    group = fl.data.dealt_groups(8, 4, seed=2)[dealt]
    corners = np.array([(0, 0), (4, 0), (4, 4), (0, 4)])  # counterclockwise
    for picture, g in zip(np.asarray(data.examples["x"]), group, strict=True):
        assert picture[tuple(corners[g])] == 255


@pytest.mark.parametrize(
    ("make", "kind", "match"),
    [
        (lambda: fl.data.label_permutation([[0, 0]]), ValueError, r"permutations\[0\] must hold"),
        (lambda: fl.data.label_permutation([0, 1]), ValueError, r"permutations must be integers"),
        (lambda: fl.data.label_sign([np.nan]), ValueError, r"signs must be finite"),
        (lambda: fl.data.dealt_groups(0, 2), ValueError, r"num_clients"),
    ],
)
def test_bad_settings(make, kind, match):
    with pytest.raises(kind, match=match):
        make()


def test_bad_labels():
    dealt = iid(num_clients=2, seed=0)
    with pytest.raises(ValueError, match=r"must lie below 2, .* got 2"):
        fl.data.partition(TRAIN, dealt, fl.data.label_permutation([[0, 1], [1, 0]]))
    with pytest.raises(TypeError, match="label_permutation renames"):
        fl.data.partition(TRAIN, dealt, fl.data.label_sign())
    with pytest.raises(ValueError, match="label='z' is not among"):
        fl.data.partition(TRAIN, dealt, fl.data.label_sign(label="z"))
