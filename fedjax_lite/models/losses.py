"""Per-example losses and accuracies from integer labels."""

from __future__ import annotations

import jax
import jax.numpy as jnp

from fedjax_lite.types import Array


def cross_entropy(logits: Array, y: Array) -> Array:
    """Softmax cross-entropy of every example, ``logsumexp(z) - z[y]``, in float32 or wider.

    Negative labels do not count: an example's loss is the mean over its valid tokens, and 0 where
    it has none. A label beyond the last class gives NaN rather than a silent wrong number.

    Args:
      logits: `[B, classes]`, or `[B, T, classes]` for sequences.
      y: integers `[B]` or `[B, T]` in ``[0, classes)``; -1 is ignored.

    Returns:
      `[B]`.

    Raises:
      ValueError: if shapes do not fit, e.g. for one-hot labels.
      TypeError: if labels are not integers.

    Example:
      >>> losses = cross_entropy(jnp.zeros((2, 4)), jnp.array([0, 3]))
      >>> [round(float(loss), 4) for loss in losses]
      [1.3863, 1.3863]
    """
    check_labels(logits, y)
    logits = logits.astype(jnp.promote_types(logits.dtype, jnp.float32))
    num_classes = logits.shape[-1]
    # A comparison instead of a gather: its gradient is a product, not a scatter.
    chosen = jnp.arange(num_classes) == y[..., None]
    losses = jax.nn.logsumexp(logits, axis=-1) - jnp.sum(jnp.where(chosen, logits, 0.0), axis=-1)
    losses = jnp.where(y < num_classes, losses, jnp.nan)
    return mean_of_valid(losses, y)


def accuracy(logits: Array, y: Array) -> Array:
    """1 where the largest logit is the label's, else 0; for sequences the mean over valid tokens.

    Args:
      logits: `[B, classes]` or `[B, T, classes]`.
      y: integers `[B]` or `[B, T]`; -1 is ignored, and an example without labels counts 0.

    Returns:
      `[B]`.

    Raises:
      ValueError: if shapes do not fit.
      TypeError: if labels are not integers.

    Example:
      >>> accuracy(jnp.eye(3), jnp.array([0, 1, 0])).tolist()
      [1.0, 1.0, 0.0]
    """
    check_labels(logits, y)
    right = (jnp.argmax(logits, axis=-1) == y).astype(jnp.float32)
    return mean_of_valid(right, y)


def mean_of_valid(values: Array, y: Array) -> Array:
    """Means over the tokens with a label ``>= 0``: `[B]` or `[B, T]` to `[B]`, 0 for none."""
    valid = y >= 0
    values = jnp.where(valid, values, 0.0)
    if y.ndim == 1:
        return values
    axes = tuple(range(1, y.ndim))
    return jnp.sum(values, axis=axes) / jnp.maximum(jnp.sum(valid, axis=axes), 1)


def check_labels(logits: Array, y: Array) -> None:
    """Checks shapes and dtype of labels against logits, when traced.

    Raises:
      ValueError: if ``y.shape != logits.shape[:-1]``; the message knows one-hot labels.
      TypeError: if labels are not integers.
    """
    if logits.ndim < 2:
        raise ValueError(f"logits must be [B, classes] or [B, T, classes], got {logits.shape}")
    if y.shape == logits.shape:
        raise ValueError(
            f"y must hold integer labels of shape {logits.shape[:-1]}, got {y.shape}, the shape "
            "of the logits; if the labels are one-hot, convert them with y.argmax(-1)"
        )
    if y.shape == (*logits.shape[:-1], 1):
        raise ValueError(
            f"y must have shape {logits.shape[:-1]}, got {y.shape}; drop the last axis, y[..., 0]"
        )
    if y.shape != logits.shape[:-1]:
        raise ValueError(
            f"y must have shape {logits.shape[:-1]} to go with logits {logits.shape}, got {y.shape}"
        )
    if not jnp.issubdtype(y.dtype, jnp.integer):
        raise TypeError(f"y must hold integer labels, got {y.dtype}; cast with y.astype(int)")


def check_per_example(losses: Array, batch_size: int) -> Array:
    """Returns `losses` if there is one per example.

    A mean over the batch would count the padding of a short batch, so it is refused.

    Args:
      losses: what a loss function returned.
      batch_size: `B`.

    Returns:
      `losses`, `[B]`.

    Raises:
      ValueError: if the shape is not `[B]`.

    Example:
      >>> check_per_example(jnp.zeros(4), 4).shape
      (4,)
    """
    shape = jnp.shape(losses)
    if shape == (batch_size,):
        return losses
    if shape == ():
        remedy = "do not average over the batch: the engine does, and leaves padding out"
    else:
        remedy = "average over all axes but the first"
    raise ValueError(
        f"loss must return one value per example, shape ({batch_size},), got {shape}; {remedy}"
    )
