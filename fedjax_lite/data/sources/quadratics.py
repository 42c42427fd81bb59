"""Quadratic clients: a data set on which federated methods have closed forms."""

from __future__ import annotations

from typing import Any

import jax.numpy as jnp
import numpy as np

from fedjax_lite.types import Array, Key, Params, PyTree


def quadratics(a: Any, b: Any, n: Any = 1) -> dict[str, np.ndarray]:
    """Makes clients with ``f_i(x) = a_i / 2 |x - b_i|^2``, for `quadratic_loss`.

    Every example of client `i` is the same pair ``(a_i, b_i)``, so its mean loss is `f_i` for any
    batch, and example weights are `n_i`: the minimiser of the weighted mean of all clients is
    ``sum(n_i a_i b_i) / sum(n_i a_i)``.

    Args:
      a: `[N]`, curvatures.
      b: `[N]` for a scalar `x`, or `[N, D]`, centres.
      n: `[N]` or one number for all, examples of each client, at least 1.

    Returns:
      ``{"a": float32 [E], "b": float32 [E] or [E, D], "client": int32 [E]}``, client by client.

    Raises:
      ValueError: if shapes do not agree, numbers are not finite or a size is below 1.

    Example:
      >>> data = quadratics([1.0, 3.0], [0.0, 4.0], [2, 1])
      >>> data["a"].tolist(), data["client"].tolist()
      ([1.0, 1.0, 3.0], [0, 0, 1])
    """
    curvatures, centers = np.asarray(a, np.float32), np.asarray(b, np.float32)
    if curvatures.ndim != 1 or not len(curvatures):
        raise ValueError(f"a must be [N] with N at least 1, got shape {list(curvatures.shape)}")
    if centers.ndim not in (1, 2) or len(centers) != len(curvatures):
        raise ValueError(
            f"b must be [{len(curvatures)}] or [{len(curvatures)}, D] as a has "
            f"{len(curvatures)} entries, got shape {list(centers.shape)}"
        )
    return _repeat({"a": curvatures, "b": centers}, n)


def quadratic_loss(params: Params, examples: PyTree, key: Key | None = None) -> Array:
    """The loss ``a / 2 |x - b|^2`` of each example of `quadratics`.

    Args:
      params: `x`, an array of shape `[]` or `[D]`.
      examples: ``a`` `[B]` and ``b`` `[B]` or `[B, D]`; other entries are ignored.
      key: not used.

    Returns:
      `[B]`.

    Example:
      >>> quadratic_loss(jnp.float32(1.0), {"a": jnp.ones(1), "b": jnp.full(1, 3.0)}).tolist()
      [2.0]
    """
    del key
    distances = jnp.square(params - examples["b"])
    if distances.ndim == 2:
        distances = distances.sum(axis=1)
    return examples["a"] / 2 * distances


def quadratic_forms(h: Any, w: Any, n: Any = 1) -> dict[str, np.ndarray]:
    """Makes clients with ``f_i(x) = 1/2 (x - w_i)^T H_i (x - w_i)``, for `quadratic_form_loss`.

    `K` local gradient steps of rate `eta` take `x` to ``w_i + (I - eta H_i)^K (x - w_i)``, from
    which fixed points of federated methods follow in closed form.

    Args:
      h: `[N, D, D]`, symmetric curvatures.
      w: `[N, D]`, centres.
      n: `[N]` or one number for all, examples of each client, at least 1.

    Returns:
      ``{"h": float32 [E, D, D], "w": float32 [E, D], "client": int32 [E]}``, client by client.

    Raises:
      ValueError: if shapes do not agree, a matrix is not symmetric, numbers are not finite or a
        size is below 1.

    Example:
      >>> data = quadratic_forms([np.eye(2), 2 * np.eye(2)], [[0, 0], [1, 1]], 3)
      >>> data["h"].shape, data["client"].tolist()
      ((6, 2, 2), [0, 0, 0, 1, 1, 1])
    """
    curvatures, centers = np.asarray(h, np.float32), np.asarray(w, np.float32)
    if centers.ndim != 2 or not centers.size:
        raise ValueError(f"w must be [N, D], got shape {list(centers.shape)}")
    num_clients, size = centers.shape
    if curvatures.shape != (num_clients, size, size):
        raise ValueError(
            f"h must be [{num_clients}, {size}, {size}] as w is {list(centers.shape)}, "
            f"got shape {list(curvatures.shape)}"
        )
    # The gradient of an unsymmetric form is that of its symmetric part, not H (x - w).
    asymmetry = np.abs(curvatures - curvatures.swapaxes(1, 2)).max(axis=(1, 2))
    bounds = 1e-5 * np.abs(curvatures).max(axis=(1, 2))
    if (asymmetry > bounds).any():
        worst = int(np.argmax(asymmetry - bounds))
        raise ValueError(f"h[{worst}] must be symmetric; take (h + h.T) / 2")
    return _repeat({"h": curvatures, "w": centers}, n)


def quadratic_form_loss(params: Params, examples: PyTree, key: Key | None = None) -> Array:
    """The loss ``1/2 (x - w)^T H (x - w)`` of each example of `quadratic_forms`.

    Args:
      params: `x`, an array `[D]`.
      examples: ``h`` `[B, D, D]` and ``w`` `[B, D]`; other entries are ignored.
      key: not used.

    Returns:
      `[B]`.

    Example:
      >>> examples = {"h": 2 * jnp.eye(2)[None], "w": jnp.zeros((1, 2))}
      >>> quadratic_form_loss(jnp.array([1.0, 2.0]), examples).tolist()
      [5.0]
    """
    del key
    difference = params - examples["w"]
    return jnp.einsum("bi,bij,bj->b", difference, examples["h"], difference) / 2


def _repeat(arrays: dict[str, np.ndarray], n: Any) -> dict[str, np.ndarray]:
    """Repeats client rows, one copy for each of their examples."""
    for name, array in arrays.items():
        if not np.isfinite(array).all():
            raise ValueError(f"{name} must be finite, got NaN or infinity")
    num_clients = len(next(iter(arrays.values())))
    sizes = np.asarray(n)
    if sizes.dtype.kind not in "iu" or sizes.shape not in ((), (num_clients,)):
        raise ValueError(f"n must be an integer or [{num_clients}] integers, got {n!r}")
    if sizes.max() > 2**31:
        raise ValueError(f"n must be at most 2**31 for every client, got {sizes.max()}; give fewer")
    if sizes.min() < 1:
        raise ValueError(f"n must be at least 1 for every client, got {sizes.min()}")
    owners = np.repeat(np.arange(num_clients, dtype=np.int32), sizes)
    return {**{name: array[owners] for name, array in arrays.items()}, "client": owners}
