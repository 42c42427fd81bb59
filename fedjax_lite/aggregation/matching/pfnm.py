"""PFNM: networks of any widths become one that is as wide as their units differ."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from fedjax_lite.aggregation.matching.atoms import pfnm_atoms
from fedjax_lite.aggregation.matching.hidden_units import Layer, hidden_layers, leaves_of
from fedjax_lite.checks.arguments import check_finite, shown
from fedjax_lite.types import Params


def pfnm(
    models: Sequence[Params],
    *,
    weights: Any = None,
    class_counts: Any = None,
    sigma: float = 1.0,
    prior_sigma: float = float("inf"),
    prior_bias: float = 0.0,
    gamma: float = 1.0,
    iterations: int = 3,
) -> Params:
    r"""One shot: networks of one hidden layer, of any widths, matched into one that may be wider.

    A unit is its incoming weights, bias and outgoing weights; units that are alike become one, and
    those that only one network has are kept (`pfnm_atoms`). The biases of the outputs are averaged.
    The result is smaller than all networks side by side, and answers like their mean where they
    agree.

    A network that never saw a class knows little of what makes an output of it. With
    `class_counts` a network's weights towards output `k` count by its part of that class,

    .. math::  c_{ik} = n_{ik} \Big/ \sum_{i'} n_{i'k},

    its other weights by 1, and so do its biases of the outputs, as in the authors' code: where
    labels are dealt unevenly most of the accuracy is due to that.

    Args:
      models: parameters of networks that differ in the width of their hidden layer only, such as
        ``fl.models.mlp((50,))``.
      weights: `[C]`, of the outputs' biases, such as ``data.sizes``; default equal.
      class_counts: `[C, K]`, how many examples of each class each network was trained on; in place
        of `weights`.
      sigma: see `pfnm_atoms`; a tenth to a third of the units' norm is a start.
      prior_sigma: likewise.
      prior_bias: mean of the prior of all biases, such as where training starts them; that of the
        other weights is 0. Biases of outputs have a prior with `class_counts` only.
      gamma: likewise.
      iterations: likewise.

    Returns:
      Parameters of the global network, on the host; its width is
      ``pfnm(...)["head"]["kernel"].shape[0]``.

    Raises:
      ValueError: if there is no model, they have not one hidden layer of alike neighbours, or one
        is not finite.

    Example:
      >>> import fedjax_lite as fl
      >>> model = fl.models.mlp((3,), num_classes=2, input_shape=(4,))
      >>> net = model.init(jax.random.key(0))
      >>> turned = fl.matching.reorder(net, fl.matching.hidden_layers(net)[0], np.array([2, 0, 1]))
      >>> whole = pfnm([net, turned], sigma=0.1)
      >>> bool((whole["dense1"]["kernel"] == net["dense1"]["kernel"]).all())
      True

    Reference: Yurochkin et al., 2019, arXiv:1905.12022.
    """
    if not isinstance(models, Sequence) or not models:
        raise ValueError(
            f"models must be a list of networks, got {shown(models)}; of those side by side "
            "[jax.tree.map(lambda leaf: leaf[i], models) for i in range(n)]"
        )
    size = len(models)
    shares = np.ones(size) if weights is None else np.asarray(weights, np.float64)
    if shares.shape != (size,) or not (shares.min() >= 0 < shares.sum()):
        raise ValueError(
            f"weights must be [{size}], not negative, got {shown(weights)}; give data.sizes"
        )
    if weights is not None and class_counts is not None:
        raise ValueError(
            f"weights must be left out beside class_counts, got {shown(weights)}: biases of "
            "outputs count by their class"
        )
    check_finite(prior_bias, "prior_bias")
    layers = [_one_layer(params) for params in models]
    if any(layer._replace(width=0) != layers[0]._replace(width=0) for layer in layers):
        raise ValueError(
            f"models must differ in the width of their hidden layer only, got layers {layers[:2]}; "
            "give networks of one factory"
        )
    longest = max(layer.width for layer in layers)
    along = (*layers[0].out, *layers[0].into)
    padded, present = [], np.zeros((size, longest), bool)
    for i, (params, layer) in enumerate(zip(models, layers, strict=True)):
        found = leaves_of(params)
        parts = [np.moveaxis(np.asarray(found[path]), axis, 0) for path, axis in along]
        flat = np.concatenate([part.reshape(layer.width, -1) for part in parts], 1)
        padded.append(np.pad(flat, ((0, longest - layer.width), (0, 0))))
        present[i, : layer.width] = True
    if len({flat.shape[1] for flat in padded}) > 1:
        raise ValueError("models must have inputs and outputs of one shape; train them alike")
    found = leaves_of(models[0])
    of_class = None if class_counts is None else _parts_of_classes(class_counts, size)
    confidence = None if of_class is None else _of_weights(of_class, found, along)
    atoms = pfnm_atoms(
        np.stack(padded), present=present, confidence=confidence, sigma=sigma,
        prior_sigma=prior_sigma, prior_mean=_of_biases(prior_bias, found, along), gamma=gamma,
        iterations=iterations,
    )  # fmt: skip
    used = int((np.asarray(atoms.counts) > 0).sum())
    values, start, new = np.asarray(atoms.values)[:used], 0, {}
    for path, axis in along:
        shape = np.moveaxis(np.empty(jnp.shape(found[path])), axis, 0).shape[1:]
        count = int(np.prod(shape))
        part = values[:, start : start + count].reshape(used, *shape)
        new[path], start = np.moveaxis(part, 0, axis).astype(found[path].dtype), start + count
    shares = shares / shares.sum()
    for path in found:
        if path not in new:
            leaves = [np.asarray(leaves_of(params)[path]) for params in models]
            base = leaves[0]
            if of_class is None:
                apart = sum(w * (leaf - base) for w, leaf in zip(shares, leaves, strict=True))
                new[path] = np.asarray(base + apart, base.dtype)
            else:
                known, prior = of_class / sigma**2, 1 / prior_sigma**2
                total = (known * np.stack(leaves)).sum(0) + prior * prior_bias
                sure = known.sum(0) + prior
                new[path] = np.asarray(total / np.where(sure > 0, sure, 1), base.dtype)
    return jax.tree.unflatten(jax.tree.structure(models[0]), [new[path] for path in found])


def _one_layer(params: Params) -> Layer:
    layers = hidden_layers(params)
    if len(layers) != 1:
        raise ValueError(
            f"models must have one hidden layer, got one with {len(layers)}; of deeper ones see "
            "fl.matching.matched_average and fl.fedma"
        )
    found = leaves_of(params)
    (layer,) = layers
    for path, axis in (*layer.out, *layer.into):
        if jnp.shape(found[path])[axis] != layer.width:
            raise ValueError(
                f"models must have units of one weight an input, got {path} of shape "
                f"{list(jnp.shape(found[path]))} for {layer.width} units; fl.models.mlp((50,))"
            )
    return layer


def _parts_of_classes(class_counts: Any, size: int) -> np.ndarray:
    """`[C, K]`: which part of the examples of a class each network saw; 0 of one without any."""
    counts = np.asarray(class_counts, np.float64)
    if counts.ndim != 2 or len(counts) != size or not np.isfinite(counts).all() or counts.min() < 0:
        raise ValueError(
            f"class_counts must be [{size}, K], how many examples of each class each network was "
            f"trained on, got {shown(class_counts)}; np.bincount(y, minlength=K) of each"
        )
    return counts / np.maximum(counts.sum(0), 1)


def _of_weights(of_class: np.ndarray, found: dict[str, Any], along: Sequence[Any]) -> np.ndarray:
    """`[C, D]`: what each network knows of each weight of a unit; the last are those to outputs."""
    num_classes = of_class.shape[1]
    columns = [np.size(found[path]) // np.shape(found[path])[axis] for path, axis in along]
    if columns[-1] != num_classes:
        raise ValueError(
            f"class_counts must have a column for each of the {columns[-1]} outputs, got "
            f"{num_classes}; np.bincount(y, minlength={columns[-1]}) of each network"
        )
    return np.concatenate([np.ones((len(of_class), sum(columns[:-1]))), of_class], 1)


def _of_biases(prior_bias: float, found: dict[str, Any], along: Sequence[Any]) -> np.ndarray:
    """`[D]`: the prior's mean of each weight of a unit, 0 but for biases."""
    parts = []
    for path, axis in along:
        shape = np.shape(found[path])
        parts.append(np.full(int(np.prod(shape)) // shape[axis], 0.0 if shape[1:] else prior_bias))
    return np.concatenate(parts)
