"""Which Flower node is which client: the first that says so, and that machine from then on."""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import re
import secrets
from pathlib import Path
from typing import Any, NamedTuple

from fedjax_lite.run.files import save_json_atomic

FILE = "nodes.json"
MARK = "mark"
"""Of the field in which a node sends its machine's mark."""


class Bound(NamedTuple):
    """The machine of a client."""

    node: int
    mark: str
    """A digest of what only this machine knows; "": nothing."""


class Claims:
    """The clients that nodes said they are, remembered from the first time on.

    A node is one client for good, and a client is one machine: its node, or another node that knows
    what the first one's machine knows, as after a restart. Nobody else is believed.

    Args:
      path: of the file that keeps them; None: they are kept in memory.

    Raises:
      ValueError: if the file is none of ours.
    """

    def __init__(self, path: Path | None) -> None:
        self._path = path
        self._clients: dict[int, Bound] = {}
        self._nodes: dict[int, int] = {}  # every node that was ever believed, and who it was
        if path is not None and path.exists():
            self._read(path)

    def refusal(self, client: int, node: int, mark: str) -> str | None:
        """Why a node is not believed to be a client; None: it is, and that is written down.

        Args:
          client: that it says it is.
          node: its id, as the SuperLink knows it.
          mark: what its machine knows; "": nothing.
        """
        before = self._nodes.get(node, client)
        if before != client:
            return (
                f"node {node} says that it is client {client}, and was client {before} before; give"
                " it that client-id again, or begin a new run"
            )
        digest = hashlib.sha256(mark.encode()).hexdigest() if mark else ""
        bound = self._clients.get(client)
        if bound is not None and bound.node != node and (not mark or bound.mark != digest):
            return (
                f"node {node} says that it is client {client}, which is node {bound.node}, and does"
                f" not have that machine's mark; start it with the client's own folder, or, if this"
                f" machine takes its place, remove client {client} from {self._path or FILE} and"
                " start the server again"
            )
        if bound != (now := Bound(node, digest)):
            self._clients[client], self._nodes[node] = now, client
            self._write()
        return None

    def _write(self) -> None:
        if self._path is None:
            return
        self._path.parent.mkdir(parents=True, exist_ok=True)
        clients = {str(client): list(bound) for client, bound in sorted(self._clients.items())}
        nodes = {str(node): client for node, client in sorted(self._nodes.items())}
        save_json_atomic(self._path, {"clients": clients, "nodes": nodes})

    def _read(self, path: Path) -> None:
        try:
            found = json.loads(path.read_text(encoding="utf-8"))
            clients = {int(i): Bound(*bound) for i, bound in found["clients"].items()}
            nodes = {int(node): client for node, client in found["nodes"].items()}
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            raise ValueError(f"{path} is no file of nodes: {error!r:.200}; restore it") from None
        parts = [*nodes.values(), *(bound.node for bound in clients.values())]
        if not all(type(part) is int for part in parts) or not all(
            isinstance(bound.mark, str) for bound in clients.values()
        ):
            raise ValueError(f"{path} is no file of nodes: it names no clients; restore it")
        self._clients, self._nodes = clients, nodes


def mark_of(folder: Any, client: int) -> str:
    """What only this machine knows: made when it is first asked for, and kept in its folder.

    Args:
      folder: of the client, on its own disk; anything else gives no mark.
      client: whose.

    Returns:
      64 hexadecimal digits, or "".

    Example:
      >>> import tempfile
      >>> with tempfile.TemporaryDirectory() as folder:
      ...     first, again = mark_of(folder, 2), mark_of(folder, 2)
      >>> first == again, len(first), mark_of(None, 2)
      (True, 64, '')
    """
    if not isinstance(folder, str) or not folder:
        return ""
    path = Path(folder) / f"client-{client}.{MARK}"
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}-{secrets.token_hex(8)}")
    if not path.exists():
        descriptor = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
        try:
            with os.fdopen(descriptor, "w", encoding="ascii") as file:
                file.write(secrets.token_hex(32))
                file.flush()
                os.fsync(file.fileno())
            with contextlib.suppress(FileExistsError):  # another process was first
                os.link(temporary, path)
        finally:
            temporary.unlink()
    text = path.read_text(encoding="ascii", errors="replace")
    return text if is_mark(text) else ""


def is_mark(value: Any) -> bool:
    """Whether this may be a machine's mark."""
    return isinstance(value, str) and re.fullmatch("[0-9a-f]{64}", value) is not None
