"""The distributed discrete Gaussian: its draws, its rounding, its divergence, its sum."""

import itertools
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from noisy_exchange import exchange, send

from fedjax_lite.privacy.accounting.discrete_losses import (
    concentrated,
    epsilon_of,
    rounded_norm,
    sum_distance,
)
from fedjax_lite.privacy.discrete.grid import grid_rho, make_grid
from fedjax_lite.privacy.discrete.sampler import discrete_gaussian, thresholds
from fedjax_lite.privacy.discrete.wire import noisy_codes, round_within

DELTA = 1e-5


def pmf(stddev, radius):
    """Probabilities of -radius .. radius, from the definition."""
    k = np.arange(-radius, radius + 1)
    weights = np.exp(-(k**2) / (2 * stddev**2))
    return weights / weights.sum()


def chi_square_limit(degrees):
    """Its 1 - 1e-6 quantile, by Wilson and Hilferty; z = 4.7534."""
    a = 2 / (9 * degrees)
    return degrees * (1 - a + 4.7534 * math.sqrt(a)) ** 3


def chi_square(draws, stddev, assumed):
    """The statistic of draws against `assumed`, and its limit; bins of 25 expected or more."""
    radius = math.ceil(6 * stddev)
    expected = pmf(assumed, radius) * len(draws)
    counts = np.bincount(np.clip(draws, -radius, radius) + radius, minlength=2 * radius + 1)
    enough = expected >= 25
    rest = np.array([counts[~enough].sum()]), np.array([expected[~enough].sum()])
    counts = np.append(counts[enough], rest[0][rest[1] > 5])
    expected = np.append(expected[enough], rest[1][rest[1] > 5])
    return ((counts - expected) ** 2 / expected).sum(), chi_square_limit(len(counts) - 1)


@pytest.mark.parametrize("stddev", [0.4, 1.0, 3.7, 50.0])
def test_draws_have_the_distribution(stddev):
    """Chi-square at 1e-6; it rejects a scale wrong by 10 %."""
    draws = np.asarray(discrete_gaussian(jax.random.key(0), (100_000,), stddev=stddev))
    statistic, limit = chi_square(draws, stddev, stddev)
    assert statistic < limit
    for wrong in (0.9, 1.1):
        statistic, limit = chi_square(draws, stddev, wrong * stddev)
        assert statistic > limit


@pytest.mark.parametrize("stddev", [0.5, 2.0, 30.0])
def test_the_table_is_the_distribution_function(stddev):
    table = thresholds(stddev)
    radius = -table.lowest
    words = table.high.astype(object) * 2**32 + table.low
    expected = np.cumsum(pmf(stddev, radius))[:-1]
    np.testing.assert_allclose((words / 2**64).astype(float), expected, rtol=0, atol=1e-13)
    assert all(a <= b for a, b in itertools.pairwise(words))
    # Beyond the table lies less than 2**-64 (a Gaussian's tail bounds it).
    assert 2 * math.exp(-(radius**2) / (2 * stddev**2)) < 2.0**-64


def test_streams_are_pure_and_their_own():
    draw = lambda seed: discrete_gaussian(jax.random.key(seed), (200,), stddev=5.0)  # noqa: E731
    np.testing.assert_array_equal(draw(0), jax.jit(draw, static_argnums=0)(0))
    assert (np.asarray(draw(0)) != np.asarray(draw(1))).mean() > 0.8
    assert not discrete_gaussian(jax.random.key(0), (5,), stddev=0.0).any()


def test_rounding_is_unbiased_and_bounded():
    """Without a binding bound the mean of many roundings is the value; the bound always holds."""
    values = jnp.array([0.25, -1.75, 3.0, 0.5])
    keys = jax.random.split(jax.random.key(0), 20_000)
    free = jax.jit(jax.vmap(lambda key: round_within(key, values, max_norm=100.0)))(keys)
    spread = np.sqrt(np.array([0.25 * 0.75, 0.25 * 0.75, 0, 0.25]) / 20_000)
    np.testing.assert_array_less(np.abs(np.asarray(free).mean(0) - values), 5 * spread + 1e-6)
    assert (np.abs(np.asarray(free) - np.asarray(values)) < 1).all()
    limit = rounded_norm(float(jnp.linalg.norm(values)), dimension=4, beta=math.exp(-0.5))
    for bound in (limit, 3.3):  # the second is met by rounding towards zero, 3.16, and few others
        within = lambda key: round_within(key, values, max_norm=bound)  # noqa: B023, E731
        rounded = jax.jit(jax.vmap(within))(keys[:500])
        assert np.linalg.norm(rounded, axis=1).max() <= bound
    # A bound that no rounding meets but that towards zero.
    values = jnp.full(100, 0.6)
    assert not round_within(jax.random.key(0), values, max_norm=1.0).any()


def test_rounded_norms():
    """Both bounds of the theorem by hand: norm 10, d = 100, beta = exp(-1/2): sqrt(2 ln) = 1."""
    likely = math.sqrt(100 + 25 + 1 * (10 + 5))
    assert rounded_norm(10, dimension=100, beta=math.exp(-0.5)) == pytest.approx(likely)
    assert rounded_norm(10, dimension=100, beta=0.0) == 20
    assert likely < 20
    assert rounded_norm(0.01, dimension=1, beta=0.9) < 1.01


def test_concentrated_of_wide_noise_is_the_gaussians():
    """tau vanishes for sigma of several steps: rho = norm^2 / (2 n sigma^2)."""
    assert concentrated(3.0, stddev=5.0, num_clients=10, dimension=1000) == pytest.approx(
        9 / (2 * 10 * 25), rel=1e-12
    )
    assert sum_distance(0.5, 2) == pytest.approx(10 * math.exp(-(math.pi**2) / 4))
    narrow = concentrated(1.0, stddev=0.5, num_clients=10, dimension=1000)
    assert narrow > concentrated(1.0, stddev=0.5, num_clients=10, dimension=1)
    many = concentrated(1.0, stddev=0.6, num_clients=10, dimension=9, most_clients=20)
    assert many > concentrated(1.0, stddev=0.6, num_clients=10, dimension=9)


@pytest.mark.parametrize(("stddev", "num_clients"), [(0.5, 2), (0.7, 3), (1.0, 4)])
@pytest.mark.parametrize("shift", [1, 2, 3])
def test_renyi_divergence_of_sums_is_below_the_bound(stddev, num_clients, shift):
    """The exact divergence in one dimension, from convolutions, at several orders."""
    radius = 40
    one = pmf(stddev, radius)
    total = one
    for _ in range(num_clients - 1):
        total = np.convolve(total, one)
    size = len(total)
    p, q = total[shift:], total[: size - shift]
    keep = (p > 1e-250) & (q > 1e-250)
    rho = concentrated(float(shift), stddev=stddev, num_clients=num_clients, dimension=1)
    for order in (1.01, 2.0, 5.0, 10.0):
        powers = order * np.log(p[keep]) + (1 - order) * np.log(q[keep])
        divergence = np.logaddexp.reduce(powers) / (order - 1)
        assert divergence <= rho * order * (1 + 1e-9)
    assert rho < 20 * shift**2 / (2 * num_clients * stddev**2), "the bound says something"


def test_epsilon_of_a_gaussian():
    """Between the exact Gaussian (mu = 1: 4.377178) and dp-accounting's RDP (4.728507)."""
    assert 4.377178 < epsilon_of(0.5, delta=DELTA) <= 4.728507
    # 50 rounds at z = 5: 6.572970 exactly, 7.077392 by RDP.
    assert 6.572970 < epsilon_of(50 / (2 * 25), delta=DELTA) <= 7.077392
    # Any order is a bound; the function takes the best of them.
    for order in (2.0, 5.0, 20.0):
        bound = 0.5 * order + math.log(1 / (order * DELTA)) / (order - 1) + math.log1p(-1 / order)
        assert epsilon_of(0.5, delta=DELTA) <= bound
    assert epsilon_of(0.0, delta=DELTA) == 0
    assert epsilon_of(math.inf, delta=DELTA) == math.inf


def test_epsilon_falls_to_the_continuous_gaussians_with_the_bits():
    """More bits, a finer grid: rho tends to 1 / (2 z^2) from above."""
    rhos = []
    for bits in (12, 14, 16, 20):
        grid = make_grid(clip=1.0, cohort_size=100, dimension=1000, stddev=0.1, bits=bits)
        rhos.append(grid_rho(grid, num_clients=100))
    assert all(a > b for a, b in itertools.pairwise(rhos))
    assert rhos[-1] > 0.5
    assert rhos[-1] == pytest.approx(0.5, rel=2e-3)
    assert rhos[0] > 0.505


def test_the_sum_without_noise_is_the_clipped_mean():
    """z = 0: within the rounding of the grid; norms above the clip are scaled down."""
    rng = np.random.default_rng(0)
    updates = jnp.asarray(rng.normal(size=(6, 50)), jnp.float32)
    norms = np.linalg.norm(updates, axis=1)
    clip = float(np.median(norms))
    grid = make_grid(clip=clip, cohort_size=6, dimension=50, stddev=0.0, bits=20)
    got, codes = send(grid, updates, cohort_size=6)
    expected = (np.asarray(updates) * np.minimum(1, clip / norms)[:, None]).mean(0)
    np.testing.assert_allclose(got, expected, atol=6 * grid.step / math.sqrt(6))
    assert codes.shape == (6, 64)
    assert int(codes.max()) < 2**20
    assert int(codes.max()) > 2**19, "negative numbers wrap"


def test_noise_has_the_stated_scale():
    """The variance of the mean is n sigma^2 / m^2 (and rounding below it); others are rejected."""
    size, num_clients, stddev = 4096, 4, 0.5
    grid = make_grid(clip=1.0, cohort_size=num_clients, dimension=size, stddev=stddev, bits=18)
    got, _ = send(grid, jnp.zeros((num_clients, size)), cohort_size=num_clients)
    expected = num_clients * stddev**2 / num_clients**2
    # Relative standard error of a variance of 4096 draws: 2.2 %.
    assert got.var() == pytest.approx(expected, rel=0.11)
    assert abs(got.mean()) < 5 * math.sqrt(expected / size)
    for wrong in (4 / 9, 9 / 4):
        assert got.var() != pytest.approx(wrong * expected, rel=0.11)


def test_decoding_is_unbiased():
    """The mean over many keys is the clipped mean."""
    updates = jnp.array([[0.3, -0.2, 0.1, 0.0, 0.5], [0.1, 0.4, -0.6, 0.2, 0.0]])
    grid = make_grid(clip=1.0, cohort_size=2, dimension=5, stddev=0.3, bits=14)
    keys = jax.random.split(jax.random.key(0), 60)
    draws = jax.jit(jax.vmap(lambda key: exchange(grid, updates, key, cohort_size=2)[0]))(keys)
    draws = np.asarray(draws)
    spread = math.sqrt((2 * 0.09 + 2 * grid.step**2 / 4) / 4 / 60)
    assert np.abs(draws.mean(0) - np.asarray(updates).mean(0)).max() < 5 * spread


def test_clients_draw_noise_of_their_own():
    """Equal updates, different codes (defect 18 of the list)."""
    grid = make_grid(clip=1.0, cohort_size=3, dimension=64, stddev=0.5, bits=16)
    _, codes = send(grid, jnp.zeros((3, 64)), cohort_size=3)
    for a, b in ((0, 1), (0, 2), (1, 2)):
        assert (np.asarray(codes[a]) != np.asarray(codes[b])).mean() > 0.9


def test_one_client_moves_the_sum_by_the_stated_norm_only():
    """Huge, NaN or infinite updates: without noise the integer vector stays within the bound."""
    grid = make_grid(clip=1.0, cohort_size=2, dimension=16, stddev=0.0, bits=12)
    uplink = noisy_codes(grid, size=16)
    update = jax.jit(uplink.update)
    for value in (
        jnp.full(16, 1e30),
        jnp.full(16, jnp.nan),
        jnp.eye(16)[3] * jnp.inf,
        jnp.ones(16),
    ):
        _, coded = update(jax.random.key(0), (), value)
        codes = np.asarray(coded.codes).astype(int)
        centred = np.where(codes >= 2**11, codes - 2**12, codes)
        assert np.linalg.norm(centred) <= grid.norm
        assert np.isfinite(value).all() or not centred.any()


def test_wrapping_is_as_rare_as_stated():
    """All clients send the same update of norm c, the worst case: tail 2 allows 2 exp(-2)."""
    directions = np.random.default_rng(0).normal(size=(8, 256))
    directions /= np.linalg.norm(directions, axis=1, keepdims=True)
    updates = jnp.asarray(np.repeat(directions[:, None], 8, axis=1), jnp.float32)
    keys = jax.random.split(jax.random.key(0), 8)
    wrapped = {}
    for tail in (1.0, 2.0, 4.0):
        grid = make_grid(
            clip=1.0, cohort_size=8, dimension=256, stddev=0.02, bits=12, tail=tail
        )  # fmt: skip
        once = lambda updates, key: exchange(grid, updates, key, cohort_size=8)[1]  # noqa: B023, E731
        centred = np.asarray(jax.jit(jax.vmap(once))(updates, keys)).astype(int)
        centred = np.where(centred >= 2**11, centred - 2**12, centred).sum(1)
        count = (np.abs(centred) > 2**11).sum()
        wrapped[tail] = count / (8 * 256)
        assert wrapped[tail] <= 2 * math.exp(-(tail**2) / 2) + 0.01
    assert wrapped[1.0] > 0.1, "the bound is not idle"
    assert wrapped[4.0] == 0
