"""From raw examples to what a network reads: scaling, standardisation, shape."""

from __future__ import annotations

import math
import warnings
from collections.abc import Sequence

import jax.numpy as jnp
import numpy as np

from fedjax_lite.types import Array


def as_floats(
    x: Array, *, mean: Sequence[float] | None = None, std: Sequence[float] | None = None
) -> Array:
    """Turns raw inputs into floats: uint8 is divided by 255, floats pass unchanged.

    Then, where given, ``(x - mean) / std`` per channel, in units of the scaled input.

    Args:
      x: `[B, ..., channels]`.
      mean: `[channels]` or one value; None: 0.
      std: `[channels]` or one value, positive; None: 1.

    Returns:
      The same shape, floating.

    Raises:
      TypeError: if `x` is of another integer type, whose scale is unknown.

    Example:
      >>> as_floats(jnp.array([[0, 255]], jnp.uint8)).tolist()
      [[0.0, 1.0]]
    """
    if x.dtype == jnp.uint8:
        x = x.astype(jnp.float32) / 255.0
    elif x.dtype == jnp.bool_:
        x = x.astype(jnp.float32)
    elif not jnp.issubdtype(x.dtype, jnp.floating):
        raise TypeError(
            f"x must be uint8 (divided by 255) or floating (taken as it is), got {x.dtype}; "
            "cast pixels of 0..255 with x.astype(np.uint8), others with x.astype(np.float32), or "
            "set raw_inputs=True for token numbers"
        )
    if mean is not None:
        x = x - jnp.asarray(mean, x.dtype)
    if std is not None:
        x = x / jnp.asarray(std, x.dtype)
    return x


def check_statistics(mean: Sequence[float] | None, std: Sequence[float] | None) -> None:
    """Checks standardisation constants.

    Raises:
      ValueError: if one is not finite or a standard deviation is not positive.
    """
    for name, value in (("mean", mean), ("std", std)):
        if value is not None and not np.size(value):
            raise ValueError(f"{name} must be [channels], got {value!r}; leave it out for none")
        if value is not None and not np.isfinite(np.asarray(value, float)).all():
            raise ValueError(f"{name} must be finite, got {value}")
    if std is not None and not (np.asarray(std, float) > 0).all():
        raise ValueError(f"std must be positive, got {std}; use 1 for channels that do not vary")


def as_shape(x: Array, input_shape: tuple[int, ...]) -> Array:
    """Gives inputs the network's shape: as they are, without a channel axis, or flat.

    Args:
      x: `[B, *input_shape]`, `[B, *input_shape[:-1]]` if there is one channel, or `[B, size]`.
      input_shape: of one example.

    Returns:
      `[B, *input_shape]`.

    Raises:
      ValueError: if the shape is none of these.

    Example:
      >>> as_shape(jnp.zeros((2, 64)), (8, 8, 1)).shape
      (2, 8, 8, 1)
    """
    shape = x.shape[1:]
    if shape == input_shape:
        return x
    without_channel = input_shape[-1] == 1 and shape == input_shape[:-1]
    if without_channel or shape == (math.prod(input_shape),):
        return x.reshape(x.shape[0], *input_shape)
    remedy = f"pass input_shape={shape} to the model (images are channel-last)"
    if x.shape == input_shape:
        remedy = "one example needs a batch axis too, x[None]"
    elif len(shape) == 3 and (*shape[1:], shape[0]) == input_shape:
        remedy = (
            "these images are channel-first (NCHW), models take channel-last: move the axis, "
            "np.moveaxis(x, 1, -1)"
        )
    elif len(shape) == 3 and shape[0] in (1, 3) and shape[-1] not in (1, 3):
        remedy = (
            "these images look channel-first (NCHW): move the axis, np.moveaxis(x, 1, -1), and "
            f"pass input_shape={(*shape[1:], shape[0])} to the model"
        )
    raise ValueError(
        f"x must have shape [B, {', '.join(map(str, input_shape))}], got {x.shape}; {remedy}"
    )


def check_channel_last(shape: tuple[int, ...], name: str) -> None:
    """Warns of a batch of images that looks channel-first; flax's layers are channel-last.

    Args:
      shape: of the batch.
      name: of the argument, for the message.

    Example:
      >>> check_channel_last((8, 32, 32, 3), "example_x")
    """
    if len(shape) == 4 and shape[1] in (1, 3) and shape[2] == shape[3] > 4:
        warnings.warn(
            f"{name} of shape {shape} looks channel-first (NCHW), and flax's convolutions take "
            "the last axis for the channels; move it, np.moveaxis(x, 1, -1)",
            stacklevel=3,
        )


def check_input_shape(input_shape: Sequence[int]) -> tuple[int, ...]:
    """Returns `input_shape` as a tuple of positive ints.

    Raises:
      TypeError: if it is no sequence.
      ValueError: if it holds anything else.
    """
    if not isinstance(input_shape, Sequence | np.ndarray) or isinstance(input_shape, str):
        raise TypeError(
            f"input_shape must be the shape of one example, such as (28, 28, 1), got "
            f"{input_shape!r}" + (f"; ({input_shape},)" if isinstance(input_shape, int) else "")
        )
    shape = tuple(input_shape)
    if not shape or any(not isinstance(n, int | np.integer) or n < 1 for n in shape):
        raise ValueError(f"input_shape must be positive ints, got {input_shape!r}")
    return tuple(int(n) for n in shape)
