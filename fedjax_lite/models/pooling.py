"""Max and average pooling: by reshape where windows do not overlap, else by slices or windows."""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence

import jax.numpy as jnp
import numpy as np
from jax import lax

from fedjax_lite.checks.arguments import shown
from fedjax_lite.types import Array

Window = int | Sequence[int]


def max_pool(
    x: Array, window: Window = 2, *, strides: Window | None = None, padding: str = "VALID"
) -> Array:
    """Takes the largest value of each window.

    Where the stride equals the window (the default), the windows become axes of their own by a
    reshape and ``jnp.max`` reduces them: cheap under `vmap` and inside loops, and the gradient of
    tied maxima is split equally between them. Overlapping windows of at most 16 places do the same
    with strided slices; larger ones use ``reduce_window``, slow to differentiate in a loop on CPU,
    whose gradient goes to the first of the tied.

    Args:
      x: `[B, spatial ..., channels]`.
      window: one int for all spatial axes, or one for each.
      strides: like `window`; None: equal to it.
      padding: "VALID" drops what does not fill a window, "SAME" fills up with minus infinity.

    Returns:
      `[B, spatial' ..., channels]`.

    Raises:
      ValueError: if an argument does not fit.

    Example:
      >>> max_pool(jnp.arange(16.0).reshape(1, 4, 4, 1), 2).ravel().tolist()
      [5.0, 7.0, 13.0, 15.0]
    """
    size, steps, pads = _geometry(x, window, strides, padding)
    lowest = -jnp.inf if jnp.issubdtype(x.dtype, jnp.floating) else jnp.iinfo(x.dtype).min
    if size == steps:
        return jnp.max(_as_windows(x, size, pads, lowest), axis=_window_axes(size))
    if math.prod(size) <= 16:
        return jnp.max(jnp.stack(_taps(x, size, steps, pads, lowest)), axis=0)
    return lax.reduce_window(
        x,
        np.array(lowest, x.dtype),
        lax.max,
        (1, *size, 1),
        (1, *steps, 1),
        [(0, 0), *pads, (0, 0)],
    )


def avg_pool(
    x: Array, window: Window = 2, *, strides: Window | None = None, padding: str = "VALID"
) -> Array:
    """Averages each window; with "SAME" the padding does not count in the average.

    Args:
      x: `[B, spatial ..., channels]`, floating.
      window: one int for all spatial axes, or one for each.
      strides: like `window`; None: equal to it.
      padding: "VALID" or "SAME".

    Returns:
      `[B, spatial' ..., channels]`.

    Raises:
      ValueError: if an argument does not fit.

    Example:
      >>> avg_pool(jnp.arange(16.0).reshape(1, 4, 4, 1), 2).ravel().tolist()
      [2.5, 4.5, 10.5, 12.5]
    """
    if not jnp.issubdtype(x.dtype, jnp.floating):
        raise ValueError(f"x must be floating to be averaged, got {x.dtype}; cast it first")
    size, steps, pads = _geometry(x, window, strides, padding)

    def window_sum(values: Array) -> Array:
        if size == steps:
            return jnp.sum(_as_windows(values, size, pads, 0), axis=_window_axes(size))
        return lax.reduce_window(
            values,
            np.array(0, x.dtype),
            lax.add,
            (1, *size, 1),
            (1, *steps, 1),
            [(0, 0), *pads, (0, 0)],
        )

    if all(low <= 0 and high <= 0 for low, high in pads):
        return window_sum(x) / float(np.prod(size))
    return window_sum(x) / window_sum(jnp.ones((1, *x.shape[1:-1], 1), x.dtype))


def _geometry(
    x: Array, window: Window, strides: Window | None, padding: str
) -> tuple[tuple[int, ...], tuple[int, ...], list[tuple[int, int]]]:
    num_spatial = x.ndim - 2
    if num_spatial < 1 or not jnp.issubdtype(x.dtype, np.number):
        raise ValueError(
            f"x must be numbers [B, spatial ..., channels], got {shown(x)}; x[..., None] gives "
            "gray images a channel"
        )
    size = _per_axis("window", window, num_spatial)
    steps = size if strides is None else _per_axis("strides", strides, num_spatial)
    if padding not in ("SAME", "VALID"):
        raise ValueError(f"padding must be 'SAME' or 'VALID', got {padding!r}")
    if padding == "VALID":
        if any(n < k for n, k in zip(x.shape[1:-1], size)):
            raise ValueError(
                f"window {size} must not exceed the spatial shape {x.shape[1:-1]}; "
                "pool less often or pad with 'SAME'"
            )
        # A negative high padding crops what does not fill a window.
        tails = [
            -((n - k) % s) if size == steps else 0 for n, k, s in zip(x.shape[1:-1], size, steps)
        ]
        return size, steps, [(0, tail) for tail in tails]
    return size, steps, list(lax.padtype_to_pads(x.shape[1:-1], size, steps, "SAME"))


def _as_windows(x: Array, size: tuple[int, ...], pads: list[tuple[int, int]], fill: float) -> Array:
    """`[B, n0, k0, n1, k1, ..., C]`: each spatial axis split in windows and places in them."""
    if any(pair != (0, 0) for pair in pads):
        config = [(0, 0, 0), *((low, high, 0) for low, high in pads), (0, 0, 0)]
        x = lax.pad(x, jnp.asarray(fill, x.dtype), config)
    split = [part for n, k in zip(x.shape[1:-1], size) for part in (n // k, k)]
    return x.reshape(x.shape[0], *split, x.shape[-1])


def _taps(
    x: Array,
    size: tuple[int, ...],
    steps: tuple[int, ...],
    pads: list[tuple[int, int]],
    fill: float,
) -> list[Array]:
    """For each place in the window the values that it meets, `[B, out ..., C]` each."""
    if any(pair != (0, 0) for pair in pads):
        config = [(0, 0, 0), *((low, high, 0) for low, high in pads), (0, 0, 0)]
        x = lax.pad(x, jnp.asarray(fill, x.dtype), config)
    spans = [(n - k) // s * s + 1 for n, k, s in zip(x.shape[1:-1], size, steps)]
    return [
        lax.slice(
            x,
            (0, *tap, 0),
            (x.shape[0], *(t + span for t, span in zip(tap, spans)), x.shape[-1]),
            (1, *steps, 1),
        )
        for tap in itertools.product(*map(range, size))
    ]


def _window_axes(size: tuple[int, ...]) -> tuple[int, ...]:
    return tuple(2 + 2 * i for i in range(len(size)))


def _per_axis(name: str, value: Window, num_spatial: int) -> tuple[int, ...]:
    values = (value,) * num_spatial if isinstance(value, int) else tuple(value)
    if len(values) != num_spatial or any(v < 1 for v in values):
        raise ValueError(f"{name} must be a positive int or {num_spatial} of them, got {value!r}")
    return values
