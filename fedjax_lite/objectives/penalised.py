"""penalised(): an optimizer that asks for the loss is given that of the whole objective."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax.numpy as jnp
import optax

from fedjax_lite.checks.optimizer_arguments import loss_arguments, step_optimizer, takes_anything
from fedjax_lite.types import Array, Params, PyTree

Penalty = Callable[[Params, Params], Array]
"""``(params, anchor) -> scalar``; `anchor` is the broadcast model."""


def penalised(
    optimizer: optax.GradientTransformationExtraArgs, penalty: Penalty
) -> optax.GradientTransformationExtraArgs:
    """What follows a penalty in a chain: who asks for the loss gets that of the objective.

    Args:
      optimizer: of the client; returned as it is where it goes by the gradient alone.
      penalty: ``(params, anchor) -> scalar``, whose gradient the chain has added already.

    Returns:
      An optimizer, to which ``value``, ``value_fn`` and ``grad_fn`` are given with the penalty.

    Example:
      >>> tx = penalised(optax.polyak_sgd(), lambda y, x: (y - x) ** 2)
      >>> y, x = jnp.float32(3.0), jnp.float32(1.0)
      >>> value_fn = lambda w: 0.5 * w**2
      >>> extra = loss_arguments(value_fn, value_fn(y), y)
      >>> gradient = y + 2 * (y - x)  # of the whole
      >>> round(float(tx.update(gradient, tx.init(y), y, anchor=x, **extra)[0]), 4)
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
        def at(place: Params) -> Array:
            return jnp.asarray(penalty(place, anchor))

        if "value_fn" in extra:
            plain = extra["value_fn"]
            whole = loss_arguments(
                lambda place: plain(place) + at(place).astype(extra["value"].dtype),
                extra["value"] + at(params).astype(extra["value"].dtype),
                updates,
            )
            extra = {**extra, **whole}
        return step_optimizer(
            *(optimizer, updates, state, params, {"anchor": anchor, **extra}),
            name="client_optimizer",
            remedy="take one that goes by gradient and loss",
        )

    return optax.GradientTransformationExtraArgs(optimizer.init, update)
