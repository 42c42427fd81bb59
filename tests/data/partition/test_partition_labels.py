"""Label skew: moments that the equations demand, limits in alpha, time, shards and classes."""

import time

import numpy as np
import pytest

from fedjax_lite.data.partition import apportion
from fedjax_lite.data.partition.label_skew import dirichlet, dirichlet_mixture, dirichlet_quantity
from fedjax_lite.data.partition.partition import label_counts, owners, partition
from fedjax_lite.data.partition.shards import classes_per_client, shards


def _table(train, partitioner):
    owner = owners(train, partitioner)
    table = np.zeros((partitioner.num_clients, train["y"].max() + 1), np.int64)
    np.add.at(table, (owner, train["y"]), 1)
    return table


def _z(samples, expected):
    """How many standard errors the mean of independent samples is off."""
    return (samples.mean() - expected) / (samples.std(ddof=1) / np.sqrt(len(samples)))


@pytest.mark.parametrize("alpha", [0.1, 0.5, 5.0])
def test_dirichlet_moments_also_reject_a_wrong_alpha(alpha):
    num_clients, num_classes, per_class = 25, 300, 1000
    train = {"y": np.repeat(np.arange(num_classes), per_class)}
    shares = _table(train, dirichlet(alpha=alpha, num_clients=num_clients, seed=1)) / per_class
    p = 1 / num_clients

    def variance(a):
        return p * (1 - p) / (a * num_clients + 1)

    squares = np.mean((shares - p) ** 2, axis=0)  # one independent sample a class
    assert abs(_z(squares, variance(alpha))) < 5
    assert abs(_z(squares, variance(2 * alpha))) > 5
    assert abs(_z(squares, variance(alpha / 2))) > 5
    for client in range(num_clients):
        assert abs(_z(shares[client], p)) < 5


@pytest.mark.parametrize("symmetric", [False, True])
def test_mixture_draws_have_the_moments_of_the_dirichlet_multinomial(symmetric):
    alpha, size, num_clients = 0.8, 200, 4000
    p = np.full(4, 0.25) if symmetric else np.array([0.4, 0.3, 0.2, 0.1])
    concentration = alpha * 4 if symmetric else alpha
    rng = np.random.default_rng(0)
    logs = apportion.log_dirichlet(rng, concentration * p, (num_clients, 4))
    stock = np.full(4, 10**9)
    shares = np.array([apportion.deal(rng, size, row, stock) for row in logs]) / size

    def variance(a):  # of a Dirichlet-multinomial share
        return p * (1 - p) * (size + a) / (size * (1 + a))

    for k in range(4):
        assert abs(_z(shares[:, k], p[k])) < 5
        squares = (shares[:, k] - p[k]) ** 2
        assert abs(_z(squares, variance(concentration)[k])) < 5
        assert abs(_z(squares, variance(2 * concentration)[k])) > 5
        assert abs(_z(squares, variance(concentration / 2)[k])) > 5


@pytest.mark.parametrize("symmetric", [False, True])
def test_mixture_partition_is_nearest_to_its_own_alpha(symmetric):
    alpha, num_clients, num_classes = 1.0, 200, 10
    train = {"y": np.repeat(np.arange(num_classes), 2000)}
    maker = dirichlet_mixture(alpha=alpha, num_clients=num_clients, seed=0, symmetric=symmetric)
    shares = _table(train, maker) / 100
    np.testing.assert_allclose(shares.sum(1), 1.0)
    total = alpha * num_classes if symmetric else alpha
    p = 1 / num_classes
    candidates = total * np.array([0.25, 0.5, 1.0, 2.0, 4.0])
    variances = p * (1 - p) * (100 + candidates) / (100 * (1 + candidates))
    distance = np.abs(np.log(shares.var() / variances))  # all are dealt: not quite the law
    assert distance.argmin() == 2


def test_alpha_to_infinity_is_iid():
    train = {"y": np.repeat(np.arange(10), 400)}
    even = _table(train, dirichlet(alpha=1e9, num_clients=20, seed=0))
    assert np.abs(even - 20).max() <= 1
    # A client's counts are multinomial(200, 1/10) about the shares of what is left. With V_j the
    # variance of the stock when j clients are to come, V_{j-1} = V_j ((j-1)/j)^2 + 18, so that
    # the last client's variance is 18 (1 + 1/4 + 1/9 + ...) < 18 pi^2 / 6; without the
    # correction for what is left it is 18 (N - 1).
    for seed in range(3):
        table = _table(train, dirichlet_mixture(alpha=1e9, num_clients=20, seed=seed))
        spread = np.sqrt(200 * 0.1 * 0.9)
        assert np.abs(table - 20).max() < 5 * spread * np.sqrt(np.pi**2 / 6)
        assert table.std() == pytest.approx(spread, rel=0.3)


def test_alpha_to_zero_is_one_class_a_client_or_one_client_a_class():
    train = {"y": np.repeat(np.arange(10), 400)}
    spread = _table(train, dirichlet(alpha=1e-9, num_clients=20, seed=0))
    assert np.all((spread > 0).sum(axis=0) == 1)
    for symmetric in (False, True):
        maker = dirichlet_mixture(alpha=1e-9, num_clients=40, seed=0, symmetric=symmetric)
        table = _table(train, maker)  # 100 each, and classes of 400: whole clients
        assert np.all((table > 0).sum(axis=1) == 1)
        assert np.all((table > 0).sum(axis=0) == 4)


@pytest.mark.parametrize("alpha", [1e-300, 1e-9, 0.01, 1e9, 1e300])
@pytest.mark.parametrize("balanced", [False, True])
def test_ends_soon_with_as_many_clients_as_examples(alpha, balanced):
    train = {"y": np.repeat(np.arange(10), 200)}
    start = time.process_time()
    for num_clients in (1990, 2000):
        maker = dirichlet(
            alpha=alpha, num_clients=num_clients, seed=0, min_size=1, balanced=balanced
        )
        sizes = np.bincount(owners(train, maker), minlength=num_clients)
        assert sizes.min() >= 1
        assert sizes.sum() == 2000
        mixture = dirichlet_mixture(alpha=alpha, num_clients=num_clients, seed=0)
        sizes = np.bincount(owners(train, mixture), minlength=num_clients)
        assert sizes.min() >= 1
        assert sizes.max() <= 2
    assert time.process_time() - start < 10


def test_balanced_gives_nothing_to_the_sated():
    train = {"y": np.repeat(np.arange(10), 300)}
    table = _table(train, dirichlet(alpha=0.1, num_clients=10, seed=0, balanced=True))
    before = np.cumsum(table, axis=1) - table
    assert np.all(table[before >= 300] == 0)
    assert np.any(before >= 300)
    free = _table(train, dirichlet(alpha=0.1, num_clients=10, seed=0))
    assert free.sum(1).std() > table.sum(1).std()


def test_min_size_moves_as_little_as_it_must():
    train = {"y": np.repeat(np.arange(10), 100)}
    free = owners(train, dirichlet(alpha=0.05, num_clients=30, seed=0))
    filled = owners(train, dirichlet(alpha=0.05, num_clients=30, seed=0, min_size=10))
    lacking = np.maximum(10 - np.bincount(free, minlength=30), 0).sum()
    assert lacking > 0
    assert np.sum(free != filled) == lacking


def test_given_sizes_and_log_normal_sizes_with_label_skew():
    train = {"y": np.repeat(np.arange(10), 100)}
    sizes = [500, 300, 100, 99, 1, 0]
    table = _table(train, dirichlet_quantity(alpha=1e-9, num_clients=6, sizes=sizes))
    assert table.sum(1).tolist() == sizes
    drawn = _table(train, dirichlet_quantity(alpha=0.5, num_clients=20, sigma=0.0))
    assert np.all(drawn.sum(1) == 50)
    uneven = _table(train, dirichlet_quantity(alpha=0.5, num_clients=20, sigma=2.0, min_size=3))
    assert uneven.sum(1).min() >= 3
    assert uneven.sum(1).max() > 100


def test_shards_in_the_published_setting():
    rng = np.random.default_rng(0)
    train = {"y": rng.permutation(np.repeat(np.arange(10), 6000)).astype(np.uint8)}
    data = partition(train, shards(num_clients=100, shards_per_client=2, seed=0))
    table = label_counts(data)
    assert np.all(table.sum(1) == 600)
    assert np.all(np.isin(table, [0, 300, 600]))
    # Two of 200 shards, 20 a class: the same class with probability 19/199, so of 100 clients
    # 9.5 have one class; all others have two.
    assert 0 < np.sum((table > 0).sum(1) == 1) < 30
    assert np.all((table > 0).sum(1) <= 2)


def test_shards_are_the_documented_recipe():
    train = {"y": np.random.default_rng(1).integers(0, 10, 1437)}
    owner = owners(train, shards(num_clients=10, shards_per_client=2, seed=7))
    pieces = np.array_split(np.argsort(train["y"], kind="stable"), 20)
    dealt = np.random.default_rng(7).permutation(20).reshape(10, 2)
    for i in range(10):
        mine = np.concatenate([pieces[s] for s in dealt[i]])
        np.testing.assert_array_equal(np.flatnonzero(owner == i), np.sort(mine))


@pytest.mark.parametrize(
    ("num_clients", "num_classes"), [(20, 1), (20, 3), (4, 3), (5, 2), (3, 10)]
)
def test_classes_per_client(num_clients, num_classes):
    train = {"y": np.repeat(np.arange(10), 100)}
    for seed in range(5):
        maker = classes_per_client(num_classes=num_classes, num_clients=num_clients, seed=seed)
        table = _table(train, maker)
        assert np.all((table > 0).sum(1) == num_classes)
        for column in table.T:
            held = column[column > 0]
            assert held.max() - held.min() <= 1
