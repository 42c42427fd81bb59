"""Losses per example, and errors that name the remedy when traced."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from fedjax_lite.models import accuracy, check_per_example, cross_entropy, from_functions, linear
from fedjax_lite.models.inputs import as_floats, as_shape

RNG = np.random.default_rng(0)


def test_cross_entropy_is_numpys():
    logits, y = RNG.normal(size=(5, 3)).astype(np.float32), np.array([0, 2, 1, 1, 0])
    probabilities = np.exp(logits) / np.exp(logits).sum(-1, keepdims=True)
    expected = -np.log(probabilities[np.arange(5), y])
    np.testing.assert_allclose(jax.jit(cross_entropy)(logits, y), expected, 1e-5)


def test_gradient_is_softmax_minus_one_hot():
    logits, y = RNG.normal(size=(4, 3)).astype(np.float32), np.array([0, 2, 1, 1])
    slope = jax.jit(jax.grad(lambda z: cross_entropy(z, y).sum()))(logits)
    softmax = np.exp(logits) / np.exp(logits).sum(1, keepdims=True)
    np.testing.assert_allclose(slope, softmax - np.eye(3)[y], atol=1e-6)


def test_large_logits_stay_finite():
    logits = np.array([[1e4, -1e4], [1e4, -1e4]], np.float32)
    losses = jax.jit(cross_entropy)(logits, np.array([0, 1]))
    np.testing.assert_array_equal(losses, [0.0, 2e4])


def test_half_precision_logits_are_summed_in_float32():
    losses = jax.jit(cross_entropy)(jnp.zeros((1, 1000), jnp.bfloat16), np.array([3]))
    assert losses.dtype == jnp.float32
    np.testing.assert_allclose(losses, np.log(1000.0), rtol=1e-6)


def test_sequences_average_over_valid_tokens():
    logits = RNG.normal(size=(3, 4, 5)).astype(np.float32)
    y = np.array([[1, 2, 3, 4], [1, -1, 0, -1], [-1, -1, -1, -1]])
    loss = jax.jit(cross_entropy)
    flat = np.asarray(loss(logits.reshape(12, 5), np.maximum(y, 0).reshape(12))).reshape(3, 4)
    expected = [flat[0].mean(), (flat[1, 0] + flat[1, 2]) / 2, 0.0]
    np.testing.assert_allclose(loss(logits, y), expected, rtol=1e-5)
    right = logits.argmax(-1) == y
    expected = [right[0].mean(), (float(right[1, 0]) + float(right[1, 2])) / 2, 0.0]
    np.testing.assert_allclose(jax.jit(accuracy)(logits, y), expected)


def test_label_beyond_the_classes_is_nan():
    losses = jax.jit(cross_entropy)(np.zeros((2, 3), np.float32), np.array([3, 0]))
    assert np.isnan(losses).tolist() == [True, False]


def test_ignored_labels_have_no_gradient_even_from_nan():
    slope = jax.jit(jax.grad(lambda z: cross_entropy(z, np.array([0, -1])).sum()))
    slopes = np.asarray(slope(np.zeros((2, 3), np.float32)))
    np.testing.assert_array_equal(slopes[1], 0.0)
    assert np.abs(slopes[0]).sum() > 0


def test_accuracy_of_images():
    logits = jnp.array([[1.0, 2.0], [3.0, 0.0], [0.0, 1.0]])
    assert accuracy(logits, jnp.array([1, 1, 1])).tolist() == [1.0, 0.0, 1.0]


@pytest.mark.parametrize("function", [cross_entropy, accuracy])
def test_label_errors_when_traced(function):
    logits = jnp.zeros((4, 10))
    with pytest.raises(ValueError, match="argmax"):
        jax.jit(function)(logits, jnp.zeros((4, 10)))
    with pytest.raises(ValueError, match=r"y\[..., 0\]"):
        function(logits, jnp.zeros((4, 1), int))
    with pytest.raises(ValueError, match="shape"):
        function(logits, jnp.zeros(5, int))
    with pytest.raises(TypeError, match="integer"):
        function(logits, jnp.zeros(4))
    with pytest.raises(ValueError, match="logits"):
        function(jnp.zeros(4), jnp.zeros(4, int))


def test_check_per_example():
    assert check_per_example(jnp.ones(3), 3).tolist() == [1.0, 1.0, 1.0]
    with pytest.raises(ValueError, match="do not average"):
        check_per_example(jnp.ones(()), 3)
    with pytest.raises(ValueError, match="all axes but the first"):
        check_per_example(jnp.ones((3, 2)), 3)


def test_averaged_loss_is_refused_by_the_model():
    def averaged(logits, y):
        return cross_entropy(logits, y).mean()

    model = from_functions(lambda key: jnp.zeros((3, 2)), lambda w, x, _: x @ w, loss=averaged)
    with pytest.raises(ValueError, match="do not average"):
        model.loss(jnp.zeros((3, 2)), {"x": jnp.ones((4, 3)), "y": jnp.zeros(4, int)}, None)


def test_examples_must_have_the_fields():
    model = linear(2, (3,))
    params = model.init(jax.random.key(0))
    with pytest.raises(TypeError, match="'y'"):
        model.loss(params, {"x": jnp.ones((2, 3))}, None)
    with pytest.raises(TypeError, match=r"examples must be a dict with \"x\""):
        model.predict(params, jnp.ones((2, 3)))


def test_inputs_are_scaled_and_standardised():
    images = jnp.array([[[[0, 51, 255]]]], jnp.uint8)
    np.testing.assert_allclose(as_floats(images).ravel(), [0, 0.2, 1], rtol=1e-6)
    standard = as_floats(images, mean=(0.0, 0.1, 0.5), std=(1.0, 0.1, 0.25))
    np.testing.assert_allclose(standard.ravel(), [0, 1, 2], rtol=1e-5)
    np.testing.assert_array_equal(as_floats(jnp.array([300.0])), [300.0])
    with pytest.raises(TypeError, match="uint8"):
        as_floats(jnp.array([1, 2]))
    with pytest.raises(ValueError, match="std"):
        linear(2, (3,), std=(0.0,))
    with pytest.raises(ValueError, match="mean"):
        linear(2, (3,), mean=(float("nan"),))


def test_shapes_are_recognised():
    x = jnp.arange(32.0).reshape(2, 4, 4, 1)
    for form in (x, x[..., 0], x.reshape(2, 16)):
        np.testing.assert_array_equal(as_shape(form, (4, 4, 1)), x)
    with pytest.raises(ValueError, match="input_shape"):
        as_shape(x, (8, 8, 1))
    with pytest.raises(ValueError, match="channel-last"):
        as_shape(jnp.ones((2, 3, 32, 32)), (32, 32, 3))
