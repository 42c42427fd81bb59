"""matched_average(): the mean of networks whose hidden units are matched, layer after layer."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp

from fedjax_lite.aggregation.matching.assignment import assignment
from fedjax_lite.aggregation.matching.hidden_units import (
    Layer,
    check_layers,
    hidden_layers,
    leaves_of,
    reorder,
    units_of,
)
from fedjax_lite.checks.about import about
from fedjax_lite.checks.arguments import check_count, shown
from fedjax_lite.types import Array, Params


def align(params: Params, like: Params, layers: Sequence[Layer] | None = None) -> Params:
    r"""The same function, with its hidden units in the order in which another network has them.

    .. math::  \pi_l = \arg\min_\pi \sum_h \lVert u^l_{\mathrm{like}, h} - u^l_{\pi(h)} \rVert^2

    layer after layer, `u` a unit's weights and bias: those of layer `l` are compared once what they
    read is in order. The last layer's outgoing weights are compared, too.

    Args:
      params: the network.
      like: another of the same shapes.
      layers: default `hidden_layers` of it.

    Returns:
      A network that answers as `params` does.

    Raises:
      ValueError: if `layers` are not those of the network, or a parameter is not finite.

    Example:
      >>> net = {"w": jnp.array([[1.0, 2.0]]), "v": jnp.array([[3.0], [4.0]])}
      >>> layers = [Layer(2, (("w", -1),), (("v", -2),))]
      >>> swapped = reorder(net, layers[0], jnp.array([1, 0]))
      >>> align(swapped, net, layers)["w"].tolist()
      [[1.0, 2.0]]

    Reference: Wang, Yurochkin, Sun, Papailiopoulos, Khazaeni, "Federated Learning with Matched
    Averaging", 2020, arXiv:2002.06440.
    """
    layers = hidden_layers(params) if layers is None else layers
    check_layers(params, layers)
    check_finite_leaves(params, "params")
    check_finite_leaves(like, "like")
    for which, layer in enumerate(layers):
        params = reorder(params, layer, order_of(params, like, layers, which))
    return params


def check_finite_leaves(params: Params, name: str) -> None:
    """Raises ValueError where a concrete parameter is not finite; traced ones pass.

    Example:
      >>> check_finite_leaves({"w": jnp.ones(2)}, "params")
    """
    for path, leaf in leaves_of(params).items():
        if not isinstance(leaf, jax.core.Tracer) and not bool(jnp.isfinite(leaf).all()):
            raise ValueError(
                f"{name} must be finite, but {path} is not, got {shown(leaf)}; leave networks that "
                "diverged out"
            )


def order_of(
    params: Params, like: Params, layers: Sequence[Layer], which: int, *, outgoing: bool = True
) -> Array:
    """The order of a layer's units that is nearest to another network's, int32 `[H]`.

    Args:
      params: the network.
      like: the other one.
      layers: of both.
      which: of the layers.
      outgoing: see `units_of`.
    """
    mine, theirs = (units_of(one, layers, which, outgoing=outgoing) for one in (params, like))
    return assignment(((theirs[:, None] - mine[None]) ** 2).sum(-1))


def matched_average(
    models: Params,
    *,
    weights: Any = None,
    layers: Sequence[Layer] | None = None,
    iterations: int = 3,
) -> Params:
    r"""One shot: networks trained apart, aligned with their mean, and averaged.

    .. math::
        x \leftarrow \sum_i p_i\, \Pi_i(y_i), \qquad \Pi_i = \mathrm{align}(y_i, x), \qquad
        x_0 = y_0

    Permuted copies of one network give it back exactly. Networks that were trained apart are not
    copies: units of one may have no fellow in another. For those see `pfnm`, where a network of
    other widths may grow, and `fedjax_lite.fedma`, which trains on after each layer.

    Args:
      models: leaves `[C, ...]`, as `fedjax_lite.algorithms.client_models` gives them.
      weights: `[C]`, not negative, such as ``data.sizes``; default equal.
      layers: default `hidden_layers` of one of them.
      iterations: of aligning and averaging; the first aligns with the first network.

    Returns:
      One network.

    Raises:
      ValueError: if `weights` are not one a network, `layers` not theirs, or a parameter is not
        finite.

    Example:
      >>> net = {"w": jnp.array([[1.0, 2.0]]), "v": jnp.array([[3.0], [4.0]])}
      >>> layers = [Layer(2, (("w", -1),), (("v", -2),))]
      >>> swapped = reorder(net, layers[0], jnp.array([1, 0]))
      >>> both = jax.tree.map(lambda *leaves: jnp.stack(leaves), net, swapped)
      >>> matched_average(both, layers=layers)["v"].tolist()
      [[3.0], [4.0]]

    Reference: Wang et al., 2020, arXiv:2002.06440.
    """
    check_count(iterations, "iterations", minimum=1)
    shapes = [jnp.shape(leaf) for leaf in jax.tree.leaves(models)]
    sizes = {shape[0] for shape in shapes if shape}
    if len(sizes) != 1 or not all(shapes):
        raise ValueError(
            f"models must stand side by side, leaves [C, ...], got {shown(models)} of "
            f"shapes {shapes[:3]}; "
            "jax.tree.map(lambda *leaves: jnp.stack(leaves), *models)"
        )
    size = sizes.pop()
    weights = jnp.ones(size) if weights is None else jnp.asarray(weights, jnp.result_type(float))
    if weights.shape != (size,):
        raise ValueError(f"weights must be [{size}], one a network, got {weights}; give data.sizes")
    if not isinstance(weights, jax.core.Tracer) and not (weights.min() >= 0 < weights.sum()):
        raise ValueError(f"weights must not be negative and not all 0, got {weights}; data.sizes")
    first = jax.tree.map(lambda leaf: leaf[0], models)
    with about("models", models, word="params"):
        layers = hidden_layers(first) if layers is None else layers
    check_layers(first, layers)
    check_finite_leaves(models, "models")
    return _average(models, weights / weights.sum(), tuple(layers), iterations)


def _average(models: Params, shares: Array, layers: tuple[Layer, ...], iterations: int) -> Params:
    @jax.jit
    def run(models: Params, shares: Array) -> Params:
        def once(_: Array, centre: Params) -> Params:
            aligned = jax.lax.map(lambda net: align(net, centre, layers), models)
            return mean_of(aligned, shares)

        first = jax.tree.map(lambda leaf: leaf[0], models)
        return jax.lax.fori_loop(0, iterations, once, first)

    return run(models, shares)


def mean_of(models: Params, shares: Array) -> Params:
    """The weighted mean of networks side by side; of equal ones that one, in every bit.

    Example:
      >>> tenths = jnp.array([0.1, 0.1, 0.1])
      >>> bool(mean_of(tenths, jnp.ones(3) / 3) == tenths[0])
      True
    """

    def one(leaf: Array) -> Array:
        base = leaf[0]
        return base + jnp.tensordot(shares.astype(leaf.dtype), leaf - base, 1)

    return jax.tree.map(one, models)
