"""Budgets into noise: what a sweep over epsilon needs before it begins."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from fedjax_lite.checks.about import about
from fedjax_lite.checks.arguments import check_slot
from fedjax_lite.types import Mechanism


def calibrate(
    epsilons: Sequence[float], mechanism: Callable[..., Mechanism], **settings: Any
) -> list[float]:
    """The noise multiplier that a mechanism finds for each of several budgets.

    Calibration is a search on the host, so that an epsilon cannot be traced; noise can. A sweep
    over budgets therefore is a sweep over these numbers, and its rows have the epsilon of each::

        settings = dict(clip=0.5, num_clients=100, expected_cohort_size=20, delta=1e-3,
                        num_rounds=10)
        noise = fl.privacy.calibrate([2.0, 8.0], fl.privacy.central_gaussian, **settings)

        def make(noise_multiplier):
            dp = fl.privacy.central_gaussian(noise_multiplier=noise_multiplier, **settings)
            return fl.fedavg(loss, optax.sgd(0.5), plan=plan, privacy=dp)

        fl.sweep(make, {"noise_multiplier": noise}, num_rounds=10, ...)

    Args:
      epsilons: budgets above 0, each of a whole run; infinity gives 0 (no noise, not private).
      mechanism: ``(epsilon=..., **settings) -> Mechanism``, such as `central_gaussian`,
        `adaptive_clipping`, `tree_noise`, `matrix_noise` or `local_gaussian`. The noise of
        `distributed_discrete_gaussian` is found, too, but cannot be swept: it fixes a grid.
      settings: all its other arguments, `num_rounds` among them.

    Returns:
      One `noise_multiplier` a budget, in their order. What each spends is at most its budget.

    Raises:
      TypeError: if `mechanism` does not make a `Mechanism`, or has no noise multiplier.
      ValueError: if `epsilons` is not a list, or the mechanism refuses an amount.

    Example:
      >>> from fedjax_lite.privacy import local_gaussian
      >>> settings = dict(clip=1.0, delta=1e-5, num_clients=4, cohort_size=2, num_rounds=1)
      >>> budgets = [float("inf"), 4.377178]
      >>> noise = calibrate(budgets, local_gaussian, adjacency="add_remove", **settings)
      >>> [round(z, 4) for z in noise]
      [0.0, 1.0]
    """
    if np.ndim(epsilons) != 1:
        raise ValueError(f"epsilons must be a list of budgets, got {epsilons!r}")
    if not callable(mechanism):
        raise TypeError(
            "mechanism must be a function that makes one, such as fl.privacy.central_gaussian, "
            f"got {type(mechanism).__name__}; its arguments follow as keywords"
        )
    found = []
    for epsilon in epsilons:
        with about("epsilons", epsilons, word="epsilon"):
            made = mechanism(epsilon=float(epsilon), **settings)
        check_slot(made, "mechanism's result", Mechanism)
        if made.noise_multiplier is None:
            raise TypeError(
                "mechanism's accountant has no noise_multiplier: set that field of Accountant"
            )
        found.append(made.noise_multiplier)
    return found
