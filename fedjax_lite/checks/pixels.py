"""Images that nobody scaled, found on the host when a data set is made."""

from __future__ import annotations

import warnings

import numpy as np

_SAMPLE = 256


def check_pixels(leaf: np.ndarray, name: str) -> None:
    """Warns of floating images with values up to 255: nobody scaled them.

    Looks at the first rows only.

    Args:
      leaf: `[E, ...]`.
      name: of the leaf, for the message.

    Example:
      >>> check_pixels(np.full((4, 8, 8), 0.5), "['x']")
    """
    if not np.issubdtype(leaf.dtype, np.floating) or not _like_images(leaf.shape) or not leaf.size:
        return
    head = leaf[:_SAMPLE]
    low, high = float(head.min()), float(head.max())
    colours = leaf.ndim == 4 and leaf.shape[-1] in (1, 3) and high >= 200
    unscaled = low >= 0 and 100 <= high <= 255 and (colours or bool((head == np.floor(head)).all()))
    if unscaled:
        warnings.warn(
            f"examples{name} holds {leaf.dtype} images with values {low:.4g}..{high:.4g}: models "
            "take floats as they are and learn badly from such large ones; divide by 255, or pass "
            "uint8, which the models of this library divide themselves",
            stacklevel=3,
        )


def _like_images(shape: tuple[int, ...]) -> bool:
    if len(shape) != 2:
        return len(shape) > 2
    sides = {round((shape[1] / channels) ** 0.5) ** 2 * channels for channels in (1, 3)}
    return shape[1] >= 64 and shape[1] in sides
