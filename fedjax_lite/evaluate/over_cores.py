"""Batches of an evaluation, or clients with their models, dealt to the cores of a CPU."""

from __future__ import annotations

from typing import Any

import jax
import numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from fedjax_lite.engine.mesh.collective import AXIS
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


def deal_clients(num_batches: Any, num_cores: int) -> np.ndarray:
    """Clients by core, those with the most work first, there and back: integers `[cores * m]`.

    Args:
      num_batches: integers `[n]`, the work of each client.
      num_cores: among whom.

    Returns:
      Which client is scored at each place, -1 for nobody; core `i` has the places from ``i * m``.

    Example:
      >>> deal_clients([1, 5, 2, 4, 0], 2).reshape(2, 3).tolist()
      [[1, 0, 4], [3, 2, -1]]
    """
    heavy = np.argsort(-np.asarray(num_batches), kind="stable")
    turns = np.pad(heavy, (0, -len(heavy) % num_cores), constant_values=-1).reshape(-1, num_cores)
    turns[1::2] = turns[1::2, ::-1]
    return turns.T.reshape(-1)


def on_their_cores(
    models: Params, starts: Any, sizes: Any, dealt: np.ndarray, mesh: Mesh
) -> tuple[Params, jax.Array, jax.Array]:
    """Models, leaves `[cores * m, ...]`, first examples and sizes, each client's on its core."""
    at, each = np.maximum(dealt, 0), NamedSharding(mesh, PartitionSpec(AXIS))
    sizes = np.where(dealt < 0, 0, np.asarray(sizes)[at])
    picked = jax.tree.map(lambda leaf: leaf[at], (models, np.asarray(starts)))
    return jax.device_put((*picked, sizes), each)


def in_order(found: PyTree, dealt: np.ndarray) -> PyTree:
    """What was found at each place, leaves `[cores * m, ...]`, by client again, `[n, ...]`."""
    places = np.flatnonzero(dealt >= 0)
    back = places[np.argsort(dealt[places])]
    return jax.tree.map(lambda leaf: leaf[back], found)
