"""min_max() and min_sum(): as far from the honest mean as honest clients are from each other."""

from __future__ import annotations

from typing import Literal

import jax
import jax.numpy as jnp
import optax

from fedjax_lite import trees
from fedjax_lite.aggregation.blocks import sum_blocks
from fedjax_lite.aggregation.distances import pairwise_squares, squares_to
from fedjax_lite.attacks.byzantine import Attack, Scene
from fedjax_lite.attacks.moments import honest_mean, honest_std
from fedjax_lite.attacks.updates import stateless
from fedjax_lite.checks.made import made
from fedjax_lite.types import Array, Key, PyTree

Direction = Literal["unit", "sign", "std"]
Bound = Literal["max", "min"]


@made
def min_max(direction: Direction = "unit") -> Attack:
    r"""All attackers leave the mean until one honest client would be too far away.

    .. math::
        \Delta_m = \mu + \gamma \pi, \qquad \gamma = \max \bigl\{\gamma :
        \max_i \lVert \Delta_m - \Delta_i \rVert \le \max_{i, j} \lVert \Delta_i - \Delta_j \rVert
        \bigr\}

    over honest `i` and `j`. The largest `gamma` is the smallest of the larger roots of one
    quadratic equation a client; no search.

    Args:
      direction: `pi`: "unit" is ``-mu / |mu|``, "sign" is ``-sign(mu)``, "std" minus the standard
        deviation of each coordinate.

    Returns:
      An `Attack`.

    Raises:
      ValueError: if the direction is unknown.

    Example:
      >>> from fedjax_lite.aggregation import aggregate_stack
      >>> from fedjax_lite.attacks import byzantine
      >>> u = jnp.array([[0.0], [1.0], [2.0], [5.0], [9.0]])
      >>> round(float(aggregate_stack(byzantine(min_max(), clients=[4]), u)[0]), 4)  # 8 / 5
      1.6

    Reference: Shejwalkar, Houmansadr, "Manipulating the Byzantine: Optimizing Model Poisoning
    Attacks and Defenses for Federated Learning", NDSS 2021.
    """

    def reach(pairs: Array, apart: Array, along: Array, length: Array, honest: Array) -> Array:
        # |mu - u_i + gamma pi|^2 = apart + 2 gamma along + gamma^2 length <= the largest pair.
        limit = pairs.max()
        under = jnp.maximum(along**2 - length * (apart - limit), 0)
        return jnp.where(honest, (jnp.sqrt(under) - along) / length, jnp.inf).min()

    return _attack(direction, reach)


@made
def min_sum(direction: Direction = "unit", *, bound: Bound = "max") -> Attack:
    r"""All attackers leave the mean until the sum of squared distances would be too large.

    .. math::
        \Delta_m = \mu + \gamma \pi, \qquad \gamma = \max \bigl\{\gamma : \textstyle
        \sum_i \lVert \Delta_m - \Delta_i \rVert^2 \le \max_i \sum_j \lVert \Delta_i - \Delta_j
        \rVert^2 \bigr\}

    over honest `i` and `j`. The paper's formula and its authors' code differ: the formula has the
    largest of the honest clients' sums on the right, as above and by default here; the code takes
    the smallest, ``bound="min"``. Along a unit `pi` the attackers then go as far as the honest
    client that is nearest to the mean, in place of the furthest: a sum over `j` is
    :math:`n \lVert \Delta_i - \mu \rVert^2` plus the same for all `i`.

    Args:
      direction: as in `min_max`.
      bound: "max" as the paper's formula, "min" as its authors' code.

    Returns:
      An `Attack`.

    Raises:
      ValueError: if the direction or the bound is unknown.

    Example:
      >>> from fedjax_lite.aggregation import aggregate_stack
      >>> from fedjax_lite.attacks import byzantine
      >>> u = jnp.array([[0.0], [1.0], [2.0], [5.0], [9.0]])
      >>> round(float(aggregate_stack(byzantine(min_sum(), clients=[4]), u)[0]), 4)  # 7 / 5
      1.4

    Reference: Shejwalkar, Houmansadr, "Manipulating the Byzantine: Optimizing Model Poisoning
    Attacks and Defenses for Federated Learning", NDSS 2021.
    """
    if bound not in ("max", "min"):
        raise ValueError(f"bound must be 'max' or 'min', got {bound!r}")

    def reach(pairs: Array, apart: Array, along: Array, length: Array, honest: Array) -> Array:
        count = jnp.maximum(honest.sum(), 1)
        half = jnp.where(honest, along, 0).sum() / count  # 0 up to rounding: mu is the mean
        total = jnp.where(honest, apart, 0).sum()
        sums = pairs.sum(1)
        limit = sums.max() if bound == "max" else jnp.where(honest, sums, jnp.inf).min()
        under = half**2 + length * (limit - total) / count
        return (jnp.sqrt(jnp.maximum(under, 0)) - half) / length

    return _attack(direction, reach)


def _attack(direction: Direction, reach: object) -> Attack:
    if direction not in ("unit", "sign", "std"):
        raise ValueError(f"direction must be 'unit', 'sign' or 'std', got {direction!r}")
    assert callable(reach)

    def rows(key: Key, scene: Scene) -> PyTree:
        center = honest_mean(scene)
        away = _direction(direction, center, scene)
        both = scene.honest[:, None] & scene.honest
        pairs = jnp.where(both, pairwise_squares(scene.values), 0)
        apart = squares_to(scene.values, center)
        along = sum_blocks(lambda x, m, p: ((m - x) * p).sum(-1), scene.values, center, away)
        length = optax.tree.norm(away, squared=True)
        moves = length > 0
        gamma = reach(pairs, apart, along, jnp.where(moves, length, 1), scene.honest)
        gamma = jnp.where(moves & scene.honest.any(), jnp.maximum(gamma, 0), 0)
        return jax.tree.map(lambda m, p: (m + gamma.astype(m.dtype) * p)[None], center, away)

    return stateless(rows)


def _direction(direction: Direction, center: PyTree, scene: Scene) -> PyTree:
    if direction == "sign":
        return jax.tree.map(lambda m: -jnp.sign(m), center)
    if direction == "std":
        return jax.tree.map(jnp.negative, honest_std(scene))
    norm = trees.global_norm(center)
    return jax.tree.map(lambda m: -m / jnp.where(norm == 0, 1, norm).astype(m.dtype), center)
