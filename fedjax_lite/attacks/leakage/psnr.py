"""How close a reconstruction is: peak signal-to-noise ratio, and who is who."""

from __future__ import annotations

from typing import NamedTuple

import jax.numpy as jnp
import numpy as np

from fedjax_lite.checks.arguments import check_positive
from fedjax_lite.types import Array


def psnr(reconstruction: Array, original: Array, *, peak: float = 1.0) -> Array:
    r"""Peak signal-to-noise ratio of each image.

    .. math::  10 \log_{10}(\text{peak}^2 / \mathrm{MSE})

    Args:
      reconstruction: `[B, ...]`.
      original: `[B, ...]`, floating.
      peak: the range of the values; 1 for images in `[0, 1]`.

    Returns:
      `[B]`, in dB; infinite for equal images. Above about 20 dB a digit is recognised at once; a
      constant 1/2 against uniform noise has 10.79.

    Raises:
      ValueError: if shapes differ or `peak` is not positive.

    Example:
      >>> psnr(jnp.zeros((2, 4)), jnp.array([[0.1] * 4, [0.0] * 4])).tolist()
      [20.0, inf]
    """
    check_positive(peak, "peak")
    if reconstruction.shape != original.shape or reconstruction.ndim < 1:
        raise ValueError(
            f"reconstruction and original must be [B, ...] of one shape, got "
            f"{list(reconstruction.shape)} and {list(original.shape)}; give pairs of examples"
        )
    squares = (reconstruction - original) ** 2
    mse = squares.reshape(squares.shape[0], -1).mean(1)
    return 20 * jnp.log10(peak) - 10 * jnp.log10(mse)


class Matched(NamedTuple):
    """Reconstructions in the originals' order."""

    psnr: np.ndarray
    """`[B]`, dB."""
    order: np.ndarray
    """int `[B]`: original `i` is reconstruction ``order[i]``."""


def matched_psnr(reconstruction: Array, original: Array, *, peak: float = 1.0) -> Matched:
    """PSNR after the assignment that errs least in all: an update does not know of an order.

    Args:
      reconstruction: `[B, ...]`.
      original: `[B, ...]`.
      peak: see `psnr`.

    Returns:
      `Matched`.

    Raises:
      ValueError: if shapes differ or `peak` is not positive.

    Example:
      >>> images = jnp.eye(3)
      >>> matched_psnr(images[jnp.array([2, 0, 1])], images).order.tolist()
      [1, 2, 0]
    """
    from scipy.optimize import linear_sum_assignment

    psnr(reconstruction, original, peak=peak)  # its checks
    size = original.shape[0]
    flat = [np.asarray(x, np.float64).reshape(size, -1) for x in (original, reconstruction)]
    errors = ((flat[0][:, None] - flat[1][None]) ** 2).mean(-1)
    rows, order = linear_sum_assignment(errors)
    with np.errstate(divide="ignore"):
        return Matched(10 * np.log10(peak**2 / errors[rows, order]), order)
