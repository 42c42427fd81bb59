"""FedRep: clients fit their own head to the shared body, then help to train the body."""

from __future__ import annotations

from typing import Any, NamedTuple, Unpack

import optax

from fedjax_lite import trees
from fedjax_lite.aggregation.mean import Weighting, weight_by
from fedjax_lite.algorithms.personal.heads import IsHead, head_mask, of_one_half
from fedjax_lite.algorithms.personal.local_leaves import local_leaves
from fedjax_lite.checks.arguments import check_slot
from fedjax_lite.checks.made import made
from fedjax_lite.data.population.counting import counts_of
from fedjax_lite.engine.batches import Plan
from fedjax_lite.engine.phases import step_of
from fedjax_lite.round.local import (
    ClientOptimizer,
    LocalCarry,
    LossFn,
    check_loss,
    local_sgd,
    resolve_optimizer,
)
from fedjax_lite.round.server import optimizer_server
from fedjax_lite.round.slot_options import SlotOptions
from fedjax_lite.types import (
    Batch,
    ClientInfo,
    ClientUpdate,
    FederatedAlgorithm,
    Key,
    Message,
    Params,
    Phase,
    PyTree,
    Sampler,
)


@made
def fedrep(
    loss: LossFn,
    client_optimizer: ClientOptimizer,
    *,
    is_head: IsHead | None = None,
    plan: Plan,
    head_plan: Plan | None = None,
    head_optimizer: ClientOptimizer | None = None,
    head_data: str = "",
    sampler: Sampler | None = None,
    weighting: Weighting = "examples",
    server_optimizer: optax.GradientTransformation | None = None,
    **slots: Unpack[SlotOptions],
) -> FederatedAlgorithm:
    r"""A shared body under heads of the clients' own: head steps first, then body steps.

    .. math::
        h_i &\leftarrow h_i - \eta_h\,\nabla_h f_i(\phi, h_i) \quad\text{by the head plan, with the
            body } \phi = x \text{ at rest}, \\
        \phi_i &\leftarrow \phi_i - \eta\,\nabla_\phi f_i(\phi_i, h_i) \quad\text{by the plan, with
            the head at rest}, \qquad
        x \leftarrow \textstyle\sum_{i \in S} p_i\, \phi_i .

    Only bodies are sent; `h_i` stays with client `i`. A head step computes no gradient of the body:
    it costs the forward pass and the head's backward pass. Without a head it is `fedavg`, in every
    bit. Memory O(N x head).

    Args:
      loss: ``(params, examples, key) -> [B]``.
      client_optimizer: of the body; an optax optimizer, or ``(round) -> optimizer``.
      is_head: ``(params) -> bools``, a prefix of the parameters, True for the head; None: what is
        called "head", as in every model of `fedjax_lite.models`.
      plan: work on the body. The paper's program gives it one epoch.
      head_plan: work on the head before that; the paper's program gives it ten epochs. None: as
        `plan`. The metric ``head_steps`` tells how much it was.
      head_optimizer: None: as `client_optimizer`.
      head_data: the split of each client's data that its head is fitted to, such as "held_out" of
        ``fl.data.with_splits(train, {"held_out": held_out})``: rows that the body is not trained
        on. Default "": the rows of the body.
      sampler: who takes part.
      weighting: see `fedavg`.
      server_optimizer: default ``optax.sgd(1.0)``, plain averaging.
      **slots: `aggregator`, `uplink`, `downlink`, `privacy`, `strategy` as in `fedavg`; they see
        the body only.

    Returns:
      A `FederatedAlgorithm`; see `local_leaves` for its state. The clients' whole models are
      ``personal_models(state)``; metrics ``head_train_loss`` and ``train_loss`` of both phases.

    Raises:
      TypeError: if an argument has the wrong type.
      ValueError: if a name is unknown; from `init`, if nothing is called "head".

    Example:
      >>> import jax, jax.numpy as jnp, fedjax_lite as fl
      >>> data = fl.data.from_arrays({"c": jnp.array([2.0, 4.0])}, [0, 1])
      >>> algo = fedrep(lambda w, e, key: 0.5 * (w["body"] * w["head"] - e["c"]) ** 2,
      ...               optax.sgd(0.5), plan=fl.Plan(batch_size=1), sampler=fl.everyone())
      >>> params = {"body": jnp.array(1.0), "head": jnp.array(0.0)}
      >>> state = algo.init(jax.random.key(0), params, data)
      >>> state, _ = algo.round(jax.random.key(0), state, data)  # body: 1 - .5 h (h - c), h = c / 2
      >>> fl.personal_models(state)["head"].tolist(), float(state.server.params["body"])
      ([1.0, 2.0], 2.25)

    Reference: Collins, Hassani, Mokhtari, Shakkottai, "Exploiting Shared Representations for
    Personalized Federated Learning", 2021, arXiv:2102.07078.
    """
    mask = head_mask(is_head)
    if head_plan is not None:
        check_slot(head_plan, "head_plan", Plan)
    return local_leaves(
        head_then_body(
            loss,
            head_optimizer=head_optimizer,
            body_optimizer=client_optimizer,
            is_head=mask,
            head_plan=head_plan,
            head_data=head_data,
            weighting=weighting,
        ),
        is_local=mask,
        plan=plan,
        sampler=sampler,
        server=optimizer_server(optax.sgd(1.0) if server_optimizer is None else server_optimizer),
        **slots,
    )


class Halves(NamedTuple):
    """Local training of head and body, each with None in place of the other's leaves."""

    head: LocalCarry
    body: LocalCarry


def head_then_body(
    loss: LossFn,
    *,
    head_optimizer: ClientOptimizer | None,
    body_optimizer: ClientOptimizer,
    is_head: IsHead,
    head_plan: Plan | None,
    head_data: str = "",
    weighting: Weighting,
) -> ClientUpdate:
    """Local training in two phases; sends ``server minus client`` of the whole model.

    The body's batches are those that `local_sgd` would have, the head's are others.

    Example:
      >>> client = head_then_body(lambda w, e, key: w["head"] * w["body"], is_head=head_mask(None),
      ...     head_optimizer=optax.sgd(0.1), body_optimizer=optax.sgd(0.1), head_plan=None,
      ...     weighting="uniform")
      >>> [phase.name for phase in client.step]
      ['head', '']
    """
    check_loss(loss)
    resolve_optimizer(body_optimizer)
    if head_optimizer is None:
        head_optimizer = body_optimizer
    elif not isinstance(head_optimizer, optax.GradientTransformation):
        head_optimizer = resolve_optimizer(head_optimizer, "head_optimizer")
    weight = weight_by(weighting)

    def of_head(body: Params) -> ClientUpdate:
        return local_sgd(of_one_half(loss, body), head_optimizer)

    def of_body(head: Params) -> ClientUpdate:
        return local_sgd(of_one_half(loss, head), body_optimizer)

    def halves(params: Params) -> tuple[Params, Params]:
        return trees.halves(is_head(params), params)

    def init(params: Params) -> PyTree:
        head, body = halves(params)
        of_head(body).init(head)
        of_body(head).init(body)
        return ()

    def start(key: Key, row: PyTree, broadcast: Params, info: ClientInfo) -> Halves:
        head, body = halves(broadcast)
        mine = of_head(body).start(key, (), head, info)
        return Halves(mine, of_body(head).start(key, (), body, info))

    def on_head(broadcast: Params, carry: Halves, batch: Batch) -> Halves:
        step = step_of(of_head(carry.body.params))
        return carry._replace(head=step(halves(broadcast)[0], carry.head, batch))

    def on_body(broadcast: Params, carry: Halves, batch: Batch) -> Halves:
        step = step_of(of_body(carry.head.params))
        return carry._replace(body=step(halves(broadcast)[1], carry.body, batch))

    def finish(broadcast: Params, carry: Halves) -> tuple[PyTree, Message, dict[str, Any]]:
        params = trees.whole(carry.head.params, carry.body.params)
        info = carry.body.info
        own = weight(info._replace(num_steps=info.main_steps))  # of the body: the head is not sent
        losses = {"train_loss": carry.body.loss, "head_train_loss": carry.head.loss}
        return (), Message(trees.subtract(broadcast, params), own), losses

    phases = (Phase(on_head, head_plan, "head", 1, head_data), Phase(on_body, stream=0))
    return ClientUpdate(init, start, phases, finish, counts_of(loss))
