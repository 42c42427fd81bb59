"""federated_algorithm(): wires the slots of one synchronous round."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp

from fedjax_lite import trees
from fedjax_lite.aggregation.conditions import in_population
from fedjax_lite.aggregation.mean import mean
from fedjax_lite.checks.arguments import check_key, check_params
from fedjax_lite.checks.arguments import check_slot as check_slot
from fedjax_lite.checks.labels import outputs_of, watching
from fedjax_lite.checks.made import made
from fedjax_lite.checks.state import check_not_captured, check_not_donated
from fedjax_lite.data.population.dataset import ClientData, CohortDataset, SizedPopulation
from fedjax_lite.data.population.dataset import check_data as check_data
from fedjax_lite.engine.batches import Plan
from fedjax_lite.engine.choose import auto
from fedjax_lite.engine.counted import population_of
from fedjax_lite.engine.one_pass import measured_by, one_pass
from fedjax_lite.engine.program import Program, Strategy, Table, message_shape
from fedjax_lite.engine.prologue import Prefaced as Prefaced
from fedjax_lite.engine.prologue import Prologue as Prologue
from fedjax_lite.engine.prologue import measured_in, narrowed, preface_shape, prologue_program
from fedjax_lite.engine.round_keys import round_keys
from fedjax_lite.engine.table_memory import check_table
from fedjax_lite.round.cohort_checks import check_cohort
from fedjax_lite.round.downlink import Downlink, downlink_cost, downlinked
from fedjax_lite.round.ledger import empty
from fedjax_lite.round.metrics import COSTS, round_metrics
from fedjax_lite.round.optimizer_rounds import local_steps
from fedjax_lite.round.own_models import models_of
from fedjax_lite.round.private_runs import check_private, prepared, recorded
from fedjax_lite.round.private_slots import blindfolded, private_slots, without_repeats
from fedjax_lite.round.server import standing_still, start_server
from fedjax_lite.transforms.chain import identity
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
    Slots,
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
    own_uplink, own_server = uplink, server
    if privacy is not None:
        sampler, aggregator, uplink = private_slots(privacy, sampler, aggregator, uplink, prologue)
        privacy = prepared(privacy)
    if sampler is None:
        raise TypeError(
            "sampler must be given, e.g. sampler=fl.uniform(10), or a privacy mechanism"
        )
    aggregator = mean() if aggregator is None else aggregator
    uplink = identity() if uplink is None else uplink
    strategy = auto() if strategy is None else strategy
    if downlink is not None:
        server = downlinked(server, downlink)
    server = standing_still(server)
    if privacy is not None:
        server = blindfolded(server)  # outermost: the downlink must not see who took part either
    check_slot(client, "client", ClientUpdate)
    check_slot(plan, "plan", Plan)
    check_slot(sampler, "sampler", Sampler)
    check_slot(server, "server", ServerUpdate)
    check_slot(aggregator, "aggregator", Aggregator)
    check_slot(uplink, "uplink", Transform)
    check_slot(strategy, "strategy", Strategy)
    if prologue is not None:
        check_slot(prologue, "prologue", Prologue)
    program = Program(client, plan, uplink, aggregator, weighed=privacy is None)
    phases = program.phases  # looked at before anything is traced

    def draw(key: Key, state: Any, sizes: Array) -> Cohort:
        return sampler.sample(key, state, sizes)[1]

    def init(
        key: Key, params: Params, data: ClientData | SizedPopulation | None = None
    ) -> RoundState:
        check_key(key)
        if isinstance(params, ClientData):
            raise TypeError(
                "params must be the model's parameters, got data; the order is "
                "algo.init(key, params, data), with params = model.init(key)"
            )
        check_params(params)
        if data is None or not isinstance(data, SizedPopulation):
            data = check_data(data)
        for phase in phases:
            phase.plan.check_population(data.num_clients)
        trees.check_floating(params, "params")
        # Copies: the state may be donated, and the caller's arrays must survive that.
        params = jax.tree.map(strongly_typed_copy, params)
        state = start_server(server, params, population_of(data, client.counts))
        broadcast = server.broadcast(state)
        found: Any = ()
        with local_steps(plan, data):
            row = client.init(params)
        if prologue is not None:
            sizes = jax.ShapeDtypeStruct((data.num_clients,), jnp.int32)
            drawn = jax.eval_shape(draw, key, sampler.init(data.num_clients), sizes)
            preface, found = preface_shape(prologue, broadcast, drawn)
            broadcast = Prefaced(broadcast, trees.zeros(preface))
        with in_population(data.num_clients):  # arrays [N] inside of slots are held against it
            message, _ = message_shape(program, broadcast, row, found=found)
            kept = aggregator.init_state(trees.zeros(message.value))
        uplink_row = uplink.init(trees.zeros(message.value))
        check_table((row, uplink_row), data.num_rows)
        fresh = RoundState(
            round=jnp.int32(0),
            server=state,
            clients=make_table("clients", row, data),
            uplink=make_table("uplink", uplink_row, data),
            aggregator=kept,
            sampler=sampler.init(data.num_clients),
            privacy=() if privacy is None else empty(),
        )
        return trees.unaliased(fresh)

    @jax.jit
    def jitted(
        key: Key, state: RoundState, data: Any, cohort: Cohort | None
    ) -> tuple[RoundState, dict[str, Array]]:
        key_sample, key_clients, key_server, key_prologue = round_keys(key, state.round)
        sampler_state = state.sampler
        ledger = recorded(privacy, state, data, cohort)
        if cohort is not None and privacy is not None:
            cohort = without_repeats(cohort)  # one client, one bounded contribution
        if cohort is None:
            sampler_state, cohort = sampler.sample(key_sample, state.sampler, data.sizes)
        known = (cohort.ids >= 0) & (cohort.ids < data.num_clients)
        late = None if cohort.late is None else cohort.late & known & ~cohort.mask
        cohort = Cohort(cohort.ids.astype(jnp.int32), cohort.mask & known, late)
        broadcast = server.broadcast(state.server)
        asked, sent, preface, found = cohort, broadcast, None, ()
        if prologue is not None:
            before = one_pass(
                prologue_program(prologue),
                *(strategy, key_prologue, Table((), ()), ()),
                *(broadcast, cohort, state.round, data),
            )
            preface, found = before.value, measured_in(before.metrics)
            cohort = narrowed(prologue, jax.random.fold_in(key_prologue, 1), cohort, found)
            broadcast = Prefaced(broadcast, preface)
        done = one_pass(
            program,
            *(strategy, key_clients, Table(state.clients, state.uplink), state.aggregator),
            *(broadcast, cohort, state.round, data, found),
        )
        value, metrics = done.value, done.metrics
        if prologue is not None:
            value = Prefaced(value, preface)
            metrics |= {name: metrics[name] + before.metrics[name] for name in COSTS}
        server_state = server.update(key_server, state.server, value, done.cohort, metrics)
        new = RoundState(
            round=state.round + 1,
            server=server_state,
            clients=done.table.clients,
            uplink=done.table.uplink,
            aggregator=done.aggregator,
            sampler=sampler_state,
            privacy=ledger,
        )
        down = downlink_cost(
            state.server,
            sent,
            took_part=asked.mask.sum() + (0 if late is None else late.sum()),
            num_clients=data.num_clients,
            counted=done.cohort.mask.sum(),
            preface=Prefaced(preface, cohort.mask.sum()),
        )
        return new, {
            **round_metrics(metrics, done.work, asked.mask),
            **down,
            **done.measured,
            **measured_by(server_state),
            **measured_by(sampler_state),
        }

    def round(
        key: Key, state: RoundState, data: ClientData | None = None, cohort: Cohort | None = None
    ) -> tuple[RoundState, dict[str, Array]]:
        check_key(key)
        data = check_data(data)
        if not isinstance(state, RoundState):
            raise TypeError(
                f"state must be the RoundState that init gave, got {type(state).__name__}; the "
                "order is algo.round(key, state, data)"
            )
        check_not_donated(state)
        check_not_captured(state, data)
        if cohort is not None:
            check_cohort(cohort, data, () if privacy else (state.clients, state.uplink))
        elif isinstance(data, CohortDataset):
            raise ValueError(
                "cohort must be given with a CohortDataset, got None: the data of one cohort can "
                "only serve the round that drew it; see FederatedAlgorithm.sample"
            )
        if privacy is not None:
            state = check_private(privacy, state, data, cohort)
        with (
            watching(outputs_of(round), state.server, data.examples),
            in_population(data.num_clients),
        ):
            return jitted(key, state, data, cohort)

    @jax.jit
    def sample(key: Key, round: Array, state: Any, sizes: Array) -> tuple[Any, Cohort]:
        return sampler.sample(round_keys(key, round)[0], state, sizes)

    def with_strategy(other: Strategy) -> FederatedAlgorithm:
        return federated_algorithm(**{**slots._asdict(), "strategy": other})

    slots = Slots(
        client=client,
        plan=plan,
        sampler=sampler,
        server=own_server,
        aggregator=aggregator,
        uplink=uplink if privacy is None else own_uplink,
        downlink=Downlink(downlink) if isinstance(downlink, Transform) else downlink,
        privacy=privacy,
        strategy=strategy,
        prologue=prologue,
    )
    accountant = None if privacy is None else privacy.accountant
    return FederatedAlgorithm(init, round, sample, with_strategy, accountant, models_of, slots)


def make_table(name: str, row: Any, data: Any) -> Any:
    """A table of equal rows; a data set that keeps them elsewhere makes its own."""
    if hasattr(data, "make_table"):
        return data.make_table(name, row)
    return trees.repeat_rows(row, data.num_rows)


def strongly_typed_copy(leaf: Any) -> Array:
    """A copy whose dtype is its own: a weak type is lost in round one and retraces round two."""
    return jnp.array(leaf, dtype=jnp.asarray(leaf).dtype)
