"""What compressed values cost: packed for real, bit by bit; and what every compressor keeps to."""

import math
from collections import Counter

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from fedjax_lite import testing
from fedjax_lite import transforms as tr
from fedjax_lite.transforms.drive import drive_code
from fedjax_lite.transforms.hadamard import block_shape
from fedjax_lite.transforms.qsgd import qsgd_code
from fedjax_lite.transforms.random_k import random_k_code
from fedjax_lite.transforms.random_words import random_words, seed_of
from fedjax_lite.transforms.sign import sign_code
from fedjax_lite.transforms.stochastic_levels import levels_code
from fedjax_lite.transforms.ternary import sparse_ternary_code, ternary_code
from fedjax_lite.transforms.top_k import top_k_code
from fedjax_lite.transforms.wire import (
    Field,
    code_length,
    kept_count,
    log2_binomial,
    packed_bits,
)

KEY = jax.random.key(7)
MOMENTUM = tr.worker_momentum(0.5)
CODES = {
    "qsgd 1": (qsgd_code(1), tr.qsgd(1), lambda d: 2 * d + 32),
    "qsgd 4": (qsgd_code(4), tr.qsgd(4), lambda d: 4 * d + 32),
    "qsgd 15": (qsgd_code(15), tr.qsgd(15), lambda d: 5 * d + 32),
    "levels 2": (levels_code(2), tr.stochastic_levels(2), lambda d: d + 64),
    "levels 9": (levels_code(9), tr.stochastic_levels(9), lambda d: 4 * d + 64),
    "sign": (sign_code(), tr.scaled_sign(), lambda d: d + 32),
    "ternary": (ternary_code(), tr.ternary(), lambda d: 2 * d + 32),
    "stc": (
        sparse_ternary_code(10),
        tr.sparse_ternary(10),
        lambda d: 10 * (1 + math.ceil(math.log2(d))) + 32,
    ),
    "top-k": (top_k_code(10), tr.top_k(10), lambda d: 10 * (32 + math.ceil(math.log2(d)))),
    "random-k": (random_k_code(10), tr.random_k(10), lambda d: 320),
    "random-k raw": (
        random_k_code(10, unbiased=False),
        tr.random_k(10, unbiased=False),
        lambda d: 320,
    ),
    "drive": (
        drive_code(block_size=64),
        tr.drive(block_size=64),
        lambda d: math.ceil(d / 64) * (64 + 32),
    ),
}


@pytest.mark.sample(6)
@pytest.mark.parametrize("name", CODES)
@pytest.mark.parametrize("size", [1000, 77])
def test_the_claimed_bits_are_what_packing_takes(name, size):
    """Packed, unpacked and decoded, a message is what `send` gave, bit for bit."""
    code, transform, formula = CODES[name]
    vector = jnp.asarray(np.random.default_rng(size).normal(size=size), jnp.float32)
    _, sent, wire = jax.jit(transform.send)(KEY, (), vector)
    seed, fields = seed_of(KEY), code.fields(size, jnp.float32)
    if name == "drive":  # the transform pads the vector once, before all else
        vector = jnp.pad(vector, (0, -size % 64))
    packed = tr.pack(fields, jax.device_get(jax.jit(code.encode)(seed, vector)))
    assert len(packed) == math.ceil(float(wire.bits) / 8)
    assert float(wire.bits) == packed_bits(fields) == formula(size)
    symbols = {n: jnp.asarray(x) for n, x in tr.unpack(fields, packed).items()}
    decode = jax.jit(code.decode, static_argnums=2)
    np.testing.assert_array_equal(decode(seed, symbols, vector.shape[0])[:size], sent)
    assert 0 < float(wire.entropy) <= float(wire.bits) * (1 + 1e-6)


def test_known_sizes():
    value = jnp.ones(1000)

    def bits(transform):
        return float(jax.jit(transform.send)(KEY, transform.init(value), value)[2].bits)

    assert [bits(tr.qsgd(s)) for s in (1, 4, 15)] == [2032, 4032, 5032]
    assert bits(tr.scaled_sign()) == 1032
    assert bits(tr.ternary()) == 2032
    assert bits(tr.top_k(10)) == bits(tr.top_k(0.01)) == 420
    assert bits(tr.random_k(10)) == 320
    assert bits(tr.drive()) == 1024 + 32
    assert bits(tr.drive(block_size=128)) == 1024 + 8 * 32
    assert bits(tr.top_k(10, values=tr.qsgd(15))) == 10 * 10 + 10 * 5 + 32
    assert bits(tr.random_k(10, values=tr.qsgd(15))) == 10 * 5 + 32
    assert bits(tr.rotated(tr.stochastic_levels(4))) == 1024 * 2 + 64
    assert bits(tr.error_feedback(tr.top_k(10))) == bits(tr.ef21(tr.top_k(10))) == 420


def test_powersgd_sends_factors_and_the_rest_whole():
    value = {"w": jnp.ones((3, 3, 8, 16)), "b": jnp.ones(16), "tiny": jnp.ones((2, 2))}
    transform = tr.powersgd(2)
    _, _, wire = jax.jit(transform.send)(KEY, transform.init(value), value)
    assert float(wire.bits) == float(wire.entropy) == 32 * (2 * (72 + 16) + 16 + 4)


def test_per_leaf_pays_side_information_for_each_leaf():
    value = {"a": jnp.ones(10), "b": jnp.ones((4, 5))}
    for transform, bits in (
        (tr.scaled_sign(per_leaf=True), 30 + 2 * 32),
        (tr.qsgd(1, per_leaf=True), 60 + 2 * 32),
        (tr.top_k(3, per_leaf=True), 3 * (32 + 4) + 3 * (32 + 5)),
        (tr.drive(per_leaf=True), 16 + 32 + 32 + 32),
    ):
        assert float(jax.jit(transform.send)(KEY, (), value)[2].bits) == bits


# -- entropy --------------------------------------------------------------------------------


def ideal(symbols):
    counts, total = Counter(symbols), len(symbols)
    return sum(n * math.log2(total / n) for n in counts.values())


def test_entropy_is_the_ideal_length_for_the_symbols_sent():
    vector = jnp.asarray(np.random.default_rng(0).normal(size=3000), jnp.float32)

    def sent(transform):
        _, out, wire = jax.jit(transform.send)(KEY, (), vector)
        return np.asarray(out), float(wire.entropy)

    for transform, side in (
        (tr.qsgd(60), 32),
        (tr.ternary(), 32),
        (tr.scaled_sign(), 32),
        (tr.stochastic_levels(5), 64),
    ):
        out, entropy = sent(transform)
        assert len(set(out.tolist())) > 1
        assert entropy == pytest.approx(ideal(out.tolist()) + side, rel=1e-5)
    _, entropy = sent(tr.top_k(30))
    assert entropy == pytest.approx(math.log2(math.comb(3000, 30)) + 30 * 32, rel=1e-6)
    out, entropy = sent(tr.sparse_ternary(30))
    signs = np.sign(out[out != 0]).tolist()
    expected = math.log2(math.comb(3000, 30)) + ideal(signs) + 32
    assert entropy == pytest.approx(expected, rel=1e-6)


def test_code_length():
    assert float(code_length(jnp.array([5, 0]))) == 0
    assert float(code_length(jnp.array([0, 0]))) == 0
    assert float(code_length(jnp.array([7, 7]))) == pytest.approx(14)
    assert log2_binomial(10, 10) == 0
    assert log2_binomial(50, 7) == pytest.approx(math.log2(math.comb(50, 7)))


def test_packing_refuses_what_does_not_fit():
    fields = (Field("level", 2, 3),)
    with pytest.raises(ValueError, match=r"below 2\*\*3, got 8"):
        tr.pack(fields, {"level": [8, 0]})
    with pytest.raises(ValueError, match="must hold 2, got 3"):
        tr.pack(fields, {"level": [1, 2, 3]})
    with pytest.raises(ValueError, match="must have 1 bytes, got 2"):
        tr.unpack(fields, b"ab")


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_packing_keeps_floats_bit_for_bit(dtype):
    width = np.dtype(dtype).itemsize * 8
    fields = (Field("x", 4, width, real=True), Field("flag", 3, 1))
    values = {"x": np.array([-0.0, 1e-45, np.pi, -3e38], dtype), "flag": np.array([1, 0, 1])}
    back = tr.unpack(fields, tr.pack(fields, values))
    assert back["x"].tobytes() == values["x"].tobytes()
    assert back["flag"].tolist() == [1, 0, 1]


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


@pytest.mark.sample(2)
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
    for per_leaf in (False, True):
        _, out, wire = tr.scaled_sign(per_leaf=per_leaf).send(KEY, (), value)
        assert out["none"].shape == (0, 3)
        assert float(wire.bits) == 36
    _, out, wire = tr.top_k(1).send(KEY, (), {"none": jnp.zeros(0)})
    assert float(wire.bits) == 0


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
    value, keys = jnp.full(64, 0.3), jax.random.split(KEY, 6)
    for transform in (
        tr.qsgd(1),
        tr.ternary(),
        tr.random_k(8),
        tr.drive(),
        tr.stochastic_levels(3),
    ):
        value = jnp.asarray(np.random.default_rng(0).normal(size=64), jnp.float32)
        update = jax.jit(lambda k, value: transform.update(k, (), value)[1])  # noqa: B023
        draws = jax.jit(jax.vmap(update, in_axes=(0, None)))(keys, value)
        assert len({row.tobytes() for row in np.asarray(draws)}) == 6
        again = update(keys[2], value)
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
    value = jnp.asarray(np.random.default_rng(0).normal(size=10), jnp.float32)
    _, expected, wire = make(3).send(KEY, (), value)
    _, sent, numpy_wire = make(np.int64(3)).send(KEY, (), value)
    assert int((sent != 0).sum()) == 3
    np.testing.assert_array_equal(sent, expected)
    assert float(numpy_wire.bits) == float(wire.bits)


def test_momentum_comes_before_compression_and_feedback():
    value = jnp.array([4.0, 1.0])
    for last in (tr.top_k(1), tr.error_feedback(tr.top_k(1))):
        both = tr.chain(tr.clip(100.0), MOMENTUM, last)
        assert both.kinds == ("clip", "momentum", *last.kinds)
        np.testing.assert_array_equal(both.update(KEY, both.init(value), value)[1], [2.0, 0.0])
    assert block_shape(4097, 4096) == (2, 4096)
