"""The cores of a CPU as a mesh, and data that all of them read in the same memory."""

from __future__ import annotations

import jax
import numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from fedjax_lite.engine.mesh.placement import client_mesh
from fedjax_lite.hosts.cores import cores
from fedjax_lite.types import FederatedAlgorithm, PyTree


def core_mesh() -> Mesh | None:
    """The mesh that `auto()` deals to; None where `use_cores` was not called, or changes nothing.

    Example:
      >>> core_mesh() is None  # no use_cores() in this process
      True
    """
    devices = cores()
    return client_mesh(devices) if devices else None


def dealt_mesh(algo: FederatedAlgorithm) -> Mesh | None:
    """The cores that an algorithm's cohorts are dealt to: those of `auto()`.

    Example:
      >>> import fedjax_lite as fl
      >>> dealt_mesh(fl.types.FederatedAlgorithm(None, None)) is None
      True
    """
    strategy = None if algo.slots is None else algo.slots.strategy
    note = getattr(strategy, "made", None)
    return core_mesh() if note is not None and note.name == "auto" else None


def shared(tree: PyTree, mesh: Mesh) -> PyTree:
    """A tree on every core of a mesh, all reading the same memory: nothing is copied.

    The arrays must not be donated. Arrays that lie on several devices are left as they are.

    Args:
      tree: arrays of one device.
      mesh: of `core_mesh`.

    Example:
      >>> import jax.numpy as jnp
      >>> shared(jnp.arange(3), client_mesh(jax.devices()[:1])).tolist()
      [0, 1, 2]
    """
    everywhere = NamedSharding(mesh, PartitionSpec())

    def one(leaf: jax.Array) -> jax.Array:
        if len(leaf.sharding.device_set) > 1:
            return leaf
        host = np.asarray(leaf)
        parts = [jax.device_put(host, device, may_alias=True) for device in mesh.devices.flat]
        return jax.make_array_from_single_device_arrays(host.shape, everywhere, parts)

    return jax.tree.map(one, tree)
