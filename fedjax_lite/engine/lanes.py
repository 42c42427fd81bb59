"""Execution strategies on one device: vmapped, chunked, sequential."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp

from fedjax_lite import trees
from fedjax_lite.checks.arguments import check_count
from fedjax_lite.checks.made import made
from fedjax_lite.engine.program import (
    Job,
    Strategy,
    Table,
    Work,
    empty_metrics,
    train_lanes,
)
from fedjax_lite.engine.side_by_side import apart, side_by_side
from fedjax_lite.types import Array, PyTree


@made
def vmapped() -> Strategy:
    """The whole cohort in lanes: one loop to the longest client, finished lanes masked.

    For accelerators and even sizes. Memory O(C x model).

    Example:
      >>> vmapped().name
      'vmapped()'
    """

    def execute(job: Job, table: Table, acc: PyTree) -> tuple[Table, PyTree, dict[str, Any]]:
        return _execute(job.work.ids.shape[0], job, table, acc)

    return Strategy(execute, "vmapped()")


@made
def chunked(num_lanes: int) -> Strategy:
    """The cohort sorted by steps, in chunks of `num_lanes`, each to its own longest client.

    Neighbours in the order have nearly the same number of steps, so the steps wasted on masked
    lanes are at most ``num_lanes * longest``, whatever the sizes. Empty slots are sorted last
    and chunks of nothing else are not run. Memory O(L x model + accumulator).

    Args:
      num_lanes: clients that train at the same time, `L` >= 1.

    Raises:
      ValueError: if `num_lanes` is below 1.

    Example:
      >>> chunked(8).name
      'chunked(8)'
    """
    check_count(num_lanes, "num_lanes", minimum=1)

    def execute(job: Job, table: Table, acc: PyTree) -> tuple[Table, PyTree, dict[str, Any]]:
        return _execute(min(num_lanes, job.work.ids.shape[0]), job, table, acc)

    return Strategy(execute, f"chunked({num_lanes})")


@made
def sequential() -> Strategy:
    """One client at a time, unbatched code inside one compiled program: ``chunked(1)``.

    For CPUs with convolutional or large models, and for debugging. Memory O(model).

    Example:
      >>> sequential().name
      'sequential()'
    """
    return chunked(1)._replace(name="sequential()")


def _execute(
    num_lanes: int, job: Job, table: Table, acc: PyTree
) -> tuple[Table, PyTree, dict[str, Any]]:
    program, work = job.program, job.work
    cohort_size = work.ids.shape[0]
    metrics = empty_metrics(job, table)

    def run_chunk(
        chunk: Work, table: Table, acc: PyTree, columns: list[Array]
    ) -> tuple[Table, PyTree, list[Array]]:
        done = train_lanes(job._replace(work=chunk), table)
        acc = program.aggregator.add(acc, done.message, chunk.slots, chunk.mask & done.counts)
        table = trees.scatter_rows(table, chunk.rows, chunk.mask & done.moved, done.row)
        theirs = side_by_side(done.metrics)
        return table, acc, trees.scatter_rows(columns, chunk.slots, chunk.mask, theirs)

    if num_lanes == cohort_size:
        table, acc, columns = run_chunk(work, table, acc, side_by_side(metrics))
        return table, acc, apart(columns, metrics)

    # Longest first, empty slots last; a client that takes part with 0 steps still has a message.
    order = jnp.argsort(jnp.where(work.mask, -work.num_steps, 1), stable=True)
    # The last chunk is filled up with the shortest client, masked there.
    padding = -cohort_size % num_lanes
    order, mask = jnp.pad(order, (0, padding), "edge"), jnp.pad(work.mask[order], (0, padding))
    listed = side_by_side(work)
    num_chunks = (work.mask.sum(dtype=jnp.int32) + num_lanes - 1) // num_lanes

    def body(
        i: Array, carry: tuple[Table, PyTree, list[Array]]
    ) -> tuple[Table, PyTree, list[Array]]:
        cut = lambda leaf: jax.lax.dynamic_slice_in_dim(leaf, i * num_lanes, num_lanes)  # noqa: E731
        some = [jnp.take(column, cut(order), axis=0, mode="clip") for column in listed]
        chunk = apart(some, work)
        return run_chunk(chunk._replace(mask=cut(mask)), *carry)

    start = (table, acc, side_by_side(metrics))
    table, acc, columns = jax.lax.fori_loop(0, num_chunks, body, start)
    return table, acc, apart(columns, metrics)
