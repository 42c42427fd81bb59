"""server(): the server of an algorithm as functions of bytes, whatever carries them."""

from __future__ import annotations

import secrets
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from fedjax_lite import trees
from fedjax_lite.aggregation.conditions import in_population
from fedjax_lite.checks.arguments import check_count, check_key, check_params
from fedjax_lite.deploy.exchange import Exchange
from fedjax_lite.deploy.packets import encode
from fedjax_lite.deploy.parts import (
    ToldSizes,
    deployed,
    first_state,
    found_shape,
    known_leaves,
    splits_of,
    template_broadcast,
)
from fedjax_lite.deploy.replies import (
    Arrived,
    Expected,
    Refusal,
    present,
    read_replies,
    read_sizes,
    received,
    reply_template,
    stacked,
)
from fedjax_lite.deploy.rounds import (
    NEVER,
    Merged,
    Served,
    commits,
    members,
    request_to,
    run_name,
    without_data,
)
from fedjax_lite.engine.program import Strategy, Table
from fedjax_lite.engine.prologue import prologue_program
from fedjax_lite.round.downlink import travelling
from fedjax_lite.round.next_state import next_state, opened
from fedjax_lite.round.private_runs import check_private
from fedjax_lite.round.wiring import Wired
from fedjax_lite.types import (
    Accountant,
    Array,
    Cohort,
    FederatedAlgorithm,
    Key,
    Params,
    PyTree,
    RoundState,
)

_NOBODY: Mapping[int, bytes] = {}


class FederatedServer(NamedTuple):
    """The server of a federation: functions of bytes."""

    hello: Callable[[], bytes]
    """``() -> request`` that asks a client for its sizes."""
    told: Callable[[Mapping[int, bytes]], ToldSizes]
    """``(replies by id) -> sizes``; clients that did not reply have none and are never drawn by
    size."""
    init: Callable[[ToldSizes], Served]
    """``(sizes) -> served``."""
    rehearsal: Callable[[Served], dict[int, bytes]] | None
    """``(served) ->`` requests of the next round's prologue, by client id; None: there is none."""
    requests: Callable[..., dict[int, bytes]]
    """``(served, rehearsed={}) ->`` the next round's requests, by client id; `rehearsed` are the
    replies to a prologue's."""
    merge: Callable[..., Merged]
    """``(served, replies by id, rehearsed={}) -> merged``: one round further; who is absent dropped
    out."""
    round: Callable[[Served, Exchange], Merged]
    """``(served, exchange) -> merged``: all of these in one."""
    skip: Callable[[Served], Merged]
    """``(served) -> merged``: the round in which nobody of its cohort was there."""
    num_clients: int
    accountant: Accountant | None
    """Of a private algorithm."""


def server(
    algo: FederatedAlgorithm, key: Key, params: Params, *, num_clients: int
) -> FederatedServer:
    """The server of an algorithm, as it works in a simulation, on replies of real clients.

        requests(served) -> {id: bytes} .. any transport .. {id: bytes} -> merge(served, replies)

    The round is the simulation's own: only in place of training the cohort, its replies are read.
    So every sampler, aggregator, mechanism and server optimizer works as there, to the same
    numbers. A reply that is damaged, of another round, run, version, shape or dtype, or not finite
    is refused by name, and its client did not take part. Nothing else holds a client back: weights
    and metrics are what it says, so a client that lies moves a mean where it likes. A robust
    aggregator bounds that. Clients' rows stay with them: `Served`
    has one, to know its shape by.

    Args:
      algo: any synchronous algorithm.
      key: of the run; as in a simulation it draws the cohorts and the server's noise. Where that
        noise is to protect clients from one another, none of them may have this key: give `node`
        another one.
      params: the model to begin with.
      num_clients: `N`, clients with ids ``0 .. N - 1``.

    Returns:
      `FederatedServer`.

    Raises:
      TypeError, ValueError: as `fedjax_lite.deploy.one_client`.

    Example:
      >>> import optax, fedjax_lite as fl
      >>> algo = fl.fedavg(lambda w, e, key: 0.5 * (w - e["b"]) ** 2, optax.sgd(0.5),
      ...                  plan=fl.Plan(batch_size=1), sampler=fl.everyone())
      >>> hub = server(algo, jax.random.key(0), jnp.float32(0), num_clients=2)
      >>> served = hub.init(ToldSizes(jnp.array([1, 1])))
      >>> sorted(hub.requests(served))
      [0, 1]
    """
    check_key(key)
    check_params(params)
    trees.check_floating(params, "params")
    check_count(num_clients, "num_clients", minimum=1)
    wires = without_data(deployed(algo))
    assert algo.sample is not None
    draw = algo.sample
    prologue = wires.prologue
    first_client = None if prologue is None else prologue.client

    @jax.jit
    def merged(
        key: Key, state: RoundState, told: ToldSizes, trained: Arrived, rehearsed: Arrived | None
    ) -> tuple[RoundState, dict[str, Array]]:
        strategy = received(trained, rehearsed, first_client)
        return next_state(_attended(wires, strategy, rehearsed), key, state, told, None)

    @jax.jit
    def begun(
        key: Key, state: RoundState, told: ToldSizes, rehearsed: Arrived | None
    ) -> tuple[list[Array], list[Array], Cohort, Any]:
        strategy = wires.strategy
        if rehearsed is not None:
            strategy = received(rehearsed, rehearsed, first_client)
        first = opened(_attended(wires, strategy, rehearsed), key, state, told, None).first
        return travelling(first.broadcast), known_leaves(first.broadcast), first.cohort, first.found

    @jax.jit
    def broadcast_of(server: PyTree) -> tuple[list[Array], list[Array]]:
        sent = wires.server.broadcast(server)
        return travelling(sent), known_leaves(sent)

    def init(told: ToldSizes) -> Served:
        state = first_state(wires, key, params, told)
        none = jnp.zeros(num_clients, jnp.int32)
        run = jnp.asarray(np.frombuffer(secrets.token_bytes(16), np.uint8))
        return Served(state, told, none + NEVER, none.astype(jnp.uint32), run)

    def cohort_of(served: Served) -> Cohort:
        state = served.state
        with in_population(num_clients):
            return draw(key, state.round, state.sampler, served.told.sizes)[1]

    def allowed(served: Served) -> RoundState:
        """The state, if a budget of privacy has room for another round."""
        if wires.privacy is None:
            return served.state
        return check_private(wires.privacy, served.state, served.told, None)

    def rehearsal(served: Served) -> dict[int, bytes]:
        sent, known = broadcast_of(served.state.server)
        asked = members(cohort_of(served), num_clients)
        return {i: encode("rehearse", *request_to(served, i, sent, known)) for i in asked}

    def arrived(served: Served, rehearsed: Mapping[int, bytes]) -> tuple[Any, list[Refusal]]:
        """The replies to a prologue's requests."""
        if prologue is None:
            return None, []
        cohort, state = cohort_of(served), served.state
        with in_population(num_clients):
            template = reply_template(
                prologue_program(prologue), wires.server.broadcast(state.server), Table((), ())
            )
        asked = tuple(members(cohort, num_clients))
        expected = Expected(run_name(served), int(state.round), asked, template, "rehearsed")
        taken, refusals = read_replies(rehearsed, expected)
        return stacked(taken, np.asarray(cohort.ids).tolist(), template), refusals

    def requests(served: Served, rehearsed: Mapping[int, bytes] = _NOBODY) -> dict[int, bytes]:
        allowed(served)  # before anybody trains
        came, _ = arrived(served, rehearsed)
        with in_population(num_clients):
            sent, known, cohort, found = begun(key, served.state, served.told, came)
        ids, mask = np.asarray(cohort.ids), np.asarray(cohort.mask)
        slots = {int(ids[slot]): int(slot) for slot in np.flatnonzero(mask)}
        return {
            i: encode(
                "train",
                *request_to(
                    *(served, i, sent, known),
                    jax.tree.map(lambda leaf, i=i: leaf[slots[i]], found),
                ),
            )
            for i in members(cohort, num_clients)
        }

    def merge(
        served: Served, replies: Mapping[int, bytes], rehearsed: Mapping[int, bytes] = _NOBODY
    ) -> Merged:
        state, told = allowed(served), served.told
        came, refused = arrived(served, rehearsed)
        with in_population(num_clients):
            _, known, cohort, _ = begun(key, state, told, came)
            template = reply_template(
                wires.program,
                template_broadcast(wires, state, key, told),
                Table(state.clients, state.uplink),
                found_shape(wires, state, key, told),
            )
        asked = members(cohort, num_clients)
        expected = Expected(
            *(run_name(served), int(state.round), tuple(asked), template),
            weighed=wires.program.weighed,
        )
        taken, refusals = read_replies(replies, expected)
        trained = stacked(taken, np.asarray(cohort.ids).tolist(), template)
        with in_population(num_clients):
            new, metrics = merged(key, state, told, trained, came)
        after = served._replace(state=new, **commits(served, asked, sorted(taken), known))
        if came is not None:  # who missed the prologue was asked, too
            there = np.asarray(came.came)
            drawn = cohort_of(served)
            asked += members(drawn._replace(mask=drawn.mask & ~there), num_clients)
        return Merged(after, metrics, [*refused, *refusals], asked, sorted(taken))

    def round(served: Served, exchange: Exchange) -> Merged:
        rehearsed = {} if prologue is None else exchange(rehearsal(served))
        return merge(served, exchange(requests(served, rehearsed)), rehearsed)

    def skip(served: Served) -> Merged:
        return merge(served, _NOBODY)

    def told(replies: Mapping[int, bytes]) -> ToldSizes:
        return read_sizes(replies, num_clients, splits_of(wires))

    def hello() -> bytes:
        return encode("sizes?", {"num_clients": num_clients})

    return FederatedServer(
        *(hello, told, init, None if prologue is None else rehearsal, requests, merge, round),
        *(skip, num_clients, algo.accountant),
    )


def _attended(wires: Wired, strategy: Strategy, rehearsed: Arrived | None) -> Wired:
    """The slots of a round whose clients have trained; who missed the prologue is not there."""
    if rehearsed is None:
        return wires._replace(strategy=strategy)
    return wires._replace(strategy=strategy, sampler=present(wires.sampler, rehearsed.came))
