"""hierarchical(): edge servers average their clients, the cloud aggregates the edges."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp

from fedjax_lite import trees
from fedjax_lite.aggregation.blocks import map_blocks
from fedjax_lite.aggregation.conditions import in_population, integer_table, need_one_a_client
from fedjax_lite.aggregation.mean import mean
from fedjax_lite.aggregation.stacked import (
    Stack,
    check_aggregator_slot,
    check_scalar_weight,
    stacked,
)
from fedjax_lite.checks.arguments import check_count
from fedjax_lite.checks.made import made
from fedjax_lite.types import Aggregator, Array, Cohort, Key, Message, PyTree


@made
def hierarchical(
    edges: Any,
    *,
    num_edges: int | None = None,
    inner: Aggregator | None = None,
    edge_weighting: str = "message",
) -> Aggregator:
    r"""Averages the clients of each edge, then aggregates the edges.

    .. math::
        \Delta^{(e)} = \sum_{i \in e} w_i \Delta_i \Big/ W_e, \quad W_e = \sum_{i \in e} w_i, \qquad
        \bar\Delta = \sum_e W_e \Delta^{(e)} \Big/ \sum_e W_e

    With the mean on top that is the flat weighted mean (HierFAVG with ``kappa_2 = 1``; with more
    edge rounds before the cloud's it is an algorithm, `fedjax_lite.hierfavg`); with
    another `inner`, such as ``median()``, the cloud need not trust every edge.

    Args:
      edges: int `[N]`, the edge of each client of the population; may be traced. Outside of a
        round, a client whose id is not in the table counts nowhere.
      num_edges: how many edges there are; default the largest in `edges` plus one.
      inner: what the cloud does with the edges' means; default `mean()`. It sees edges as clients
        with their numbers as ids.
      edge_weighting: weight of an edge: "message", the sum of its clients' weights, or "uniform".

    Returns:
      An `Aggregator` with the state of `inner`. An edge none of whose clients takes part counts
      nowhere.

    Raises:
      ValueError: if an edge lies outside ``[0, num_edges)``, `num_edges` is missing where `edges`
        is traced, or the weighting is unknown; when a state is made or a round is built, if there
        is not one edge a client of the population.
      TypeError: if `edges` are not integers or `inner` is not an `Aggregator`.

    Example:
      >>> from fedjax_lite.aggregation.stacked import aggregate_stack
      >>> u, sizes = jnp.array([1.0, 2.0, 4.0]), jnp.array([30.0, 10.0, 60.0])
      >>> round(float(aggregate_stack(hierarchical([0, 0, 1]), u, weights=sizes)), 4)
      2.9
      >>> uniform = hierarchical([0, 0, 1], edge_weighting="uniform")
      >>> round(float(aggregate_stack(uniform, u, weights=sizes)), 4)
      2.625

    Reference: Liu, Zhang, Song, Letaief, "Client-Edge-Cloud Hierarchical Federated Learning",
    2020, arXiv:1905.06641.
    """
    table, count = check_edges(edges, num_edges)
    if edge_weighting not in ("message", "uniform"):
        raise ValueError(
            f"edge_weighting must be 'message' or 'uniform', got {edge_weighting!r}; "
            "'message' is the sum of the clients' weights"
        )
    inner = mean() if inner is None else inner
    check_aggregator_slot(inner)

    def init_state(params: PyTree) -> PyTree:
        need_one_a_client(table.shape[0], "edges")
        with in_population(count):  # to `inner` edges are the clients
            return inner.init_state(params)

    def rule(key: Key, state: PyTree, stack: Stack, cohort: Cohort) -> tuple[PyTree, PyTree]:
        here = inner if inner.at is None else inner.at(state)
        places = jnp.asarray(table)[jnp.clip(cohort.ids, 0, table.shape[0] - 1)]
        known = stack.mask & (cohort.ids >= 0) & (cohort.ids < table.shape[0])
        member = (places == jnp.arange(count)[:, None]) & known
        weights = jnp.where(member, stack.weights, 0).sum(1)
        values = edge_means(stack.values, jnp.where(member, stack.weights, 0))
        present = weights > 0
        sent = weights if edge_weighting == "message" else present.astype(weights.dtype)
        numbers = jnp.arange(count, dtype=jnp.int32)
        messages = Message(values, sent)
        with in_population(count):
            acc = here.init(jax.tree.map(lambda leaf: leaf[0], messages), count)
        acc = here.add(acc, messages, numbers, present)
        return here.finish(key, state, acc, Cohort(numbers, present))

    aggregator = stacked(rule, init_state=init_state)

    def init(message: Message, cohort_size: int) -> PyTree:
        check_scalar_weight(message)
        need_one_a_client(table.shape[0], "edges")
        with in_population(count):
            inner.init(message, count)  # for its conditions
        return aggregator.init(message, cohort_size)

    return aggregator._replace(init=init)


def edge_means(values: PyTree, weights: Array) -> PyTree:
    """Weighted means ``[E, ...]`` of rows ``[C, ...]``; weights `[E, C]`, 0 for who is elsewhere.

    Example:
      >>> edge_means(jnp.array([[1.0], [3.0]]), jnp.array([[1.0, 1.0], [0.0, 2.0]])).tolist()
      [[2.0], [3.0]]
    """
    totals = weights.sum(1, keepdims=True)
    shares = weights / jnp.where(totals == 0, 1, totals)

    def mix(rows: Array) -> Array:
        def one(share: Array) -> Array:
            share = share.astype(rows.dtype)[:, None]
            return trees.sum_rows(jnp.where(share == 0, 0, share * rows))

        return jax.lax.map(one, shares)

    return map_blocks(mix, values)


def check_edges(edges: Any, num_edges: int | None) -> tuple[Any, int]:
    """The table of edges `[N]`, and how many edges there are.

    Raises:
      TypeError: if `edges` are not integers `[N]`.
      ValueError: if one lies outside ``[0, num_edges)``, or `num_edges` is missing where they are
        traced.

    Example:
      >>> check_edges([0, 2, 0], None)[1]
      3
    """
    if num_edges is not None:
        check_count(num_edges, "num_edges", minimum=1)
    if isinstance(edges, jax.core.Tracer):
        if num_edges is None:
            raise ValueError(
                "num_edges must be given where edges are traced: it fixes the shape of the table"
            )
        return edges, num_edges
    table = integer_table(edges, "edges")
    if table.min() < 0 or (num_edges is not None and table.max() >= num_edges):
        raise ValueError(
            f"edges must lie in [0, num_edges={num_edges}), one a client, got {int(table.min())} "
            f"to {int(table.max())}; number them from 0"
        )
    return table, int(table.max()) + 1 if num_edges is None else num_edges
