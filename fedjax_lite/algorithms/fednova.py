"""FedNova: clients that do different amounts of work send normalised directions."""

from __future__ import annotations

from typing import Any, NamedTuple, Unpack

import jax
import jax.numpy as jnp
import numpy as np
import optax

from fedjax_lite import trees
from fedjax_lite.aggregation.mean import Weighting
from fedjax_lite.checks.arguments import check_fraction, check_non_negative, check_positive, shown
from fedjax_lite.checks.made import made
from fedjax_lite.data.population.counting import counts_of
from fedjax_lite.engine.batches import Plan
from fedjax_lite.engine.phases import step_of
from fedjax_lite.models.statistics_checks import refuse_statistics
from fedjax_lite.objectives.proximal import proximal
from fedjax_lite.round.compose import federated_algorithm
from fedjax_lite.round.local import LocalCarry, LossFn, local_sgd
from fedjax_lite.round.server import Rate, ServerState, optimizer_server
from fedjax_lite.round.slot_options import SlotOptions
from fedjax_lite.transforms.chain import send
from fedjax_lite.types import (
    Array,
    Batch,
    ClientInfo,
    ClientUpdate,
    Cohort,
    FederatedAlgorithm,
    Key,
    Mean,
    Message,
    Params,
    PyTree,
    Sampler,
    ServerUpdate,
    Transform,
    Wire,
)


@made
def fednova(
    loss: LossFn,
    learning_rate: Rate,
    *,
    plan: Plan,
    sampler: Sampler | None = None,
    momentum: float | Array = 0.0,
    mu: float | Array = 0.0,
    weighting: Weighting = "examples",
    server_optimizer: optax.GradientTransformation | None = None,
    **slots: Unpack[SlotOptions],
) -> FederatedAlgorithm:
    r"""Federated averaging of directions that do not depend on how many steps a client did.

    .. math::
        x - y_i = \eta \textstyle\sum_j a_{ij}\, g_{ij}, \qquad
        d_i = \frac{x - y_i}{\lVert a_i \rVert_1}, \qquad
        x \leftarrow x - \tau_{\mathrm{eff}} \textstyle\sum_{i \in S} p_i d_i, \qquad
        \tau_{\mathrm{eff}} = \sum_{i \in S} p_i \tau_i .

    The paper's `d_i` is divided by `eta` as well and its update multiplied by it; here it stays
    in. See `normalizer` for `a_i`. ``tau_i`` is ``|a_i|_1``, where the proximal term is left out
    of account: with `mu` (and no momentum) it is the number of steps, as the paper has it.
    Equal work makes it FedAvg, up to the factor ``tau / |a|_1`` of the proximal term. With a
    finite rate the fixed point is not the optimum; its error is `O(eta)`, whereas FedAvg's under
    unequal work does not vanish with `eta`.

    Args:
      loss: ``(params, examples, key) -> [B]``, one loss per example.
      learning_rate: `eta` of the clients' SGD, or a schedule ``(round) -> eta``; may be traced.
      plan: local work; the steps that clients really do are what counts.
      sampler: who takes part.
      momentum: `rho` of the clients' SGD, which starts anew each round, in `[0, 1]`.
      mu: penalty of the local proximal term, see `proximal`; ``learning_rate * mu`` must be
        below 1, or else coefficients `a_ij` are negative.
      weighting: `p_i`: "examples" (`n_i`), "uniform", or a function of `ClientInfo`.
      server_optimizer: descends on ``tau_eff sum p_i d_i``; default ``optax.sgd(1.0)``.
      **slots: `aggregator`, `uplink`, `downlink`, `privacy`, `strategy` as in `fedavg`. An uplink
        sees the direction; `tau` is sent beside it, 32 bits. An aggregator sees
        ``NovaValue(direction, tau)``: rules by norms, such as `norm_bound`, bound both together.

    Returns:
      A `FederatedAlgorithm`; the global model is ``state.server.params``, and the round's metrics
      have ``tau_eff``.

    Raises:
      TypeError: if an argument has the wrong type.
      ValueError: if a rate is not positive, `mu` negative, `momentum` outside `[0, 1]` or
        ``learning_rate * mu`` not below 1.

    Example:
      >>> import fedjax_lite as fl
      >>> data = fl.data.from_arrays({"g": jnp.array([1.0, -2.0])}, [0, 1])
      >>> algo = fednova(lambda w, e, key: w * e["g"], 0.5, sampler=fl.everyone(),
      ...                plan=fl.Plan(batch_size=1, steps=jnp.array([7, 1])))
      >>> state = algo.init(jax.random.key(0), jnp.array(0.0), data)
      >>> state, metrics = algo.round(jax.random.key(0), state, data)
      >>> float(metrics["tau_eff"]), float(state.server.params)  # 0 - 4 * 0.5 * (1 - 2) / 2
      (4.0, 1.0)

    Reference: Wang, Liu, Liang, Joshi, Poor, "Tackling the Objective Inconsistency Problem in
    Heterogeneous Federated Optimization", 2020, arXiv:2007.07481.
    """
    if not callable(learning_rate):
        check_positive(learning_rate, "learning_rate")
    check_fraction(momentum, "momentum")
    check_non_negative(mu, "mu")
    _check_product(learning_rate, mu)
    optimizer = optax.sgd(1.0) if server_optimizer is None else server_optimizer
    if (privacy := slots.get("privacy")) is not None:
        raise ValueError(
            f"privacy must be left out of fednova, got {shown(privacy)}: one clipping "
            "norm would bound directions and numbers of steps together; use fedavg or fedprox"
        )
    uplink = slots.get("uplink")
    if isinstance(uplink, Transform):
        slots["uplink"] = of_direction(uplink)
    return federated_algorithm(
        nova_client(loss, learning_rate, momentum=momentum, mu=mu, weighting=weighting),
        plan=plan,
        sampler=sampler,
        server=nova_server(optimizer),
        **slots,
    )


class NovaValue(NamedTuple):
    """What a client sends."""

    direction: Params
    """``(x - y_i) / |a_i|_1``."""
    tau: Array
    """Its part of the effective number of steps."""


@made
def of_direction(uplink: Transform) -> Transform:
    """Applies a transform to a value's direction; `tau` is sent as it is.

    Example:
      >>> from fedjax_lite.transforms import clip
      >>> value = NovaValue(jnp.array([3.0, 4.0]), jnp.float32(20))
      >>> _, out, wire = of_direction(clip(1.0)).send(jax.random.key(0), (), value)
      >>> out.direction.round(3).tolist(), float(out.tau), float(wire.bits)
      ([0.6000000238418579, 0.800000011920929], 20.0, 96.0)
    """

    def with_tau(key: Key, state: PyTree, value: NovaValue) -> tuple[PyTree, NovaValue, Wire]:
        state, direction, wire = send(uplink, key, state, value.direction)
        more = trees.num_bits(value.tau)
        return state, NovaValue(direction, value.tau), Wire(*(bits + more for bits in wire))

    return Transform(
        lambda value: uplink.init(value.direction),
        lambda key, state, value: with_tau(key, state, value)[:2],
        with_tau,
        uplink.kinds,
    )


class Coefficients(NamedTuple):
    """The sum of the coefficients that gradients have in ``(x - y) / eta``."""

    total: Array
    velocity: Array
    """The sum of those in the momentum buffer, the last step's share of the total."""


def normalizer(
    num_steps: int | Array, *, momentum: float | Array = 0.0, alpha: float | Array = 0.0
) -> Array:
    r"""The norm of a client's normalisation vector, ``|a|_1``.

    .. math::
        \text{SGD: } & a_j = 1, && \lVert a \rVert_1 = \tau \\
        \text{momentum: } & a_j = \tfrac{1 - \rho^{\tau - j}}{1 - \rho}, &&
          \lVert a \rVert_1 = \tfrac{1}{1 - \rho}
          \Bigl(\tau - \tfrac{\rho (1 - \rho^\tau)}{1 - \rho}\Bigr) \\
        \text{proximal: } & a_j = (1 - \alpha)^{\tau - 1 - j}, &&
          \lVert a \rVert_1 = \tfrac{1 - (1 - \alpha)^\tau}{\alpha},
          \qquad \alpha = \eta \mu,

    for ``j = 0 .. tau - 1``. Computed by the recursion of the local steps,
    ``v <- rho v + 1 - alpha s; s <- s + v``, which needs no division (the closed forms cancel
    near ``rho = 1`` and ``alpha = 0``) and also holds for momentum and proximal term together.

    Args:
      num_steps: `tau`, may be traced.
      momentum: `rho`.
      alpha: learning rate times `mu`, below 1.

    Returns:
      A scalar.

    Example:
      >>> [round(float(normalizer(tau, momentum=0.9)), 4) for tau in (1, 2, 3, 10)]
      [1.0, 2.9, 5.61, 41.3811]
      >>> round(float(normalizer(3, alpha=0.05)), 4)
      2.8525

    Reference: Wang et al., 2020, arXiv:2007.07481.
    """
    return jax.lax.fori_loop(
        0, num_steps, lambda _, state: _next(state, momentum, alpha), _none()
    ).total


def _none() -> Coefficients:
    zero = jnp.zeros((), jnp.result_type(float))
    return Coefficients(zero, zero)


def _next(state: Coefficients, momentum: Any, alpha: Any) -> Coefficients:
    velocity = (momentum * state.velocity + 1 - alpha * state.total).astype(state.total.dtype)
    return Coefficients(state.total + velocity, velocity)


class NovaCarry(NamedTuple):
    """Local SGD's carry, and the coefficients with and without the proximal term."""

    local: LocalCarry
    norm: Coefficients
    tau: Coefficients


@made
def nova_client(
    loss: LossFn,
    learning_rate: Rate,
    *,
    momentum: float | Array = 0.0,
    mu: float | Array = 0.0,
    weighting: Weighting = "examples",
) -> ClientUpdate:
    """Local SGD, with momentum and a proximal term, that sends a `NovaValue`.

    Args:
      loss: ``(params, examples, key) -> [B]``.
      learning_rate: a rate or a schedule over rounds.
      momentum: as in `fednova`.
      mu: as in `fednova`.
      weighting: as in `fednova`.

    Returns:
      A `ClientUpdate` without persistent rows; metrics ``train_loss`` and ``tau_eff``.

    Example:
      >>> client = nova_client(lambda w, e, key: w * e["g"], 0.5)
      >>> carry = client.start(None, (), jnp.array(0.0), ClientInfo(*map(jnp.int32, (0, 1, 2, 0))))
      >>> batch = Batch({"g": jnp.array([3.0])}, jnp.ones(1, bool), None)
      >>> carry = client.step(0.0, client.step(0.0, carry, batch), batch)
      >>> value = client.finish(0.0, carry)[1].value
      >>> float(value.direction), float(value.tau)
      (1.5, 2.0)

    Reference: Wang et al., 2020, arXiv:2007.07481.
    """

    def rate(round: Array) -> Any:
        return learning_rate(round) if callable(learning_rate) else learning_rate

    def optimizer(round: Array) -> optax.GradientTransformation:
        # What is zero for certain costs nothing: no momentum buffer, no pull.
        sgd = optax.sgd(rate(round), momentum=None if _is_zero(momentum) else momentum)
        return sgd if _is_zero(mu) else optax.chain(proximal(mu), sgd)

    local = local_sgd(loss, optimizer, weighting=weighting)

    def start(key: Key, row: PyTree, broadcast: Params, info: ClientInfo) -> NovaCarry:
        return NovaCarry(local.start(key, row, broadcast, info), _none(), _none())

    def step(broadcast: Params, carry: NovaCarry, batch: Batch) -> NovaCarry:
        alpha = rate(carry.local.info.round) * mu
        return NovaCarry(
            step_of(local)(broadcast, carry.local, batch),
            _next(carry.norm, momentum, alpha),
            _next(carry.tau, momentum, 0.0),
        )

    def finish(broadcast: Params, carry: NovaCarry) -> tuple[PyTree, Message, dict[str, Any]]:
        row, message, metrics = local.finish(broadcast, carry.local)
        norm = jnp.where(carry.norm.total == 0, 1, carry.norm.total)  # no step: 0 / 1
        direction = jax.tree.map(lambda leaf: (leaf / norm).astype(leaf.dtype), message.value)
        tau = carry.tau.total
        metrics = {**metrics, "tau_eff": Mean(message.weight * tau, message.weight)}
        return row, Message(NovaValue(direction, tau), message.weight), metrics

    return ClientUpdate(refuse_statistics("fednova"), start, step, finish, counts_of(loss))


@made
def nova_server(optimizer: optax.GradientTransformation) -> ServerUpdate:
    """Steps an optimizer on ``tau_eff * direction``, both of them means over the cohort.

    Args:
      optimizer: any optax optimizer.

    Returns:
      A `ServerUpdate` for aggregates that are a `NovaValue`.

    Raises:
      TypeError: if `optimizer` is not an optax optimizer.

    Example:
      >>> server = nova_server(optax.sgd(1.0))
      >>> value, cohort = NovaValue(jnp.array(0.5), jnp.array(3.0)), Cohort(None, jnp.ones(1, bool))
      >>> float(server.update(None, server.init(jnp.array(2.0), None), value, cohort, {}).params)
      0.5

    Reference: Wang et al., 2020, arXiv:2007.07481.
    """
    server = optimizer_server(optimizer)

    def update(
        key: Key, state: ServerState, value: NovaValue, cohort: Cohort, metrics: dict[str, Any]
    ) -> ServerState:
        step = jax.tree.map(lambda leaf: value.tau * leaf, value.direction)
        return server.update(key, state, step, cohort, metrics)

    return server._replace(update=update)


def _is_zero(value: Any) -> bool:
    return not isinstance(value, jax.core.Tracer) and not np.any(np.asarray(value))


def _check_product(learning_rate: Any, mu: Any) -> None:
    """Raises ValueError where a concrete ``learning_rate * mu`` gives negative coefficients."""
    if callable(learning_rate) or any(isinstance(v, jax.core.Tracer) for v in (learning_rate, mu)):
        return
    if np.any(np.asarray(learning_rate) * np.asarray(mu) >= 1):
        raise ValueError(
            f"learning_rate * mu must be below 1, got {learning_rate} * {mu}; lower either: a "
            "step of the proximal term alone would reach or pass the anchor"
        )
