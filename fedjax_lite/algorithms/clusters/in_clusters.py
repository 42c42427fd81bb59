"""What the server does with several models: an aggregate and an optimizer for each."""

from __future__ import annotations

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from fedjax_lite import trees
from fedjax_lite.aggregation.stacked import check_aggregator_slot
from fedjax_lite.algorithms.clusters.several import check_several
from fedjax_lite.checks.made import made
from fedjax_lite.data.population.population import Population
from fedjax_lite.types import (
    Aggregator,
    Array,
    Cohort,
    Key,
    Message,
    Params,
    PyTree,
    ServerUpdate,
)


class ClusterSums(NamedTuple):
    """The accumulator: one of `inner` a cluster, and what the clusters' messages weigh."""

    inner: PyTree
    """Leaves `[K, ...]`."""
    weights: Array
    """`[K]`."""


class ClusterUpdates(NamedTuple):
    """The aggregate."""

    updates: PyTree
    """Leaves `[K, ...]`."""
    weights: Array
    """`[K]`, 0 for a cluster of which nobody came."""


@made
def in_clusters(inner: Aggregator, num_clusters: int) -> Aggregator:
    """Aggregates each cluster's messages on their own.

    A message is one model's update; its weight is `[K]`, 0 but for the sender's cluster.

    Args:
      inner: what becomes of one cluster's messages, such as `mean` or `median`.
      num_clusters: `K`.

    Returns:
      An `Aggregator` whose value is `ClusterUpdates`. Memory `K` times that of `inner`.

    Raises:
      TypeError: if `inner` is no aggregator.
      ValueError: if it adapts to its state while it folds.

    Example:
      >>> from fedjax_lite.aggregation.mean import mean
      >>> rule = in_clusters(mean(), 2)
      >>> messages = Message(jnp.array([1.0, 3.0, 6.0]), jnp.array([[1.0, 0], [3, 0], [0, 2]]))
      >>> acc = rule.init(jax.tree.map(lambda leaf: leaf[0], messages), 3)
      >>> acc = rule.add(acc, messages, jnp.arange(3), jnp.ones(3, bool))
      >>> value = rule.finish(jax.random.key(0), (), acc, None)[1]
      >>> value.updates.tolist(), value.weights.tolist()
      ([2.5, 6.0], [4.0, 2.0])
    """
    check_aggregator_slot(inner, "aggregator")
    if inner.at is not None:
        raise ValueError(
            f"aggregator must be the same in every round to be used in each cluster, got "
            f"{inner.made or 'one with at'}, which follows its state; take mean(), median() ..."
        )

    def init_state(value: PyTree) -> PyTree:
        return trees.repeat_rows(inner.init_state(value), num_clusters)

    def init(message: Message, cohort_size: int) -> ClusterSums:
        one = inner.init(Message(message.value, trees.zeros(message.weight)[0]), cohort_size)
        return ClusterSums(trees.repeat_rows(one, num_clusters), trees.wide_zeros(message.weight))

    def add(acc: ClusterSums, messages: Message, slots: Array, mask: Array) -> ClusterSums:
        def of_cluster(acc: PyTree, weights: Array) -> PyTree:
            return inner.add(acc, Message(messages.value, weights), slots, mask)

        weights = jnp.where(mask[:, None], messages.weight, 0).T
        total = acc.weights + weights.astype(acc.weights.dtype).sum(1)
        return ClusterSums(jax.vmap(of_cluster)(acc.inner, weights), total)

    def finish(
        key: Key, state: PyTree, acc: ClusterSums, cohort: Cohort
    ) -> tuple[PyTree, ClusterUpdates]:
        def of_cluster(key: Key, state: PyTree, acc: PyTree) -> tuple[PyTree, PyTree]:
            return inner.finish(key, state, acc, cohort)

        keys = jax.random.split(key, num_clusters)
        state, updates = jax.vmap(of_cluster)(keys, state, acc.inner)
        return state, ClusterUpdates(updates, acc.weights)

    return Aggregator(init_state, init, add, finish)


@made
def cluster_server(server: ServerUpdate, num_clusters: int, averaging: str) -> ServerUpdate:
    """A server for each cluster; one whose cluster nobody joined stays exactly as it is.

    Args:
      server: moves one model by its aggregate.
      num_clusters: `K`.
      averaging: "model", or "gradient": updates count by their cluster's part in all weights.

    Returns:
      A `ServerUpdate` whose state is that of `server`, leaves `[K, ...]`.

    Example:
      >>> import optax, fedjax_lite as fl
      >>> server = cluster_server(fl.optimizer_server(optax.sgd(1.0)), 2, "gradient")
      >>> state = server.init(jnp.array([1.0, 2.0]), None)
      >>> value, cohort = ClusterUpdates(jnp.array([4.0, 0.0]), jnp.array([3.0, 0.0])), None
      >>> server.update(jax.random.key(0), state, value, cohort, {}).params.tolist()
      [-3.0, 2.0]
    """

    def init(params: Params, population: Population) -> PyTree:
        check_several(params, num_clusters)
        return jax.vmap(lambda model: server.init(model, population))(params)

    def update(
        key: Key, state: PyTree, value: ClusterUpdates, cohort: Cohort, metrics: dict[str, Any]
    ) -> PyTree:
        share = jnp.ones_like(value.weights)
        if averaging == "gradient":
            share = value.weights / jnp.maximum(value.weights.sum(), jnp.finfo(share.dtype).tiny)

        def of_cluster(
            key: Key, state: PyTree, update: PyTree, share: Array, here: Array
        ) -> PyTree:
            update = jax.tree.map(lambda leaf: leaf * share.astype(leaf.dtype), update)
            return trees.where(here, server.update(key, state, update, cohort, metrics), state)

        keys = jax.random.split(key, num_clusters)
        return jax.vmap(of_cluster)(keys, state, value.updates, share, value.weights > 0)

    return server._replace(init=init, update=update)
