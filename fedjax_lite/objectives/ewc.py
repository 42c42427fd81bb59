"""Elastic weight consolidation: what was learnt pulls, as hard as it is known."""

from __future__ import annotations

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from fedjax_lite import trees
from fedjax_lite.checks.arguments import check_finite, check_non_negative, shown
from fedjax_lite.checks.made import made
from fedjax_lite.objectives.penalised import Penalty
from fedjax_lite.types import Array, Params, PyTree


class OldTasks(NamedTuple):
    r"""All tasks learnt so far, as one quadratic: memory of two models, however many tasks.

    .. math::  \tfrac12 \sum_k \sum_j F_{k,j} (\theta_j - t_{k,j})^2
               = \tfrac12 \sum_j F_j (\theta_j - t_j)^2 + o
    """

    fisher: Params
    """`F`, the sum of the tasks' Fisher information."""
    optimum: Params
    """`t`, where the sum of the tasks' penalties is least: the mean of their optima by `F_k`."""
    offset: Array
    """`o`, what it is there; 0 for one task."""


def no_old_tasks(params: Params) -> OldTasks:
    """Nothing learnt so far: no penalty.

    Args:
      params: of the model, for shapes.

    Example:
      >>> float(no_old_tasks({"w": jnp.ones(2)}).fisher["w"].sum())
      0.0
    """
    params = jax.tree.map(jnp.asarray, params)
    offset = jnp.zeros((), jnp.result_type(jnp.float32, *jax.tree.leaves(params)))
    return OldTasks(trees.zeros(params), params, offset)


def remember(old: OldTasks, fisher: Params, optimum: Params) -> OldTasks:
    r"""One task more: penalties add up, and a sum of quadratics is a quadratic.

    .. math::
        F \leftarrow F + F_k, \qquad t \leftarrow t + \frac{F_k}{F + F_k} (t_k - t), \qquad
        o \leftarrow o + \tfrac12 \sum_j \frac{F_j F_{k,j}}{F_j + F_{k,j}} (t_{k,j} - t_j)^2

    with the old `F` and `t` on the right. Nothing is approximated: the sum over all tasks is kept,
    as if each had its own anchor.

    Args:
      old: the tasks before; `no_old_tasks` for none.
      fisher: `F_k`, a tree like the model, at least 0; from `fisher_information`.
      optimum: `t_k`, the model at the end of the task.

    Returns:
      The tasks with this one.

    Raises:
      TypeError: if `old` is no `OldTasks`.
      ValueError: if the trees or their shapes differ.

    Example:
      >>> one = remember(no_old_tasks(jnp.array(0.0)), jnp.array(2.0), jnp.array(1.0))
      >>> two = remember(one, jnp.array(3.0), jnp.array(0.5))
      >>> [round(float(x), 4) for x in two]  # at .7: (2 .09 + 3 .04) / 2
      [5.0, 0.7, 0.15]
    """
    if not isinstance(old, OldTasks):
        raise TypeError(f"old must be OldTasks, got {shown(old)}; begin with no_old_tasks(params)")
    for name, tree in (("fisher", fisher), ("optimum", optimum)):
        check_like(tree, old.optimum, name)

    def center(f: Array, t: Array, new: Array, at: Array) -> Array:
        moved = t + new / jnp.where(f + new > 0, f + new, 1) * (at - t)
        return jnp.where(f > 0, moved, at).astype(t.dtype)  # the first one's is kept in every bit

    def between(f: Array, t: Array, new: Array, at: Array) -> Array:
        return (f * new / jnp.where(f + new > 0, f + new, 1) * (at - t) ** 2).sum()

    parts = jax.tree.leaves(jax.tree.map(between, old.fisher, old.optimum, fisher, optimum))
    total = jax.tree.map(lambda f, new: (f + new).astype(f.dtype), old.fisher, fisher)
    return OldTasks(
        total,
        jax.tree.map(center, old.fisher, old.optimum, fisher, optimum),
        (old.offset + sum(parts) / 2).astype(old.offset.dtype),
    )


@made
def ewc_penalty(lam: float | Array, old: OldTasks) -> optax.GradientTransformationExtraArgs:
    r"""Adds the exact gradient of the penalty on leaving what was learnt.

    .. math::
        g \leftarrow g + \lambda F (\theta - t)
          = \nabla_\theta \Bigl[ f(\theta) + \tfrac{\lambda}{2} \sum_k \sum_j
            F_{k,j} (\theta_j - t_{k,j})^2 \Bigr]

    The twin of `proximal`: put it first in a chain. Gradient descent of rate `eta` is stable for
    ``eta < 2 / (a + lam max F)`` on a curvature `a`; a Fisher information has large entries, so a
    large `lam` wants a small rate.

    Args:
      lam: the importance of the old tasks, at least 0; it may be traced.
      old: what was learnt; its arrays may be traced.

    Returns:
      An optax transform without state.

    Raises:
      TypeError: if `old` is no `OldTasks`.
      ValueError: if `lam` is negative or not finite, or, in ``update``, without parameters.

    Example:
      >>> old = remember(no_old_tasks(jnp.array(0.0)), jnp.array(2.0), jnp.array(1.0))
      >>> tx = optax.chain(ewc_penalty(3.0, old), optax.sgd(0.1))
      >>> theta = jnp.array(0.0)  # new task: (theta + 1)^2 4 / 2, gradient 4
      >>> round(float(tx.update(jnp.array(4.0), tx.init(theta), theta)[0]), 4)  # -.1 (4 - 6)
      0.2

    Reference: Kirkpatrick et al., "Overcoming catastrophic forgetting in neural networks", 2017,
    arXiv:1612.00796.
    """
    check_lam(lam)
    if not isinstance(old, OldTasks):
        raise TypeError(f"old must be OldTasks, got {shown(old)}; remember(...) makes them")

    def update(
        updates: PyTree, state: PyTree, params: Params | None = None, **extra_args: Any
    ) -> tuple[PyTree, PyTree]:
        del extra_args
        if params is None:
            raise ValueError(
                "params must be given to the update of ewc_penalty(), got None; call "
                "update(gradient, state, params)"
            )

        def pulled(gradient: Array, theta: Array, f: Array, t: Array) -> Array:
            return gradient + jnp.asarray(lam, gradient.dtype) * f * (theta - t)

        return jax.tree.map(pulled, updates, params, old.fisher, old.optimum), state

    return optax.GradientTransformationExtraArgs(lambda params: optax.EmptyState(), update)


def old_tasks_penalty(lam: float | Array, old: OldTasks) -> Penalty:
    r"""The penalty of `ewc_penalty` itself.

    .. math::  \lambda \Bigl( \tfrac12 \sum_j F_j (\theta_j - t_j)^2 + o \Bigr)

    Args:
      lam: as of `ewc_penalty`.
      old: what was learnt.

    Returns:
      ``(params, anchor) -> scalar``; the anchor is not looked at.

    Example:
      >>> old = remember(no_old_tasks(jnp.array(0.0)), jnp.array(2.0), jnp.array(1.0))
      >>> float(old_tasks_penalty(3.0, old)(jnp.array(0.0), None))  # 3 / 2 . 2 (0 - 1)^2
      3.0
    """

    def penalty(params: Params, anchor: Params) -> Array:
        parts = jax.tree.map(
            lambda theta, f, t: (f * (theta - t) ** 2).sum(), params, old.fisher, old.optimum
        )
        return jnp.asarray(lam) * (sum(jax.tree.leaves(parts)) / 2 + old.offset)

    return penalty


def check_lam(lam: Any) -> None:
    """Raises ValueError where the weight of a penalty is negative or not finite.

    Example:
      >>> check_lam(0.5)
    """
    check_non_negative(lam, "lam")
    check_finite(lam, "lam")


def check_like(tree: Any, like: Params, name: str) -> None:
    """Raises ValueError where a tree has not the structure and shapes of the model.

    Args:
      tree: what was given.
      like: the model.
      name: of the argument.

    Example:
      >>> check_like({"w": jnp.ones(2)}, {"w": jnp.zeros(2)}, "fisher")
    """
    mine, theirs = jax.tree.structure(tree), jax.tree.structure(like)
    if mine != theirs:
        raise ValueError(
            f"{name} must be a tree like the model, {theirs}, got {mine}; of the same parameters"
        )
    for (path, leaf), model in zip(
        jax.tree_util.tree_leaves_with_path(tree), jax.tree.leaves(like), strict=True
    ):
        if jnp.shape(leaf) != jnp.shape(model):
            raise ValueError(
                f"{name}{jax.tree_util.keystr(path)} must have the model's shape "
                f"{list(jnp.shape(model))}, got {list(jnp.shape(leaf))}; of the same parameters"
            )
