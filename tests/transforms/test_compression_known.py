"""Known answers of the compressors, from their formulas, on v = (3, -4, 1, 2)."""

import itertools
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from fedjax_lite import transforms as tr
from fedjax_lite.aggregation.majority_vote import majority_vote
from fedjax_lite.transforms import hadamard
from fedjax_lite.transforms.drive import drive_scale
from fedjax_lite.transforms.powersgd import low_rank, orthonormal
from fedjax_lite.transforms.qsgd import qsgd_variance
from fedjax_lite.transforms.selection import largest
from fedjax_lite.types import Cohort, Message

V = np.array([3.0, -4.0, 1.0, 2.0])
NUM_KEYS = 20_000


@pytest.fixture(autouse=True)
def _float64():
    with jax.enable_x64(True):
        yield


# Compiled, as everywhere here: op by op every shape would make twenty programs of its own.
def once(transform, value=V):
    return np.asarray(once_tree(transform, jnp.asarray(value)))


def once_tree(transform, value):
    sent = jax.jit(lambda key, v: transform.update(key, transform.init(v), v)[1])
    return sent(jax.random.key(0), value)


def many(transform, value=V, num_keys=NUM_KEYS):
    """The transform under many keys, `[num_keys, D]`."""
    value, keys = jnp.asarray(value), jax.random.split(jax.random.key(1), num_keys)
    state = transform.init(value)
    return np.asarray(jax.jit(jax.vmap(lambda k: transform.update(k, state, value)[1]))(keys))


def is_unbiased(draws, value, variance):
    """Mean and variance within 4.5 standard errors; also shows that the scale is not 2/3 or 3/2."""
    n, errors = len(draws), ((draws - value) ** 2).sum(1)
    spread = draws.std(0) / math.sqrt(n)
    np.testing.assert_array_less(abs(draws.mean(0) - value), 4.5 * spread + 1e-9)
    standard_error = errors.std() / math.sqrt(n)
    assert abs(errors.mean() - variance) < 4.5 * standard_error + 1e-9
    for wrong in (2 / 3, 3 / 2):
        assert abs(errors.mean() - wrong * variance) > 4.5 * standard_error


# -- rounding -------------------------------------------------------------------------------


def test_qsgd_two_levels():
    draws = many(tr.qsgd(2), [3.0, 4.0])
    assert set(np.unique(draws.round(12))) == {2.5, 5.0}
    up = (draws > 3.75).mean(0)  # 2 * 3/5 = 1.2, 2 * 4/5 = 1.6
    np.testing.assert_allclose(up, [0.2, 0.6], atol=4.5 * math.sqrt(0.25 / NUM_KEYS))
    assert float(qsgd_variance(jnp.array([3.0, 4.0]), 2)) == pytest.approx(2.5, abs=1e-9)
    is_unbiased(draws, [3.0, 4.0], 2.5)
    d, s = 2, 2
    assert min(d / s**2, math.sqrt(d) / s) * 25 == 12.5 >= 2.5


@pytest.mark.parametrize(("levels", "known"), [(1, 24.7722557505), (4, 1.2608685380)])
def test_qsgd_variance(levels, known):
    scaled = levels * abs(V) / math.sqrt(30)
    part = scaled - np.floor(scaled)
    variance = 30 / levels**2 * (part * (1 - part)).sum()
    assert variance == pytest.approx(known, abs=1e-9)
    assert float(qsgd_variance(jnp.asarray(V), levels)) == pytest.approx(variance, abs=1e-12)
    is_unbiased(many(tr.qsgd(levels)), V, variance)


def test_stochastic_levels():
    step = 7 / 2
    part = (V + 4) / step % 1
    variance = step**2 * (part * (1 - part)).sum()
    assert variance == pytest.approx(5.5, abs=1e-12)
    draws = many(tr.stochastic_levels(3))
    assert set(np.unique(draws)) == {-4.0, -0.5, 3.0}
    is_unbiased(draws, V, variance)


def test_ternary():
    variance = (abs(V) * (4 - abs(V))).sum()
    assert variance == 10
    draws = many(tr.ternary())
    assert set(np.unique(draws)) == {-4.0, 0.0, 4.0}
    taken = (draws != 0).mean(0)
    np.testing.assert_allclose(taken, [0.75, 1, 0.25, 0.5], atol=4.5 * 0.5 / math.sqrt(NUM_KEYS))
    assert taken[1] == 1
    is_unbiased(draws, V, variance)


@pytest.mark.parametrize("levels", [1, 7])
def test_the_mean_over_keys_converges_at_the_rate_of_one_over_root_n(levels):
    draws = many(tr.qsgd(levels))
    variance = float(qsgd_variance(jnp.asarray(V), levels))
    for n in (10, 100):
        means = draws.reshape(-1, n, 4).mean(1)
        assert ((means - V) ** 2).sum(1).mean() == pytest.approx(variance / n, rel=0.2)


# -- signs and selections -------------------------------------------------------------------


def test_scaled_sign():
    np.testing.assert_allclose(once(tr.scaled_sign()), [2.5, -2.5, 2.5, 2.5], atol=1e-12)
    error = ((once(tr.scaled_sign()) - V) ** 2).sum()
    delta = 10**2 / (4 * 30)
    assert delta == pytest.approx(5 / 6)
    assert error == pytest.approx((1 - delta) * 30, abs=1e-9) == pytest.approx(5)


def test_the_sign_of_zero_is_plus():
    np.testing.assert_array_equal(once(tr.scaled_sign(), [0.0, -0.0, -4.0, 4.0]), [2, 2, -2, 2])


def test_sparse_ternary():
    np.testing.assert_allclose(once(tr.sparse_ternary(2)), [3.5, -3.5, 0, 0], atol=1e-12)


def test_top_k():
    sent = once(tr.top_k(2))
    np.testing.assert_array_equal(sent, [3, -4, 0, 0])
    assert ((sent - V) ** 2).sum() == 5 <= (1 - 2 / 4) * 30
    np.testing.assert_array_equal(once(tr.top_k(4)), V)
    np.testing.assert_array_equal(once(tr.top_k(1.0)), V)


def test_top_k_ties_go_to_the_lowest_index():
    np.testing.assert_array_equal(once(tr.top_k(2), [1.0, -2, 2, 2, -2]), [0, -2, 2, 0, 0])
    np.testing.assert_array_equal(once(tr.top_k(3), [0.0, 5, 0, 0]), [0, 5, 0, 0])


def test_top_k_over_the_tree_and_per_leaf():
    value = {"a": jnp.array([3.0, -4.0]), "b": jnp.array([[1.0, 2.0]])}
    whole, leaves = once_tree(tr.top_k(2), value), once_tree(tr.top_k(1, per_leaf=True), value)
    np.testing.assert_array_equal(whole["a"], [3, -4])
    np.testing.assert_array_equal(whole["b"], [[0, 0]])
    np.testing.assert_array_equal(leaves["a"], [0, -4])
    np.testing.assert_array_equal(leaves["b"], [[0, 2]])


select = jax.jit(lambda keys, k: largest(keys, k, num_bits=32))


@pytest.mark.parametrize("seed", range(3))
def test_radix_selection_equals_sorting(seed):
    """Against a stable sort, with many ties, through all digits and for traced `k`."""
    rng = np.random.default_rng(seed)
    for keys in (
        rng.integers(0, 2**32, 500, dtype=np.uint32),
        rng.integers(0, 5, 500).astype(np.uint32),
        (rng.integers(0, 3, 500) << 30).astype(np.uint32),
    ):
        order = np.argsort(~keys, kind="stable")
        for k in (1, 7, 250, 500):
            expected = np.zeros(500, bool)
            expected[order[:k]] = True
            np.testing.assert_array_equal(select(jnp.asarray(keys), k), expected)


def test_random_k_over_all_subsets():
    num_keys = 3000  # a subset drawn a third too often would add 67 to the statistic's 5
    draws = many(tr.random_k(2), num_keys=num_keys)
    outcomes, counts = np.unique(draws, axis=0, return_counts=True)
    expected = np.array(
        [
            [2 * x if i in s else 0 for i, x in enumerate(V)]
            for s in itertools.combinations(range(4), 2)
        ]
    )
    np.testing.assert_array_equal(outcomes, np.unique(expected, axis=0))
    np.testing.assert_allclose(outcomes.mean(0), V, atol=1e-12)
    assert ((outcomes - V) ** 2).sum(1).mean() == pytest.approx((4 / 2 - 1) * 30, abs=1e-9)
    chi_square = ((counts - num_keys / 6) ** 2 / (num_keys / 6)).sum()
    assert chi_square < 30.9  # 5 degrees of freedom, 1e-5
    kept = many(tr.random_k(2, unbiased=False), num_keys=10)
    assert ((kept == V) | (kept == 0)).all()
    assert ((kept != 0).sum(1) == 2).all()


# -- rotations ------------------------------------------------------------------------------


def with_signs(monkeypatch, signs):
    monkeypatch.setattr(hadamard, "random_signs", lambda seed, shape: jnp.asarray(signs)[None])


def test_walsh_hadamard():
    z = np.asarray(hadamard.walsh_hadamard(jnp.asarray(V)))
    np.testing.assert_allclose(z, [1, 3, -2, 4], atol=1e-12)
    assert (z**2).sum() == pytest.approx(30)


@pytest.mark.parametrize("size", [1, 2, 64, 128, 8192])
def test_walsh_hadamard_of_any_length_is_the_matrix_of_bit_parities(size):
    x = np.random.default_rng(size).normal(size=(2, size))
    transformed = jax.jit(hadamard.walsh_hadamard)
    z = np.asarray(transformed(x))
    np.testing.assert_allclose(transformed(z), x, atol=1e-10)
    rows = np.random.default_rng(0).integers(0, size, 5)
    for i in rows:
        parity = np.array([bin(i & j).count("1") % 2 for j in range(size)])
        np.testing.assert_allclose(z[:, i], x @ (-1.0) ** parity / math.sqrt(size), atol=1e-10)


@pytest.mark.sample(2)
@pytest.mark.parametrize("size", [1, 4, 5, 130])
def test_rotation_then_inverse_is_the_identity_and_keeps_the_norm(size):
    value = np.random.default_rng(size).normal(size=size)
    np.testing.assert_allclose(
        once(tr.rotated(tr.top_k(1.0), block_size=32), value), value, atol=1e-12
    )
    seed = jnp.array([3, 4], jnp.uint32)
    blocks = jax.jit(lambda v: hadamard.rotate(seed, v, block_size=32))(value)
    assert (np.asarray(blocks) ** 2).sum() == pytest.approx((value**2).sum())


def test_signs_are_fair_and_independent():
    @jax.jit
    @jax.vmap
    def drawn(key):
        return hadamard.random_signs(jax.random.bits(key, (2,), jnp.uint32), (64,))

    signs = np.asarray(drawn(jax.random.split(jax.random.key(5), 4000)))
    assert set(np.unique(signs)) == {-1.0, 1.0}
    correlation = signs.T @ signs / 4000 - np.eye(64)
    assert abs(correlation).max() < 5.5 / math.sqrt(4000)
    assert abs(signs.mean(0)).max() < 5 / math.sqrt(4000)


def test_drive_without_signs(monkeypatch):
    z = jnp.array([[1.0, 3, -2, 4]])
    assert float(drive_scale(z, unbiased=True)[0]) == pytest.approx(30 / 10)
    assert float(drive_scale(z, unbiased=False)[0]) == pytest.approx(10 / 4)
    with_signs(monkeypatch, np.ones(4))
    best, least = once(tr.drive()), once(tr.drive(unbiased=False))
    np.testing.assert_allclose(best, [3, -3, 3, 3], atol=1e-12)
    np.testing.assert_allclose(least, [2.5, -2.5, 2.5, 2.5], atol=1e-12)
    assert ((best - V) ** 2).sum() == pytest.approx(6)
    assert ((least - V) ** 2).sum() == pytest.approx(5)


def test_drive_over_all_sign_patterns(monkeypatch):
    """The projection on v is always right; the mean over Hadamard rotations is nearly v."""

    @jax.jit
    @jax.vmap
    def sent(signs):
        with_signs(monkeypatch, signs)
        return tr.drive().update(jax.random.key(0), (), jnp.asarray(V))[1]

    outcomes = np.asarray(sent(np.array(list(itertools.product((1.0, -1.0), repeat=4)))))
    np.testing.assert_allclose(outcomes @ V, 30, rtol=0, atol=1e-9)
    np.testing.assert_allclose(
        np.mean(outcomes, 0), [2.4375, -4.3125, 0.5625, 2.4375], rtol=0, atol=1e-9
    )


def test_drive_has_a_scale_for_each_block():
    value = np.concatenate([V, 100 * V, np.zeros(4), [1.0]])
    sent = once(tr.drive(block_size=4), value)
    np.testing.assert_array_equal(sent[8:12], np.zeros(4))
    for block in (slice(0, 4), slice(4, 8), slice(12, 13)):
        assert sent[block] @ value[block] == pytest.approx(value[block] @ value[block])


# -- low rank -------------------------------------------------------------------------------


def test_powersgd_steps_of_a_diagonal_matrix():
    matrix, q, errors = np.diag([3.0, 1.0]), np.ones((2, 1)), []
    step = jax.jit(low_rank)
    for i in range(40):
        left, q = map(np.asarray, step(matrix, q))
        if i == 0:
            np.testing.assert_allclose(left @ q.T, [[2.7, 0.3], [0.9, 0.1]], atol=1e-12)
        errors.append(((left @ q.T - matrix) ** 2).sum())
    np.testing.assert_allclose(errors[:3], [1.8, 1.0109589041, 1.0001354784], rtol=0, atol=1e-9)
    assert errors[-1] == pytest.approx(1, abs=1e-12)


@pytest.mark.sample(1)
@pytest.mark.parametrize("rank", [1, 2, 3])
def test_powersgd_finds_the_best_approximation(rank):
    i, j = np.meshgrid(range(4), range(3), indexing="ij")
    matrix = np.cos(i * j + 1.0)
    sigma = np.linalg.svd(matrix, compute_uv=False)
    np.testing.assert_allclose(sigma, [1.5843214749, 1.3651802965, 0.7662891207], rtol=0, atol=1e-9)
    q, step = np.random.default_rng(0).normal(size=(3, rank)), jax.jit(low_rank)
    for _ in range(200):
        left, q = map(np.asarray, step(matrix, q))
    error = ((left @ q.T - matrix) ** 2).sum()
    assert error == pytest.approx((sigma[rank:] ** 2).sum(), abs=1e-9)


def test_powersgd_is_warm_started_and_sends_small_leaves_whole():
    rng = np.random.default_rng(0)
    value = {
        "w": jnp.asarray(rng.normal(size=(3, 4, 6))),
        "b": jnp.asarray(rng.normal(size=6)),
        "small": jnp.asarray(rng.normal(size=(2, 2))),
    }
    transform = tr.powersgd(2)
    state, errors, update = transform.init(value), [], jax.jit(transform.update)
    for _ in range(30):
        state, out = update(jax.random.key(0), state, value)
        errors.append(((np.asarray(out["w"]) - np.asarray(value["w"])) ** 2).sum())
    for name in ("b", "small"):
        np.testing.assert_array_equal(out[name], value[name])
    sigma = np.linalg.svd(np.asarray(value["w"]).reshape(12, 6), compute_uv=False)
    best = (sigma[2:] ** 2).sum()
    assert errors[0] > errors[1] > errors[5] >= best - 1e-9
    assert errors[-1] == pytest.approx(best, rel=1e-2)


def test_orthonormal_columns_and_dependent_ones():
    columns = np.random.default_rng(0).normal(size=(6, 3))
    compiled = jax.jit(orthonormal)
    found = np.asarray(compiled(columns))
    np.testing.assert_allclose(found.T @ found, np.eye(3), atol=1e-12)
    np.testing.assert_allclose(found @ (found.T @ columns), columns, atol=1e-12)
    columns[:, 1] = 2 * columns[:, 0]
    found = np.asarray(compiled(columns))
    np.testing.assert_array_equal(found[:, 1], np.zeros(6))
    assert not np.asarray(compiled(np.zeros((6, 3)))).any()


def test_powersgd_recovers_after_a_zero_value():
    value = jnp.asarray(np.outer(np.arange(1.0, 6.0), np.arange(1.0, 5.0)))
    transform = tr.powersgd(1)
    state, update = transform.init(value), jax.jit(transform.update)
    state, out = update(jax.random.key(0), state, jnp.zeros((5, 4)))
    assert not np.asarray(out).any()
    _, out = update(jax.random.key(0), state, value)
    np.testing.assert_allclose(out, value, atol=1e-9)


# -- majority vote --------------------------------------------------------------------------


def vote(values, weights=None, mask=None):
    n = len(values)
    weights = np.ones(n) if weights is None else np.array(weights)
    return np.asarray(voted(values, weights, np.ones(n, bool) if mask is None else np.array(mask)))


@jax.jit
def voted(values, weights, mask):
    n, rule = len(values), majority_vote()
    acc = rule.init(Message(values[0], weights[0]), n)
    acc = rule.add(acc, Message(values, weights), jnp.arange(n), mask)
    cohort = Cohort(jnp.arange(n, dtype=jnp.int32), mask)
    return rule.finish(jax.random.key(0), (), acc, cohort)[1]


def test_majority_vote():
    values = np.array([[3.0, -1, 0, 5], [0.5, 1, -2, 5], [-90.0, 0, 0, np.nan]])
    np.testing.assert_array_equal(vote(values), np.sign(np.nansum(np.sign(values), 0)))
    np.testing.assert_array_equal(vote(values), [1, 0, -1, 1])
    np.testing.assert_array_equal(vote(values, [1.0, 0.0, 7.0]), [0, -1, 0, 1])
    np.testing.assert_array_equal(vote(values, mask=[True, True, False]), [1, 0, -1, 1])


def test_majority_vote_holds_below_one_half():
    honest = np.tile([[2.0, -1.0]], (4, 1))
    hostile = -1e9 * np.sign(honest[:3])
    np.testing.assert_array_equal(vote(np.concatenate([honest, hostile])), [1, -1])
    np.testing.assert_array_equal(vote(np.concatenate([honest[:3], hostile])), [0, 0])
