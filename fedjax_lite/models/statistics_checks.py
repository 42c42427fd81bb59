"""Refusals, before training, of methods and optimizers that would spoil running statistics."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax

from fedjax_lite.checks.optimizer_arguments import loss_arguments, step_optimizer
from fedjax_lite.models.batch_norm import SCALE, statistics_mask
from fedjax_lite.types import Params


def check_takes_statistics(
    optimizer: optax.GradientTransformationExtraArgs, params: Params
) -> None:
    """Refuses a client optimizer that treats running statistics as parameters.

    It is tried on a residual of 1 in every statistic, which must move each by exactly -1. Without
    statistics, and where values are traced, nothing is tried.

    Args:
      optimizer: of the client, as local training calls it.
      params: what it is about to train.

    Raises:
      ValueError: if a statistic moves otherwise.

    Example:
      >>> check_takes_statistics(optax.with_extra_args_support(optax.sgd(0.1)), {"w": jnp.ones(2)})
    """
    mask = statistics_mask(params)
    if not any(jax.tree.leaves(mask)) or _traced(params):
        return
    grads = jax.tree.map(
        lambda is_one, leaf: jnp.full_like(leaf, SCALE if is_one else 0), mask, params
    )

    def value_fn(params: Params) -> Any:
        return sum(jax.tree.leaves(jax.tree.map(lambda g, p: (g * p).sum(), grads, params)))

    extra = {"anchor": params, **loss_arguments(value_fn, value_fn(params), grads)}
    updates, _ = step_optimizer(
        *(optimizer, grads, optimizer.init(params), params, extra),
        name="client_optimizer",
        remedy="take one that goes by gradient and loss",
    )
    moved = [u for is_one, u in zip(*map(jax.tree.leaves, (mask, updates))) if is_one]
    if not _traced(moved) and not all((np.asarray(u) == -1).all() for u in moved):
        raise ValueError(
            "client_optimizer would train the running statistics of a batch normalisation like "
            "parameters; wrap the whole of it: with_statistics(optax.chain(...))"
        )


def check_no_statistics(params: Params, method: str) -> None:
    """Refuses running statistics in a method whose corrections would act on them.

    Args:
      params: what it is about to train.
      method: its name, for the message.

    Raises:
      ValueError: if a leaf lies under "batch_stats" or "local_stats".

    Example:
      >>> check_no_statistics({"w": 1.0}, "scaffold")
    """
    for (path, _), is_one in zip(
        jax.tree_util.tree_leaves_with_path(params), jax.tree.leaves(statistics_mask(params))
    ):
        if is_one:
            raise ValueError(
                f"{method} corrects every leaf like a parameter and cannot keep the running "
                f"statistics params{jax.tree_util.keystr(path)}; use statistics='batch', or group "
                "or instance normalisation"
            )


def refuse_statistics(method: str) -> Callable[[Params], tuple[()]]:
    """``ClientUpdate.init`` of a method without rows that refuses running statistics.

    Args:
      method: its name, for the message.

    Returns:
      ``(params) -> ()``.

    Example:
      >>> refuse_statistics("mime")({"w": 1.0})
      ()
    """

    def init(params: Params) -> tuple[()]:
        check_no_statistics(params, method)
        return ()

    return init


def _traced(tree: Any) -> bool:
    return any(isinstance(leaf, jax.core.Tracer) for leaf in jax.tree.leaves(tree))
