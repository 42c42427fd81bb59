"""The exported network in JAX's own functions, for environments whose JAX is too old for ours."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp


def loss(net: dict[str, Any], params: Any, batch: Any, key: Any, *, form: str = "matmul") -> Any:
    """Mean cross-entropy of a batch.

    Args:
      net: `exports.Net` as a dict.
      params: ``{"conv1": {"kernel", "bias"}, ..., "head": ...}``.
      batch: ``x`` `[B, H, W, channels]`, uint8 or scaled to floats, ``y`` `[B]`.
      key: of dropout.
      form: of convolutions: "xla", or "matmul", shifted slices beside each other and one product.
    """
    log_shares = jax.nn.log_softmax(outputs(net, params, batch["x"], key, form))
    return -jnp.take_along_axis(log_shares, batch["y"][:, None], axis=1).mean()


def outputs(net: dict[str, Any], params: Any, x: Any, key: Any, form: str) -> Any:
    """What the softmax gets, `[B, classes]`."""
    x = x.astype(jnp.float32) / 255.0 if x.dtype == jnp.uint8 else x
    x = x if net["mean"] is None else x - jnp.asarray(net["mean"], x.dtype)
    x = x if net["std"] is None else x / jnp.asarray(net["std"], x.dtype)
    for number, has_pool in enumerate(net["pool_after"], start=1):
        layer = params[f"conv{number}"]
        x = jax.nn.relu(conv(x, layer["kernel"], form) + layer["bias"])
        x = pooled(x) if has_pool else x
    keys = iter(jax.random.split(key, 1 + len(net["hidden"])))
    x = dropped(next(keys), x, net["conv_dropout"])
    x = x.reshape(len(x), -1)
    for number in range(1, 1 + len(net["hidden"])):
        x = jax.nn.relu(affine(x, params[f"dense{number}"]))
        x = dropped(next(keys), x, net["dense_dropout"])
    x = affine(x, params["head"])
    return jax.nn.sigmoid(x) if net["sigmoid_outputs"] else x


def affine(x: Any, layer: Any) -> Any:
    """A dense layer."""
    return x @ layer["kernel"] + layer["bias"]


def conv(x: Any, kernel: Any, form: str) -> Any:
    """Stride 1, no padding."""
    if form == "xla":
        layout = ("NHWC", "HWIO", "NHWC")
        x = x.astype(kernel.dtype)
        return jax.lax.conv_general_dilated(x, kernel, (1, 1), "VALID", dimension_numbers=layout)
    rows, columns, channels, width = kernel.shape
    high, wide = x.shape[1] - rows + 1, x.shape[2] - columns + 1
    parts = [x[:, i : i + high, j : j + wide] for i in range(rows) for j in range(columns)]
    return jnp.concatenate(parts, axis=-1) @ kernel.reshape(rows * columns * channels, width)


def pooled(x: Any) -> Any:
    """Maxima of windows of 2 x 2."""
    batch, high, wide, channels = x.shape
    return x.reshape(batch, high // 2, 2, wide // 2, 2, channels).max((2, 4))


def dropped(key: Any, x: Any, rate: float) -> Any:
    """Inverted dropout."""
    kept = jax.random.bernoulli(key, 1 - rate, x.shape) if rate else True
    return jnp.where(kept, x / (1 - rate), 0)
