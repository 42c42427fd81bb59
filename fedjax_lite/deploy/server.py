"""server(): the server of an algorithm as functions of bytes, whatever carries them."""

from __future__ import annotations

import secrets
from collections.abc import Callable, Mapping
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from fedjax_lite import trees
from fedjax_lite.aggregation.conditions import in_population
from fedjax_lite.checks.arguments import check_count, check_key, check_params
from fedjax_lite.deploy.packets import digest, encode
from fedjax_lite.deploy.parts import ToldSizes, deployed, first_state, known_leaves
from fedjax_lite.deploy.replies import (
    Expected,
    Refusal,
    read_replies,
    read_sizes,
    received,
    reply_template,
)
from fedjax_lite.round.downlink import travelling
from fedjax_lite.round.next_state import next_state
from fedjax_lite.round.private_runs import check_private
from fedjax_lite.types import Accountant, Array, FederatedAlgorithm, Key, Params, PyTree, RoundState

NEVER = -1


class Served(NamedTuple):
    """The state of a federation's server, one immutable pytree; a checkpoint is this."""

    state: RoundState
    """As in a simulation, but for the clients' rows, which lie with them."""
    told: ToldSizes
    committed: Array
    """int32 `[N]`: the last round in which each client's reply counted; -1: none. Clients are told,
    so that one whose reply was lost goes on from where it was before."""
    holds: Array
    """uint32 `[N]`: which constants of the broadcast each client was sent, a word of their digest;
    0: none."""
    run: Array
    """uint8 `[16]`: names the run; replies of another one are refused."""


class Merged(NamedTuple):
    """What came of a round."""

    served: Served
    metrics: dict[str, Array]
    refusals: list[Refusal]
    asked: list[int]
    """Who was asked, by id."""
    counted: list[int]
    """Whose reply was merged."""


class FederatedServer(NamedTuple):
    """The server of a federation: functions of bytes."""

    hello: Callable[[], bytes]
    """``() -> request`` that asks a client for its sizes."""
    told: Callable[[Mapping[int, bytes]], ToldSizes]
    """``(replies by id) -> sizes``; clients that did not reply have none and are never drawn by
    size."""
    init: Callable[[ToldSizes], Served]
    """``(sizes) -> served``."""
    requests: Callable[[Served], dict[int, bytes]]
    """``(served) ->`` the next round's requests, by client id."""
    merge: Callable[[Served, Mapping[int, bytes]], Merged]
    """``(served, replies by id) -> merged``: one round further; who is absent dropped out."""
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
    is refused by name, and its client did not take part. Clients' rows stay with them: `Served`
    has one, to know its shape by.

    Args:
      algo: any synchronous algorithm that asks its clients once a round.
      key: of the run; as in a simulation it draws the cohorts and the server's noise.
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
    wires = deployed(algo)
    client = wires.program.client._replace(counts=None)  # sizes are told as they count
    wires = wires._replace(program=wires.program._replace(client=client))
    assert algo.sample is not None
    draw = algo.sample

    @jax.jit
    def merged(
        key: Key, state: RoundState, told: ToldSizes, replies: PyTree, came: Array
    ) -> tuple[RoundState, dict[str, Array]]:
        with_replies = wires._replace(strategy=received(replies, came))
        return next_state(with_replies, key, state, told, None)

    @jax.jit
    def broadcast_of(server: PyTree) -> tuple[list[Array], list[Array]]:
        sent = wires.server.broadcast(server)
        return travelling(sent), known_leaves(sent)

    def init(told: ToldSizes) -> Served:
        state = first_state(wires, key, params, told)
        none = jnp.zeros(num_clients, jnp.int32)
        run = jnp.asarray(np.frombuffer(secrets.token_bytes(16), np.uint8))
        return Served(state, told, none + NEVER, none.astype(jnp.uint32), run)

    def cohort_of(served: Served) -> list[int]:
        state = served.state
        with in_population(num_clients):
            _, cohort = draw(key, state.round, state.sampler, served.told.sizes)
        ids, mask = np.asarray(cohort.ids), np.asarray(cohort.mask)
        return [int(i) for i, here in zip(ids, mask, strict=True) if here and 0 <= i < num_clients]

    def requests(served: Served) -> dict[int, bytes]:
        sent, known = broadcast_of(served.state.server)
        name = digest(known)
        committed, holds = np.asarray(served.committed), np.asarray(served.holds)

        def request(client: int) -> bytes:
            fields = {
                "client": client,
                "run": run_name(served),
                "round": int(served.state.round),
                "known": name,
                "committed": int(committed[client]),
                "num_clients": num_clients,
            }
            held = not known or holds[client] == _word(name)
            return encode(
                "train", fields, {"sent": sent} if held else {"sent": sent, "known": known}
            )

        return {i: request(i) for i in cohort_of(served)}

    def merge(served: Served, replies: Mapping[int, bytes]) -> Merged:
        state, told = served.state, served.told
        asked = cohort_of(served)
        with in_population(num_clients):
            template = reply_template(wires, state)
        expected = Expected(run_name(served), int(state.round), tuple(asked), template)
        taken, refusals = read_replies(replies, expected)
        _, cohort = draw(key, state.round, state.sampler, told.sizes)
        slots = np.asarray(cohort.ids).tolist()
        blank = jax.tree.map(lambda leaf: np.zeros(leaf.shape, leaf.dtype), template)
        stacked = jax.tree.map(
            lambda *leaves: jnp.stack(leaves), *(taken.get(i, blank) for i in slots)
        )
        came = jnp.array([i in taken for i in slots])
        if wires.privacy is not None:
            state = check_private(wires.privacy, state, told, None)
        with in_population(num_clients):
            new, metrics = merged(key, state, told, stacked, came)
        nobody = np.zeros(num_clients, bool)
        counted, others = nobody.copy(), nobody.copy()
        counted[sorted(taken)], others[sorted(set(asked) - set(taken))] = True, True
        # Who did not reply as asked may have lost the constants.
        holds = jnp.where(others, 0, served.holds)
        _, known = broadcast_of(served.state.server)
        after = served._replace(
            state=new,
            committed=jnp.where(counted, served.state.round, served.committed),
            holds=jnp.where(counted, _word(digest(known)), holds),
        )
        return Merged(after, metrics, refusals, asked, sorted(taken))

    def told(replies: Mapping[int, bytes]) -> ToldSizes:
        return read_sizes(replies, num_clients, {p.data for p in wires.phases if p.data})

    def hello() -> bytes:
        return encode("sizes?", {"num_clients": num_clients})

    return FederatedServer(hello, told, init, requests, merge, num_clients, algo.accountant)


def _word(name: str) -> np.uint32:
    """A word of a digest that is never 0."""
    return np.uint32(int(name[:8], 16) | 1)


def run_name(served: Served) -> str:
    """The name of a run, which its requests and replies carry."""
    return np.asarray(served.run).tobytes().hex()
