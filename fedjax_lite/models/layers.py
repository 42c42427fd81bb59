"""Layers as pure functions on dicts: parameters in, activations out."""

from __future__ import annotations

import math
from typing import Literal

import jax
import jax.numpy as jnp

from fedjax_lite.models.conv import Form, Padding, conv
from fedjax_lite.types import Array, Key, Params

Init = Literal["he", "glorot", "lecun", "torch", "zeros"]

_KERNEL_INITS = {
    "he": jax.nn.initializers.he_normal(),
    "glorot": jax.nn.initializers.glorot_uniform(),
    "lecun": jax.nn.initializers.lecun_normal(),
    "zeros": jax.nn.initializers.zeros,
}


def check_init(init: str) -> None:
    """Checks the name of an initialiser.

    Raises:
      ValueError: if it is not known.
    """
    if init != "torch" and init not in _KERNEL_INITS:
        raise ValueError(f"init must be one of {[*_KERNEL_INITS, 'torch']}, got {init!r}")


def init_affine(key: Key, shape: tuple[int, ...], *, init: Init = "he") -> Params:
    """Draws a kernel and a bias, for a dense layer `[in, out]` or a convolution `[h, w, in, out]`.

    "he" (normal, variance 2 / fan_in), "glorot" (uniform, variance 2 / (fan_in + fan_out)), "lecun"
    (normal, 1 / fan_in) and "zeros" start at zero bias; "torch" draws both uniformly within
    ``1 / sqrt(fan_in)``, as published results made with PyTorch have it.

    Args:
      key: consumed.
      shape: of the kernel; the last axis is the output.
      init: one of the names above.

    Returns:
      ``{"kernel": [...], "bias": [out]}``.

    Example:
      >>> init_affine(jax.random.key(0), (3, 2))["bias"].tolist()
      [0.0, 0.0]
    """
    check_init(init)
    if init == "torch":
        bound = 1.0 / math.sqrt(math.prod(shape[:-1]))
        key_kernel, key_bias = jax.random.split(key)
        return {
            "kernel": jax.random.uniform(key_kernel, shape, minval=-bound, maxval=bound),
            "bias": jax.random.uniform(key_bias, shape[-1:], minval=-bound, maxval=bound),
        }
    return {
        "kernel": _KERNEL_INITS[init](key, shape, jnp.float32),
        "bias": jnp.zeros(shape[-1:], jnp.float32),
    }


def dense(params: Params, x: Array) -> Array:
    """``x @ kernel + bias``: `[B, in]` to `[B, out]`."""
    return jnp.dot(x, params["kernel"]) + params["bias"]


def conv_layer(
    params: Params,
    x: Array,
    *,
    strides: int = 1,
    padding: Padding = "SAME",
    form: Form = "auto",
) -> Array:
    """Convolution and bias: `[B, H, W, in]` to `[B, H', W', out]`; see `conv.conv`."""
    return conv(x, params["kernel"], strides=strides, padding=padding, form=form) + params["bias"]


def init_group_norm(num_channels: int) -> Params:
    """Scale 1 and shift 0 for every channel."""
    return {"scale": jnp.ones(num_channels), "bias": jnp.zeros(num_channels)}


def group_norm(params: Params, x: Array, *, num_groups: int, epsilon: float = 1e-5) -> Array:
    """Standardises each example within groups of channels: no batch statistics.

    ``(x - mean) / sqrt(var + epsilon) * scale + bias``, mean and variance over all positions and
    the group's channels. Batch statistics of clients with unlike data are the known trap of
    federated learning (Hsieh et al., 2020, arXiv:1910.00189); group normalisation has none.

    Args:
      params: ``{"scale": [C], "bias": [C]}``.
      x: `[B, ..., C]`.
      num_groups: divides `C`.
      epsilon: added to the variance.

    Returns:
      The same shape.

    Raises:
      ValueError: if the groups do not divide the channels.

    Example:
      >>> x = jnp.array([[[1.0], [3.0]]])
      >>> group_norm(init_group_norm(1), x, num_groups=1).round(3).ravel().tolist()
      [-1.0, 1.0]

    Reference: Wu and He, "Group Normalization", 2018, arXiv:1803.08494.
    """
    num_channels = x.shape[-1]
    if num_groups < 1 or num_channels % num_groups:
        raise ValueError(f"num_groups must divide the {num_channels} channels, got {num_groups}")
    grouped = x.reshape(x.shape[0], -1, num_groups, num_channels // num_groups)
    mean = jnp.mean(grouped, axis=(1, 3), keepdims=True)
    centred = grouped - mean
    variance = jnp.mean(jnp.square(centred), axis=(1, 3), keepdims=True)
    normal = (centred * jax.lax.rsqrt(variance + epsilon)).reshape(x.shape)
    return normal * params["scale"] + params["bias"]


def instance_norm(params: Params | None, x: Array, *, epsilon: float = 1e-5) -> Array:
    r"""Standardises each channel of each example over its positions.

    .. math::  \frac{x - \mu_{bc}}{\sqrt{\sigma^2_{bc} + \epsilon}} \cdot \mathrm{scale}_c
               + \mathrm{bias}_c

    with the mean and the population variance of one image and channel. It removes what differs
    between scanners or cameras, ``x -> c x + d`` with ``c > 0``, up to `epsilon`, and has neither
    batch statistics nor a running state. It is `group_norm` with as many groups as channels.

    Args:
      params: ``{"scale": [C], "bias": [C]}`` as `init_group_norm` makes them; None for none.
      x: `[B, ..., C]` with at least one axis of positions, e.g. `[B, H, W, C]`.
      epsilon: added to the variance.

    Returns:
      The same shape; a constant channel becomes its bias.

    Raises:
      ValueError: if `x` has no axis of positions.

    Example:
      >>> x = jnp.array([[[1.0, 10.0], [3.0, 30.0]]])
      >>> instance_norm(None, x).round(3).tolist()
      [[[-1.0, -1.0], [1.0, 1.0]]]

    Reference: Ulyanov, Vedaldi, Lempitsky, "Instance Normalization: The Missing Ingredient for
    Fast Stylization", 2016, arXiv:1607.08022.
    """
    if x.ndim < 3:
        raise ValueError(
            f"x must be [B, ..., C] with an axis of positions, e.g. [B, H, W, C], got shape "
            f"{list(x.shape)}"
        )
    positions = tuple(range(1, x.ndim - 1))
    centred = x - jnp.mean(x, axis=positions, keepdims=True)
    variance = jnp.mean(jnp.square(centred), axis=positions, keepdims=True)
    normal = centred * jax.lax.rsqrt(variance + epsilon)
    return normal if params is None else normal * params["scale"] + params["bias"]


def dropout(key: Key | None, x: Array, *, rate: float) -> Array:
    """Zeroes entries with probability `rate` and scales the others by ``1 / (1 - rate)``.

    An entry costs 16 random bits, so `rate` is rounded to a multiple of 2**-16; the scale is that
    of the rounded rate, and the mean is kept exactly.

    Args:
      key: consumed; None: the identity.
      x: any shape.
      rate: in ``[0, 1)``.

    Returns:
      The same shape.

    Example:
      >>> dropout(None, jnp.ones(2), rate=0.5).tolist()
      [1.0, 1.0]
    """
    if key is None or rate == 0.0:
        return x
    num_kept = max(round((1.0 - rate) * 2**16), 1)  # of the 2**16 values of 16 bits
    # Two entries a word: asked for 16 bits, JAX draws 32 for each and throws half away.
    words = jax.random.bits(key, ((x.size + 1) // 2,), jnp.uint32)
    halves = jax.lax.bitcast_convert_type(words, jnp.uint16).reshape(-1)[: x.size]
    keep = halves.reshape(x.shape) <= num_kept - 1
    return jnp.where(keep, x * (2**16 / num_kept), 0.0)


def check_rate(name: str, rate: float) -> None:
    """Checks a dropout rate.

    Raises:
      ValueError: if it is outside ``[0, 1)``.
    """
    if not 0.0 <= rate < 1.0:
        raise ValueError(f"{name} must be in [0, 1), got {rate}")


def fold(key: Key | None, number: int) -> Key | None:
    """``fold_in``, where a key may be absent."""
    return None if key is None else jax.random.fold_in(key, number)
