"""one_client(): the client of an algorithm as a function of bytes, for a machine of its own."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from fedjax_lite import trees
from fedjax_lite.aggregation.conditions import in_population
from fedjax_lite.checks.about import about
from fedjax_lite.checks.arguments import check_count, check_key, check_params, shown
from fedjax_lite.data.population.dataset import CohortDataset, from_arrays
from fedjax_lite.deploy.packets import Packet, PacketError, decode, digest, encode, unpack
from fedjax_lite.deploy.parts import (
    ToldSizes,
    deployed,
    first_state,
    found_shape,
    joined,
    known_leaves,
    splits_of,
    template_broadcast,
    template_row,
)
from fedjax_lite.engine.counted import counted_sizes
from fedjax_lite.engine.one_client import Trained, rehearse_clients, train_clients
from fedjax_lite.engine.program import Table
from fedjax_lite.round.downlink import travelling
from fedjax_lite.types import FederatedAlgorithm, Key, Params, PyTree, Slots


class Kept(NamedTuple):
    """What a client keeps between rounds."""

    row: Table
    """Its row and the state of its uplink, leaves `[1, ...]`."""
    known: list[Any]
    """The leaves of the broadcast that it was sent once (`fedjax_lite.types.Known`)."""


class OneClient(NamedTuple):
    """One client of a federation: pure functions of its own arrays."""

    init: Callable[[], Kept]
    """``() -> kept``, before its first round."""
    train: Callable[[Key, bytes, Kept, Any], tuple[bytes, Kept]]
    """``(key, request, kept, data) -> (reply, kept)``: a round of local training, bytes in and
    out. It compiles once."""
    local: Callable[[Key, Packet, Kept, Any], tuple[dict[str, Any], Kept]]
    """``(key, request, kept, data) -> (message, metrics and counts, kept)``: `train` before
    anything of it is encoded."""
    rehearse: Callable[[Key, bytes, Kept, Any], bytes]
    """``(key, request, kept, data) -> reply``: its part of a prologue, where the algorithm has one;
    nothing is kept of it."""
    data: Callable[[PyTree, dict[str, PyTree] | None], Any]
    """``(examples, splits) -> data``: the machine's own arrays, leaves `[n, ...]`, as a client."""
    sizes: Callable[[Any], dict[str, int]]
    """``(data) ->`` how many examples it has, under "", and those of its splits by name."""
    counted: Callable[[Any], int]
    """``(data) ->`` how many of its examples count."""


def one_client(
    algo: FederatedAlgorithm, params: Params, *, client_id: int, num_clients: int
) -> OneClient:
    """The client of an algorithm, as it trains in a simulation, on arrays of its own.

        (key, broadcast bytes, kept, data) -> (message bytes, kept)

    The same `start`, steps, `finish` and uplink as in the round of the simulation, and the same
    randomness where the key is the same: of the key, the round's number and the client's id. Bytes
    are `encode`'s: nothing is pickled, nothing read without its checksum, and arrays only where
    names, dtypes and shapes are those that the algorithm has.

    Args:
      algo: any synchronous algorithm.
      params: the model to begin with, for shapes; clients get the server's values.
      client_id: which client of the population this is, in ``[0, num_clients)``.
      num_clients: `N`.

    Returns:
      `OneClient`.

    Raises:
      TypeError: if `algo` is not synchronous, or an argument is of another type.
      ValueError: if the id is outside of the population.

    Example:
      >>> import optax, fedjax_lite as fl
      >>> algo = fl.fedavg(lambda w, e, key: 0.5 * (w - e["b"]) ** 2, optax.sgd(0.5),
      ...                  plan=fl.Plan(batch_size=1), sampler=fl.everyone())
      >>> client = one_client(algo, jnp.float32(0), client_id=1, num_clients=3)
      >>> mine = client.data({"b": jnp.array([4.0])}, None)
      >>> request = encode("train", {"run": "r", "round": 0}, {"sent": [jnp.float32(1)]})
      >>> reply, kept = client.train(jax.random.key(0), request, client.init(), mine)
      >>> decode(reply).kind, decode(reply).fields
      ('trained', {'run': 'r', 'round': 0, 'client': 1})
    """
    check_count(num_clients, "num_clients", minimum=1)
    check_count(client_id, "client_id", minimum=0)
    if client_id >= num_clients:
        raise ValueError(
            f"client_id must lie in [0, {num_clients}), the population, got {client_id}; ids "
            "count from 0"
        )
    check_params(params)
    trees.check_floating(params, "params")
    wires = deployed(algo)
    told = ToldSizes(
        jnp.ones(num_clients, jnp.int32),
        {name: ToldSizes(jnp.ones(num_clients, jnp.int32)) for name in splits_of(wires)},
    )
    state = first_state(wires, jax.random.key(0), params, told)
    first = wires.server.broadcast(state.server)
    whole = template_broadcast(wires, state, jax.random.key(0), told)
    found = found_shape(wires, state, jax.random.key(0), told)
    ids = jnp.array([client_id], jnp.int32)

    def init() -> Kept:
        return Kept(template_row(state), [])

    def local(key: Key, packet: Packet, kept: Kept, data: Any) -> tuple[dict[str, Any], Kept]:
        fields, got, known = _read(packet, whole, found, kept)
        with in_population(num_clients):
            done = _training(algo.slots)(
                *(key, jnp.int32(fields["round"]), joined(whole, got["sent"], known)),
                *(got["found"], kept.row, ids, data),
            )
        return _sent(done), Kept(done.rows, known)

    def train(key: Key, request: bytes, kept: Kept, data: Any) -> tuple[bytes, Kept]:
        check_key(key)
        packet = decode(request, "train")
        tree, after = local(key, packet, kept, data)
        return _reply("trained", packet.fields, client_id, tree), after

    def rehearse(key: Key, request: bytes, kept: Kept, data: Any) -> bytes:
        check_key(key)
        fields, got, known = _read(decode(request, "rehearse"), first, (), kept)
        with in_population(num_clients):
            broadcast = joined(first, got["sent"], known)
            done = _rehearsing(algo.slots)(key, jnp.int32(fields["round"]), broadcast, ids, data)
        return _reply("rehearsed", fields, client_id, _sent(done))

    def data(examples: PyTree, splits: dict[str, PyTree] | None) -> CohortDataset:
        return own_data(examples, splits, num_clients)

    def sizes(data: Any) -> dict[str, int]:
        return {name: int(part.offsets[1]) for name, part in {"": data, **data.splits}.items()}

    def counted(data: Any) -> int:
        return _count(wires.program.client.counts, data)

    return OneClient(init, train, local, rehearse, data, sizes, counted)


# Clients of one algorithm in one process, of equally many examples, share a program.
@functools.lru_cache(maxsize=8)
def _training(slots: Slots) -> Callable[..., Trained]:
    @jax.jit
    def trained(
        key: Key, round: Any, broadcast: Any, found: Any, row: Table, ids: Any, data: CohortDataset
    ) -> Trained:
        given = (_lane(broadcast), row, ids, round, data)
        return train_clients(slots, key, *given, found=_lane(found))

    return trained


@functools.lru_cache(maxsize=8)
def _rehearsing(slots: Slots) -> Callable[..., Trained]:
    @jax.jit
    def rehearsed(key: Key, round: Any, broadcast: Any, ids: Any, data: CohortDataset) -> Trained:
        return rehearse_clients(slots, key, _lane(broadcast), ids, round, data)

    return rehearsed


def _lane(tree: PyTree) -> PyTree:
    return jax.tree.map(lambda leaf: jnp.asarray(leaf)[None], tree)


def _read(packet: Packet, template: PyTree, found: PyTree, kept: Kept) -> tuple[dict, Any, Any]:
    """A request's fields and arrays, and the constants that it builds on."""
    what = "the server's request"
    round = packet.fields.get("round")
    if not isinstance(round, int) or isinstance(round, bool) or not 0 <= round < 2**31:
        raise PacketError(f"{what} is for round {round!r:.40}, which is no number")
    known = known_leaves(template)
    wanted: dict[str, Any] = {"found": found, "sent": travelling(template)}
    if any(path.startswith("['known']") for path, _, _ in packet.leaves):
        wanted["known"] = known
    got = unpack(packet, wanted, what=what)
    held = got.get("known", kept.known)
    if known and digest(held) != packet.fields.get("known"):
        raise PacketError(
            f"{what} builds on constants of the broadcast that this client does not hold; the "
            "server sends them with its next request"
        )
    return packet.fields, got, held


def _sent(done: Trained) -> dict[str, Any]:
    """What one client sends."""
    tree = {"message": done.messages, "metrics": done.metrics, "counts": done.counts}
    return jax.tree.map(lambda leaf: leaf[0], tree)


def _reply(kind: str, fields: dict[str, Any], client_id: int, tree: dict[str, Any]) -> bytes:
    own = {"run": fields.get("run"), "round": fields["round"], "client": client_id}
    return encode(kind, own, tree)


def own_data(examples: PyTree, splits: dict[str, PyTree] | None, num_clients: int) -> CohortDataset:
    """A machine's own arrays as the data of the one client of a cohort.

    Raises:
      TypeError, ValueError: if they are no arrays of numbers with a row an example.

    Example:
      >>> own_data({"x": jnp.ones((3, 2))}, None, num_clients=8).num_examples
      3
    """
    own = {}
    for name, part in (splits or {}).items():
        with about(f"splits[{name!r}]", part, word="examples"):
            own[name] = _own(part, num_clients, {})
    return _own(examples, num_clients, own)


def _own(examples: PyTree, num_clients: int, splits: dict[str, Any]) -> CohortDataset:
    """A machine's own arrays as the data of a cohort of one."""
    leaves = jax.tree.leaves(examples)
    lengths = {int(np.shape(leaf)[0]) if np.ndim(leaf) else -1 for leaf in leaves}
    if len(lengths) != 1 or min(lengths) < 0:
        raise ValueError(
            "examples must be arrays with one row an example, of one length, got "
            f"{shown(examples)}; {{'x': x, 'y': y}}"
        )
    (size,) = lengths
    if size:  # the population's checks: dtypes, and no objects
        examples = from_arrays(examples, np.zeros(size, np.int32)).examples
    else:  # rows behind the last are never read, but there must be one
        examples = jax.tree.map(
            lambda leaf: jnp.zeros((1, *np.shape(leaf)[1:]), leaf.dtype), examples
        )
    return CohortDataset(
        examples=examples,
        offsets=jnp.array([0, size], jnp.int32),
        num_clients=num_clients,
        num_examples=max(size, 1),
        max_client_size=max(size, 1),
        splits=splits,
    )


def _count(counts: Any, data: CohortDataset) -> int:
    size = int(data.offsets[1])
    if counts is None or not size:
        return size
    whole = from_arrays(data.examples, np.zeros(size, np.int32))
    return int(counted_sizes(counts, whole)[0])
