"""What every compressor keeps to: zeros, scales, dtypes, contraction, keys, bad arguments."""

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from fedjax_lite import testing
from fedjax_lite import transforms as tr
from fedjax_lite.transforms.hadamard import block_shape
from fedjax_lite.transforms.random_words import random_words, seed_of
from fedjax_lite.transforms.wire import (
    kept_count,
)

KEY = jax.random.key(7)
MOMENTUM = tr.worker_momentum(0.5)


# -- properties that all of them have -------------------------------------------------------

COMPRESSORS = {
    "qsgd": tr.qsgd(7),
    "qsgd per leaf": tr.qsgd(1, per_leaf=True),
    "stochastic levels": tr.stochastic_levels(4),
    "scaled sign": tr.scaled_sign(),
    "ternary": tr.ternary(per_leaf=True),
    "sparse ternary": tr.sparse_ternary(0.4),
    "top-k": tr.top_k(2),
    "top-k per leaf": tr.top_k(0.5, per_leaf=True),
    "top-k of qsgd": tr.top_k(3, values=tr.qsgd(15)),
    "random-k": tr.random_k(2),
    "random-k of qsgd": tr.random_k(3, values=tr.qsgd(15)),
    "rotated levels": tr.rotated(tr.stochastic_levels(4), block_size=4),
    "drive": tr.drive(),
    "drive blocks": tr.drive(block_size=4, unbiased=False),
    "powersgd": tr.powersgd(1),
    "error feedback": tr.error_feedback(tr.top_k(2)),
    "ef21": tr.ef21(tr.scaled_sign()),
    "feedback powersgd": tr.error_feedback(tr.powersgd(1)),
    "chain": tr.chain(tr.clip(1.0), tr.error_feedback(tr.top_k(1))),
}
VARIANTS = {
    "sparse ternary per leaf": tr.sparse_ternary(2, per_leaf=True),
    "feedback of signs": tr.error_feedback(tr.scaled_sign()),
    **{
        name: COMPRESSORS[name]
        for name in ("top-k of qsgd", "random-k of qsgd", "drive blocks", "chain")
    },
}


@pytest.mark.sample(1)
@pytest.mark.parametrize("name", VARIANTS)
def test_laws_of_variants(name):
    """The others are in the registry."""
    testing.check_transform(VARIANTS[name])


def tree(rng, scale=1.0):
    draw = lambda *shape: jnp.asarray(scale * rng.normal(size=shape), jnp.float32)  # noqa: E731
    return {"w": draw(4, 6), "b": draw(5), "scalar": draw()}


@pytest.mark.sample(6)
@pytest.mark.parametrize("name", COMPRESSORS)
def test_zero_stays_zero_and_what_is_not_finite_is_sent_as_zero(name):
    transform = COMPRESSORS[name]
    value = tree(np.random.default_rng(0))
    state = transform.init(value)
    update = jax.jit(transform.update)
    zero = jax.tree.map(jnp.zeros_like, value)
    chex.assert_trees_all_equal(update(KEY, state, zero)[1], zero)
    for bad in (np.nan, np.inf, -np.inf, 3e38):
        spoiled = {**value, "b": value["b"].at[2].set(bad)}
        new, out = update(KEY, state, spoiled)
        if "chain" not in name or not np.isfinite(bad):  # clip shortens 3e38 instead
            chex.assert_trees_all_equal(out, zero)
        chex.assert_tree_all_finite(new)


@pytest.mark.sample(12)
@pytest.mark.parametrize("name", [name for name in COMPRESSORS if name != "chain"])
@pytest.mark.parametrize("power", [-110, 90])
def test_squares_neither_overflow_nor_vanish(name, power):
    """``C(2^p v) = 2^p C(v)``, where a float32 norm would be 0 or infinite."""
    transform = COMPRESSORS[name]
    value = tree(np.random.default_rng(1))
    factor = np.float32(2.0**power)
    update = jax.jit(transform.update)
    state = transform.init(value)
    _, plain = update(KEY, state, value)
    _, scaled = update(KEY, state, jax.tree.map(lambda leaf: leaf * factor, value))
    scaled = jax.tree.map(lambda leaf: np.float64(leaf) / factor, scaled)
    chex.assert_trees_all_close(scaled, plain, rtol=2e-5, atol=1e-6)


def test_bfloat16_leaves_stay_bfloat16():
    value = {"a": jnp.arange(6, dtype=jnp.bfloat16), "b": jnp.ones((3, 4))}
    for transform in COMPRESSORS.values():
        _, out = jax.eval_shape(transform.update, KEY, transform.init(value), value)
        assert jax.tree.map(lambda x: x.dtype, out) == jax.tree.map(lambda x: x.dtype, value)


def test_leaves_without_numbers_cost_nothing():
    value = {"none": jnp.zeros((0, 3)), "some": jnp.ones(4)}

    @jax.jit
    def messages(value):
        signs = [
            tr.scaled_sign(per_leaf=per_leaf).send(KEY, (), value) for per_leaf in (False, True)
        ]
        return signs, tr.top_k(1).send(KEY, (), {"none": jnp.zeros(0)})

    signs, (_, _, nothing) = messages(value)
    for _, out, wire in signs:
        assert out["none"].shape == (0, 3)
        assert float(wire.bits) == 36
    assert float(nothing.bits) == 0


CONTRACTIONS = {
    "top-k": (tr.top_k(3), 3 / 12),
    "sparse ternary": (tr.sparse_ternary(3), 0.0),
    "scaled sign": (tr.scaled_sign(), 0.0),
    "drive": (tr.drive(unbiased=False), 0.0),
    "random-k": (tr.random_k(3, unbiased=False), 0.0),
    "powersgd": (tr.powersgd(1), 0.0),
}
UPDATES = {name: jax.jit(transform.update) for name, (transform, _) in CONTRACTIONS.items()}
NUMBERS = st.floats(-(2.0**80), 2.0**80, width=32).map(lambda x: x if abs(x) > 2.0**-100 else 0.0)
"""A mean of magnitudes near 2^-126 would be flushed to zero."""


@pytest.mark.sample(3)
@pytest.mark.parametrize("name", CONTRACTIONS)
@settings(max_examples=60, deadline=None)
@given(numbers=st.lists(NUMBERS, min_size=12, max_size=12))
@example(numbers=[0.0] * 12)
@example(numbers=[1.0] * 12)
@example(numbers=[2.0**80] + [1.0] * 11)
def test_contraction(name, numbers):
    """``|C(v) - v|^2 <= (1 - delta) |v|^2``; scaled sign's own delta in addition."""
    transform, delta = CONTRACTIONS[name]
    value = jnp.asarray(numbers, jnp.float32).reshape(4, 3)
    _, out = UPDATES[name](KEY, transform.init(value), value)
    v, sent = np.float64(value).ravel(), np.float64(out).ravel()
    squares, error = (v**2).sum(), ((sent - v) ** 2).sum()
    if name == "scaled sign" and squares:
        delta = abs(v).sum() ** 2 / (12 * squares)
    assert error <= (1 - delta) * squares + 2e-5 * squares


# -- randomness -----------------------------------------------------------------------------


def test_random_words_are_uniform_distinct_and_differ_between_keys():
    words = np.asarray(random_words(seed_of(KEY), 100_000))
    assert len(set(words.tolist())) == 100_000
    other = np.asarray(random_words(seed_of(jax.random.key(8)), 100_000))
    for shift in (0, 8, 16, 24):
        counts = np.bincount((words >> shift) & 255, minlength=256)
        joint = np.bincount(((words >> shift) & 15) * 16 + ((other >> shift) & 15), minlength=256)
        lagged = np.bincount(
            ((words[1:] >> shift) & 15) * 16 + ((words[:-1] >> shift) & 15), minlength=256
        )
        for found in (counts, joint, lagged):
            expected = found.sum() / 256
            chi_square = ((found - expected) ** 2 / expected).sum()
            assert 140 < chi_square < 390  # 255 degrees of freedom, 6 standard deviations


def test_clients_round_differently():
    kinds = (tr.qsgd(1), tr.ternary(), tr.random_k(8), tr.drive(), tr.stochastic_levels(3))
    value = np.random.default_rng(0).normal(size=64).astype(np.float32)

    @jax.jit  # one program of all
    def sent(key):
        return [transform.update(key, (), value)[1] for transform in kinds]

    keys = jax.random.split(KEY, 6)
    for draws, again in zip(jax.jit(jax.vmap(sent))(keys), sent(keys[2]), strict=True):
        assert len({row.tobytes() for row in np.asarray(draws)}) == 6
        np.testing.assert_allclose(again, draws[2], rtol=1e-6, atol=1e-6)


# -- bad input ------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("make", "error", "message"),
    [
        (lambda: tr.qsgd(0), ValueError, "levels must be at least 1, got 0"),
        (lambda: tr.qsgd(2.5), TypeError, "levels must be an int"),
        (lambda: tr.stochastic_levels(1), ValueError, "levels must be at least 2"),
        (lambda: tr.top_k(0), ValueError, "k must be at least 1"),
        (lambda: tr.top_k(1.5), ValueError, "fraction in"),
        (lambda: tr.top_k(0.0), ValueError, "fraction in"),
        (lambda: tr.random_k("2"), TypeError, "k must be an int"),
        (lambda: tr.top_k(2, values=tr.clip(1.0)), ValueError, "values must be a stateless"),
        (lambda: tr.top_k(2, values=tr.powersgd), TypeError, "was a factory not called"),
        (lambda: tr.rotated(tr.error_feedback(tr.top_k(1))), ValueError, "inner must be"),
        (lambda: tr.drive(block_size=100), ValueError, "power of two, got 100"),
        (lambda: tr.powersgd(0), ValueError, "rank must be at least 1"),
        (lambda: tr.error_feedback(tr.clip(1.0)), ValueError, "chain"),
        (lambda: tr.error_feedback(tr.ef21(tr.top_k(1))), ValueError, "kinds"),
        (lambda: tr.ef21(tr.chain(tr.clip(1.0), tr.top_k(1))), ValueError, "ef21 wraps"),
        (lambda: tr.ef21(tr.top_k), TypeError, "factory not called"),
        (lambda: tr.chain(tr.error_feedback(tr.top_k(1)), tr.clip(1.0)), ValueError, "clip first"),
        (lambda: tr.chain(tr.qsgd(1), tr.clip(1.0)), ValueError, "clip first"),
        (lambda: tr.top_k(np.int64(0)), ValueError, "k must be at least 1"),
        (lambda: tr.random_k(np.float32(1.5)), ValueError, "fraction in"),
        (lambda: tr.chain(tr.qsgd(1), MOMENTUM), ValueError, "momentum first"),
        (
            lambda: tr.chain(tr.error_feedback(tr.top_k(1)), MOMENTUM),
            ValueError,
            "feedback before momentum.*momentum first",
        ),
        (lambda: tr.error_feedback(MOMENTUM), ValueError, "error_feedback wraps a compressor"),
        (lambda: tr.ef21(tr.chain(MOMENTUM, tr.top_k(1))), ValueError, "ef21 wraps a compressor"),
        (lambda: tr.top_k(2, values=MOMENTUM), ValueError, "values must be a stateless"),
    ],
)
def test_bad_arguments_are_named(make, error, message):
    with pytest.raises(error, match=message):
        make()


def test_kept_count():
    assert [kept_count(k, 10) for k in (3, 30, 0.25, 0.01, 1.0)] == [3, 10, 2, 1, 10]
    for integer in (np.int8, np.int64, np.uint32):
        assert kept_count(integer(3), 10) == 3
        assert type(kept_count(integer(3), 10)) is int
    assert kept_count(np.float32(0.25), 10) == 2


@pytest.mark.parametrize("make", [tr.top_k, tr.random_k, tr.sparse_ternary])
def test_integers_of_numpy_are_counts(make):
    value = np.random.default_rng(0).normal(size=10).astype(np.float32)

    @jax.jit
    def messages(value):
        return [make(k).send(KEY, (), value) for k in (3, np.int64(3))]

    (_, expected, wire), (_, sent, numpy_wire) = jax.device_get(messages(value))
    assert (sent != 0).sum() == 3
    np.testing.assert_array_equal(sent, expected)
    assert float(numpy_wire.bits) == float(wire.bits)


def test_momentum_comes_before_compression_and_feedback():
    value = jnp.array([4.0, 1.0])
    for last in (tr.top_k(1), tr.error_feedback(tr.top_k(1))):
        both = tr.chain(tr.clip(100.0), MOMENTUM, last)
        assert both.kinds == ("clip", "momentum", *last.kinds)
        update = jax.jit(both.update)
        np.testing.assert_array_equal(update(KEY, both.init(value), value)[1], [2.0, 0.0])
    assert block_shape(4097, 4096) == (2, 4096)
