"""What is wrong with labels, and how to mend it, in words."""

from __future__ import annotations

import warnings
from typing import Any

import jax
import numpy as np

VOID = 255
"""What segmentation data sets write for pixels without a label."""


def labels_beyond(labels: Any, num_classes: int, seen: tuple[int, int]) -> str:
    """Labels of which some are beyond the last class.

    Args:
      labels: integers `[E, ...]`.
      num_classes: outputs of the model.
      seen: the lowest and the highest label.

    Example:
      >>> labels_beyond(np.array([0, 255, 1]), 2, (0, 255))[-54:]
      'write np.where(y == 255, -1, y.astype(np.int32)) for y'
    """
    low, high = seen
    row = ""
    if getattr(labels, "is_fully_addressable", True):
        values = np.asarray(jax.device_get(labels))
        row = f" (first beyond in row {int(np.argwhere(values >= num_classes)[0][0])})"
        rest = values[values != VOID]
        if high == VOID and (not rest.size or rest.max() < num_classes):
            return (
                f"labels must lie in [0, {num_classes}), one for each output of the model, but "
                f"examples['y'] holds {low}..{high}{row}: {VOID} is what segmentation data write "
                "for pixels without a label; only negative ones are left out, so write "
                f"np.where(y == {VOID}, -1, y.astype(np.int32)) for y"
            )
    if num_classes == 1:
        return (
            f"labels must be 0 where the model has one output, but examples['y'] holds "
            f"{low}..{high}{row}: a softmax over one output is always 1; give the model "
            f"num_classes={high + 1}, or, for labels 0 and 1 and one logit, a loss of it: "
            "fl.models.sigmoid_focal_loss(logits[..., 0], y, gamma=0.0, alpha=None) is the "
            "binary cross-entropy"
        )
    shifted = f"y - {low}, " if low > 0 and high - low < num_classes else ""
    return (
        f"labels must lie in [0, {num_classes}), one for each output of the model, but "
        f"examples['y'] holds {low}..{high}{row}; number the classes from "
        f"0, {shifted}or give the model num_classes={high + 1}"
    )


def warn_of_negative(labels: Any, low: int) -> None:
    """Warns of labels `[E]` of which some are negative, which means that they do not count."""
    count = "some"
    if getattr(labels, "is_fully_addressable", True):
        count = str(int((np.asarray(jax.device_get(labels)) < 0).sum()))
    warnings.warn(
        f"examples['y'] holds negative labels ({count} of {len(labels)}, lowest {low}): they "
        "are taken for padding and do not count in the loss; classes are numbered from 0. Models "
        "made of the library's losses leave such examples out of means and weights, too; for a "
        "loss of your own say so, fl.models.with_counts(loss, lambda e: e['y'] >= 0)",
        stacklevel=2,
    )
