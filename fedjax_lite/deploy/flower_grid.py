"""grid_exchange(): requests and replies over Flower, whose SuperNodes say which client they are."""

from __future__ import annotations

import logging
import os
import time
from collections.abc import Mapping
from typing import Any

from fedjax_lite.checks.arguments import as_path, check_bool, check_positive, shown
from fedjax_lite.deploy.exchange import Exchange
from fedjax_lite.deploy.flower_claims import FILE, MARK, Claims, is_mark

_LOG = logging.getLogger("fedjax_lite")

PACKET, STYPE = "packet", "fedjax_lite.packet"
WHO, ASK = "query.who", "train"
"""Types of messages: who a node is, and a request."""


def flower() -> Any:
    """Flower's package, with what an app needs of it loaded.

    Raises:
      ImportError: that names the extra, where the package is missing.
    """
    try:
        import flwr.app
        import flwr.clientapp
        import flwr.serverapp
    except ImportError as error:
        raise ImportError(
            'Flower apps need the package flwr; pip install "fedjax_lite[flower]"'
        ) from error
    return flwr


def packed(data: bytes) -> Any:
    """A packet as the content of a Flower message. As an array it may be of any length."""
    app = flower().app
    array = app.Array(dtype="uint8", shape=(len(data),), stype=STYPE, data=data)
    return app.RecordDict({PACKET: app.ArrayRecord({PACKET: array})})


def unpacked(message: Any) -> bytes | None:
    """The packet in a Flower message, None where there is none."""
    record = message.content.get(PACKET) if message.has_content() else None
    array = record.get(PACKET) if record is not None else None
    return array.data if array is not None and getattr(array, "stype", "") == STYPE else None


def grid_exchange(
    grid: Any,
    *,
    timeout: float,
    poll: float = 0.5,
    bind: bool = True,
    folder: str | os.PathLike[str] | None = None,
) -> Exchange:
    """An exchange over Flower: with the SuperNodes of a grid, whose ClientApps are `flower_client`.

    A node that is new is asked which client it is (``client-id`` of its configuration). The first
    exchange waits until the clients that it asks have come; later ones ask who is there. A client
    is not waited for when the SuperLink has given its node up, when its ClientApp failed, or when
    its machine has come back as another node: it did not answer then, and is asked again in the
    next exchange. No message outlives its exchange.

    Which nodes may take part, and that nobody listens, is the SuperLink's matter: its keys of nodes
    (``--enable-supernode-auth``) and TLS. The first node that it admits and that says to be a
    client is that client from then on; so is another node of the same machine, as after a restart,
    which has a mark in the client's folder. A second node that claims a client, and a node that
    changes its claim, are refused by name, and asked again in the next exchange. (The mark is a
    secret of the machine, its SuperLink and the server: it tells machines apart, and replaces no
    keys.)

    Args:
      grid: of a ServerApp.
      timeout: seconds that an exchange waits for replies, at most.
      poll: seconds between two looks at what has come. SuperNodes look every three seconds.
      bind: False believes every node, the last one that claims a client: for nodes that have no
        folder and restart under other ids.
      folder: of the run, where who is who is kept (``nodes.json``); None: as long as the exchange.

    Returns:
      An `Exchange`.

    Raises:
      ImportError: without Flower.
      TypeError, ValueError: if `grid` is none, a time is not positive, or `folder` is none.

    Example:
      >>> grid_exchange("127.0.0.1:8000", timeout=60)
      Traceback (most recent call last):
      TypeError: grid must be the grid that Flower gives a ServerApp, got '127.0.0.1:8000'
    """
    if not callable(getattr(grid, "push_messages", None)):
        raise TypeError(f"grid must be the grid that Flower gives a ServerApp, got {shown(grid)}")
    check_positive(timeout, "timeout")
    check_positive(poll, "poll")
    check_bool(bind, "bind")
    place = None if folder is None else as_path(folder, "folder") / FILE
    nodes = _Nodes(grid, Claims(place) if bind else None)
    rounds = iter(range(2**63))

    def exchange(requests: Mapping[int, bytes]) -> dict[int, bytes]:
        number = next(rounds)
        deadline = time.monotonic() + timeout
        unsent, sent = dict(requests), {}
        replies: dict[int, bytes] = {}
        nodes.forget_nameless()
        while (left := deadline - time.monotonic()) > 0:
            nodes.look(left)
            ready = [client for client in unsent if nodes.of(client) is not None]
            contents = [(nodes.of(client), packed(unsent.pop(client))) for client in ready]
            pushed = _push(grid, contents, ASK, left, str(number))
            sent |= {message: (client, nodes.of(client)) for message, client in zip(pushed, ready)}
            for message, reply in _pull(grid, sent):
                client, node = sent.pop(message)
                data = None if reply.has_error() else unpacked(reply)
                if data is None:
                    _LOG.warning("client %d, node %d: %s", client, node, _why(reply))
                else:
                    replies[client] = data
            for message, (client, node) in list(sent.items()):
                if nodes.of(client) != node:
                    _LOG.warning("client %d: its node %d is gone", client, node)
                    del sent[message]
            if not sent and (not unsent or (number and nodes.all_named)):
                break
            time.sleep(poll)
        return replies

    return exchange


class _Nodes:
    """Which node is which client: whoever is new is asked."""

    def __init__(self, grid: Any, claims: Claims | None) -> None:
        self._grid, self._claims = grid, claims
        self._there: set[int] = set()
        self._greeted: set[int] = set()
        self._nameless: set[int] = set()
        self._asked: dict[str, int] = {}  # messages to nodes
        self._homes: dict[int, int] = {}  # clients to nodes

    @property
    def all_named(self) -> bool:
        return not self._asked

    def of(self, client: int) -> int | None:
        node = self._homes.get(client)
        return node if node in self._there else None

    def forget_nameless(self) -> None:
        """Who did not say who it is, or was not believed, will be asked again."""
        self._greeted -= self._nameless
        self._nameless.clear()

    def look(self, ttl: float) -> None:
        """Sees who is there, asks who is new, and hears who they are."""
        self._there = set(self._grid.get_node_ids())
        self._greeted &= self._there
        self._asked = {m: node for m, node in self._asked.items() if node in self._there}
        new = sorted(self._there - self._greeted)
        hello = flower().app.RecordDict
        pushed = _push(self._grid, [(node, hello()) for node in new], WHO, ttl, "who")
        self._asked |= dict(zip(pushed, new))
        self._greeted |= set(new)
        for message, reply in _pull(self._grid, self._asked):
            node = self._asked.pop(message)
            said = {} if reply.has_error() else reply.content.get(PACKET, {})
            client, mark = said.get("client"), said.get(MARK)
            if type(client) is not int:
                self._nameless.add(node)
                _LOG.warning("node %d does not say which client it is: %s", node, _why(reply))
            elif (why := self._refusal(client, node, mark)) is not None:
                self._nameless.add(node)
                self._homes = {i: home for i, home in self._homes.items() if home != node}
                _LOG.warning("%s", why)
            else:
                self._homes[client] = node

    def _refusal(self, client: int, node: int, mark: Any) -> str | None:
        if self._claims is None:
            return None
        return self._claims.refusal(client, node, mark if is_mark(mark) else "")


def _push(
    grid: Any, contents: list[tuple[Any, Any]], kind: str, ttl: float, group: str
) -> list[str]:
    message = flower().app.Message
    messages = [
        message(content, dst_node_id=node, message_type=kind, ttl=ttl, group_id=group)
        for node, content in contents
    ]
    return list(grid.push_messages(messages)) if messages else []


def _pull(grid: Any, waiting: Mapping[str, Any]) -> list[tuple[str, Any]]:
    """Replies that came, by the message that they answer."""
    replies = grid.pull_messages(list(waiting)) if waiting else []
    found = ((reply.metadata.reply_to_message_id, reply) for reply in replies)
    return [(message, reply) for message, reply in found if message in waiting]


def _why(reply: Any) -> str:
    return reply.error.reason if reply.has_error() else "its reply is of another kind"
