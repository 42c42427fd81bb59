"""proximal(): the pull towards the broadcast model, as an optax transform."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import optax

from fedjax_lite.checks.arguments import check_finite, check_non_negative
from fedjax_lite.checks.made import made
from fedjax_lite.checks.optimizer_arguments import loss_arguments, step_optimizer, takes_anything
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


def penalised(
    optimizer: optax.GradientTransformationExtraArgs, mu: float | Array
) -> optax.GradientTransformationExtraArgs:
    """What follows `proximal`: an optimizer that asks for the loss gets that of the objective.

    Args:
      optimizer: of the client; returned as it is where it goes by the gradient alone.
      mu: the penalty.

    Returns:
      An optimizer, to which ``value``, ``value_fn`` and ``grad_fn`` are given with the penalty.

    Example:
      >>> tx = optax.chain(proximal(2.0), penalised(optax.polyak_sgd(), 2.0))
      >>> y, x = jnp.float32(3.0), jnp.float32(1.0)
      >>> value_fn = lambda w: 0.5 * w**2
      >>> extra = loss_arguments(value_fn, value_fn(y), y)
      >>> round(float(tx.update(y, tx.init(y), y, anchor=x, **extra)[0]), 4)  # -(4.5 + 4) / 7^2 * 7
      -1.2143
    """
    if takes_anything(optimizer):
        return optimizer

    def update(
        updates: PyTree,
        state: PyTree,
        params: Params | None = None,
        *,
        anchor: Params | None = None,
        **extra: Any,
    ) -> tuple[PyTree, PyTree]:
        def penalty(at: Params) -> Array:
            squares = jax.tree.map(lambda y, x: ((y - x) ** 2).sum(), at, anchor)
            return jnp.asarray(mu) / 2 * sum(jax.tree.leaves(squares))

        if "value_fn" in extra:
            plain = extra["value_fn"]
            whole = loss_arguments(
                lambda at: plain(at) + penalty(at).astype(extra["value"].dtype),
                extra["value"] + penalty(params).astype(extra["value"].dtype),
                updates,
            )
            extra = {**extra, **whole}
        return step_optimizer(
            *(optimizer, updates, state, params, {"anchor": anchor, **extra}),
            name="client_optimizer",
            remedy="take one that goes by gradient and loss",
        )

    return optax.GradientTransformationExtraArgs(optimizer.init, update)
