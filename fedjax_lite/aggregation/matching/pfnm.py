"""PFNM: networks of any widths become one that is as wide as their units differ."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from fedjax_lite.aggregation.matching.assignment import assignment
from fedjax_lite.aggregation.matching.hidden_units import Layer, hidden_layers, leaves_of
from fedjax_lite.checks.arguments import check_count, check_positive, shown
from fedjax_lite.types import Array, Params


class Atoms(NamedTuple):
    """The global units that local ones are matched with."""

    values: Array
    """`[J, D]`: posterior means; 0 where nobody is matched."""
    counts: Array
    """int32 `[J]`: how many networks have it."""
    assignments: Array
    """int32 `[C, L]`: the atom of each local unit; -1 for one that is not there."""


def pfnm_atoms(
    units: Any,
    *,
    present: Any = None,
    sigma: float | Array = 1.0,
    prior_sigma: float | Array = float("inf"),
    gamma: float | Array = 1.0,
    capacity: int | None = None,
    iterations: int = 3,
) -> Atoms:
    r"""Matches units of several networks with global atoms, of which there may be more.

    A Beta-Bernoulli process says which atoms a network has, and normal noise how its units differ
    from them. Networks in turn are assigned anew, the others fixed, at the least cost

    .. math::
        C_{lj} = \frac{q_j}{1 + \sigma^2 q_j} \lVert v_l - \mu_j \rVert^2 +
        \begin{cases}
        -2 \ln \frac{m_j}{C - m_j} & \text{for an atom of } m_j > 0 \text{ others,} \\
        2 \ln \frac{r C}{\gamma} & \text{for the } r\text{-th new one,}
        \end{cases}

    with :math:`q_j = q_0 + m_j/\sigma^2`, :math:`q_0 = 1/\sigma_0^2`, and :math:`\mu_j` the sum of
    the others' units over :math:`\sigma^2 q_j`, 0 of a new atom. It is the paper's cost but for
    what all atoms of a unit share. An atom is its :math:`\mu_j` at the end.

    Args:
      units: `[C, L, D]`, of `C` networks.
      present: bool `[C, L]`, False for padding of a narrower network; default all.
      sigma: deviation of a network's units from their atom, in their units: larger merges more.
      prior_sigma: of atoms around 0; infinity: no shrinking.
      gamma: how readily new atoms come.
      capacity: the most atoms `J`, at least `L`; default `C L`, which is always enough.
      iterations: passes over the networks.

    Returns:
      `Atoms`, in the order of the first network's units, then of the second's that it lacks ...

    Raises:
      ValueError: if shapes do not fit, a number is not positive, or a unit is not finite.

    Example:
      >>> units = jnp.array([[[0.0], [5.0]], [[5.0], [9.0]]])
      >>> found = pfnm_atoms(units, sigma=0.1)
      >>> found.values[:3, 0].tolist(), found.counts.tolist()
      ([0.0, 5.0, 9.0], [1, 2, 1, 0])

    Reference: Yurochkin, Agarwal, Ghosh, Greenewald, Hoang, Khazaeni, "Bayesian Nonparametric
    Federated Learning of Neural Networks", 2019, arXiv:1905.12022.
    """
    given, units = units, jnp.asarray(units, jnp.result_type(float))
    if units.ndim != 3 or not units.size:
        raise ValueError(
            f"units must be [C, L, D], L units of each of C networks, got {shown(given)}; "
            "pad narrower networks and tell by present"
        )
    size, longest, _ = units.shape
    present = jnp.ones((size, longest), bool) if present is None else jnp.asarray(present)
    if present.shape != (size, longest) or present.dtype != bool:
        raise ValueError(
            f"present must be bool [{size}, {longest}], got {shown(present)}; one a unit"
        )
    if not isinstance(units, jax.core.Tracer) and not isinstance(present, jax.core.Tracer):
        diverged = ~np.isfinite(np.asarray(units)).all(-1) & np.asarray(present)
        if diverged.any():
            raise ValueError(
                f"units must be finite, got {shown(given)}, of which the networks "
                f"{np.flatnonzero(diverged.any(1)).tolist()} are not; leave them out"
            )
    for name, value in (("sigma", sigma), ("prior_sigma", prior_sigma), ("gamma", gamma)):
        check_positive(value, name)
    most = size * longest if capacity is None else capacity
    check_count(most, "capacity", minimum=longest)
    check_count(iterations, "iterations", minimum=1)
    noise, prior = 1 / jnp.asarray(sigma) ** 2, 1 / jnp.asarray(prior_sigma) ** 2
    return _atoms(units, present, noise, prior, jnp.asarray(gamma), most, iterations)


def costs_of(
    units: Array, sums: Array, counts: Array, size: int, noise: Array, prior: Array, gamma: Array
) -> Array:
    """What each unit of a network pays for each atom, `[L, J]`, the other networks' sums given.

    As squared distances: no difference of large squares is taken. The paper's cost is this less
    ``noise * |unit|^2``, of which no choice depends.

    Args:
      units: `[L, D]`.
      sums: `[J, D]`, of the other networks' units, each over sigma squared.
      counts: `[J]`, of them.
      size: networks, `C`.
      noise: one over sigma squared.
      prior: one over the prior's sigma squared.
      gamma: see `pfnm_atoms`.
    """
    known = counts > 0
    precision = prior + counts * noise
    mean = sums / jnp.where(known, precision, 1)[:, None]
    mean = jnp.where(known[:, None], mean, 0)  # what was added and taken away leaves rounding
    apart = ((units[:, None] - mean) ** 2).sum(-1)
    popular = jnp.log(jnp.where(known, counts / jnp.maximum(size - counts, 1), 1))
    rare = jnp.log(jnp.maximum(jnp.cumsum(~known), 1) * size / gamma)
    scale = precision * noise / (precision + noise)
    return scale * apart + 2 * jnp.where(known, -popular, rare)


def _atoms(
    units: Array,
    present: Array,
    noise: Array,
    prior: Array,
    gamma: Array,
    capacity: int,
    iterations: int,
) -> Atoms:
    size, longest, width = units.shape

    @jax.jit
    def run(units: Array, present: Array, noise: Array, prior: Array, gamma: Array) -> Atoms:
        def spread(places: Array, which: Array) -> tuple[Array, Array]:
            """One network's units, summed at their atoms."""
            there = places >= 0
            target = jnp.where(there, places, capacity)
            sums = jnp.zeros((capacity, width), units.dtype).at[target].add(
                units[which] * noise, mode="drop"
            )  # fmt: skip
            return sums, jnp.zeros(capacity, jnp.int32).at[target].add(1, mode="drop")

        def one(step: Array, carry: tuple) -> tuple:
            sums, counts, places = carry
            which = step % size
            own, held = spread(places[which], which)
            sums, counts = sums - own, counts - held
            costs = costs_of(units[which], sums, counts, size, noise, prior, gamma)
            costs = jnp.where(present[which][:, None], costs, 0)  # padding goes where there is room
            chosen = jnp.where(present[which], assignment(costs), -1)
            own, held = spread(chosen, which)
            return sums + own, counts + held, places.at[which].set(chosen)

        start = (
            jnp.zeros((capacity, width), units.dtype),
            jnp.zeros(capacity, jnp.int32),
            jnp.full((size, longest), -1, jnp.int32),
        )
        places = jax.lax.fori_loop(0, iterations * size, one, start)[2]
        place, flat = jnp.arange(capacity, dtype=jnp.int32), jnp.arange(size * longest)
        target = jnp.where(places >= 0, places, capacity).reshape(-1)
        first = jnp.full(capacity, size * longest).at[target].min(flat, mode="drop")
        rank = jnp.zeros(capacity, jnp.int32).at[jnp.argsort(first, stable=True)].set(place)
        places = jnp.where(places >= 0, rank[places], -1)
        # Summed anew, around one of its own units: what was added and taken away leaves rounding.
        target = jnp.where(places >= 0, places, capacity).reshape(-1)
        flat = units.reshape(-1, width)
        counts = jnp.zeros(capacity, jnp.int32).at[target].add(1, mode="drop")
        base = jnp.zeros((capacity, width), units.dtype).at[target].set(flat, mode="drop")
        away = flat - base.at[target].get(mode="fill", fill_value=0)
        total = jnp.zeros((capacity, width), units.dtype).at[target].add(away, mode="drop")
        mean = base + total / jnp.maximum(counts, 1)[:, None]
        known = counts * noise
        weight = jnp.where(counts > 0, known / jnp.where(counts > 0, known + prior, 1), 0)
        return Atoms(mean * weight[:, None], counts, places)

    return run(units, present, noise, prior, gamma)


def pfnm(
    models: Sequence[Params],
    *,
    weights: Any = None,
    sigma: float = 1.0,
    prior_sigma: float = float("inf"),
    gamma: float = 1.0,
    iterations: int = 3,
) -> Params:
    """One shot: networks of one hidden layer, of any widths, matched into one that may be wider.

    A unit is its incoming weights, bias and outgoing weights; units that are alike become one, and
    those that only one network has are kept (`pfnm_atoms`). The biases of the outputs are averaged.
    The result is smaller than all networks side by side, and answers like their mean where they
    agree.

    Args:
      models: parameters of networks that differ in the width of their hidden layer only, such as
        ``fl.models.mlp((50,))``.
      weights: `[C]`, of the outputs' biases, such as ``data.sizes``; default equal.
      sigma: see `pfnm_atoms`; a tenth to a third of the units' norm is a start.
      prior_sigma: likewise.
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
    if len({flat.shape for flat in padded}) > 1:
        raise ValueError("models must have inputs and outputs of one shape; train them alike")
    atoms = pfnm_atoms(
        np.stack(padded), present=present, sigma=sigma, prior_sigma=prior_sigma, gamma=gamma,
        iterations=iterations,
    )  # fmt: skip
    used = int((np.asarray(atoms.counts) > 0).sum())
    values, start, new = np.asarray(atoms.values)[:used], 0, {}
    found = leaves_of(models[0])
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
            apart = sum(w * (leaf - base) for w, leaf in zip(shares, leaves, strict=True))
            new[path] = np.asarray(base + apart, base.dtype)
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
