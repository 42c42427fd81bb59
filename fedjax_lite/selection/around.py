"""Algorithms taken apart and put together again: the same training behind a first pass."""

from __future__ import annotations

from typing import Any

from fedjax_lite.checks.arguments import shown
from fedjax_lite.checks.made import made, maker_of, signed
from fedjax_lite.engine.phases import Step, around
from fedjax_lite.engine.prologue import Prefaced
from fedjax_lite.types import (
    Aggregator,
    Batch,
    ClientInfo,
    ClientUpdate,
    Cohort,
    FederatedAlgorithm,
    Key,
    Message,
    PyTree,
    ServerUpdate,
    Slots,
)


def slots_of(algo: Any, name: str) -> Slots:
    """The slots of an algorithm that has no first pass yet and is not private.

    Args:
      algo: what the caller gave.
      name: of the function that asks.

    Raises:
      TypeError: if it is no algorithm that was wired from slots.
      ValueError: if it has a prologue or a privacy mechanism.

    Example:
      >>> slots_of(3, "power_of_choice")
      Traceback (most recent call last):
      ...
      TypeError: algo must be an algorithm that federated_algorithm wired, such as fl.fedavg(...), \
got 3; power_of_choice needs its slots
    """
    if not isinstance(algo, FederatedAlgorithm) or algo.slots is None:
        raise TypeError(
            "algo must be an algorithm that federated_algorithm wired, such as fl.fedavg(...), "
            f"got {shown(algo)}; {name} needs its slots"
        )
    if algo.slots.privacy is not None:
        raise ValueError(
            f"algo of {name} must not be private, got {algo.slots.privacy.made}: whom it chooses "
            "depends on their data; leave privacy out"
        )
    if algo.slots.prologue is not None:
        raise ValueError(
            f"algo of {name} must have no first pass of its own, got {algo.made}; there is room "
            "for one"
        )
    return algo.slots


def need_mean(slots: Slots, name: str) -> None:
    """Raises ValueError where messages are not simply averaged: an estimator replaces that.

    Example:
      >>> import optax, fedjax_lite as fl
      >>> algo = fl.fedavg(lambda w, e, key: w * e["x"], optax.sgd(0.1), plan=fl.Plan(1),
      ...                  sampler=fl.everyone())
      >>> need_mean(algo.slots, "unbiased")
    """
    note = maker_of(slots.aggregator)
    if note is None or note.name != "mean" or note.replaced(slots.aggregator):
        raise ValueError(
            f"aggregator of the algorithm that {name} is given must be mean(), got "
            f"{note or 'your own'}: it is replaced by a weighted total; leave it out"
        )


def behind(client: ClientUpdate) -> ClientUpdate:
    """Training that downloads a prologue's aggregate with its broadcast, and ignores it.

    Example:
      >>> import optax
      >>> from fedjax_lite.round.local import local_sgd
      >>> client = behind(local_sgd(lambda w, e, key: w * e, optax.sgd(0.1)))
      >>> float(client.start(None, (), Prefaced(3.0, ()), ClientInfo(0, 1, 1, 0)).params)
      3.0
    """

    def start(key: Key, row: PyTree, broadcast: Prefaced, info: ClientInfo) -> PyTree:
        return client.start(key, row, broadcast.value, info)

    def wrap(inner: Step) -> Step:
        def step(broadcast: Prefaced, carry: PyTree, batch: Batch) -> PyTree:
            return inner(broadcast.value, carry, batch)

        return step

    def finish(broadcast: Prefaced, carry: PyTree) -> tuple[PyTree, Message, dict[str, Any]]:
        return client.finish(broadcast.value, carry)

    new = client._replace(start=start, step=around(client.step, wrap), finish=finish)
    return signed(new, client.made)


def server_behind(server: ServerUpdate) -> ServerUpdate:
    """A server that is given a prologue's aggregate beside the cohort's, and ignores it.

    Example:
      >>> update = lambda key, x, value, cohort, metrics: x - value
      >>> server = server_behind(ServerUpdate(lambda x, all: x, lambda x: x, update))
      >>> server.update(None, 3.0, Prefaced(1.0, 9.0), None, {})
      2.0
    """

    def update(
        key: Key, state: PyTree, value: Prefaced, cohort: Cohort, metrics: dict[str, Any]
    ) -> PyTree:
        return server.update(key, state, value.value, cohort, metrics)

    return signed(server._replace(update=update), server.made)


@made
def silent() -> Aggregator:
    """Of a prologue that clients are chosen by and hear nothing of: its aggregate is ``()``.

    Example:
      >>> silent().finish(None, (), (), None)
      ((), ())
    """
    return Aggregator(
        lambda params: (),
        lambda message, cohort_size: (),
        lambda acc, messages, slots, mask: (),
        lambda key, state, acc, cohort: (state, ()),
    )
