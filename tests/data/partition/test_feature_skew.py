"""Feature skew: exact quarter turns, interpolation, noise levels by client, saturation."""

import numpy as np
import pytest

from fedjax_lite.data.partition import feature_skew
from fedjax_lite.data.partition.feature_skew import brightness, contrast, noise, rotation
from fedjax_lite.data.partition.image_rotation import rotate, rotate_bilinear
from fedjax_lite.data.partition.partition import iid, owners, partition


def _images(shape, dtype: type = np.uint8, seed=0):
    rng = np.random.default_rng(seed)
    if dtype == np.uint8:
        return rng.integers(0, 256, shape).astype(np.uint8)
    return rng.random(shape).astype(dtype)


@pytest.mark.parametrize("dtype", [np.uint8, np.float32, np.float16])
@pytest.mark.parametrize("shape", [(6, 8, 8), (6, 9, 9, 3)])
def test_quarter_turns_are_exact(shape, dtype):
    images = _images(shape, dtype)
    for quarters in range(-3, 6):
        turned = rotate(images, 90.0 * quarters)
        expected = np.stack([np.rot90(image, quarters % 4) for image in images])
        np.testing.assert_array_equal(turned, expected)
        assert turned.dtype == dtype
    four = images
    for _ in range(4):
        four = rotate(four, 90.0)
    np.testing.assert_array_equal(four, images)


@pytest.mark.parametrize("dtype", [np.uint8, np.float64])
@pytest.mark.parametrize("size", [8, 9])
def test_bilinear_agrees_with_quarter_turns(size, dtype):
    images = _images((3, size, size), dtype)
    for angle in (0.0, 90.0, 180.0, -90.0):
        turned = rotate_bilinear(images, angle)
        np.testing.assert_allclose(turned, rotate(images, angle), atol=1e-9)


def test_bilinear_is_exact_on_a_plane():
    # A linear picture a + b x + c y is its own interpolant: turned, it is the turned plane.
    size, angle = 21, 30.0
    centre = (size - 1) / 2
    row, col = np.mgrid[:size, :size] - centre
    x, y = col, -row  # x to the right, y upwards
    turned = rotate_bilinear((5.0 + 0.3 * x + 0.2 * y)[None], angle)[0]
    a = np.deg2rad(angle)
    back_x, back_y = x * np.cos(a) + y * np.sin(a), y * np.cos(a) - x * np.sin(a)
    inside = (np.abs(back_x) <= centre) & (np.abs(back_y) <= centre)
    expected = 5.0 + 0.3 * back_x + 0.2 * back_y
    np.testing.assert_allclose(turned[inside], expected[inside], atol=1e-9)
    assert np.all(turned[(np.abs(back_x) > centre + 1) | (np.abs(back_y) > centre + 1)] == 0)


def test_each_client_has_its_own_angle(monkeypatch):
    train = {"x": _images((40, 6, 6)), "y": np.arange(40) % 4}
    owner = owners(train, iid(num_clients=8, seed=0))
    skew = rotation(angles=(0, 90, 180, 270), seed=3)
    turned = partition(train, iid(num_clients=8, seed=0), skew).examples["x"]
    quarters_of = []
    for i in range(8):
        mine = owner == i
        fits = [
            q
            for q in range(4)
            if np.array_equal(turned[mine], np.rot90(train["x"][mine], q, axes=(1, 2)))
        ]
        assert len(fits) == 1
        quarters_of += fits
    assert sorted(quarters_of) == [0, 0, 1, 1, 2, 2, 3, 3]  # dealt evenly
    monkeypatch.setattr(feature_skew, "_CHUNK", 2)
    np.testing.assert_array_equal(
        turned, partition(train, iid(num_clients=8, seed=0), skew).examples["x"]
    )


def test_uniform_angles_differ_by_client_only():
    images = np.repeat(_images((1, 11, 11), np.float32), 30, axis=0)
    owner = owners({"x": images}, iid(num_clients=5, seed=0))
    skew = rotation(max_angle=45.0, seed=1)
    turned = np.asarray(skew.apply({"x": images}, owner, 5)["x"])
    per_client = [np.unique(turned[owner == i], axis=0) for i in range(5)]
    assert all(len(rows) == 1 for rows in per_client)
    assert len(np.unique(np.concatenate(per_client), axis=0)) == 5


@pytest.mark.parametrize("dtype", [np.uint8, np.float32])
def test_noise_level_by_client(dtype):
    num_clients, level = 4, 0.1
    middle = 128 if dtype == np.uint8 else 0.5
    images = np.full((400, 10, 10), middle, dtype)
    owner = owners({"x": images}, iid(num_clients=num_clients, seed=0))
    noisy = noise(level=level, seed=0).apply({"x": images}, owner, num_clients)["x"]
    assert noisy.dtype == dtype
    unit = 255.0 if dtype == np.uint8 else 1.0
    for i in range(num_clients):
        mine = (noisy[owner == i].astype(np.float64) - middle) / unit
        stddev = level * (i + 1) / num_clients
        rounding = 1 / 12 / unit**2 if dtype == np.uint8 else 0.0
        expected = np.sqrt(stddev**2 + rounding)
        # 100 images of 100 pixels: the standard error of a standard deviation is s / sqrt(2 n).
        assert abs(mine.std() - expected) < 5 * stddev / np.sqrt(2 * mine.size)
        assert abs(mine.mean()) < 5 * stddev / np.sqrt(mine.size)
    assert not np.array_equal(noisy[0], noisy[1])


def test_noise_does_not_depend_on_chunks_and_saturates(monkeypatch):
    images = np.full((50, 4, 4), 250, np.uint8)
    owner = np.arange(50) % 5
    whole = noise(level=0.5, seed=2).apply({"x": images}, owner, 5)["x"]
    monkeypatch.setattr(feature_skew, "_CHUNK", 7)
    np.testing.assert_array_equal(
        whole, noise(level=0.5, seed=2).apply({"x": images}, owner, 5)["x"]
    )
    assert whole.max() == 255
    assert np.mean(whole == 255) > 0.3  # wrapped around, they would be near 0


def test_brightness_and_contrast():
    pixels = np.array([[0, 100, 250], [10, 20, 30]], np.uint8)
    owner = np.zeros(2, int)
    lighter = brightness(deltas=[0.2]).apply({"x": pixels}, owner, 1)["x"]
    np.testing.assert_array_equal(lighter, np.minimum(pixels.astype(int) + 51, 255))
    darker = brightness(deltas=[-0.2]).apply({"x": pixels}, owner, 1)["x"]
    np.testing.assert_array_equal(darker, np.maximum(pixels.astype(int) - 51, 0))
    flat = contrast(factors=[0.0]).apply({"x": pixels}, owner, 1)["x"]
    np.testing.assert_array_equal(flat[1], [20, 20, 20])
    double = contrast(factors=[2.0]).apply({"x": pixels}, owner, 1)["x"]
    np.testing.assert_array_equal(double[1], [0, 20, 40])
    floats = np.array([[0.5, 2.0]])
    lighter = brightness(deltas=[0.75]).apply({"x": floats}, np.zeros(1, int), 1)["x"]
    np.testing.assert_array_equal(lighter, [[1.25, 2.75]])  # floats are not clipped
    drawn = brightness(max_delta=0.3, seed=0).apply({"x": np.zeros((500, 1))}, np.arange(500), 500)
    assert np.abs(drawn["x"]).max() <= 0.3
    assert np.std(drawn["x"]) == pytest.approx(0.3 / np.sqrt(3), rel=0.1)


def test_skews_compose_in_order_and_leave_their_input_alone():
    train = {"x": _images((20, 5, 5)), "y": np.arange(20) % 2}
    before = train["x"].copy()
    data = partition(
        train, iid(num_clients=2, seed=0), brightness(deltas=[1.0]), contrast(factors=[0.5])
    )
    np.testing.assert_array_equal(train["x"], before)
    np.testing.assert_array_equal(data.examples["x"], 255)
    np.testing.assert_array_equal(data.examples["y"], train["y"])
    assert data.examples["x"].dtype == np.uint8


@pytest.mark.parametrize("make", [rotation, brightness, contrast])
def test_exactly_one_way_to_say_how_much(make):
    with pytest.raises(ValueError, match="exactly one"):
        make()
    with pytest.raises(ValueError, match="at least one"):
        make([])
    with pytest.raises(ValueError, match="finite"):
        make([float("nan")])


def test_messages():
    owner = np.zeros(2, int)
    with pytest.raises(ValueError, match=r"level.*0"):
        noise(level=0.0)
    with pytest.raises(ValueError, match=r"-0.5"):
        contrast([-0.5])
    with pytest.raises(ValueError, match=r"max_change.*2"):
        contrast(max_change=2.0)
    with pytest.raises(ValueError, match=r"'x'.*\['image'\]"):
        rotation([90]).apply({"image": np.zeros((2, 3, 3))}, owner, 1)
    with pytest.raises(ValueError, match=r"\[2, 9\].*reshape"):
        rotation([90]).apply({"x": np.zeros((2, 9))}, owner, 1)
    with pytest.raises(ValueError, match=r"3 x 4.*90"):
        rotation([90]).apply({"x": np.zeros((2, 3, 4))}, owner, 1)
    with pytest.raises(TypeError, match="int32"):
        noise(level=0.1).apply({"x": np.zeros((2, 3), np.int32)}, owner, 1)
    with pytest.raises(TypeError, match="FeatureSkew"):
        partition({"x": np.zeros((2, 3))}, iid(num_clients=1), lambda x: x)  # type: ignore[arg-type]
