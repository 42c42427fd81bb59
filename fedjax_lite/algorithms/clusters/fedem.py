"""FedEM: clients mix shared models in proportions of their own."""

from __future__ import annotations

from typing import Any, NamedTuple, Unpack

import jax
import jax.numpy as jnp
import optax

from fedjax_lite import trees
from fedjax_lite.aggregation.mean import Weighting, weight_by
from fedjax_lite.algorithms.clusters.membership import NOWHERE
from fedjax_lite.algorithms.clusters.several import check_several, one_of_several
from fedjax_lite.algorithms.one_epoch import one_epoch
from fedjax_lite.checks.arguments import check_count
from fedjax_lite.checks.loss import losses_of
from fedjax_lite.checks.made import made, signed
from fedjax_lite.data.population.counting import counts_of
from fedjax_lite.data.population.population import Population
from fedjax_lite.engine.batches import Plan
from fedjax_lite.engine.phases import step_of
from fedjax_lite.models.weighted import WeightedModels, mixture_loss, responsibilities
from fedjax_lite.round.compose import federated_algorithm
from fedjax_lite.round.local import ClientOptimizer, LossFn, check_loss, local_sgd
from fedjax_lite.round.server import optimizer_server
from fedjax_lite.round.slot_options import SlotOptions
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


class Proportions(NamedTuple):
    """A client's row: how it mixes the shared models."""

    weights: Array
    """`pi_i`, `[K]`, of sum 1."""

    def own_model(self, server_model: Params) -> WeightedModels:
        """The client's mixture, parameters of `weighted_models`; see `RoundState.clients`."""
        return WeightedModels(server_model, self.weights)

    @property
    def cluster(self) -> Array:
        """The number of the largest weight, int32; -1 where all of several are equal.

        Example:
          >>> Proportions(jnp.array([[0.5, 0.5], [0.1, 0.9]])).cluster.tolist()
          [-1, 1]
        """
        undecided = (self.weights.max(-1) == self.weights.min(-1)) & (self.weights.shape[-1] > 1)
        return jnp.where(undecided, NOWHERE, self.weights.argmax(-1)).astype(jnp.int32)


class EMCarry(NamedTuple):
    """Local training of all models, and what the first phase found."""

    local: PyTree
    """Of `local_sgd`, leaves `[K, ...]`."""
    weights: Array
    """`[K]`, with which the client came."""
    shares: Array
    """`[K]`, sums of responsibilities."""
    loss: Mean
    """Of the mixture, before training."""
    finite: Array
    """bool: whether all models' losses were."""
    info: ClientInfo


@made
def fedem(
    loss: LossFn,
    client_optimizer: ClientOptimizer,
    *,
    num_models: int,
    plan: Plan,
    sampler: Sampler | None = None,
    weighting: Weighting = "examples",
    server_optimizer: optax.GradientTransformation | None = None,
    **slots: Unpack[SlotOptions],
) -> FederatedAlgorithm:
    r"""Federated expectation-maximisation: `K` shared models, mixed by each client in its own way.

    .. math::
        q_{jk} &\propto \pi_{ik}\, e^{-\ell(x_k;\, \xi_j)}, \qquad
        \pi_{ik} \leftarrow \frac{1}{n_i} \textstyle\sum_j q_{jk}, \\
        y_{ik} &\leftarrow \text{local SGD on } \frac{1}{n_i} \textstyle\sum_j
            q_{jk}\, \ell(y;\, \xi_j) \text{ from } x_k, \qquad
        x_k \leftarrow \textstyle\sum_{i \in S} p_i\, y_{ik} .

    The first line is a phase of its own: forward passes over *all* of the client's data, in the
    plan's batches. Local steps compute a batch's `q` anew, from the models that were downloaded and
    the weights with which the client came, so that nothing is kept for each example; a step costs
    `K` gradients and `K` forward passes. Each model has an optimizer of its own on the client. With
    one model this is `fedavg`. A client to which one of the `K` models gives a loss that is not
    finite, on any of its examples, sends nothing and keeps its weights. Memory O(N x K).

    Args:
      loss: ``(params, examples, key) -> [B]``, of one model: a negative log-likelihood.
      client_optimizer: an optax optimizer, or ``(round) -> optimizer``.
      num_models: `K`, at least 1.
      plan: local work.
      sampler: who takes part.
      weighting: `p_i`, see `fedavg`.
      server_optimizer: default ``optax.sgd(1.0)``, plain averaging.
      **slots: `aggregator`, `uplink`, `downlink`, `privacy`, `strategy` as in `fedavg`; they see
        all `K` models, leaves `[K, ...]`. Weights of mixtures are never sent.

    Returns:
      A `FederatedAlgorithm`. Its `init` takes `K` models, leaves `[K, ...]`, such as
      ``several_models(model.init, key, K)``; they are ``state.server.params``, and have to differ.
      ``state.clients.weights`` are the proportions `[N, K]`, ``1 / K`` before a client trains;
      `cluster_assignments` gives the largest of each. Mixtures are scored by
      ``weighted_models(model, K)``: ``client_evaluator(weighted_models(model, K), test)``. Metrics:
      ``train_loss``, of examples by their responsibilities; ``loss`` of the mixtures before
      training; ``weight_0`` ..., the cohort's mean proportions. A client downloads and sends `K`
      models.

    Raises:
      TypeError: if an argument has the wrong type.
      ValueError: if `num_models` is below 1; from `init`, if the parameters are not `K` models.

    Example:
      >>> import fedjax_lite as fl
      >>> data = fl.data.from_arrays({"b": jnp.array([-5.0, 5.0])}, [0, 1])
      >>> algo = fedem(lambda w, e, key: 0.5 * (w - e["b"]) ** 2, optax.sgd(1.0), num_models=2,
      ...              plan=fl.Plan(batch_size=1), sampler=fl.everyone())
      >>> state = algo.init(jax.random.key(0), jnp.array([-4.0, 4.0]), data)
      >>> state, metrics = algo.round(jax.random.key(0), state, data)
      >>> state.server.params.tolist(), state.clients.weights.round(3).tolist()
      ([-4.5, 4.5], [[1.0, 0.0], [0.0, 1.0]])

    Reference: Marfoq, Neglia, Bellet, Kameni, Vidal, "Federated Multi-Task Learning under a Mixture
    of Distributions", 2021, arXiv:2108.10415.
    """
    check_count(num_models, "num_models", minimum=1)
    server = optimizer_server(optax.sgd(1.0) if server_optimizer is None else server_optimizer)

    def init(params: Params, population: Population) -> PyTree:
        check_several(params, num_models, "num_models")
        return server.init(params, population)

    return federated_algorithm(
        all_in_part(loss, client_optimizer, plan, num_models, weighting=weighting),
        plan=plan,
        sampler=sampler,
        server=signed(server._replace(init=init), server.made),
        **slots,
    )


@made
def all_in_part(
    loss: LossFn,
    client_optimizer: ClientOptimizer,
    plan: Plan,
    num_models: int,
    *,
    weighting: Weighting = "examples",
) -> ClientUpdate:
    """Local training of `K` models, each on every example by its responsibility, in two phases.

    Args:
      loss: ``(params, examples, key) -> [B]``.
      client_optimizer: of each model.
      plan: of the training; the first phase, ``losses``, is one epoch.
      num_models: `K`.
      weighting: of messages.

    Returns:
      A `ClientUpdate` that downloads and sends leaves `[K, ...]`.

    Example:
      >>> square = lambda w, e, key: 0.5 * (w - e["b"]) ** 2
      >>> [phase.name for phase in all_in_part(square, optax.sgd(0.5), Plan(4), 3).step]
      ['losses', '']
    """
    check_loss(loss)
    weight = weight_by(weighting)

    def in_part(params: Params, examples: tuple[PyTree, Array], key: Key) -> Array:
        losses = loss(params, examples[0], key)
        return losses * examples[1].astype(losses.dtype)

    client = local_sgd(in_part, client_optimizer)
    train = step_of(client)

    def each_loss(models: Params, batch: Batch) -> Array:
        again = jax.random.clone(batch.key)  # dropout, too, is that of the step
        return jax.vmap(lambda one: losses_of(loss, one, batch.examples, again, batch.mask))(models)

    def init(params: Params) -> Proportions:
        client.init(one_of_several(params, jnp.int32(0)))
        return Proportions(jnp.full(num_models, 1 / num_models, jnp.result_type(float)))

    def start(key: Key, row: Proportions, broadcast: Params, info: ClientInfo) -> EMCarry:
        info = info._replace(num_steps=info.main_steps)  # who only measures sends nothing
        local = jax.vmap(lambda one: client.start(key, (), one, info))(broadcast)
        zero = jnp.zeros((), row.weights.dtype)
        shares = jnp.zeros_like(row.weights)
        return EMCarry(local, row.weights, shares, Mean(zero, zero), jnp.bool_(True), info)

    def on_losses(broadcast: Params, carry: EMCarry, batch: Batch) -> EMCarry:
        losses = each_loss(broadcast, batch)
        # Of the losses themselves: an infinite one has a responsibility of 0, which looks finite.
        finite = carry.finite & jnp.where(batch.mask, jnp.isfinite(losses), True).all()
        shares = jnp.where(batch.mask, responsibilities(losses, carry.weights), 0).sum(1)
        told = jnp.where(batch.mask, mixture_loss(losses, carry.weights), 0).sum()
        dtype = carry.shares.dtype
        seen = carry.loss + Mean(told.astype(dtype), batch.mask.sum().astype(dtype))
        shares = carry.shares + shares.astype(dtype)
        return carry._replace(shares=shares, loss=seen, finite=finite)

    def on_models(broadcast: Params, carry: EMCarry, batch: Batch) -> EMCarry:
        parts = responsibilities(each_loss(broadcast, batch), carry.weights)

        def one(model: Params, local: PyTree, part: Array) -> PyTree:
            return train(model, local, batch._replace(examples=(batch.examples, part)))

        return carry._replace(local=jax.vmap(one)(broadcast, carry.local, parts))

    def finish(broadcast: Params, carry: EMCarry) -> tuple[Proportions, Message, dict[str, Any]]:
        update = trees.subtract(broadcast, carry.local.params)
        counts = carry.finite & (carry.loss.count > 0)
        found = carry.shares / jnp.maximum(carry.loss.count, 1)
        weights = jnp.where(counts, found, carry.weights)
        trained = Mean(carry.local.loss.total.sum(), carry.local.loss.count[0])
        metrics = {"train_loss": trained, "loss": carry.loss}
        metrics |= {f"weight_{k}": weights[k].astype(jnp.float32) for k in range(num_models)}
        sent = jnp.where(counts, weight(carry.info), 0)
        return Proportions(weights), Message(update, sent), metrics

    phases = (Phase(on_losses, one_epoch(plan), "losses", stream=1), Phase(on_models, stream=0))
    return ClientUpdate(init, start, phases, finish, counts_of(loss))
