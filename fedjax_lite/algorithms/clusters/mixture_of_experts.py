"""A mixture of experts: the server holds the experts, every client learns a router of its own."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Unpack

import optax

from fedjax_lite.aggregation.mean import Weighting
from fedjax_lite.algorithms.personal.local_leaves import local_leaves
from fedjax_lite.checks.arguments import shown
from fedjax_lite.checks.made import made
from fedjax_lite.engine.batches import Plan
from fedjax_lite.round.local import ClientOptimizer, LossFn, local_sgd, resolve_optimizer
from fedjax_lite.round.server import optimizer_server
from fedjax_lite.round.slot_options import SlotOptions
from fedjax_lite.types import Array, FederatedAlgorithm, Params, PyTree, Sampler

PARTS = ("experts", "router")


@made
def mixture_of_experts(
    loss: LossFn,
    client_optimizer: ClientOptimizer,
    *,
    router_optimizer: ClientOptimizer | None = None,
    plan: Plan,
    sampler: Sampler | None = None,
    weighting: Weighting = "examples",
    server_optimizer: optax.GradientTransformation | None = None,
    **slots: Unpack[SlotOptions],
) -> FederatedAlgorithm:
    r"""FedAvg of `K` experts under routers of the clients' own, both trained at once.

    .. math::
        h_i(\xi) &= \textstyle\sum_k g_k(\xi; r_i)\, h(\xi; x_k), \\
        (y_{i1}, \ldots, y_{iK}, r_i) &\leftarrow \text{local SGD on } f_i \text{ from }
            (x_1, \ldots, x_K, r_i), \qquad
        x_k \leftarrow \textstyle\sum_{i \in S} p_i\, y_{ik}, \qquad
        r_i \text{ stays with client } i .

    By "top-1" routing, and an optimizer that rests where gradients are zero (one without weight
    decay), a client that routes nothing to an expert sends no change of it; soft gates route a
    little of everything everywhere. With one expert this is `fedavg`. Routers that rest
    (``router_optimizer=optax.set_to_zero()``) and choose one expert for all of a client's data make
    it `ifca` with ``averaging="gradient"`` and those clusters. Memory O(N x router).

    Args:
      loss: ``(params, examples, key) -> [B]`` of ``{"experts": ..., "router": ...}``: that of
        `fedjax_lite.models.gated_experts`, which routes softly or to the top expert.
      client_optimizer: an optax optimizer, or ``(round) -> optimizer``.
      router_optimizer: of the routers, started anew each round; None: as `client_optimizer`, one
        for both. With it, neither is given the broadcast model (`proximal`).
      plan: local work.
      sampler: who takes part.
      weighting: `p_i`, see `fedavg`.
      server_optimizer: default ``optax.sgd(1.0)``, plain averaging.
      **slots: `aggregator`, `uplink`, `downlink`, `privacy`, `strategy` as in `fedavg`; they see
        the experts only.

    Returns:
      A `FederatedAlgorithm`; see `local_leaves` for its state. The clients' models are
      ``personal_models(state)``; a client that never trained has the router of the start.

    Raises:
      TypeError: if an argument has the wrong type.
      ValueError: if a name is unknown; from `init`, if the parameters have other parts.

    Example:
      >>> import jax, jax.numpy as jnp, fedjax_lite as fl
      >>> data = fl.data.from_arrays({"b": jnp.array([-4.0, 4.0])}, [0, 1])
      >>> square = lambda w, e, key: 0.5 * (w["experts"] @ w["router"] - e["b"]) ** 2
      >>> algo = mixture_of_experts(square, optax.sgd(1.0), router_optimizer=optax.sgd(0.125),
      ...                           plan=fl.Plan(batch_size=1), sampler=fl.everyone())
      >>> params = {"experts": jnp.array([-1.0, 1.0]), "router": jnp.array([0.5, 0.5])}
      >>> state = algo.init(jax.random.key(0), params, data)
      >>> state, _ = algo.round(jax.random.key(0), state, data)
      >>> fl.personal_models(state)["router"].tolist(), state.server.params["experts"].tolist()
      ([[1.0, 0.0], [0.0, 1.0]], [-1.0, 1.0])

    Reference: Reisser, Louizos, Gavves, Welling, "Federated Mixture of Experts", 2021,
    arXiv:2107.06724; Jacobs, Jordan, Nowlan, Hinton, "Adaptive Mixtures of Local Experts", 1991.
    """
    if router_optimizer is not None:
        client_optimizer = one_each(client_optimizer, router_optimizer)
    return local_leaves(
        local_sgd(loss, client_optimizer, weighting=weighting),
        is_local=is_router,
        plan=plan,
        sampler=sampler,
        server=optimizer_server(optax.sgd(1.0) if server_optimizer is None else server_optimizer),
        **slots,
    )


def one_each(of_experts: ClientOptimizer, of_router: ClientOptimizer) -> ClientOptimizer:
    """An optimizer of both parts, each by its own.

    Example:
      >>> both = one_each(optax.sgd(1.0), optax.set_to_zero())(0)
      >>> params = {"experts": 1.0, "router": 1.0}
      >>> sorted(both.update(params, both.init(params))[0].items())
      [('experts', -1.0), ('router', Array(0., dtype=float32, weak_type=True))]
    """
    by_round = {
        "experts": resolve_optimizer(of_experts),
        "router": resolve_optimizer(of_router, "router_optimizer"),
    }

    def optimizer(round: Array) -> optax.GradientTransformation:
        both = {part: make(round) for part, make in by_round.items()}
        return optax.partition(both, {part: part for part in PARTS})

    return optimizer


def is_router(params: Params) -> PyTree:
    """Which leaves stay with the clients.

    Raises:
      ValueError: if the parameters are not experts and a router.

    Example:
      >>> is_router({"experts": 1.0, "router": 2.0})
      {'experts': False, 'router': True}
    """
    if not isinstance(params, Mapping) or sorted(params) != list(PARTS):
        parts = sorted(params) if isinstance(params, Mapping) else shown(params)
        raise ValueError(
            f"params must be those of experts and a router, {list(PARTS)}, got {parts}; give "
            "fl.models.gated_experts(expert, router, num_experts).init(key)"
        )
    return {"experts": False, "router": True}
