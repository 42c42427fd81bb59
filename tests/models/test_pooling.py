"""Pooling by reshape equals reduce_window; gradients at ties are by the rule that is told."""

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


def slope_by_rule(x, case, weights):
    """Gradient of ``sum(weights * max_pool(x))``, window by window, as the docstring says.

    A window's weight is split equally between its tied maxima, where windows overlap and have more
    than 16 places it goes to the first.
    """
    size, steps = (entry[1:-1] for entry in windows(x, *case[1:])[:2])
    pads = lax.padtype_to_pads(x.shape[1:-1], size, steps, case[3])
    padded = np.pad(x, [(0, 0), *pads, (0, 0)], constant_values=-np.inf)
    slope = np.zeros_like(padded)
    takes_first = size != steps and np.prod(size) > 16
    for place in np.ndindex(weights.shape):
        batch, *position, channel = place
        spans = [slice(i * s, i * s + k) for i, s, k in zip(position, steps, size)]
        view = (batch, *spans, channel)
        tied = padded[view] == padded[view].max()
        if takes_first:
            tied.flat[np.flatnonzero(tied)[1:]] = False
        slope[view] += weights[place] * tied / tied.sum()
    inner = [slice(low, low + n) for (low, _), n in zip(pads, x.shape[1:-1])]
    return slope[(slice(None), *inner)]


@pytest.mark.parametrize("case", CASES, ids=str)
def test_gradient_at_ties_follows_the_docstring(case):
    rng = np.random.default_rng(0)
    x = rng.integers(0, 3, case[0]).astype(np.float32)  # most windows have several maxima

    def pooled(x):
        return max_pool(x, case[1], strides=case[2], padding=case[3])

    weights = rng.normal(size=jax.eval_shape(pooled, x).shape).astype(np.float32)
    slope = jax.jit(jax.grad(lambda x: jnp.sum(weights * pooled(x))))(x)
    np.testing.assert_allclose(slope, slope_by_rule(x, case, weights), rtol=1e-5, atol=1e-6)


def test_where_relu_leaves_zeros_no_rule_for_ties_matters():
    # A window of zeros from a ReLU passes nothing on, whichever of them is the maximum.
    x = np.array([[-1, -2], [-3, -4]], np.float32).reshape(1, 2, 2, 1)
    slope = jax.jit(jax.grad(lambda x: max_pool(jax.nn.relu(x)).sum()))(x)
    np.testing.assert_array_equal(slope, np.zeros_like(x))


def test_errors():
    with pytest.raises(ValueError, match="window"):
        max_pool(jnp.ones((1, 2, 2, 1)), 3)
    with pytest.raises(ValueError, match="padding"):
        max_pool(jnp.ones((1, 4, 4, 1)), padding="FULL")
    with pytest.raises(ValueError, match="window"):
        avg_pool(jnp.ones((1, 4, 4, 1)), (2, 2, 2))
    with pytest.raises(ValueError, match="floating"):
        avg_pool(jnp.ones((1, 4, 4, 1), jnp.int32))
