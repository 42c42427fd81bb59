"""The state before the first round."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp

from fedjax_lite import trees
from fedjax_lite.aggregation.conditions import in_population
from fedjax_lite.checks.arguments import check_key, check_params
from fedjax_lite.data.population.dataset import ClientData, SizedPopulation, check_data
from fedjax_lite.engine.counted import population_of
from fedjax_lite.engine.phases import check_splits
from fedjax_lite.engine.program import message_shape
from fedjax_lite.engine.prologue import Prefaced, preface_shape
from fedjax_lite.engine.table_memory import check_table
from fedjax_lite.round.errand import told, traffic_of
from fedjax_lite.round.ledger import empty
from fedjax_lite.round.optimizer_rounds import local_steps
from fedjax_lite.round.server import start_server
from fedjax_lite.round.wiring import Wired, read_phases
from fedjax_lite.types import Array, Key, Params, RoundState


def fresh_state(
    wires: Wired, key: Key, params: Params, data: ClientData | SizedPopulation | None
) -> RoundState:
    """What ``algo.init`` gives: the server's state, and a row a client of whatever is kept.

    Args:
      wires: the slots of the round.
      key: typed.
      params: the model to begin with; it is copied.
      data: the population, or what knows its sizes.

    Raises:
      TypeError: if the key is not typed, parameters are not floats, or the order is wrong.
      ValueError: if the table of client rows does not fit into memory.
    """
    population = _checked(key, params, data)
    program, server, prologue = wires.program, wires.server, wires.prologue
    for phase in wires.phases:
        phase.plan.check_population(population.num_clients)
    if hasattr(population, "splits"):  # a population may be told by its sizes alone
        check_splits(read_phases(wires), population)
    # Copies: the state may be donated, and the caller's arrays must survive that.
    params = jax.tree.map(strongly_typed_copy, params)
    state = start_server(server, params, population_of(population, program.client.counts))
    broadcast = server.broadcast(state)
    found: Any = ()
    preface: Any = ()
    with local_steps(program.plan, population):
        row = program.client.init(params)
    if prologue is not None:
        drawn = jax.eval_shape(
            lambda key, state, sizes: wires.sampler.sample(key, state, sizes)[1],
            *(key, wires.sampler.init(population.num_clients)),
            jax.ShapeDtypeStruct((population.num_clients,), jnp.int32),
        )
        preface, found = preface_shape(prologue, broadcast, drawn)
        broadcast = Prefaced(broadcast, trees.zeros(preface))
    with in_population(population.num_clients):  # arrays [N] inside of slots are held against it
        message, _ = message_shape(program, broadcast, row, found=found)
        kept = program.aggregator.init_state(trees.zeros(message.value))
    uplink_row = program.uplink.init(trees.zeros(message.value))
    if wires.sampler.repeats and jax.tree.leaves((row, uplink_row)):
        raise ValueError(
            "sampler must not draw a client twice where clients keep something between rounds, got "
            f"{wires.sampler.made}, which draws with replacement: its row would be written twice; "
            "take one without, such as fl.weighted or fl.selection.importance"
        )
    sampler = wires.sampler
    if sampler.at is not None:
        sent = broadcast.value if isinstance(broadcast, Prefaced) else broadcast
        traffic = traffic_of(wires, state, sent, message.value, preface)
        sampler = told(wires, key, jnp.int32(0), *traffic)
    check_table((row, uplink_row), population.num_rows)
    fresh = RoundState(
        round=jnp.int32(0),
        server=state,
        clients=make_table("clients", row, population),
        uplink=make_table("uplink", uplink_row, population),
        aggregator=kept,
        sampler=sampler.init(population.num_clients),
        privacy=() if wires.privacy is None else empty(),
    )
    return trees.unaliased(fresh)


def _checked(key: Key, params: Params, data: Any) -> Any:
    check_key(key)
    if isinstance(params, ClientData):
        raise TypeError(
            "params must be the model's parameters, got data; the order is "
            "algo.init(key, params, data), with params = model.init(key)"
        )
    check_params(params)
    if data is None or not isinstance(data, SizedPopulation):
        data = check_data(data)
    trees.check_floating(params, "params")
    return data


def make_table(name: str, row: Any, data: Any) -> Any:
    """A table of equal rows; a data set that keeps them elsewhere makes its own."""
    if hasattr(data, "make_table"):
        return data.make_table(name, row)
    return trees.repeat_rows(row, data.num_rows)


def strongly_typed_copy(leaf: Any) -> Array:
    """A copy whose dtype is its own: a weak type is lost in round one and retraces round two."""
    return jnp.array(leaf, dtype=jnp.asarray(leaf).dtype)
