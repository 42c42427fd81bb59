"""APFL: each client uses a mixture of the global model and one of its own."""

from __future__ import annotations

from typing import Any, Literal, NamedTuple, Unpack

import jax
import jax.numpy as jnp
import optax

from fedjax_lite import trees
from fedjax_lite.aggregation.mean import Weighting
from fedjax_lite.checks.arguments import (
    check_finite,
    check_fraction,
    check_non_negative,
    shown,
)
from fedjax_lite.checks.made import made
from fedjax_lite.checks.optimizer_arguments import loss_arguments
from fedjax_lite.data.population.counting import counts_of
from fedjax_lite.engine.batches import Plan
from fedjax_lite.engine.phases import step_of
from fedjax_lite.models.statistics_checks import check_no_statistics
from fedjax_lite.round.compose import federated_algorithm
from fedjax_lite.round.local import (
    ClientOptimizer,
    LocalCarry,
    LossFn,
    add_loss,
    client_step,
    local_sgd,
    mean_grad,
    mean_loss,
    no_loss,
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
    Mean,
    Message,
    Params,
    PyTree,
    Sampler,
)

VARIANTS = ("paper", "unscaled")


class Mixture(NamedTuple):
    """A client's row: its own model, and its share in the mixture that the client uses."""

    own: Params
    """`v_i`."""
    mixing: Array
    """`alpha_i`, a scalar."""

    def own_model(self, server_model: Params) -> Params:
        """The mixture with the server's model, see `RoundState.clients`."""

        def mix(v: Array, w: Array) -> Array:
            share = self.mixing.astype(v.dtype)
            return share * v + (1 - share) * w

        return jax.tree.map(mix, self.own, server_model)


class APFLCarry(NamedTuple):
    """Local training of the shared model and of the mixture."""

    shared: LocalCarry
    row: Mixture
    opt_state: PyTree
    loss: Mean
    """At the mixture."""


@made
def apfl(
    loss: LossFn,
    client_optimizer: ClientOptimizer,
    *,
    mixing: float | Array = 0.5,
    mixing_rate: float | Array | None = None,
    plan: Plan,
    sampler: Sampler | None = None,
    personal_optimizer: ClientOptimizer | None = None,
    variant: Literal["paper", "unscaled"] = "paper",
    weighting: Weighting = "examples",
    server_optimizer: optax.GradientTransformation | None = None,
    **slots: Unpack[SlotOptions],
) -> FederatedAlgorithm:
    r"""FedAvg, and beside it models `v_i` trained so that a mixture with the global one fits.

    .. math::
        \bar v_i &= \alpha_i v_i + (1 - \alpha_i)\, w_i, \qquad w_i^0 = x, \\
        w_i &\leftarrow w_i - \eta\,\nabla f_i(w_i), \qquad
        v_i \leftarrow v_i - \eta\,\alpha_i \nabla f_i(\bar v_i), \\
        \alpha_i &\leftarrow \mathrm{clip}\bigl(\alpha_i - \eta_\alpha
            \langle v_i - w_i, \nabla f_i(\bar v_i) \rangle,\, 0,\, 1\bigr), \qquad
        x \leftarrow \textstyle\sum_{i \in S} p_i\, w_i ,

    all three from the values before the step, on one batch. A client uses
    ``alpha_i v_i + (1 - alpha_i) x`` with the server's latest `x`. ``mixing = 0`` is FedAvg,
    ``mixing = 1`` is `local_only`; the global model is FedAvg's in every bit in any case. Memory
    O(N x model); a step costs two gradients.

    Args:
      loss: ``(params, examples, key) -> [B]``.
      client_optimizer: of the global model's local steps; an optax optimizer, or
        ``(round) -> optimizer``.
      mixing: `alpha`, in [0, 1], with which every client begins; it may be traced.
      mixing_rate: the rate `eta_alpha` by which each client adapts its own `alpha`; the paper's is
        the learning rate. None: `alpha` stays what it is, as in the paper's other experiments.
      plan: local work.
      sampler: who takes part.
      personal_optimizer: of the clients' own models, started anew each round; None: as
        `client_optimizer`.
      variant: "paper", or "unscaled": own models go by the gradient at the mixture without the
        factor `alpha` of the chain rule, as in some published programs.
      weighting: see `fedavg`.
      server_optimizer: default ``optax.sgd(1.0)``, plain averaging.
      **slots: `aggregator`, `uplink`, `downlink`, `privacy`, `strategy` as in `fedavg`; they see
        the global model only.

    Returns:
      A `FederatedAlgorithm`. ``state.server.params`` is the global model, the mixtures are
      ``personal_models(state)``, ``state.clients.mixing`` is `alpha` `[N]`; metrics ``train_loss``
      (of the global model), ``personal_train_loss`` (of the mixture) and ``mixing``.

    Raises:
      TypeError: if an argument has the wrong type.
      ValueError: if `mixing` lies outside [0, 1], `mixing_rate` is negative or a name is unknown.

    Example:
      >>> import fedjax_lite as fl
      >>> data = fl.data.from_arrays({"b": jnp.array([-1.0, 3.0])}, [0, 1])
      >>> algo = apfl(lambda w, e, key: 0.5 * (w - e["b"]) ** 2, optax.sgd(0.5), mixing=0.5,
      ...             plan=fl.Plan(batch_size=1), sampler=fl.everyone())
      >>> state = algo.init(jax.random.key(0), jnp.array(0.0), data)
      >>> state, _ = algo.round(jax.random.key(0), state, data)  # v = .5 * .5 b; x = .5 * mean of b
      >>> float(state.server.params), state.clients.own.tolist(), fl.personal_models(state).tolist()
      (0.5, [-0.25, 0.75], [0.125, 0.625])

    Reference: Deng, Kamani, Mahdavi, "Adaptive Personalized Federated Learning", 2020,
    arXiv:2003.13461.
    """
    check_fraction(mixing, "mixing")
    if mixing_rate is not None:
        check_non_negative(mixing_rate, "mixing_rate")
        check_finite(mixing_rate, "mixing_rate")
    if variant not in VARIANTS:
        raise ValueError(f"variant must be one of {list(VARIANTS)}, got {shown(variant)}")
    optimizer = client_optimizer if personal_optimizer is None else personal_optimizer
    name = "client_optimizer" if personal_optimizer is None else "personal_optimizer"
    resolve, gradient = resolve_optimizer(optimizer, name), mean_grad(loss)
    shared = local_sgd(loss, client_optimizer, weighting=weighting)
    step_shared = step_of(shared)

    def init(params: Params) -> Mixture:
        check_no_statistics(params, "apfl")
        shared.init(params)
        return Mixture(params, jnp.asarray(mixing, jnp.result_type(float)))

    def start(key: Key, row: Mixture, broadcast: Params, info: ClientInfo) -> APFLCarry:
        opt_state = resolve(info.round).init(row.own)
        return APFLCarry(shared.start(key, (), broadcast, info), row, opt_state, no_loss())

    def step(broadcast: Params, carry: APFLCarry, batch: Batch) -> APFLCarry:
        row, current = carry.row, carry.shared.params
        again = batch._replace(key=jax.random.clone(batch.key))  # dropout, too, is the same
        mixed = row.own_model(current)
        value, grad = gradient(mixed, again)
        moved = row.mixing
        if mixing_rate is not None:
            slope = optax.tree.vdot(trees.subtract(row.own, current), grad)
            moved = jnp.clip(moved - jnp.asarray(mixing_rate, moved.dtype) * slope, 0, 1)
        scaled = grad
        if variant == "paper":
            scaled = jax.tree.map(lambda g: row.mixing.astype(g.dtype) * g, grad)

        def objective(own: Params) -> Array:
            return mean_loss(loss, row._replace(own=own).own_model(current), again)

        updates, opt_state = client_step(
            *(resolve(carry.shared.info.round), scaled, carry.opt_state, row.own),
            loss_arguments(objective, value, scaled),
            anchor=broadcast,
        )
        own = optax.apply_updates(row.own, updates)
        return APFLCarry(
            step_shared(broadcast, carry.shared, batch),
            Mixture(own, moved.astype(row.mixing.dtype)),
            opt_state,
            add_loss(carry.loss, value, batch),
        )

    def finish(broadcast: Params, carry: APFLCarry) -> tuple[Mixture, Message, dict[str, Any]]:
        _, message, metrics = shared.finish(broadcast, carry.shared)
        own = {"personal_train_loss": carry.loss, "mixing": carry.row.mixing}
        return carry.row, message, {**metrics, **own}

    return federated_algorithm(
        ClientUpdate(init, start, step, finish, counts_of(loss)),
        plan=plan,
        sampler=sampler,
        server=optimizer_server(optax.sgd(1.0) if server_optimizer is None else server_optimizer),
        **slots,
    )
