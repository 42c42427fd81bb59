"""What crosses the cut of a network tells: labels by returned gradients, inputs by activations."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax.numpy as jnp
import numpy as np
import optax

from fedjax_lite.attacks.leakage.inversion import Inversion, invert
from fedjax_lite.checks.arguments import shown
from fedjax_lite.types import Array, Key


class LabelLeakage(NamedTuple):
    """How well labels are told apart by the gradients that come back, as AUC: 0.5 is nothing."""

    norm_auc: float
    """By their lengths. Below 0.5 where the positive class has the shorter ones: an attacker who
    knows which class is rare turns it round."""
    direction_auc: float
    """By the cosine with the gradient of one example that is known to be positive."""
    num_positive: int
    num_negative: int


def label_leakage(
    gradients: Any, labels: Any, *, positive: int = 1, known: int | None = None
) -> LabelLeakage:
    r"""Two attacks on labels, by the gradient that each example's activation gets back.

    .. math::  s_i = \lVert g_i \rVert_2, \qquad
               s_i = \cos(g_i, g_k) \text{ for a known positive } k

    With one logit :math:`g_i \propto \sigma(z_i) - y_i`: its sign is the label, so the direction
    tells it wholly; and while a model is unsure, the rarer class has the longer gradients. Which
    gradients cross a wire, `fedjax_lite.parties.wiretap` says; noise on them
    (``downlink=fl.gaussian_noise(...)``) is the defence that is measured here.

    Args:
      gradients: `[n, ...]`, one an example, as the party without labels receives them.
      labels: int `[n]`.
      positive: the class that is looked for, against all others.
      known: the example whose label the attacker knows; default the first positive one. It is left
        out of the direction's AUC.

    Returns:
      `LabelLeakage`.

    Raises:
      ValueError: if shapes differ, a class is missing, or the known example is not positive.

    Example:
      >>> residuals = np.array([[0.2], [0.3], [-0.9], [-0.6]])
      >>> found = label_leakage(residuals, np.array([0, 0, 1, 1]))
      >>> found.norm_auc, found.direction_auc
      (1.0, 1.0)

    Reference: Li, Sun, Yang, Gao, Zhang, Xie, Smith, Wang, "Label Leakage and Protection in
    Two-party Split Learning", 2021, arXiv:2102.08504.
    """
    rows, labels = np.asarray(gradients, np.float64), np.asarray(labels)
    if labels.ndim != 1 or rows.ndim < 1 or len(rows) != len(labels):
        raise ValueError(
            f"gradients must be one for each of the labels [n], got "
            f"{list(rows.shape) if rows.ndim else shown(gradients)} and "
            f"{list(labels.shape)}; give those of one batch"
        )
    rows = rows.reshape(len(rows), -1)
    is_positive = labels == positive
    if not np.isfinite(rows).all():
        raise ValueError(f"gradients must be finite, got NaN or infinity in {rows.shape[0]} rows; "
                         "leave such examples out")  # fmt: skip
    if is_positive.sum() < 2 or is_positive.all():
        raise ValueError(
            f"labels must hold two of class {positive} and some of another, got "
            f"{int(is_positive.sum())} of {len(labels)}; positive={positive} is who is looked for"
        )
    known = int(np.argmax(is_positive)) if known is None else known
    if not 0 <= known < len(labels) or not is_positive[known]:
        raise ValueError(f"known must be an example of class {positive}, got {known}; see labels")
    norms = np.linalg.norm(rows, axis=1)
    product = norms * norms[known]
    cosines = rows @ rows[known] / np.where(product > 0, product, 1)
    rest = np.arange(len(labels)) != known
    return LabelLeakage(
        _auc(norms[is_positive], norms[~is_positive]),
        _auc(cosines[is_positive & rest], cosines[~is_positive]),
        int(is_positive.sum()),
        int((~is_positive).sum()),
    )


def invert_smashed(
    bottom: Callable[[Array], Array],
    smashed: Array,
    *,
    input_shape: Sequence[int],
    key: Key,
    variation: float | Array = 1e-4,
    bounds: tuple[float, float] | None = (0.0, 1.0),
    optimizer: optax.GradientTransformation | None = None,
    num_iterations: int = 1000,
    num_restarts: int = 1,
) -> Inversion:
    r"""Inputs from the activations that a client sent, by who knows its layers.

    .. math::  \min_x\ \lVert f(x) - h \rVert^2 + \alpha\, \mathrm{TV}(x)

    Compare what is found with `psnr`. Deeper cuts, pooling and noise on the wire make it worse.

    Args:
      bottom: ``(x [B, ...]) -> activations``, the client's layers with its parameters.
      smashed: `[B, ...]`, what the server received.
      input_shape: of one example, as the layers read it (floats).
      key: of the starting points.
      variation: see `invert`.
      bounds: see `invert`.
      optimizer: see `invert`.
      num_iterations: see `invert`.
      num_restarts: see `invert`.

    Returns:
      An `Inversion`.

    Raises:
      TypeError: if the activations are not shaped like those of the layers.
      ValueError: if an argument is out of range.

    Example:
      >>> import jax
      >>> w = jnp.array([[2.0, 1.0], [1.0, -1.0]])
      >>> x = jnp.array([[0.25, 0.75]])
      >>> found = invert_smashed(lambda x: x @ w, x @ w, input_shape=(2,), key=jax.random.key(0),
      ...                        num_iterations=200)
      >>> bool(jnp.abs(found.x - x).max() < 1e-3)
      True

    Reference: He, Zhang, Lee, "Model Inversion Attacks against Collaborative Inference", Annual
    Computer Security Applications Conference, 2019.
    """
    return invert(
        smashed,
        lambda params, examples: bottom(examples["x"]),
        params=(),
        labels=jnp.zeros(jnp.shape(smashed)[:1], jnp.int32),
        input_shape=input_shape,
        key=key,
        distance="squared",
        variation=variation,
        bounds=bounds,
        optimizer=optimizer,
        num_iterations=num_iterations,
        num_restarts=num_restarts,
    )


def _auc(positive: np.ndarray, negative: np.ndarray) -> float:
    """How often one of the first beats one of the second, ties half."""
    ordered = np.sort(negative)
    below = np.searchsorted(ordered, positive, side="left")
    upto = np.searchsorted(ordered, positive, side="right")
    return float((below + upto).mean() / (2 * len(negative)))
