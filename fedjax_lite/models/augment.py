"""Random flips and crops of images inside the loss, as a wrapper around a model."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp

from fedjax_lite.checks.made import made
from fedjax_lite.data.population.counting import keep_counts
from fedjax_lite.models.model import Model
from fedjax_lite.types import Array, Key, Params


@made
def augmented(
    model: Model,
    *,
    flip: bool = True,
    crop: int = 4,
    size: int | None = None,
    pad_mode: str = "constant",
) -> Model:
    """Trains a model on randomly flipped and cropped images.

    A pure function of key and examples: every call of the loss draws anew, independently for each
    example. Without a key (evaluation) nothing is random; with `size`, the centre is taken.

    Args:
      model: any model of images ``examples["x"]``, `[B, H, W, channels]`.
      flip: mirror left and right with probability one half.
      crop: pixels padded on every side before a random window of the wanted size is cut out.
      size: height and width of the windows; None: those of the image.
      pad_mode: "constant" (zeros) or "reflect".

    Returns:
      A `Model` with the same parameters.

    Raises:
      ValueError: if an argument does not fit; when traced, if `size` does not fit the images.

    Example:
      >>> from fedjax_lite.models.dense_nets import linear
      >>> model = augmented(linear(2, (8, 8, 1)), crop=1)
      >>> key, examples = jax.random.key(0), {"x": jnp.ones((3, 8, 8, 1)), "y": jnp.zeros(3, int)}
      >>> model.loss(model.init(key), examples, key).shape
      (3,)
    """
    if crop < 0:
        raise ValueError(f"crop must be 0 or more pixels, got {crop}")
    if size is not None and size < 1:
        raise ValueError(f"size must be positive, got {size}")
    if pad_mode not in ("constant", "reflect"):
        raise ValueError(
            f"pad_mode must be 'constant' or 'reflect', got {pad_mode!r}; give one of them"
        )

    def loss(params: Params, examples: Any, key: Key | None) -> Array:
        if key is None:
            return model.loss(params, {**examples, "x": centre(examples["x"])}, None)
        key_images, key_model = jax.random.split(key)
        x = random_images(
            key_images, examples["x"], flip=flip, crop=crop, size=size, pad_mode=pad_mode
        )
        return model.loss(params, {**examples, "x": x}, key_model)

    def predict(params: Params, examples: Any) -> Array:
        return model.predict(params, {**examples, "x": centre(examples["x"])})

    def centre(x: Array) -> Array:
        if size is None:
            return x
        top, left = ((n - size) // 2 for n in _check_images(x, size, 0))
        return x[:, top : top + size, left : left + size]

    return Model(init=model.init, loss=keep_counts(loss, model.loss), predict=predict)


def random_images(
    key: Key,
    x: Array,
    *,
    flip: bool = True,
    crop: int = 4,
    size: int | None = None,
    pad_mode: str = "constant",
) -> Array:
    """Flips and crops each image of a batch on its own; see `augmented`.

    Args:
      key: consumed.
      x: `[B, H, W, channels]`, any dtype.
      flip: mirror left and right with probability one half.
      crop: pixels padded on every side first.
      size: of the windows; None: that of the images.
      pad_mode: "constant" (zeros) or "reflect".

    Returns:
      `[B, size, size, channels]`, or the shape of `x`.

    Raises:
      ValueError: if `x` is not a batch of images or `size` does not fit.

    Example:
      >>> x = jnp.arange(6).reshape(1, 1, 6, 1)
      >>> int(random_images(jax.random.key(0), x, crop=0).sum())
      15
    """
    if pad_mode not in ("constant", "reflect"):
        raise ValueError(
            f"pad_mode must be 'constant' or 'reflect', got {pad_mode!r}; give one of them"
        )
    height, width = _check_images(x, size, crop)
    out = (size or height, size or width)
    key_flip, key_top, key_left = jax.random.split(key, 3)
    batch_size = x.shape[0]
    if flip:
        mirrored = jax.random.bernoulli(key_flip, 0.5, (batch_size, 1, 1, 1))
        x = jnp.where(mirrored, x[:, :, ::-1], x)
    if crop:
        x = jnp.pad(x, ((0, 0), (crop, crop), (crop, crop), (0, 0)), mode=pad_mode)
    if x.shape[1:3] == out:
        return x
    top = jax.random.randint(key_top, (batch_size,), 0, x.shape[1] - out[0] + 1)
    left = jax.random.randint(key_left, (batch_size,), 0, x.shape[2] - out[1] + 1)

    def window(image: Array, top: Array, left: Array) -> Array:
        return jax.lax.dynamic_slice(image, (top, left, 0), (*out, image.shape[-1]))

    return jax.vmap(window)(x, top, left)


def _check_images(x: Array, size: int | None, crop: int) -> tuple[int, int]:
    if x.ndim != 4:
        raise ValueError(f"x must be images [B, H, W, channels], got shape {x.shape}")
    height, width = x.shape[1:3]
    if size is not None and size > min(height, width) + 2 * crop:
        raise ValueError(
            f"size must be at most {min(height, width) + 2 * crop} for images of {height} by "
            f"{width} padded by {crop}, got {size}"
        )
    return height, width
