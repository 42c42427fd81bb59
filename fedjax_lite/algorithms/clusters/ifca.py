"""IFCA: every client trains the model that fits its data best, of several."""

from __future__ import annotations

from typing import Any, Literal, NamedTuple, Unpack, get_args

import jax
import jax.numpy as jnp
import optax

from fedjax_lite.aggregation.mean import Weighting, mean
from fedjax_lite.algorithms.clusters.in_clusters import cluster_server, in_clusters
from fedjax_lite.algorithms.clusters.known_groups import with_purity
from fedjax_lite.algorithms.clusters.membership import NOWHERE, ClusterRow
from fedjax_lite.algorithms.clusters.several import one_of_several
from fedjax_lite.algorithms.one_epoch import one_epoch
from fedjax_lite.checks.arguments import check_count, shown
from fedjax_lite.checks.made import made
from fedjax_lite.engine.batches import Plan
from fedjax_lite.engine.phases import step_of
from fedjax_lite.round.compose import federated_algorithm
from fedjax_lite.round.local import ClientOptimizer, LossFn, local_sgd, mean_loss
from fedjax_lite.round.server import optimizer_server
from fedjax_lite.round.slot_options import SlotOptions, refuse_privacy
from fedjax_lite.types import (
    Array,
    Batch,
    ClientInfo,
    ClientUpdate,
    FederatedAlgorithm,
    Key,
    Mean,
    Message,
    Params,
    Phase,
    PyTree,
    Sampler,
)

Averaging = Literal["model", "gradient"]
WHY = "the number of a client's cluster follows from its data and is sent as it is"


class ClusterCarry(NamedTuple):
    """Local training, and the losses that say of which model."""

    local: PyTree
    losses: Array
    """`[K]`, sums over the examples seen."""
    count: Array
    cluster: Array
    """int32 scalar: the model of the least loss so far."""
    before: Array
    """int32 scalar: the client's cluster when it last took part."""
    info: ClientInfo


@made
def ifca(
    loss: LossFn,
    client_optimizer: ClientOptimizer,
    *,
    num_clusters: int,
    plan: Plan,
    sampler: Sampler | None = None,
    weighting: Weighting = "examples",
    averaging: Averaging = "model",
    server_optimizer: optax.GradientTransformation | None = None,
    groups: Any = None,
    **slots: Unpack[SlotOptions],
) -> FederatedAlgorithm:
    r"""The iterative federated clustering algorithm: `K` models, each client trains its best.

    .. math::
        k_i &= \arg\min_k F_i(x_k), \qquad
            y_i \leftarrow \text{local SGD on } F_i \text{ from } x_{k_i}, \\
        x_k &\leftarrow x_k - \sum_{i \in S_k} w_i\, (x_k - y_i) \Big/ \sum_{i \in S_k} w_i
            \quad\text{("model")}, \\
        x_k &\leftarrow x_k - \sum_{i \in S_k} w_i\, (x_k - y_i) \Big/ \sum_{i \in S} w_i
            \quad\text{("gradient")}, \qquad S_k = \{i \in S : k_i = k\} .

    The losses are those of *all* of the client's data, forward passes in the plan's batches before
    it trains; of equal ones the lowest number wins, and NaN never does. A client none of whose
    losses is finite sends nothing. A cluster that nobody joined keeps its model, and its server
    optimizer's state, exactly. With one cluster this is `fedavg`. A round of HypCluster of Mansour
    et al. is a round of this one with the defaults, ``averaging="model"`` and weights by examples,
    so there is no method of that name; it begins otherwise, with models that sampled clients
    trained, which `init` takes as it takes any.

    Args:
      loss: ``(params, examples, key) -> [B]``, of one model.
      client_optimizer: an optax optimizer, or ``(round) -> optimizer``.
      num_clusters: `K`, at least 1.
      plan: local work.
      sampler: who takes part.
      weighting: `w_i`, see `fedavg`. The paper's are "uniform".
      averaging: "model", or "gradient", which is the paper's gradient averaging with a plan of one
        step of SGD on all data: the rate then is divided among the clusters.
      server_optimizer: default ``optax.sgd(1.0)``, plain averaging; each cluster has its own state.
      groups: int `[N]`, the true group of every client where a simulation knows them: the history
        then has ``cluster_purity`` of all clients that ever chose, see `cluster_purity`. They
        change nothing else.
      **slots: `uplink`, `downlink`, `strategy` as in `fedavg`; `aggregator` is used within each
        cluster. `privacy` is refused, since a client tells its cluster. With error feedback
        what a client had held back goes with it where it changes its cluster.

    Returns:
      A `FederatedAlgorithm`. Its `init` takes `K` models, leaves `[K, ...]`, such as
      ``several_models(model.init, key, K)``; they are ``state.server.params``. Every client is
      scored with its cluster's (`client_evaluator`, ``algo.models(state)``), and
      `cluster_assignments` tells which that is. Metrics: ``train_loss``; ``loss`` at the chosen
      models before training; ``cluster_0`` ..., the clusters' shares of the cohort;
      ``cluster_changes``, the share of the cohort that left the cluster where it was last;
      `fedjax_lite.report.plot_clusters` draws them. A client
      downloads `K` models and sends one; the number of its cluster beside it is not billed.

    Raises:
      TypeError: if an argument has the wrong type.
      ValueError: if `num_clusters` is below 1, a name is unknown, or `privacy` is given; from
        `init`, if the parameters are not `K` models or `groups` not one integer a client.

    Example:
      >>> import fedjax_lite as fl
      >>> data = fl.data.from_arrays({"b": jnp.array([-5.0, -4.0, 5.0])}, [0, 1, 2])
      >>> algo = ifca(lambda w, e, key: 0.5 * (w - e["b"]) ** 2, optax.sgd(1.0), num_clusters=2,
      ...             plan=fl.Plan(batch_size=1), sampler=fl.everyone())
      >>> state = algo.init(jax.random.key(0), jnp.array([-1.0, 1.0]), data)
      >>> state, metrics = algo.round(jax.random.key(0), state, data)
      >>> state.server.params.tolist(), algo.models(state).tolist()
      ([-4.5, 5.0], [-4.5, -4.5, 5.0])

    Reference: Ghosh, Chung, Yin, Ramchandran, "An Efficient Framework for Clustered Federated
    Learning", 2020, arXiv:2006.04088; Mansour, Mohri, Ro, Suresh, "Three Approaches for
    Personalization with Applications to Federated Learning", 2020, arXiv:2002.10619.
    """
    check_count(num_clusters, "num_clusters", minimum=1)
    if averaging not in get_args(Averaging):
        raise ValueError(
            f"averaging must be one of {get_args(Averaging)}, got {shown(averaging)}; "
            "averaging='model'"
        )
    refuse_privacy(slots, "ifca", WHY)
    inner = slots.get("aggregator")
    rule = in_clusters(mean() if inner is None else inner, num_clusters)
    client = local_sgd(loss, client_optimizer, weighting=weighting)
    server = optimizer_server(optax.sgd(1.0) if server_optimizer is None else server_optimizer)
    of_clusters = cluster_server(server, num_clusters, averaging)
    return federated_algorithm(
        best_of_several(client, loss, plan, num_clusters),
        plan=plan,
        sampler=sampler,
        server=of_clusters if groups is None else with_purity(of_clusters, num_clusters, groups),
        **{**slots, "aggregator": rule},
    )


@made
def best_of_several(
    client: ClientUpdate, loss: LossFn, plan: Plan, num_clusters: int
) -> ClientUpdate:
    """Local training that starts from the best of `K` models, in two phases.

    The first is an epoch of forward passes, named ``losses``, each of which starts the training
    anew from the best model so far; the second is shown the batches that it would have alone.

    Args:
      client: local training without rows, of one phase, whose start draws nothing.
      loss: ``(params, examples, key) -> [B]``.
      plan: of the training.
      num_clusters: `K`.

    Returns:
      A `ClientUpdate` that downloads leaves `[K, ...]` and sends one update with weight `[K]`.

    Example:
      >>> square = lambda w, e, key: 0.5 * (w - e["b"]) ** 2
      >>> client = best_of_several(local_sgd(square, optax.sgd(0.5)), square, Plan(4), 3)
      >>> [phase.name for phase in client.step]
      ['losses', '']
    """
    train = step_of(client)

    def init(params: Params) -> ClusterRow:
        client.init(one_of_several(params, jnp.int32(0)))
        return ClusterRow(jnp.int32(NOWHERE))

    def start(key: Key, row: ClusterRow, broadcast: Params, info: ClientInfo) -> ClusterCarry:
        info = info._replace(num_steps=info.main_steps)  # who only measures sends nothing
        mine = jnp.maximum(row.cluster, 0)
        local = client.start(key, (), one_of_several(broadcast, mine), info)
        zero = jnp.zeros((), jnp.result_type(float))
        return ClusterCarry(
            local, jnp.zeros(num_clusters, zero.dtype), zero, mine, row.cluster, info
        )

    def on_losses(broadcast: Params, carry: ClusterCarry, batch: Batch) -> ClusterCarry:
        found = jax.vmap(lambda model: mean_loss(loss, model, batch))(broadcast)
        count = batch.mask.sum().astype(carry.count.dtype)
        losses = carry.losses + found.astype(carry.losses.dtype) * count
        best = least(losses)
        local = client.start(None, (), one_of_several(broadcast, best), carry.info)  # type: ignore[arg-type]
        return carry._replace(local=local, losses=losses, count=carry.count + count, cluster=best)

    def on_model(broadcast: Params, carry: ClusterCarry, batch: Batch) -> ClusterCarry:
        mine = one_of_several(broadcast, carry.cluster)
        return carry._replace(local=train(mine, carry.local, batch))

    def finish(
        broadcast: Params, carry: ClusterCarry
    ) -> tuple[ClusterRow, Message, dict[str, Any]]:
        mine = one_of_several(broadcast, carry.cluster)
        _, message, metrics = client.finish(mine, carry.local)
        told = Mean(carry.losses[carry.cluster], carry.count)
        chose = jnp.isfinite(told.total) & (told.count > 0)
        hot = (jnp.arange(num_clusters) == carry.cluster) & chose
        row = ClusterRow(jnp.where(chose, carry.cluster, carry.before))
        left = (carry.before != NOWHERE) & (row.cluster != carry.before)
        shares = {f"cluster_{k}": hot[k].astype(jnp.float32) for k in range(num_clusters)}
        metrics = {**metrics, "loss": told, **shares, "cluster_changes": left.astype(jnp.float32)}
        return row, Message(message.value, jnp.where(hot, message.weight, 0)), metrics

    phases = (Phase(on_losses, one_epoch(plan), "losses", stream=1), Phase(on_model, stream=0))
    return ClientUpdate(init, start, phases, finish, client.counts)


def least(losses: Array) -> Array:
    """The number of the least loss, int32: of equal ones the lowest, NaN only where all are.

    Example:
      >>> int(least(jnp.array([jnp.nan, 2.0, 1.0, 1.0])))
      2
    """
    return jnp.argmin(jnp.where(jnp.isnan(losses), jnp.inf, losses)).astype(jnp.int32)
