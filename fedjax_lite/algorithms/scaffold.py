"""SCAFFOLD: control variates that take the clients' drift out of local SGD."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any, NamedTuple, Unpack

import jax
import jax.numpy as jnp
import numpy as np
import optax

from fedjax_lite import trees
from fedjax_lite.aggregation.mean import Weighting, weight_by
from fedjax_lite.aggregation.population import Totals, totals
from fedjax_lite.checks.arguments import check_non_negative, check_positive, shown
from fedjax_lite.checks.kinds import is_number
from fedjax_lite.checks.made import made
from fedjax_lite.data.population.counting import counts_of
from fedjax_lite.data.population.population import Population
from fedjax_lite.engine.batches import Plan
from fedjax_lite.models.statistics_checks import check_no_statistics
from fedjax_lite.round.compose import federated_algorithm
from fedjax_lite.round.local import LossFn, add_gradient, add_loss, check_loss, mean_grad, no_loss
from fedjax_lite.round.server import Rate
from fedjax_lite.round.slot_options import SlotOptions
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
    Phase,
    PyTree,
    Sampler,
    ServerUpdate,
)


@made
def scaffold(
    loss: LossFn,
    learning_rate: Rate,
    *,
    plan: Plan,
    sampler: Sampler | None = None,
    option: int = 2,
    server_learning_rate: Rate = 1.0,
    weighting: Weighting = "uniform",
    table_dtype: Any = None,
    **slots: Unpack[SlotOptions],
) -> FederatedAlgorithm:
    r"""Local SGD whose gradients are corrected by control variates.

    .. math::
        y_i &\leftarrow y_i - \eta\,(g_i(y_i) - c_i + c) \quad (K_i \text{ times from } x), \\
        \text{option 1: } c_i^+ &= \nabla f_i(x), \qquad
        \text{option 2: } c_i^+ = c_i - c + \frac{x - y_i}{K_i \eta}, \\
        x &\leftarrow x - \eta_g \frac{\sum_{i \in S} w_i (x - y_i)}{\sum_{i \in S} w_i}, \qquad
        c \leftarrow c + \frac1W \sum_{i \in S} w_i (c_i^+ - c_i) .

    `W` sums the weights of ALL clients that have data (uniform: their number `N`), so that
    ``c = sum_i w_i c_i / W`` after every round, whoever took part. All controls start at zero.
    `K_i` counts the steps that were done; a client without steps, or one that dropped out,
    changes nothing and keeps its `c_i`. An `uplink` that alters messages, or an `aggregator` other
    than the mean, takes the invariant away.

    Option 1 sums the gradient at `x` over the batches of the client's first epoch: exact for a
    plan of at least one whole epoch, else the mean over the batches visited. These batches are
    gone through before training, a gradient each; ``anchor_steps`` counts them.

    Args:
      loss: ``(params, examples, key) -> [B]``, one loss per example.
      learning_rate: `eta`, or a function of the round; constant within a round, since the control
        variates presume plain SGD.
      plan: local work.
      sampler: who takes part.
      option: 1 or 2.
      server_learning_rate: `eta_g`, or a schedule over rounds.
      weighting: "uniform" (the paper), "examples" or a function of `ClientInfo` that depends
        on neither round nor steps.
      table_dtype: dtype of the rows `c_i` `[N, ...]`; default: that of the parameters. bfloat16
        halves what is stored; XLA's CPU compiler still makes a copy of such a table in a round.
        ``jnp.bfloat16`` halves the table; `c` remains the mean of what is stored.
      **slots: `aggregator`, `uplink`, `downlink`, `privacy`, `strategy` as in `fedavg`.

    Returns:
      A `FederatedAlgorithm`: rows ``state.clients`` are `c_i`, ``state.server.control`` is `c`. Its
      metrics have ``weight``, the mean weight in the cohort.

    Raises:
      TypeError: if the rate is an optimizer, or `table_dtype` not floating.
      ValueError: if a rate is not positive or the option unknown.

    Example:
      >>> import fedjax_lite as fl
      >>> data = fl.data.from_arrays({"b": jnp.array([-1.0, 3.0])}, [0, 1])
      >>> algo = scaffold(lambda w, e, key: 0.5 * (w - e["b"]) ** 2, 0.5,
      ...                 plan=fl.Plan(batch_size=1), sampler=fl.everyone())
      >>> state = algo.init(jax.random.key(0), jnp.array(0.0), data)
      >>> state, _ = algo.round(jax.random.key(0), state, data)
      >>> float(state.server.params), float(state.server.control), state.clients.tolist()
      (0.5, -1.0, [1.0, -3.0])

    Reference: Karimireddy, Kale, Mohri, Reddi, Stich, Suresh, "SCAFFOLD: Stochastic Controlled
    Averaging for Federated Learning", 2020, arXiv:1910.06378.
    """
    return federated_algorithm(
        scaffold_client(
            loss,
            learning_rate,
            plan=plan,
            option=option,
            weighting=weighting,
            table_dtype=table_dtype,
        ),
        plan=plan,
        sampler=sampler,
        server=scaffold_server(server_learning_rate, weighting=weighting),
        **slots,
    )


class Controlled(NamedTuple):
    """What clients download: the model `x` and the server's control variate `c`."""

    params: Params
    control: Params


class ScaffoldCarry(NamedTuple):
    """What a client carries from step to step."""

    params: Params
    """`y_i`."""
    row: Params
    """`c_i`, as it is stored."""
    correction: Params
    """``c - c_i``."""
    anchor: PyTree
    """Option 1: the gradients at `x`, summed over the examples seen; else ``()``."""
    num_seen: Array
    loss: Mean
    info: ClientInfo


@made
def scaffold_client(
    loss: LossFn,
    learning_rate: Rate,
    *,
    plan: Plan,
    option: int = 2,
    weighting: Weighting = "uniform",
    table_dtype: Any = None,
) -> ClientUpdate:
    """The client's side of `scaffold`; sends ``{"params": x - y_i, "control": c_i+ - c_i}``.

    Args:
      loss: ``(params, examples, key) -> [B]``.
      learning_rate: see `scaffold`.
      plan: local work; says where an epoch ends.
      option: 1 or 2.
      weighting: see `scaffold`.
      table_dtype: see `scaffold`.

    Example:
      >>> client = scaffold_client(lambda w, e, key: w * e["g"], 0.5, plan=Plan(batch_size=1))
      >>> client.init(jnp.ones(2)).tolist()
      [0.0, 0.0]
    """
    check_loss(loss)
    check_option(option)
    check_dtype(table_dtype)
    rate_at = rate_of_round(learning_rate)
    weight = weight_by(weighting)
    gradient = mean_grad(loss)

    def init(params: Params) -> Params:
        check_no_statistics(params, "scaffold")
        return jax.tree.map(lambda x: jnp.zeros(x.shape, table_dtype or x.dtype), params)

    def start(key: Key, row: Params, broadcast: Controlled, info: ClientInfo) -> ScaffoldCarry:
        x, c = broadcast
        correction = jax.tree.map(lambda c, c_i: c - c_i.astype(c.dtype), c, row)
        anchor = trees.wide_zeros(x) if option == 1 else ()
        return ScaffoldCarry(x, row, correction, anchor, jnp.float32(0), no_loss(), info)

    def see_anchor(broadcast: Controlled, carry: ScaffoldCarry, batch: Batch) -> ScaffoldCarry:
        _, grad = gradient(broadcast.params, batch)
        num_seen = carry.num_seen + batch.mask.sum().astype(jnp.float32)
        return carry._replace(anchor=add_gradient(carry.anchor, grad, batch), num_seen=num_seen)

    def step(broadcast: Controlled, carry: ScaffoldCarry, batch: Batch) -> ScaffoldCarry:
        rate = rate_at(carry.info.round)
        value, grad = gradient(carry.params, batch)
        params = jax.tree.map(
            lambda y, g, d: (y - rate * (g + d)).astype(y.dtype),
            *(carry.params, grad, carry.correction),
        )
        return carry._replace(params=params, loss=add_loss(carry.loss, value, batch))

    def finish(
        broadcast: Controlled, carry: ScaffoldCarry
    ) -> tuple[Params, Message, dict[str, Any]]:
        x, c = broadcast
        moved = trees.subtract(x, carry.params)
        weighs = weight(carry.info)
        learned = weighs > 0  # of no weight: it did no step, or is not to count
        if option == 1:
            change = jax.tree.map(
                lambda g, c_i: g / jnp.maximum(carry.num_seen, 1) - c_i, carry.anchor, carry.row
            )
        else:
            # A rate of 0 (the end of a schedule) says nothing of the gradient.
            work = rate_at(carry.info.round) * carry.info.num_steps
            learned &= work > 0
            work = jnp.where(learned, work, 1)
            change = jax.tree.map(lambda m, c: m / work - c, moved, c)
        change = trees.where(learned, change, trees.zeros(change))
        row, change = _kept(carry.row, change, like=moved)
        message = Message({"params": moved, "control": change}, weighs)
        return row, message, {"train_loss": carry.loss, "weight": weighs}

    # The batches of the first epoch, seen twice: at `x`, then along the way.
    first = Phase(see_anchor, dataclasses.replace(plan, max_epochs=1), "anchor", stream=0)
    steps = (first, Phase(step, plan, stream=0)) if option == 1 else step
    return ClientUpdate(init, start, steps, finish, counts_of(loss))


def _kept(row: Params, change: Params, *, like: Params) -> tuple[Params, Params]:
    """The new row in its own dtype, and the change that is sent: what is kept moves by just that.

    So `c` remains the mean of what is stored, in any dtype.
    """

    def one(old: Array, change: Array, like: Array) -> tuple[Array, Array]:
        if old.dtype == like.dtype:
            # Not reading the row again after its new value is made is what lets XLA write the
            # table in place, without a copy a client.
            change = trees.settled(change.astype(old.dtype))
            return old + change, change
        new = (old.astype(change.dtype) + change).astype(old.dtype)
        return new, new.astype(like.dtype) - old.astype(like.dtype)

    pairs = jax.tree.map(one, row, change, like)
    return jax.tree.transpose(jax.tree.structure(row), jax.tree.structure((0, 0)), pairs)


def check_option(option: int) -> None:
    """Raises ValueError where there is no such option of the paper."""
    if option not in (1, 2):
        raise ValueError(
            f"option must be 1 (gradient at the server's model) or 2 (from the update), "
            f"got {option!r}"
        )


def check_dtype(table_dtype: Any) -> None:
    """Raises TypeError where control variates cannot be kept in this dtype."""
    is_value = isinstance(table_dtype, np.generic | np.ndarray | jax.Array)
    if table_dtype is not None and (
        is_value or not jnp.issubdtype(jnp.dtype(table_dtype), jnp.floating)
    ):
        raise TypeError(
            f"table_dtype must be a floating dtype, got {table_dtype!r:.60}; give jnp.bfloat16"
        )


class ScaffoldState(NamedTuple):
    """The server: model, control variate, and what it knows of all clients."""

    params: Params
    control: Params
    opt_state: PyTree
    totals: Totals


@made
def scaffold_server(
    server_learning_rate: Rate = 1.0, *, weighting: Weighting = "uniform"
) -> ServerUpdate:
    """The server's side of `scaffold`: ``c`` moves by the share of the population that took part.

    Args:
      server_learning_rate: `eta_g`, or a schedule over rounds.
      weighting: as the client's.

    Raises:
      ValueError: if the rate is negative.

    Example:
      >>> server = scaffold_server()
      >>> state = server.init(jnp.array(0.0), Population.of([1, 1, 1, 1]))
      >>> value = {"params": jnp.array(1.0), "control": jnp.array(2.0)}
      >>> cohort = Cohort(jnp.arange(1), jnp.ones(1, bool))
      >>> new = server.update(None, state, value, cohort, {"weight": jnp.ones(1)})
      >>> float(new.params), float(new.control)
      (-1.0, 0.5)
    """
    if not callable(server_learning_rate):
        check_non_negative(server_learning_rate, "server_learning_rate")
    optimizer = optax.sgd(server_learning_rate)

    def init(params: Params, population: Population) -> ScaffoldState:
        control = trees.zeros(params)
        return ScaffoldState(params, control, optimizer.init(params), totals(population, weighting))

    def update(
        key: Key, server: ScaffoldState, value: PyTree, cohort: Cohort, metrics: dict[str, Any]
    ) -> ScaffoldState:
        update = trees.cast_like(value["params"], server.params)
        updates, opt_state = optimizer.update(update, server.opt_state, server.params)
        # Only those who did something weigh, so this is the share of clients that arrived.
        arrived = metrics["weight"].sum()

        def move(c: Array, change: Array) -> Array:
            # Sums of weights are divided in the model's precision: 1/3 in float32 is not 1/3.
            share = arrived.astype(c.dtype) / server.totals.weight.astype(c.dtype)
            return c + share * change.astype(c.dtype)

        return ScaffoldState(
            optax.apply_updates(server.params, updates),
            jax.tree.map(move, server.control, value["control"]),
            opt_state,
            server.totals,
        )

    return ServerUpdate(init, lambda server: Controlled(server.params, server.control), update)


def rate_of_round(learning_rate: Rate) -> Callable[[Array], Any]:
    """Turns a rate, or a function of the round that gives one, into the latter.

    Raises:
      TypeError: if it is an optimizer, or (when called) a function that returns no number.
      ValueError: if a concrete rate is not positive.

    Example:
      >>> rate_of_round(0.1)(3), round(rate_of_round(lambda r: 0.1 * 0.5**r)(2), 3)
      (0.1, 0.025)
    """
    if isinstance(learning_rate, optax.GradientTransformation):
        raise TypeError(
            "learning_rate must be a number or a function (round) -> number, got an optax "
            "optimizer; this method's local steps are plain SGD: give its rate"
        )
    if callable(learning_rate):

        def rate_at(round: Array) -> Any:
            rate = learning_rate(round)
            if not is_number(rate):
                raise TypeError(
                    "learning_rate, a function of the round, must return a number, got "
                    f"{shown(rate)}; for example lambda r: 0.1 * 0.99**r"
                )
            return rate

        return rate_at
    check_positive(learning_rate, "learning_rate")
    return lambda round: learning_rate
