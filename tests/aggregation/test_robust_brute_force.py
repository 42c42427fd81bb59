"""Robust rules on random stacks, with masks and repeated values, against plain numpy."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from fedjax_lite.aggregation import (
    aggregate_stack,
    bucketing,
    bulyan,
    geometric_median,
    krum,
    mean,
    median,
    multi_krum,
    trimmed_mean,
)
from fedjax_lite.aggregation.blocks import map_blocks, sum_blocks
from fedjax_lite.aggregation.bulyan import _around_median
from fedjax_lite.aggregation.sorting import sort_rows


def test_sorting_network_for_every_cohort():
    """All 0-1 inputs would be too many; every size up to 70 is put to random and to hard rows."""
    rng = np.random.default_rng(0)
    for num in range(1, 71):
        rows = rng.integers(0, 2 if num % 2 else 50, size=(num, 64)).astype(np.float32)
        rows[:, 0], rows[:, 1] = np.arange(num), -np.arange(num)
        with jax.disable_jit():
            got = _network_in_numpy(rows)
        np.testing.assert_array_equal(got, np.sort(rows, 0))
    for num in (1, 2, 50, 70):
        rows = rng.normal(size=(num, 9)).astype(np.float32)
        np.testing.assert_array_equal(jax.jit(sort_rows)(rows), np.sort(rows, 0))


def _network_in_numpy(rows):
    from fedjax_lite.aggregation.sorting import network

    for partner, lower in zip(*network(len(rows)), strict=True):
        other = rows[partner]
        rows = np.where(lower[:, None], np.minimum(rows, other), np.maximum(rows, other))
    return rows


def test_blocks_do_not_show():
    stack = {
        "a": jnp.arange(30.0).reshape(3, 2, 5) ** 2,
        "b": jnp.ones((3,)),
        "c": jnp.ones((3, 0)),
    }
    center = jax.tree.map(lambda leaf: 0.5 * leaf[0], stack)
    for size in (1, 4, 10, 99):
        got = map_blocks(lambda x, z: x.sum(0) - z, stack, center, block_size=size)
        for name, leaf in stack.items():
            np.testing.assert_allclose(got[name], leaf.sum(0) - center[name])
        total = sum_blocks(lambda x, z: (x - z).sum(-1), stack, center, block_size=size)
        flat = sum(
            (np.asarray(stack[n]) - np.asarray(center[n])).reshape(3, -1).sum(1) for n in stack
        )
        np.testing.assert_allclose(total, flat)


def brute_krum(rows, num_byzantine, many):
    squares = ((rows[:, None] - rows[None]) ** 2).sum(-1)
    count = len(rows) - num_byzantine - 2
    score = [np.sort(np.delete(squares[i], i))[:count].sum() for i in range(len(rows))]
    return rows[np.argsort(score, kind="stable")[:many]].mean(0)


def brute_bulyan(rows, num_byzantine):
    left, chosen = list(range(len(rows))), []
    for _ in range(len(rows) - 2 * num_byzantine):
        some = rows[left]
        squares = ((some[:, None] - some[None]) ** 2).sum(-1)
        count = max(1, len(left) - num_byzantine - 2)
        score = [np.sort(np.delete(squares[i], i))[:count].sum() for i in range(len(left))]
        chosen.append(left.pop(int(np.argmin(score))))
    return brute_around_median(rows[chosen], len(chosen) - 2 * num_byzantine)


def brute_around_median(some, count):
    """The `count` values nearest to the median; of two equally near ones the larger."""
    away = np.abs(some - np.median(some, 0))
    near = np.lexsort((-some, away), axis=0)[:count]
    return np.take_along_axis(some, near, 0).mean(0)


def brute_weiszfeld(rows, weights, steps=3, smoothing=1e-6):
    center = (weights[:, None] * rows).sum(0) / weights.sum()
    for _ in range(steps):
        near = weights / np.maximum(np.linalg.norm(rows - center, axis=1), smoothing)
        center = (near[:, None] * rows).sum(0) / near.sum()
    return center


def brute_trimmed(rows, cut):
    return np.sort(rows, 0)[cut : len(rows) - cut].mean(0)


BRUTE = {
    "median": (median(), lambda u, w: np.median(u, 0)),
    "trimmed": (trimmed_mean(0.2), lambda u, w: brute_trimmed(u, len(u) // 5)),
    "krum": (krum(2), lambda u, w: brute_krum(u, 2, 1)),
    "multi krum": (multi_krum(2), lambda u, w: brute_krum(u, 2, len(u) - 2)),
    "multi krum 3": (multi_krum(2, num_selected=3), lambda u, w: brute_krum(u, 2, 3)),
    "bulyan": (bulyan(1), lambda u, w: brute_bulyan(u, 1)),
    "bulyan 0": (bulyan(0), lambda u, w: brute_bulyan(u, 0)),
    "rfa": (geometric_median(), lambda u, w: brute_weiszfeld(u, np.ones(len(u)))),
    "rfa weighted": (geometric_median(weighted=True), brute_weiszfeld),
    "mean in buckets": (bucketing(1, inner=mean()), lambda u, w: u.mean(0)),
}


@pytest.mark.sample(5)
@pytest.mark.parametrize("name", BRUTE)
def test_random_stacks_with_masks_equal_numpy(name):
    rule, brute = BRUTE[name]
    run = jax.jit(lambda v, w, m: aggregate_stack(rule, v, weights=w, mask=m))
    for seed in range(6):
        rng = np.random.default_rng(seed)
        rows = (rng.normal(size=(11, 4)) * 10.0 ** rng.integers(-2, 3, size=(11, 1))).astype("f4")
        weights = rng.uniform(1, 5, size=11).astype("f4")
        mask = np.ones(11, bool)
        mask[rng.permutation(11)[: seed % 5]] = False
        spoiled = np.where(mask[:, None], rows, np.nan)
        got = run(spoiled, weights, mask)
        expected = brute(rows[mask].astype(float), weights[mask].astype(float))
        np.testing.assert_allclose(got, expected, rtol=2e-4, atol=1e-6)


@pytest.mark.sample(5)
@pytest.mark.parametrize("name", BRUTE)
def test_repeated_values_equal_numpy(name):
    """Small integers: distances tie, exactly."""
    rule, brute = BRUTE[name]
    run = jax.jit(lambda v: aggregate_stack(rule, v))
    for seed in range(6):
        rows = np.random.default_rng(seed).integers(-2, 5, size=(11, 30)).astype("f4")
        expected = brute(rows.astype(float), np.ones(11))
        np.testing.assert_allclose(run(rows), expected, rtol=2e-4, atol=1e-5)


def test_values_around_the_median_where_values_repeat():
    """Every column is a selection of its own, with 2 f = 2, 4, 6 values to leave out."""
    for selection, mean_of_three in (((-1, 3, 3, 4, 4), 10 / 3), ((-2, 0, 1, 4, 4), 5 / 3)):
        rows = np.array(selection, "f4")[:, None]
        np.testing.assert_allclose(_around_median(rows, 5, 1), [mean_of_three], rtol=1e-6)
        np.testing.assert_allclose(brute_around_median(rows, 3), [mean_of_three], rtol=1e-6)
    around = jax.jit(_around_median, static_argnums=(1, 2))
    for num_byzantine in (0, 1, 2, 3):
        for num in (2 * num_byzantine + 3, 2 * num_byzantine + 6):
            rng = np.random.default_rng(num)
            rows = np.sort(rng.integers(-3, 6, size=(num, 500)), 0).astype("f4")
            padded = np.concatenate([rows, np.full((2, 500), np.inf, "f4")])  # who is not chosen
            got = around(padded, num, num_byzantine)
            expected = brute_around_median(rows.astype(float), num - 2 * num_byzantine)
            np.testing.assert_allclose(got, expected, rtol=1e-5, atol=1e-6)
