"""Attacks on updates: sign flip, Gaussian noise, ALIE, inner product manipulation."""

from __future__ import annotations

import jax
import jax.numpy as jnp

from fedjax_lite.attacks.byzantine import Attack, Scene
from fedjax_lite.attacks.moments import honest_mean, honest_std
from fedjax_lite.checks.arguments import check_finite, check_non_negative
from fedjax_lite.checks.made import made
from fedjax_lite.types import Array, Key, PyTree


@made
def sign_flip(scale: float | Array = 1.0) -> Attack:
    r"""Each attacker sends its own update, turned round.

    .. math::  \Delta_m \leftarrow -\lambda \Delta_m

    Args:
      scale: `lambda` >= 0, may be traced.

    Returns:
      An `Attack`.

    Raises:
      ValueError: if `scale` is negative.

    Example:
      >>> from fedjax_lite.aggregation import aggregate_stack
      >>> from fedjax_lite.attacks import byzantine
      >>> attacked = byzantine(sign_flip(), clients=[0])
      >>> round(float(aggregate_stack(attacked, jnp.ones((5, 1)))[0]), 4)
      0.6
    """
    check_non_negative(scale, "scale")

    def rows(key: Key, scene: Scene) -> PyTree:
        return jax.tree.map(lambda leaf: -scale * leaf, scene.values)

    return stateless(rows)


@made
def gaussian(stddev: float | Array) -> Attack:
    r"""Each attacker sends noise, :math:`\Delta_m \sim N(0, \sigma^2 I)`, drawn by its id.

    Only attackers' rows are drawn, one after the other; they take the memory of one stack,
    cohort x model (see `byzantine`).

    Args:
      stddev: `sigma` >= 0, may be traced.

    Returns:
      An `Attack`.

    Raises:
      ValueError: if `stddev` is negative.

    Example:
      >>> from fedjax_lite.aggregation import aggregate_stack
      >>> from fedjax_lite.attacks import byzantine
      >>> noisy = byzantine(gaussian(100.0), clients=[0, 1])
      >>> bool(jnp.abs(aggregate_stack(noisy, jnp.ones((4, 1000)))).mean() > 10)
      True
    """
    check_non_negative(stddev, "stddev")

    def rows(key: Key, scene: Scene) -> PyTree:
        leaves, treedef = jax.tree.flatten(scene.values)

        def draw(client: Array) -> list[Array]:
            keys = jax.random.split(jax.random.fold_in(key, client), len(leaves))
            pairs = zip(keys, leaves, strict=True)
            noise = [stddev * jax.random.normal(k, x.shape[1:], x.dtype) for k, x in pairs]
            return [row.astype(x.dtype) for row, x in zip(noise, leaves, strict=True)]

        def nothing(client: Array) -> list[Array]:
            return [jnp.zeros(x.shape[1:], x.dtype) for x in leaves]

        # One client after the other: nothing is drawn for who is honest, and random bits take the
        # memory of one row.
        return treedef.unflatten(
            jax.lax.map(
                lambda who: jax.lax.cond(who[1], draw, nothing, who[0]),
                (scene.ids, scene.byzantine),
            )
        )

    return stateless(rows)


@made
def alie(z: float | Array | None = None) -> Attack:
    r"""ALIE, "a little is enough": all attackers leave the mean by a few standard deviations.

    .. math::
        \Delta_m \leftarrow \mu - z \sigma, \qquad z = \Phi^{-1}\Bigl(\frac{n - f - s}{n - f}\Bigr),
        \qquad s = \lfloor n / 2 + 1 \rfloor - f

    with mean and population standard deviation of the honest messages in each coordinate; `s`
    honest clients further out are what the attackers need to become the majority.

    Args:
      z: how far, may be traced; default the formula, with the `n` and `f` of the round (at least
        0).

    Returns:
      An `Attack`.

    Raises:
      TypeError: if `z` is not a number.
      ValueError: if `z` is not finite.

    Example:
      >>> from fedjax_lite.aggregation import aggregate_stack, median
      >>> from fedjax_lite.attacks import byzantine
      >>> u = jnp.array([[0.0], [1.0], [2.0], [0.0], [0.0]])
      >>> attacked = byzantine(alie(1.0), clients=[3, 4], inner=median())
      >>> round(float(aggregate_stack(attacked, u)[0]), 4)  # 1 - sqrt(2 / 3)
      0.1835

    Reference: Baruch, Baruch, Goldberg, "A Little Is Enough: Circumventing Defenses For
    Distributed Learning", 2019, arXiv:1902.06156.
    """
    if z is not None:
        check_finite(z, "z")

    def rows(key: Key, scene: Scene) -> PyTree:
        reach = alie_reach(scene.honest.sum(), scene.byzantine.sum()) if z is None else z

        def one(center: Array, spread: Array) -> Array:
            return (center - jnp.asarray(reach, center.dtype) * spread)[None]

        return jax.tree.map(one, honest_mean(scene), honest_std(scene))

    return stateless(rows)


def alie_reach(num_honest: Array | int, num_byzantine: Array | int) -> Array:
    """The `z` of `alie` from the numbers of honest and hostile clients.

    Where the formula asks for less than 0 it is 0; where hostile clients are the majority already
    one more honest client is asked for, which keeps `z` finite.

    Example:
      >>> round(float(alie_reach(38, 12)), 4), round(float(alie_reach(20, 5)), 4)
      (0.336, 0.2533)
    """
    num = num_honest + num_byzantine
    needed = jnp.maximum(num // 2 + 1 - num_byzantine, 1)
    honest = jnp.maximum(num_honest, 1)
    share = (num_honest - needed) / honest
    return jax.scipy.special.ndtri(jnp.maximum(share, 0.5))


@made
def ipm(scale: float | Array = 0.1) -> Attack:
    r"""Inner product manipulation: all attackers send the honest mean, turned round.

    .. math::  \Delta_m \leftarrow -\varepsilon \mu

    The plain mean becomes ``((n - f) - epsilon f) / n`` of the honest one.

    Args:
      scale: `epsilon` >= 0, may be traced. Small ones hide from distances, large ones turn the
        mean round (above ``(n - f) / f``).

    Returns:
      An `Attack`.

    Raises:
      ValueError: if `scale` is negative.

    Example:
      >>> from fedjax_lite.aggregation import aggregate_stack
      >>> from fedjax_lite.attacks import byzantine
      >>> attacked = byzantine(ipm(2.0), clients=range(11))
      >>> round(float(aggregate_stack(attacked, jnp.ones((25, 1)))[0]), 4)
      -0.32

    Reference: Xie, Koyejo, Gupta, "Fall of Empires: Breaking Byzantine-tolerant SGD by Inner
    Product Manipulation", 2019, arXiv:1903.03936.
    """
    check_non_negative(scale, "scale")

    def rows(key: Key, scene: Scene) -> PyTree:
        return jax.tree.map(lambda center: (-scale * center)[None], honest_mean(scene))

    return stateless(rows)


def stateless(rows: object) -> Attack:
    """An attack that remembers nothing, from ``(key, scene) -> rows``.

    Example:
      >>> silence = stateless(lambda key, scene: jax.tree.map(jnp.zeros_like, scene.values))
      >>> silence.init(None)
      ()
    """
    if not callable(rows):
        raise TypeError(f"rows must be a function (key, scene) -> rows, got {rows!r}")
    return Attack(lambda params: (), lambda key, state, scene: (state, rows(key, scene)))
