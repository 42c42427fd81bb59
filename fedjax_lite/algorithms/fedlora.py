"""FedLoRA: low-rank adapters are trained and sent, the base is known; four ways to average them."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Literal, Unpack, get_args

import jax
import jax.numpy as jnp
import optax

from fedjax_lite import trees
from fedjax_lite.aggregation.mean import Weighting
from fedjax_lite.algorithms.factor_products import mean_of_products, products_of
from fedjax_lite.algorithms.frozen_leaves import HalfState, Halves, half_client, half_server
from fedjax_lite.checks.arguments import shown
from fedjax_lite.checks.made import made, signed
from fedjax_lite.engine.batches import Plan
from fedjax_lite.models.lora import Adapted, LowRank, is_low_rank
from fedjax_lite.round.compose import federated_algorithm
from fedjax_lite.round.local import ClientOptimizer, LossFn
from fedjax_lite.round.server import optimizer_server
from fedjax_lite.round.slot_options import SlotOptions
from fedjax_lite.types import (
    Cohort,
    FederatedAlgorithm,
    Key,
    Known,
    Params,
    PyTree,
    Sampler,
    ServerUpdate,
)

Averaging = Literal["factors", "frozen_a", "residual", "stacked"]


@made
def fedlora(
    loss: LossFn,
    client_optimizer: ClientOptimizer,
    *,
    averaging: Averaging = "factors",
    plan: Plan,
    sampler: Sampler | None = None,
    server_optimizer: optax.GradientTransformation | None = None,
    weighting: Weighting = "examples",
    **slots: Unpack[SlotOptions],
) -> FederatedAlgorithm:
    r"""Federated training of the adapters of a model made with `fedjax_lite.models.lora`.

    Clients train :math:`A_i, B_i` from the server's and send their changes. The model that they
    mean is :math:`W_0 + s \sum_i p_i A_i B_i`, and the mean of factors is another one:

    ============  ==========================================================  ================
    `averaging`   what the server does                                        the mean is
    ============  ==========================================================  ================
    "factors"     :math:`A \leftarrow \sum p_i A_i, B \leftarrow \sum p_i B_i`  off by cross terms
    "frozen_a"    `A` stays as it was drawn, known to all; half the bits        exact
                  (FFA-LoRA)
    "residual"    as "factors", and the kernel takes what is missing,           exact
                  :math:`W \leftarrow W + s(\sum p_i A_i B_i - \bar A \bar B)`
                  (FedEx-LoRA)
    "stacked"     :math:`W \leftarrow W + s \sum p_i A_i B_i`, then new `A`,    exact
                  ``B = 0`` (FLoRA)
    ============  ==========================================================  ================

    In the first two the base is a constant that clients hold: never sent, never changed
    (`with_frozen` puts another in). In the last two the adapted kernels change, so clients
    download them, and ``downlink_bits`` has them: clients may have missed rounds. Their papers let
    everyone take part and send the change as stacked factors, `C r (m + n)` numbers a kernel.

    Args:
      loss: of a model made with `fedjax_lite.models.lora`; its parameters are `Adapted`.
      client_optimizer: an optax optimizer, or ``(round) -> optimizer``, for the adapters.
      averaging: see above.
      plan: local work.
      sampler: who takes part.
      server_optimizer: default ``optax.sgd(1.0)``, plain averaging; "stacked" takes none.
      weighting: see `fedavg`.
      **slots: `uplink`, `downlink`, `strategy` as in `fedavg`, and with "factors" and "frozen_a"
        `aggregator` and `privacy`; in the other two the server has to see each client's factors.

    Returns:
      A `FederatedAlgorithm`; ``state.server.params`` are `Adapted`, for the adapted model and for
      `fedjax_lite.models.merged`.

    Raises:
      TypeError: if an argument has the wrong type; from `init`, if the parameters are no `Adapted`.
      ValueError: if `averaging` is unknown, or does not go with a slot that is given.

    Example:
      >>> import fedjax_lite as fl
      >>> train, _ = fl.data.load("digits")
      >>> data = fl.data.partition(train, fl.data.iid(num_clients=5, seed=0))
      >>> model = fl.models.mlp((16,), input_shape=(8, 8, 1))
      >>> adapted = fl.models.lora(model, model.init(jax.random.key(0)), rank=2)
      >>> algo = fedlora(adapted.loss, optax.sgd(0.1), plan=fl.Plan(batch_size=50),
      ...                sampler=fl.uniform(2))
      >>> state = algo.init(jax.random.key(1), adapted.init(jax.random.key(1)), data)
      >>> state, metrics = algo.round(jax.random.key(1), state, data)
      >>> float(metrics["uplink_bits"]) == 2 * 32 * 2 * (64 + 16 + 16 + 10)
      True

    Reference: Hu et al., "LoRA: Low-Rank Adaptation of Large Language Models", 2021,
    arXiv:2106.09685; Sun et al., "Improving LoRA in Privacy-preserving Federated Learning", 2024,
    arXiv:2403.12313 (FFA-LoRA); Wang et al., "FLoRA: Federated Fine-Tuning Large Language Models
    with Heterogeneous Low-Rank Adaptations", 2024, arXiv:2409.05976; Singhal, Ponkshe, Vepakomma,
    "FedEx-LoRA: Exact Aggregation for Federated and Efficient Fine-Tuning of Foundation Models",
    2024, arXiv:2410.09432.
    """
    if averaging not in get_args(Averaging):
        raise ValueError(
            f"averaging must be one of {get_args(Averaging)}, got {shown(averaging)}; "
            "averaging='factors'"
        )
    moves = averaging in ("residual", "stacked")
    for name in ("aggregator", "privacy"):
        if moves and (given := slots.get(name)) is not None:
            raise ValueError(
                f"{name} does not go with averaging={averaging!r}, for which the server multiplies "
                f"each client's factors, got {shown(given)}; averaging='frozen_a' is exact, "
                "too"
            )
    if averaging == "stacked" and server_optimizer is not None:
        raise ValueError(
            "server_optimizer does not go with averaging='stacked', which starts new adapters in "
            f"every round, got {shown(server_optimizer)}; leave it out"
        )
    is_frozen = frozen_in(averaging)
    server = optimizer_server(optax.sgd(1.0) if server_optimizer is None else server_optimizer)
    server = half_server(server, is_frozen)
    if moves:
        server = signed(_moving_kernels(server, fresh=averaging == "stacked"), server.made)
        slots["aggregator"] = mean_of_products()
    return federated_algorithm(
        half_client(loss, client_optimizer, is_frozen, weighting=weighting),
        plan=plan,
        sampler=sampler,
        server=server,
        **slots,
    )


def frozen_in(averaging: Averaging) -> Callable[[Adapted], PyTree]:
    """Which leaves of `Adapted` nobody trains.

    Example:
      >>> pair = LowRank(jnp.ones((2, 1)), jnp.ones((1, 2)))
      >>> frozen_in("frozen_a")(Adapted({"w": jnp.ones((2, 2))}, {"w": pair}, 1.0)).adapters
      {'w': LowRank(a=True, b=False)}
    """

    def is_frozen(params: Adapted) -> PyTree:
        if not isinstance(params, Adapted):
            raise TypeError(
                f"params must be Adapted, those of a model made with fl.models.lora, got "
                f"{shown(params)}; adapted = fl.models.lora(model, base, rank=4), then "
                "adapted.init(key) and adapted.loss"
            )
        factors = LowRank(a=averaging == "frozen_a", b=False)
        adapters = jax.tree.map(lambda pair: factors, params.adapters, is_leaf=is_low_rank)
        return Adapted(True, adapters, True)

    return is_frozen


def _moving_kernels(server: ServerUpdate, *, fresh: bool) -> ServerUpdate:
    """The kernels that have adapters take part of the aggregate, and travel."""

    def broadcast(state: HalfState) -> Halves:
        trained = server.broadcast(state).trained
        adapted = jax.tree.map(is_low_rank, trained.adapters, is_leaf=_pair_or_none)
        mask = Adapted(adapted, False, False)
        moved, held = trees.halves(mask, state.held)
        return Halves(trained, Known(held), moved)

    def update(
        key: Key, state: HalfState, value: PyTree, cohort: Cohort, metrics: dict[str, Any]
    ) -> HalfState:
        key_server, key_fresh = jax.random.split(key)
        new = server.update(key_server, state, value.factors, cohort, metrics)
        old, change = state.params.adapters, value.factors.adapters
        if fresh:  # B is 0 at the broadcast: A_i B_i = dA_i dB_i - A dB_i
            exact = jax.tree.map(
                lambda p, pair, d: p - pair.a @ d.b,
                *(value.products.adapters, old, change),
                is_leaf=is_low_rank,
            )
            drawn = _drawn_anew(key_fresh, new.inner.params)
            new = new._replace(inner=new.inner._replace(params=drawn))
        else:
            exact = jax.tree.map(jnp.subtract, value.products.adapters, products_of(change))
        return new._replace(held=_added(state.held, exact))

    return server._replace(broadcast=broadcast, update=update)


def _added(held: Adapted, products: Params) -> Adapted:
    """The base with scaled products added to its adapted kernels."""

    def one(product: Any, kernel: Any) -> Any:
        if product is None:
            return kernel
        return kernel + (held.scale * product).reshape(kernel.shape).astype(kernel.dtype)

    base = jax.tree.map(one, products, held.base, is_leaf=lambda leaf: leaf is None)
    return held._replace(base=base)


def _drawn_anew(key: Key, params: Adapted) -> Adapted:
    """New `a`, and `b = 0`."""
    pairs, structure = jax.tree.flatten(params.adapters, is_leaf=is_low_rank)
    new = []
    for i, pair in enumerate(pairs):
        a = jax.random.normal(jax.random.fold_in(key, i), pair.a.shape, pair.a.dtype)
        new.append(LowRank(a / pair.a.shape[0] ** 0.5, jnp.zeros_like(pair.b)))
    return params._replace(adapters=jax.tree.unflatten(structure, new))


def _pair_or_none(node: Any) -> bool:
    return node is None or is_low_rank(node)
