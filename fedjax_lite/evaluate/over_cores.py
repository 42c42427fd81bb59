"""Batches of an evaluation dealt to the cores of a CPU."""

from __future__ import annotations

from jax.sharding import Mesh

from fedjax_lite.engine.mesh.cores import core_mesh, shared
from fedjax_lite.engine.mesh.placement import replicate
from fedjax_lite.types import Params, PyTree


def over_cores(examples: PyTree, num_examples: int, batch_size: int) -> tuple[PyTree, Mesh | None]:
    """The examples where all cores read them, and the cores; None where one device scores them.

    Args:
      examples: leaves `[E, ...]` on one device.
      num_examples: that are scored.
      batch_size: examples at a time; a single batch is not dealt.

    Example:
      >>> over_cores({"x": 1.0}, 10, 5)  # no use_cores() in this process
      ({'x': 1.0}, None)
    """
    mesh = core_mesh() if num_examples > batch_size else None
    return (examples, None) if mesh is None else (shared(examples, mesh), mesh)


def on_cores(params: Params, mesh: Mesh | None) -> Params:
    """A model where the batches are dealt, wherever it lay before."""
    return params if mesh is None else replicate(params, mesh=mesh)
