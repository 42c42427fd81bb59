"""Several independent batches out of one that the engine drew."""

from __future__ import annotations

import jax
import jax.numpy as jnp

from fedjax_lite.engine.batches import Plan
from fedjax_lite.types import Batch


def batch_parts(batch: Batch, number: int, *, in_front: bool = True) -> Batch:
    """Deals a batch out into parts of equal size, one example to each in turn.

    Examples of a batch are drawn without replacement, so parts have none in common. Where fewer
    count than there are parts, the last parts hold an example that an earlier one has, too.

    Args:
      batch: leaves `[B, ...]`.
      number: of parts, `K`.
      in_front: whether the examples that count come first, as they do unless a loss says that some
        do not (`fedjax_lite.models.with_counts`).

    Returns:
      A `Batch` with leaves `[K, ceil(B / K), ...]` and keys `[K]`.

    Example:
      >>> batch = Batch(jnp.arange(5.0), jnp.arange(5) < 4, jax.random.key(0))
      >>> parts = batch_parts(batch, 2)
      >>> parts.examples.tolist(), parts.mask.tolist()
      ([[0.0, 2.0, 4.0], [1.0, 3.0, 4.0]], [[True, True, False], [True, True, False]])
    """
    size, count = batch.mask.shape[0], batch.mask.sum()
    each = -(-size // number)
    place = jnp.arange(number)[:, None] + number * jnp.arange(each)
    first = jnp.arange(each) == 0
    index = jnp.where(first, place % jnp.maximum(count, 1), jnp.minimum(place, size - 1))
    mask = jnp.where(first, count > 0, place < count)
    if not in_front:
        index = jnp.argsort(~batch.mask, stable=True)[index]
    examples = jax.tree.map(lambda leaf: jnp.take(leaf, index, axis=0), batch.examples)
    return Batch(examples, mask, jax.random.split(batch.key, number))


def check_enough(plan: Plan, number: int) -> None:
    """Raises ValueError where batches are too small for parts.

    Example:
      >>> check_enough(Plan(batch_size=6), 3)
    """
    if isinstance(plan, Plan) and plan.batch_size is not None and plan.batch_size < number:
        raise ValueError(
            f"plan must have batches of {number} examples at least, since each is dealt out into "
            f"{number} independent ones, got batch_size={plan.batch_size}; give "
            f"Plan(batch_size={10 * number})"
        )
