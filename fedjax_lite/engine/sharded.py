"""sharded(): a cohort's work over the devices of a mesh, one sum at the end of a round."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from fedjax_lite import trees
from fedjax_lite.data.dataset import ClientData
from fedjax_lite.engine.choose import auto
from fedjax_lite.engine.program import Program, Strategy, Table, Work
from fedjax_lite.types import Array, Key, Message, PyTree

AXIS = "clients"


def client_mesh(devices: Any = None) -> Mesh:
    """A mesh of one axis, `clients`, for `sharded`.

    Args:
      devices: JAX devices; default all of them, those of other processes included.

    Returns:
      A ``jax.sharding.Mesh``.

    Example:
      >>> client_mesh(jax.devices()[:1]).shape["clients"]
      1
    """
    return Mesh(np.asarray(jax.devices() if devices is None else devices), (AXIS,))


def replicate(tree: PyTree, mesh: Mesh) -> PyTree:
    """Puts a whole copy of a data set or state on every device of the mesh.

    Data that stays on one device would be sent to the others at every call of a round; this
    sends it once.

    Args:
      tree: arrays, the same in every process.
      mesh: as in `sharded`.

    Returns:
      The tree with the same values.

    Example:
      >>> replicate(jnp.arange(3), client_mesh()).tolist()
      [0, 1, 2]
    """
    return jax.device_put(tree, NamedSharding(mesh, PartitionSpec()))


def sharded(mesh: Mesh, inner: Strategy | None = None) -> Strategy:
    r"""Deals the cohort to the devices of a mesh, each an equal share of the *work*.

    The clients, longest first, are dealt there and back (0, 1, .., D-1, D-1, .., 0, ..), so the
    steps of two devices differ by at most those of the longest client. Each device runs `inner` on
    its part; no device waits for another until all of its clients are done. Then the accumulators
    merge by one `psum`:

    .. math::  \mathrm{acc} = \textstyle\sum_d \mathrm{acc}_d

    Results equal those of one device up to the order of that sum. The examples are on every
    device (`replicate` puts them there); of the client table each device gets the rows of its
    clients, so the table itself may be sharded over clients. Memory a device: that of `inner` for
    ``ceil(C / D)`` clients, and their rows.

    Args:
      mesh: with an axis ``clients``, see `client_mesh`.
      inner: strategy of each device; default `auto()`, for ``ceil(C / D)`` clients.

    Returns:
      A `Strategy`.

    Raises:
      ValueError: if the mesh has no axis ``clients``, or another of more than one device.
      TypeError: if `mesh` or `inner` is something else.

    Example:
      >>> import optax, fedjax_lite as fl
      >>> data = fl.data.from_arrays({"b": jnp.array([-1.0, 2.0])}, [0, 1])
      >>> algo = fl.fedavg(lambda w, e, key: 0.5 * (w - e["b"]) ** 2, optax.sgd(1.0),
      ...                  plan=fl.Plan(batch_size=1), sampler=fl.everyone(),
      ...                  strategy=sharded(client_mesh()))
      >>> state = algo.init(jax.random.key(0), jnp.array(0.0), data)
      >>> float(algo.round(jax.random.key(0), state, data)[0].server.params)
      0.5
    """
    if not isinstance(mesh, Mesh):
        raise TypeError(f"mesh must be a jax.sharding.Mesh, got {mesh!r}; see client_mesh()")
    if AXIS not in mesh.shape or mesh.size != mesh.shape[AXIS]:
        raise ValueError(
            f"mesh must have one axis {AXIS!r} that all of its devices lie on, got "
            f"{dict(mesh.shape)}; client_mesh() makes one"
        )
    inner = auto() if inner is None else inner
    if not isinstance(inner, Strategy):
        raise TypeError(f"inner must be a Strategy, got {inner!r}; was a factory not called?")
    num_devices = mesh.shape[AXIS]

    def execute(
        program: Program,
        key: Key,
        table: Table,
        acc: PyTree,
        broadcast: PyTree,
        round: Array,
        data: ClientData,
        work: Work,
    ) -> tuple[Table, PyTree, dict[str, Any]]:
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
            # Here the table is the rows of this device's clients, in their order; only the
            # aggregator needs to know their places in the whole cohort.
            places = jnp.arange(work.ids.shape[0], dtype=jnp.int32)
            local = program._replace(aggregator=_with_slots(program.aggregator, work.slots))
            work = work._replace(rows=places, slots=places)
            rows, acc, metrics = inner.execute(local, key, rows, acc, broadcast, round, data, work)
            return rows, jax.lax.psum(acc, AXIS), metrics

        whole, part = PartitionSpec(), PartitionSpec(AXIS)
        # The loops' lengths differ by device, which replication checking cannot follow.
        rows, acc, metrics = jax.shard_map(
            on_device,
            mesh=mesh,
            in_specs=(whole, part, whole, whole, whole, whole, part),
            out_specs=(part, whole, part),
            check_vma=False,
        )(key, rows, acc, broadcast, round, data, dealt)
        table = trees.scatter_rows(table, dealt.rows, dealt.mask, rows)
        empty = jax.tree.map(
            lambda leaf: jnp.zeros((cohort_size, *leaf.shape[1:]), leaf.dtype), metrics
        )
        return table, acc, trees.scatter_rows(empty, dealt.slots, dealt.mask, metrics)

    return Strategy(execute, f"sharded({num_devices} devices, {inner.name})")


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
