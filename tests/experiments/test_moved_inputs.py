"""A loss that also trains on moved inputs, against closed forms of a linear model."""

import importlib
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

EXPERIMENTS = Path(__file__).parent.parent.parent / "experiments"


@pytest.fixture(scope="module")
def moved_inputs():
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(str(EXPERIMENTS))
        yield importlib.import_module("shared.moved_inputs").moved_inputs


def test_inputs_move_up_the_loss(moved_inputs):
    # (w x - y)^2 with w = (2, -1): the gradient by x is 2 (w x - y) w.
    w, step = jnp.array([2.0, -1.0]), jnp.array([0.1, 0.5])

    def loss(w, examples, key):
        return (examples["x"] @ w - examples["y"]) ** 2

    x, y = jnp.array([[1.0, 1.0], [0.0, 1.0]]), jnp.array([0.0, 1.0])
    found = moved_inputs(loss, step)(w, {"x": x, "y": y}, None)
    # Errors 1 and -2: moved by (.1, -.5) and (-.1, .5), each error grows by .7 in its direction.
    np.testing.assert_allclose(found, [1 + 1.7**2, 4 + 2.7**2], rtol=1e-6)
    # What is moved is a constant: the slope by w is that of both terms at fixed inputs.
    slope = jax.grad(lambda w: moved_inputs(loss, step)(w, {"x": x, "y": y}, None).sum())(w)
    moved = np.array([[1.1, 0.5], [-0.1, 1.5]])
    both = 2 * (x @ w - y) @ np.asarray(x) + 2 * (moved @ w - y) @ moved
    np.testing.assert_allclose(slope, both, rtol=1e-5)


def test_random_directions_move_by_the_step(moved_inputs):
    def loss(w, examples, key):
        return jnp.abs(examples["x"]).sum(1)

    x = jnp.zeros((50, 2))
    found = moved_inputs(loss, jnp.array([0.1, 0.5]), "random")(
        None, {"x": x, "y": jnp.zeros(50)}, jax.random.key(0)
    )
    np.testing.assert_allclose(found, 0.6, rtol=1e-6)
