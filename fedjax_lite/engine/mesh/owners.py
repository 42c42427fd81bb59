"""Owner computes: every device trains those clients of the cohort whose data it holds."""

from __future__ import annotations

import math
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh, PartitionSpec

from fedjax_lite.checks.arguments import check_count
from fedjax_lite.data.population.dataset import FederatedDataset, ShardedDataset
from fedjax_lite.engine.batches import Plan
from fedjax_lite.engine.choose import choose, planned_steps
from fedjax_lite.engine.counted import count_work
from fedjax_lite.engine.lanes import chunked
from fedjax_lite.engine.mesh.collective import AXIS, add_devices
from fedjax_lite.engine.program import Job, Strategy, Table, Work
from fedjax_lite.hosts.cores import on_one_core
from fedjax_lite.types import Array, Key, PyTree


def owners_compute(
    mesh: Mesh,
    inner: Strategy | None,
    job: Job,
    table: Table,
    acc: PyTree,
) -> tuple[Table, PyTree, dict[str, Any]]:
    """Runs a cohort on a population that is split over the mesh, as `sharded` does.

    Every device is given the whole work list and masks the clients of others; examples and rows
    never leave their device. The accumulators and the metrics, zeros where another device is
    the owner, merge by one `psum`.

    Raises:
      ValueError: if the data were split for another number of devices, or the table was.
    """
    program, data, work = job.program, job.data, job.work
    assert isinstance(data, ShardedDataset)
    num_devices, block_size = mesh.shape[AXIS], data.block_size
    if data.num_blocks != num_devices:
        raise ValueError(
            f"data were split over {data.num_blocks} devices, but the mesh has {num_devices}; "
            "call shard_population with the mesh that sharded is given"
        )
    for leaf in jax.tree.leaves(table):
        if leaf.shape[0] != data.num_rows:
            raise ValueError(
                f"the table of client rows must have {data.num_rows} rows, got {leaf.shape[0]}; "
                "make the state with init_state(algo, key, params, data, mesh=mesh)"
            )
    share = -(-work.ids.shape[0] // num_devices)

    def on_device(
        key: Key,
        table: Table,
        acc: PyTree,
        broadcast: PyTree,
        round: Array,
        lying: _Lying,
        work: Work,
    ) -> tuple[Table, PyTree, dict[str, Any]]:
        block = _block(data, lying)
        places = work.members - jax.lax.axis_index(AXIS) * block_size
        mine = (places >= 0) & (places < block_size)
        places = jnp.clip(places, 0, block_size - 1)
        work = work.only(mine)._replace(members=places, rows=places, mask=work.mask & mine)
        work = count_work(program.client.counts, block, work)
        strategy = inner
        if strategy is None:  # auto(), but for the clients that a device may expect to own
            strategy = chunked(choose(broadcast, block, share).num_lanes)
        own = Job(program, key, broadcast, round, block, work)
        with on_one_core():
            table, acc, metrics = strategy.execute(own, table, acc)
        return table, *add_devices((acc, metrics))

    whole, part = PartitionSpec(), PartitionSpec(AXIS)
    # The loops' lengths differ by device, which replication checking cannot follow.
    return jax.shard_map(
        on_device,
        mesh=mesh,
        in_specs=(whole, part, whole, whole, whole, part, whole),
        out_specs=(part, whole, whole),
        check_vma=False,
    )(
        *(job.key, table, acc, job.broadcast, job.round),
        *(_lying(data), work),
    )


class _Lying(NamedTuple):
    """What a device holds of a population: the examples of its clients, and where each begins."""

    examples: PyTree
    offsets: Array
    splits: dict[str, Any]


def _lying(data: ShardedDataset) -> _Lying:
    """The arrays of a population that are split over devices."""
    splits = {name: _lying(split) for name, split in data.splits.items()}
    return _Lying(data.examples, data.block_offsets, splits)


def _block(data: ShardedDataset, here: _Lying) -> FederatedDataset:
    """The clients of one device, given its part of the arrays."""
    splits = {name: _block(split, here.splits[name]) for name, split in data.splits.items()}
    return FederatedDataset(here.examples, here.offsets, None, data.max_client_size, splits)


def imbalance(
    data: ShardedDataset | FederatedDataset,
    *,
    plan: Plan,
    cohort_size: int,
    num_devices: int | None = None,
    num_trials: int = 64,
) -> float:
    r"""How much longer the busiest device works than the mean, where owners compute.

    A uniform cohort of `C` clients with steps of coefficient of variation `v` loads each of `D`
    devices with a random share. The mean of

    .. math::  \frac{\max_d S_d}{\frac{1}{D} \sum_d S_d} \approx
               1 + \sqrt{2 \ln D \, \frac{(D - 1) (1 + v^2)}{C}}

    over simulated cohorts is returned; the right-hand side is a guide for large `C / D`. Data that
    lie whole on every device are dealt evenly instead.

    Args:
      data: the population; blocks are `num_devices` runs of neighbouring clients.
      plan: the local work; amounts given as functions are taken as one epoch.
      cohort_size: clients a round, `C`.
      num_devices: `D`; default the blocks of a `ShardedDataset`.
      num_trials: simulated cohorts.

    Returns:
      At least 1; 1 where all devices work equally long.

    Raises:
      ValueError: if the cohort is empty or larger than the population, or `num_devices` lacks.

    Example:
      >>> from fedjax_lite.data.population.dataset import from_arrays
      >>> data = from_arrays({"x": np.zeros(8)}, np.arange(8))
      >>> imbalance(data, plan=Plan(batch_size=1), cohort_size=8, num_devices=4)
      1.0
    """
    check_count(num_trials, "num_trials", minimum=1)
    if num_devices is None:
        if not isinstance(data, ShardedDataset):
            raise ValueError("num_devices must be given with data that are not split")
        num_devices = data.num_blocks
    check_count(num_devices, "num_devices", minimum=1)
    sizes = np.asarray(data.sizes)
    if not 1 <= cohort_size <= len(sizes):
        raise ValueError(
            f"cohort_size must lie in [1, {len(sizes)}], the population, got {cohort_size}"
        )
    steps = planned_steps(plan, sizes)
    block_size = -(-len(sizes) // num_devices)
    rng = np.random.default_rng(0)
    ratios = []
    for _ in range(num_trials):
        ids = rng.choice(len(sizes), cohort_size, replace=False)
        loads = np.bincount(ids // block_size, steps[ids], minlength=num_devices)
        if loads.sum():
            ratios.append(loads.max() / loads.mean())
    return float(np.mean(ratios)) if ratios else math.nan
