"""The scale of every noise, by a test that accepts the right one and rejects 2/3 and 3/2 of it."""

import itertools
import math

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from scipy.special import ndtr

import fedjax_lite as fl
import fedjax_lite.privacy as dp
from fedjax_lite.transforms.noise import gaussian_like, gaussian_noise
from fedjax_lite.types import Batch, ClientInfo, Cohort, Message

KEY = jax.random.key(20)
NUM_DRAWS, THRESHOLD = 10_000, 0.0269
"""Kolmogorov-Smirnov at alpha = 1e-6; a scale wrong by 3/2 lies .0968 away."""


def distance(samples, stddev):
    """The largest distance of the empirical distribution to ``N(0, stddev^2)``."""
    x = np.sort(np.asarray(samples, np.float64).ravel())
    assert x.size == NUM_DRAWS
    expected, steps = ndtr(x / stddev), np.arange(NUM_DRAWS + 1) / NUM_DRAWS
    return max((steps[1:] - expected).max(), (expected - steps[:-1]).max())


def check_scale(samples, stddev):
    assert distance(samples, stddev) < THRESHOLD
    for wrong in (2 / 3, 3 / 2):
        assert distance(samples, stddev * wrong) > 2 * THRESHOLD


def check_different(rows):
    """No two rows are equal, opposite or correlated (5 sigma of 1 / sqrt(n))."""
    rows = [np.asarray(row, np.float64).ravel() for row in rows]
    for a, b in itertools.combinations(rows, 2):
        size = min(a.size, b.size)
        assert abs(np.corrcoef(a[:size], b[:size])[0, 1]) < 5 / math.sqrt(size)


def test_the_distance_is_what_the_threshold_presumes():
    """sup |Phi(x) - Phi(1.5 x)| = .0968."""
    x = np.linspace(-5, 5, 100_001)
    assert np.abs(ndtr(x) - ndtr(1.5 * x)).max() == pytest.approx(0.0968, abs=1e-4)


def finished(aggregator, template, num_rounds):
    """Releases of rounds in which nobody takes part, `[rounds, ...]` leaves."""
    message = Message(template, jnp.ones(()))
    state, nobody = aggregator.init_state(template), Cohort(jnp.arange(3), jnp.zeros(3, bool))

    def step(state, key):
        now = aggregator if aggregator.at is None else aggregator.at(state)
        state, value = now.finish(key, state, now.init(message, 3), nobody)
        return state, value

    keys = jax.random.split(KEY, num_rounds)
    return jax.jit(lambda: jax.lax.scan(step, state, keys))()[1]


LEAVES = {"a": jnp.zeros((50, 50)), "b": jnp.zeros(2500)}


def test_noise_of_narrow_leaves_is_float32():
    """bfloat16 has some 250 values between 1/2 and 4 deviations; float32 hardly repeats one."""
    for dtype in (jnp.bfloat16, jnp.float16, jnp.float32):
        value = jnp.full(NUM_DRAWS, 1000.0, dtype)
        _, sent = gaussian_noise(0.5).update(KEY, (), value)
        noise = gaussian_like(KEY, value, 0.5)
        assert sent.dtype == noise.dtype == jnp.float32
        check_scale(noise, 0.5)
        check_scale(sent - 1000, 0.5)
        assert len(np.unique(noise)) > 0.99 * NUM_DRAWS
        # Near 1000 float32 is 2^-14 apart: thousands of values, where bfloat16 would have two.
        assert len(np.unique(sent)) > 5000


def test_support_of_the_noise(monkeypatch):
    """One draw is sqrt(2) erfinv(u), |u| < 1 in float32; the sum of two goes sqrt(2) as far."""
    low = np.nextafter(np.float32(-1), np.float32(0))
    high = np.float32(1 - 2.0**-23) * 2 + low  # jax draws multiples of 2^-23, scaled to (-1, 1)
    ends = [float(math.sqrt(2) * jax.lax.erf_inv(jnp.float32(u))) for u in (low, high)]
    assert ends[0] == pytest.approx(-5.42, abs=0.01)
    assert ends[1] == pytest.approx(5.22, abs=0.01)
    # What a neighbour's output beyond the support would have of probability, one sigma away.
    assert ndtr(-(ends[1] - 1)) > 1e-5, "one draw alone is not (eps, 1e-5)-private"
    for end in ends:
        monkeypatch.setattr(
            jax.random, "normal", lambda key, shape, dtype, end=end: jnp.full(shape, end, dtype)
        )
        reached = float(gaussian_like(KEY, jnp.zeros(()), 2.0)) / 2
        assert reached == pytest.approx(math.sqrt(2) * end, rel=1e-6)
        assert ndtr(-(abs(reached) - 1)) < 1e-9


def test_every_mechanism_draws_by_the_one_helper(monkeypatch):
    """A single draw of jax.random.normal anywhere (shape without the leading 2) shows here."""
    shapes, normal = [], jax.random.normal

    def spy(key, shape=(), dtype=float):
        shapes.append(shape)
        return normal(key, shape, dtype)

    monkeypatch.setattr(jax.random, "normal", spy)
    common = {"clip": 1.0, "noise_multiplier": 1.0, "denominator": 1.0}
    for aggregator in (
        dp.gaussian_sum(**common),
        dp.adaptive_sum(noise_multiplier=1.0, count_noise_multiplier=1.0, denominator=1.0),
        dp.tree_sum(**common, num_rounds=2),
        dp.matrix_sum(**common, num_rounds=2, coefficients=[1.0, 0.5]),
    ):
        shapes.clear()
        finished(aggregator, jnp.zeros(5), 1)
        assert shapes
        assert all(shape[0] == 2 for shape in shapes)


def test_central_noise_over_leaves_and_rounds():
    """z S / m, the same in every leaf and round, and never the same noise twice."""
    aggregator = dp.gaussian_sum(clip=0.5, noise_multiplier=1.2, denominator=4.0)
    out = finished(aggregator, LEAVES, 2)
    rows = [out["a"][0], out["a"][1], out["b"][0], out["b"][1]]
    check_scale(np.concatenate([np.ravel(row) for row in rows]), 1.2 * 0.5 / 4)
    check_different(rows)


def test_central_noise_in_real_rounds():
    """Rounds of FedAvg whose clients have nothing to learn: the model moves by noise alone."""
    data = fl.data.from_arrays({"b": np.zeros(8, np.float32)}, np.arange(8))
    mechanism = dp.central_gaussian(
        clip=2.0, num_clients=8, sampling_rate=0.5, noise_multiplier=1.5, delta=1e-5
    )
    algo = fl.fedavg(
        lambda w, e, key: 0.0 * w[0] * e["b"],
        optax.sgd(1.0),
        plan=fl.Plan(batch_size=1),
        privacy=mechanism,
    )
    state, models = algo.init(KEY, jnp.zeros(5000), data), []
    for _ in range(3):
        models.append(np.asarray(state.server.params))
        state, _ = algo.round(KEY, state, data)
    steps = np.diff(models, axis=0)
    check_scale(steps, 1.5 * 2.0 / 4)
    check_different(steps)


def test_adaptive_noise_follows_the_clip():
    """z_Delta C / m with the C that the round clipped with, which changes from round to round."""
    aggregator = dp.adaptive_sum(
        noise_multiplier=1.2,
        count_noise_multiplier=0.0,
        denominator=4.0,
        initial_clip=0.5,
        clip_learning_rate=math.log(2.0),
        target_quantile=1.0,
    )
    # Nobody: b = 1/2 - 0 / m, so C is doubled^(1/2) a round.
    out = finished(aggregator, {"a": jnp.zeros(5000)}, 2)["a"]
    clips = 0.5 * 2.0 ** (np.arange(2) / 2)
    check_scale(out / clips[:, None], 1.2 / 4)


def test_noise_of_the_count():
    aggregator = dp.adaptive_sum(
        noise_multiplier=0.0,
        count_noise_multiplier=3.0,
        denominator=10.0,
        initial_clip=1.0,
        clip_learning_rate=1.0,
    )
    state, message = aggregator.init_state(None), Message(jnp.zeros(()), jnp.ones(()))
    acc = aggregator.init(message, 3)
    nobody = Cohort(jnp.arange(3), jnp.zeros(3, bool))
    clips = jax.jit(jax.vmap(lambda key: aggregator.finish(key, state, acc, nobody)[0].clip))(
        jax.random.split(KEY, NUM_DRAWS)
    )
    check_scale(np.log(clips), 3.0 / 10)  # C = exp(-(b - 1/2)), b - 1/2 ~ N(0, sigma_b^2 / m^2)


def test_local_noise_is_each_clients_own():
    """Defect 18: per client, round and leaf; sigma on one report, sigma / sqrt(m) on the mean."""
    mechanism = dp.local_gaussian(
        clip=1.0,
        noise_multiplier=2.0,
        delta=1e-5,
        num_clients=4,
        cohort_size=4,
        num_rounds=10,
    )
    keys = jax.random.split(KEY, 4)
    state = mechanism.uplink.init(LEAVES)
    update = jax.jit(jax.vmap(mechanism.uplink.update, in_axes=(0, None, None)))
    reports = update(keys, state, LEAVES)[1]
    check_scale(reports["b"], 2.0)
    check_different([*reports["a"], *reports["b"]])


def test_local_noise_in_real_rounds():
    data = fl.data.from_arrays({"b": np.zeros(4, np.float32)}, np.arange(4))
    algo = fl.fedavg(
        lambda w, e, key: 0.0 * w[0] * e["b"],
        optax.sgd(1.0),
        plan=fl.Plan(batch_size=1),
        privacy=dp.local_gaussian(
            clip=1.0,
            noise_multiplier=2.0,
            delta=1e-5,
            num_clients=4,
            cohort_size=4,
            num_rounds=10,
        ),
    )
    state, models = algo.init(KEY, jnp.zeros(5000), data), []
    for _ in range(3):
        models.append(np.asarray(state.server.params))
        state, _ = algo.round(KEY, state, data)
    steps = np.diff(models, axis=0)
    check_scale(steps, 2.0 / math.sqrt(4))  # equal noise for all clients would give 2
    check_different(steps)


def test_tree_noise_by_popcount():
    """Variances 1, 1, 2, 1, 2, 2, 3, 1 of the prefixes (KNOWN_ANSWERS 4)."""
    aggregator = dp.tree_sum(clip=0.5, noise_multiplier=1.2, denominator=1.0, num_rounds=8)
    steps = np.asarray(finished(aggregator, jnp.zeros(NUM_DRAWS), 8), np.float64)
    prefixes = steps.cumsum(0)
    variances = [1, 1, 2, 1, 2, 2, 3, 1]
    for prefix, nodes in zip(prefixes, variances, strict=True):
        check_scale(prefix, math.sqrt(nodes) * 0.6)
    # Prefix 3 = block [1, 2] + block [3], 6 = [1..4] + [5, 6], 7 = prefix 6 + [7].
    parts = [prefixes[0], prefixes[1], prefixes[2] - prefixes[1], prefixes[3]]
    parts += [prefixes[4] - prefixes[3], prefixes[5] - prefixes[3], prefixes[6] - prefixes[5]]
    for part in parts:
        check_scale(part, 0.6)
    check_different([*parts, prefixes[7]])


def test_dp_sgd_noise_in_every_step():
    """z S / b in each step, whose key is the batch's."""
    client = dp.dp_sgd(lambda w, e, key: 0.0 * w[0] * e["b"], 1.0, clip=0.5, noise_multiplier=3.0)
    info = ClientInfo(*map(jnp.int32, (0, 4, 2, 0)))
    carry, models = client.start(None, (), jnp.zeros(5000), info), [np.zeros(5000)]
    step = jax.jit(
        lambda carry, key: client.step(
            None, carry, Batch({"b": jnp.zeros(4)}, jnp.ones(4, bool), key)
        )
    )
    for key in jax.random.split(KEY):
        carry = step(carry, key)
        models.append(np.asarray(carry.params))
    steps = np.diff(models, axis=0)
    check_scale(steps, 3.0 * 0.5 / 4)
    check_different(steps)


def test_noise_is_refused_before_clipping():
    with pytest.raises(ValueError, match="noise before clip"):
        fl.chain(gaussian_noise(0.5), fl.clip(1.0))
    with pytest.raises(ValueError, match="stddev"):
        gaussian_noise(-1.0)
    value = {"a": jnp.ones(3)}
    np.testing.assert_array_equal(gaussian_noise(0.0).update(KEY, (), value)[1]["a"], np.ones(3))
