"""Central DP on secure sums: norms of integers, the reduction to `central_gaussian`, accounts."""

import functools
import math

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import fedjax_lite as fl
import fedjax_lite.privacy as dp
from fedjax_lite import testing
from fedjax_lite.privacy.secure_gaussian import bounded_codes, lost_by_rounding
from fedjax_lite.types import Cohort, Message

DELTA = 1e-5


coded = jax.jit(bounded_codes, static_argnames="bits")


def integers(codes):
    """As the ring's elements are meant: from -2**31 on."""
    return np.asarray(codes).astype(np.int64) - (np.asarray(codes) >= 2**31) * 2**32


@pytest.mark.parametrize("bits", [8, 12, 20])
def test_rounding_lengthens_nobody_beyond_the_clip(bits):
    """All coordinates lie just above the middle of two integers, so that rounding lengthens each by
    half a step: a vector of norm S rounded so would be longer than S by `lost_by_rounding`."""
    size, levels = 100, 2 ** (bits - 1) - 1
    whole = math.floor(levels / math.sqrt(size))  # of a coordinate, in steps
    row = np.full(size, whole + 0.5 + 1e-3)
    rounded = np.round(row)
    lengthened = (np.linalg.norm(rounded) - np.linalg.norm(row)) / levels
    assert lengthened == pytest.approx(lost_by_rounding(size, bits), rel=0.01)
    assert np.linalg.norm(row) <= levels < np.linalg.norm(rounded)
    rng = np.random.default_rng(0)
    rows = np.stack(
        [row, *(np.full(size, t) for t in (1.0, 30.0, -1e30, 3e35)), *rng.normal(size=(50, size))]
    )
    rows[5:] *= rng.uniform(0.5, 50, size=(len(rows) - 5, 1)) / math.sqrt(size)
    for clip in (1.0, 1e-3, 250.0):
        own = rows.astype(np.float32) * np.float32(clip)
        own[0] = row * clip / levels
        norms = np.linalg.norm(integers(coded(own, clip, bits=bits)), axis=1)
        assert (norms <= levels).all()
        shrunk = 1 - 2 * lost_by_rounding(size, bits) - 2e-5  # and nobody is cut by more
        assert (norms[1:4] >= levels * shrunk).all()


def test_codes_are_the_nearest_integers_of_who_is_short():
    values = np.array([[0.3, -0.25, 0.0], [1e-3, -2e-3, 0.7]], np.float32)
    codes = integers(coded(values, 1.0, bits=12))
    np.testing.assert_array_equal(codes, np.round(values.astype(np.float64) * 2047))


def sums(rows, mask, **options):
    amounts = {"clip": 1.0, "noise_multiplier": 0.0, "cohort_size": len(rows), **options}
    return summed(rows, np.array(mask), **amounts)


@functools.partial(jax.jit, static_argnames=("clip", "noise_multiplier", "cohort_size", "bits"))
def summed(rows, mask, **amounts):
    aggregator = dp.secure_gaussian_sum(**amounts)
    messages = Message({"w": rows}, jnp.full(len(rows), 7.0))
    acc = aggregator.init(jax.tree.map(lambda leaf: leaf[0], messages), len(rows))
    acc = aggregator.add(acc, messages, jnp.arange(len(rows)), mask)
    cohort = Cohort(jnp.arange(len(rows)), mask)
    return aggregator.finish(jax.random.key(1), (), acc, cohort)[1]["w"]


def test_the_sum_over_a_fixed_number():
    rows = np.array([[0.5, -0.5], [0.25, 0.0], [-0.75, 0.5]], np.float32)
    whole = sums(rows, [True] * 3, bits=20)
    np.testing.assert_allclose(whole, rows.sum(0) / 3, atol=0.5 / 2**19)
    two = sums(rows, [True, False, True], bits=20)
    np.testing.assert_allclose(two, rows[[0, 2]].sum(0) / 3, atol=0.5 / 2**19)
    assert not np.asarray(sums(rows, [False] * 3, bits=20)).any()


def test_the_largest_sum_does_not_wrap():
    """As many clients as fit with so many bits, all at the clip on one coordinate."""
    count, bits = 128, 24
    rows = np.zeros((count, 2), np.float32)
    rows[:, 0] = -5.0
    np.testing.assert_allclose(sums(rows, [True] * count, bits=bits)[0], -1.0, rtol=2e-5)
    with pytest.raises(ValueError, match=r"bits must be fewer for 257 clients.* at most 23"):
        dp.secure_gaussian_sum(clip=1.0, noise_multiplier=0.0, cohort_size=257, bits=24)
    dp.secure_gaussian_sum(clip=1.0, noise_multiplier=0.0, cohort_size=257, bits=23)


def test_noise_is_z_times_the_clip_whoever_came():
    rows = np.zeros((4, 20_000), np.float32)
    for mask in ([True] * 4, [False] * 4):
        noise = np.asarray(sums(rows, mask, clip=0.5, noise_multiplier=3.0)) * 4
        assert noise.std() == pytest.approx(1.5, rel=0.03)
        assert abs(noise.mean()) < 0.05


def trained(privacy, rounds=2):
    plan = fl.Plan(batch_size=None)
    algo = fl.fedavg(testing.loss, optax.sgd(0.05), plan=plan, privacy=privacy)
    data, key = testing.population(), jax.random.key(0)
    state = algo.init(key, testing.init_params(jax.random.key(7)), data)
    for _ in range(rounds):
        state, _ = algo.round(key, state, data)
    return algo, state


@pytest.mark.parametrize("z", [0.0, 1.5])
def test_with_a_fine_grid_it_is_central_gaussian_with_everybody(z):
    """The same key draws the same noise, so the models agree up to the grid."""
    shared = {"clip": 0.1, "noise_multiplier": z, "delta": DELTA}
    algo, mine = trained(dp.secure_gaussian(cohort_size=7, bits=24, **shared))
    plain, theirs = trained(dp.central_gaussian(num_clients=7, sampling_rate=1.0, **shared))
    start = testing.init_params(jax.random.key(7))
    for name in start:
        a, b = (np.asarray(state.server.params[name]) for state in (mine, theirs))
        np.testing.assert_allclose(a, b, atol=1e-5)
        assert abs(a - start[name]).max() > 1e-3  # it moved
    assert algo.accountant is not None
    assert plain.accountant is not None
    for rounds in (1, 9):
        spent = algo.accountant.spent(rounds)["epsilon"]
        assert spent == plain.accountant.spent(rounds)["epsilon"]


def test_accounts():
    """Exactly Gaussian: after T rounds mu = sqrt(T) / z."""
    private = dp.secure_gaussian(clip=1.0, cohort_size=5, delta=DELTA, noise_multiplier=2.0)
    for rounds in (1, 3, 16):
        expected = dp.gdp_epsilon(DELTA, math.sqrt(rounds) / 2.0)
        assert private.accountant.spent(rounds)["epsilon"] == pytest.approx(expected, rel=1e-6)
    found = dp.secure_gaussian(clip=1.0, cohort_size=5, delta=DELTA, epsilon=2.0, num_rounds=9)
    assert found.noise_multiplier == pytest.approx(3 / dp.gdp_mu(2.0, DELTA), rel=1e-3)
    assert found.accountant.spent(9)["epsilon"] <= 2.0
    assert found.accountant.max_rounds == 9
    bare = dp.secure_gaussian(clip=1.0, cohort_size=5, delta=DELTA, noise_multiplier=0.0)
    assert bare.accountant.spent(1)["epsilon"] == math.inf
    assert "NOT PRIVATE" in bare.accountant.description


@pytest.mark.parametrize(
    ("options", "match"),
    [
        ({"clip": 0.0}, "clip"),
        ({"clip": math.inf}, "clip must be finite"),
        ({"cohort_size": 0}, "cohort_size"),
        ({"bits": 25}, "bits must be at most 24"),
        ({"bits": 1}, "bits"),
        ({"delta": 1.0}, "delta"),
        ({"noise_multiplier": None}, "epsilon or noise_multiplier"),
        ({"num_rounds": 0}, "num_rounds"),
    ],
)
def test_bad_options_are_named(options, match):
    valid = {"clip": 1.0, "cohort_size": 5, "delta": DELTA, "noise_multiplier": 1.0}
    with pytest.raises(ValueError, match=match):
        dp.secure_gaussian(**{**valid, **options})


def test_too_few_bits_for_so_many_coordinates():
    """A tenth of the clip for rounding is too much; the bits that the message names are enough."""
    agg = dp.secure_gaussian_sum(clip=1.0, noise_multiplier=1.0, cohort_size=3, bits=6)
    with pytest.raises(ValueError, match=r"bits .* 100 coordinates, got 6: .*16% .* at least 7"):
        agg.init(Message(jnp.zeros(100), 1.0), 3)
    more = dp.secure_gaussian_sum(clip=1.0, noise_multiplier=1.0, cohort_size=3, bits=7)
    more.init(Message(jnp.zeros(100), 1.0), 3)
    with pytest.raises(ValueError, match="sampler's 4 slots"):
        more.init(Message(jnp.zeros(100), 1.0), 4)
