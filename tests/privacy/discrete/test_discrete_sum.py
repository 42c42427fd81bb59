"""Sums of discrete Gaussians directly: against convolution, exact curves and the theorem."""

import itertools
import math

import numpy as np
import pytest

from fedjax_lite.privacy.accounting.discrete_losses import (
    concentrated,
    epsilon_of,
    rounds_epsilon,
    sum_distance,
)
from fedjax_lite.privacy.accounting.discrete_sum import divergence, log_ripple, shifted_divergence
from fedjax_lite.privacy.discrete.mechanism import distributed_discrete_gaussian

CASES = [(0.5, 1), (0.5, 2), (0.5, 7), (0.5, 40), (0.8, 5), (1.3, 4)]


def convolved(stddev, num_clients, reach=40):
    """The pmf of the sum, by convolving one term with itself, and where its zero lies."""
    one = np.exp(-(np.arange(-reach, reach + 1) ** 2.0) / (2 * stddev**2))
    pmf = one / one.sum()
    for _ in range(num_clients - 1):
        pmf = np.convolve(pmf, one / one.sum())
    return pmf, len(pmf) // 2


@pytest.mark.parametrize(("stddev", "num_clients"), CASES)
def test_the_periodic_factor_is_that_of_a_convolution(stddev, num_clients):
    pmf, zero = convolved(stddev, num_clients)
    width = int(6 * stddev * math.sqrt(num_clients))
    x = np.arange(-width, width + 1)
    factor = log_ripple(stddev, num_clients)[x % num_clients]
    direct = factor - x**2 / (2 * num_clients * stddev**2)
    np.testing.assert_allclose(direct, np.log(pmf[zero + x]), atol=1e-9)


@pytest.mark.parametrize(("stddev", "num_clients"), CASES)
@pytest.mark.parametrize("alpha", [1.3, 2.0, 5.0])
def test_the_divergence_is_that_of_the_convolution(stddev, num_clients, alpha):
    pmf, zero = convolved(stddev, num_clients)
    width = int(6 * stddev * math.sqrt(num_clients)) + 12
    for shift in (1, 2):
        x = np.arange(-width, width + 1)
        moved, still = pmf[zero + x - shift], pmf[zero + x]
        keep = (moved > 1e-200) & (still > 1e-200)
        terms = alpha * np.log(moved[keep]) + (1 - alpha) * np.log(still[keep])
        expected = math.log(np.exp(terms).sum()) / (alpha - 1)
        (got,) = shifted_divergence(
            alpha, np.array([shift]), stddev=stddev, num_clients=num_clients
        )
        assert got >= expected - 1e-12
        assert got == pytest.approx(expected, rel=1e-6, abs=1e-6)


def test_one_term_is_the_discrete_gaussian_of_the_literature():
    """An integer shift of one discrete Gaussian costs alpha k^2 / (2 sigma^2), exactly."""
    got = shifted_divergence(3.0, np.arange(1, 5), stddev=0.7, num_clients=1)
    np.testing.assert_allclose(got, 3.0 * np.arange(1, 5) ** 2 / (2 * 0.49), rtol=1e-6)


def test_vectors_cost_at_most_what_is_said():
    options = {"stddev": 0.5, "num_clients": 30}
    for norm, dimension, alpha in ((1.0, 3, 4.0), (2.3, 3, 2.0), (3.0, 2, 6.0)):
        most = int(norm)
        each = np.concatenate([[0.0], shifted_divergence(alpha, np.arange(1, most + 1), **options)])
        worst = max(
            sum(each[abs(v)] for v in vector)
            for vector in itertools.product(range(most + 1), repeat=dimension)
            if sum(v * v for v in vector) <= norm**2
        )
        said = divergence(alpha, norm=norm, dimension=dimension, **options)
        assert worst <= said * (1 + 1e-12)
        assert said <= 1.5 * worst
    assert divergence(4.0, norm=3.0, dimension=1, **options) == pytest.approx(
        shifted_divergence(4.0, np.arange(1, 4), **options).max()
    )


def exact_epsilon(pmf, shift, rounds, delta):
    """Of `rounds` releases of one coordinate moved by `shift`: the whole product, no bound."""
    moved = np.roll(pmf, shift)
    keep = (pmf > 1e-14) & (moved > 1e-14)  # leaving some out makes delta smaller only
    loss, weight = np.log(moved[keep] / pmf[keep]), moved[keep]
    losses, weights = loss, weight
    for _ in range(rounds - 1):
        losses = (losses[:, None] + loss).ravel()
        weights = (weights[:, None] * weight).ravel()
    low, high = 0.0, 200.0
    for _ in range(60):
        middle = (low + high) / 2
        hockey = (weights * -np.expm1(np.minimum(middle - losses, 0.0))).sum()
        low, high = (middle, high) if hockey > delta else (low, middle)
    return high


@pytest.mark.parametrize(("stddev", "num_clients", "norm"), [(0.5, 8, 2.0), (0.55, 30, 3.0)])
def test_epsilon_is_valid_and_close(stddev, num_clients, norm):
    pmf, _ = convolved(stddev, num_clients, reach=12)
    for rounds in (1, 2):
        part = (norm, stddev, float(num_clients), 1.0, float(num_clients))
        said = rounds_epsilon([(part, rounds)], delta=1e-4)
        exact = max(exact_epsilon(pmf, k, rounds, 1e-4) for k in range(1, int(norm) + 1))
        assert exact <= said <= 1.25 * exact
        rho = concentrated(norm, stddev=stddev, num_clients=num_clients, dimension=1)
        assert said <= epsilon_of(rounds * rho, delta=1e-4)


def test_where_tau_counts_the_bound_is_no_longer_loose():
    """Noise of .63 steps, 1000 clients: tau alone is about 4 a round."""
    dp = distributed_discrete_gaussian(
        clip=1.3, cohort_size=1000, dimension=1, delta=1e-5, bits=16,
        noise_multiplier=0.1 * math.sqrt(1000) / 1.3,
    )  # fmt: skip
    norm, stddev = dp.accountant.entry.numbers[:2]
    assert sum_distance(stddev, 1000) > 3
    rho = concentrated(norm, stddev=stddev, num_clients=1000, dimension=1)
    assert epsilon_of(10 * rho, delta=1e-5) > 80
    assert dp.accountant.spent(10)["epsilon"] < 52
    # One coordinate, one round, exactly: no more than what is said.
    pmf, _ = convolved(stddev, 1000, reach=8)
    exact = exact_epsilon(pmf[np.argmax(pmf > 1e-30) :][: 2 * len(pmf)], int(norm), 1, 1e-5)
    assert exact <= dp.accountant.spent(1)["epsilon"] <= 1.3 * exact


def test_more_clients_than_are_computed_keep_the_theorems_constant_apart():
    many = (100.0, 0.75, 40_000.0, 1.0, 40_000.0)
    tau = sum_distance(0.75, 40_000)
    half = 100.0**2 / (2 * 40_000 * 0.75**2)
    assert divergence(2.0, norm=100.0, stddev=0.75, num_clients=40_000, dimension=1) == math.inf
    said = rounds_epsilon([(many, 5)], delta=1e-5)
    orders = 1 + np.logspace(-2, 3, 4000)
    costs = 5 * (orders * half + tau) + np.log(1 / (orders * 1e-5)) / (orders - 1)
    assert (costs + np.log1p(-1 / orders)).min() <= said + 1e-9
    assert said <= 1.02 * (costs + np.log1p(-1 / orders)).min()
    assert said < epsilon_of(5 * concentrated(100.0, stddev=0.75, num_clients=40_000, dimension=1),
                             delta=1e-5)  # fmt: skip


def test_rounds_of_two_strengths_add_up():
    narrow, wide = (2.0, 0.5, 8.0, 1.0, 8.0), (3.0, 4.0, 8.0, 1.0, 8.0)
    one, other = (rounds_epsilon([(part, 3)], delta=1e-4) for part in (narrow, wide))
    both = rounds_epsilon([(narrow, 3), (wide, 3)], delta=1e-4)
    assert max(one, other) < both < one + other
    assert rounds_epsilon([(narrow, 6)], delta=1e-4) == pytest.approx(
        rounds_epsilon([(narrow, 2), (narrow, 4)], delta=1e-4)
    )
    assert rounds_epsilon([(narrow, 0)], delta=1e-4) == 0
    assert rounds_epsilon([((2.0, 0.0, 8.0, 1.0, 8.0), 1)], delta=1e-4) == math.inf
