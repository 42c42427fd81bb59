"""secure_server(): the server of an algorithm that learns sums of its clients, and nothing else."""

from __future__ import annotations

import secrets
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from fedjax_lite.aggregation.conditions import in_population
from fedjax_lite.crypto.secagg.messages import SecAggAbort
from fedjax_lite.deploy.exchange import Exchange
from fedjax_lite.deploy.parts import ToldSizes, deployed, known_leaves
from fedjax_lite.deploy.replies import reply_template
from fedjax_lite.deploy.rounds import (
    Merged,
    Served,
    commits,
    members,
    request_to,
    run_name,
    without_data,
)
from fedjax_lite.deploy.secure_client import check_secure
from fedjax_lite.deploy.secure_phases import SumAborted, Talk, sum_of_survivors
from fedjax_lite.deploy.secure_settings import SecureSettings
from fedjax_lite.deploy.secure_sums import (
    Layout,
    check_sums,
    layout_of,
    refilled,
    summed,
    wrong_slots,
)
from fedjax_lite.deploy.server import server
from fedjax_lite.engine.program import Table
from fedjax_lite.round.downlink import travelling
from fedjax_lite.round.next_state import next_state
from fedjax_lite.round.private_runs import check_private
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

UNSEEN = ("secure_clipped",)
"""Metrics that a simulation has, and no server of the protocol."""


class SecureServer(NamedTuple):
    """The server of a federation that aggregates securely."""

    hello: Callable[[], bytes]
    """As of `fedjax_lite.deploy.FederatedServer`."""
    told: Callable[[Mapping[int, bytes]], ToldSizes]
    init: Callable[[ToldSizes], Served]
    round: Callable[[Served, Exchange], Merged]
    """``(served, exchange) -> merged``: the phases of the protocol, an exchange each. Raises
    `SecAggAbort` where they reveal no sum."""
    skip: Callable[[Served], Merged]
    """As of `fedjax_lite.deploy.FederatedServer`."""
    num_clients: int
    accountant: Accountant | None


def secure_server(
    algo: FederatedAlgorithm,
    key: Key,
    params: Params,
    *,
    num_clients: int,
    secure: SecureSettings,
) -> SecureServer:
    """The server of an algorithm under secure aggregation (Bonawitz et al.) with real clients.

        advertise -> share -> mask -> (confirm ->) unmask, each an exchange

    Clients train with the first request, encode what they would send as integers, and send it under
    masks that cancel in the sum. The server puts the sum of the survivors, those whose masked
    vector arrived, in the place of its accumulator; the rest of the round is the simulation's.
    Who does not answer in a phase dropped out before it, as ``drops`` of
    `fedjax_lite.crypto.secure_sum`. A reply that is damaged, of another session or malformed is
    refused by name, and its client dropped out; one that breaks the protocol ends the round.

    What the server learns: the sums, who survived, clients' sizes (told before the first round) and
    how long replies take. It learns no metric of a client: rows have none, and methods whose
    server or sampler reads one are refused.

    A round may be asked for again, by a server that was killed or by ``retries`` of
    `fedjax_lite.deploy.federate`, each time under new keys. Its clients see to it that all tries
    together tell no more than one sum: each sends one vector a round, however often it is asked,
    and who has helped to lift the masks of a sum does so for the same clients only. Since a sum
    takes the threshold, above half of the cohort, no two sums of a round are revealed, though the
    help for the first one come late. (The threshold of a sparse graph is of neighbours: there it
    takes ``2 threshold min_survivors > (degree + 1) C`` of a cohort of `C`, and clients refuse a
    second try where that is not so.)

    Args:
      algo: any synchronous algorithm with ``aggregator=fl.secure_mean(...)``, or with
        `fedjax_lite.privacy.distributed_discrete_gaussian`, whose clients add the noise themselves:
        give their nodes keys that the server has not; or with
        `fedjax_lite.privacy.secure_gaussian`, whose server adds it to the sum: give their nodes
        other keys than the server's.
      key: as of `fedjax_lite.deploy.server`.
      params: the model to begin with.
      num_clients: `N`.
      secure: thresholds; the same on every node.

    Returns:
      A `SecureServer`, for `fedjax_lite.deploy.federate`.

    Raises:
      TypeError, ValueError: as `fedjax_lite.deploy.server`; if the aggregator does not sum
        integers, the server or sampler needs metrics of clients, or the threshold is below what the
        aggregator needs.

    Example:
      >>> import jax, optax, tempfile, fedjax_lite as fl
      >>> algo = fl.fedavg(lambda w, e, key: 0.5 * (w - e["b"]) ** 2, optax.sgd(1.0),
      ...                  plan=fl.Plan(batch_size=1), sampler=fl.everyone(),
      ...                  aggregator=fl.secure_mean(max_abs=4.0, bits=20, exact_zero=True))
      >>> key, start = jax.random.key(0), jnp.float32(0)
      >>> secure = SecureSettings(threshold=2)
      >>> with tempfile.TemporaryDirectory() as folder:
      ...     clients = {i: fl.deploy.node(algo, key, start, {"b": jnp.full(2, float(i))},
      ...                                  client_id=i, folder=folder, secure=secure)
      ...                for i in range(3)}
      ...     hub = secure_server(algo, key, start, num_clients=3, secure=secure)
      ...     done = fl.deploy.federate(hub, fl.deploy.in_process(clients), num_rounds=1)
      >>> round(float(done.served.state.server.params), 4)
      1.0

    Reference: Bonawitz et al., "Practical Secure Aggregation for Privacy-Preserving Machine
    Learning", CCS 2017, ePrint 2017/281.
    """
    check_secure(secure)
    plain = server(algo, key, params, num_clients=num_clients)
    wires = without_data(deployed(algo))
    if wires.prologue is not None:
        raise ValueError(
            f"algo must aggregate once a round to do so securely, got {algo.made}, which has a "
            "prologue; use fl.deploy.server, or a method without one (fl.mimelite, fl.uniform)"
        )
    aggregator = wires.program.aggregator
    check_sums(aggregator, secure)
    assert algo.sample is not None
    draw = algo.sample

    @jax.jit
    def merged(
        key: Key, state: RoundState, told: ToldSizes, total: Array, came: Array
    ) -> tuple[RoundState, dict[str, Array]]:
        return next_state(wires._replace(strategy=summed(total, came)), key, state, told, None)

    @jax.jit
    def broadcast_of(server: PyTree) -> tuple[list[Array], list[Array]]:
        sent = wires.server.broadcast(server)
        return travelling(sent), known_leaves(sent)

    def layout_for(state: RoundState, cohort_size: int) -> Layout:
        with in_population(num_clients):
            row = Table(state.clients, state.uplink)
            template = reply_template(wires.program, wires.server.broadcast(state.server), row)
        return layout_of(aggregator, template["message"], cohort_size)

    def cohort_of(served: Served) -> Cohort:
        with in_population(num_clients):
            return draw(key, served.state.round, served.state.sampler, served.told.sizes)[1]

    def allowed(served: Served) -> RoundState:
        if wires.privacy is None:
            return served.state
        return check_private(wires.privacy, served.state, served.told, None)

    def traced() -> None:
        """Traces a round, so that a method which needs more than a sum is refused at once."""
        ones = jnp.ones(num_clients, jnp.int32)
        splits = {phase.data: ToldSizes(ones) for phase in wires.phases if phase.data}
        served = plain.init(ToldSizes(ones, splits))
        size = cohort_of(served).ids.shape[0]
        total = jnp.zeros(layout_for(served.state, size).length, jnp.uint32)
        with in_population(num_clients):
            given = (allowed(served), served.told, total, jnp.zeros(size, bool))
            jax.eval_shape(merged, key, *given)

    traced()

    def round(served: Served, exchange: Exchange) -> Merged:
        state, cohort = allowed(served), cohort_of(served)  # before anything is revealed
        asked = members(cohort, num_clients)
        slots = np.where(np.asarray(cohort.mask), np.asarray(cohort.ids), -1).tolist()
        _check_threshold(secure, len(asked))
        layout = layout_for(state, len(slots))
        number, run, session = int(state.round), run_name(served), secrets.token_hex(16)
        sent, known = broadcast_of(state.server)
        begin = {}
        for client in asked:
            fields, tree = request_to(served, client, sent, known)
            own = [slot for slot, who in enumerate(slots) if who == client]
            fields |= {**secure.told(), "slots": own, "cohort_size": len(slots)}
            begin[client] = (fields, tree)
        talk = Talk(exchange, run, number, session, num_clients)
        settings = secure.of_round(run, number, session, layout.length)
        try:
            total, survivors = sum_of_survivors(talk, settings, begin, degree=secure.degree)
            came = np.array([i in survivors for i in slots])
            if wrong := wrong_slots(refilled(layout.init(), jnp.asarray(total)), came):
                raise SecAggAbort(
                    f"server: the sum counts slots {wrong} wrongly, of clients "
                    f"{[slots[slot] for slot in wrong]}: somebody sent a wrong vector"
                )
        except SecAggAbort as error:
            refused = "; ".join(refusal.why for refusal in talk.refusals)
            raise SumAborted(
                f"{error}{refused and '; refused: '}{refused}",
                missing=talk.missing,
                refusals=talk.refusals,
            ) from error
        done = finished(served, total, came, sorted(survivors))
        return done._replace(refusals=talk.refusals)

    def finished(served: Served, total: Any, came: Any, counted: list[int]) -> Merged:
        """The rest of a round, with the sum of who came."""
        state, asked = allowed(served), members(cohort_of(served), num_clients)
        _, known = broadcast_of(state.server)
        with in_population(num_clients):
            new, metrics = merged(key, state, served.told, jnp.asarray(total), jnp.asarray(came))
        after = served._replace(state=new, **commits(served, asked, counted, known))
        metrics = {name: value for name, value in metrics.items() if name not in UNSEEN}
        return Merged(after, metrics, [], asked, counted)

    def skip(served: Served) -> Merged:
        size = cohort_of(served).ids.shape[0]
        nothing = jnp.zeros(layout_for(served.state, size).length, jnp.uint32)
        return finished(served, nothing, jnp.zeros(size, bool), [])

    return SecureServer(
        *(plain.hello, plain.told, plain.init, round, skip, num_clients, algo.accountant)
    )


def _check_threshold(secure: SecureSettings, num_asked: int) -> None:
    if secure.degree is None and 2 * secure.threshold <= num_asked:
        raise ValueError(
            f"threshold of secure must be above half of the cohort, got {secure.threshold} of "
            f"{num_asked}; use {num_asked // 2 + 1} on the server and on every node"
        )
