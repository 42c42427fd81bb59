"""FedCurv: clients are pulled to what the others found, as hard as these know it."""

from __future__ import annotations

from typing import Any, NamedTuple, Unpack

import jax
import jax.numpy as jnp
import optax

from fedjax_lite import trees
from fedjax_lite.aggregation.mean import Weighting, weight_by
from fedjax_lite.checks.arguments import check_slot, shown
from fedjax_lite.checks.made import made, maker_of, signed
from fedjax_lite.data.population.counting import counts_of
from fedjax_lite.data.population.population import Population
from fedjax_lite.engine.batches import Plan
from fedjax_lite.engine.phases import step_of
from fedjax_lite.evaluate.fisher import Squares
from fedjax_lite.models.statistics_checks import check_no_statistics
from fedjax_lite.objectives.ewc import check_lam
from fedjax_lite.objectives.fisher import Fisher, empirical_fisher
from fedjax_lite.objectives.penalised import penalised
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
    Cohort,
    FederatedAlgorithm,
    Key,
    Message,
    Params,
    Phase,
    PyTree,
    Sampler,
    ServerUpdate,
)


@made
def fedcurv(
    loss: LossFn,
    client_optimizer: ClientOptimizer,
    *,
    lam: float | Array,
    plan: Plan,
    sampler: Sampler | None = None,
    fisher: Fisher | None = None,
    fisher_plan: Plan | None = None,
    weighting: Weighting = "examples",
    server_optimizer: optax.GradientTransformation | None = None,
    **slots: Unpack[SlotOptions],
) -> FederatedAlgorithm:
    r"""Federated curvature: EWC with the other clients of the last round as the old tasks.

    .. math::
        y_i &\approx \arg\min_y\; f_i(y) + \lambda \sum_{k \ne i} \sum_j
              F_{k,j}\, (y_j - \theta_{k,j})^2 \quad\text{from } y = x, \\
        F_i &\leftarrow \text{Fisher information of } f_i \text{ at } \theta_i = y_i, \qquad
        x \leftarrow \textstyle\sum_{i \in S} p_i\, y_i .

    Beside its model a client sends `F_i` and ``F_i theta_i``; the server sends their sums over the
    last cohort that counted, out of which each client takes its own share, which it keeps: rows of
    two models. So three models travel either way, and one number, all billed. There is no 1/2
    before the penalty. Before the first round, and for the only client of the last one, there is no
    pull; ``lam = 0`` is FedAvg.

    The Fisher information is a phase of its own after training, whose plan says how much of the
    data it sees; the metric ``fisher_steps`` tells. Sums in float32 lose what is below 1e-7 of the
    largest client's share.

    Args:
      loss: ``(params, examples, key) -> [B]``; the metric ``train_loss`` is without the penalty.
      client_optimizer: an optax optimizer, or ``(round) -> optimizer``; it is given the gradient of
        the whole local objective. The curvature that the penalty adds is ``2 lam sum_k F_k``: a
        large `lam` wants a small rate.
      lam: the paper's `lambda`, at least 0; it may be traced. The sum grows with the cohort.
      plan: local training.
      sampler: who takes part.
      fisher: of `exact_fisher` or `empirical_fisher`; None: the latter, of `loss`.
      fisher_plan: None: each example once, in batches of the plan (of 32, where it has none).
      weighting: of the models: "examples" (`n_i`), "uniform", or a function of `ClientInfo`. The
        sums of the penalty have no weights.
      server_optimizer: default ``optax.sgd(1.0)``, plain averaging.
      **slots: `aggregator` and `strategy` as in `fedavg`. `uplink` and `downlink` are refused: a
        client can take out its share only if what it sent arrived. So is `privacy`: a Fisher
        information has no bounded sensitivity.

    Returns:
      A `FederatedAlgorithm`; the model is ``state.server.params``.

    Raises:
      TypeError: if an argument has the wrong type.
      ValueError: if `lam` is negative or not finite, or a slot is given that is refused.

    Example:
      >>> import fedjax_lite as fl
      >>> data = fl.data.from_arrays({"a": jnp.array([1.0, 4.0]), "b": jnp.array([1.0, -1.0])},
      ...                            [0, 1])
      >>> algo = fedcurv(lambda w, e, key: 0.5 * e["a"] * (w - e["b"]) ** 2, optax.sgd(0.1),
      ...                lam=1.0, plan=fl.Plan(batch_size=1, steps=5), sampler=fl.everyone())
      >>> state = algo.init(jax.random.key(0), jnp.array(0.0), data)
      >>> state, metrics = algo.round(jax.random.key(0), state, data)
      >>> int(metrics["uplink_bits"]), int(metrics["fisher_steps"])  # three models of each client
      (192, 2)

    Reference: Shoham, Avidor, Keren, Israel, Benditkis, Mor-Yosef, Zeitak, "Overcoming Forgetting
    in Federated Learning on Non-IID Data", 2019, arXiv:1910.07796.
    """
    _check_slots(slots)
    if fisher_plan is None:
        size = plan.batch_size if isinstance(plan, Plan) and plan.batch_size else 32
        fisher_plan = Plan(batch_size=size, epochs=1)
    return federated_algorithm(
        fedcurv_client(
            loss,
            client_optimizer,
            lam=lam,
            fisher=fisher,
            fisher_plan=fisher_plan,
            weighting=weighting,
        ),
        plan=plan,
        sampler=sampler,
        server=fedcurv_server(
            optimizer_server(optax.sgd(1.0) if server_optimizer is None else server_optimizer)
        ),
        **slots,
    )


class Curvature(NamedTuple):
    """Of one client, or the sum of several."""

    fisher: Params
    """`F`."""
    moment: Params
    """``F theta``."""


class CurvatureRow(NamedTuple):
    """What a client keeps: its share of the server's sums."""

    own: Curvature
    version: Array
    """int32 scalar: in which of the server's sums it is; -1: none."""


class Curved(NamedTuple):
    """What clients download."""

    params: Params
    total: Curvature
    version: Array
    """int32 scalar: how many rounds have made sums. Of two of the same number the cohorts are the
    same, also where rounds in which nobody counted lie between them."""


class CurvedState(NamedTuple):
    """The server's state, and the sums of the last cohort that counted."""

    inner: PyTree
    total: Curvature
    version: Array

    @property
    def params(self) -> Params:
        """The global model."""
        return self.inner.params


class FedCurvCarry(NamedTuple):
    """Local training, and the Fisher information after it."""

    local: LocalCarry
    others: Curvature
    squares: Squares
    row: CurvatureRow
    info: ClientInfo


@made
def fedcurv_client(
    loss: LossFn,
    client_optimizer: ClientOptimizer,
    *,
    lam: float | Array,
    fisher: Fisher | None = None,
    fisher_plan: Plan,
    weighting: Weighting = "examples",
) -> ClientUpdate:
    """The client's side of `fedcurv`; sends ``(server - client, (F, F theta))``, keeps the latter.

    Args:
      loss: see `fedcurv`.
      client_optimizer: see `fedcurv`.
      lam: see `fedcurv`.
      fisher: see `fedcurv`.
      fisher_plan: of the pass after training.
      weighting: see `fedcurv`.

    Example:
      >>> client = fedcurv_client(lambda w, e, key: w * e["x"], optax.sgd(0.1), lam=1.0,
      ...                         fisher_plan=Plan(batch_size=8))
      >>> [phase.name for phase in client.step], int(client.init(jnp.ones(2)).version)
      (['', 'fisher'], -1)
    """
    check_lam(lam)
    check_slot(fisher_plan, "fisher_plan", Plan)
    if fisher is not None and not callable(fisher):
        raise TypeError(
            f"fisher must be a function, got {shown(fisher)}; fl.exact_fisher(model.predict), or "
            "None for that of the loss"
        )
    plain = local_sgd(loss, client_optimizer, weighting=weighting)  # checks them before tracing
    resolve, weight = resolve_optimizer(client_optimizer), weight_by(weighting)
    squared = empirical_fisher(loss) if fisher is None else fisher

    def local(others: Curvature) -> ClientUpdate:
        pull, penalty = _curvature_pull(lam, others)
        return local_sgd(loss, lambda round: optax.chain(pull, penalised(resolve(round), penalty)))

    def init(params: Params) -> CurvatureRow:
        check_no_statistics(params, "fedcurv")
        plain.init(params)
        none = Curvature(trees.zeros(params), trees.zeros(params))
        return CurvatureRow(none, jnp.int32(-1))

    def start(key: Key, row: CurvatureRow, broadcast: Curved, info: ClientInfo) -> FedCurvCarry:
        rest = trees.subtract(broadcast.total, row.own)
        others = trees.where(row.version == broadcast.version, rest, broadcast.total)
        carry = local(others).start(key, (), broadcast.params, info)
        return FedCurvCarry(carry, others, Squares.none(broadcast.params), row, info)

    def train(broadcast: Curved, carry: FedCurvCarry, batch: Batch) -> FedCurvCarry:
        step = step_of(local(carry.others))
        return carry._replace(local=step(broadcast.params, carry.local, batch))

    def look(broadcast: Curved, carry: FedCurvCarry, batch: Batch) -> FedCurvCarry:
        return carry._replace(squares=carry.squares.seen(squared, carry.local.params, batch))

    def finish(
        broadcast: Curved, carry: FedCurvCarry
    ) -> tuple[CurvatureRow, Message, dict[str, Any]]:
        params, found = carry.local.params, carry.squares.mean
        # What is kept and what is sent must be the same numbers: it is taken out of a sum.
        own = trees.settled(Curvature(found, jax.tree.map(jnp.multiply, found, params)))
        weighs = weight(carry.info._replace(num_steps=carry.info.phase_steps[0]))
        there = (weighs > 0).astype(jnp.float32)
        row = CurvatureRow(own, broadcast.version + 1)
        update = trees.subtract(broadcast.params, params)
        return (
            trees.where(there > 0, row, carry.row),
            Message((update, own), (weighs, there)),
            {"train_loss": carry.local.loss, "weight": there},
        )

    phases = (Phase(train, stream=0), Phase(look, fisher_plan, "fisher", stream=1))
    return ClientUpdate(init, start, phases, finish, counts_of(loss))


@made
def fedcurv_server(server: ServerUpdate) -> ServerUpdate:
    """The server's side of `fedcurv`: it adds up what the cohort knows, and hands it on.

    Args:
      server: of the model, whose broadcast is the model.

    Example:
      >>> server = fedcurv_server(optimizer_server(optax.sgd(1.0)))
      >>> state, one = server.init(jnp.array(0.0), None), Curvature(jnp.array(2.0), jnp.array(3.0))
      >>> cohort = Cohort(jnp.arange(2), jnp.ones(2, bool))
      >>> metrics = {"weight": jnp.ones(2)}
      >>> new = server.update(None, state, (jnp.array(1.0), one), cohort, metrics)
      >>> float(new.total.fisher), float(new.total.moment), int(new.version)
      (4.0, 6.0, 1)
    """

    def init(params: Params, population: Population) -> CurvedState:
        none = Curvature(trees.zeros(params), trees.zeros(params))
        return CurvedState(server.init(params, population), none, jnp.int32(0))

    def broadcast(state: CurvedState) -> Curved:
        return Curved(server.broadcast(state.inner), state.total, state.version)

    def update(
        key: Key, state: CurvedState, value: PyTree, cohort: Cohort, metrics: dict[str, Any]
    ) -> CurvedState:
        move, mean = value
        arrived = jnp.where(cohort.mask, metrics["weight"], 0).sum()
        total = jax.tree.map(
            lambda m, like: (m * arrived.astype(m.dtype)).astype(like.dtype), mean, state.total
        )
        inner = server.update(key, state.inner, move, cohort, metrics)
        return CurvedState(inner, total, state.version + 1)

    return signed(ServerUpdate(init, broadcast, update), server.made)


def _curvature_pull(lam: float | Array, others: Curvature) -> Any:
    """The gradient of the penalty as a transform, and the penalty but for a constant."""

    def update(
        updates: PyTree, state: PyTree, params: Params | None = None, **extra: Any
    ) -> tuple[PyTree, PyTree]:
        def pulled(gradient: Array, y: Array, f: Array, m: Array) -> Array:
            return gradient + 2 * jnp.asarray(lam, gradient.dtype) * (f * y - m)

        return jax.tree.map(pulled, updates, params, *others), state

    def penalty(params: Params, anchor: Params) -> Array:
        parts = jax.tree.map(lambda y, f, m: (f * y**2 - 2 * m * y).sum(), params, *others)
        return jnp.asarray(lam) * sum(jax.tree.leaves(parts))

    pull = optax.GradientTransformationExtraArgs(lambda params: optax.EmptyState(), update)
    return pull, penalty


def _check_slots(slots: Any) -> None:
    reasons = {
        "uplink": "a client takes its own share out of the sums, which it can only if they hold "
        "what it sent",
        "downlink": "a client takes its own share out of the sums, which it can only if it gets "
        "them as they are",
        "privacy": "a Fisher information has no bounded sensitivity",
    }
    for name, why in reasons.items():
        given = slots.get(name)
        note = maker_of(given)
        if given is not None and not (name == "uplink" and note and note.name == "identity"):
            raise ValueError(
                f"{name} must be left out of fedcurv, got {shown(given)}: {why}; ewc and three_way "
                "take it"
            )
