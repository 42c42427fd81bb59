"""Multinomial regression and multilayer perceptrons."""

from __future__ import annotations

import math
from collections.abc import Sequence

import jax

from fedjax_lite.checks.made import made
from fedjax_lite.models.functions import from_functions
from fedjax_lite.models.inputs import as_shape, check_input_shape
from fedjax_lite.models.layers import Init, check_init, dense, init_affine
from fedjax_lite.models.model import Model
from fedjax_lite.types import Array, Key, Params


@made
def linear(
    num_classes: int = 10,
    input_shape: Sequence[int] = (28, 28, 1),
    *,
    init: Init = "zeros",
    sigmoid_outputs: bool = False,
    mean: Sequence[float] | None = None,
    std: Sequence[float] | None = None,
) -> Model:
    """Multinomial logistic regression, a convex problem that starts at zero.

    Args:
      num_classes: outputs.
      input_shape: of one example; inputs are flattened.
      init: "zeros" as in FedProx's experiments, or another of `layers.init_affine`.
      sigmoid_outputs: put a sigmoid before the softmax cross-entropy, as the LR of the FLUTE
        benchmark does (a quirk that slows learning; only to compare with it).
      mean: see `from_functions`.
      std: see `from_functions`.

    Returns:
      A `Model` with ``(size + 1) * num_classes`` parameters under "head".

    Raises:
      ValueError: if an argument does not fit.

    Example:
      >>> model = linear(10, (28, 28, 1))
      >>> sum(leaf.size for leaf in jax.tree.leaves(model.init(jax.random.key(0))))
      7850

    Reference: Li et al., "Federated Optimization in Heterogeneous Networks", 2020,
      arXiv:1812.06127.
    """
    model = mlp((), num_classes=num_classes, input_shape=input_shape, init=init, mean=mean, std=std)
    shape = check_input_shape(input_shape)

    def apply(params: Params, x: Array, key: Key | None) -> Array:
        del key
        x = as_shape(x, shape)
        logits = dense(params["head"], x.reshape(x.shape[0], -1))
        return jax.nn.sigmoid(logits) if sigmoid_outputs else logits

    return from_functions(model.init, apply, mean=mean, std=std)


@made
def mlp(
    hidden: Sequence[int] = (200, 200),
    *,
    num_classes: int = 10,
    input_shape: Sequence[int] = (28, 28, 1),
    init: Init = "he",
    mean: Sequence[float] | None = None,
    std: Sequence[float] | None = None,
) -> Model:
    """Multilayer perceptron with ReLU; the default is McMahan's 2NN, 199,210 parameters.

    Args:
      hidden: widths of the hidden layers.
      num_classes: outputs.
      input_shape: of one example; inputs are flattened.
      init: see `layers.init_affine`; He's suits ReLU.
      mean: see `from_functions`.
      std: see `from_functions`.

    Returns:
      A `Model`; parameters "dense1", "dense2", ... and "head".

    Raises:
      ValueError: if an argument does not fit.

    Example:
      >>> params = mlp().init(jax.random.key(0))
      >>> sum(leaf.size for leaf in jax.tree.leaves(params))
      199210

    Reference: McMahan et al., "Communication-Efficient Learning of Deep Networks from
      Decentralized Data", 2017, arXiv:1602.05629.
    """
    shape = check_input_shape(input_shape)
    if isinstance(hidden, int):
        raise TypeError(f"hidden must be a sequence of widths, got {hidden}; give ({hidden},)")
    widths = (math.prod(shape), *hidden, num_classes)
    if any(not isinstance(n, int) or n < 1 for n in widths):
        raise ValueError(
            f"hidden and num_classes must be positive ints, got {widths[1:]}; give ints above 0"
        )
    check_init(init)
    names = [f"dense{i + 1}" for i in range(len(widths) - 2)] + ["head"]

    def init_params(key: Key) -> Params:
        keys = jax.random.split(key, len(names))
        return {
            name: init_affine(keys[i], (widths[i], widths[i + 1]), init=init)
            for i, name in enumerate(names)
        }

    def apply(params: Params, x: Array, key: Key | None) -> Array:
        del key
        x = as_shape(x, shape)
        x = x.reshape(x.shape[0], -1)
        for name in names[:-1]:
            x = jax.nn.relu(dense(params[name], x))
        return dense(params["head"], x)

    return from_functions(init_params, apply, mean=mean, std=std)
