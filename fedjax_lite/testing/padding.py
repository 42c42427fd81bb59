"""A strategy that overwrites the padding of short batches: whoever reads it gives itself away."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp

from fedjax_lite.engine.phases import Step, around
from fedjax_lite.engine.program import Job, Strategy, Table
from fedjax_lite.types import Array, Batch, PyTree


def overwritten(inner: Strategy, value: float = 3.0) -> Strategy:
    """`inner`, except that examples behind a batch's mask are `value`, not copies of real ones.

    Args:
      inner: how the cohort is executed.
      value: what every number of such an example becomes; finite, as padding is.

    Example:
      >>> from fedjax_lite.engine.lanes import sequential
      >>> overwritten(sequential()).name
      'sequential(), padding overwritten'
    """

    def spoilt(step: Step) -> Step:
        def on_spoilt(broadcast: PyTree, carry: PyTree, batch: Batch) -> PyTree:
            def spoil(leaf: Array) -> Array:
                real = batch.mask.reshape((-1,) + (1,) * (leaf.ndim - 1))
                return jnp.where(real, leaf, jnp.asarray(value, leaf.dtype))

            examples = jax.tree.map(spoil, batch.examples)
            return step(broadcast, carry, batch._replace(examples=examples))

        return on_spoilt

    def execute(job: Job, table: Table, acc: PyTree) -> tuple[Table, PyTree, dict[str, Any]]:
        client = job.program.client
        client = client._replace(step=around(client.step, spoilt))
        return inner.execute(job._replace(program=job.program._replace(client=client)), table, acc)

    return Strategy(execute, f"{inner.name}, padding overwritten")
