"""Fixed point: the formula, the same integers everywhere, the ring's room."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from fedjax_lite.crypto import check_ring, decode_mean, encode

SCALES = (1e-4, 0.37, 1.0, 100.0)


def exact(values, clip, bits):
    """The formula in float64."""
    return (np.clip(np.float64(values), -clip, clip) + clip) / (2 * clip) * (2**bits - 1)


@pytest.mark.parametrize("bits", [1, 8, 16, 20])
@pytest.mark.parametrize("clip", SCALES)
def test_codes_are_the_formula(clip, bits):
    """Within half a step, and float32's rounding of 2**(r - 23) steps."""
    values = (np.random.default_rng(0).normal(size=5000) * clip).astype(np.float32)
    codes = encode(values, max_abs=clip, bits=bits)
    assert codes.dtype == np.uint32
    assert codes.max() == 2**bits - 1
    assert codes.min() == 0
    np.testing.assert_array_less(
        np.abs(codes - exact(values, np.float32(clip), bits)), 0.5 + 2.0 ** (bits - 23) + 1e-6
    )


def test_codes_exactly():
    """Dyadic numbers have no rounding: ties go to the even integer."""
    values = np.array([-1, -0.75, -0.5, 0, 0.5, 0.75, 1], np.float32)
    assert encode(values, max_abs=1.5, bits=2).tolist() == np.round(values + 1.5).tolist()
    assert encode(0.0, max_abs=1.0, bits=16) == 2**15  # 32767.5
    assert encode(np.array([-0.5, 0.5]), max_abs=1.5, bits=2).tolist() == [1, 2]
    assert encode(np.array([-1.0, 0.0, 1.0]), max_abs=1.5, bits=2).tolist() == [0, 2, 2]


@pytest.mark.sample(6)
@pytest.mark.parametrize("clip", SCALES)
@pytest.mark.parametrize("bits", [3, 16, 20, 24])
def test_numpy_and_jax_give_the_same_integers(clip, bits):
    rng = np.random.default_rng(1)
    steps = (rng.integers(0, 2**bits - 1, 20_000) + 0.5) / (2**bits - 1)
    values = np.concatenate([2 * clip * steps - clip, rng.normal(size=20_000) * clip])
    values = np.append(values, [np.nan, np.inf, -np.inf, 0, clip, -clip]).astype(np.float32)
    host = encode(values, max_abs=clip, bits=bits)
    fixed = jax.jit(lambda v: encode(v, max_abs=clip, bits=bits))
    traced = jax.jit(lambda v, c: encode(v, max_abs=c, bits=bits))
    # A product right before must not be fused with the addition inside.
    product = jax.jit(lambda v, w: encode(v * w, max_abs=clip, bits=bits))
    np.testing.assert_array_equal(fixed(values), host)
    np.testing.assert_array_equal(traced(values, np.float32(clip)), host)
    np.testing.assert_array_equal(
        product(values, np.float32(1.3)), encode(values * np.float32(1.3), max_abs=clip, bits=bits)
    )
    with jax.enable_x64(True):
        np.testing.assert_array_equal(fixed(jnp.asarray(values, jnp.float64)), host)


@pytest.mark.parametrize("bits", [2, 8, 16, 22])
@pytest.mark.parametrize("clip", SCALES)
def test_zero_can_be_a_level(clip, bits):
    """With ``2**r - 2`` in the formula; without, it comes back as half a step."""
    values = np.array([0.0, -clip, clip], np.float32)
    grid = {"max_abs": clip, "bits": bits, "exact_zero": True}
    codes = encode(values, **grid)
    assert codes.tolist() == [2 ** (bits - 1) - 1, 0, 2**bits - 2]
    np.testing.assert_array_equal(jax.jit(lambda v: encode(v, **grid))(values), codes)
    assert decode_mean(3 * codes, 3, **grid)[0] == 0
    assert float(decode_mean(jnp.asarray(3 * codes), jnp.uint32(3), **grid)[0]) == 0
    half = decode_mean(encode(values, max_abs=clip, bits=bits), 1, max_abs=clip, bits=bits)[0]
    assert abs(half) == pytest.approx(clip / (2**bits - 1))
    for wrong in (1, 23):
        with pytest.raises(ValueError, match="exact_zero"):
            encode(values, max_abs=clip, bits=wrong, exact_zero=True)


def test_non_finite_values_have_a_place():
    codes = encode(np.array([np.nan, np.inf, -np.inf, 1e300, 0.0]), max_abs=2.0, bits=8)
    assert codes.tolist() == [128, 255, 0, 255, 128]


@pytest.mark.parametrize("count", [1, 3, 1000])
def test_decoding_inverts_the_sum(count):
    rng = np.random.default_rng(2)
    codes = rng.integers(0, 2**16, (count, 50)).astype(np.uint32)
    total = codes.sum(0, dtype=np.uint32)
    expected = codes.astype(np.float64).mean(0) * 2 * 0.7 / (2**16 - 1) - 0.7
    np.testing.assert_allclose(
        decode_mean(total, count, max_abs=0.7, bits=16), expected, atol=1e-12
    )
    device = decode_mean(jnp.asarray(total), jnp.uint32(count), max_abs=0.7, bits=16)
    np.testing.assert_allclose(device, expected, rtol=3e-6, atol=1e-9)


@pytest.mark.parametrize("xp", [np, jnp])
@pytest.mark.parametrize("largest", [1.5, 2**40, 2.0**100])
def test_a_range_of_any_size(xp, largest):
    """Both ends and the middle: 0, 1.5 (to the even 2) and 3 of two bits; traced ranges, too."""
    values = xp.asarray([-largest, 0, largest], np.float32)
    codes = encode(values, max_abs=largest, bits=2)
    assert codes.tolist() == [0, 2, 3]
    means = decode_mean(2 * codes, np.uint32(2), max_abs=largest, bits=2)
    np.testing.assert_allclose(means, largest * np.array([-1, 1 / 3, 1]), rtol=1e-6)
    if xp is jnp:
        traced = jax.jit(lambda c: encode(values, max_abs=c, bits=2))(np.float32(largest))
        assert traced.tolist() == [0, 2, 3]


def test_a_small_mean_of_many_keeps_its_digits():
    """Sums near 2**32 are no float32; the integer division comes first."""
    total, count = np.uint32(2**31 + 12_345), np.uint32(2**16)
    expected = (2 * (float(total) / float(count)) - (2**16 - 1)) / (2**16 - 1)
    got = decode_mean(jnp.asarray(total), jnp.asarray(count), max_abs=1.0, bits=16)
    assert float(got) == pytest.approx(expected, rel=1e-6)


def test_nobody_decodes_to_zero():
    assert decode_mean(np.zeros(3, np.uint32), 0, max_abs=1.0, bits=16).tolist() == [0, 0, 0]
    assert decode_mean(jnp.zeros(3, jnp.uint32), 0, max_abs=1.0, bits=16).tolist() == [0, 0, 0]


def test_the_rings_room():
    """``m (2^r - 1) < 2^32``: r = 16 holds 65,537 clients, r = 20 holds 4,096."""
    for bits, most in ((16, 65_537), (20, 4_096), (1, 2**32 - 1), (24, 256)):
        assert most * (2**bits - 1) < 2**32 <= (most + 1) * (2**bits - 1)
        check_ring(most, bits=bits)
        with pytest.raises(ValueError, match=rf"{most + 1} clients.*2\*\*32"):
            check_ring(most + 1, bits=bits)


def test_the_remedy_is_the_most_bits_that_fit():
    with pytest.raises(ValueError, match="bits <= 15") as caught:
        check_ring(1000, max_weight=100, bits=16)
    assert "1000 clients * weight 100" in str(caught.value)
    check_ring(1000, max_weight=100, bits=15)


@pytest.mark.parametrize("options", [{"max_abs": 0.0}, {"max_abs": np.inf}, {"max_abs": np.nan}])
def test_bad_ranges_are_named(options):
    with pytest.raises(ValueError, match="max_abs"):
        encode(np.zeros(2), bits=8, **options)


@pytest.mark.parametrize("bits", [0, 25])
def test_bad_bits_are_named(bits):
    with pytest.raises(ValueError, match="bits"):
        encode(np.zeros(2), max_abs=1.0, bits=bits)
    with pytest.raises(TypeError, match="bits"):
        encode(np.zeros(2), max_abs=1.0, bits=8.0)
