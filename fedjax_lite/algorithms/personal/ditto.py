"""Ditto: every client a model of its own, pulled towards the global one that FedAvg trains."""

from __future__ import annotations

from typing import Any, NamedTuple, Unpack

import jax
import jax.numpy as jnp
import optax

from fedjax_lite.aggregation.mean import Weighting
from fedjax_lite.algorithms.baselines import OwnModel
from fedjax_lite.algorithms.fedprox import pulled
from fedjax_lite.checks.arguments import check_bool, check_finite, check_non_negative, check_slot
from fedjax_lite.checks.made import made
from fedjax_lite.data.population.counting import counts_of
from fedjax_lite.engine.batches import Plan
from fedjax_lite.engine.phases import step_of
from fedjax_lite.models.statistics_checks import check_takes_statistics
from fedjax_lite.round.compose import federated_algorithm
from fedjax_lite.round.local import (
    ClientOptimizer,
    LocalCarry,
    LossFn,
    local_sgd,
    resolve_optimizer,
)
from fedjax_lite.round.server import optimizer_server
from fedjax_lite.round.slot_options import SlotOptions
from fedjax_lite.types import (
    Array,
    Batch,
    ClientInfo,
    ClientUpdate,
    FederatedAlgorithm,
    Key,
    Message,
    Params,
    Phase,
    Sampler,
)


class DittoCarry(NamedTuple):
    """Local training of both models."""

    shared: LocalCarry
    own: LocalCarry


@made
def ditto(
    loss: LossFn,
    client_optimizer: ClientOptimizer,
    *,
    pull: float | Array,
    plan: Plan,
    sampler: Sampler | None = None,
    personal_optimizer: ClientOptimizer | None = None,
    personal_plan: Plan | None = None,
    keep_optimizer: bool = False,
    weighting: Weighting = "examples",
    server_optimizer: optax.GradientTransformation | None = None,
    **slots: Unpack[SlotOptions],
) -> FederatedAlgorithm:
    r"""FedAvg, and beside it a model `v_i` of each client, pulled towards the broadcast `x`.

    .. math::
        y_i &\leftarrow y_i - \eta\,\nabla f_i(y_i), \quad y_i^0 = x, \qquad
        x \leftarrow \textstyle\sum_{i \in S} p_i\, y_i, \\
        v_i &\leftarrow v_i - \eta\,\bigl(\nabla f_i(v_i) + \lambda\,(v_i - x)\bigr), \qquad
        v_i \text{ stays with client } i .

    The global model is FedAvg's in every bit, whatever `pull` is; only it is sent, averaged, made
    private. With ``pull = 0`` the clients' models are those of `local_only`; the larger it is,
    the closer they stay to the global one. A client that has not yet taken part has the initial
    model. Memory O(N x model); a step costs two gradients.

    Args:
      loss: ``(params, examples, key) -> [B]``.
      client_optimizer: of the global model's local steps; an optax optimizer, or
        ``(round) -> optimizer``.
      pull: the paper's `lambda`, at least 0; it may be traced. The paper's code tries .1, 1 and 2.
      plan: local work on the global model, and on the client's own where that has no plan of its
        own: then both take a step on the same batch.
      sampler: who takes part.
      personal_optimizer: of the client's own model; None: as `client_optimizer`. Curvature and
        `pull` together bound its rate: below ``2 / (a + pull)`` for a curvature `a`.
      personal_plan: local work on the client's own model, a phase before the other; the metric
        ``personal_steps`` tells how much that was.
      keep_optimizer: whether the own model's momentum and counters live on between rounds; False
        restarts them each round, as FedAvg does.
      weighting: see `fedavg`.
      server_optimizer: default ``optax.sgd(1.0)``, plain averaging.
      **slots: `aggregator`, `uplink`, `downlink`, `privacy`, `strategy` as in `fedavg`; they see
        the global model only.

    Returns:
      A `FederatedAlgorithm`. ``state.server.params`` is the global model, the clients' own are
      ``personal_models(state)``; metrics ``train_loss`` and ``personal_train_loss`` (without the
      pull).

    Raises:
      TypeError: if an argument has the wrong type.
      ValueError: if `pull` is negative or not finite, or a name is unknown.

    Example:
      >>> import fedjax_lite as fl
      >>> data = fl.data.from_arrays({"b": jnp.array([-1.0, 3.0])}, [0, 1])
      >>> algo = ditto(lambda w, e, key: 0.5 * (w - e["b"]) ** 2, optax.sgd(0.5), pull=1.0,
      ...              plan=fl.Plan(batch_size=1), sampler=fl.everyone())
      >>> state = algo.init(jax.random.key(0), jnp.array(0.0), data)
      >>> for _ in range(2):  # v = v - .5 ((v - b) + (v - x)) = .5 (b + x), with x = 0, then .5
      ...     state, _ = algo.round(jax.random.key(0), state, data)
      >>> float(state.server.params), fl.personal_models(state).tolist()
      (0.75, [-0.25, 1.75])

    Reference: Li, Hu, Beirami, Smith, "Ditto: Fair and Robust Federated Learning Through
    Personalization", 2021, arXiv:2012.04221.
    """
    check_non_negative(pull, "pull")
    check_finite(pull, "pull")
    check_bool(keep_optimizer, "keep_optimizer")
    optimizer = client_optimizer if personal_optimizer is None else personal_optimizer
    name = "client_optimizer" if personal_optimizer is None else "personal_optimizer"
    resolve = resolve_optimizer(pulled(optimizer, pull, name), name)
    shared = local_sgd(loss, client_optimizer, weighting=weighting)
    own = local_sgd(loss, pulled(optimizer, pull))  # it is pulled to its anchor, the broadcast
    step_shared, step_own = step_of(shared), step_of(own)

    def init(params: Params) -> OwnModel:
        shared.init(params)
        optimizer = resolve(jnp.int32(0))
        check_takes_statistics(optimizer, params)
        return OwnModel(params, optimizer.init(params) if keep_optimizer else ())

    def start(key: Key, row: OwnModel, broadcast: Params, info: ClientInfo) -> DittoCarry:
        mine = own.start(key, (), row.params, info)
        if keep_optimizer:
            mine = mine._replace(opt_state=row.opt_state)
        info = info._replace(num_steps=info.main_steps)  # who trains only its own sends nothing
        return DittoCarry(shared.start(key, (), broadcast, info), mine)

    def on_shared(broadcast: Params, carry: DittoCarry, batch: Batch) -> DittoCarry:
        return carry._replace(shared=step_shared(broadcast, carry.shared, batch))

    def on_own(broadcast: Params, carry: DittoCarry, batch: Batch) -> DittoCarry:
        return carry._replace(own=step_own(broadcast, carry.own, batch))

    def on_both(broadcast: Params, carry: DittoCarry, batch: Batch) -> DittoCarry:
        again = batch._replace(key=jax.random.clone(batch.key))  # dropout, too, is the same
        return on_shared(broadcast, on_own(broadcast, carry, batch), again)

    def finish(broadcast: Params, carry: DittoCarry) -> tuple[OwnModel, Message, dict[str, Any]]:
        _, message, metrics = shared.finish(broadcast, carry.shared)
        row = OwnModel(carry.own.params, carry.own.opt_state if keep_optimizer else ())
        return row, message, {**metrics, "personal_train_loss": carry.own.loss}

    step: Any = on_both
    if personal_plan is not None:
        check_slot(personal_plan, "personal_plan", Plan)
        # Both are shown the same stream of examples, as in a step on both.
        step = (Phase(on_own, personal_plan, "personal", stream=0), Phase(on_shared, stream=0))
    return federated_algorithm(
        ClientUpdate(init, start, step, finish, counts_of(loss)),
        plan=plan,
        sampler=sampler,
        server=optimizer_server(optax.sgd(1.0) if server_optimizer is None else server_optimizer),
        **slots,
    )
