"""Metrics side by side: there and back, and at their slots."""

import jax.numpy as jnp
import numpy as np

from fedjax_lite.engine.side_by_side import apart, placed, side_by_side

ROWS = {
    "loss": jnp.array([1.0, 2.0, 3.0]),
    "bits": jnp.array([4.0, 5.0, 6.0]),
    "steps": jnp.array([7, 8, 9]),
    "wide": {"vector": jnp.arange(6.0).reshape(3, 2), "other": -jnp.arange(6.0).reshape(3, 2)},
}


def test_leaves_that_are_alike_share_an_array():
    assert sorted(array.shape for array in side_by_side(ROWS)) == [(3, 1), (3, 2), (3, 2, 2)]


def test_there_and_back():
    back = apart(side_by_side(ROWS), ROWS)
    np.testing.assert_array_equal(back["loss"], [1, 2, 3])
    np.testing.assert_array_equal(back["steps"], [7, 8, 9])
    np.testing.assert_array_equal(back["wide"]["other"], -np.arange(6).reshape(3, 2))
    assert back["steps"].dtype == ROWS["steps"].dtype


def test_rows_at_their_slots():
    there = placed(ROWS, jnp.array([4, 0, 2]), jnp.array([True, False, True]), 5)
    np.testing.assert_array_equal(there["loss"], [0, 0, 3, 0, 1])
    np.testing.assert_array_equal(there["bits"], [0, 0, 6, 0, 4])
    np.testing.assert_array_equal(there["wide"]["vector"][4], [0, 1])
