"""Focal losses and normalisation layers against numbers that can be written down."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from fedjax_lite.models import cross_entropy, from_functions
from fedjax_lite.models.layers import group_norm, init_group_norm, instance_norm
from fedjax_lite.models.losses import focal_loss, sigmoid_focal_loss

RNG = np.random.default_rng(0)


def run(function, *args, **options):
    """By one program, where every operation alone would be compiled."""
    return jax.jit(partial(function, **options))(*args)


def normal(shape, *, loc=0.0, scale=1.0):
    return RNG.normal(loc, scale, size=shape).astype(np.float32)


def logit(p):
    return np.log(p / (1 - p))


# -- sigmoid focal loss ---------------------------------------------------------------------


@pytest.mark.parametrize(
    ("p", "y", "expected"),
    [(0.9, 1, 2.6340128914e-4), (0.9, 0, 1.3988204440), (0.1, 1, 0.4662734813)],
)
def test_sigmoid_form_at_the_papers_defaults(p, y, expected):
    with jax.enable_x64(True):
        got = run(sigmoid_focal_loss, np.array([logit(p)]), np.array([y]))
    p_t, alpha = (p, 0.25) if y else (1 - p, 0.75)
    assert abs(expected - -alpha * (1 - p_t) ** 2 * np.log(p_t)) < 1e-9
    np.testing.assert_allclose(got, [expected], rtol=1e-9)


def test_sigmoid_form_is_optaxs_averaged_over_the_labels():
    z, y = normal((5, 3)), RNG.integers(0, 2, size=(5, 3))
    for options in ({"gamma": 2.0, "alpha": 0.25}, {"gamma": 0.5, "alpha": None}):
        expected = run(optax.sigmoid_focal_loss, z, y, **options).mean(1)
        np.testing.assert_allclose(run(sigmoid_focal_loss, z, y, **options), expected, rtol=1e-6)
    plain = run(optax.sigmoid_binary_cross_entropy, z, y).mean(1)
    got = run(sigmoid_focal_loss, z, y, gamma=0.0, alpha=None)
    np.testing.assert_allclose(got, plain, rtol=1e-6)


def test_ignored_labels_count_nowhere():
    z = np.array([[0.3, np.nan, -1.0], [2.0, 1.0, 0.0]], np.float32)
    y = np.array([[1, -1, 0], [-1, -1, -1]])
    alone = run(sigmoid_focal_loss, z[:1, ::2], y[:1, ::2])
    np.testing.assert_allclose(run(sigmoid_focal_loss, z, y), [alone[0], 0.0], rtol=1e-6)
    z[0, 1] = 4.0
    slope = run(jax.grad(lambda z: sigmoid_focal_loss(z, y).sum()), z)
    np.testing.assert_array_equal(np.asarray(slope) == 0, y < 0)


def test_label_above_one_is_nan():
    losses = run(sigmoid_focal_loss, np.zeros(2, np.float32), np.array([2, 1]))
    assert np.isnan(losses).tolist() == [True, False]


# -- softmax focal loss ---------------------------------------------------------------------


def test_softmax_form_is_numpys():
    z, y = RNG.normal(size=(6, 4)), np.array([0, 3, 1, 2, 2, 0])
    alpha = np.array([0.5, 1.0, 2.0, 0.0])
    p = (np.exp(z) / np.exp(z).sum(1, keepdims=True))[np.arange(6), y]
    for gamma in (0.5, 2.0, 3.0):
        expected = -((1 - p) ** gamma) * np.log(p)
        got = run(focal_loss, z.astype(np.float32), y, gamma=gamma)
        np.testing.assert_allclose(got, expected, rtol=2e-5)
        got = run(focal_loss, z.astype(np.float32), y, gamma=gamma, alpha=jnp.asarray(alpha))
        np.testing.assert_allclose(got, alpha[y] * expected, rtol=2e-5)


def test_two_classes_are_the_sigmoid_form():
    z, y = normal(8), np.array([0, 1, 1, 0, 1, 0, 0, 1])
    pair = np.stack([np.zeros_like(z), z], axis=1)
    got = run(focal_loss, pair, y, alpha=jnp.array([0.75, 0.25]))
    np.testing.assert_allclose(got, run(sigmoid_focal_loss, z, y), rtol=1e-5)


def test_gamma_zero_is_cross_entropy():
    z, y = normal((3, 2, 5)), np.array([[0, 4], [3, -1], [-1, -1]])
    np.testing.assert_array_equal(run(focal_loss, z, y, gamma=0.0), run(cross_entropy, z, y))


@pytest.mark.parametrize("gamma", [0.0, 0.5, 1.0, 2.0])
def test_finite_at_large_logits_gradient_included(gamma):
    z, y = np.array([100, -100, 100, -100], np.float32), jnp.array([1, 1, 0, 0])
    binary = partial(sigmoid_focal_loss, y=y, gamma=gamma, alpha=None)
    several = partial(focal_loss, y=y, gamma=gamma)
    rows = np.stack([-z, z, np.full_like(z, -100.0)], axis=1)
    for function, logits in ((binary, z), (several, rows)):
        losses, pull = run(lambda z, f=function: (f(z), jax.grad(lambda z: f(z).sum())(z)), logits)
        assert np.isfinite(losses).all()
        assert np.isfinite(pull).all()
        # Where the model is sure and right the loss is 0, sure and wrong the distance of logits.
        far = 100.0 if logits.ndim == 1 else 200.0
        np.testing.assert_allclose(losses, [0.0, far, far, 0.0], rtol=1e-6, atol=1e-30)


def test_gradient_of_the_softmax_form_by_differences():
    with jax.enable_x64(True):
        z, y = RNG.normal(size=(2, 3)), np.array([2, 0])
        total = jax.jit(lambda z: focal_loss(z, y).sum())
        slope = np.asarray(jax.jit(jax.grad(total))(z))
        for i, j in np.ndindex(2, 3):
            step = np.zeros((2, 3))
            step[i, j] = 1e-6
            rise = (float(total(z + step)) - float(total(z - step))) / 2e-6
            assert abs(slope[i, j] - rise) < 1e-8


def test_softmax_form_treats_labels_as_cross_entropy_does():
    losses = run(focal_loss, np.zeros((3, 3), np.float32), np.array([3, -1, 0]))
    assert np.isnan(losses).tolist() == [True, False, False]
    assert losses[1] == 0
    masked = jax.grad(lambda z: focal_loss(z, np.array([-1, 1])).sum())
    np.testing.assert_array_equal(run(masked, np.zeros((2, 3), np.float32))[0], 0)
    half = jax.ShapeDtypeStruct((1, 9), jnp.bfloat16)
    assert jax.eval_shape(focal_loss, half, np.array([3])).dtype == jnp.float32


def test_gamma_is_traced_and_the_loss_fits_a_model():
    z, y = normal((4, 3)), np.array([0, 1, 2, 1])
    traced, plain = jax.jit(lambda gamma: focal_loss(z, y, gamma=gamma)), run(focal_loss, z, y)
    np.testing.assert_allclose(traced(2.0), plain, rtol=1e-6)
    model = from_functions(lambda key: jnp.eye(3), lambda w, x, _: x @ w, loss=focal_loss)
    losses = run(model.loss, np.eye(3, dtype=np.float32), {"x": z, "y": y}, None)
    np.testing.assert_allclose(losses, plain, rtol=1e-6)


def test_errors_of_focal_losses():
    z, y = jnp.zeros((2, 3)), jnp.zeros(2, int)
    with pytest.raises(ValueError, match="gamma must not be negative"):
        focal_loss(z, y, gamma=-1.0)
    with pytest.raises(ValueError, match=r"alpha must have one factor a class, shape \(3,\)"):
        focal_loss(z, y, alpha=jnp.float32(0.25))
    with pytest.raises(ValueError, match=r"at least 2 classes.*sigmoid_focal_loss"):
        focal_loss(jnp.zeros((2, 1)), y)
    with pytest.raises(ValueError, match="argmax"):
        focal_loss(z, jnp.zeros((2, 3)))
    with pytest.raises(ValueError, match="shape of the logits"):
        sigmoid_focal_loss(jnp.zeros((2, 1)), y)
    with pytest.raises(ValueError, match=r"alpha must lie in \[0, 1\]"):
        sigmoid_focal_loss(jnp.zeros(2), y, alpha=1.5)
    with pytest.raises(ValueError, match="gamma must not be negative"):
        sigmoid_focal_loss(jnp.zeros(2), y, gamma=-0.5)


# -- instance norm --------------------------------------------------------------------------


def test_instance_norm_of_one_to_four():
    with jax.enable_x64(True):
        x = np.arange(1.0, 5.0).reshape(1, 2, 2, 1)
        got = np.asarray(run(instance_norm, None, x)).ravel()
    expected = (np.arange(1, 5) - 2.5) / np.sqrt(1.25 + 1e-5)
    np.testing.assert_allclose(got, expected, rtol=1e-12)
    np.testing.assert_allclose(
        got, [-1.3416354200, -0.4472118067, 0.4472118067, 1.3416354200], atol=1e-9
    )


def test_instance_norm_is_group_norm_with_a_group_a_channel():
    x = normal((3, 4, 5, 6), loc=2.0, scale=3.0)
    params = {"scale": normal(6), "bias": normal(6)}
    got = run(instance_norm, params, x)
    grouped = run(group_norm, params, x, num_groups=6)
    np.testing.assert_allclose(got, grouped, rtol=1e-5, atol=1e-6)
    z = np.asarray(x, np.float64)
    mean, variance = z.mean((1, 2), keepdims=True), z.var((1, 2), keepdims=True)
    expected = (z - mean) / np.sqrt(variance + 1e-5) * params["scale"] + params["bias"]
    np.testing.assert_allclose(got, expected, rtol=1e-4, atol=1e-5)


def test_constant_image_becomes_its_bias_with_a_finite_gradient():
    x = np.full((2, 3, 3, 2), 7.0, np.float32)
    np.testing.assert_array_equal(run(instance_norm, init_group_norm(2), x), 0.0)
    slope = jax.grad(lambda x: jnp.square(instance_norm(None, x)).sum())
    assert np.isfinite(run(slope, x)).all()


def test_brightness_and_contrast_of_a_scanner_do_not_matter():
    with jax.enable_x64(True):
        x = RNG.normal(size=(2, 4, 4, 3))
        gain, offset = np.array([0.2, 3.0, 40.0]), np.array([5.0, -1.0, 0.5])
        exact, usual = (jax.jit(partial(instance_norm, None, epsilon=e)) for e in (0.0, 1e-5))
        np.testing.assert_allclose(exact(gain * x + offset), exact(x), atol=1e-12)
        np.testing.assert_allclose(usual(40.0 * x), usual(x), atol=1e-4)


def test_examples_do_not_see_each_other():
    x = normal((3, 4, 2))
    other = np.stack([np.full_like(x[0], 100.0), x[1], np.zeros_like(x[2])])
    norm = jax.jit(partial(instance_norm, None))
    np.testing.assert_array_equal(norm(x)[1], norm(other)[1])


def test_group_norm_with_one_group_is_layer_norm():
    with jax.enable_x64(True):
        x = np.array([[1.0, 10.0], [2.0, 10.0], [3.0, 30.0], [4.0, 30.0]]).reshape(1, 2, 2, 2)
        got = np.asarray(run(group_norm, init_group_norm(2), x, num_groups=1)).reshape(4, 2)
    first = [-0.9088697162, -0.8201995000, -0.7315292838, -0.6428590676]
    second = [-0.1108377703, -0.1108377703, 1.6625665541, 1.6625665541]
    np.testing.assert_allclose(got[:, 0], first, atol=1e-9)
    np.testing.assert_allclose(got[:, 1], second, atol=1e-9)


def test_instance_norm_needs_positions():
    with pytest.raises(ValueError, match=r"axis of positions.*got shape \[4, 3\]"):
        instance_norm(None, jnp.ones((4, 3)))
