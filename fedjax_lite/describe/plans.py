"""The local work of a round in words."""

from __future__ import annotations

from typing import Any

import jax
import numpy as np

from fedjax_lite.describe.numbers import figure, function_words
from fedjax_lite.engine.batches import Plan
from fedjax_lite.engine.phases import phases_of
from fedjax_lite.types import Phase


def work_words(client: Any, plan: Plan) -> str:
    """The local work of a client, phase by phase where it has several.

    Example:
      >>> from fedjax_lite.types import ClientUpdate, Phase
      >>> client = ClientUpdate(None, None, (Phase(min, Plan(5), name="head"), Phase(max)), None)
      >>> work_words(client, Plan(5, epochs=2))
      '1 epoch in batches of 5 (head), then 2 epochs in batches of 5'
    """

    def words(phase: Phase) -> str:
        reads = f"on {phase.data!r}, data of its own" if phase.data else ""
        aside = ", ".join(filter(None, (phase.name, reads)))
        return plan_words(phase.plan or plan) + (f" ({aside})" if aside else "")

    return ", then ".join(map(words, phases_of(client, plan)))


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
    words = f"{work} in " + ("one batch of all its data" if size is None else f"batches of {size}")
    if plan.limit is None:
        return words
    return f"{words}, as far as {function_words(plan.limit)} allows"
