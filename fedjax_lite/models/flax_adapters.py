"""Models from flax modules, linen and nnx; flax is imported only when they are used."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp

from fedjax_lite.models.functions import from_functions
from fedjax_lite.models.inputs import as_floats
from fedjax_lite.models.losses import cross_entropy
from fedjax_lite.models.model import Model
from fedjax_lite.types import Array, Key, Params

_TRAIN_ARGUMENTS = {"train": True, "training": True, "is_training": True, "deterministic": False}


def from_linen(
    module: Any,
    example_x: Any,
    *,
    train_kwargs: Mapping[str, Any] | None = None,
    eval_kwargs: Mapping[str, Any] | None = None,
    rng_names: Sequence[str] = ("dropout",),
    loss: Callable[[Array, Array], Array] = cross_entropy,
    mean: Sequence[float] | None = None,
    std: Sequence[float] | None = None,
    raw_inputs: bool = False,
) -> Model:
    """Makes a `Model` of a flax linen module that maps `[B, ...]` to logits.

    Parameters are the module's "params" collection, a dict of arrays. State of another kind is
    refused: how clients' batch statistics should be shared has no neutral default.

    Args:
      module: a ``flax.linen.Module``.
      example_x: a batch of inputs, `[B, ...]`; only shape and dtype are used.
      train_kwargs: arguments of ``__call__`` in training. None: an argument called `train`,
        `training`, `is_training` or `deterministic` is found and set.
      eval_kwargs: the same for evaluation.
      rng_names: streams that the module draws from in training.
      loss: ``(logits, y) -> [B]``.
      mean: see `from_functions`.
      std: see `from_functions`.
      raw_inputs: see `from_functions`.

    Returns:
      A `Model`. Without a key, loss runs the module as in evaluation.

    Raises:
      ValueError: if the module keeps state beside its parameters.
      TypeError: if it is not a linen module.

    Example:
      >>> from flax import linen as nn
      >>> model = from_linen(nn.Dense(3), jnp.zeros((1, 4)))
      >>> model.init(jax.random.key(0))["kernel"].shape
      (4, 3)
    """
    from flax import linen

    if not isinstance(module, linen.Module):
        raise TypeError(
            f"module must be a flax.linen module, got {type(module).__name__}; "
            "use from_nnx for nnx, from_functions for others"
        )
    found = [
        name
        for name in inspect.signature(type(module).__call__).parameters
        if name in _TRAIN_ARGUMENTS
    ]
    if train_kwargs is None:
        train_kwargs = {name: _TRAIN_ARGUMENTS[name] for name in found}
    if eval_kwargs is None:
        eval_kwargs = {name: not _TRAIN_ARGUMENTS[name] for name in found}
    example = jax.ShapeDtypeStruct(jnp.shape(example_x), jnp.asarray(example_x).dtype)

    def init_variables(key: Key) -> dict[str, Any]:
        x = jnp.zeros(example.shape, example.dtype)
        x = x if raw_inputs else as_floats(x, mean=mean, std=std)
        return dict(module.init(key, x, **eval_kwargs))

    collections = jax.eval_shape(init_variables, jax.random.key(0))
    _refuse_state({name: tree for name, tree in collections.items() if name != "params"})

    def init(key: Key) -> Params:
        return init_variables(key).get("params", {})

    def apply(params: Params, x: Array, key: Key | None) -> Array:
        if key is None:
            return module.apply({"params": params}, x, **eval_kwargs)
        rngs = {name: jax.random.fold_in(key, i) for i, name in enumerate(rng_names)}
        return module.apply({"params": params}, x, rngs=rngs, **train_kwargs)

    return from_functions(init, apply, loss=loss, mean=mean, std=std, raw_inputs=raw_inputs)


def from_nnx(
    factory: Callable[[Any], Any],
    *,
    loss: Callable[[Array, Array], Array] = cross_entropy,
    mean: Sequence[float] | None = None,
    std: Sequence[float] | None = None,
    raw_inputs: bool = False,
) -> Model:
    """Makes a `Model` of a flax nnx module that maps `[B, ...]` to logits.

    ``nnx.split`` separates the module into its structure, its parameters (all ``nnx.Param``, as a
    nested dict of arrays) and its random streams, which are seeded anew from each loss's key.
    State of another kind is refused: how clients' batch statistics should be shared has no
    neutral default.

    Args:
      factory: ``(rngs) -> module``, e.g. ``lambda rngs: Net(rngs=rngs)``.
      loss: ``(logits, y) -> [B]``.
      mean: see `from_functions`.
      std: see `from_functions`.
      raw_inputs: see `from_functions`.

    Returns:
      A `Model`. Without a key, loss runs the module as ``module.eval()`` does.

    Raises:
      ValueError: if the module keeps state beside its parameters.
      TypeError: if the factory does not return an nnx module.

    Example:
      >>> from flax import nnx
      >>> model = from_nnx(lambda rngs: nnx.Linear(4, 3, rngs=rngs))
      >>> model.init(jax.random.key(0))["kernel"].shape
      (4, 3)
    """
    from flax import nnx

    def make(key: Key) -> Any:
        module = factory(nnx.Rngs(key))
        if not isinstance(module, nnx.Module):
            raise TypeError(
                f"factory must return an nnx.Module, got {type(module).__name__}; "
                "pass e.g. lambda rngs: Net(rngs=rngs)"
            )
        return module

    module = nnx.eval_shape(lambda: make(jax.random.key(0)))
    _, _, _, other = nnx.split(module, nnx.Param, nnx.RngState, ...)
    _refuse_state(nnx.to_pure_dict(other))
    module.train()
    training, param_state, rng_state = nnx.split(module, nnx.Param, nnx.RngState)
    module.eval()
    evaluation, _, _ = nnx.split(module, nnx.Param, nnx.RngState)

    def init(key: Key) -> Params:
        return nnx.to_pure_dict(nnx.state(make(key), nnx.Param))

    def apply(params: Params, x: Array, key: Key | None) -> Array:
        state = jax.tree.map(lambda leaf: leaf, param_state)
        nnx.replace_by_pure_dict(state, params)
        seed = jax.random.key(0) if key is None else key
        streams = _seed_streams(seed, rng_state)
        return nnx.merge(evaluation if key is None else training, state, streams)(x)

    return from_functions(init, apply, loss=loss, mean=mean, std=std, raw_inputs=raw_inputs)


def _seed_streams(key: Key, rng_state: Any) -> Any:
    """The same streams with keys folded from `key` and counters at zero."""
    leaves, structure = jax.tree.flatten(rng_state)
    seeded = []
    for i, leaf in enumerate(leaves):
        if jnp.issubdtype(leaf.dtype, jax.dtypes.prng_key):
            seeded.append(jax.random.fold_in(key, i))
        else:
            seeded.append(jnp.zeros(leaf.shape, leaf.dtype))
    return jax.tree.unflatten(structure, seeded)


def _refuse_state(state: Mapping[str, Any]) -> None:
    leaves = jax.tree_util.tree_leaves_with_path(state)
    if leaves:
        names = ", ".join(jax.tree_util.keystr(path) for path, _ in leaves[:4])
        raise ValueError(
            f"module must have parameters only, but keeps other state: {names}"
            f"{', ...' if len(leaves) > 4 else ''}; undecided use of batch statistics is an error: "
            "replace BatchNorm by GroupNorm or LayerNorm, or decide yourself with from_functions"
        )
