"""The weighted mean as a law: sum n_k / n w_k, whatever the order, split, scale and padding."""

from typing import Any

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import fedjax_lite as fl
from fedjax_lite.aggregation import weight_by

MEAN = fl.mean()
ADD = jax.jit(MEAN.add)


def message(value, weight):
    return fl.Message(value, weight)


def first(tree):
    return jax.tree.map(lambda leaf: leaf[0], tree)


def aggregate(msg, mask=None, splits=1, mean=MEAN):
    """One pass, or `splits` accumulators merged by +."""
    size = jax.tree.leaves(msg.value)[0].shape[0]
    mask = jnp.ones(size, bool) if mask is None else jnp.asarray(mask)
    parts = []
    for index in np.array_split(np.arange(size), splits):
        part = jax.tree.map(lambda leaf: leaf[index], msg)  # noqa: B023
        zero = mean.init(first(msg), size)
        parts.append(ADD(zero, part, jnp.asarray(index, jnp.int32), mask[index]))
    acc = jax.tree.map(lambda *leaves: sum(leaves), *parts)
    _, value = mean.finish(jax.random.key(0), (), acc, fl.Cohort(jnp.arange(size), mask))
    return value


def test_known_answer():
    msg = message(jnp.array([[1.0, 2], [3, 4], [5, 6]]), jnp.array([10.0, 20, 70]))
    np.testing.assert_allclose(aggregate(msg), [4.2, 5.2], rtol=1e-6)


finite = st.floats(-100, 100, width=32)
SIZE = 6


@settings(max_examples=40, deadline=None)
@given(
    values=st.lists(finite, min_size=SIZE, max_size=SIZE),
    counts=st.lists(st.integers(0, 1000), min_size=SIZE, max_size=SIZE),
    order=st.permutations(range(SIZE)),
    mask=st.lists(st.booleans(), min_size=SIZE, max_size=SIZE),
    scale=st.sampled_from([2.0**-10, 0.25, 3.0, 1024.0]),
    splits=st.integers(1, SIZE),
    poison=st.sampled_from([np.nan, np.inf, -np.inf, 1e38]),
)
def test_sum_of_shares(values, counts, order, mask, scale, splits, poison):
    values, counts = np.array(values, np.float32), np.array(counts, np.float64)
    mask, order = np.array(mask), np.array(order)
    counted = np.where(mask, counts, 0)
    total = counted.sum()
    expected = (counted * values).sum() / total if total else 0.0
    # Whoever does not count holds poison: it must leave no trace.
    sent = np.where(counted > 0, values, np.float32(poison))
    tree = {"a": jnp.asarray(sent), "b": jnp.asarray(np.stack([sent, 2 * sent], 1))}
    msg = message(tree, jnp.asarray(counts, jnp.float32))
    got = aggregate(msg, mask)
    tolerance: dict[str, Any] = {"rtol": 2e-5, "atol": 2e-4}
    np.testing.assert_allclose(got["a"], expected, **tolerance)
    np.testing.assert_allclose(got["b"], [expected, 2 * expected], **tolerance)
    permuted = aggregate(jax.tree.map(lambda leaf: leaf[order], msg), mask[order])
    scaled = aggregate(msg._replace(weight=msg.weight * scale), mask)
    merged = aggregate(msg, mask, splits=splits)
    for other in (permuted, scaled, merged):
        np.testing.assert_allclose(other["b"], got["b"], **tolerance)


def test_all_masked_or_all_weightless_is_zero():
    value = {"a": jnp.full((3, 2), jnp.nan), "b": jnp.ones(3)}
    for weight, mask in (
        (jnp.ones(3), [False] * 3),
        (jnp.zeros(3), [True] * 3),
        (jnp.full(3, jnp.nan), [False] * 3),
    ):
        got = aggregate(message(value, weight), mask)
        np.testing.assert_array_equal(got["a"], np.zeros(2))
        np.testing.assert_array_equal(got["b"], 0)


def test_nan_of_someone_who_counts_is_not_hidden():
    got = aggregate(message(jnp.array([[1.0, jnp.nan], [3.0, 3.0]]), jnp.ones(2)))
    assert float(got[0]) == 2.0
    assert np.isnan(got[1])


def test_masked_rows_leave_no_trace_bit_for_bit():
    rng = np.random.default_rng(0)
    value = jnp.asarray(rng.normal(size=(4, 5)), jnp.float32)
    weight = jnp.array([3.0, 5.0, 7.0, 2.0])
    mask = jnp.array([True, False, True, False])
    plain = aggregate(message(jnp.where(mask[:, None], value, 0), weight), mask)
    poisoned = aggregate(
        message(jnp.where(mask[:, None], value, jnp.nan), jnp.where(mask, weight, jnp.inf)), mask
    )
    np.testing.assert_array_equal(plain, poisoned)


def test_zero_is_the_identity_of_addition():
    msg = message({"a": jnp.arange(6.0).reshape(3, 2)}, jnp.array([1.0, 2.0, 3.0]))
    zero = MEAN.init(first(msg), 3)
    assert all(not leaf.any() for leaf in jax.tree.leaves(zero))
    acc = ADD(zero, msg, jnp.arange(3), jnp.ones(3, bool))
    both = jax.tree.map(jnp.add, zero, acc)
    chex.assert_trees_all_equal(acc, both)
    same = ADD(acc, msg, jnp.arange(3), jnp.zeros(3, bool))
    chex.assert_trees_all_equal(acc, same)


def test_accumulator_is_small_and_wide():
    msg = message({"a": jnp.ones((7,), jnp.bfloat16), "n": jnp.ones((), jnp.float16)}, jnp.int32(3))
    acc = MEAN.init(msg, 10_000)
    assert sum(leaf.size for leaf in jax.tree.leaves(acc)) == 9  # model + one weight
    assert {leaf.dtype for leaf in jax.tree.leaves(acc)} == {jnp.dtype("float32")}


@pytest.mark.parametrize("dtype", [jnp.bfloat16, jnp.float16])
def test_low_precision_values_are_summed_in_float32(dtype):
    """1 + 4095 times 2^-9: in bfloat16 or float16 the sum sticks long before its end."""
    count = 4096
    values = jnp.full((count,), 2.0**-9, dtype).at[0].set(1.0)
    got = aggregate(message(values, jnp.ones(count)), splits=64)
    expected = (1 + (count - 1) * 2.0**-9) / count
    np.testing.assert_allclose(float(got), expected, rtol=1e-6)


def test_integer_counts_as_weights():
    """Counts whose sum passes float16 and bfloat16 precision stay exact in float32."""
    counts = jnp.array([1, 2**22, 2**22 + 1], jnp.int32)
    got = aggregate(message(jnp.array([0.0, 1.0, 1.0]), counts))
    np.testing.assert_allclose(float(got), 1 - 1 / (2**23 + 2), rtol=1e-7)


def test_one_weight_per_model():
    """weight [L, K] for values [L, K, ...]: clustered models, each its own mean."""
    rng = np.random.default_rng(0)
    value = rng.normal(size=(5, 3, 4)).astype(np.float32)
    choice = np.array([0, 2, 0, 0, 2])
    weight = np.eye(3)[choice] * np.array([1, 2, 3, 4, 5])[:, None]
    value[weight == 0] = np.nan
    got = aggregate(message({"w": jnp.asarray(value)}, {"w": jnp.asarray(weight, jnp.float32)}))
    for k in (0, 2):
        rows = choice == k
        expected = np.average(value[rows, k], axis=0, weights=weight[rows, k])
        np.testing.assert_allclose(got["w"][k], expected, rtol=1e-5)
    np.testing.assert_array_equal(got["w"][1], np.zeros(4))


def test_a_mask_as_weight_averages_every_coordinate_over_those_who_sent_it():
    rng = np.random.default_rng(1)
    value = rng.normal(size=(4, 6)).astype(np.float32)
    weight = rng.integers(0, 2, (4, 6)).astype(np.float32)
    weight[:, 2] = 0
    got = aggregate(message(jnp.asarray(value), jnp.asarray(weight)))
    total = weight.sum(0)
    expected = np.where(total > 0, (value * weight).sum(0) / np.maximum(total, 1), 0)
    np.testing.assert_allclose(got, expected, rtol=1e-5, atol=1e-7)


def test_weights_as_a_tree_prefix():
    """One weight for a whole branch, another for a leaf."""
    value = {
        "body": {"w": jnp.ones((2, 3)), "b": jnp.array([2.0, 4.0])},
        "head": jnp.array([1.0, 5]),
    }
    weight = {"body": jnp.array([1.0, 3.0]), "head": jnp.array([1.0, 0.0])}
    got = aggregate(message(value, weight), splits=2)
    np.testing.assert_allclose(got["body"]["b"], 3.5)
    np.testing.assert_allclose(got["body"]["w"], np.ones(3))
    np.testing.assert_allclose(got["head"], 1.0)


def info(size, num_steps):
    return fl.ClientInfo(*map(jnp.int32, (3, size, num_steps, 0)))


def test_named_weights_and_clients_without_work():
    assert float(weight_by("examples")(info(25, 2))) == 25
    assert float(weight_by("uniform")(info(25, 2))) == 1
    assert float(weight_by(lambda i: i.id * 2.0)(info(25, 2))) == 6
    for weighting in ("examples", "uniform", lambda i: 7.0):
        assert float(weight_by(weighting)(info(25, 0))) == 0
        assert float(weight_by(weighting)(info(0, 0))) == 0


@pytest.mark.parametrize("weighting", ["size", "", None, 1.0])
def test_unknown_weighting(weighting):
    with pytest.raises((ValueError, TypeError), match=r"weighting must be one of .*examples.*got"):
        weight_by(weighting)
