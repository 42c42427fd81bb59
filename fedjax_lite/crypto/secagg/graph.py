"""Who shares secrets with whom: everybody, or the `k` neighbours of SecAgg+."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence

import numpy as np

from fedjax_lite.checks.arguments import check_count

Graph = dict[int, frozenset[int]]
"""The neighbours of every client; symmetric, nobody is its own."""


def complete(clients: Sequence[int]) -> Graph:
    """Everybody is everybody's neighbour (Bonawitz et al.).

    Example:
      >>> sorted(complete([3, 5, 8])[5])
      [3, 8]
    """
    return {u: frozenset(v for v in clients if v != u) for u in clients}


def harary(clients: Sequence[int], *, degree: int, rng: np.random.Generator) -> Graph:
    """A `degree`-regular, `degree`-connected ring over a random order (SecAgg+).

    Each client is joined to the ``degree // 2`` next on either side of a random circle, and for an
    odd degree to the one opposite. Costs grow with `degree` instead of the number of clients.

    Args:
      clients: different ids.
      degree: `k`, 2 to ``len(clients) - 1``; even where the number of clients is odd.
      rng: the order, drawn by the server after it knows who advertised keys.

    Raises:
      ValueError: if no such graph exists.

    Guarantees:
      Removing any ``degree - 1`` clients leaves the others connected (Harary 1962). A curious
      server with `m` colluding clients learns the sum of a component of honest clients only, so
      `degree` should be of order ``log(num_clients)`` with the constants of the paper, and the
      round needs a minimum of survivors: a component may be as small as a neighbourhood.

    Example:
      >>> graph = harary(range(10), degree=4, rng=np.random.default_rng(0))
      >>> {len(neighbours) for neighbours in graph.values()}
      {4}

    Reference: Bell, Bonawitz, Gascón, Lepoint, Raykova, "Secure Single-Server Aggregation with
    (Poly)Logarithmic Overhead", CCS 2020, ePrint 2020/704.
    """
    check_count(degree, "degree", minimum=2)
    num_clients = len(clients)
    if degree >= num_clients:
        raise ValueError(
            f"degree must be below the number of clients, got {degree} of {num_clients}; use the "
            "complete graph"
        )
    if degree % 2 and num_clients % 2:
        raise ValueError(
            f"degree must be even for an odd number of clients, got {degree} of {num_clients}: "
            "no graph has an odd number of odd degrees"
        )
    circle = [clients[i] for i in rng.permutation(num_clients)]
    steps = list(range(1, degree // 2 + 1)) + ([num_clients // 2] if degree % 2 else [])
    joined: dict[int, set[int]] = {client: set() for client in clients}
    for place, client in enumerate(circle):
        for step in steps:
            other = circle[(place + step) % num_clients]
            joined[client].add(other)
            joined[other].add(client)
    return {client: frozenset(others) for client, others in joined.items()}


def is_connected(graph: Mapping[int, Iterable[int]], clients: Iterable[int]) -> bool:
    """Whether `clients` are one component of the graph that they induce.

    Example:
      >>> is_connected({1: {2}, 2: {1, 3}, 3: {2}}, [1, 3])
      False
    """
    rest = set(clients)
    if lost := [client for client in rest if client not in graph]:
        raise ValueError(f"clients must be nodes of graph, got {lost[0]!r}; give those it joins")
    front = {next(iter(rest))} if rest else set()
    while front:
        rest -= front
        front = {v for u in front for v in graph.get(u, ())} & rest
    return not rest
