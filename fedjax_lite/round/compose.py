"""federated_algorithm(): one synchronous round from its slots."""

from __future__ import annotations

from typing import Any

import jax

from fedjax_lite.aggregation.conditions import in_population
from fedjax_lite.checks.arguments import check_key
from fedjax_lite.checks.labels import outputs_of, watching
from fedjax_lite.checks.made import made
from fedjax_lite.checks.state import check_not_captured, check_not_donated
from fedjax_lite.data.population.dataset import (
    ClientData,
    CohortDataset,
    SizedPopulation,
    check_data,
)
from fedjax_lite.data.population.task_stream import TaskStream
from fedjax_lite.engine.batches import Plan
from fedjax_lite.engine.phases import check_splits
from fedjax_lite.engine.program import Strategy
from fedjax_lite.engine.prologue import Prologue
from fedjax_lite.engine.round_keys import round_keys
from fedjax_lite.round.cohort_checks import check_cohort
from fedjax_lite.round.downlink import Downlink
from fedjax_lite.round.errand import told
from fedjax_lite.round.fresh_state import fresh_state
from fedjax_lite.round.next_state import next_state
from fedjax_lite.round.own_models import models_of
from fedjax_lite.round.private_runs import check_private
from fedjax_lite.round.wiring import Wired, read_phases, wired
from fedjax_lite.types import (
    Aggregator,
    Array,
    ClientUpdate,
    Cohort,
    FederatedAlgorithm,
    Key,
    Mechanism,
    Params,
    RoundState,
    Sampler,
    ServerUpdate,
    Transform,
)


@made
def federated_algorithm(
    client: ClientUpdate,
    *,
    plan: Plan,
    sampler: Sampler | None = None,
    server: ServerUpdate,
    aggregator: Aggregator | None = None,
    uplink: Transform | None = None,
    downlink: Downlink | Transform | None = None,
    privacy: Mechanism | None = None,
    strategy: Strategy | None = None,
    prologue: Prologue | None = None,
) -> FederatedAlgorithm:
    """Wires one synchronous round from its slots.

        sample cohort -> broadcast -> (start, step .. step, finish -> uplink) for every client
                      -> add to an accumulator -> finish the aggregate -> server update

    Args:
      client: local training of one client.
      plan: batch size and amount of local work.
      sampler: who takes part; with `privacy` leave it out (or give ``privacy.sampler``).
      server: what the server does with the aggregate, and what it broadcasts.
      aggregator: default `mean()`, with the weights that the messages carry.
      uplink: what happens to a message on the wire; default `identity()`.
      downlink: what happens to the broadcast on the wire, e.g. ``top_k(0.1)``; see `downlinked`.
      privacy: a `Mechanism`, such as ``fl.privacy.central_gaussian(...)``: it brings the sampler
        and the aggregator. The server is then shown neither metrics nor who took part; the
        metrics of the round are for the experimenter and are not private.
      strategy: how the cohort is executed; default `auto()`. It does not change the results.
      prologue: a first pass over the cohort, for methods of two phases: clients then download
        ``Prefaced(broadcast, aggregate of the prologue)``, and the server gets
        ``Prefaced(aggregate, aggregate of the prologue)``.

    Returns:
      A `FederatedAlgorithm`. ``round(key, state, data, cohort=None)`` is jitted and pure; it folds
      ``state.round`` into the key, so every round may be given the same key, and takes an explicit
      `Cohort` for replays and streaming: integer ids, of which those outside the population are
      empty slots, and a bool mask; clients that keep rows are named once. Metrics:
      the client's own (means over the cohort), ``num_clients`` that took part, ``num_steps``
      that they did, ``uplink_bits`` they sent and ``downlink_bits`` they were sent, packed, with
      the bounds of an ideal entropy coder beside them (``uplink_entropy_bits`` ...).

    Raises:
      TypeError: if a slot has the wrong type, the key is not typed or parameters are not floats.
      ValueError: if the cohort is larger than the population, or the table of client rows does
        not fit into memory; if `privacy` is joined with another sampler or aggregator.

    Example:
      >>> import optax, fedjax_lite as fl
      >>> from jax import numpy as jnp
      >>> data = fl.data.from_arrays({"b": jnp.array([-1.0, 2.0])}, [0, 1])
      >>> algo = federated_algorithm(
      ...     fl.local_sgd(lambda w, e, key: 0.5 * (w - e["b"]) ** 2, optax.sgd(1.0)),
      ...     plan=fl.Plan(batch_size=1), sampler=fl.everyone(),
      ...     server=fl.optimizer_server(optax.sgd(1.0)))
      >>> state = algo.init(jax.random.key(0), jnp.array(0.0), data)
      >>> state, metrics = algo.round(jax.random.key(0), state, data)
      >>> float(state.server.params)
      0.5
    """
    wires = wired(
        *(client, plan, sampler, server, aggregator, uplink, downlink),
        *(privacy, strategy, prologue),
    )

    def init(
        key: Key, params: Params, data: ClientData | SizedPopulation | None = None
    ) -> RoundState:
        return fresh_state(wires, key, params, data)

    @jax.jit
    def compiled(
        key: Key, state: RoundState, data: Any, cohort: Cohort | None
    ) -> tuple[RoundState, dict[str, Array]]:
        now = data.at_round(state.round) if isinstance(data, TaskStream) else data
        return next_state(wires, key, state, now, cohort)

    def round(
        key: Key,
        state: RoundState,
        data: ClientData | TaskStream | None = None,
        cohort: Cohort | None = None,
    ) -> tuple[RoundState, dict[str, Array]]:
        state, data = checked_round(wires, key, state, data, cohort)
        with (
            watching(outputs_of(round), state.server, data.examples),
            in_population(data.num_clients),
        ):
            return compiled(key, state, data, cohort)

    @jax.jit
    def sample(key: Key, round: Array, state: Any, sizes: Array) -> tuple[Any, Cohort]:
        return told(wires, key, round).sample(round_keys(key, round).sample, state, sizes)

    def with_strategy(other: Strategy) -> FederatedAlgorithm:
        return federated_algorithm(**{**wires.slots._asdict(), "strategy": other})

    accountant = None if wires.privacy is None else wires.privacy.accountant
    return FederatedAlgorithm(
        init, round, sample, with_strategy, accountant, models_of, wires.slots
    )


def checked_round(
    wires: Wired, key: Key, state: Any, data: Any, cohort: Cohort | None
) -> tuple[RoundState, ClientData | TaskStream]:
    """State and data of a round, looked at on the host before it is traced.

    Raises:
      TypeError: if the key is not typed, or state or data are of another kind.
      ValueError: if the state was donated, the cohort is none of this population, the data lack a
        split that a phase reads, or a budget of privacy is spent.
    """
    check_key(key)
    data = data if isinstance(data, TaskStream) else check_data(data)
    if not isinstance(state, RoundState):
        raise TypeError(
            f"state must be the RoundState that init gave, got {type(state).__name__}; the "
            "order is algo.round(key, state, data)"
        )
    check_splits(read_phases(wires), data)
    check_not_donated(state)
    check_not_captured(state, data)
    if cohort is not None:
        check_cohort(cohort, data, () if wires.privacy else (state.clients, state.uplink))
    elif isinstance(data, CohortDataset):
        raise ValueError(
            "cohort must be given with a CohortDataset, got None: the data of one cohort can "
            "only serve the round that drew it; see FederatedAlgorithm.sample"
        )
    if wires.privacy is not None:
        state = check_private(wires.privacy, state, data, cohort)
    return state, data
