"""The keyed bijection: exact for every size, uniform by chi-square, and tests that can fail."""

import functools
import itertools
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy import stats

from fedjax_lite.engine import shuffle
from fedjax_lite.engine.shuffle import permute, shuffle_index

# Every p-value below is compared with this: some 300 of them, so that a sound shuffle fails with
# probability 3e-5 over the choice of SEED, and a biased one falls many orders of magnitude lower.
ALPHA = 1e-7
SEED = 20240229


@functools.partial(jax.jit, static_argnums=(1,))
def sample_permutations(keys, width, size):
    """Images `[keys, width]` of 0 .. width-1 (only the first `size` columns mean anything)."""
    return jax.vmap(lambda key: shuffle_index(key, jnp.arange(width), size))(keys)


def keys(count, seed=SEED):
    return jax.random.split(jax.random.key(seed), count)


def marginal_p_value(perms):
    """Of all `n x n` counts at once.

    The centred permutation matrix of a uniform permutation has covariance P (x) P / (n - 1), with
    P the projection off the constants, so (n - 1) / K * sum (N_ij - K/n)^2 -> chi2((n - 1)^2).
    """
    count, n = perms.shape
    cells = np.bincount((np.arange(n) * n + perms).ravel(), minlength=n * n)
    statistic = (n - 1) / count * ((cells - count / n) ** 2).sum()
    return stats.chi2.sf(statistic, (n - 1) ** 2)


def pair_p_value(perms, i):
    """Of the joint images of `i` and `i + 1` over the n (n - 1) ordered pairs."""
    count, n = perms.shape
    cells = np.bincount(perms[:, i] * n + perms[:, i + 1], minlength=n * n).reshape(n, n)
    off = cells[~np.eye(n, dtype=bool)]
    assert off.sum() == count, "two indices share an image"
    expected = count / (n * (n - 1))
    return stats.chi2.sf(((off - expected) ** 2 / expected).sum(), n * (n - 1) - 1)


def order_p_value(perms):
    """Of all n! permutations."""
    count, n = perms.shape
    code = perms @ (n ** np.arange(n))
    every = np.array(list(itertools.permutations(range(n)))) @ (n ** np.arange(n))
    cells = np.array([(code == c).sum() for c in every])
    assert cells.sum() == count, "not a permutation"
    expected = count / math.factorial(n)
    return stats.chi2.sf(((cells - expected) ** 2 / expected).sum(), math.factorial(n) - 1)


def independence_p_value(first, second, n):
    """Of the joint distribution of two values in [0, n), against the uniform on n^2 cells."""
    cells = np.bincount(first * n + second, minlength=n * n)
    expected = len(first) / n**2
    return stats.chi2.sf(((cells - expected) ** 2 / expected).sum(), n * n - 1)


@pytest.fixture(scope="module")
def small():
    """20,000 permutations of every size from 2 to 20."""
    ks = keys(20_000)
    return {n: np.asarray(sample_permutations(ks, 20, n))[:, :n] for n in range(2, 21)}


# -- exactness ------------------------------------------------------------------------------


def test_bijection_for_every_size_up_to_3000():
    @functools.partial(jax.jit, static_argnums=(1,))
    def images(sizes, width):
        index = jnp.arange(width, dtype=jnp.int32)

        def one(n):
            out = permute(jax.random.bits(jax.random.key(n), (2,), jnp.uint32), 3, index, n)
            return jnp.where(index < n, out, index)

        return jax.vmap(one)(sizes)

    for width in (750, 1500, 2250, 3000):
        sizes = np.arange(width - 749, width + 1)
        out = np.asarray(images(sizes, width))
        inside = np.arange(width) < sizes[:, None]
        assert (out[inside] < np.broadcast_to(sizes[:, None], out.shape)[inside]).all()
        assert (out >= 0).all()
        np.testing.assert_array_equal(
            np.sort(out, axis=1), np.broadcast_to(np.arange(width), out.shape)
        )


def test_bijection_of_a_million():
    out = np.asarray(jax.jit(shuffle_index)(jax.random.key(1), jnp.arange(10**6), 10**6))
    assert (np.bincount(out, minlength=10**6) == 1).all()
    # No trace of the order: the rank correlation of a random permutation has deviation 1e-3.
    assert abs(np.corrcoef(out, np.arange(10**6))[0, 1]) < 6e-3


@pytest.mark.sample(2)
@pytest.mark.parametrize("n", [2**31 - 1, 2**31 - 2, 2**30, 2**24 + 1])
def test_large_sizes_stay_in_range_and_distinct(n):
    rng = np.random.default_rng(0)
    index = np.unique(np.concatenate([[0, 1, n // 2, n - 2, n - 1], rng.integers(0, n, 200_000)]))
    out = np.asarray(jax.jit(shuffle_index)(jax.random.key(2), index.astype(np.int32), n))
    assert out.dtype == np.int32
    assert out.min() >= 0
    assert out.max() < n
    assert len(np.unique(out)) == len(index)
    cells = np.bincount((out.astype(np.int64) * 64 // n).astype(int), minlength=64)
    expected = len(out) / 64
    assert stats.chi2.sf(((cells - expected) ** 2 / expected).sum(), 63) > ALPHA


def test_size_zero_is_treated_as_one_and_sizes_may_be_traced():
    assert shuffle_index(jax.random.key(0), jnp.arange(1), 0).tolist() == [0]
    assert shuffle_index(jax.random.key(0), jnp.arange(1), 1).tolist() == [0]
    index = jnp.arange(37)
    fixed = shuffle_index(jax.random.key(5), index, 37)
    traced = jax.jit(shuffle_index)(jax.random.key(5), index, jnp.int32(37))
    np.testing.assert_array_equal(fixed, traced)
    # Element by element: the image of an index does not depend on which others are asked for.
    one = jax.jit(shuffle_index)
    alone = [int(one(jax.random.key(5), jnp.int32(i), 37)) for i in (0, 17, 36)]
    assert alone == [int(fixed[i]) for i in (0, 17, 36)]


# -- uniformity -----------------------------------------------------------------------------


def test_every_order_is_equally_likely(small):
    for n in (2, 3, 4, 5):
        assert order_p_value(small[n]) > ALPHA, n


def test_marginals_are_uniform_for_sizes_2_to_20(small):
    for n, perms in small.items():
        assert marginal_p_value(perms) > ALPHA, n


@pytest.mark.sample(1)
@pytest.mark.parametrize("first", range(21, 25))
def test_marginals_are_uniform_for_sizes_up_to_100(first):
    """Every fourth size."""
    ks = keys(2_000, SEED + 1)
    for n in range(first, 101, 4):
        perms = np.asarray(sample_permutations(ks, 100, n))[:, :n]
        assert marginal_p_value(perms) > ALPHA, n


def test_images_of_neighbours_are_jointly_uniform(small):
    for n in range(3, 21):
        for i in {0, n // 2 - 1, n - 2}:
            assert pair_p_value(small[n], i) > ALPHA, (n, i)


def test_the_tests_have_power(small, monkeypatch):
    """Planted shuffles that are bijections, yet weak, are rejected by the very same statistics."""
    rng = np.random.default_rng(0)
    n, count = 7, 20_000
    shift_only = (np.arange(n) + rng.integers(0, n, (count, 1))) % n
    assert marginal_p_value(shift_only) > ALPHA  # marginals alone do not see it
    assert pair_p_value(shift_only, 0) < 1e-100
    assert order_p_value((np.arange(4) + rng.integers(0, 4, (count, 1))) % 4) < 1e-100
    no_shuffle = np.broadcast_to(np.arange(n), (count, n))
    assert marginal_p_value(no_shuffle) < 1e-100
    # The last index is a little too often fixed: 2 % of the permutations leave it in place.
    biased = small[5].copy()
    biased[:400] = np.arange(5)
    assert order_p_value(biased) < ALPHA

    # The library's own shuffle with too few rounds, and a four-round Feistel with cycle walking.
    monkeypatch.setattr(shuffle, "NUM_ROUNDS", 5)
    weak = jax.jit(jax.vmap(lambda k: shuffle_index(k, jnp.arange(n), n)))
    weak = np.asarray(weak(keys(count)))
    assert (np.sort(weak, axis=1) == np.arange(n)).all()
    assert marginal_p_value(weak) < ALPHA
    feistel = np.asarray(feistel_permutations(rng.integers(0, 2**32, (count, 4)), n))
    assert (np.sort(feistel, axis=1) == np.arange(n)).all()
    assert min(marginal_p_value(feistel), pair_p_value(feistel, 0)) < ALPHA


def feistel_permutations(round_keys, n):
    """Four Feistel rounds on 2 + 2 bits, walked until the image lies below `n` <= 16."""

    def encrypt(x):
        left, right = x >> 2, x & 3
        for r in range(4):
            word = np.asarray(
                shuffle.mix(jnp.asarray(round_keys[:, r : r + 1] + right, jnp.uint32))
            )
            left, right = right, left ^ (word & 3).astype(np.int64)
        return left << 2 | right

    x = np.broadcast_to(np.arange(n), (len(round_keys), n))
    x = encrypt(x)
    for _ in range(16):
        x = np.where(x < n, x, encrypt(x))
    return x


# -- keys and epochs ------------------------------------------------------------------------


def test_keys_and_epochs_give_different_orders():
    index = jnp.arange(50)
    seeds = jnp.stack([jax.random.bits(k, (2,), jnp.uint32) for k in keys(4)])
    order = jax.jit(permute)
    orders = {tuple(order(seed, epoch, index, 50).tolist()) for seed in seeds for epoch in range(8)}
    assert len(orders) == 4 * 8
    # Either word of the seed alone changes the order, and so does its lowest bit.
    base = jnp.array([123, 456], jnp.uint32)
    for flip in ([1, 0], [0, 1], [2, 0], [2**31, 0], [0, 2**31]):
        other = base ^ jnp.array(flip, jnp.uint32)
        assert not np.array_equal(order(base, 0, index, 50), order(other, 0, index, 50)), flip


@pytest.mark.parametrize("n", [3, 5, 8])
def test_epochs_of_one_seed_are_uniform_and_independent(n):
    epochs = jnp.arange(20_000)
    seed = jax.random.bits(jax.random.key(9), (2,), jnp.uint32)
    perms = np.asarray(jax.jit(jax.vmap(lambda e: permute(seed, e, jnp.arange(n), n)))(epochs))
    assert marginal_p_value(perms) > ALPHA
    assert pair_p_value(perms, 0) > ALPHA
    for lag in (1, 2, 16):
        for i, j in ((0, 0), (0, n - 1)):
            assert independence_p_value(perms[lag:, i], perms[:-lag, j], n) > ALPHA, (lag, i, j)


@pytest.mark.parametrize("n", [2, 4, 6])
def test_two_epochs_are_independent_over_seeds(n):
    seeds = jax.vmap(lambda k: jax.random.bits(k, (2,), jnp.uint32))(keys(20_000))
    image = jax.jit(jax.vmap(lambda s, e: permute(s, e, jnp.arange(n), n), in_axes=(0, None)))
    first, second = np.asarray(image(seeds, 0)), np.asarray(image(seeds, 1))
    for i in range(n):
        assert independence_p_value(first[:, 0], second[:, i], n) > ALPHA, i
    # Power: an epoch counter that is ignored, or that only shifts the order, is caught.
    assert independence_p_value(first[:, 0], first[:, 0], n) < 1e-100
    assert independence_p_value(first[:, 0], (first[:, 0] + 1) % n, n) < 1e-100


def test_mix_is_a_bijection_that_flips_half_of_the_bits():
    rng = np.random.default_rng(0)
    x = rng.integers(0, 2**32, 20_000, dtype=np.uint32)
    assert len(np.unique(np.asarray(shuffle.mix(jnp.arange(2**18, dtype=jnp.uint32))))) == 2**18
    mix = jax.jit(shuffle.mix)
    plain = np.asarray(mix(x))
    for bit in range(32):
        flipped = np.asarray(mix(x ^ np.uint32(1 << bit)))
        share = np.unpackbits((plain ^ flipped).view(np.uint8)).mean()
        assert 0.47 < share < 0.53, bit
