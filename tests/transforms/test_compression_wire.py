"""What compressed values cost: packed for real, bit by bit, and by their entropy."""

import math
from collections import Counter

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from fedjax_lite import transforms as tr
from fedjax_lite.transforms.drive import drive_code
from fedjax_lite.transforms.qsgd import qsgd_code
from fedjax_lite.transforms.random_k import random_k_code
from fedjax_lite.transforms.random_words import seed_of
from fedjax_lite.transforms.sign import sign_code
from fedjax_lite.transforms.stochastic_levels import levels_code
from fedjax_lite.transforms.ternary import sparse_ternary_code, ternary_code
from fedjax_lite.transforms.top_k import top_k_code
from fedjax_lite.transforms.wire import (
    Field,
    code_length,
    log2_binomial,
    packed_bits,
)

KEY = jax.random.key(7)
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


@pytest.mark.sample(3)
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
    expected = [
        (tr.qsgd(1), 2032),
        (tr.qsgd(4), 4032),
        (tr.qsgd(15), 5032),
        (tr.scaled_sign(), 1032),
        (tr.ternary(), 2032),
        (tr.top_k(10), 420),
        (tr.top_k(0.01), 420),
        (tr.random_k(10), 320),
        (tr.drive(), 1024 + 32),
        (tr.drive(block_size=128), 1024 + 8 * 32),
        (tr.top_k(10, values=tr.qsgd(15)), 10 * 10 + 10 * 5 + 32),
        (tr.random_k(10, values=tr.qsgd(15)), 10 * 5 + 32),
        (tr.rotated(tr.stochastic_levels(4)), 1024 * 2 + 64),
        (tr.error_feedback(tr.top_k(10)), 420),
        (tr.ef21(tr.top_k(10)), 420),
    ]

    @jax.jit  # one program of all
    def bits(value):
        return [
            transform.send(KEY, transform.init(value), value)[2].bits for transform, _ in expected
        ]

    assert list(map(float, bits(np.ones(1000, "f4")))) == [known for _, known in expected]


def test_powersgd_sends_factors_and_the_rest_whole():
    value = {"w": jnp.ones((3, 3, 8, 16)), "b": jnp.ones(16), "tiny": jnp.ones((2, 2))}
    transform = tr.powersgd(2)
    _, _, wire = jax.jit(transform.send)(KEY, transform.init(value), value)
    assert float(wire.bits) == float(wire.entropy) == 32 * (2 * (72 + 16) + 16 + 4)


def test_per_leaf_pays_side_information_for_each_leaf():
    value = {"a": jnp.ones(10), "b": jnp.ones((4, 5))}
    expected = {
        tr.scaled_sign(per_leaf=True): 30 + 2 * 32,
        tr.qsgd(1, per_leaf=True): 60 + 2 * 32,
        tr.top_k(3, per_leaf=True): 3 * (32 + 4) + 3 * (32 + 5),
        tr.drive(per_leaf=True): 16 + 32 + 32 + 32,
    }
    found = jax.jit(lambda value: [one.send(KEY, (), value)[2].bits for one in expected])(value)
    assert list(map(float, found)) == list(expected.values())


# -- entropy --------------------------------------------------------------------------------


def ideal(symbols):
    counts, total = Counter(symbols), len(symbols)
    return sum(n * math.log2(total / n) for n in counts.values())


def test_entropy_is_the_ideal_length_for_the_symbols_sent():
    vector = jnp.asarray(np.random.default_rng(0).normal(size=3000), jnp.float32)

    codes = [
        (tr.qsgd(60), 32),
        (tr.ternary(), 32),
        (tr.scaled_sign(), 32),
        (tr.stochastic_levels(5), 64),
        (tr.top_k(30), None),
        (tr.sparse_ternary(30), None),
    ]

    @jax.jit  # one program of all
    def sent(vector):
        messages = [code.send(KEY, (), vector) for code, _ in codes]
        return [(out, wire.entropy) for _, out, wire in messages]

    *dense, (_, top), (out, entropy) = jax.device_get(sent(vector))
    for (symbols, length), (_, side) in zip(dense, codes, strict=False):
        assert len(set(symbols.tolist())) > 1
        assert length == pytest.approx(ideal(symbols.tolist()) + side, rel=1e-5)
    assert top == pytest.approx(math.log2(math.comb(3000, 30)) + 30 * 32, rel=1e-6)
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
    with pytest.raises(ValueError, match="must have the 1 bytes of its 1 fields, got 2"):
        tr.unpack(fields, b"ab")


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_packing_keeps_floats_bit_for_bit(dtype):
    width = np.dtype(dtype).itemsize * 8
    fields = (Field("x", 4, width, real=True), Field("flag", 3, 1))
    values = {"x": np.array([-0.0, 1e-45, np.pi, -3e38], dtype), "flag": np.array([1, 0, 1])}
    back = tr.unpack(fields, tr.pack(fields, values))
    assert back["x"].tobytes() == values["x"].tobytes()
    assert back["flag"].tolist() == [1, 0, 1]
