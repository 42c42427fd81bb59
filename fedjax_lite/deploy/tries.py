"""Tries of one round: it is asked for again, of the same cohort, before it is given up."""

from __future__ import annotations

import hashlib
import time
from collections.abc import Mapping
from typing import Literal, NamedTuple

from fedjax_lite.checks.arguments import check_count, check_finite, check_non_negative
from fedjax_lite.deploy.exchange import Exchange
from fedjax_lite.deploy.replies import Refusal
from fedjax_lite.deploy.rounds import Merged, Served
from fedjax_lite.deploy.secure_phases import SumAborted
from fedjax_lite.deploy.secure_server import SecureServer
from fedjax_lite.deploy.server import FederatedServer


class FederationAborted(RuntimeError):
    """A round could not be finished as was asked for; the state before it is saved."""


class RoundGivenUp(FederationAborted):
    """Too few clients were there, as often as they were asked."""

    def __init__(self, why: str, *, round: int, tries: int, missing: list[int]) -> None:
        often = "1 try" if tries == 1 else f"{tries} tries"
        who, then = "no client was missing", ""
        if missing:
            who = f"clients {missing!r:.200} were missing"
            then = " when they are back"
        super().__init__(
            f"round {round}: {why}; given up after {often}, {who}: start it again{then}, and it "
            "goes on with this round, or ask for it more often: retries=, patience="
        )
        self.round, self.tries, self.missing = round, tries, missing


class Limits(NamedTuple):
    """When a round is done, and what becomes of one that is not; arguments of `federate`."""

    min_clients: int = 1
    on_refusal: Literal["drop", "abort"] = "drop"
    retries: int = 0
    patience: float = 0.0
    when_given_up: Literal["abort", "skip"] = "abort"


class Tried(NamedTuple):
    """What came of a round, and of how many tries."""

    merged: Merged
    """Refusals are those of all tries."""
    tries: int
    given_up: str | None
    """Why the round was skipped; None: it was not."""


def check_limits(limits: Limits) -> Limits:
    """The same limits, if they make sense.

    Raises:
      TypeError, ValueError: that name the argument.

    Example:
      >>> check_limits(Limits(retries=2)).retries
      2
    """
    check_count(limits.min_clients, "min_clients", minimum=1)
    if limits.on_refusal not in ("drop", "abort"):
        raise ValueError(f'on_refusal must be "drop" or "abort", got {limits.on_refusal!r}')
    check_count(limits.retries, "retries", minimum=0)
    check_finite(limits.patience, "patience")
    check_non_negative(limits.patience, "patience")
    if limits.when_given_up not in ("abort", "skip"):
        raise ValueError(f'when_given_up must be "abort" or "skip", got {limits.when_given_up!r}')
    return limits


class Traffic:
    """The exchange of one round: it counts bytes, and asks nobody twice for what it has.

    A client that is asked for the same again has its reply of before. One that is asked for
    something else is asked, and its earlier reply is forgotten: its row is that of the last
    request, and a reply that counts must be, too.

    Args:
      exchange: carries bytes.
    """

    def __init__(self, exchange: Exchange) -> None:
        self._exchange = exchange
        self._kept: dict[int, tuple[bytes, bytes]] = {}  # what was asked, and the reply
        self.down, self.up = 0, 0

    def __call__(self, requests: Mapping[int, bytes]) -> Mapping[int, bytes]:
        """Asks, and counts."""
        names = {client: hashlib.sha256(request).digest() for client, request in requests.items()}
        known = {
            i: self._kept[i] for i in names if i in self._kept and self._kept[i][0] == names[i]
        }
        asked = {client: request for client, request in requests.items() if client not in known}
        for client in asked:
            self._kept.pop(client, None)
        replies = self._exchange(asked)
        self.down += sum(map(len, asked.values()))
        self.up += sum(map(len, replies.values()))
        self._kept |= {i: (names[i], reply) for i, reply in replies.items() if i in asked}
        return {**replies, **{client: reply for client, (_, reply) in known.items()}}

    def forget(self, clients: list[int]) -> None:
        """Has no reply of these clients: what they sent was refused, so they are asked again."""
        for client in clients:
            self._kept.pop(client, None)


def tried_round(
    hub: FederatedServer | SecureServer, served: Served, traffic: Traffic, limits: Limits
) -> Tried:
    """One round, asked for as often as the limits say.

    A try changes nothing: the next one begins with the same state, so it draws the same cohort and
    sends the same requests; clients go on from the row before the round.

    Args:
      hub: of the federation.
      served: before the round.
      traffic: of this round.
      limits: when it is done.

    Raises:
      RoundGivenUp: if all tries were in vain, and the round is not to be skipped.
      FederationAborted: if a reply was refused, and none may be.
    """
    round, tries = int(served.state.round), 0
    refusals: list[Refusal] = []
    while True:
        tries += 1
        why, missing, refused, merged = _one_try(hub, served, traffic, limits.min_clients)
        refusals += refused
        if refusals and limits.on_refusal == "abort":
            raise FederationAborted(
                f"round {round}: {_reasons(refusals)}; on_refusal='drop' leaves such clients out of"
                " a round"
            )
        if why is None:
            assert merged is not None
            return Tried(merged._replace(refusals=refusals), tries, None)
        if tries > limits.retries:
            break
        traffic.forget([refusal.client for refusal in refused])
        time.sleep(limits.patience)
    given_up = RoundGivenUp(why, round=round, tries=tries, missing=missing)
    if limits.when_given_up == "abort":
        raise given_up
    return Tried(hub.skip(served)._replace(refusals=refusals), tries, str(given_up))


def _one_try(
    hub: FederatedServer | SecureServer, served: Served, traffic: Traffic, min_clients: int
) -> tuple[str | None, list[int], list[Refusal], Merged | None]:
    """Why a try was in vain, None if it was not; who was missing, who was refused, what came."""
    try:
        merged = hub.round(served, traffic)
    except SumAborted as error:
        return str(error), error.missing, error.refusals, None
    refused = merged.refusals
    asked, counted = {*merged.asked}, {*merged.counted}
    if len(counted) >= min(min_clients, len(asked)):
        return None, [], refused, merged
    reasons = _reasons(refused)
    why = f"{len(counted)} of {len(asked)} clients replied as asked, min_clients is {min_clients}"
    return f"{why}{reasons and '; '}{reasons}", sorted(asked - counted), refused, None


def _reasons(refusals: list[Refusal]) -> str:
    return "; ".join(why for _, why in refusals)
