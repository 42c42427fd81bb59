"""A tiny federated problem with what goes wrong in real ones: ragged, skewed, an empty client."""

from __future__ import annotations

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np

from fedjax_lite.data.population.dataset import FederatedDataset, from_arrays
from fedjax_lite.types import Array, Key, Params, PyTree

SIZES = (3, 5, 1, 0, 4, 7, 2)
"""Examples per client: no two alike, one client without data, batches that do not divide."""


def population(
    *, seed: int = 0, poisoned: int | None = None, zeroed: int | None = None
) -> FederatedDataset:
    """Seven clients with different least-squares problems, ``{"x": [E, 3], "y": [E]}``.

    Args:
      seed: of the data.
      poisoned: a client whose data are all NaN.
      zeroed: a client whose data are all zero.

    Returns:
      A `FederatedDataset`.

    Example:
      >>> population().sizes.tolist()
      [3, 5, 1, 0, 4, 7, 2]
    """
    rng = np.random.default_rng(seed)
    owners = np.repeat(np.arange(len(SIZES)), SIZES)
    rng.shuffle(owners)
    x = rng.normal(size=(len(owners), 3)).astype(np.float32)
    weights = rng.normal(size=(len(SIZES), 3)).astype(np.float32)
    y = (x * weights[owners]).sum(1)
    data = from_arrays({"x": x, "y": y}, owners, num_clients=len(SIZES))
    data = _overwrite(data, owners, poisoned, np.nan)
    return _overwrite(data, owners, zeroed, 0.0)


def _overwrite(
    data: FederatedDataset, owners: np.ndarray, client: int | None, value: float
) -> FederatedDataset:
    if client is None:
        return data
    theirs = jnp.asarray(owners == client)

    def one(leaf: Array) -> Array:
        return jnp.where(theirs.reshape((-1,) + (1,) * (leaf.ndim - 1)), value, leaf)

    return dataclasses.replace(data, examples=jax.tree.map(one, data.examples))


def init_params(key: Key) -> Params:
    """Parameters of the problem's linear model."""
    return {"w": 0.1 * jax.random.normal(key, (3,)), "b": jnp.zeros(())}


def loss(params: Params, examples: PyTree, key: Key) -> Array:
    """Half squared error per example, `[B]`; it draws from its key, which moves no value.

    So whoever hands the same key to two calls is found by JAX's key-reuse checker.
    """
    prediction = examples["x"] @ params["w"] + params["b"]
    squares = 0.5 * (prediction - examples["y"]) ** 2
    return squares if key is None else jnp.where(jax.random.bits(key) >= 0, squares, -squares)
