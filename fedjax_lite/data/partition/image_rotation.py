"""Rotation of a batch of images in numpy: exact by quarter turns, bilinear elsewhere."""

from __future__ import annotations

import numpy as np


def rotate(images: np.ndarray, angle: float) -> np.ndarray:
    """Turns images counterclockwise about their centre.

    Args:
      images: `[B, H, W]` or `[B, H, W, channels]`, uint8 or floats.
      angle: degrees. Multiples of 90 are exact; others are interpolated by `rotate_bilinear`.

    Returns:
      Images of the same shape and dtype.

    Raises:
      ValueError: if images that are not square are turned by an odd multiple of 90.

    Example:
      >>> rotate(np.array([[[1, 2], [3, 4]]], np.uint8), 180.0).tolist()
      [[[4, 3], [2, 1]]]
    """
    quarters, rest = divmod(angle, 90.0)
    if rest:
        return rotate_bilinear(images, angle)
    if quarters % 2 and images.shape[1] != images.shape[2]:
        raise ValueError(
            f"images of {images.shape[1]} x {images.shape[2]} cannot keep their shape when turned "
            f"by {angle:g} degrees; pad them to squares or use multiples of 180"
        )
    return np.rot90(images, k=int(quarters) % 4, axes=(1, 2))


def rotate_bilinear(images: np.ndarray, angle: float) -> np.ndarray:
    """Turns images by any angle; a pixel is the bilinear mean of the four it comes from.

    The pixel at `(r, s)`, measured from the centre with rows downwards, comes from

        r' = r cos(a) + s sin(a),    s' = s cos(a) - r sin(a)

    and what comes from outside is 0.

    Args:
      images: `[B, H, W]` or `[B, H, W, channels]`, uint8 or floats.
      angle: degrees, counterclockwise.

    Returns:
      Images of the same shape and dtype; uint8 are rounded to the nearest.

    Example:
      >>> rotate_bilinear(np.eye(3)[None], 90.0).round(6).tolist()
      [[[0.0, 0.0, 1.0], [0.0, 1.0, 0.0], [1.0, 0.0, 0.0]]]
    """
    height, width = images.shape[1:3]
    cosine, sine = np.cos(np.deg2rad(angle)), np.sin(np.deg2rad(angle))
    r = np.arange(height)[:, None] - (height - 1) / 2
    s = np.arange(width)[None, :] - (width - 1) / 2
    source_r = r * cosine + s * sine + (height - 1) / 2
    source_s = s * cosine - r * sine + (width - 1) / 2
    top, left = np.floor(source_r).astype(np.int64), np.floor(source_s).astype(np.int64)

    precision = images.dtype if images.dtype == np.float64 else np.dtype(np.float32)
    channels = (1,) * (images.ndim - 3)
    turned = np.zeros(images.shape, precision)
    for down in (0, 1):
        for right in (0, 1):
            row, column = top + down, left + right
            share = (1 - np.abs(source_r - row)) * (1 - np.abs(source_s - column))
            inside = (row >= 0) & (row < height) & (column >= 0) & (column < width)
            weight = np.where(inside, share, 0.0).astype(precision)
            corner = images[:, row.clip(0, height - 1), column.clip(0, width - 1)]
            turned += weight.reshape(weight.shape + channels) * corner
    if images.dtype == np.uint8:
        return np.rint(turned).clip(0, 255).astype(np.uint8)
    return turned.astype(images.dtype)
