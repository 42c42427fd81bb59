"""Augmentation is a pure function of the key, per example, and off without one."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from fedjax_lite.models import augmented, linear, random_images

KEY = jax.random.key(0)


def ramp(batch_size=64, size=6):
    one = jnp.arange(1, size * size + 1, dtype=jnp.uint8).reshape(1, size, size, 1)
    return jnp.tile(one, (batch_size, 1, 1, 1))


def test_flip_mirrors_about_half_of_the_images():
    x = ramp()
    out = np.asarray(random_images(KEY, x, crop=0))
    mirrored = (out == np.asarray(x[:, :, ::-1])).all((1, 2, 3))
    kept = (out == np.asarray(x)).all((1, 2, 3))
    assert (mirrored ^ kept).all()
    assert 12 <= mirrored.sum() <= 52  # 32 +- 5 standard deviations of 4
    assert out.dtype == np.uint8


def test_crops_are_windows_of_the_padded_image():
    x, crop = ramp(), 2
    out = np.asarray(random_images(KEY, x, flip=False, crop=crop))
    padded = np.pad(np.asarray(x[0, ..., 0]), crop)
    windows = {padded[i : i + 6, j : j + 6].tobytes(): (i, j) for i in range(5) for j in range(5)}
    seen = {windows[image[..., 0].tobytes()] for image in out}
    assert {i for i, _ in seen} == set(range(5))
    assert {j for _, j in seen} == set(range(5))
    assert len(seen) > 15  # top and left are drawn independently


def test_reflected_padding():
    out = random_images(KEY, ramp(), flip=False, crop=2, pad_mode="reflect")
    assert int(out.min()) > 0
    assert int(random_images(KEY, ramp(), flip=False, crop=2).min()) == 0


def test_size_crops_at_random_in_training_and_in_the_centre_in_evaluation():
    x = ramp()
    assert random_images(KEY, x, crop=0, size=4).shape == (64, 4, 4, 1)
    inner = linear(2, (4, 4, 1))
    params = inner.init(KEY)
    params["head"]["kernel"] = jax.random.normal(KEY, params["head"]["kernel"].shape)
    model = augmented(inner, crop=0, size=4)
    centre = {"x": x[:, 1:5, 1:5], "y": jnp.zeros(64, int)}
    whole = {"x": x, "y": centre["y"]}
    np.testing.assert_array_equal(model.predict(params, whole), inner.predict(params, centre))
    np.testing.assert_array_equal(model.loss(params, whole, None), inner.loss(params, centre, None))
    assert len(np.unique(model.loss(params, whole, KEY).round(4))) > 5


def test_loss_follows_the_key_and_the_example():
    model = augmented(linear(2, (6, 6, 1)), crop=2)
    params = model.init(KEY)
    params["head"]["kernel"] = jax.random.normal(KEY, params["head"]["kernel"].shape)
    examples = {"x": ramp(), "y": jnp.zeros(64, int)}
    first, again, other = (
        model.loss(params, examples, key) for key in (KEY, KEY, jax.random.key(1))
    )
    np.testing.assert_array_equal(first, again)
    assert (np.asarray(first) != np.asarray(other)).any()
    still = model.loss(params, examples, None)
    assert len(np.unique(still)) == 1
    assert len(np.unique(first)) > 5


def test_under_vmap_and_jit():
    keys, x = jax.random.split(KEY, 3), jnp.stack([ramp(4)] * 3)
    lanes = jax.jit(jax.vmap(random_images))(keys, x)
    for i in range(3):
        np.testing.assert_array_equal(lanes[i], random_images(keys[i], x[i]))


def test_errors():
    inner = linear(2, (6, 6, 1))
    with pytest.raises(ValueError, match="crop"):
        augmented(inner, crop=-1)
    with pytest.raises(ValueError, match="size"):
        augmented(inner, size=0)
    with pytest.raises(ValueError, match="pad_mode"):
        augmented(inner, pad_mode="wrap")
    with pytest.raises(ValueError, match="at most 10"):
        random_images(KEY, ramp(), crop=2, size=11)
    with pytest.raises(ValueError, match="images"):
        random_images(KEY, jnp.ones((2, 36)))
