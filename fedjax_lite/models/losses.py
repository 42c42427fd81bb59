"""Per-example losses and accuracies from integer labels."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import optax

from fedjax_lite.checks.arguments import check_fraction, check_non_negative
from fedjax_lite.checks.labels import check_classes
from fedjax_lite.checks.loss import check_losses
from fedjax_lite.data.population.counting import labelled
from fedjax_lite.types import Array


def cross_entropy(logits: Array, y: Array) -> Array:
    """Softmax cross-entropy of every example, ``logsumexp(z) - z[y]``, in float32 or wider.

    Negative labels do not count: an example's loss is the mean over its valid tokens. One that has
    none counts nowhere (its 0 enters no mean, see `with_counts`). A label beyond the last class
    gives NaN rather than a silent wrong number.

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
    return mean_of_valid(_cross_entropies(logits, y), y)


def _cross_entropies(logits: Array, y: Array) -> Array:
    """One loss a label, of the shape of `y`; NaN beyond the last class."""
    losses = jax.nn.logsumexp(logits, axis=-1) - jnp.sum(
        jnp.where(_chosen(logits, y), logits, 0.0), axis=-1
    )
    return jnp.where(y < logits.shape[-1], losses, jnp.nan)


def _chosen(logits: Array, y: Array) -> Array:
    # A comparison instead of a gather: its gradient is a product, not a scatter.
    return jnp.arange(logits.shape[-1]) == y[..., None]


def focal_loss(
    logits: Array,
    y: Array,
    *,
    gamma: float | Array = 2.0,
    alpha: Array | None = None,
) -> Array:
    r"""Softmax focal loss of every example: cross-entropy with the easy examples turned down.

    .. math::  -\alpha_y\, (1 - p_y)^\gamma \ln p_y, \qquad p = \mathrm{softmax}(z)

    in float32 or wider, with ``ln(1 - p_y)`` from the other logits, so that loss and gradient are
    finite for any finite logits. ``gamma = 0`` without `alpha` is `cross_entropy`. Labels are
    treated as there: negative ones do not count, one beyond the last class gives NaN.

    Args:
      logits: `[B, classes]`, or `[B, T, classes]` for sequences; at least 2 classes.
      y: integers `[B]` or `[B, T]` in ``[0, classes)``; -1 is ignored.
      gamma: focus, at least 0 (the paper's 2).
      alpha: `[classes]`, a factor for each class, or None for none.

    Returns:
      `[B]`.

    Raises:
      ValueError: if shapes do not fit or `gamma` or `alpha` is negative.
      TypeError: if labels are not integers.

    Example:
      >>> even = focal_loss(jnp.zeros((1, 2)), jnp.array([0]))  # 0.5**2 * ln 2
      >>> round(float(even[0]), 4)
      0.1733

    Reference: Lin, Goyal, Girshick, He, Dollár, "Focal Loss for Dense Object Detection", 2017,
    arXiv:1708.02002.
    """
    check_labels(logits, y)
    check_non_negative(gamma, "gamma")
    num_classes = logits.shape[-1]
    if num_classes < 2:
        raise ValueError(
            f"logits must have at least 2 classes, got {num_classes}; for one logit an example "
            "use sigmoid_focal_loss"
        )
    logits = logits.astype(jnp.promote_types(logits.dtype, jnp.float32))
    chosen = _chosen(logits, y)
    others = jnp.where(chosen, -jnp.inf, logits)
    log_miss = jax.nn.logsumexp(others, axis=-1) - jax.nn.logsumexp(logits, axis=-1)
    losses = jnp.exp(gamma * log_miss) * _cross_entropies(logits, y)
    if alpha is not None:
        if jnp.shape(alpha) != (num_classes,):
            raise ValueError(
                f"alpha must have one factor a class, shape ({num_classes},), got "
                f"{jnp.shape(alpha)}; the scalar form is that of sigmoid_focal_loss"
            )
        check_non_negative(alpha, "alpha")
        losses = losses * jnp.sum(jnp.where(chosen, jnp.asarray(alpha), 0.0), axis=-1)
    return mean_of_valid(losses, y)


def sigmoid_focal_loss(
    logits: Array,
    y: Array,
    *,
    gamma: float | Array = 2.0,
    alpha: float | Array | None = 0.25,
) -> Array:
    r"""Binary focal loss of every example, over one or several independent logits.

    .. math::  -\alpha_t\, (1 - p_t)^\gamma \ln p_t, \qquad
               (p_t, \alpha_t) = \begin{cases} (p, \alpha) & y = 1 \\
               (1 - p, 1 - \alpha) & y = 0 \end{cases}, \qquad p = \mathrm{sigmoid}(z)

    It is ``optax.sigmoid_focal_loss`` in float32 or wider, averaged over all axes but the first;
    note that the default `alpha` here is the paper's. Negative labels do not count; labels
    between 0 and 1 are soft targets.

    Args:
      logits: `[B]`, or `[B, ...]` for several labels an example.
      y: of the same shape, 0 or 1 (integers, booleans or floats); -1 is ignored.
      gamma: focus, at least 0 (the paper's 2).
      alpha: factor of the positive labels, in `[0, 1]` (the paper's .25); None for no factors.

    Returns:
      `[B]`.

    Raises:
      ValueError: if shapes differ, `gamma` is negative or `alpha` outside `[0, 1]`.

    Example:
      >>> logit = jnp.log(jnp.array([9.0]))  # p = 0.9: 0.25 * 0.1**2 * -ln 0.9
      >>> round(1e4 * float(sigmoid_focal_loss(logit, jnp.array([1]))[0]), 3)
      2.634

    Reference: Lin et al., 2017, arXiv:1708.02002.
    """
    if logits.ndim < 1 or y.shape != logits.shape:
        raise ValueError(
            f"y must have the shape of the logits, {logits.shape}, got {y.shape}; one logit an "
            "example is [B], logits[..., 0]; for classes use focal_loss"
        )
    check_non_negative(gamma, "gamma")
    if alpha is not None:
        check_fraction(alpha, "alpha")
    logits = logits.astype(jnp.promote_types(logits.dtype, jnp.float32))
    # Ignored labels are replaced before the loss: the gradient of what a mask hides must be finite.
    labels = jnp.where(y < 0, 0, y).astype(logits.dtype)
    losses = optax.sigmoid_focal_loss(logits, labels, alpha=alpha, gamma=gamma)
    return mean_of_valid(jnp.where(y <= 1, losses, jnp.nan), y)


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


for _loss in (cross_entropy, focal_loss, sigmoid_focal_loss):
    _loss.counts = labelled  # type: ignore[attr-defined]


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
        raise TypeError(
            f"y must hold integer labels, got {y.dtype}; cast with y.astype(int), or, if they are "
            "no classes, give the model a loss of its own: from_functions(..., loss=...)"
        )
    check_classes(y, logits.shape[-1])


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
    check_losses(losses, (batch_size,))
    return losses
