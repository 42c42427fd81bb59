"""Convolution as slices and one matmul, so that per-client kernels become a batched matmul."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from typing import Any, Literal

import jax
import jax.numpy as jnp
from jax import lax

from fedjax_lite.types import Array

Form = Literal["auto", "matmul", "xla"]
Padding = str | int | Sequence[int] | Sequence[tuple[int, int]]


def conv(
    x: Array,
    kernel: Array,
    *,
    strides: int | Sequence[int] = 1,
    padding: Padding = "SAME",
    dilation: int | Sequence[int] = 1,
    groups: int = 1,
    form: Form = "auto",
) -> Array:
    """Convolves channel-last inputs with a kernel; no bias.

    ``out[b, i, o] = sum_{t, c} x[b, i * stride + t * dilation - low, c] * kernel[t, c, o]``
    (a cross-correlation, as everywhere in deep learning). `vmap` over the kernels of many clients
    turns an XLA convolution into a grouped one, and XLA:CPU runs any convolution inside a loop
    10 to 40 times slower than outside (jax issue 12868). The matmul form concatenates shifted
    slices of the input and contracts them with the kernel as one ``[kh*kw*cin, cout]`` matrix (for
    16 channels or more as ``[kh*cin, kw*cout]``, then adds shifted columns, which was measured up
    to 16 % faster); under `vmap` that is a batched matmul, and its input gradient is pads and adds.

    Args:
      x: `[B, H, W, cin]` (or `[B, W, cin]`, `[B, D, H, W, cin]`).
      kernel: `[kh, kw, cin / groups, cout]`.
      strides: of the window, per spatial axis or one for all.
      padding: "SAME", "SAME_LOWER", "VALID", an int, or ``(low, high)`` per spatial axis.
      dilation: distance of the kernel's taps.
      groups: `feature_group_count`; ``cin`` of them is a depthwise convolution.
      form: "matmul", "xla", or "auto": matmul on CPU and XLA elsewhere, decided when traced.

    Returns:
      `[B, H', W', cout]`.

    Raises:
      ValueError: if shapes, padding or form do not fit.

    Example:
      >>> x, kernel = jnp.ones((2, 5, 5, 3)), jnp.ones((3, 3, 3, 4))
      >>> conv(x, kernel, padding="VALID", form="matmul").shape
      (2, 3, 3, 4)
    """
    num_spatial = x.ndim - 2
    if num_spatial < 1 or kernel.ndim != x.ndim:
        raise ValueError(
            f"x must be [B, spatial ..., cin] and kernel [window ..., cin / groups, cout], "
            f"got shapes {x.shape} and {kernel.shape}"
        )
    letters = "DHW"[-num_spatial:] if num_spatial <= 3 else None
    if letters is None:
        raise ValueError(f"x must have 1 to 3 spatial axes, got shape {x.shape}")
    return conv_general_dilated(
        x,
        kernel,
        _per_axis("strides", strides, num_spatial),
        _pairs(padding, num_spatial),
        rhs_dilation=_per_axis("dilation", dilation, num_spatial),
        dimension_numbers=(f"N{letters}C", f"{letters}IO", f"N{letters}C"),
        feature_group_count=groups,
        form=form,
    )


def conv_general_dilated(
    lhs: Any,
    rhs: Any,
    window_strides: Sequence[int],
    padding: str | Sequence[tuple[int, int]],
    lhs_dilation: Sequence[int] | None = None,
    rhs_dilation: Sequence[int] | None = None,
    dimension_numbers: Any = None,
    feature_group_count: int = 1,
    batch_group_count: int = 1,
    precision: Any = None,
    preferred_element_type: Any = None,
    out_sharding: Any = None,
    *,
    form: Form = "auto",
) -> Array:
    """Stands in for ``jax.lax.conv_general_dilated``, also as the argument of that name in flax.

    Other layouts than channel-last are transposed first. ``batch_group_count > 1`` and an
    explicit `out_sharding` fall back to the XLA form. To force a form in a flax layer, hand over
    ``functools.partial(conv_general_dilated, form="matmul")``.

    Args:
      lhs: inputs, rank n + 2.
      rhs: kernel, rank n + 2.
      window_strides: n ints.
      padding: "SAME", "SAME_LOWER", "VALID" or n pairs (negative padding crops).
      lhs_dilation: n ints, for transposed convolutions; needs explicit padding.
      rhs_dilation: n ints, distance of the kernel's taps.
      dimension_numbers: as in ``jax.lax``; None is NCHW and OIHW.
      feature_group_count: groups of channels that do not mix.
      batch_group_count: XLA form only.
      precision: of the matmul, as in ``jax.lax``.
      preferred_element_type: dtype of the result.
      out_sharding: XLA form only.
      form: see `conv`.

    Returns:
      What ``jax.lax.conv_general_dilated`` returns, up to the order of sums.

    Raises:
      ValueError: if shapes, padding or form do not fit.

    Example:
      >>> from flax import linen as nn
      >>> layer = nn.Conv(4, (3, 3), conv_general_dilated=conv_general_dilated)
    """
    if form not in ("auto", "matmul", "xla"):
        raise ValueError(f"form must be 'auto', 'matmul' or 'xla', got {form!r}")
    if form == "auto":
        form = "matmul" if jax.default_backend() == "cpu" else "xla"
    if form == "xla" or batch_group_count != 1 or out_sharding is not None:
        more = {} if out_sharding is None else {"out_sharding": out_sharding}
        return lax.conv_general_dilated(
            lhs,
            rhs,
            window_strides,
            padding,
            lhs_dilation,
            rhs_dilation,
            dimension_numbers,
            feature_group_count,
            batch_group_count,
            precision,
            preferred_element_type,
            **more,
        )
    specs = lax.conv_dimension_numbers(lhs.shape, rhs.shape, dimension_numbers)
    num_spatial = lhs.ndim - 2
    x = _transpose(lhs, (specs.lhs_spec[0], *specs.lhs_spec[2:], specs.lhs_spec[1]))
    kernel = _transpose(rhs, (*specs.rhs_spec[2:], specs.rhs_spec[1], specs.rhs_spec[0]))
    _check_channels(x, kernel, feature_group_count)

    strides = tuple(window_strides)
    input_dilation = tuple(lhs_dilation or (1,) * num_spatial)
    taps = tuple(rhs_dilation or (1,) * num_spatial)
    window = kernel.shape[:num_spatial]
    extent = tuple((k - 1) * d + 1 for k, d in zip(window, taps))
    if isinstance(padding, str):
        if any(d != 1 for d in input_dilation):
            raise ValueError(
                f"padding must be explicit (low, high) pairs with lhs_dilation={input_dilation}, "
                f"got {padding!r}"
            )
        if padding.upper() not in ("SAME", "SAME_LOWER", "VALID"):
            raise ValueError(f"padding must be SAME, SAME_LOWER, VALID or pairs, got {padding!r}")
        padding = lax.padtype_to_pads(x.shape[1:-1], extent, strides, padding)
    config = [(int(lo), int(hi), d - 1) for (lo, hi), d in zip(padding, input_dilation)]
    if any(entry != (0, 0, 0) for entry in config):
        x = lax.pad(x, jnp.zeros((), x.dtype), [(0, 0, 0), *config, (0, 0, 0)])
    out_shape = tuple(max(0, (n - e) // s + 1) for n, e, s in zip(x.shape[1:-1], extent, strides))
    if 0 in out_shape:
        dtype = preferred_element_type or jnp.result_type(x, kernel)
        out = lax.full((x.shape[0], *out_shape, kernel.shape[-1]), 0, dtype)
    else:
        # Otherwise XLA:CPU fuses what made x (a relu, the padding) into each of the slices.
        x = lax.optimization_barrier(x)
        dot = {"precision": precision, "preferred_element_type": preferred_element_type}
        if _rows_pay(x, kernel, out_shape, strides, feature_group_count):
            out = _contract_rows(x, kernel, out_shape, strides, taps, **dot)
        else:
            slices = _window_slices(x, out_shape, window, strides, taps)
            out = _contract(slices, kernel, feature_group_count, **dot)
    # From N, spatial, C to the layout asked for.
    inverse = [0] * out.ndim
    for position, axis in zip((0, out.ndim - 1, *range(1, out.ndim - 1)), specs.out_spec):
        inverse[axis] = position
    return _transpose(out, tuple(inverse))


def _window_slices(
    x: Array,
    out_shape: Sequence[int],
    window: Sequence[int],
    strides: Sequence[int],
    taps: Sequence[int],
) -> list[Array]:
    """The inputs that each tap of the window meets, `[B, out ..., cin]` each, last axis fastest."""
    slices = []
    for tap in itertools.product(*map(range, window)):
        start = [t * d for t, d in zip(tap, taps)]
        stop = [a + (n - 1) * s + 1 for a, n, s in zip(start, out_shape, strides)]
        slices.append(
            lax.slice(x, (0, *start, 0), (x.shape[0], *stop, x.shape[-1]), (1, *strides, 1))
        )
    return slices


def _contract(slices: list[Array], kernel: Array, groups: int, **dot: Any) -> Array:
    """Multiplies the slices by the kernel: one dot, or one dot batched over groups."""
    *lead, cin = slices[0].shape
    cout, num_taps = kernel.shape[-1], len(slices)
    if groups == 1:
        patches = slices[0] if num_taps == 1 else jnp.concatenate(slices, axis=-1)
        flat = jnp.dot(
            patches.reshape(-1, num_taps * cin), kernel.reshape(num_taps * cin, cout), **dot
        )
        return flat.reshape(*lead, cout)
    per_group = kernel.reshape(num_taps, cin // groups, groups, cout // groups)
    patches = jnp.stack(slices, axis=-2).reshape(-1, num_taps, groups, cin // groups)
    return jnp.einsum("ntgc,tcgo->ngo", patches, per_group, **dot).reshape(*lead, cout)


def _rows_pay(
    x: Array, kernel: Array, out_shape: Sequence[int], strides: Sequence[int], groups: int
) -> bool:
    """Whether `_contract_rows` was the faster form where it was measured."""
    wasted = x.shape[-2] / out_shape[-1]  # columns computed over columns that are used
    return (
        groups == 1
        and len(out_shape) > 1
        and kernel.shape[-3] > 1
        and strides[-1] == 1
        and x.shape[-1] >= 16
        and wasted <= 1.3
        # Partial sums in a narrow dtype would lose half of their precision.
        and x.dtype.itemsize >= 4
    )


def _contract_rows(
    x: Array,
    kernel: Array,
    out_shape: Sequence[int],
    strides: Sequence[int],
    taps: Sequence[int],
    **dot: Any,
) -> Array:
    """Multiplies the slices of all axes but the last by the taps of the last at once, then adds.

    ``y[w, tap] = patch[w] @ kernel[tap]`` and ``out[w] = sum_tap y[w + tap, tap]``: patches are
    ``kw`` times smaller than those of `_contract`, and the matmul is closer to square.
    """
    *window, num_taps, cin, cout = kernel.shape
    along = (*out_shape[:-1], x.shape[-2])
    slices = _window_slices(x, along, (*window, 1), (*strides[:-1], 1), (*taps[:-1], 1))
    patches = slices[0] if len(slices) == 1 else jnp.concatenate(slices, axis=-1)
    flat = jnp.moveaxis(kernel, -3, -2).reshape(len(slices) * cin, num_taps * cout)
    products = jnp.dot(patches.reshape(-1, flat.shape[0]), flat, **dot)
    products = products.reshape(x.shape[0], *along, num_taps, cout)

    def shifted(tap: int) -> Array:
        first = tap * taps[-1]
        return lax.slice_in_dim(products[..., tap, :], first, first + out_shape[-1], axis=-2)

    return sum((shifted(tap) for tap in range(1, num_taps)), start=shifted(0))


def _check_channels(x: Array, kernel: Array, groups: int) -> None:
    if groups < 1 or x.shape[-1] % groups or kernel.shape[-1] % groups:
        raise ValueError(
            f"groups must divide the {x.shape[-1]} input and {kernel.shape[-1]} output channels, "
            f"got {groups}"
        )
    if x.shape[-1] // groups != kernel.shape[-2]:
        raise ValueError(
            f"kernel must take {x.shape[-1] // groups} input channels (per group), got "
            f"{kernel.shape[-2]}; images must be channel-last, [B, H, W, channels]"
        )


def _transpose(x: Array, axes: tuple[int, ...]) -> Array:
    return x if axes == tuple(range(len(axes))) else jnp.transpose(x, axes)


def _per_axis(name: str, value: int | Sequence[int], num_spatial: int) -> tuple[int, ...]:
    values = (value,) * num_spatial if isinstance(value, int) else tuple(value)
    if len(values) != num_spatial or any(v < 1 for v in values):
        raise ValueError(f"{name} must be a positive int or {num_spatial} of them, got {value!r}")
    return values


def _pairs(padding: Padding, num_spatial: int) -> str | list[tuple[int, int]]:
    if isinstance(padding, str):
        return padding
    if isinstance(padding, int):
        padding = (padding,) * num_spatial
    pairs = [(p, p) if isinstance(p, int) else tuple(p) for p in padding]
    if len(pairs) != num_spatial or any(len(p) != 2 for p in pairs):
        raise ValueError(
            f"padding must be a name, an int or {num_spatial} (low, high) pairs, got {padding!r}"
        )
    if any(side < 0 for pair in pairs for side in pair):
        raise ValueError(
            f"padding must not be negative, got {padding!r}, which would cut pixels off; slice x "
            "before, x[:, 1:-1]"
        )
    return [(low, high) for low, high in pairs]
