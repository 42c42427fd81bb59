"""one_epoch(): the plan of a pass over all of a client's data, beside the plan of its training."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np

from fedjax_lite.checks.arguments import check_slot
from fedjax_lite.engine.batches import Plan


def one_epoch(plan: Plan) -> Plan:
    """Every example once, in the plan's batches; nothing for clients that are to do nothing.

    Args:
      plan: of local training.

    Raises:
      TypeError: if it is none.

    Example:
      >>> first = one_epoch(Plan(batch_size=20, steps=100))
      >>> first.batch_size, int(first.epochs), first.steps
      (20, 1, None)
    """
    check_slot(plan, "plan", Plan)
    amount = plan.epochs if plan.steps is None else plan.steps
    if amount is None or callable(amount):
        epochs = 1
    elif isinstance(amount, jax.core.Tracer):
        epochs = jnp.minimum(amount, 1)
    else:  # in numpy, so that under jit it stays a constant
        epochs = np.minimum(amount, 1)
    return Plan(batch_size=plan.batch_size, epochs=epochs)
