"""Vertical SGD and FedBCD: one model trained by parties that hold its columns."""

from __future__ import annotations

from collections.abc import Mapping

import optax

from fedjax_lite.checks.arguments import check_count, check_fraction
from fedjax_lite.checks.made import made
from fedjax_lite.engine.batches import Plan
from fedjax_lite.parties.model import VerticalModel
from fedjax_lite.parties.vertical_round import vertical_algorithm
from fedjax_lite.types import Array, FederatedAlgorithm, Transform

Optimizer = optax.GradientTransformation | Mapping[str, optax.GradientTransformation]
"""One of optax for all, each party with a state of its own; or one for each party, by name."""


@made
def vertical_sgd(
    model: VerticalModel,
    optimizer: Optimizer,
    *,
    plan: Plan,
    uplink: Transform | None = None,
    downlink: Transform | None = None,
    absence: float | Array = 0.0,
) -> FederatedAlgorithm:
    r"""SGD on a model whose parts lie with parties that hold its columns.

    .. math::  h_p = f_p(\theta_p; x_p) \;\text{ up}, \qquad
               g_p = \partial \ell / \partial h_p \;\text{ down}, \qquad
               \theta_p \leftarrow \theta_p + \mathrm{update}\bigl(
               (\partial f_p / \partial \theta_p)^\top g_p \bigr)

    It is SGD on the whole model, `joint`, on the same batches (exactly, where the optimizer works
    coordinate by coordinate: each party's sees its own part of the gradient only). All parties
    draw the same batches, those of a federation of one client. A round is one compiled program, in
    which parties are side by side.

    Noise on the wires (``fl.chain(fl.clip(C), fl.gaussian_noise(sigma))``) makes one message of one
    entity :math:`2C / \sigma`-Gaussian DP towards its receiver, parameters held fixed, and
    **nothing more**: entities come again in every epoch, their messages compose; a regression's
    batch is one message, clipped as a whole; the models that parties keep have seen their own
    columns exactly, as the head has the labels; who is in the intersection is known before.

    Args:
      model: in pieces: `regression`, or `vertical_model`.
      optimizer: of optax, for all or by party; its state lasts. A party's step in a batch that it
        misses is left out.
      plan: batches, and how many of them a round has.
      uplink: what happens to an activation on its way: clipped, noised, quantised, sparsified,
        each example's by itself (numbers, such as a regression's, as the vector of a batch). Its
        memoryless ones only.
      downlink: the same for the gradients that come back.
      absence: the probability with which a party sends nothing in a batch (the holder's own
        activation is always there), so that the heads learn to do without it. In its place stands
        the mean of what it sent in the round before.

    Returns:
      A `FederatedAlgorithm`: ``init(key, model.init(key), data)`` with a `ColumnDataset`;
      ``state.server.params`` is a `Joint`. Metrics: ``train_loss`` (of several holders the sum, and
      each one's as ``train_loss_<party>``), ``num_parties``, ``num_exchanges``, ``num_steps``, and
      every activation and gradient sent as ``uplink_bits`` and ``downlink_bits``.

    Raises:
      TypeError: if a slot has the wrong type.
      ValueError: if `absence` is no probability, or a transform remembers one message for the next.

    Example:
      >>> import jax, jax.numpy as jnp, fedjax_lite as fl
      >>> data = fl.parties.from_columns({"a": jnp.array([[1.0], [-1.0]]), "b": jnp.eye(2)},
      ...                                {"a": jnp.array([1, 0])})
      >>> algo = vertical_sgd(fl.parties.regression("logistic", data), optax.sgd(1.0),
      ...                     plan=fl.Plan(batch_size=None))
      >>> state = algo.init(jax.random.key(0), None, data)
      >>> state, metrics = algo.round(jax.random.key(0), state, data)
      >>> state.server.params.bottoms["b"].tolist(), float(metrics["uplink_bits"])
      ([0.25, -0.25], 64.0)

    Reference: Yang, Liu, Chen, Tong, "Federated Machine Learning: Concept and Applications", 2019,
    arXiv:1902.04885.
    """
    check_fraction(absence, "absence")
    return vertical_algorithm(
        model,
        optimizer,
        plan=plan,
        local_steps=1,
        uplink=uplink,
        downlink=downlink,
        absence=absence,
    )


@made
def fedbcd(
    model: VerticalModel,
    optimizer: Optimizer,
    *,
    plan: Plan,
    local_steps: int,
    uplink: Transform | None = None,
    downlink: Transform | None = None,
    absence: float | Array = 0.0,
) -> FederatedAlgorithm:
    r"""FedBCD-p: several local steps of every party for each exchange.

    .. math::  Q \text{ times, all parties at once: } \theta_p \leftarrow \theta_p +
       \mathrm{update}\Bigl( (\partial f_p(\theta_p) / \partial \theta_p)^\top g_p +
       [p \text{ holds labels}]\, \nabla_p\, \ell(\theta_{\text{head}}, f_p(\theta_p), h_{-p})
       \Bigr)

    What others sent, :math:`g_p` and :math:`h_{-p}`, is of the exchange and grows stale; what a
    party has itself is fresh. ``local_steps=1`` is `vertical_sgd`, exactly.

    Args:
      model: in pieces: `regression`, or `vertical_model`.
      optimizer: of optax, for all or by party.
      plan: batches, and how many of them a round has; each is exchanged once.
      local_steps: `Q`, on the batch that was exchanged.
      uplink: see `vertical_sgd`.
      downlink: see `vertical_sgd`.
      absence: see `vertical_sgd`.

    Returns:
      A `FederatedAlgorithm`; see `vertical_sgd`.

    Raises:
      TypeError: if a slot has the wrong type.
      ValueError: if `local_steps` is below 1; else as `vertical_sgd`.

    Example:
      >>> import jax, jax.numpy as jnp, fedjax_lite as fl
      >>> data = fl.parties.from_columns({"a": jnp.array([[1.0], [-1.0]]), "b": jnp.eye(2)},
      ...                                {"a": jnp.array([1, 0])})
      >>> algo = fedbcd(fl.parties.regression("logistic", data), optax.sgd(1.0), local_steps=3,
      ...               plan=fl.Plan(batch_size=None))
      >>> state = algo.init(jax.random.key(0), None, data)
      >>> state, metrics = algo.round(jax.random.key(0), state, data)
      >>> state.server.params.bottoms["b"].tolist(), float(metrics["uplink_bits"])
      ([0.75, -0.75], 64.0)

    Reference: Liu, Kang, Zhang, Li, Cheng, Chen, Hong, Yang, "A Communication Efficient
    Collaborative Learning Framework for Distributed Features", 2019, arXiv:1912.11187.
    """
    check_count(local_steps, "local_steps", minimum=1)
    check_fraction(absence, "absence")
    return vertical_algorithm(
        model,
        optimizer,
        plan=plan,
        local_steps=local_steps,
        uplink=uplink,
        downlink=downlink,
        absence=absence,
    )
