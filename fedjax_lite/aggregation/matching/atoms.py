"""pfnm_atoms(): units of several networks, matched with global ones of which there may be more."""

from __future__ import annotations

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from fedjax_lite.aggregation.matching.assignment import assignment
from fedjax_lite.checks.arguments import check_count, check_positive, shown
from fedjax_lite.types import Array


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
    confidence: Any = None,
    sigma: float | Array = 1.0,
    prior_sigma: float | Array = float("inf"),
    prior_mean: Any = 0.0,
    gamma: float | Array = 1.0,
    capacity: int | None = None,
    iterations: int = 3,
) -> Atoms:
    r"""Matches units of several networks with global atoms, of which there may be more.

    A Beta-Bernoulli process says which atoms a network has, and normal noise how its units differ
    from them. Networks in turn are assigned anew, the others fixed, at the least cost

    .. math::
        C_{lj} = \sum_d \frac{s_{id}\, q_{jd}}{s_{id} + q_{jd}} (v_{ld} - \mu_{jd})^2 +
        \begin{cases}
        -2 \ln \frac{m_j}{C - m_j} & \text{for an atom of } m_j > 0 \text{ others,} \\
        2 \ln \frac{r C}{\gamma} & \text{for the } r\text{-th new one,}
        \end{cases}

    with :math:`s_{id} = c_{id}/\sigma^2` what network `i` knows of a weight, :math:`q_{jd} = q_0 +
    \sum_{i \in j} s_{id}`, :math:`q_0 = 1/\sigma_0^2`, and :math:`q_{jd}\mu_{jd} = q_0 \mu_{0d} +
    \sum_{i \in j} s_{id} v_{id}` of the others' units. It is the paper's cost but for what all
    atoms of a unit share. An atom is its :math:`\mu_j` at the end.

    Args:
      units: `[C, L, D]`, of `C` networks.
      present: bool `[C, L]`, False for padding of a narrower network; default all.
      confidence: `[C, D]`, `c`, not negative: how well each network knows each weight of its
        units, 0 for not at all; default 1 for all.
      sigma: deviation of a network's units from their atom, in their units: larger merges more.
      prior_sigma: of atoms around `prior_mean`; infinity: no shrinking.
      prior_mean: a number or `[D]`.
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
    noise = 1 / jnp.asarray(sigma) ** 2 * _confidence(confidence, size, units.shape[-1])
    centre = _prior_mean(prior_mean, units)
    prior = 1 / jnp.asarray(prior_sigma) ** 2
    return _atoms(units, present, noise, prior, centre, jnp.asarray(gamma), most, iterations)


def _confidence(given: Any, size: int, width: int) -> Array:
    """`[C, D]`, or `[C, 1]` where all weights are known alike."""
    if given is None:
        return jnp.ones((size, 1))
    found = jnp.asarray(given, jnp.result_type(float))
    if found.shape != (size, width):
        raise ValueError(
            f"confidence must be [{size}, {width}], one number a network and weight, got "
            f"{shown(given)}; None for all alike"
        )
    if not isinstance(found, jax.core.Tracer) and not bool(
        (jnp.isfinite(found) & (found >= 0)).all()
    ):
        raise ValueError(
            f"confidence must be finite and not negative, got {shown(given)}; 0 for a weight of "
            "which a network knows nothing"
        )
    return found


def _prior_mean(given: Any, units: Array) -> Array:
    found = jnp.asarray(given, units.dtype)
    if found.shape not in ((), units.shape[-1:]):
        raise ValueError(
            f"prior_mean must be a number or [{units.shape[-1]}], got {shown(given)}; 0.0"
        )
    if not isinstance(found, jax.core.Tracer) and not bool(jnp.isfinite(found).all()):
        raise ValueError(f"prior_mean must be finite, got {shown(given)}; 0.0")
    return jnp.broadcast_to(found, units.shape[-1:])


def costs_of(
    units: Array,
    sums: Array,
    known: Array,
    counts: Array,
    size: int,
    noise: Array,
    prior: Array,
    centre: Array,
    gamma: Array,
) -> Array:
    """What each unit of a network pays for each atom, `[L, J]`, the other networks' sums given.

    As squared distances: no difference of large squares is taken. The paper's cost is this less
    ``noise * |unit|^2``, of which no choice depends.

    Args:
      units: `[L, D]`.
      sums: `[J, D]`, of the other networks' units, each times what its network knows.
      known: `[J, D]` or `[J, 1]`, what these know in all: confidence over sigma squared.
      counts: `[J]`, of them.
      size: networks, `C`.
      noise: `[D]` or `[1]`, what this network knows.
      prior: one over the prior's sigma squared.
      centre: `[D]`, the prior's mean.
      gamma: see `pfnm_atoms`.
    """
    old = (counts > 0)[:, None]
    # What was added and taken away leaves rounding, so a new atom is made anew.
    precision = prior + jnp.where(old, jnp.maximum(known, 0), 0)
    mean = jnp.where(old, sums + prior * centre, 0) / jnp.where(precision > 0, precision, 1)
    mean = jnp.where(old, mean, centre)
    both = precision + noise
    scale = precision * noise / jnp.where(both > 0, both, 1)
    apart = (scale * (units[:, None] - mean) ** 2).sum(-1)
    popular = jnp.log(jnp.where(counts > 0, counts / jnp.maximum(size - counts, 1), 1))
    rare = jnp.log(jnp.maximum(jnp.cumsum(counts == 0), 1) * size / gamma)
    return apart + 2 * jnp.where(counts > 0, -popular, rare)


def _atoms(
    units: Array,
    present: Array,
    noise: Array,
    prior: Array,
    centre: Array,
    gamma: Array,
    capacity: int,
    iterations: int,
) -> Atoms:
    size, longest, width = units.shape

    @jax.jit
    def run(
        units: Array, present: Array, noise: Array, prior: Array, centre: Array, gamma: Array
    ) -> Atoms:
        def spread(places: Array, which: Array) -> tuple[Array, Array, Array]:
            """One network's units, summed at their atoms, what it knows of these, and counts."""
            target = jnp.where(places >= 0, places, capacity)
            counts = jnp.zeros(capacity, jnp.int32).at[target].add(1, mode="drop")
            sums = jnp.zeros((capacity, width), units.dtype).at[target].add(
                units[which] * noise[which], mode="drop"
            )  # fmt: skip
            return sums, counts[:, None] * noise[which].astype(units.dtype), counts

        def one(step: Array, carry: tuple) -> tuple:
            held, places = carry
            which = step % size
            held = jax.tree.map(jnp.subtract, held, spread(places[which], which))
            sums, known, counts = held
            costs = costs_of(
                units[which], sums, known, counts, size, noise[which], prior, centre, gamma
            )
            costs = jnp.where(present[which][:, None], costs, 0)  # padding goes where there is room
            chosen = jnp.where(present[which], assignment(costs), -1)
            held = jax.tree.map(jnp.add, held, spread(chosen, which))
            return held, places.at[which].set(chosen)

        nothing = jnp.full((size, longest), -1, jnp.int32)
        start = jax.tree.map(jnp.zeros_like, spread(nothing[0], jnp.int32(0))), nothing
        places = jax.lax.fori_loop(0, iterations * size, one, start)[1]
        place, flat = jnp.arange(capacity, dtype=jnp.int32), jnp.arange(size * longest)
        target = jnp.where(places >= 0, places, capacity).reshape(-1)
        first = jnp.full(capacity, size * longest).at[target].min(flat, mode="drop")
        rank = jnp.zeros(capacity, jnp.int32).at[jnp.argsort(first, stable=True)].set(place)
        places = jnp.where(places >= 0, rank[places], -1)
        # Summed anew, around one of its own units: what was added and taken away leaves rounding.
        target = jnp.where(places >= 0, places, capacity).reshape(-1)
        flat = units.reshape(-1, width)
        each = jnp.repeat(noise, longest, axis=0).astype(units.dtype)
        counts = jnp.zeros(capacity, jnp.int32).at[target].add(1, mode="drop")
        base = jnp.zeros((capacity, width), units.dtype).at[target].set(flat, mode="drop")
        away = each * (flat - base.at[target].get(mode="fill", fill_value=0))
        total = jnp.zeros((capacity, width), units.dtype).at[target].add(away, mode="drop")
        known = jnp.zeros((capacity, each.shape[-1]), units.dtype)
        known = known.at[target].add(each, mode="drop")
        mean = base + total / jnp.where(known > 0, known, 1)
        weight = jnp.where(known + prior > 0, known / jnp.where(known > 0, known + prior, 1), 1)
        values = centre + weight * (mean - centre)
        # Without a prior a mean stays the mean in every bit.
        values = jnp.where(weight == 1, mean, values)
        return Atoms(jnp.where((counts > 0)[:, None], values, 0), counts, places)

    return run(units, present, noise, prior, centre, gamma)
