"""The convolutional networks of published federated benchmarks, from one builder."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import jax

from fedjax_lite.checks.made import made
from fedjax_lite.models.conv import Form
from fedjax_lite.models.functions import from_functions
from fedjax_lite.models.inputs import as_shape, check_input_shape
from fedjax_lite.models.layers import (
    Init,
    check_init,
    check_rate,
    conv_layer,
    dense,
    dropout,
    fold,
    init_affine,
)
from fedjax_lite.models.model import Model
from fedjax_lite.models.pooling import max_pool
from fedjax_lite.types import Array, Key, Params


@made
def conv_net(
    features: Sequence[int] = (32, 64),
    hidden: Sequence[int] = (512,),
    *,
    num_classes: int = 10,
    input_shape: Sequence[int] = (28, 28, 1),
    kernel_size: int = 5,
    padding: str = "SAME",
    pool_after: Sequence[bool] | None = None,
    pool_size: int = 2,
    pool_strides: int = 2,
    pool_padding: str = "VALID",
    conv_dropout: float = 0.0,
    dense_dropout: float = 0.0,
    init: Init = "glorot",
    mean: Sequence[float] | None = None,
    std: Sequence[float] | None = None,
    form: Form = "auto",
) -> Model:
    """Convolutions with ReLU and max pooling, then dense layers with ReLU, then the logits.

    Most published federated image models are of this family, for example
    ``conv_net((64, 64), (384, 192), padding="VALID", input_shape=(32, 32, 3))`` (FedDyn, 797,962
    parameters) or ``conv_net((32, 64), (512,), padding="VALID")`` (PFLlib, 582,026).

    Args:
      features: channels of the convolutions.
      hidden: widths of the dense layers.
      num_classes: outputs.
      input_shape: ``(height, width, channels)``.
      kernel_size: of every convolution, square.
      padding: of every convolution, "SAME" or "VALID".
      pool_after: for each convolution, whether pooling follows; None: after each.
      pool_size: the pooling window.
      pool_strides: its strides.
      pool_padding: "VALID" or "SAME".
      conv_dropout: rate after the last convolution (and its pooling).
      dense_dropout: rate after each hidden dense layer.
      init: see `layers.init_affine`.
      mean: see `from_functions`.
      std: see `from_functions`.
      form: of the convolutions, see `conv.conv`.

    Returns:
      A `Model`; parameters "conv1", ..., "dense1", ... and "head".

    Raises:
      ValueError: if an argument does not fit, or an image is too small for the layers.

    Example:
      >>> params = conv_net((4,), (8,), input_shape=(8, 8, 1)).init(jax.random.key(0))
      >>> sorted(params)
      ['conv1', 'dense1', 'head']
    """
    shape = check_input_shape(input_shape)
    if len(shape) != 3:
        raise ValueError(f"input_shape must be (height, width, channels), got {input_shape!r}")
    check_init(init)
    check_rate("conv_dropout", conv_dropout)
    check_rate("dense_dropout", dense_dropout)
    pools = (True,) * len(features) if pool_after is None else tuple(pool_after)
    if len(pools) != len(features):
        raise ValueError(
            f"pool_after must have one entry for each of {len(features)} convolutions, got {pools}"
        )
    if any(n < 1 for n in (*features, *hidden, num_classes, kernel_size)):
        raise ValueError(
            f"features, hidden, num_classes and kernel_size must be positive, got "
            f"{features}, {hidden}, {num_classes}, {kernel_size}; give ints above 0"
        )
    conv_names = [f"conv{i + 1}" for i in range(len(features))]
    dense_names = [f"dense{i + 1}" for i in range(len(hidden))]

    def body(params: Params, x: Array) -> Array:
        for name, pool in zip(conv_names, pools):
            x = jax.nn.relu(conv_layer(params[name], x, padding=padding, form=form))
            if pool:
                x = max_pool(x, pool_size, strides=pool_strides, padding=pool_padding)
        return x.reshape(x.shape[0], -1)

    channels = (shape[-1], *features)
    kernels = {
        name: (kernel_size, kernel_size, channels[i], channels[i + 1])
        for i, name in enumerate(conv_names)
    }
    # Shapes only: how many features the convolutions leave, and whether the image is big enough.
    abstract = {
        name: {
            "kernel": jax.ShapeDtypeStruct(kernel, "float32"),
            "bias": jax.ShapeDtypeStruct(kernel[-1:], "float32"),
        }
        for name, kernel in kernels.items()
    }
    flat = jax.eval_shape(body, abstract, jax.ShapeDtypeStruct((1, *shape), "float32")).shape[-1]
    if flat == 0:
        raise ValueError(f"input_shape {shape} is too small for {len(features)} convolutions")
    widths = (flat, *hidden, num_classes)
    matrices = {name: (widths[i], widths[i + 1]) for i, name in enumerate([*dense_names, "head"])}

    def init_params(key: Key) -> Params:
        shapes = kernels | matrices
        keys = jax.random.split(key, len(shapes))
        return {
            name: init_affine(keys[i], kernel, init=init)
            for i, (name, kernel) in enumerate(shapes.items())
        }

    def apply(params: Params, x: Array, key: Key | None) -> Array:
        x = body(params, as_shape(x, shape))
        x = dropout(fold(key, 0), x, rate=conv_dropout)
        for i, name in enumerate(dense_names):
            x = dropout(fold(key, i + 1), jax.nn.relu(dense(params[name], x)), rate=dense_dropout)
        return dense(params["head"], x)

    return from_functions(init_params, apply, mean=mean, std=std)


@made
def mcmahan_cnn(
    num_classes: int = 10, input_shape: Sequence[int] = (28, 28, 1), **options: Any
) -> Model:
    """McMahan's MNIST CNN: 5x5 to 32, pool, 5x5 to 64, pool, 512; 1,663,370 parameters.

    Args:
      num_classes: outputs.
      input_shape: ``(height, width, channels)``.
      **options: `init`, `mean`, `std` and `form` of `conv_net`.

    Returns:
      A `Model`.

    Example:
      >>> shapes = jax.eval_shape(mcmahan_cnn().init, jax.random.key(0))
      >>> sum(leaf.size for leaf in jax.tree.leaves(shapes))
      1663370

    Reference: McMahan et al., "Communication-Efficient Learning of Deep Networks from
      Decentralized Data", 2017, arXiv:1602.05629.
    """
    return conv_net((32, 64), (512,), num_classes=num_classes, input_shape=input_shape, **options)


@made
def cifar_cnn24(
    num_classes: int = 10, input_shape: Sequence[int] = (24, 24, 3), **options: Any
) -> Model:
    """McMahan's CIFAR CNN, the TensorFlow tutorial's at 24x24; 1,068,298 parameters.

    5x5 to 64, pool 3 by stride 2, twice, then 384, 192 and the logits. The tutorial's local
    response normalisation (no parameters, near the identity) is left out. For 32x32 images wrap it:
    ``augmented(cifar_cnn24(), size=24, crop=0)`` trains on random crops and predicts on the centre.

    Args:
      num_classes: outputs.
      input_shape: ``(height, width, channels)``.
      **options: `init`, `mean`, `std`, `form`, `pool_size` and so on of `conv_net`.

    Returns:
      A `Model`.

    Example:
      >>> shapes = jax.eval_shape(cifar_cnn24().init, jax.random.key(0))
      >>> sum(leaf.size for leaf in jax.tree.leaves(shapes))
      1068298

    Reference: McMahan et al., "Communication-Efficient Learning of Deep Networks from
      Decentralized Data", 2017, arXiv:1602.05629.
    """
    settings: dict[str, Any] = {"pool_size": 3, "pool_padding": "SAME"} | options
    return conv_net(
        (64, 64), (384, 192), num_classes=num_classes, input_shape=input_shape, **settings
    )


@made
def pfl_cnn(
    num_classes: int = 10,
    input_shape: Sequence[int] = (32, 32, 3),
    *,
    conv_dropout: float = 0.25,
    dense_dropout: float = 0.5,
    **options: Any,
) -> Model:
    """The CIFAR CNN of pfl-research's benchmarks; 1,626,442 parameters.

    3x3 to 32, 3x3 to 64, both VALID, pool 2, dropout, 128, dropout, logits; Glorot's uniform start.

    Args:
      num_classes: outputs.
      input_shape: ``(height, width, channels)``.
      conv_dropout: rate after the convolutions.
      dense_dropout: rate after the dense layer.
      **options: `init`, `mean`, `std` and `form` of `conv_net`.

    Returns:
      A `Model`.

    Example:
      >>> shapes = jax.eval_shape(pfl_cnn().init, jax.random.key(0))
      >>> sum(leaf.size for leaf in jax.tree.leaves(shapes))
      1626442

    Reference: Granqvist et al., "pfl-research: simulation framework for accelerating research in
      Private Federated Learning", 2024, arXiv:2404.06430.
    """
    return conv_net(
        (32, 64),
        (128,),
        num_classes=num_classes,
        input_shape=input_shape,
        kernel_size=3,
        padding="VALID",
        pool_after=(False, True),
        conv_dropout=conv_dropout,
        dense_dropout=dense_dropout,
        **options,
    )


@made
def lenet(num_classes: int = 10, input_shape: Sequence[int] = (32, 32, 3), **options: Any) -> Model:
    """LeNet-5 with ReLU and max pooling, as in NIID-Bench; 62,006 parameters (44,426 on MNIST).

    5x5 to 6, pool, 5x5 to 16, pool, both VALID, then 120, 84 and the logits; PyTorch's start.

    Args:
      num_classes: outputs.
      input_shape: ``(height, width, channels)``.
      **options: `init`, `mean`, `std` and `form` of `conv_net`.

    Returns:
      A `Model`.

    Example:
      >>> shapes = jax.eval_shape(lenet().init, jax.random.key(0))
      >>> sum(leaf.size for leaf in jax.tree.leaves(shapes))
      62006

    Reference: Li et al., "Federated Learning on Non-IID Data Silos: An Experimental Study", 2021,
      arXiv:2102.02079.
    """
    settings: dict[str, Any] = {"init": "torch"} | options
    return conv_net(
        (6, 16),
        (120, 84),
        num_classes=num_classes,
        input_shape=input_shape,
        padding="VALID",
        **settings,
    )
