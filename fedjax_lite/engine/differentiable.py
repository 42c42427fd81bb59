"""differentiable(): local training as a scan of fixed length, for gradients through rounds."""

from __future__ import annotations

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from fedjax_lite import trees
from fedjax_lite.checks.arguments import check_count
from fedjax_lite.checks.made import made
from fedjax_lite.engine.batches import Amount, Plan
from fedjax_lite.engine.messages import CLIENT_COUNTED, CLIENT_STEPS
from fedjax_lite.engine.phases import read_by
from fedjax_lite.engine.program import (
    Finished,
    Job,
    Started,
    Strategy,
    Table,
    Work,
    client_batch,
    finish_client,
    start_client,
)
from fedjax_lite.engine.side_by_side import placed
from fedjax_lite.types import Array, Key, Phase, PyTree


@made
def differentiable(max_steps: int | None = None, *, remat: bool = True) -> Strategy:
    r"""The whole cohort in lanes, one scan of `max_steps` steps, which reverse mode can follow.

    The other strategies stop at the longest client of the cohort, a traced number, and JAX has no
    reverse-mode derivative of such a loop. This one computes the same rounds, so with it

    .. math::  \frac{\partial}{\partial \theta} L\bigl(x_T(\theta)\bigr)

    is ``jax.grad`` of a validation loss after `unroll`, for anything differentiable that rounds
    depend on: learning rates, `mu`, weights in the mean, the initial model, the examples. Cohorts
    and batches are drawn as always and count as constants.

    A client that has done its own number of steps keeps its carry by a select. A select alone would
    not protect derivatives (zero times NaN is NaN), so a step that does not count is computed where
    nothing can go wrong that did not go wrong before: it repeats the client's first step, and for
    who does no step at all (empty or masked) that step reads the data of the busiest client.

    Memory for the gradient of one round: ``max_steps * C`` carries (model, optimizer state) with
    `remat`, and the activations of all those steps without. Time: each lane does `max_steps`
    steps, forward, once more with `remat`, and backward, so even sizes serve best.

    Args:
      max_steps: local steps that the scan has room for; None: from the plan's constant amount
        and the size of the largest client. Needed where the amount of work is a function.
      remat: compute each step again in the backward pass instead of keeping what it made.

    Returns:
      A `Strategy`. Where the amount of work is known only inside the round and a client asks for
      more than `max_steps`, its row, message and metrics become NaN: nothing is cut off unnoticed.

    Raises:
      ValueError: if `max_steps` is below 1; in a round, if it is below the steps of the largest
        client, or None where the plan's amount is a function.

    Example:
      >>> import optax, fedjax_lite as fl
      >>> data = fl.data.from_arrays({"b": jnp.array([1.0, 3.0])}, [0, 1])
      >>> def model(learning_rate):  # one step each: x = learning_rate * (1 + 3) / 2
      ...     algo = fl.fedavg(lambda w, e, key: 0.5 * (w - e["b"]) ** 2, optax.sgd(learning_rate),
      ...                      plan=fl.Plan(batch_size=1), sampler=fl.everyone(),
      ...                      strategy=differentiable())
      ...     state = algo.init(jax.random.key(0), jnp.array(0.0), data)
      ...     return algo.round(jax.random.key(0), state, data)[0].server.params
      >>> float(jax.grad(model)(0.5))
      2.0

    Reference: Maclaurin, Duvenaud, Adams, "Gradient-based Hyperparameter Optimization through
    Reversible Learning", 2015, arXiv:1502.03492.
    """
    if max_steps is not None:
        check_count(max_steps, "max_steps", minimum=1)

    def execute(job: Job, table: Table, acc: PyTree) -> tuple[Table, PyTree, dict[str, Any]]:
        work = job.work
        lengths = [
            scan_length(phase.plan, read_by(phase, job.data).max_client_size, max_steps)
            for phase in job.program.phases
        ]
        done = _train(job, table, lengths=lengths, remat=remat)
        acc = job.program.aggregator.add(acc, done.message, work.slots, work.mask & done.counts)
        table = trees.scatter_rows(table, work.rows, work.mask & done.moved, done.row)
        return table, acc, placed(done.metrics, work.slots, work.mask, work.slots.shape[0])

    return Strategy(execute, f"differentiable({'' if max_steps is None else max_steps})")


def scan_length(plan: Plan, max_client_size: int, max_steps: int | None) -> int:
    """Steps of the scan, checked against the plan as far as it is known before the round.

    Args:
      plan: the local work.
      max_client_size: examples of the largest client.
      max_steps: the user's number, or None.

    Returns:
      `max_steps`, or the most steps that a client can do.

    Raises:
      ValueError: if `max_steps` is None and the plan's amount is not constant, or below what
        the largest client certainly does.

    Example:
      >>> scan_length(Plan(batch_size=4, epochs=3), 10, None)
      9
    """
    epochs, steps = _largest(plan.epochs), _largest(plan.steps)
    batch_size = plan.batch_size or max(max_client_size, 1)
    per_epoch = -(-max_client_size // batch_size)
    largest = steps if plan.steps is not None else None if epochs is None else epochs * per_epoch
    if plan.max_epochs is not None:
        most = plan.max_epochs * per_epoch
        largest = most if largest is None else min(largest, most)
    if max_steps is None:
        if largest is None:
            raise ValueError(
                "max_steps must be given to differentiable() where the plan's amount of work is "
                f"a function or traced, got None with {plan}"
            )
        return largest
    # With amounts per client the largest client need not be the one of most steps.
    amount: Any = plan.epochs if plan.steps is None else plan.steps
    certain = np.ndim(amount) == 0
    if largest is not None and certain and largest > max_steps:
        raise ValueError(
            f"max_steps must be at least {largest}, the local steps of the largest client "
            f"({max_client_size} examples, {plan}), got {max_steps}; leave it out to have it "
            "computed"
        )
    return max_steps


def _largest(amount: Amount | None) -> int | None:
    """The largest of constant amounts; None where they are not known before the round."""
    if amount is None or callable(amount) or isinstance(amount, jax.core.Tracer):
        return None
    return int(np.max(np.asarray(amount), initial=0))


def _train(job: Job, table: Table, *, lengths: list[int], remat: bool) -> Finished:
    """`engine.program.train_lanes` with scans instead of loops of traced length."""
    program, broadcast, work = job.program, job.broadcast, job.work
    num_lanes = work.ids.shape[0]
    rows = trees.gather_rows(table, work.rows)

    def start(work: Work, row: Table) -> Started:
        return start_client(program, job.key, broadcast, job.round, work, row)

    carry, seeds, keys_batch, keys_uplink = trees.map_lanes(start, num_lanes)(work, rows)
    cut_off = jnp.zeros(num_lanes, bool)
    for i, (phase, length) in enumerate(zip(program.phases, lengths, strict=True)):
        own_steps = work.steps_of(i)
        # Whose data a lane reads: its own, or those of the busiest where it has no step.
        busiest = work.members[jnp.argmax(own_steps)]
        sources = jnp.where(own_steps > 0, work.members, busiest)
        cut_off |= own_steps > length
        lanes = _Lanes(sources, own_steps, seeds, keys_batch, carry)
        carry = _scan(job, phase, lanes, length=length, remat=remat)

    def finish(work: Work, row: Table, carry: PyTree, key_uplink: Key, cut_off: Array) -> Finished:
        out = finish_client(program, broadcast, work, row, carry, key_uplink)
        spoilt = jax.tree.map(lambda leaf: _spoil(leaf, cut_off), out)
        # Who counted stays: a client that did not is left out of the round's means, NaN and all.
        known = {name: out.metrics[name] for name in (CLIENT_COUNTED, CLIENT_STEPS)}
        return spoilt._replace(metrics={**spoilt.metrics, **known})

    return trees.map_lanes(finish, num_lanes)(work, rows, carry, keys_uplink, cut_off)


class _Lanes(NamedTuple):
    """What clients enter a phase with, leaves `[L, ...]`."""

    sources: Array
    num_steps: Array
    seeds: Array
    keys: Key
    carry: PyTree


def _scan(job: Job, phase: Phase, lanes: _Lanes, *, length: int, remat: bool) -> PyTree:
    """The carries after one phase."""
    counts = job.program.client.counts

    def body(carry: PyTree, step: Array) -> tuple[PyTree, None]:
        def one(client: _Lanes, carry: PyTree) -> PyTree:
            active = step < client.num_steps
            at = jnp.where(active, step, 0)
            batch = client_batch(
                phase, counts, job.data, client.seeds, client.keys, client.sources, at
            )
            new = phase.step(job.broadcast, trees.where(active, carry, client.carry), batch)
            return trees.where(active, new, carry)

        return trees.map_lanes(one, lanes.sources.shape[0])(lanes, carry), None

    if remat:
        # A scan keeps XLA from merging the two computations of a step by itself.
        body = jax.checkpoint(body, prevent_cse=False)
    return jax.lax.scan(body, lanes.carry, jnp.arange(length, dtype=jnp.int32))[0]


def _spoil(leaf: Array, cut_off: Array) -> Array:
    """NaN where steps were cut off; what is not floating has no NaN and stays."""
    leaf = jnp.asarray(leaf)
    if not jnp.issubdtype(leaf.dtype, jnp.floating):
        return leaf
    return jnp.where(cut_off, jnp.full_like(leaf, jnp.nan), leaf)
