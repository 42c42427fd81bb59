"""federate(): the host loop of a federation: ask, wait, merge, write down."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, Literal, NamedTuple

import jax
import jax.numpy as jnp

from fedjax_lite.checks.arguments import as_path, check_count, shown
from fedjax_lite.crypto.secagg.messages import SecAggAbort
from fedjax_lite.deploy.exchange import Exchange
from fedjax_lite.deploy.rounds import Merged, Served
from fedjax_lite.deploy.secure_server import SecureServer
from fedjax_lite.deploy.server import FederatedServer
from fedjax_lite.run import checkpoint
from fedjax_lite.run.folder_lock import FolderLock
from fedjax_lite.run.history import History, Row, parse_rows

CHECKPOINTS, ROWS = "checkpoints", "metrics.jsonl"


class FederationAborted(RuntimeError):
    """A round could not be finished as was asked for; the state before it is saved."""


class Federated(NamedTuple):
    """What a federation ended with."""

    served: Served
    """``served.state.server.params`` is the model."""
    rows: list[Row]
    """A row a round: metrics, clients asked, counted and refused, bytes down and up."""


def federate(
    hub: FederatedServer | SecureServer,
    exchange: Exchange,
    *,
    num_rounds: int,
    folder: str | os.PathLike[str] | None = None,
    min_clients: int = 1,
    on_refusal: Literal["drop", "abort"] = "drop",
    evaluate: Callable[[Any], dict[str, Any]] | None = None,
) -> Federated:
    """Runs a federation over an exchange, and resumes one that was interrupted.

    Before the first round all clients are asked for their sizes, and all must answer. Who does not
    answer in a round dropped out of it, as a client that the simulation's mask leaves out. With a
    folder the state is saved after every round (``checkpoints/``, of which a client's own file is
    never more than a round ahead) and rows are written to ``metrics.jsonl``; a server that was
    killed goes on from there, and repeats the round that it did not finish: clients answer as
    before.

    Args:
      hub: `fedjax_lite.deploy.server` or `fedjax_lite.deploy.secure_server`.
      exchange: carries requests and replies; any transport.
      num_rounds: rounds in all, those done before included.
      folder: of the run; made where it does not exist.
      min_clients: fewer replies that count abort the round, where so many were asked. (Poisson
        sampling may draw fewer clients than that, or nobody, and the round is done.)
      on_refusal: what a reply that is refused (damaged, stale, foreign, not finite) does: "drop"
        leaves its client out of the round, "abort" ends the run with the reasons.
      evaluate: ``(state) -> scores`` after each round, joined to its row.

    Returns:
      `Federated`.

    Raises:
      FederationAborted: as configured, or where secure aggregation gave a round up; all rounds
        before it are saved.
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
    check_count(min_clients, "min_clients", minimum=1)
    if on_refusal not in ("drop", "abort"):
        raise ValueError(f'on_refusal must be "drop" or "abort", got {on_refusal!r}')
    place = None if folder is None else as_path(folder, "folder")
    with contextlib.ExitStack() as stack:
        if place is not None:
            place.mkdir(parents=True, exist_ok=True)
            stack.enter_context(FolderLock(place))
        served, rows = _begin(hub, exchange, place)
        history = History(place, rows=rows, resumed=bool(rows))
        stack.callback(history.close)
        while int(served.state.round) < num_rounds:
            traffic = Traffic(exchange)
            try:
                merged = hub.round(served, traffic)
            except SecAggAbort as error:
                raise FederationAborted(
                    f"round {int(served.state.round)}: {error}; start it again when they are back"
                ) from error
            _check(merged, int(served.state.round), min_clients, on_refusal)
            served = merged.served
            history.append([_row(hub, merged, traffic, evaluate)])
            _save(place, served, history)
    return Federated(served, history.rows)


class Traffic:
    """An exchange that counts the bytes which it carries."""

    def __init__(self, exchange: Exchange) -> None:
        self._exchange = exchange
        self.down, self.up = 0, 0

    def __call__(self, requests: Mapping[int, bytes]) -> Mapping[int, bytes]:
        """Asks, and counts."""
        replies = self._exchange(requests)
        self.down += sum(map(len, requests.values()))
        self.up += sum(map(len, replies.values()))
        return replies


def _begin(
    hub: FederatedServer | SecureServer, exchange: Exchange, place: Path | None
) -> tuple[Served, list[Row]]:
    """The newest checkpoint, or the state before the first round, of sizes that clients tell."""
    if place is not None and checkpoint.steps(place / CHECKPOINTS):
        template = hub.init(hub.told({}))
        loaded = checkpoint.load(place / CHECKPOINTS, template)
        return loaded.state, parse_rows(loaded.texts[ROWS], place / ROWS)
    greetings = exchange(dict.fromkeys(range(hub.num_clients), hub.hello()))
    if missing := sorted({*range(hub.num_clients)} - {*greetings}):
        raise FederationAborted(
            f"clients {missing!r:.80} of {hub.num_clients} did not tell their sizes; start again "
            "when they are there, or give the server fewer: num_clients"
        )
    served = hub.init(hub.told(greetings))
    if place is not None:  # so that the run keeps its name, which clients' rows lie under
        checkpoint.save(place / CHECKPOINTS, served, step=0, texts={ROWS: ""})
    return served, []


def _check(merged: Merged, round: int, min_clients: int, on_refusal: str) -> None:
    reasons = "; ".join(why for _, why in merged.refusals)
    if merged.refusals and on_refusal == "abort":
        raise FederationAborted(
            f"round {round}: {reasons}; on_refusal='drop' leaves such clients out of a round"
        )
    if len(merged.counted) < min(min_clients, len({*merged.asked})):
        raise FederationAborted(
            f"round {round}: {len(merged.counted)} of {len(merged.asked)} clients replied as asked,"
            f" min_clients is {min_clients}{reasons and '; '}{reasons}; start it again when they "
            "are back"
        )
    params = getattr(merged.served.state.server, "params", ())
    if not all(bool(jnp.isfinite(leaf).all()) for leaf in jax.tree.leaves(params)):
        raise FederationAborted(
            f"round {round}: the model is not finite after the replies of clients "
            f"{merged.counted!r:.200}, which all are: values or weights too large; a robust "
            "aggregator, such as fl.median(), bounds what one client can do"
        )


def _row(
    hub: FederatedServer | SecureServer,
    merged: Merged,
    traffic: Traffic,
    evaluate: Callable[[Any], dict[str, Any]] | None,
) -> Row:
    state = merged.served.state
    row: Row = {
        "round": int(state.round),
        **{name: value.item() for name, value in jax.device_get(merged.metrics).items()},
        "asked": len(merged.asked),
        "refused": len(merged.refusals),
        "bytes_down": traffic.down,
        "bytes_up": traffic.up,
    }
    if merged.refusals:
        row["refusals"] = [why for _, why in merged.refusals]
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
