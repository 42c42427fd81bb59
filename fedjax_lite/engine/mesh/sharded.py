"""sharded(): a cohort's work over the devices of a mesh, one sum at the end of a round."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh, PartitionSpec

from fedjax_lite import trees
from fedjax_lite.checks.made import made
from fedjax_lite.data.population.dataset import ClientData, ShardedDataset
from fedjax_lite.engine.choose import chosen_lanes
from fedjax_lite.engine.mesh.collective import AXIS, add_devices, spread_metrics
from fedjax_lite.engine.mesh.owners import owners_compute
from fedjax_lite.engine.mesh.placement import check_mesh
from fedjax_lite.engine.program import Job, Strategy, Table, Work
from fedjax_lite.hosts.cores import on_one_core
from fedjax_lite.types import Array, Key, Message, PyTree


@made
def sharded(mesh: Mesh, inner: Strategy | None = None) -> Strategy:
    r"""Deals the cohort to the devices of a mesh, each an equal share of the *work*.

    The clients, longest first, are dealt there and back (0, 1, .., D-1, D-1, .., 0, ..), so the
    steps of two devices differ by at most those of the longest client. Each device runs `inner` on
    its part; no device waits for another until all of its clients are done. Then the accumulators
    merge by one `psum`:

    .. math::  \mathrm{acc} = \textstyle\sum_d \mathrm{acc}_d

    Results equal those of one device up to the order of that sum. The mesh may span processes.

    Where the examples are on every device (`replicate` puts them there), each gets the rows of its
    clients, so the client table itself may be sharded. Memory a device: that of `inner` for
    ``ceil(C / D)`` clients, and their rows.

    Where `shard_population` has split the examples, the owner computes: nothing but the sum above
    and the metrics `[C]` travels, the client table stays split as the data are, and the share of
    work is equal in expectation only (`imbalance`). Each device then goes through the whole cohort
    with the others' clients masked, so `inner` should skip those, as `chunked` does and
    `vmapped` does not.

    Args:
      mesh: with an axis ``clients``, see `client_mesh`.
      inner: strategy of each device; default that of `auto()` for ``ceil(C / D)`` clients.

    Returns:
      A `Strategy`.

    Raises:
      ValueError: if the mesh has no axis ``clients``, or another of more than one device; in a
        round, if the data were split for another mesh.
      TypeError: if `mesh` or `inner` is something else.

    Example:
      >>> import optax, fedjax_lite as fl
      >>> from fedjax_lite.engine import client_mesh
      >>> data = fl.data.from_arrays({"b": jnp.array([-1.0, 2.0])}, [0, 1])
      >>> algo = fl.fedavg(lambda w, e, key: 0.5 * (w - e["b"]) ** 2, optax.sgd(1.0),
      ...                  plan=fl.Plan(batch_size=1), sampler=fl.everyone(),
      ...                  strategy=sharded(client_mesh()))
      >>> state = algo.init(jax.random.key(0), jnp.array(0.0), data)
      >>> float(algo.round(jax.random.key(0), state, data)[0].server.params)
      0.5
    """
    check_mesh(mesh)
    if inner is not None and not isinstance(inner, Strategy):
        raise TypeError(f"inner must be a Strategy, got {inner!r}; was a factory not called?")
    dealt_to = chosen_lanes() if inner is None else inner
    num_devices = mesh.shape[AXIS]

    def execute(job: Job, table: Table, acc: PyTree) -> tuple[Table, PyTree, dict[str, Any]]:
        program, work = job.program, job.work
        if isinstance(job.data, ShardedDataset):
            return owners_compute(mesh, inner, job, table, acc)
        cohort_size = work.ids.shape[0]
        dealt = deal(work, num_devices)
        rows = trees.gather_rows(table, dealt.rows)

        def on_device(
            key: Key,
            rows: Table,
            acc: PyTree,
            broadcast: PyTree,
            round: Array,
            data: ClientData,
            work: Work,
        ) -> tuple[Table, PyTree, dict[str, Any]]:
            # Every device has the whole list and cuts its share: a list that is split over devices
            # would be gathered again for the server's part of the round.
            share = work.ids.shape[0] // num_devices
            first = jax.lax.axis_index(AXIS) * share
            mine = jax.tree.map(lambda leaf: jax.lax.dynamic_slice_in_dim(leaf, first, share), work)
            # Here the table is the rows of this device's clients, in their order; only the
            # aggregator needs to know their places in the whole cohort.
            places = jnp.arange(share, dtype=jnp.int32)
            local = program._replace(aggregator=_with_slots(program.aggregator, mine.slots))
            here = mine._replace(rows=places, slots=places)
            own = Job(local, key, broadcast, round, data, here)
            with on_one_core():
                rows, acc, metrics = dealt_to.execute(own, rows, acc)
            metrics = spread_metrics(metrics, mine.slots, mine.mask, cohort_size)
            return rows, *add_devices((acc, metrics))

        whole, part = PartitionSpec(), PartitionSpec(AXIS)
        # The loops' lengths differ by device, which replication checking cannot follow.
        rows, acc, metrics = jax.shard_map(
            on_device,
            mesh=mesh,
            in_specs=(whole, part, whole, whole, whole, whole, whole),
            out_specs=(part, whole, whole),
            check_vma=False,
        )(job.key, rows, acc, job.broadcast, job.round, job.data, dealt)
        return trees.scatter_rows(table, dealt.rows, dealt.mask, rows), acc, metrics

    return Strategy(execute, f"sharded({num_devices} devices, {dealt_to.name})")


def deal(work: Work, num_devices: int) -> Work:
    """Orders the work list so that `num_devices` equal slices of it have nearly equal steps.

    Args:
      work: leaves `[C]`.
      num_devices: `D`.

    Returns:
      Leaves `[D * ceil(C / D)]`: device `d` owns the d-th slice. Places that pad it are masked.

    Example:
      >>> steps = jnp.array([1, 9, 4, 5])
      >>> ids = jnp.arange(4)
      >>> deal(Work(ids, ids, ids, ids, steps, steps, steps > 0), 2).num_steps.tolist()
      [9, 1, 5, 4]
    """
    cohort_size = work.ids.shape[0]
    share = -(-cohort_size // num_devices)
    order = jnp.argsort(jnp.where(work.mask, -work.num_steps, 1), stable=True)
    ordered = jax.tree.map(
        lambda leaf: jnp.pad(leaf[order], (0, share * num_devices - cohort_size)), work
    )
    there_and_back = np.arange(share * num_devices).reshape(share, num_devices)
    there_and_back[1::2] = there_and_back[1::2, ::-1]
    places = there_and_back.T.reshape(-1)
    return jax.tree.map(lambda leaf: leaf[places], ordered)


def _with_slots(aggregator: Any, slots: Array) -> Any:
    """The aggregator for a device's work list, whose local places mean these `slots`."""

    def add(acc: PyTree, messages: Message, places: Array, mask: Array) -> PyTree:
        return aggregator.add(acc, messages, slots[places], mask)

    return aggregator._replace(add=add)
