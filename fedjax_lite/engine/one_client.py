"""Clients one by one: local training apart from any round, each from a broadcast of its own."""

from __future__ import annotations

from typing import Any, NamedTuple

import jax.numpy as jnp

from fedjax_lite import trees
from fedjax_lite.checks.about import about
from fedjax_lite.checks.arguments import check_non_negative, check_whole
from fedjax_lite.data.population.dataset import ClientData, check_data
from fedjax_lite.engine.counted import count_work
from fedjax_lite.engine.one_pass import work_list
from fedjax_lite.engine.phases import check_splits
from fedjax_lite.engine.program import Job, Program, Table, train_lanes
from fedjax_lite.engine.prologue import prologue_program
from fedjax_lite.engine.round_keys import clients_key, round_keys
from fedjax_lite.transforms.chain import chain, identity
from fedjax_lite.types import Array, Cohort, Key, Message, PyTree, Slots


class Trained(NamedTuple):
    """What some clients end with, leaves `[L, ...]`."""

    rows: Table
    """Their rows and the states of their uplinks; of who did not count, as they were."""
    messages: Message
    """What they send, after the uplink."""
    metrics: dict[str, Any]
    counts: Array
    """bool `[L]`: whose message counts."""


def train_clients(
    slots: Slots | None,
    key: Key,
    broadcasts: PyTree,
    rows: Table,
    ids: Array,
    round: Array,
    data: ClientData,
    mask: Array | None = None,
    found: PyTree | None = None,
) -> Trained:
    """Trains some clients, each from its own broadcast; nothing is aggregated.

    The same `start`, steps, `finish` and uplink as in a round of the algorithm, and the same
    randomness: of the key, the round's number and the client's id. For methods whose clients
    start from different models (asynchronous, clustered, matched), and for one client on a machine
    of its own. To be called under `jax.jit`.

    Args:
      slots: of an algorithm, ``algo.slots``.
      key: as `algo.round` is given it; a client that trains twice in a round needs another one.
      broadcasts: leaves `[L, ...]`, what each of them downloaded.
      rows: leaves `[L, ...]`: their rows and uplink states, ``Table(clients, uplink)``.
      ids: int32 `[L]`; one client may come up twice.
      round: int32 scalar, the round's number.
      data: the population.
      mask: bool `[L]`, False for an empty lane; default all True.
      found: of slots with a prologue, what each of them measured in it, leaves `[L]`; broadcasts
        are then `fedjax_lite.engine.prologue.Prefaced`.

    Returns:
      `Trained`.

    Raises:
      TypeError: if `slots` are none, or the data no data set.
      ValueError: if there is a prologue and nothing was found in it, or the data lack a split.

    Example:
      >>> import jax, optax, fedjax_lite as fl
      >>> data = fl.data.from_arrays({"b": jnp.array([-1.0, 3.0])}, [0, 1])
      >>> algo = fl.fedavg(lambda w, e, key: 0.5 * (w - e["b"]) ** 2, optax.sgd(0.5),
      ...                  plan=fl.Plan(batch_size=1), sampler=fl.everyone())
      >>> done = train_clients(algo.slots, jax.random.key(0), jnp.array([1.0, 0.0, 5.0]),
      ...                      Table((), ()), jnp.array([0, 1, 0]), jnp.int32(0), data)
      >>> done.messages.value.tolist()
      [1.0, -1.5, 3.0]
    """
    slots = _checked(slots)
    if slots.prologue is not None and found is None:
        raise ValueError(
            "slots have a prologue, a pass over a whole cohort, so that no client trains alone; "
            "use algo.round, or give found, what rehearse_clients measured"
        )
    uplink = slots.uplink
    if slots.privacy is not None and slots.privacy.uplink is not None:
        uplink = slots.privacy.uplink if uplink is None else chain(uplink, slots.privacy.uplink)
    program = Program(
        slots.client,
        slots.plan,
        identity() if uplink is None else uplink,
        slots.aggregator,
        weighed=slots.privacy is None,
    )
    check_whole(ids, "ids")
    check_whole(round, "round")
    check_non_negative(round, "round")
    key = clients_key(key, round)
    found = () if found is None else found
    with about("broadcasts", broadcasts, word="params"):
        return _trained(program, key, broadcasts, rows, ids, round, data, mask, found)


def rehearse_clients(
    slots: Slots | None,
    key: Key,
    broadcasts: PyTree,
    ids: Array,
    round: Array,
    data: ClientData,
    mask: Array | None = None,
) -> Trained:
    """Some clients' part of the prologue, each from its own broadcast; nothing is aggregated.

    Args:
      slots: of an algorithm with a prologue, ``algo.slots``.
      key: as `algo.round` is given it.
      broadcasts: leaves `[L, ...]`, what each of them downloaded.
      ids: int32 `[L]`.
      round: int32 scalar, the round's number.
      data: the population.
      mask: bool `[L]`, False for an empty lane; default all True.

    Returns:
      `Trained`, without rows. What clients measured, which `train_clients` wants as `found`, are
      the metrics of `fedjax_lite.engine.prologue.measured_in`.

    Raises:
      TypeError: if `slots` are none, or the data no data set.
      ValueError: if there is no prologue, or the data lack a split.

    Example:
      >>> import jax, fedjax_lite as fl
      >>> data = fl.data.from_arrays({"b": jnp.array([-1.0, 3.0])}, [0, 1])
      >>> algo = fl.mime(lambda w, e, key: 0.5 * (w - e["b"]) ** 2, 0.5,
      ...                plan=fl.Plan(batch_size=1), sampler=fl.everyone())
      >>> state = algo.init(jax.random.key(0), jnp.array(1.0), data)
      >>> lanes = jax.tree.map(lambda leaf: leaf[None], algo.slots.server.broadcast(state.server))
      >>> done = rehearse_clients(algo.slots, jax.random.key(0), lanes, jnp.array([1]),
      ...                         jnp.int32(0), data)
      >>> float(jax.tree.leaves(done.messages.value)[0][0])  # the gradient at 1: 1 - 3
      -2.0
    """
    slots = _checked(slots)
    if slots.prologue is None:
        raise ValueError(f"slots have no prologue, got {slots.client.made}; use train_clients")
    check_whole(round, "round")
    keys = round_keys(key, round)
    chosen = keys.training if slots.prologue.rehearsal else keys.prologue
    program = prologue_program(slots.prologue)
    return _trained(program, chosen.clients, broadcasts, Table((), ()), ids, round, data, mask, ())


def _checked(slots: Slots | None) -> Slots:
    if not isinstance(slots, Slots):
        raise TypeError(
            f"slots must be those of an algorithm, got {type(slots).__name__}; algo.slots (None "
            "where an algorithm was not wired from slots)"
        )
    return slots


def _trained(
    program: Program,
    key: Key,
    broadcasts: PyTree,
    rows: Table,
    ids: Array,
    round: Array,
    data: ClientData,
    mask: Array | None,
    found: PyTree,
) -> Trained:
    data = check_data(data)
    check_splits(program.phases, data)
    ids = jnp.asarray(ids, jnp.int32)
    mask = jnp.ones(ids.shape, bool) if mask is None else mask
    work = work_list(program.phases, key, Cohort(ids, mask), data, round)
    work = count_work(program.client.counts, data, work)
    work = work._replace(rows=jnp.arange(len(ids)), found=found)
    job = Job(program, key, broadcasts, round, data, work)
    done = train_lanes(job, rows, own_broadcast=True)
    kept = trees.where(mask & done.moved, done.row, rows)
    return Trained(kept, done.message, done.metrics, mask & done.counts)
