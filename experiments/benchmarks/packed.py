"""packed(L): lanes that take the next client as soon as they finish one. Only benchmarked so far.

DESIGN.md wants it in the engine where a GPU shows a gain above 20 % over sorted chunks.
"""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp

from fedjax_lite import trees
from fedjax_lite.engine.program import (
    Job,
    Started,
    Strategy,
    Table,
    Work,
    client_batch,
    empty_metrics,
    finish_client,
    start_client,
)
from fedjax_lite.types import Array, Key, PyTree


def packed(num_lanes: int) -> Strategy:
    """As many clients at a time as lanes; no lane waits for a longer neighbour.

    The cohort is sorted by steps, longest first. One loop runs steps of all lanes; whenever
    some lanes have done their last step, their messages are added and the next clients start
    in them. Steps computed: at most those of one chunk's longest more than the real ones.

    Local work of one phase only.

    Args:
      num_lanes: `L`.

    Returns:
      A `Strategy`.

    Example:
      >>> packed(4).name
      'packed(4)'
    """

    def execute(job: Job, table: Table, acc: PyTree) -> tuple[Table, PyTree, dict[str, Any]]:
        program, broadcast, work = job.program, job.broadcast, job.work
        (phase,) = program.phases
        cohort_size = work.ids.shape[0]
        lanes = min(num_lanes, cohort_size)
        metrics = empty_metrics(job, table)
        order = jnp.argsort(jnp.where(work.mask, -work.num_steps, 1), stable=True)
        work = jax.tree.map(lambda leaf: leaf[order], work)
        num_clients = work.mask.sum(dtype=jnp.int32)

        def start(places: Array) -> tuple[Work, Table, Started]:
            mine = jax.tree.map(lambda leaf: leaf[jnp.minimum(places, cohort_size - 1)], work)
            rows = trees.gather_rows(table, mine.rows)
            one = lambda w, r: start_client(program, job.key, broadcast, job.round, w, r)  # noqa: E731
            return mine, rows, trees.map_lanes(one, lanes)(mine, rows)

        def change(carry: Any) -> Any:
            """Ends the lanes that are done and starts the next clients in them."""
            places, steps, mine, rows, started, following, table, acc, metrics = carry
            busy = places < num_clients
            done = busy & (steps >= mine.num_steps)
            finish = lambda w, r, s: finish_client(  # noqa: E731
                program, broadcast, w, r, s.carry, s.key_uplink
            )
            new = trees.map_lanes(finish, lanes)(mine, rows, started)
            acc = program.aggregator.add(acc, new.message, mine.slots, done & new.counts)
            table = trees.scatter_rows(table, mine.rows, done & new.moved, new.row)
            metrics = trees.scatter_rows(metrics, mine.slots, done, new.metrics)
            rank = jnp.cumsum(done, dtype=jnp.int32) - 1
            next_places = jnp.where(done, following + rank, places)
            fresh = start(next_places)
            mine, rows, started = _where_lanes(done, fresh, (mine, rows, started))
            following = following + done.sum(dtype=jnp.int32)
            steps = jnp.where(done, 0, steps)
            return next_places, steps, mine, rows, started, following, table, acc, metrics

        def one_step(
            step: Array, member: Array, seed: Array, key_batch: Key, inner: PyTree
        ) -> PyTree:
            counts = program.client.counts
            batch = client_batch(phase, counts, job.data, seed, key_batch, member, step)
            return phase.step(broadcast, inner, batch)

        def body(carry: Any) -> Any:
            places, steps, mine, rows, started, *rest = carry
            active = (places < num_clients) & (steps < mine.num_steps)
            new = trees.map_lanes(one_step, lanes)(
                steps, mine.members, started.seed, started.key_batch, started.carry
            )
            new = new if lanes == 1 else trees.where(active, new, started.carry)
            started = started._replace(carry=new)
            steps = steps + active
            carry = (places, steps, mine, rows, started, *rest)
            return until_settled(carry)

        def someone_is_done(carry: Any) -> Array:
            places, steps, mine, *_ = carry
            return jnp.any((places < num_clients) & (steps >= mine.num_steps))

        def until_settled(carry: Any) -> Any:
            # A client without steps is done at once, so one change may call for another.
            return jax.lax.while_loop(someone_is_done, change, carry)

        places = jnp.arange(lanes, dtype=jnp.int32)
        carry = (
            places,
            jnp.zeros_like(places),
            *start(places),
            jnp.int32(lanes),
            table,
            acc,
            metrics,
        )
        carry = jax.lax.while_loop(
            lambda carry: jnp.any(carry[0] < num_clients), body, until_settled(carry)
        )
        return carry[-3:]

    return Strategy(execute, f"packed({num_lanes})")


def _where_lanes(mask: Array, on_true: PyTree, on_false: PyTree) -> PyTree:
    """Lane by lane; typed keys are compared by their words, which `jnp.where` cannot choose."""

    def one(a: Array, b: Array) -> Array:
        if jnp.issubdtype(a.dtype, jax.dtypes.prng_key):
            words = one(jax.random.key_data(a), jax.random.key_data(b))
            return jax.random.wrap_key_data(words, impl=jax.random.key_impl(a))
        return jnp.where(mask.reshape(mask.shape + (1,) * (a.ndim - 1)), a, b)

    return jax.tree.map(one, on_true, on_false)
