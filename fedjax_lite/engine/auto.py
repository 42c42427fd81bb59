"""auto(): the strategy that measurement recommends."""

from __future__ import annotations

from typing import Any

from fedjax_lite.checks.made import made
from fedjax_lite.data.population.dataset import ShardedDataset
from fedjax_lite.engine.choose import chosen_lanes
from fedjax_lite.engine.mesh.cores import core_mesh
from fedjax_lite.engine.mesh.sharded import sharded
from fedjax_lite.engine.program import Job, Strategy, Table
from fedjax_lite.types import PyTree


@made
def auto() -> Strategy:
    """Chooses devices and lanes by platform, model and size distribution, when it is traced.

    The rules were measured on 2 CPU cores (experiments/benchmarks/round.py): one lane for
    convolutional models, for more than 256 KiB of weights and for uneven sizes, else five. On an
    accelerator the whole cohort in lanes where sizes are even, sorted chunks where they are not
    (nothing measured there yet). After `use_cores` each core of a CPU is given an equal share of
    the work, as by `sharded`. All that it looks at is static: shapes, and the largest client's
    share.

    Example:
      >>> auto().name
      'auto()'
    """
    lanes = chosen_lanes()

    def execute(job: Job, table: Table, acc: PyTree) -> tuple[Table, PyTree, dict[str, Any]]:
        mesh = core_mesh()
        alone = job.work.ids.shape[0] == 1 or isinstance(job.data, ShardedDataset)
        if mesh is None or alone:
            return lanes.execute(job, table, acc)
        return sharded(mesh, lanes).execute(job, table, acc)

    return Strategy(execute, "auto()")
