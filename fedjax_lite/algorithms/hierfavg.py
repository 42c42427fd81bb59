"""HierFAVG: edge servers average their clients often, the cloud averages the edges now and then."""

from __future__ import annotations

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from fedjax_lite import trees
from fedjax_lite.aggregation.conditions import need_one_a_client
from fedjax_lite.aggregation.hierarchical import check_edges, edge_means
from fedjax_lite.aggregation.mean import Weighting, mean
from fedjax_lite.aggregation.stacked import Stack, stacked
from fedjax_lite.checks.arguments import check_count, check_slot
from fedjax_lite.checks.made import made
from fedjax_lite.data.population.population import Population
from fedjax_lite.engine.batches import Plan
from fedjax_lite.engine.phases import Step, around
from fedjax_lite.engine.program import Strategy
from fedjax_lite.round.compose import federated_algorithm
from fedjax_lite.round.local import ClientOptimizer, LossFn, local_sgd
from fedjax_lite.transforms.chain import send
from fedjax_lite.types import (
    Aggregator,
    Array,
    Batch,
    ClientInfo,
    ClientUpdate,
    Cohort,
    FederatedAlgorithm,
    Key,
    Message,
    Params,
    PyTree,
    Sampler,
    ServerUpdate,
    Transform,
)


class EdgeModels(NamedTuple):
    """The state of the server: the cloud's model, and each edge's between two meetings."""

    params: Params
    """The cloud's model, of the last round in which edges met."""
    edges: PyTree
    """Leaves `[E, ...]`: what each edge sends to its clients."""
    uplink: PyTree = ()
    """Leaves `[E, ...]`: the edges' states of the transform on their way to the cloud."""

    @property
    def downloaded_share(self) -> float:
        """Of the broadcast: a client downloads its own edge's model."""
        return 1 / jax.tree.leaves(self.edges)[0].shape[0]


class EdgeRounds(NamedTuple):
    """The state of the aggregator: what has happened since the edges met."""

    done: Array
    """int32 scalar: edge rounds in which anybody counted."""
    weights: Array
    """`[E]`: the weights of the clients that each edge heard."""
    metrics: dict[str, Array]


class EdgeResults(NamedTuple):
    """The aggregate of an edge round."""

    updates: PyTree
    """Leaves `[E, ...]`: means over each edge's clients, zero where none came."""
    weights: Array
    """`[E]`, since the edges met last."""
    meet: Array
    """bool scalar: whether the cloud averages the edges now."""


@made
def hierfavg(
    loss: LossFn,
    client_optimizer: ClientOptimizer,
    *,
    plan: Plan,
    sampler: Sampler,
    edges: Any,
    edge_rounds: int,
    num_edges: int | None = None,
    weighting: Weighting = "examples",
    uplink: Transform | None = None,
    edge_aggregator: Aggregator | None = None,
    cloud_aggregator: Aggregator | None = None,
    cloud_uplink: Transform | None = None,
    strategy: Strategy | None = None,
) -> FederatedAlgorithm:
    r"""Federated averaging by edge servers, which meet in the cloud every few rounds.

    Every client belongs to one edge `e`. A round is one *edge round*: clients start from the model
    of their edge, and the edge averages them. After every :math:`\kappa_2` edge rounds the cloud
    averages the edges, and all of them go on from there:

    .. math::
        x_e &\leftarrow x_e - \sum_{i \in S_e} w_i (x_e - y_i) \Big/ \sum_{i \in S_e} w_i, \\
        x &\leftarrow \sum_e W_e\, x_e \Big/ \sum_e W_e, \quad x_e \leftarrow x
        \qquad \text{every } \kappa_2 \text{ rounds,}

    `W_e` the sum of the weights that edge `e` has heard since they met last: with everybody in
    every round these are the paper's, the examples of the edge's clients. With ``edge_rounds=1``
    this is `fedavg`, with one edge as well, and with one client an edge it is `fedavg` with
    :math:`\kappa_2` times the local work.

    Args:
      loss: ``(params, examples, key) -> [B]``, one loss per example.
      client_optimizer: an optax optimizer, or ``(round) -> optimizer``.
      plan: batch size and local work :math:`\kappa_1` of one edge round.
      sampler: who takes part in an edge round; the paper has ``everyone()``, and
        `fedjax_lite.selection.stratified` gives each edge a cohort of its own.
      edges: int `[N]`, the edge of each client of the population; may be traced.
      edge_rounds: :math:`\kappa_2`, at least 1.
      num_edges: `E`; default the largest in `edges` plus one.
      weighting: "examples" (`n_i`), "uniform", or a function of `ClientInfo`.
      uplink: transform of what clients send to their edge.
      edge_aggregator: what an edge does with its own clients' messages, such as `median` where they
        are not to be trusted; without a state. None: their mean.
      cloud_aggregator: what the cloud does where edges meet. Its messages are the changes
        :math:`x - x_e` since they met last, weights :math:`W_e`, and edges are its clients:
        `median` where an edge may fail, ``privacy.gaussian_sum`` for noise (the clip bounds what
        one edge, all its clients together, changes; nobody accounts for it here). Without a state.
        None: their mean.
      cloud_uplink: transform of the changes that edges send to the cloud, its state an edge's;
        those that heard nobody send nothing. What is lost on the way is lost to the edge, too.
      strategy: execution; default `auto()`.

    Returns:
      A `FederatedAlgorithm`. The cloud's model is ``state.server.params``, that of the last
      meeting: evaluate every `edge_rounds` rounds (``run(..., every=edge_rounds)``); the edges'
      models are ``state.server.edges``, leaves `[E, ...]`. Rounds in which nobody counts change
      nothing and are not counted. Metrics: ``uplink_bits`` and ``downlink_bits`` between clients
      and edges (a client downloads its own edge's model only), ``cloud_uplink_bits`` and
      ``cloud_downlink_bits`` between edges and cloud, both 0 but where edges meet: those that heard
      a client send their model, all of them are sent the mean. Memory O(cohort x model).

    Raises:
      TypeError: if an argument has the wrong type.
      ValueError: if an edge lies outside ``[0, num_edges)``, `edge_rounds` is below 1, or (when a
        state is made) there is not one edge a client of the population.

    Example:
      >>> import optax, fedjax_lite as fl
      >>> data = fl.data.from_arrays({"b": jnp.array([-1.0, 2.0, 3.0])}, [0, 1, 2])
      >>> algo = hierfavg(lambda w, e, key: 0.5 * (w - e["b"]) ** 2, optax.sgd(1.0),
      ...                 plan=fl.Plan(batch_size=1), sampler=fl.everyone(),
      ...                 edges=[0, 0, 1], edge_rounds=2)
      >>> state = algo.init(jax.random.key(0), jnp.array(0.0), data)
      >>> state, metrics = algo.round(jax.random.key(0), state, data)
      >>> state.server.edges.tolist(), float(state.server.params)
      ([0.5, 3.0], 0.0)
      >>> state, metrics = algo.round(jax.random.key(0), state, data)
      >>> round(float(state.server.params), 4)  # (2 * .5 + 1 * 3) / 3
      1.3333

    Reference: Liu, Zhang, Song, Letaief, "Client-Edge-Cloud Hierarchical Federated Learning",
    2020, arXiv:1905.06641.
    """
    table, count = check_edges(edges, num_edges)
    check_count(edge_rounds, "edge_rounds", minimum=1)
    if cloud_uplink is not None:
        check_slot(cloud_uplink, "cloud_uplink", Transform)
    for rule, name in (
        (edge_aggregator, "edge_aggregator"),
        (cloud_aggregator, "cloud_aggregator"),
    ):
        _check_stateless(rule, name)
    return federated_algorithm(
        at_edges(local_sgd(loss, client_optimizer, weighting=weighting), table),
        plan=plan,
        sampler=sampler,
        server=edge_server(count, cloud_aggregator, cloud_uplink),
        aggregator=edge_averages(
            table,
            num_edges=count,
            edge_rounds=edge_rounds,
            inner=edge_aggregator,
            cloud_uplink=cloud_uplink,
        ),
        uplink=uplink,
        strategy=strategy,
    )


@made
def at_edges(client: ClientUpdate, edges: Any) -> ClientUpdate:
    """Local training that starts from the model of the client's edge.

    Args:
      client: any local training.
      edges: int `[N]`.

    Returns:
      A `ClientUpdate` whose broadcast has leaves `[E, ...]`.

    Example:
      >>> import optax
      >>> client = at_edges(local_sgd(lambda w, e, key: w * e, optax.sgd(0.1)), [1, 0])
      >>> info = ClientInfo(*map(jnp.int32, (0, 1, 1, 0)))
      >>> float(client.start(None, (), jnp.array([3.0, 5.0]), info)[1].params)
      5.0
    """
    check_slot(client, "client", ClientUpdate)

    def mine(broadcast: PyTree, edge: Array) -> PyTree:
        return jax.tree.map(lambda leaf: leaf[edge], broadcast)

    def start(key: Key, row: PyTree, broadcast: PyTree, info: ClientInfo) -> PyTree:
        edge = jnp.asarray(edges, jnp.int32)[info.id]
        return edge, client.start(key, row, mine(broadcast, edge), info)

    def of_edge(inner_step: Step) -> Step:
        def step(broadcast: PyTree, carry: PyTree, batch: Batch) -> PyTree:
            edge, inner = carry
            return edge, inner_step(mine(broadcast, edge), inner, batch)

        return step

    def finish(broadcast: PyTree, carry: PyTree) -> tuple[PyTree, Message, dict[str, Any]]:
        edge, inner = carry
        return client.finish(mine(broadcast, edge), inner)

    return client._replace(start=start, step=around(client.step, of_edge), finish=finish)


@made
def edge_server(
    num_edges: int, inner: Aggregator | None = None, cloud_uplink: Transform | None = None
) -> ServerUpdate:
    """Edges that move by their own mean, and meet where the aggregate says so.

    Args:
      num_edges: `E`.
      inner: what the cloud does with the edges' changes; None: their weighted mean.
      cloud_uplink: what happens to these changes on their way; None: nothing.

    Example:
      >>> server = edge_server(2)
      >>> state = server.init(jnp.array(1.0), None)
      >>> result = EdgeResults(jnp.array([0.5, -1.0]), jnp.array([3.0, 1.0]), jnp.array(True))
      >>> float(server.update(None, state, result, None, {}).params)  # (3 * .5 + 1 * 2) / 4
      0.875
    """

    def init(params: Params, population: Population) -> EdgeModels:
        sent = () if cloud_uplink is None else cloud_uplink.init(trees.zeros(params))
        return EdgeModels(
            params, trees.repeat_rows(params, num_edges), trees.repeat_rows(sent, num_edges)
        )

    def update(
        key: Key, server: EdgeModels, value: EdgeResults, cohort: Cohort, metrics: dict[str, Any]
    ) -> EdgeModels:
        moved = jax.tree.map(lambda x, u: x - u.astype(x.dtype), server.edges, value.updates)
        total = value.weights.sum()
        shares = value.weights / jnp.where(total == 0, 1, total)

        def average(old: Array, rows: Array) -> Array:
            found = jnp.tensordot(shares.astype(rows.dtype), rows, 1)
            return jnp.where(value.meet & (total > 0), found, old)

        uplink = server.uplink
        if inner is None and cloud_uplink is None:
            params = jax.tree.map(average, server.params, moved)
        else:
            key, key_wire = jax.random.split(key)
            changes = jax.tree.map(lambda old, rows: old - rows, server.params, moved)
            there = value.weights > 0
            if cloud_uplink is not None:
                keys = jax.random.split(key_wire, num_edges)
                states, changes = jax.vmap(cloud_uplink.update)(keys, uplink, changes)
                uplink = trees.where(there & value.meet, states, uplink)
            rule = mean() if inner is None else inner
            change = _aggregated(rule, key, changes, value.weights, jnp.arange(num_edges), there)
            params = jax.tree.map(
                lambda old, by: jnp.where(
                    value.meet & (total > 0), old - by.astype(old.dtype), old
                ),
                *(server.params, change),
            )
        edges = jax.tree.map(
            lambda new, rows: jnp.where(value.meet, jnp.broadcast_to(new, rows.shape), rows),
            params,
            moved,
        )
        return EdgeModels(params, edges, uplink)

    return ServerUpdate(init, lambda server: server.edges, update)


@made
def edge_averages(
    edges: Any,
    *,
    num_edges: int,
    edge_rounds: int,
    inner: Aggregator | None = None,
    cloud_uplink: Transform | None = None,
) -> Aggregator:
    """Means over the clients of each edge, and a count of the rounds until edges meet.

    Args:
      edges: int `[N]`.
      num_edges: `E`.
      edge_rounds: see `hierfavg`.
      inner: what an edge does with its clients' messages; None: their weighted mean.
      cloud_uplink: what edges send by, for its bits.

    Example:
      >>> from fedjax_lite.aggregation import aggregate_stack
      >>> rule = edge_averages([0, 0, 1], num_edges=2, edge_rounds=2)
      >>> result = aggregate_stack(rule, jnp.array([1.0, 3.0, 5.0]))
      >>> result.updates.tolist(), result.weights.tolist(), bool(result.meet)
      ([2.0, 5.0], [2.0, 1.0], False)
    """
    table = edges if isinstance(edges, jax.core.Tracer) else jnp.asarray(edges, jnp.int32)

    def init_state(params: Params) -> EdgeRounds:
        need_one_a_client(table.shape[0], "edges")
        return EdgeRounds(jnp.int32(0), jnp.zeros(num_edges), _bits(0.0, 0, 0.0, 0))

    def rule(
        key: Key, state: EdgeRounds, stack: Stack, cohort: Cohort
    ) -> tuple[EdgeRounds, EdgeResults]:
        places = table[jnp.clip(cohort.ids, 0, table.shape[0] - 1)]
        member = (places == jnp.arange(num_edges)[:, None]) & stack.mask
        weights = jnp.where(member, stack.weights, 0)
        heard = state.weights + weights.sum(1).astype(jnp.float32)
        done = state.done + stack.mask.any()
        meet = done >= edge_rounds
        model = float(sum(_row_bits(leaf) for leaf in jax.tree.leaves(stack.values)))
        at_cloud = jnp.where(meet, (heard > 0).sum(), 0)
        up = model if cloud_uplink is None else _packed_bits(cloud_uplink, stack.values)
        metrics = _bits(up, at_cloud, model, jnp.where(meet, num_edges, 0))
        left = EdgeRounds(jnp.where(meet, 0, done), jnp.where(meet, 0.0, heard), metrics)
        if inner is None:
            return left, EdgeResults(edge_means(stack.values, weights), heard, meet)

        own = inner

        def of_edge(one: tuple[Array, Array]) -> PyTree:
            number, mine = one
            key_edge = jax.random.fold_in(key, number)
            return _aggregated(own, key_edge, stack.values, mine, cohort.ids, mine > 0)

        found = jax.lax.map(of_edge, (jnp.arange(num_edges), weights))
        return left, EdgeResults(found, heard, meet)

    return stacked(rule, init_state=init_state, like_message=False)


def _row_bits(stacked_leaf: Array) -> int:
    return stacked_leaf[0].size * stacked_leaf.dtype.itemsize * 8


def _bits(up: float, senders: Any, down: float, receivers: Any) -> dict[str, Array]:
    """Traffic between edges and cloud."""
    return {
        "cloud_uplink_bits": jnp.float32(up) * senders,
        "cloud_downlink_bits": jnp.float32(down) * receivers,
    }


def _packed_bits(transform: Transform, rows: PyTree) -> float:
    """What one of the rows `[C, ...]` costs to send: fields of fixed width, told by its shape."""
    with jax.ensure_compile_time_eval():
        zeros = jax.tree.map(lambda leaf: jnp.zeros(leaf.shape[1:], leaf.dtype), rows)
        return float(send(transform, jax.random.key(0), transform.init(zeros), zeros)[2].bits)


def _aggregated(
    rule: Aggregator, key: Key, values: PyTree, weights: Array, ids: Array, mask: Array
) -> PyTree:
    """The aggregate of rows `[C, ...]`; zero where nobody is there, whatever the rule says."""
    messages = Message(values, weights)
    acc = rule.init(jax.tree.map(lambda leaf: leaf[0], messages), len(ids))
    acc = rule.add(acc, messages, jnp.arange(len(ids)), mask)
    state = rule.init_state(jax.tree.map(lambda leaf: jnp.zeros_like(leaf[0]), values))
    _, value = rule.finish(key, state, acc, Cohort(ids.astype(jnp.int32), mask))
    return jax.tree.map(lambda leaf: jnp.where(mask.any(), leaf, 0), value)


def _check_stateless(rule: Aggregator | None, name: str) -> None:
    if rule is None:
        return
    check_slot(rule, name, Aggregator)
    if rule.at is not None or jax.tree.leaves(rule.init_state(jnp.zeros(1))):
        raise ValueError(
            f"{name} must keep nothing between rounds, got {rule.made or 'your own'}; take one "
            "without a state, such as median() or gaussian_sum(...)"
        )
