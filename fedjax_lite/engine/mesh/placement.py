"""Where arrays lie on the devices of a mesh: whole on each, or client by client."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from fedjax_lite.checks.arguments import shown
from fedjax_lite.data.population.dataset import (
    ClientData,
    FederatedDataset,
    ShardedDataset,
    check_examples,
)
from fedjax_lite.engine.mesh.collective import AXIS
from fedjax_lite.hosts import distributed
from fedjax_lite.types import Array, FederatedAlgorithm, Key, Params, PyTree, RoundState


def client_mesh(devices: Any = None) -> Mesh:
    """A mesh of one axis, `clients`, for `sharded`.

    Args:
      devices: JAX devices; default all of them, those of other processes included.

    Returns:
      A ``jax.sharding.Mesh``.

    Raises:
      TypeError: if `devices` are no devices, or none.

    Example:
      >>> client_mesh(jax.devices()[:1]).shape["clients"]
      1
    """
    found = np.asarray(jax.devices() if devices is None else devices)
    if found.ndim != 1 or not found.size or not all(isinstance(d, jax.Device) for d in found):
        raise TypeError(
            f"devices must be a list of one JAX device or more, got {devices!r:.80}; give "
            "jax.devices()[:2], or leave it out for all"
        )
    return Mesh(found, (AXIS,))


def check_mesh(mesh: Any) -> None:
    """Raises where `mesh` is no mesh of the one axis `clients`."""
    if not isinstance(mesh, Mesh):
        raise TypeError(f"mesh must be a jax.sharding.Mesh, got {mesh!r}; see client_mesh()")
    if AXIS not in mesh.shape or mesh.size != mesh.shape[AXIS]:
        raise ValueError(
            f"mesh must have one axis {AXIS!r} that all of its devices lie on, got "
            f"{dict(mesh.shape)}; client_mesh() makes one"
        )


def replicate(tree: PyTree, *, mesh: Mesh) -> PyTree:
    """Puts a whole copy of a data set or state on every device of the mesh.

    Data that stays on one device would be sent to the others at every call of a round; this
    sends it once. The mesh may span processes.

    Args:
      tree: arrays, the same in every process.
      mesh: as in `sharded`.

    Returns:
      The tree with the same values.

    Example:
      >>> replicate(jnp.arange(3), mesh=client_mesh()).tolist()
      [0, 1, 2]
    """
    check_mesh(mesh)
    whole = NamedSharding(mesh, PartitionSpec())
    if not isinstance(tree, FederatedDataset):
        return jax.tree.map(lambda leaf: _put(leaf, whole), tree)
    once = {id(leaf): leaf for leaf in jax.tree.leaves(tree)}  # splits may share their examples
    placed = {name: _put(leaf, whole) for name, leaf in once.items()}
    return jax.tree.map(lambda leaf: placed[id(leaf)], tree)


def shard_population(
    data: FederatedDataset | PyTree | Callable[[int, int], PyTree],
    *,
    mesh: Mesh,
    sizes: Any = None,
) -> ShardedDataset:
    """Splits a population over the devices of a mesh, each with a block of neighbouring clients.

    For populations that are too large for one device, or one process: a process loads only the
    examples of its own devices, one device after the other. See `ShardedDataset` for the bytes that
    a device needs. The work of a round is balanced in expectation only (`imbalance`), so clients of
    similar sizes should not be neighbours: number them at random.

    Args:
      data: a `FederatedDataset`, whose splits are dealt to the same devices; or arrays, leaves
        `[E, ...]` (``numpy.memmap`` too), that hold the examples client by client; or
        ``(low, high) -> leaves [high - low, ...]``, which
        loads a range of such examples.
      mesh: as in `sharded`.
      sizes: int `[N]`, examples per client, where `data` is not a `FederatedDataset`.

    Returns:
      A `ShardedDataset`.

    Raises:
      TypeError, ValueError: if sizes are lacking, negative or do not fit the examples, or a
        block has more examples than int32 counts.

    Example:
      >>> data = shard_population({"x": np.arange(4.0)}, mesh=client_mesh(), sizes=[1, 3])
      >>> data.num_clients, data.sizes.tolist()
      (2, [1, 3])
    """
    check_mesh(mesh)
    splits = data.splits if isinstance(data, FederatedDataset) else {}
    load, sizes = _loader(data, sizes)
    devices = list(mesh.devices.flat)
    num_blocks, num_clients = len(devices), len(sizes)
    block_size = -(-num_clients // num_blocks)
    firsts = np.minimum(np.arange(num_blocks + 1) * block_size, num_clients)
    bounds = np.concatenate([[0], np.cumsum(sizes, dtype=np.int64)])
    capacity = int(np.diff(bounds[firsts]).max())
    if capacity > np.iinfo(np.int32).max:
        raise ValueError(
            f"a block of {block_size} clients has {capacity} examples, more than int32 counts; "
            "take more devices"
        )
    split = NamedSharding(mesh, PartitionSpec(AXIS))
    template = load(0, 1)
    shards: list[list[Any]] = [[] for _ in jax.tree.leaves(template)]
    offsets = np.zeros((num_blocks, block_size + 1), np.int32)
    for d in range(num_blocks):
        own = bounds[firsts[d] : firsts[d + 1] + 1] - bounds[firsts[d]]
        offsets[d] = own[-1]
        offsets[d, : len(own)] = own
        if devices[d].process_index != jax.process_index():
            continue
        low, high = int(bounds[firsts[d]]), int(bounds[firsts[d + 1]])
        block = _load_block(load, low, high, template)
        for shard, leaf in zip(shards, jax.tree.leaves(block), strict=True):
            dtype = jax.dtypes.canonicalize_dtype(leaf.dtype)
            padded = np.zeros((capacity, *leaf.shape[1:]), dtype)
            padded[: high - low] = leaf
            shard.append(jax.device_put(padded, devices[d]))
    examples = [
        jax.make_array_from_single_device_arrays(
            (num_blocks * capacity, *shard[0].shape[1:]), split, shard
        )
        for shard in shards
    ]
    return ShardedDataset(
        examples=jax.tree.unflatten(jax.tree.structure(template), examples),
        block_offsets=_put(offsets.reshape(-1), split),
        sizes=replicate(sizes.astype(np.int32), mesh=mesh),
        num_blocks=num_blocks,
        max_client_size=int(sizes.max()),
        splits={name: shard_population(split, mesh=mesh) for name, split in splits.items()},
    )


def init_state(
    algo: FederatedAlgorithm, key: Key, params: Params, data: ClientData, *, mesh: Mesh
) -> RoundState:
    """``algo.init``, with the state laid on a mesh as the data are.

    The server's part lies whole on every device. So does the table of client rows, beside data that
    do; beside a `ShardedDataset` each device makes the rows of its own clients, and the whole table
    is nowhere.

    Args:
      algo: its `init` gives all clients equal rows.
      key: a typed key, the same in every process.
      params: initial parameters, the same in every process.
      data: of `replicate` or `shard_population`.
      mesh: as in `sharded`.

    Returns:
      The state.

    Raises:
      TypeError, ValueError: as ``algo.init`` does.

    Example:
      >>> import optax, fedjax_lite as fl
      >>> mesh = client_mesh()
      >>> data = shard_population({"b": np.array([-1.0, 2.0])}, mesh=mesh, sizes=[1, 1])
      >>> algo = fl.scaffold(lambda w, e, key: 0.5 * (w - e["b"]) ** 2, 1.0,
      ...                    plan=fl.Plan(batch_size=1), sampler=fl.everyone(),
      ...                    strategy=fl.sharded(mesh))
      >>> state = init_state(algo, jax.random.key(0), jnp.array(0.0), data, mesh=mesh)
      >>> float(algo.round(jax.random.key(0), state, data)[0].server.params)
      0.5
    """
    check_mesh(mesh)
    population = data
    if isinstance(data, ShardedDataset):
        sizes = np.asarray(distributed.local(data.sizes))
        population = _Block(data.num_clients, data.block_size, sizes)
    elif not data_is_local(data):
        population = distributed.local(data)
    return place_state(algo.init(key, params, population), data, mesh=mesh)


def place_state(state: RoundState, data: ClientData, *, mesh: Mesh) -> RoundState:
    """Lays a state on a mesh as the data are; see `init_state`.

    Args:
      state: the same in every process. Beside a `ShardedDataset` its tables may have the rows of
        all clients, or those of one block, which every device is then given.
      data: of `replicate` or `shard_population`.
      mesh: as in `sharded`.

    Returns:
      The state.

    Raises:
      ValueError: if a table has another number of rows.

    Example:
      >>> state = RoundState(jnp.int32(0), jnp.zeros(2), (), (), (), ())
      >>> data = replicate(FederatedDataset({"x": jnp.ones(1)}, jnp.array([0, 1]), None, 1),
      ...                  mesh=client_mesh())
      >>> place_state(state, data, mesh=client_mesh()).server.tolist()
      [0.0, 0.0]
    """
    check_mesh(mesh)
    if not isinstance(data, ShardedDataset):
        return replicate(state, mesh=mesh)
    num_rows, block_size = data.num_rows, data.block_size
    split = NamedSharding(mesh, PartitionSpec(AXIS))

    def rows(leaf: Any) -> Array:
        if leaf.shape[0] not in (num_rows, block_size, data.num_clients):
            raise ValueError(
                f"a table of client rows must have {num_rows} rows (or {block_size}, a block), "
                f"got {leaf.shape[0]}; make the state with init_state"
            )
        if leaf.shape[0] == num_rows:
            return _put(leaf, split)
        if leaf.shape[0] == block_size:
            return _tile(leaf, split, num_rows)
        # The rows of the real clients only, as beside data that are not split.
        padding = [(0, num_rows - leaf.shape[0])] + [(0, 0)] * (leaf.ndim - 1)
        return _put(jnp.pad(leaf, padding), split)

    tables = jax.tree.map(rows, (state.clients, state.uplink))
    others = replicate(state._replace(clients=(), uplink=()), mesh=mesh)
    return others._replace(clients=tables[0], uplink=tables[1])


class _Block(NamedTuple):
    """What an algorithm's `init` needs to know, with a table of one block."""

    num_clients: int
    num_rows: int
    sizes: np.ndarray


def data_is_local(data: PyTree) -> bool:
    """Whether this process holds all of the data on its own devices."""
    leaves = [leaf for leaf in jax.tree.leaves(data) if isinstance(leaf, jax.Array)]
    return all(leaf.is_fully_addressable for leaf in leaves)


def _loader(data: Any, sizes: Any) -> tuple[Callable[[int, int], PyTree], np.ndarray]:
    """How to load a range of examples that lie client by client, and the clients' sizes."""
    if isinstance(data, FederatedDataset):
        if sizes is not None:
            raise ValueError("sizes must be left out with a FederatedDataset, which knows them")
        order = None if data.order is None else np.asarray(data.order)
        examples = jax.tree.map(np.asarray, data.examples)

        def load(low: int, high: int) -> PyTree:
            rows = slice(low, high) if order is None else order[low:high]
            return jax.tree.map(lambda leaf: leaf[rows], examples)

        return load, np.asarray(data.sizes)
    if sizes is None:
        raise ValueError(
            "sizes must be given, [N] examples per client, where data are arrays or a loader, got "
            f"None beside {shown(data)}; a FederatedDataset knows its own"
        )
    sizes = np.asarray(sizes)
    if sizes.ndim != 1 or sizes.dtype.kind not in "iu" or not sizes.size or sizes.min() < 0:
        raise ValueError(f"sizes must be non-negative integers [N], got {sizes!r}")
    total = int(sizes.sum(dtype=np.int64))
    if total == 0:
        raise ValueError("sizes must not all be 0: the population has no data")
    if callable(data):
        return data, sizes
    lengths = {len(leaf) for leaf in jax.tree.leaves(data)}
    if lengths != {total}:
        raise ValueError(f"examples must have sum(sizes) = {total} rows, got {sorted(lengths)}")
    return lambda low, high: jax.tree.map(lambda leaf: leaf[low:high], data), sizes


def _load_block(
    load: Callable[[int, int], PyTree], low: int, high: int, template: PyTree
) -> PyTree:
    """The examples `[high - low, ...]` of a block as numpy arrays, checked."""
    if low == high:
        return jax.tree.map(lambda leaf: np.asarray(leaf)[:0], template)
    block = jax.tree.map(np.asarray, load(low, high))
    num_examples = check_examples(block)
    if num_examples != high - low:
        raise ValueError(
            f"the loader must return {high - low} examples for ({low}, {high}), got {num_examples}"
        )
    return block


def _put(leaf: Any, sharding: NamedSharding) -> Array:
    """An array with the same values, laid out as `sharding` says, over processes too."""
    leaf = leaf if isinstance(leaf, jax.Array) else jnp.asarray(leaf)
    if not leaf.is_fully_addressable:
        return jax.jit(_same, out_shardings=sharding)(leaf)
    if sharding.is_fully_addressable:
        return jax.device_put(leaf, sharding)
    if jnp.issubdtype(leaf.dtype, jax.dtypes.prng_key):
        words = _put(jax.random.key_data(leaf), sharding)
        return jax.random.wrap_key_data(words, impl=jax.random.key_impl(leaf))
    host = np.asarray(leaf)
    return jax.make_array_from_callback(host.shape, sharding, lambda index: host[index])


def _tile(block: Any, sharding: NamedSharding, num_rows: int) -> Array:
    """A table `[num_rows, ...]` of which every device holds these rows `[n, ...]`."""
    block = jnp.asarray(block)
    if jnp.issubdtype(block.dtype, jax.dtypes.prng_key):
        words = _tile(jax.random.key_data(block), sharding, num_rows)
        return jax.random.wrap_key_data(words, impl=jax.random.key_impl(block))
    shape = (num_rows, *block.shape[1:])
    host = np.asarray(block)
    return jax.make_array_from_callback(shape, sharding, lambda index: host)


def _same(leaf: Array) -> Array:
    return leaf
