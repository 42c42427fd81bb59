"""Exchanges: whatever carries requests to clients and their replies back."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import TypeAlias

from fedjax_lite.checks.arguments import shown

Exchange: TypeAlias = Callable[[Mapping[int, bytes]], Mapping[int, bytes]]
"""``({client id: request}) -> {client id: reply}``: asks some clients and waits for their replies;
who is absent from them did not answer in time."""
Answer: TypeAlias = Callable[[bytes], bytes]
"""``request -> reply`` of one client, as of `fedjax_lite.deploy.node`."""


def in_process(answers: Mapping[int, Answer]) -> Exchange:
    """An exchange with clients in this process: for tests, and to see a federation work.

    Args:
      answers: the clients' functions, by id; one that is not there, or raises ConnectionError, does
        not answer.

    Returns:
      An `Exchange`.

    Raises:
      TypeError: if `answers` is no mapping of functions.

    Example:
      >>> exchange = in_process({0: bytes.upper})
      >>> exchange({0: b"hello", 1: b"anybody?"})
      {0: b'HELLO'}
    """
    if not isinstance(answers, Mapping) or not all(map(callable, answers.values())):
        raise TypeError(
            f"answers must map client ids to functions of bytes, got {shown(answers)}; "
            "{0: fl.deploy.node(...)}"
        )

    def exchange(requests: Mapping[int, bytes]) -> dict[int, bytes]:
        replies: dict[int, bytes] = {}
        for client, request in requests.items():
            try:
                if client in answers:
                    replies[client] = answers[client](request)
            except ConnectionError:
                continue
        return replies

    return exchange
