"""FederatedDataset: CSR rows from any keys, and bad input refused by name."""

import inspect
import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import fedjax_lite as fl
from fedjax_lite.data.population.dataset import FederatedDataset, check_examples, from_arrays


def rows_by_client(data):
    """What every client holds, through offsets and order themselves."""
    order = np.arange(data.num_examples) if data.order is None else np.asarray(data.order)
    offsets = np.asarray(data.offsets)
    return [order[low:high].tolist() for low, high in itertools.pairwise(offsets)]


@settings(max_examples=15, deadline=None)
@given(st.lists(st.integers(0, 6), min_size=1, max_size=12))  # each length compiles anew
def test_every_example_has_exactly_its_owner(owners):
    owners = np.array(owners)
    x = np.arange(len(owners), dtype=np.float32) * 10
    data = from_arrays({"x": x}, owners, num_clients=7)
    assert data.num_clients == 7
    assert data.num_examples == len(owners)
    assert data.sizes.tolist() == np.bincount(owners, minlength=7).tolist()
    assert data.max_client_size == np.bincount(owners).max()
    assert data.client_of_example.tolist() == owners.tolist()
    expected = [np.flatnonzero(owners == i).tolist() for i in range(7)]
    assert rows_by_client(data) == expected
    for i in range(7):
        assert data.client(i)["x"].tolist() == x[expected[i]].tolist()


def test_string_keys_are_numbered_in_sorted_order():
    data = from_arrays({"x": np.arange(5)}, ["macbeth", "hamlet", "macbeth", "ariel", "hamlet"])
    assert data.num_clients == 3
    assert data.client_of_example.tolist() == [2, 1, 2, 0, 1]
    assert data.client(2)["x"].tolist() == [0, 2]


def test_sparse_integer_keys_without_and_with_num_clients():
    data = from_arrays({"x": np.arange(3)}, [700, -5, 700])
    assert data.client_of_example.tolist() == [1, 0, 1]
    data = from_arrays({"x": np.arange(3)}, np.array([3, 0, 3], np.uint8), num_clients=5)
    assert data.sizes.tolist() == [1, 0, 0, 2, 0]


def test_order_is_left_out_where_examples_lie_client_by_client():
    assert from_arrays({"x": np.arange(4)}, [0, 0, 1, 3], num_clients=6).order is None
    data = from_arrays({"x": np.arange(4)}, [1, 0, 0, 1])
    assert data.order is not None
    assert data.order.dtype == jnp.int32
    assert data.offsets.dtype == jnp.int32


def test_raw_dtypes_are_kept():
    examples = {
        "image": np.zeros((3, 4, 4, 1), np.uint8),
        "y": np.zeros(3, np.int32),
        "m": np.zeros(3, bool),
        "h": np.zeros((3, 2), np.float16),
    }
    data = from_arrays(examples, [0, 1, 0])
    assert {k: v.dtype for k, v in data.examples.items()} == {
        k: v.dtype for k, v in examples.items()
    }
    assert all(isinstance(leaf, jax.Array) for leaf in jax.tree.leaves(data))


def test_any_pytree_of_examples():
    data = from_arrays((np.arange(3), [np.ones((3, 2))]), [0, 1, 1])
    assert data.client(1)[0].tolist() == [1, 2]
    assert from_arrays(np.arange(3), [0, 0, 0]).num_examples == 3


def test_it_is_a_pytree_whose_largest_client_is_static():
    data = from_arrays({"x": np.arange(4.0)}, [1, 0, 1, 1])
    out = jax.jit(lambda d: (d, d.sizes, d.client_of_example))(data)
    assert out[0].max_client_size == 3
    assert out[1].tolist() == [1, 3]
    assert out[2].tolist() == [1, 0, 1, 1]
    assert jax.tree.structure(data) == jax.tree.structure(out[0])


@pytest.mark.parametrize("index", [-1, 2, 99])
def test_client_index_is_checked(index):
    data = from_arrays({"x": np.arange(3)}, [0, 1, 1])
    with pytest.raises(ValueError, match=rf"index must be in \[0, 2\), got {index}"):
        data.client(index)


X3 = {"x": np.arange(3.0)}


@pytest.mark.parametrize(
    ("examples", "ids", "options", "error", "message"),
    [
        ({}, [], {}, ValueError, "examples must hold at least one array"),
        ({"x": np.zeros((0, 2))}, [], {}, ValueError, "examples must not be empty"),
        (
            {"x": np.zeros(3), "y": np.zeros(4)},
            [0] * 3,
            {},
            ValueError,
            "share their leading axis.*3.*4",
        ),
        ({"x": np.float32(1)}, [0], {}, ValueError, r"examples\['x'\] must have a leading axis"),
        (X3, [0, 1], {}, ValueError, r"client_ids must have shape \[3\].*got \[2\]"),
        (X3, [[0, 1, 1]], {}, ValueError, r"client_ids must have shape \[3\].*got \[1, 3\]"),
        (X3, [0, 1, 2], {"num_clients": 2}, ValueError, r"num_clients=2\), got 0\.\.2"),
        (X3, [0, -1, 1], {"num_clients": 2}, ValueError, r"num_clients=2\), got -1\.\.1"),
        (X3, ["a", "b", "a"], {"num_clients": 2}, TypeError, "client_ids must be integers when"),
        (X3, [0.0, 1.0, 1.0], {"num_clients": 2}, TypeError, "client_ids must be integers when"),
        (X3, [0, 0, 0], {"num_clients": 0}, ValueError, "num_clients"),
        (X3, [0, 0, 0], {"num_clients": 1.5}, TypeError, "num_clients must be an int"),
        (
            {"x": np.array([1.0, np.nan])},
            [0, 1],
            {},
            ValueError,
            r"examples\['x'\] holds NaN.*row 1",
        ),
        (
            {"x": np.array([[0.0, np.inf]])},
            [0],
            {},
            ValueError,
            r"examples\['x'\] holds NaN.*row 0",
        ),
        ({"t": np.array(["a", "b"])}, [0, 1], {}, TypeError, r"examples\['t'\] must be numeric"),
        ({"t": np.array([None, 1])}, [0, 1], {}, TypeError, r"examples\['t'\] must be numeric"),
    ],
)
def test_errors(examples, ids, options, error, message):
    with pytest.raises(error, match=message):
        from_arrays(examples, ids, **options)


def test_values_that_float32_cannot_hold_do_not_become_infinity():
    """1e39 is finite in numpy and infinite on the device: finiteness holds for what is stored."""
    with pytest.raises(ValueError, match=r"examples\['x'\]"):
        from_arrays({"x": np.array([1.0, 1e39])}, [0, 1])


def test_integers_that_int32_cannot_hold_do_not_wrap():
    with pytest.raises(ValueError, match=r"examples\['x'\]"):
        from_arrays({"x": np.array([1, 2**40 + 3])}, [0, 1])


def test_nan_in_bfloat16_is_seen():
    with pytest.raises(ValueError, match=r"examples\['x'\] holds NaN"):
        check_examples({"x": jnp.array([1.0, jnp.nan], jnp.bfloat16)})


def test_public_name():
    assert inspect.unwrap(fl.data.from_arrays) is from_arrays  # exported functions are checked
    assert fl.data.FederatedDataset is FederatedDataset
