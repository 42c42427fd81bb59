"""Quantity skew: the laws of the sizes, and labels that stay IID."""

import numpy as np
import pytest

from fedjax_lite.data.partition.partition import owners
from fedjax_lite.data.partition.quantity_skew import lognormal, power_law, quantity_dirichlet, zipf


def _sizes(num_examples, partitioner):
    owner = owners({"x": np.zeros(num_examples, np.uint8)}, partitioner)
    return np.bincount(owner, minlength=partitioner.num_clients)


@pytest.mark.parametrize("sigma", [0.0, 0.3, 0.6])
def test_lognormal_sizes(sigma):
    num_clients, mean = 1500, 1000
    sizes = _sizes(num_clients * mean, lognormal(sigma=sigma, num_clients=num_clients, seed=0))
    assert sizes.mean() == mean
    logs = np.log(sizes)
    # The standard deviation of a normal sample has standard error sigma / sqrt(2 N).
    assert abs(logs.std() - sigma) <= 5 * sigma / np.sqrt(2 * num_clients)
    # E n is fixed, so the mean of log n is log(mean) - sigma^2 / 2.
    assert abs(logs.mean() - np.log(mean) + sigma**2 / 2) <= 10 * sigma / np.sqrt(num_clients)


@pytest.mark.parametrize("exponent", [2.5, 4.0])
def test_power_law_sizes(exponent):
    num_clients = 1000
    sizes = _sizes(1_000_000, power_law(exponent=exponent, num_clients=num_clients, seed=0))
    # log(w) is exponential of rate a - 1, and w starts at 1: the mean excess is 1 / (a - 1).
    excess = np.log(sizes / sizes.min())
    standard_error = 1 / (exponent - 1) / np.sqrt(num_clients)
    assert abs(excess.mean() - 1 / (exponent - 1)) < 5 * standard_error
    for wrong in (exponent + 0.7, exponent - 0.7):
        assert abs(excess.mean() - 1 / (wrong - 1)) > 5 * standard_error


def test_zipf_sizes_are_the_law_and_ranks_are_dealt():
    exponent, num_clients, num_examples = 1.2, 30, 5000
    weights = np.arange(1.0, num_clients + 1) ** -exponent
    quota = num_examples * weights / weights.sum()
    first = _sizes(num_examples, zipf(exponent=exponent, num_clients=num_clients, seed=0))
    other = _sizes(num_examples, zipf(exponent=exponent, num_clients=num_clients, seed=1))
    assert np.abs(np.sort(first)[::-1] - quota).max() < 1
    np.testing.assert_array_equal(np.sort(first), np.sort(other))
    assert not np.array_equal(first, other)


def test_quantity_dirichlet_variance_also_rejects_a_wrong_alpha():
    alpha, num_clients, num_examples = 0.5, 20, 2000
    squares = []
    for seed in range(400):
        maker = quantity_dirichlet(alpha=alpha, num_clients=num_clients, seed=seed)
        share = _sizes(num_examples, maker) / num_examples
        squares.append(np.mean((share - 1 / num_clients) ** 2))
    standard_error = np.std(squares, ddof=1) / 20
    p = 1 / num_clients
    for a, fits in ((alpha, True), (2 * alpha, False), (alpha / 2, False)):
        z = (np.mean(squares) - p * (1 - p) / (a * num_clients + 1)) / standard_error
        assert (abs(z) < 5) == fits


@pytest.mark.parametrize(
    "make",
    [
        lambda m: lognormal(sigma=50.0, num_clients=100, min_size=m),
        lambda m: power_law(exponent=1 + 1e-9, num_clients=100, min_size=m),
        lambda m: zipf(exponent=1e6, num_clients=100, min_size=m),
        lambda m: quantity_dirichlet(alpha=1e-9, num_clients=100, min_size=m),
    ],
)
def test_extreme_skew_gives_all_to_one_but_the_minimum(make):
    free = _sizes(1000, make(0))
    assert free.max() > 500
    assert free.min() == 0
    kept = _sizes(1000, make(5))
    assert kept.min() == 5
    assert np.all(_sizes(1000, make(10)) == 10)


def test_labels_stay_iid():
    y = np.repeat(np.arange(10), 1000)
    owner = owners({"y": y}, lognormal(sigma=1.0, num_clients=10, seed=0))
    for i in range(10):
        mine = y[owner == i]
        share = np.bincount(mine, minlength=10) / len(mine)
        assert np.abs(share - 0.1).max() < 5 * np.sqrt(0.09 / len(mine))
