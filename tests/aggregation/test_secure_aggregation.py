"""secure_mean inside jit: the protocol's integers, masks that cancel, drop-outs, the ring."""

import itertools
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import fedjax_lite as fl
from fedjax_lite import crypto, testing
from fedjax_lite.aggregation.secure import (
    SecureSums,
    lane_masks,
    left_over_masks,
    pair_mask,
    secure_mean,
)
from fedjax_lite.types import Cohort, Message

CLIP, BITS = 1.0, 16
STEP = 2 * CLIP / (2**BITS - 1)
SEED = np.array([5, 6], np.uint32)


def stack(num_clients, *, size=7, seed=0, scale=0.5):
    rng = np.random.default_rng(seed)
    value = {
        "a": jnp.asarray(scale * rng.normal(size=(num_clients, size)), jnp.float32),
        "b": jnp.asarray(scale * rng.normal(size=(num_clients, 2, 1)), jnp.float32),
    }
    return Message(value, jnp.asarray(rng.integers(1, 9, num_clients), jnp.float32))


def flat(tree):
    return np.concatenate([np.asarray(leaf).ravel() for leaf in jax.tree.leaves(tree)])


def rows(value):
    leaves = [np.asarray(leaf) for leaf in jax.tree.leaves(value)]
    return np.concatenate([leaf.reshape(len(leaf), -1) for leaf in leaves], axis=1)


@partial(jax.jit, static_argnames=("aggregator", "lanes"))
def fold(aggregator, messages, mask, state=None, *, lanes=None):
    """The accumulator and the aggregate."""
    size = mask.shape[0]
    state = aggregator.init_state(None) if state is None else state
    now = aggregator if aggregator.at is None else aggregator.at(state)
    acc = now.init(jax.tree.map(lambda leaf: leaf[0], messages), size)
    for low in range(0, size, lanes or size):
        part = slice(low, low + (lanes or size))
        some = jax.tree.map(lambda leaf: leaf[part], messages)  # noqa: B023
        acc = now.add(acc, some, jnp.arange(size)[part], mask[part])
    cohort = Cohort(jnp.arange(size, dtype=jnp.int32), mask)
    return acc, now.finish(jax.random.key(1), state, acc, cohort)


def patterns(num_clients, least=0):
    for pattern in itertools.product((True, False), repeat=num_clients):
        if sum(pattern) >= least:
            yield np.array(pattern)


PLAIN = secure_mean(max_abs=CLIP, bits=BITS)
MASKED = secure_mean(max_abs=CLIP, bits=BITS, masks="pairwise")
WEIGHTED = {"max_abs": CLIP, "bits": BITS, "weighting": "message", "max_weight": 8}


@pytest.mark.sample(1)
@pytest.mark.parametrize("num_clients", [4, 5])
def test_protocol_and_jit_agree_bit_for_bit(num_clients):
    """Every drop-out pattern down to the threshold: the same sums, the same mean."""
    messages, threshold = stack(num_clients), num_clients // 2 + 1
    codes = crypto.encode(rows(messages.value), max_abs=CLIP, bits=BITS)
    sent = np.concatenate([codes, np.ones((num_clients, 1), np.uint32)], axis=1)
    for mask in patterns(num_clients, threshold):
        drops = {i: "mask" for i in range(num_clients) if not mask[i]}
        outcome = crypto.secure_sum(dict(enumerate(sent)), threshold=threshold, drops=drops)
        acc, (_, value) = fold(PLAIN, messages, mask)
        assert flat((acc.values, acc.weight)).tolist() == outcome.total.tolist()
        np.testing.assert_array_equal(outcome.total[:-1], codes[mask].sum(0, dtype=np.uint32))
        # The masks of the other form leave exactly the same behind.
        _, (_, unmasked) = fold(MASKED, messages, mask)
        assert flat(unmasked).tobytes() == flat(value).tobytes()
        decoded = crypto.decode_mean(outcome.total[:-1], outcome.total[-1], max_abs=CLIP, bits=BITS)
        np.testing.assert_allclose(flat(value), decoded, rtol=1e-6, atol=1e-9)


@pytest.mark.parametrize("options", [{}, WEIGHTED])
@pytest.mark.parametrize("masks", ["none", "pairwise"])
def test_mean_is_within_half_a_step_of_the_float_mean(options, masks):
    messages = stack(5, scale=0.3)
    aggregator = secure_mean(**{"max_abs": CLIP, "bits": BITS, **options}, masks=masks)
    weights = np.asarray(messages.weight) if options else np.ones(5)
    for mask in ([True] * 5, [True, False, True, True, False]):
        _, (_, value) = fold(aggregator, messages, np.array(mask))
        expected = (weights * mask) @ np.clip(rows(messages.value), -CLIP, CLIP)
        np.testing.assert_allclose(flat(value), expected / (weights * mask).sum(), atol=0.51 * STEP)


def test_error_falls_with_the_bits():
    """Four more bits, sixteen times less: within half a step at each."""
    messages, everybody = stack(6, scale=0.3), np.ones(6, bool)
    expected = np.clip(rows(messages.value), -1, 1).mean(0)
    errors = []
    for bits in (8, 12, 16):
        _, (_, value) = fold(secure_mean(max_abs=1.0, bits=bits), messages, everybody)
        errors.append(np.abs(flat(value) - expected).max())
        assert errors[-1] <= 0.51 * 2 / (2**bits - 1)
    assert errors[0] > 4 * errors[1] > 16 * errors[2]


def test_laws_of_weighted_sums_under_masks():
    """The others are in the registry."""
    options = {**WEIGHTED, "max_weight": 60, "max_abs": 20.0}
    testing.check_aggregator(secure_mean(**options, masks="pairwise"))


def test_chunks_give_the_same_bits():
    messages, mask = stack(5), np.array([True, True, False, True, True])
    for aggregator, chunks in ((PLAIN, [2]), (MASKED, [1, 2])):
        whole, value = fold(aggregator, messages, mask)
        for lanes in chunks:
            acc, other = fold(aggregator, messages, mask, lanes=lanes)
            assert flat(acc).tobytes() == flat(whole).tobytes()
            assert flat(other).tobytes() == flat(value).tobytes()


def test_masks_cancel_in_pairs_and_only_there():
    """Over 3 slots, every pattern of drop-outs, against the formula."""
    of = {
        (s, t): np.asarray(pair_mask(SEED, s, t, length=5))
        for s, t in itertools.product(range(3), repeat=2)
    }
    for (s, t), words in of.items():
        assert s == t or not (words + of[t, s]).any()
    streams = [words for (s, t), words in of.items() if s <= t]
    for a, b in itertools.combinations(streams, 2):
        assert (a != b).all(), "every stream is another one"
    lanes = np.asarray(lane_masks(SEED, jnp.arange(3), num_slots=3, length=5))
    for s in range(3):
        expected = of[s, 0] + of[s, 1] + of[s, 2]
        assert lanes[s].tolist() == expected.tolist()
    for present in patterns(3):
        left = left_over_masks(SEED, jnp.asarray(present), length=5)
        assert left.tolist() == lanes[present].sum(0, dtype=np.uint32).tolist()


def test_what_enters_the_sum_is_uniform_and_fresh():
    """One client's vector of zeros: chi-square of bytes at 1e-6 (255 degrees: 378)."""
    messages = Message(jnp.zeros((3, 8000)), jnp.ones(3))
    first, (state, value) = fold(MASKED, messages, np.array([True, False, False]))
    counts = np.bincount(np.asarray(first.values).view(np.uint8), minlength=256)
    assert ((counts - 125) ** 2 / 125).sum() < 378
    plain, (_, unmasked) = fold(PLAIN, messages, np.array([True, False, False]))
    assert len(np.unique(plain.values)) == 1
    assert flat(value).tobytes() == flat(unmasked).tobytes()
    assert (np.asarray(state.seed) != 0).any()
    second, (_, again) = fold(MASKED, messages, np.array([True, False, False]), state)
    assert (np.asarray(second.values) != np.asarray(first.values)).mean() > 0.999
    assert flat(again).tobytes() == flat(value).tobytes()


def test_hostile_values_move_the_mean_by_the_clip_only():
    """Infinities count as the range's ends, NaN as 0; the share outside the range is reported."""
    values = jnp.array([[0.5, 0.5], [jnp.inf, jnp.nan], [-1e30, 0.25], [0.0, 0.0]])
    _, (state, value) = fold(PLAIN, Message(values, jnp.ones(4)), np.array([True] * 3 + [False]))
    np.testing.assert_allclose(value, [(0.5 + 1 - 1) / 3, (0.5 + 0 + 0.25) / 3], atol=0.51 * STEP)
    # (0 + 2/2 + 1/2) / 3
    assert float(state.metrics["secure_clipped"]) == pytest.approx(0.5)


@pytest.mark.parametrize("masks", ["none", "pairwise"])
def test_zero_updates_stay_zero_where_zero_is_a_level(masks):
    messages = Message({"a": jnp.zeros((3, 4))}, jnp.ones(3))
    mask = np.array([True, False, True])
    _, (_, value) = fold(
        secure_mean(max_abs=CLIP, bits=BITS, exact_zero=True, masks=masks), messages, mask
    )
    assert not flat(value).any()
    _, (_, drifts) = fold(secure_mean(max_abs=CLIP, bits=BITS, masks=masks), messages, mask)
    np.testing.assert_allclose(flat(drifts), STEP / 2, rtol=1e-6)


def test_integer_weights_are_rounded_and_bounded():
    values = jnp.array([[0.9], [0.0], [-0.9], [0.5]])
    weights = jnp.array([2.4, 100.0, jnp.nan, -3.0])
    acc, (_, value) = fold(secure_mean(**WEIGHTED), Message(values, weights), np.ones(4, bool))
    assert int(acc.weight) == 2 + 8
    np.testing.assert_allclose(value, [2 * 0.9 / 10], atol=0.51 * STEP)
    # Uniform: whoever has a weight counts once.
    acc, _ = fold(PLAIN, Message(values, jnp.array([5.0, 0.0, 1.0, 2.0])), np.ones(4, bool))
    assert int(acc.weight) == 3


@pytest.mark.parametrize("masks", ["none", "pairwise"])
def test_too_few_survivors_abort(masks):
    aggregator = secure_mean(max_abs=CLIP, bits=BITS, masks=masks, threshold=3)
    messages = stack(4)
    for mask in patterns(4):
        _, (state, value) = fold(aggregator, messages, mask)
        assert float(state.metrics["secure_aborted"]) == (mask.sum() < 3)
        assert (flat(value) == 0).all() == (mask.sum() < 3)


def test_a_ring_that_could_wrap_is_refused_before_training():
    with pytest.raises(ValueError, match=r"65538 clients .* would wrap around 2\*\*32; use bits"):
        secure_mean(max_abs=1.0, bits=16, cohort_size=65_538)
    secure_mean(max_abs=1.0, bits=16, cohort_size=65_537)
    with pytest.raises(ValueError, match="max_weight"):
        secure_mean(max_abs=1.0, bits=20, weighting="message", max_weight=1000, cohort_size=5)
    aggregator = secure_mean(max_abs=1.0, bits=24)
    template = Message(jnp.zeros(2), jnp.float32(1))
    aggregator.init(template, 256)
    with pytest.raises(ValueError, match="257 clients"):
        aggregator.init(template, 257)


@pytest.mark.parametrize(
    ("options", "match"),
    [
        ({"max_abs": 0.0}, "max_abs"),
        ({"bits": 0}, "bits"),
        ({"bits": 25}, "bits"),
        ({"masks": "all"}, "masks"),
        ({"weighting": "examples"}, "weighting"),
        ({"max_weight": 5}, "max_weight"),
        ({"threshold": 0}, "threshold"),
    ],
)
def test_bad_options_are_named(options, match):
    with pytest.raises(ValueError, match=match):
        secure_mean(**{"max_abs": 1.0, **options})


def test_weights_that_are_no_numbers_are_refused():
    message = Message({"a": jnp.zeros(2)}, {"a": jnp.ones(2)})
    with pytest.raises(ValueError, match="one weight a client"):
        secure_mean(**WEIGHTED).init(message, 3)


def fedavg(aggregator, **options):
    return fl.fedavg(
        testing.loss,
        optax.sgd(0.05),
        plan=fl.Plan(batch_size=2, epochs=1),
        sampler=fl.everyone(),
        weighting="uniform",
        aggregator=aggregator,
        **options,
    )


def trained(algo, *, num_rounds=3):
    data, key = testing.population(), jax.random.key(0)
    state = algo.init(key, testing.init_params(jax.random.key(7)), data)
    for _ in range(num_rounds):
        state, metrics = algo.round(key, state, data)
    return state, metrics


def test_a_federated_run_under_secure_sums():
    """FedAvg over masked sums: the same bytes under every strategy, near the plain mean."""
    masked = secure_mean(max_abs=4.0, bits=20, masks="pairwise")
    runs = [
        trained(fedavg(aggregator, strategy=strategy))
        for aggregator, strategy in (
            (secure_mean(max_abs=4.0, bits=20), fl.sequential()),
            (masked, fl.sequential()),
        )
    ]
    assert flat(runs[0][0].server.params).tobytes() == flat(runs[1][0].server.params).tobytes()
    lanes, _ = trained(fedavg(masked, strategy=fl.chunked(3)))
    plain, _ = trained(fedavg(fl.mean(), strategy=fl.sequential()))
    step = 8.0 / (2**20 - 1)
    for other in (plain, lanes):
        # Half a step a round, and what it grows to; rounding across lanes can move a code by one.
        assert np.abs(flat(other.server.params) - flat(runs[1][0].server.params)).max() < 6 * step
    state, metrics = runs[1]
    assert float(metrics["secure_clipped"]) == 0
    assert float(metrics["secure_aborted"]) == 0
    assert isinstance(state.aggregator.seed, jax.Array)


def test_a_cohort_that_does_not_fit_stops_the_first_round():
    algo = fedavg(secure_mean(max_abs=1.0, bits=24, weighting="message", max_weight=200))
    with pytest.raises(ValueError, match=r"7 clients .* weight 200"):
        trained(algo, num_rounds=1)


def test_sums_are_ring_elements():
    acc = PLAIN.init(Message({"w": jnp.zeros((2, 3))}, jnp.float32(1)), 4)
    assert isinstance(acc, SecureSums)
    assert {leaf.dtype.name for leaf in jax.tree.leaves(acc[:3])} == {"uint32"}
    # 2**32 - 1 and 2 add up to 1: parts merge by + modulo 2**32.
    top = acc._replace(weight=jnp.uint32(2**32 - 1))
    merged = jax.tree.map(jnp.add, top, acc._replace(weight=jnp.uint32(2)))
    assert int(merged.weight) == 1
