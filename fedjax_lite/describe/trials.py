"""What an optimizer, or a schedule, does to known numbers: it is tried, not looked into."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import numpy as np
import optax

from fedjax_lite.checks.tried import tried

SMALL, HUGE, TINY = 2.0**-10, 2.0**20, 2.0**-27
"""Sizes of gradients: below any sensible clip, above it, and as small as Adam's epsilon."""
STEPS, HUGE_STEP, DECAY, PULL, TINY_STEP, NAN = range(6)
"""The trials of `PROBES`: two ordinary steps, a huge one, parameters without gradient, an anchor
elsewhere, a tiny step, a NaN."""


class Setting(NamedTuple):
    """`K` trials of `T` steps each, on a model of two numbers."""

    gradients: np.ndarray
    """float32 `[K, T, 2]`."""
    params: np.ndarray
    """float32 `[K, 2]`, the same in all steps."""
    anchors: np.ndarray
    """float32 `[K, 2]`."""


class Trial(NamedTuple):
    """What became of a `Setting`."""

    updates: np.ndarray
    """float32 `[K, T, 2]`."""
    states: list[Any]
    """After each step; leaves `[K, ...]`."""


def _setting(rows: list[tuple[Any, Any, Any]]) -> Setting:
    return Setting(*(np.array(part, np.float32) for part in zip(*rows)))


PROBES = _setting(
    [
        ([[SMALL, -SMALL], [0, 0]], [0, 0], [0, 0]),
        ([[3 * HUGE, 4 * HUGE], [0, 0]], [0, 0], [0, 0]),
        ([[0, 0], [0, 0]], [1, 1], [1, 1]),
        ([[0, 0], [0, 0]], [0, 0], [-1, -1]),
        ([[TINY, -TINY], [0, 0]], [0, 0], [0, 0]),
        ([[np.nan, SMALL], [0, 0]], [0, 0], [0, 0]),
    ]
)
CHECKS = _setting(
    [
        ([[0.3, -0.7], [0.2, 0.1], [-0.4, 0.0]], [0.5, -1.5], [0.25, 1.0]),
        ([[0.003, 0.001], [-0.002, 0.004], [0.001, 0.0]], [0.01, 0.02], [0.0, 0.01]),
        ([[30.0, -50.0], [70.0, 20.0], [0.1, -0.2]], [2.0, 3.0], [-1.0, 5.0]),
        ([[5e-7, -3e-7], [1e-6, 0.0], [2e-7, 1e-7]], [0.0, 0.0], [0.0, 0.0]),
    ]
)
"""Unlike the probes: an optimizer is what it is taken for only if both do the same here."""


def trial_of(
    optimizer: optax.GradientTransformation,
    setting: Setting = PROBES,
    *,
    stand_in: float = 0.5,
    at: Callable[[Any], Any] = lambda state: state,
) -> tuple[Trial, bool]:
    """An optimizer's steps on known gradients, and whether traced numbers had a part in them.

    Args:
      optimizer: of optax; it may ask for ``anchor`` beside a gradient.
      setting: the trials.
      stand_in: what stands for traced numbers.
      at: ``(state) -> state``, applied to a fresh state.

    Example:
      >>> trial, traced = trial_of(optax.sgd(0.5))
      >>> (trial.updates[0, 0] / SMALL).tolist(), traced
      ([-0.5, 0.5], False)
    """
    takes = optax.with_extra_args_support(optimizer)

    def one(gradients: Any, params: Any, anchor: Any) -> Any:
        state, updates, states = at(takes.init(params)), [], []
        for gradient in gradients:
            update, state = takes.update(gradient, state, params, anchor=anchor)
            updates.append(update)
            states.append(state)
        return updates, states

    (updates, states), traced = tried(jax.vmap(one), *setting, stand_in=stand_in)
    return Trial(np.stack(updates, axis=1), states), traced


def found_in(state: Any, kind: type) -> list[Any]:
    """The parts of a state that are of a public class.

    Example:
      >>> import jax.numpy as jnp
      >>> found_in(optax.adam(0.1).init(jnp.zeros(2)), optax.ScaleByAdamState)[0].mu.tolist()
      [0.0, 0.0]
    """
    leaves = jax.tree.leaves(state, is_leaf=lambda one: isinstance(one, kind))
    return [leaf for leaf in leaves if isinstance(leaf, kind)]


def replaced_in_state(state: Any, kind: type, change: Callable[[Any], Any]) -> Any:
    """The state, its parts of one class changed.

    Example:
      >>> import jax.numpy as jnp
      >>> state = optax.sgd(lambda count: 0.1).init(jnp.zeros(2))
      >>> kind = optax.ScaleByScheduleState
      >>> late = replaced_in_state(state, kind, lambda one: one._replace(count=7))
      >>> found_in(late, kind)[0].count
      7
    """
    return jax.tree.map(
        lambda one: change(one) if isinstance(one, kind) else one,
        state,
        is_leaf=lambda one: isinstance(one, kind),
    )
