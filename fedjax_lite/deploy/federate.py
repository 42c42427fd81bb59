"""federate(): the host loop of a federation: ask, wait, merge, write down."""

from __future__ import annotations

import contextlib
import os
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, Literal, NamedTuple

import jax
import jax.numpy as jnp

from fedjax_lite.checks.arguments import as_path, check_count, shown
from fedjax_lite.deploy.exchange import Exchange
from fedjax_lite.deploy.rounds import Merged, Served
from fedjax_lite.deploy.secure_server import SecureServer
from fedjax_lite.deploy.server import FederatedServer
from fedjax_lite.deploy.tries import (
    FederationAborted,
    Limits,
    Traffic,
    Tried,
    check_limits,
    tried_round,
)
from fedjax_lite.run import checkpoint
from fedjax_lite.run.folder_lock import FolderLock
from fedjax_lite.run.history import History, Row, parse_rows

CHECKPOINTS, ROWS = "checkpoints", "metrics.jsonl"


class Federated(NamedTuple):
    """What a federation ended with."""

    served: Served
    """``served.state.server.params`` is the model."""
    rows: list[Row]
    """A row a round: metrics, clients asked, counted and refused, tries, bytes down and up."""


def federate(
    hub: FederatedServer | SecureServer,
    exchange: Exchange,
    *,
    num_rounds: int,
    folder: str | os.PathLike[str] | None = None,
    min_clients: int = 1,
    on_refusal: Literal["drop", "abort"] = "drop",
    retries: int = 0,
    patience: float = 0.0,
    when_given_up: Literal["abort", "skip"] = "abort",
    evaluate: Callable[[Any], dict[str, Any]] | None = None,
) -> Federated:
    """Runs a federation over an exchange, and resumes one that was interrupted.

    Before the first round all clients are asked for their sizes, and all must answer. Who does not
    answer in a round dropped out of it, as a client that the simulation's mask leaves out. With a
    folder the state is saved after every round (``checkpoints/``, of which a client's own file is
    never more than a round ahead) and rows are written to ``metrics.jsonl``; a server that was
    killed goes on from there, and repeats the round that it did not finish: clients answer as
    before.

    A round is given up where fewer than `min_clients` replied as asked, or where secure aggregation
    ended it. Before that it is tried again, `retries` times: the same cohort, the same requests, to
    the same numbers. Whose reply has come is not asked again; under secure aggregation all are,
    under new keys (what clients reveal then: `fedjax_lite.deploy.secure_server`).

    Args:
      hub: `fedjax_lite.deploy.server` or `fedjax_lite.deploy.secure_server`.
      exchange: carries requests and replies; any transport.
      num_rounds: rounds in all, those done before included.
      folder: of the run; made where it does not exist.
      min_clients: a round with fewer replies that count is given up, where so many were asked.
        (Poisson sampling may draw fewer clients than that, or nobody, and the round is done.)
      on_refusal: what a reply that is refused (damaged, stale, foreign, not finite) does: "drop"
        leaves its client out of the round, "abort" ends the run with the reasons, at once.
      retries: how often a round is asked for again before it is given up, and before the first
        round the sizes that are missing.
      patience: seconds between two tries.
      when_given_up: "abort" ends the run, and says who was missing; "skip" goes on with the next
        round, as the simulation does after one in which nobody of the cohort was there (its row
        says why: ``given_up``).
      evaluate: ``(state) -> scores`` after each round, joined to its row.

    Returns:
      `Federated`.

    Raises:
      RoundGivenUp: a `FederationAborted` with ``round``, ``tries`` and ``missing`` clients; all
        rounds before it are saved, and a server that is started again goes on with this one.
      FederationAborted: if a reply was refused and none may be, if not all clients told their
        sizes, or if the model is not finite any more.
      ValueError: if a budget of privacy is spent.

    Example:
      >>> import optax, tempfile, fedjax_lite as fl
      >>> from jax import numpy as jnp
      >>> algo = fl.fedavg(lambda w, e, key: 0.5 * (w - e["b"]) ** 2, optax.sgd(1.0),
      ...                  plan=fl.Plan(batch_size=1), sampler=fl.everyone())
      >>> key, start = jax.random.key(0), jnp.float32(0)
      >>> with tempfile.TemporaryDirectory() as folder:
      ...     clients = {i: fl.deploy.node(algo, key, start, {"b": jnp.full(2, float(i))},
      ...                                  client_id=i, folder=folder) for i in range(3)}
      ...     hub = fl.deploy.server(algo, key, start, num_clients=3)
      ...     done = federate(hub, fl.deploy.in_process(clients), num_rounds=1)
      >>> float(done.served.state.server.params), done.rows[0]["num_clients"]
      (1.0, 3)
    """
    if not isinstance(hub, FederatedServer | SecureServer):
        raise TypeError(f"hub must be fl.deploy.server(...), got {shown(hub)}")
    check_count(num_rounds, "num_rounds", minimum=0)
    limits = check_limits(Limits(min_clients, on_refusal, retries, patience, when_given_up))
    place = None if folder is None else as_path(folder, "folder")
    with contextlib.ExitStack() as stack:
        if place is not None:
            place.mkdir(parents=True, exist_ok=True)
            stack.enter_context(FolderLock(place))
        served, rows = _begin(hub, exchange, place, limits)
        history = History(place, rows=rows, resumed=bool(rows))
        stack.callback(history.close)
        while int(served.state.round) < num_rounds:
            traffic = Traffic(exchange)
            tried = tried_round(hub, served, traffic, limits)
            _check_finite(tried.merged, int(served.state.round))
            served = tried.merged.served
            history.append([_row(hub, tried, traffic, evaluate)])
            _save(place, served, history)
    return Federated(served, history.rows)


def _begin(
    hub: FederatedServer | SecureServer, exchange: Exchange, place: Path | None, limits: Limits
) -> tuple[Served, list[Row]]:
    """The newest checkpoint, or the state before the first round, of sizes that clients tell."""
    if place is not None and checkpoint.steps(place / CHECKPOINTS):
        template = hub.init(hub.told({}))
        loaded = checkpoint.load(place / CHECKPOINTS, template)
        return loaded.state, parse_rows(loaded.texts[ROWS], place / ROWS)
    missing, greetings = [*range(hub.num_clients)], {}
    for turn in range(1 + limits.retries):
        if turn:
            time.sleep(limits.patience)
        greetings |= exchange(dict.fromkeys(missing, hub.hello()))
        if not (missing := sorted({*range(hub.num_clients)} - {*greetings})):
            break
    if missing:
        raise FederationAborted(
            f"clients {missing!r:.80} of {hub.num_clients} did not tell their sizes; start again "
            "when they are there, or give the server fewer: num_clients"
        )
    served = hub.init(hub.told(greetings))
    if place is not None:  # so that the run keeps its name, which clients' rows lie under
        checkpoint.save(place / CHECKPOINTS, served, step=0, texts={ROWS: ""})
    return served, []


def _check_finite(merged: Merged, round: int) -> None:
    params = getattr(merged.served.state.server, "params", ())
    if not all(bool(jnp.isfinite(leaf).all()) for leaf in jax.tree.leaves(params)):
        raise FederationAborted(
            f"round {round}: the model is not finite after the replies of clients "
            f"{merged.counted!r:.200}, which all are: values or weights too large; a robust "
            "aggregator, such as fl.median(), bounds what one client can do"
        )


def _row(
    hub: FederatedServer | SecureServer,
    tried: Tried,
    traffic: Traffic,
    evaluate: Callable[[Any], dict[str, Any]] | None,
) -> Row:
    merged = tried.merged
    state = merged.served.state
    row: Row = {
        "round": int(state.round),
        **{name: value.item() for name, value in jax.device_get(merged.metrics).items()},
        "asked": len(merged.asked),
        "refused": len(merged.refusals),
        "tries": tried.tries,
        "bytes_down": traffic.down,
        "bytes_up": traffic.up,
    }
    if merged.refusals:
        row["refusals"] = [why for _, why in merged.refusals]
    if tried.given_up is not None:
        row["given_up"] = tried.given_up
    if hub.accountant is not None:
        row |= hub.accountant.spent(state)
    if evaluate is not None:
        row |= {name: float(value) for name, value in evaluate(state).items()}
    return row


def _save(place: Path | None, served: Served, history: History) -> None:
    if place is not None:
        history.sync()
        texts = {ROWS: history.text()}
        checkpoint.save(place / CHECKPOINTS, served, step=int(served.state.round), texts=texts)
