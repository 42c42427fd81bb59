"""Selects, weighted sums and rows of tables, against numpy."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fedjax_lite import trees


def test_where_is_a_select_not_a_product():
    mask = jnp.array([True, False, True])
    good = {"a": jnp.ones((3, 2)), "n": jnp.arange(3), "s": jnp.array([True] * 3)}
    bad = {"a": jnp.full((3, 2), jnp.nan), "n": jnp.full(3, 9), "s": jnp.array([False] * 3)}
    out = trees.where(mask, good, bad)
    np.testing.assert_array_equal(np.isnan(out["a"]), ~np.asarray(mask)[:, None] & np.ones(2, bool))
    assert out["n"].tolist() == [0, 9, 2]
    assert out["n"].dtype == good["n"].dtype
    assert out["s"].tolist() == [True, False, True]
    scalar = trees.where(jnp.array(False), good, bad)
    assert scalar["n"].tolist() == [9, 9, 9]


def test_where_selects_typed_keys():
    left, right = jax.random.split(jax.random.key(0), 3), jax.random.split(jax.random.key(1), 3)
    out = trees.where(jnp.array([True, False, True]), left, right)
    expected = [left[0], right[1], left[2]]
    for got, want in zip(out, expected):
        np.testing.assert_array_equal(jax.random.key_data(got), jax.random.key_data(want))


@settings(max_examples=50, deadline=None)
@given(st.integers(0, 2**32 - 1))
def test_weighted_sum_against_numpy(seed):
    rng = np.random.default_rng(seed)
    a, b = rng.normal(size=(4, 2, 3)).astype(np.float32), rng.normal(size=4).astype(np.float32)
    weight = rng.integers(0, 4, 4).astype(np.float32)
    expected = {"a": np.tensordot(weight, a, 1), "b": weight @ b}
    a[weight == 0], b[weight == 0] = np.nan, np.inf
    got = trees.weighted_sum({"a": jnp.asarray(a), "b": jnp.asarray(b)}, jnp.asarray(weight))
    np.testing.assert_allclose(got["a"], expected["a"], rtol=1e-4, atol=1e-5)
    np.testing.assert_allclose(got["b"], expected["b"], rtol=1e-4, atol=1e-5)


def test_weighted_sum_is_wide():
    out = trees.weighted_sum(jnp.ones(4096, jnp.bfloat16), jnp.ones(4096, jnp.bfloat16))
    assert out.dtype == jnp.float32
    assert float(out) == 4096
    assert trees.weighted_sum(jnp.ones(3, jnp.int8), jnp.full(3, 100, jnp.int32)) == 300


def test_broadcast_prefix():
    tree = {"a": (1, 2), "b": {"c": 3}}
    assert trees.broadcast_prefix(7, tree) == {"a": (7, 7), "b": {"c": 7}}
    assert trees.broadcast_prefix({"a": 1, "b": 2}, tree) == {"a": (1, 1), "b": {"c": 2}}
    with pytest.raises(ValueError, match="a"):
        trees.broadcast_prefix({"a": 1}, tree)


@settings(max_examples=50, deadline=None)
@given(
    st.permutations(range(6)),
    st.lists(st.booleans(), min_size=4, max_size=4),
)
def test_rows_of_a_table(order, mask):
    table = {
        "x": np.arange(12.0, dtype=np.float32).reshape(6, 2),
        "n": np.arange(6, dtype=np.int32),
    }
    rows = np.array(order[:4], np.int32)
    mask = np.array(mask)
    values = {"x": -np.ones((4, 2), np.float32) * (rows[:, None] + 1), "n": -rows - 1}
    got = trees.scatter_rows(
        jax.tree.map(jnp.asarray, table), jnp.asarray(rows), jnp.asarray(mask), values
    )
    expected = {name: leaf.copy() for name, leaf in table.items()}
    for name in expected:
        expected[name][rows[mask]] = values[name][mask]
        np.testing.assert_array_equal(got[name], expected[name])
    gathered = trees.gather_rows(got, jnp.asarray(rows))
    np.testing.assert_array_equal(gathered["n"], expected["n"][rows])


def test_a_masked_row_does_not_overwrite_its_double():
    """A padded slot often repeats row 0, which a real client of the same chunk may own."""
    rows, mask = jnp.array([0, 2, 0, 0]), jnp.array([True, True, False, False])
    out = trees.scatter_rows(jnp.zeros(3), rows, mask, jnp.array([1.0, 2.0, jnp.nan, 9.0]))
    assert out.tolist() == [1.0, 0.0, 2.0]


def test_repeat_rows_and_zeros():
    table = trees.repeat_rows({"a": jnp.array([1.0, 2.0]), "b": 3, "k": ()}, 4)
    assert table["a"].shape == (4, 2)
    assert table["b"].tolist() == [3, 3, 3, 3]
    shapes = jax.eval_shape(lambda: {"a": jnp.ones((2, 3), jnp.bfloat16)})
    assert trees.zeros(shapes)["a"].dtype == jnp.bfloat16
    assert trees.repeat_rows((), 3) == ()


def test_num_bits():
    tree = {"a": jnp.ones((3, 5)), "b": jnp.ones(7, jnp.bfloat16), "c": jnp.int8(1)}
    assert trees.num_bits(tree) == 15 * 32 + 7 * 16 + 8


def test_global_norm_and_its_gradient_at_zero():
    tree = {"a": jnp.array([3.0, 0.0]), "b": jnp.array([[4.0]])}
    assert float(trees.global_norm(tree)) == 5.0
    at_zero = jax.grad(lambda t: trees.global_norm(t))({"a": jnp.zeros(3)})["a"]
    np.testing.assert_array_equal(at_zero, np.zeros(3))
    np.testing.assert_allclose(jax.grad(trees.global_norm)(tree)["b"], [[0.8]])


def test_cast_and_subtract():
    tree = {"a": jnp.array([1.5], jnp.float32)}
    assert trees.cast_like(tree, {"a": jnp.zeros(1, jnp.bfloat16)})["a"].dtype == jnp.bfloat16
    assert float(trees.subtract(tree, {"a": jnp.array([0.25])})["a"][0]) == 1.25


@pytest.mark.parametrize("lanes", [1, 2, 5])
def test_map_lanes_is_vmap(lanes):
    def function(x, tree):
        return {"s": x @ tree["w"], "t": tree["w"].sum()}

    rng = np.random.default_rng(0)
    x, w = rng.normal(size=(lanes, 3)), rng.normal(size=(lanes, 3))
    out = trees.map_lanes(function, lanes)(jnp.asarray(x), {"w": jnp.asarray(w)})
    np.testing.assert_allclose(out["s"], (x * w).sum(1), rtol=1e-5)
    np.testing.assert_allclose(out["t"], w.sum(1), rtol=1e-5)


def test_check_floating_names_the_leaf():
    trees.check_floating({"a": jnp.ones(2), "b": jnp.ones(1, jnp.bfloat16)}, "params")
    for bad in (jnp.ones(2, jnp.int32), jnp.ones(2, bool), 3):
        with pytest.raises(TypeError, match=r"params\['layer'\]\['n'\] must be floating point"):
            trees.check_floating({"layer": {"n": bad}}, "params")


@pytest.mark.parametrize("num_rows", [0, 1, 2, 16, 17])
def test_few_rows_are_added_and_not_reduced(num_rows):
    rows = np.random.default_rng(num_rows).normal(size=(num_rows, 3, 2)).astype(np.float32)
    np.testing.assert_allclose(trees.sum_rows(jnp.asarray(rows)), rows.sum(0), rtol=1e-5, atol=1e-6)
    # A reduction of selected rows is what XLA's CPU backend does one number at a time.
    program = jax.jit(trees.weighted_sum).lower(jnp.asarray(rows), jnp.ones(num_rows)).as_text()
    assert ("stablehlo.reduce" in program) == (num_rows not in (1, 2, 16))
