"""Models from flax modules, linen and nnx; flax is imported only when they are used."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from fedjax_lite.checks.about import about
from fedjax_lite.checks.made import made
from fedjax_lite.models.batch_norm import (
    STATISTICS_NAMES,
    Policy,
    check_policy,
    from_moments,
    record_statistics,
    to_moments,
)
from fedjax_lite.models.functions import from_functions
from fedjax_lite.models.inputs import as_floats, check_channel_last
from fedjax_lite.models.losses import cross_entropy
from fedjax_lite.models.model import Model
from fedjax_lite.types import Array, Key, Params

_TRAIN_ARGUMENTS = {"train": True, "training": True, "is_training": True, "deterministic": False}


@made
def from_linen(
    module: Any,
    example_x: Any,
    *,
    train_kwargs: Mapping[str, Any] | None = None,
    eval_kwargs: Mapping[str, Any] | None = None,
    rng_names: Sequence[str] = ("dropout",),
    statistics: Policy | None = None,
    loss: Callable[[Array, Array], Array] = cross_entropy,
    mean: Sequence[float] | None = None,
    std: Sequence[float] | None = None,
    raw_inputs: bool = False,
) -> Model:
    """Makes a `Model` of a flax linen module that maps `[B, ...]` to logits.

    Parameters are the module's "params" collection, a dict of arrays. Batch statistics need a
    decision, `statistics`: "averaged" and "local" put them into the parameters, as
    ``{"mean", "square"}`` under "batch_stats" or "local_stats" beside the layer's scale and bias
    (see `batch_norm` for why and for what they do on the wire); train with `with_statistics`,
    and "local" with `fedbn` or `local_leaves`. "batch" keeps none: evaluation, too, calls the
    module as training does (unless `eval_kwargs` are given, which must not ask for running
    averages) and depends on the batch. State of any other kind is refused.

    Args:
      module: a ``flax.linen.Module``.
      example_x: a batch of inputs, `[B, ...]`; only shape and dtype are used.
      train_kwargs: arguments of ``__call__`` in training. None: an argument called `train`,
        `training`, `is_training` or `deterministic` is found and set.
      eval_kwargs: the same for evaluation.
      rng_names: streams that the module draws from in training.
      statistics: "averaged", "local" or "batch" for a module with batch statistics.
      loss: ``(logits, y) -> [B]``.
      mean: see `from_functions`.
      std: see `from_functions`.
      raw_inputs: see `from_functions`.

    Returns:
      A `Model`. Without a key, loss runs the module as in evaluation.

    Raises:
      ValueError: if the module has batch statistics and `statistics` is not chosen, or keeps
        state of another kind.
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
            "an instance, Net(), not the class; use from_nnx for nnx, from_functions for others"
        )
    check_channel_last(jnp.shape(example_x), "example_x")
    found = [
        name
        for name in inspect.signature(type(module).__call__).parameters
        if name in _TRAIN_ARGUMENTS
    ]
    in_training: Mapping[str, Any] = {name: _TRAIN_ARGUMENTS[name] for name in found}
    in_training = in_training if train_kwargs is None else train_kwargs
    at_init: Mapping[str, Any] = {name: not _TRAIN_ARGUMENTS[name] for name in found}
    at_init = at_init if eval_kwargs is None else eval_kwargs
    example = jax.ShapeDtypeStruct(jnp.shape(example_x), jnp.asarray(example_x).dtype)

    def example_input() -> Array:
        x = jnp.zeros(example.shape, example.dtype)
        return x if raw_inputs else as_floats(x, mean=mean, std=std)

    def init_variables(key: Key) -> dict[str, Any]:
        return dict(module.init(key, example_input(), **at_init))

    with about("example_x", example_x, word="x"):
        collections = jax.eval_shape(init_variables, jax.random.key(0))
    kept = collections.get("batch_stats", {})
    others = {n: tree for n, tree in collections.items() if n not in ("params", "batch_stats")}
    name = _decide(statistics, kept, others)
    like_training = bool(kept) and name is None and eval_kwargs is None
    if like_training:
        _check_no_randomness(module, collections, example_input, in_training)
    in_evaluation = in_training if like_training else at_init
    # Under "batch" the layers want their collection, but nothing depends on what it holds.
    unused = kept and jax.tree.map(lambda leaf: np.zeros(leaf.shape, leaf.dtype), kept)

    def init(key: Key) -> Params:
        variables = init_variables(key)
        params = variables.get("params", {})
        return _insert(params, variables["batch_stats"], name) if name else params

    def apply(params: Params, x: Array, key: Key | None) -> Array:
        rngs: dict[str, Key] = {}
        kwargs = in_evaluation
        if key is not None:
            rngs = {stream: jax.random.fold_in(key, i) for i, stream in enumerate(rng_names)}
            kwargs = in_training
        if not kept:
            return module.apply({"params": params}, x, rngs=rngs, **kwargs)
        params, stored = _extract(params, name)
        running = _map_layers(lambda m: _as_flax(*from_moments(m)), stored) if name else unused
        logits, new = module.apply(
            {"params": params, "batch_stats": running},
            x,
            rngs=rngs,
            mutable=["batch_stats"],
            **kwargs,
        )
        if name is None or key is None:
            return logits
        return record_statistics(logits, stored, _map_layers(_as_moments, new["batch_stats"]))

    return from_functions(init, apply, loss=loss, mean=mean, std=std, raw_inputs=raw_inputs)


@made
def from_nnx(
    factory: Callable[[Any], Any],
    *,
    statistics: Policy | None = None,
    loss: Callable[[Array, Array], Array] = cross_entropy,
    mean: Sequence[float] | None = None,
    std: Sequence[float] | None = None,
    raw_inputs: bool = False,
) -> Model:
    """Makes a `Model` of a flax nnx module that maps `[B, ...]` to logits.

    ``nnx.split`` separates the module into its structure, its parameters (all ``nnx.Param``, as a
    nested dict of arrays) and its random streams, which are seeded anew from each loss's key.
    Batch statistics need a decision, `statistics`; state of any other kind is refused.

    Args:
      factory: ``(rngs) -> module``, e.g. ``lambda rngs: Net(rngs=rngs)``.
      statistics: "averaged", "local" or "batch" for a module with batch statistics; see
        `from_linen`. With "batch", evaluation has no dropout.
      loss: ``(logits, y) -> [B]``.
      mean: see `from_functions`.
      std: see `from_functions`.
      raw_inputs: see `from_functions`.

    Returns:
      A `Model`. Without a key, loss runs the module as ``module.eval()`` does.

    Raises:
      ValueError: if the module has batch statistics and `statistics` is not chosen, or keeps
        state of another kind.
      TypeError: if the factory does not return an nnx module.

    Example:
      >>> from flax import nnx
      >>> model = from_nnx(lambda rngs: nnx.Linear(4, 3, rngs=rngs))
      >>> model.init(jax.random.key(0))["kernel"].shape
      (4, 3)
    """
    from flax import nnx

    if isinstance(factory, nnx.Module):
        raise TypeError(
            f"factory must be a function (rngs) -> module, got a {type(factory).__name__}; "
            "pass e.g. lambda rngs: Net(rngs=rngs)"
        )

    def make(key: Key) -> Any:
        module = factory(nnx.Rngs(key))
        if not isinstance(module, nnx.Module):
            raise TypeError(
                f"factory must return an nnx.Module, got {type(module).__name__}; "
                "pass e.g. lambda rngs: Net(rngs=rngs)"
            )
        return module

    module = nnx.eval_shape(lambda: make(jax.random.key(0)))
    _, _, kept, _, other = nnx.split(module, nnx.Param, nnx.BatchStat, nnx.RngState, ...)
    kept = nnx.to_pure_dict(kept)
    name = _decide(statistics, kept, nnx.to_pure_dict(other))
    module.train()
    training, param_state, stat_state, rng_state = nnx.split(
        module, nnx.Param, nnx.BatchStat, nnx.RngState
    )
    module.eval()
    if kept and name is None:
        module.set_attributes(nnx.BatchNorm, use_running_average=False, raise_if_not_found=False)
    evaluation, _, _, _ = nnx.split(module, nnx.Param, nnx.BatchStat, nnx.RngState)

    def init(key: Key) -> Params:
        made = make(key)
        params = nnx.to_pure_dict(nnx.state(made, nnx.Param))
        if name is None:
            return params
        return _insert(params, nnx.to_pure_dict(nnx.state(made, nnx.BatchStat)), name)

    def apply(params: Params, x: Array, key: Key | None) -> Array:
        params, stored = _extract(params, name)
        # Layers write into them, which a NumPy array refuses while traced.
        unused = jax.tree.map(lambda leaf: jnp.zeros(leaf.shape, leaf.dtype), kept)
        running = _map_layers(lambda m: _as_flax(*from_moments(m)), stored) if name else unused
        state = jax.tree.map(lambda leaf: leaf, param_state)
        nnx.replace_by_pure_dict(state, params)
        stats = jax.tree.map(lambda leaf: leaf, stat_state)
        nnx.replace_by_pure_dict(stats, running)
        seed = jax.random.key(0) if key is None else key
        streams = _seed_streams(seed, rng_state)
        merged = nnx.merge(evaluation if key is None else training, state, stats, streams)
        logits = merged(x)
        if name is None or key is None:
            return logits
        new = nnx.to_pure_dict(nnx.state(merged, nnx.BatchStat))
        return record_statistics(logits, stored, _map_layers(_as_moments, new))

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


def _decide(statistics: Any, kept: Mapping[str, Any], others: Mapping[str, Any]) -> str | None:
    """The name under which statistics are stored in the parameters; None where none are."""
    leaves = jax.tree_util.tree_leaves_with_path(others)
    if leaves:
        raise ValueError(
            f"module must keep no state but parameters and batch statistics, got {_names(leaves)}; "
            "decide yourself what clients share with from_functions"
        )
    leaves = jax.tree_util.tree_leaves_with_path(kept)
    if not leaves:
        if statistics is not None:
            check_policy(statistics)
        return None
    check_policy(statistics, found=f"a module that keeps {_names(leaves)}")
    layers = {path[:-1] for path, _ in leaves}
    pairs = all(getattr(path[-1], "key", None) in ("mean", "var") for path, _ in leaves)
    if not pairs or len(leaves) != 2 * len(layers):
        raise ValueError(
            "module's batch statistics must be pairs of a running mean and var (BatchNorm), got "
            f"{_names(leaves)}; use from_functions for others"
        )
    return STATISTICS_NAMES.get(statistics)


def _names(leaves: Sequence[tuple[Any, Any]]) -> str:
    names = ", ".join(jax.tree_util.keystr(path) for path, _ in leaves[:4])
    return f"{names}, ..." if len(leaves) > 4 else names


def _check_no_randomness(
    module: Any, collections: Any, example_input: Callable[[], Array], kwargs: Mapping[str, Any]
) -> None:
    """Tells early that a module cannot be evaluated as it is trained."""
    from flax.errors import InvalidRngError

    def call(variables: Any) -> Any:
        return module.apply(variables, example_input(), mutable=["batch_stats"], **kwargs)

    try:
        jax.eval_shape(call, collections)
    except InvalidRngError as error:
        raise ValueError(
            "statistics='batch' calls the module in evaluation as in training, where it draws "
            "random numbers (dropout); give the module separate arguments for the two and pass "
            "eval_kwargs"
        ) from error


def _insert(params: Mapping[Any, Any], running: Mapping[Any, Any], name: str) -> dict[Any, Any]:
    """Puts each layer's statistics beside its parameters, under `name`."""
    if _is_layer(running):
        return {**params, name: _as_moments(running)}
    inserted = {k: _insert(params.get(k, {}), below, name) for k, below in running.items()}
    return {**params, **inserted}


def _extract(params: Any, name: str | None) -> tuple[Any, Any]:
    """The inverse of `_insert`: parameters without the statistics, and the statistics as moments.

    A layer without scale and bias leaves an empty dict among the parameters, which flax ignores.
    """
    if name is None or not isinstance(params, Mapping):
        return params, {}
    if name in params:
        return {k: v for k, v in params.items() if k != name}, params[name]
    split = {k: _extract(below, name) for k, below in params.items()}
    rest = {k: own for k, (own, _) in split.items()}
    return rest, {k: stored for k, (_, stored) in split.items() if stored}


def _is_layer(tree: Mapping[Any, Any]) -> bool:
    return set(tree) == {"mean", "var"} and not isinstance(tree["mean"], Mapping)


def _map_layers(function: Callable[[Any], Any], tree: Any) -> Any:
    """Applies `function` to every layer's pair of statistics."""
    if not any(isinstance(below, Mapping) for below in tree.values()):
        return function(tree) if tree else {}
    return {k: _map_layers(function, below) for k, below in tree.items()}


def _as_moments(running: Mapping[str, Array]) -> dict[str, Array]:
    return to_moments(running["mean"], running["var"])


def _as_flax(mean: Array, variance: Array) -> dict[str, Array]:
    return {"mean": mean, "var": variance}
