"""proximal(): the pull towards the broadcast model, as an optax transform."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import optax

from fedjax_lite.checks.arguments import check_finite, check_non_negative
from fedjax_lite.checks.made import made
from fedjax_lite.objectives.penalised import Penalty
from fedjax_lite.types import Array, Params, PyTree


@made
def proximal(mu: float | Array) -> optax.GradientTransformationExtraArgs:
    r"""Adds the exact gradient of a quadratic penalty on the distance to an anchor.

    .. math::
        g \leftarrow g + \mu\,(y - x)
          = \nabla_y \Bigl[ f(y) + \tfrac{\mu}{2} \lVert y - x \rVert^2 \Bigr]

    for the parameters `y` and the anchor `x`. Put it first in a chain, so that what follows
    (momentum, clipping, Adam) sees the gradient of the whole local objective. `local_sgd` passes
    the broadcast model as the anchor. Gradient descent of rate `eta` on a curvature `a` is stable
    for ``eta < 2 / (a + mu)``.

    Args:
      mu: the penalty, a scalar of at least 0; it may be traced.

    Returns:
      An optax transform without state, whose ``update`` takes the extra argument ``anchor``, a
      tree like the parameters.

    Raises:
      ValueError: if `mu` is negative, or, in ``update``, if the anchor or the parameters are
        not given.

    Example:
      >>> tx = optax.chain(proximal(2.0), optax.sgd(0.5))
      >>> y, x, gradient = jnp.array([3.0]), jnp.array([1.0]), jnp.array([1.0])
      >>> tx.update(gradient, tx.init(y), y, anchor=x)[0].tolist()  # -0.5 * (1 + 2 * (3 - 1))
      [-2.5]

    Reference: Li, Sahu, Zaheer, Sanjabi, Talwalkar, Smith, "Federated Optimization in
    Heterogeneous Networks", 2020, arXiv:1812.06127.
    """
    check_non_negative(mu, "mu")
    check_finite(mu, "mu")

    def update(
        updates: PyTree,
        state: PyTree,
        params: Params | None = None,
        *,
        anchor: Params | None = None,
        **extra_args: Any,
    ) -> tuple[PyTree, PyTree]:
        del extra_args
        if anchor is None:
            raise ValueError(
                "anchor must be given to the update of proximal(), got None; pass the broadcast "
                "model, update(gradient, state, params, anchor=x), as fedjax_lite.local_sgd does"
            )
        if params is None:
            raise ValueError(
                "params must be given to the update of proximal(), got None; call "
                "update(gradient, state, params, anchor=x)"
            )

        def pulled(gradient: Array, param: Array, center: Array) -> Array:
            # A mu that is an array must not widen gradients in half precision.
            return gradient + jnp.asarray(mu, gradient.dtype) * (param - center)

        return jax.tree.map(pulled, updates, params, anchor), state

    return optax.GradientTransformationExtraArgs(lambda params: optax.EmptyState(), update)


def half_squares(mu: float | Array) -> Penalty:
    r"""The penalty of `proximal` itself, :math:`\tfrac{\mu}{2} \lVert y - x \rVert^2`.

    Args:
      mu: as of `proximal`.

    Returns:
      ``(params, anchor) -> scalar``.

    Example:
      >>> float(half_squares(2.0)(jnp.array([3.0, 1.0]), jnp.array([1.0, 0.0])))
      5.0
    """

    def penalty(params: Params, anchor: Params) -> Array:
        squares = jax.tree.map(lambda y, x: ((y - x) ** 2).sum(), params, anchor)
        return jnp.asarray(mu) / 2 * sum(jax.tree.leaves(squares))

    return penalty
