"""The exported network as a fedjax_lite model, and the exported data: for the workers on JAX."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

import fedjax_lite as fl


def build(net: dict[str, Any], *, form: str = "auto") -> fl.models.Model:
    """The network.

    Args:
      net: `exports.Net` as a dict.
      form: of its convolutions, see `fl.models.conv_net`.
    """
    common: dict[str, Any] = {
        "num_classes": net["num_classes"],
        "input_shape": tuple(net["input_shape"]),
        "mean": net["mean"],
        "std": net["std"],
    }
    if net["features"]:
        return fl.models.conv_net(
            net["features"],
            net["hidden"],
            kernel_size=net["kernel_size"],
            padding="VALID",
            pool_after=net["pool_after"],
            conv_dropout=net["conv_dropout"],
            dense_dropout=net["dense_dropout"],
            init=net["init"],
            form=form,  # pyright: ignore[reportArgumentType]
            **common,
        )
    if net["hidden"]:
        return fl.models.mlp(net["hidden"], init=net["init"], **common)
    return fl.models.linear(sigmoid_outputs=net["sigmoid_outputs"], init=net["init"], **common)


def set_precision(dtype: str) -> None:
    """Lets JAX compute in float64 where the task asks for it; before any array is made."""
    if dtype == "float64":
        jax.config.update("jax_enable_x64", True)


def unflatten(weights: dict[str, np.ndarray]) -> dict[str, dict[str, jax.Array]]:
    """``{"conv1/kernel": ...}`` to ``{"conv1": {"kernel": ...}}``."""
    params: dict[str, dict[str, jax.Array]] = {}
    for name, value in weights.items():
        layer, _, leaf = name.partition("/")
        params.setdefault(layer, {})[leaf] = jnp.asarray(value)
    return params


def flatten(params: Any) -> dict[str, np.ndarray]:
    """The inverse of `unflatten`."""
    return {
        f"{layer}/{leaf}": np.asarray(value)
        for layer, leaves in params.items()
        for leaf, value in leaves.items()
    }
