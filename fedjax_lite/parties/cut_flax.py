"""Flax networks, cut: linen and nnx; flax is imported only when they are used."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp

from fedjax_lite.checks.made import made
from fedjax_lite.models.flax_adapters import from_linen, from_nnx
from fedjax_lite.models.losses import cross_entropy
from fedjax_lite.parties.cut import At, CutModel, Stage, check_stages, cut_stages
from fedjax_lite.types import Array, Key, Params


@made
def cut_linen(
    module: Any,
    example_x: Any,
    *,
    at: At,
    stages: Sequence[Callable[[Any, Array], Array]] | None = None,
    loss: Callable[[Array, Array], Array] = cross_entropy,
    raw_inputs: bool = False,
) -> CutModel:
    """Cuts a flax linen network between its layers.

    Args:
      module: a ``linen.Sequential``, cut between its layers; or any module, with `stages`.
      example_x: a batch of inputs, `[B, ...]`; only shape and dtype are used.
      at: see `cut_layers`; counts layers, or stages.
      stages: functions ``(module, x) -> x`` that call the module's submodules, one after the other
        its whole work: ``lambda m, x: m.encoder(x)``.
      loss: see `cut_layers`.
      raw_inputs: see `cut_layers`.

    Returns:
      A `CutModel`; ``cut.model`` has the parameters of `fedjax_lite.models.from_linen`.

    Raises:
      TypeError: if it is no linen module, or no Sequential and `stages` are missing.
      ValueError: if the module keeps state such as batch statistics, or a parameter is read on both
        sides.

    Example:
      >>> from flax import linen as nn
      >>> net = nn.Sequential([nn.Dense(3), nn.relu, nn.Dense(2)])
      >>> cut = cut_linen(net, jnp.ones((1, 4)), at=2)
      >>> cut.of_server["layers_2"]["kernel"], cut.of_server["layers_0"]["kernel"]
      (True, False)
    """
    from flax import linen

    check_stages(stages, example_x)
    model = from_linen(module, example_x, loss=loss, raw_inputs=raw_inputs)
    if stages is None:
        if not isinstance(module, linen.Sequential):
            raise TypeError(
                f"stages must be given for a {type(module).__name__}, got None: only Sequential "
                "says where it can be cut; [lambda m, x: m.encoder(x), lambda m, x: m.head(x)]"
            )
        stages = [lambda m, x, i=i: m.layers[i](x) for i in range(len(module.layers))]

    def staged(function: Callable[[Any, Array], Array]) -> Stage:
        def apply(params: Params, x: Array, key: Key | None) -> Array:
            rngs = {} if key is None else {"dropout": key}
            return module.apply({"params": params}, x, rngs=rngs, method=function)  # type: ignore[return-value]

        return apply

    return cut_stages(
        model.init, list(map(staged, stages)), example_x, at=at, loss=loss, raw_inputs=raw_inputs
    )


@made
def cut_nnx(
    factory: Callable[[Any], Any],
    example_x: Any,
    *,
    at: At,
    stages: Sequence[Callable[[Any, Array], Array]] | None = None,
    loss: Callable[[Array, Array], Array] = cross_entropy,
    raw_inputs: bool = False,
) -> CutModel:
    """Cuts a flax nnx network between its layers.

    Args:
      factory: ``(rngs) -> module``: an ``nnx.Sequential``, cut between its layers; or any module,
        with `stages`.
      example_x: a batch of inputs, `[B, ...]`; only shape and dtype are used.
      at: see `cut_layers`; counts layers, or stages.
      stages: functions ``(module, x) -> x``, one after the other the module's whole work.
      loss: see `cut_layers`.
      raw_inputs: see `cut_layers`.

    Returns:
      A `CutModel`; ``cut.model`` has the parameters of `fedjax_lite.models.from_nnx`.

    Raises:
      TypeError: if the factory makes no nnx module, or no Sequential and `stages` are missing.
      ValueError: if the module keeps state such as batch statistics, or a parameter is read on both
        sides.

    Example:
      >>> from flax import nnx
      >>> net = lambda rngs: nnx.Sequential(nnx.Linear(4, 3, rngs=rngs), nnx.relu,
      ...                                   nnx.Linear(3, 2, rngs=rngs))
      >>> cut = cut_nnx(net, jnp.ones((1, 4)), at=1)
      >>> sum(jax.tree.leaves(cut.of_server))
      2
    """
    from flax import nnx

    check_stages(stages, example_x)
    model = from_nnx(factory, loss=loss, raw_inputs=raw_inputs)  # refuses what keeps other state
    module = nnx.eval_shape(lambda: factory(nnx.Rngs(jax.random.key(0))))
    if stages is None:
        if not isinstance(module, nnx.Sequential):
            raise TypeError(
                f"stages must be given for a {type(module).__name__}, got None: only Sequential "
                "says where it can be cut; [lambda m, x: m.encoder(x), lambda m, x: m.head(x)]"
            )
        stages = [lambda m, x, i=i: m.layers[i](x) for i in range(len(module.layers))]
    module.train()
    training, param_state, rng_state = nnx.split(module, nnx.Param, nnx.RngState)
    module.eval()
    evaluation, _, _ = nnx.split(module, nnx.Param, nnx.RngState)

    def staged(function: Callable[[Any, Array], Array]) -> Stage:
        def apply(params: Params, x: Array, key: Key | None) -> Array:
            state = jax.tree.map(lambda leaf: leaf, param_state)
            nnx.replace_by_pure_dict(state, params)
            streams = _seeded(jax.random.key(0) if key is None else key, rng_state)
            return function(nnx.merge(evaluation if key is None else training, state, streams), x)

        return apply

    return cut_stages(
        model.init, list(map(staged, stages)), example_x, at=at, loss=loss, raw_inputs=raw_inputs
    )


def _seeded(key: Key, rng_state: Any) -> Any:
    """The module's random streams, seeded anew."""
    leaves, structure = jax.tree.flatten(rng_state)
    is_key = [jnp.issubdtype(leaf.dtype, jax.dtypes.prng_key) for leaf in leaves]
    seeds = [
        jax.random.fold_in(key, i) if one else jnp.zeros(leaf.shape, leaf.dtype)
        for i, (leaf, one) in enumerate(zip(leaves, is_key, strict=True))
    ]
    return jax.tree.unflatten(structure, seeds)
