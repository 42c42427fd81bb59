"""Pooling by reshape equals reduce_window; ties are split."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import lax

from fedjax_lite.models import avg_pool, max_pool

CASES = [
    ((2, 6, 8, 3), 2, None, "VALID"),
    ((2, 7, 9, 3), 2, None, "VALID"),
    ((2, 7, 9, 3), (2, 3), None, "SAME"),
    ((2, 7, 8, 3), 3, 2, "SAME"),
    ((2, 7, 8, 3), 3, 2, "VALID"),
    ((2, 9, 3), 3, None, "VALID"),
    ((2, 11, 12, 3), 5, 3, "SAME"),
]


def windows(x, window, strides, padding):
    n = x.ndim - 2
    size = (window,) * n if isinstance(window, int) else window
    steps = size if strides is None else (strides,) * n
    return (1, *size, 1), (1, *steps, 1), padding


@pytest.mark.parametrize("case", CASES, ids=str)
def test_max_pool_is_reduce_window(case):
    x = np.random.default_rng(0).normal(size=case[0]).astype(np.float32)

    def reference(x):
        return lax.reduce_window(x, -np.float32(np.inf), lax.max, *windows(x, *case[1:]))

    def ours(x):
        return max_pool(x, case[1], strides=case[2], padding=case[3])

    @jax.jit
    def both(x):
        def energy(function):
            return lambda x: (jnp.sum(jnp.sin(out := function(x))), out)

        return [jax.grad(energy(f), has_aux=True)(x) for f in (ours, reference)]

    (slope, out), (wanted_slope, wanted) = both(x)
    np.testing.assert_array_equal(out, wanted)
    np.testing.assert_allclose(slope, wanted_slope, atol=1e-6)


@pytest.mark.parametrize("case", CASES, ids=str)
def test_avg_pool_is_reduce_window(case):
    x = np.random.default_rng(0).normal(size=case[0]).astype(np.float32)
    geometry = windows(x, *case[1:])

    @jax.jit
    def both(x):
        def total(x):
            return lax.reduce_window(x, np.float32(0), lax.add, *geometry)

        got = avg_pool(x, case[1], strides=case[2], padding=case[3])
        return got, total(x) / total(jnp.ones_like(x))

    np.testing.assert_allclose(*both(x), rtol=1e-5, atol=1e-6)


def test_gradient_of_tied_maxima_is_split_equally():
    x = np.array([[1, 1], [1, 0]], np.float32).reshape(1, 2, 2, 1)
    slope = np.asarray(jax.jit(jax.grad(lambda x: max_pool(x).sum()))(x)).reshape(2, 2)
    np.testing.assert_allclose(slope, [[1 / 3, 1 / 3], [1 / 3, 0]], rtol=1e-6)


def test_gradient_of_ties_in_overlapping_windows():
    # Windows {0, 1} and {1, 2}, all tied: a half from each.
    slope = jax.jit(jax.grad(lambda x: max_pool(x, 2, strides=1).sum()))
    np.testing.assert_allclose(
        np.ravel(slope(np.ones((1, 3, 1), np.float32))), [0.5, 1.0, 0.5], rtol=1e-6
    )


def test_errors():
    with pytest.raises(ValueError, match="window"):
        max_pool(jnp.ones((1, 2, 2, 1)), 3)
    with pytest.raises(ValueError, match="padding"):
        max_pool(jnp.ones((1, 4, 4, 1)), padding="FULL")
    with pytest.raises(ValueError, match="window"):
        avg_pool(jnp.ones((1, 4, 4, 1)), (2, 2, 2))
    with pytest.raises(ValueError, match="floating"):
        avg_pool(jnp.ones((1, 4, 4, 1), jnp.int32))
