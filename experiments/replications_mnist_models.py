"""The networks of two replications of FedAvg on MNIST, as their PyTorch code has them.

Read in github.com/shaoxiongji/federated-learning (`models/Nets.py`) and
github.com/AshwinRJ/Federated-Learning-PyTorch (`src/models.py`); what is here is written anew.
PyTorch's default weights; pixels with the mean 0.1307 and the deviation 0.3081 of all images.
"""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp

import fedjax_lite as fl
from fedjax_lite.models.layers import conv_layer, dense, dropout, fold, init_affine
from fedjax_lite.models.pooling import max_pool

SCALE: dict[str, Any] = {"mean": (0.1307,), "std": (0.3081,)}


def perceptron(hidden: int, *, minus_probability: bool = False) -> fl.models.Model:
    """One hidden layer, half of its units dropped before the ReLU.

    Args:
      hidden: units.
      minus_probability: the loss is minus the probability of the right class, without a logarithm:
        a softmax whose output goes to PyTorch's `NLLLoss`.

    Example:
      >>> params = perceptron(200).init(jax.random.key(0))
      >>> sum(leaf.size for leaf in jax.tree.leaves(params))
      159010
    """

    def init(key: jax.Array) -> Any:
        first, second = jax.random.split(key)
        return {
            "hidden": init_affine(first, (784, hidden), init="torch"),
            "head": init_affine(second, (hidden, 10), init="torch"),
        }

    def apply(params: Any, x: Any, key: Any) -> Any:
        x = dropout(key, dense(params["hidden"], x.reshape(-1, 784)), rate=0.5)
        return dense(params["head"], jax.nn.relu(x))

    if minus_probability:
        return fl.models.from_functions(init, apply, loss=_minus_probability, **SCALE)
    return fl.models.from_functions(init, apply, **SCALE)


def _minus_probability(logits: Any, y: Any) -> Any:
    return -jnp.take_along_axis(jax.nn.softmax(logits), y[:, None].astype(int), -1)[:, 0]


def small_cnn() -> fl.models.Model:
    """Both repositories' CNN: conv 10, pool, conv 20, channels dropped, pool, dense 50, dropout.

    Example:
      >>> params = small_cnn().init(jax.random.key(0))
      >>> sum(leaf.size for leaf in jax.tree.leaves(params))
      21840
    """
    shapes = {"conv1": (5, 5, 1, 10), "conv2": (5, 5, 10, 20), "dense": (320, 50), "head": (50, 10)}

    def init(key: jax.Array) -> Any:
        keys = jax.random.split(key, len(shapes))
        return {
            name: init_affine(each, shape, init="torch")
            for each, (name, shape) in zip(keys, shapes.items(), strict=True)
        }

    def apply(params: Any, x: Any, key: Any) -> Any:
        x = conv_layer(params["conv1"], x.reshape(-1, 28, 28, 1), padding="VALID")
        x = conv_layer(params["conv2"], jax.nn.relu(max_pool(x)), padding="VALID")
        # One draw for a channel of an image: the mask is an image of ones, dropped.
        x = x * dropout(fold(key, 0), jnp.ones((x.shape[0], 1, 1, x.shape[-1])), rate=0.5)
        x = jax.nn.relu(max_pool(x)).reshape(-1, 320)
        x = dropout(fold(key, 1), jax.nn.relu(dense(params["dense"], x)), rate=0.5)
        return dense(params["head"], x)

    return fl.models.from_functions(init, apply, **SCALE)
