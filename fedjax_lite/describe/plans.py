"""The local work of a round in words."""

from __future__ import annotations

from typing import Any

import jax
import numpy as np

from fedjax_lite.describe.numbers import figure, function_words
from fedjax_lite.engine.batches import Plan


def plan_words(plan: Plan) -> str:
    """The local work of a round.

    Example:
      >>> plan_words(Plan(batch_size=20)), plan_words(Plan(batch_size=None, steps=2))
      ('1 epoch in batches of 20', '2 steps in one batch of all its data')
    """
    unit = "epoch" if plan.steps is None else "step"
    amount: Any = plan.epochs if plan.steps is None else plan.steps
    if callable(amount):
        work = f"{unit}s drawn by {function_words(amount)},"
    elif np.ndim(amount) and not isinstance(amount, jax.core.Tracer):
        values = np.asarray(amount)
        work = f"{values.min()} to {values.max()} {unit}s a client,"
    else:
        words = figure(amount)
        work = f"{words} {unit}" + ("" if words == "1" else "s")
    size = plan.batch_size
    return f"{work} in " + ("one batch of all its data" if size is None else f"batches of {size}")
