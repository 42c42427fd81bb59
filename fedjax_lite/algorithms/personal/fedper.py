"""FedPer and LG-FedAvg: one half of the model is shared, the other stays with the client."""

from __future__ import annotations

from typing import Unpack

import jax
import optax

from fedjax_lite.aggregation.mean import Weighting
from fedjax_lite.algorithms.personal.heads import IsHead, head_mask
from fedjax_lite.algorithms.personal.local_leaves import local_leaves
from fedjax_lite.checks.made import made
from fedjax_lite.engine.batches import Plan
from fedjax_lite.round.local import ClientOptimizer, LossFn, local_sgd
from fedjax_lite.round.server import optimizer_server
from fedjax_lite.round.slot_options import SlotOptions
from fedjax_lite.types import FederatedAlgorithm, Params, PyTree, Sampler


@made
def fedper(
    loss: LossFn,
    client_optimizer: ClientOptimizer,
    *,
    is_head: IsHead | None = None,
    plan: Plan,
    sampler: Sampler | None = None,
    weighting: Weighting = "examples",
    server_optimizer: optax.GradientTransformation | None = None,
    **slots: Unpack[SlotOptions],
) -> FederatedAlgorithm:
    r"""FedAvg of the body under heads of the clients' own, both trained at once.

    .. math::
        (\phi_i, h_i) \leftarrow \text{local SGD on } f_i(\phi, h) \text{ from } (x, h_i), \qquad
        x \leftarrow \textstyle\sum_{i \in S} p_i\, \phi_i, \qquad
        h_i \text{ stays with client } i .

    It is `local_leaves` with the head as the local leaves; without a head it is `fedavg`, with
    nothing but a head `local_only`. Memory O(N x head).

    Args:
      loss: ``(params, examples, key) -> [B]``.
      client_optimizer: an optax optimizer, or ``(round) -> optimizer``; of the whole model.
      is_head: ``(params) -> bools``, a prefix of the parameters, True for the head; None: what is
        called "head", as in every model of `fedjax_lite.models`.
      plan: local work.
      sampler: who takes part.
      weighting: see `fedavg`.
      server_optimizer: default ``optax.sgd(1.0)``, plain averaging.
      **slots: `aggregator`, `uplink`, `downlink`, `privacy`, `strategy` as in `fedavg`; they see
        the body only.

    Returns:
      A `FederatedAlgorithm`; see `local_leaves` for its state.

    Raises:
      TypeError: if an argument has the wrong type.
      ValueError: if a name is unknown; from `init`, if nothing is called "head".

    Example:
      >>> import jax, jax.numpy as jnp, fedjax_lite as fl
      >>> data = fl.data.from_arrays({"c": jnp.array([2.0, 4.0])}, [0, 1])
      >>> algo = fedper(lambda w, e, key: w["body"] + w["head"] * e["c"], optax.sgd(0.5),
      ...               plan=fl.Plan(batch_size=1), sampler=fl.everyone())
      >>> params = {"body": jnp.array(0.0), "head": jnp.array(0.0)}
      >>> state = algo.init(jax.random.key(0), params, data)
      >>> state, _ = algo.round(jax.random.key(0), state, data)
      >>> fl.personal_models(state)["head"].tolist(), state.server.params
      ([-1.0, -2.0], {'body': Array(-0.5, dtype=float32), 'head': None})

    Reference: Arivazhagan, Aggarwal, Singh, Choudhary, "Federated Learning with Personalization
    Layers", 2019, arXiv:1912.00818.
    """
    return local_leaves(
        local_sgd(loss, client_optimizer, weighting=weighting),
        is_local=head_mask(is_head),
        plan=plan,
        sampler=sampler,
        server=optimizer_server(optax.sgd(1.0) if server_optimizer is None else server_optimizer),
        **slots,
    )


@made
def lg_fedavg(
    loss: LossFn,
    client_optimizer: ClientOptimizer,
    *,
    is_head: IsHead | None = None,
    plan: Plan,
    sampler: Sampler | None = None,
    weighting: Weighting = "examples",
    server_optimizer: optax.GradientTransformation | None = None,
    **slots: Unpack[SlotOptions],
) -> FederatedAlgorithm:
    r"""FedAvg of the head over bodies of the clients' own: local representations.

    .. math::
        (\phi_i, h_i) \leftarrow \text{local SGD on } f_i(\phi, h) \text{ from } (\phi_i, x),
        \qquad x \leftarrow \textstyle\sum_{i \in S} p_i\, h_i, \qquad
        \phi_i \text{ stays with client } i .

    FedPer with the halves exchanged. The authors' program begins with a model that FedAvg trained,
    without which the bodies have nothing in common: give it to `init` as the parameters, and the
    layers that shall be shared as the head. Memory O(N x body).

    Args:
      loss: ``(params, examples, key) -> [B]``.
      client_optimizer: an optax optimizer, or ``(round) -> optimizer``; of the whole model.
      is_head: ``(params) -> bools``, True for the leaves that are shared; None: what is called
        "head", as in every model of `fedjax_lite.models`.
      plan: local work.
      sampler: who takes part.
      weighting: see `fedavg`.
      server_optimizer: default ``optax.sgd(1.0)``, plain averaging.
      **slots: as in `fedper`; they see the head only.

    Returns:
      A `FederatedAlgorithm`; see `local_leaves` for its state.

    Raises:
      TypeError: if an argument has the wrong type.
      ValueError: if a name is unknown; from `init`, if nothing is called "head".

    Example:
      >>> import jax, jax.numpy as jnp, fedjax_lite as fl
      >>> data = fl.data.from_arrays({"c": jnp.array([2.0, 4.0])}, [0, 1])
      >>> algo = lg_fedavg(lambda w, e, key: w["body"] + w["head"] * e["c"], optax.sgd(0.5),
      ...                  plan=fl.Plan(batch_size=1), sampler=fl.everyone())
      >>> params = {"body": jnp.array(0.0), "head": jnp.array(0.0)}
      >>> state = algo.init(jax.random.key(0), params, data)
      >>> state, _ = algo.round(jax.random.key(0), state, data)
      >>> fl.personal_models(state)["body"].tolist(), float(state.server.params["head"])
      ([-0.5, -0.5], -1.5)

    Reference: Liang, Liu, Ziyin, Allen, Auerbach, Brent, Salakhutdinov, Morency, "Think Locally,
    Act Globally: Federated Learning with Local and Global Representations", 2020, arXiv:2001.01523.
    """
    mask = head_mask(is_head)

    def is_body(params: Params) -> PyTree:
        return jax.tree.map(lambda of_head: not of_head, mask(params))

    return local_leaves(
        local_sgd(loss, client_optimizer, weighting=weighting),
        is_local=is_body,
        plan=plan,
        sampler=sampler,
        server=optimizer_server(optax.sgd(1.0) if server_optimizer is None else server_optimizer),
        **slots,
    )
