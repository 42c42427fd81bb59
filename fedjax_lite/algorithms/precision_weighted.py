"""precision_weighted(): clients measure how noisy what they send is, and weigh by that."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple, Unpack

import jax
import jax.numpy as jnp
import numpy as np
import optax

from fedjax_lite.algorithms.one_epoch import one_epoch
from fedjax_lite.checks.arguments import check_finite, check_non_negative, shown
from fedjax_lite.checks.made import made
from fedjax_lite.data.population.counting import counted
from fedjax_lite.data.population.population import Population
from fedjax_lite.engine.batches import Plan
from fedjax_lite.engine.phases import step_of
from fedjax_lite.round.compose import federated_algorithm
from fedjax_lite.round.local import ClientOptimizer, LossFn, local_sgd
from fedjax_lite.round.server import optimizer_server
from fedjax_lite.round.slot_options import SlotOptions, refuse_privacy
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

Measure = Callable[[Params, PyTree, Key], Array]
"""``(params, examples, key) ->`` a quantity of each example, `[B]`."""


class Spread(NamedTuple):
    """Mean and spread of a quantity over the examples seen so far."""

    count: Array
    mean: PyTree
    squares: Array
    """The sum of squared distances to the mean, over examples and coordinates."""


class Measured(NamedTuple):
    """Local training, and what was measured before it."""

    local: PyTree
    spread: Spread
    info: ClientInfo


class PreciseState(NamedTuple):
    """The global model, and how much of the last aggregate is one client's."""

    params: Params
    opt_state: PyTree
    largest: Array

    @property
    def metrics(self) -> dict[str, Array]:
        """The largest weight of the round."""
        return {"largest_weight": self.largest}


@made
def precision_weighted(
    loss: LossFn,
    client_optimizer: ClientOptimizer,
    *,
    floor: float | Array,
    measure: Measure | None = None,
    plan: Plan,
    sampler: Sampler | None = None,
    server_optimizer: optax.GradientTransformation | None = None,
    **slots: Unpack[SlotOptions],
) -> FederatedAlgorithm:
    r"""FedAvg whose clients weigh by the inverse variance that they measure before training.

    .. math::
        w_i = \frac{n_i}{\max(s_i^2, \mathit{floor})}, \qquad
        s_i^2 = \frac{1}{n_i - 1} \sum_j \lVert g_{ij} - \bar g_i \rVert^2, \qquad
        g_{ij} = \nabla \ell_j(x)

    A mean over `n_i` examples of variance `s_i^2` has the variance ``s_i^2 / n_i``, and weights
    inverse to it give the most precise mean of unbiased estimates. Clients are not unbiased: one
    that holds a single class, whose gradients all point the same way and vanish as the model gives
    in, looks precise. So a floor is demanded, and ``largest_weight`` is in the history: near 1, one
    client decides. With a floor above every variance it is `fedavg` among the clients of two
    examples or more.

    Args:
      loss: ``(params, examples, key) -> [B]``.
      client_optimizer: an optax optimizer, or ``(round) -> optimizer``.
      floor: smallest `s_i^2` that is believed, above 0, in the units of what is measured, squared;
        of gradients summed over the parameters. It may be traced.
      measure: ``(params, examples, key) ->`` `[B]`, a number an example, whose variance takes the
        place of the gradients', which need the memory of a model an example of a batch.
      plan: local work; the measuring pass goes over all data before it, in the same batches.
      sampler: who takes part.
      server_optimizer: default ``optax.sgd(1.0)``, plain averaging.
      **slots: `aggregator`, `uplink`, `downlink`, `strategy` as in `fedavg`; `privacy` is refused,
        since weights follow the clients' data.

    Returns:
      A `FederatedAlgorithm`; metrics ``train_loss``, ``variance`` (`s_i^2`, mean over the cohort),
      ``precision`` (`w_i` likewise) and ``largest_weight``, a share of the cohort's. A client of
      one example cannot measure a variance, and weighs 0.

    Raises:
      TypeError: if an argument has the wrong type.
      ValueError: if `floor` is not positive, or `privacy` is given.

    Example:
      >>> import fedjax_lite as fl
      >>> data = fl.data.from_arrays({"b": jnp.array([-1.0, 1.0, 2.0, 4.0, 4.0])}, [0, 0, 1, 1, 1])
      >>> algo = precision_weighted(lambda w, e, key: 0.5 * (w - e["b"]) ** 2, optax.sgd(1.0),
      ...     floor=0.1, plan=fl.Plan(batch_size=None, steps=1), sampler=fl.everyone())
      >>> state = algo.init(jax.random.key(0), jnp.array(0.0), data)
      >>> state, metrics = algo.round(jax.random.key(0), state, data)
      >>> round(float(metrics["largest_weight"]), 4)  # 2 / 2 against 3 / (4 / 3)
      0.6923

    Reference: Cochran, "The Combination of Estimates from Different Experiments", 1954,
    Biometrics 10(1).
    """
    check_floor(floor)
    refuse_privacy(slots, "precision_weighted", "a message weighs as its client's data vary")
    if measure is not None and not callable(measure):
        raise TypeError(
            f"measure must be a function (params, examples, key) -> [B], got {shown(measure)};"
            ' lambda params, examples, key: examples["x"]'
        )
    client = local_sgd(loss, client_optimizer, weighting="examples")
    inner = optimizer_server(optax.sgd(1.0) if server_optimizer is None else server_optimizer)
    return federated_algorithm(
        precision_first(client, loss, plan, measure, floor),
        plan=plan,
        sampler=sampler,
        server=precise_server(inner),
        **slots,
    )


def check_floor(floor: Any) -> None:
    """Raises ValueError where a concrete floor is not above 0 and finite."""
    check_non_negative(floor, "floor")
    check_finite(floor, "floor")
    if not isinstance(floor, jax.core.Tracer) and not (np.asarray(floor) > 0).all():
        raise ValueError(
            f"floor must be positive, got {shown(floor)}; a client without any variance would "
            "decide alone, give the smallest variance that you believe, such as 0.01"
        )


def gradients_of(loss: LossFn) -> Callable[[Params, PyTree, Key], PyTree]:
    """The gradient of every example, leaves `[B, ...]`.

    Example:
      >>> square = lambda w, e, key: 0.5 * (w - e["b"]) ** 2
      >>> gradients_of(square)(jnp.array(1.0), {"b": jnp.array([0.0, 3.0])}, None).tolist()
      [1.0, -2.0]
    """

    def measure(params: Params, examples: PyTree, key: Key) -> PyTree:
        def alone(params: Params, example: PyTree) -> Array:
            return loss(params, jax.tree.map(lambda leaf: leaf[None], example), key)[0]

        return jax.vmap(jax.grad(alone), (None, 0))(params, examples)

    return measure


@made
def precision_first(
    client: ClientUpdate,
    loss: LossFn,
    plan: Plan,
    measure: Measure | None,
    floor: float | Array,
) -> ClientUpdate:
    """Local training in two phases: the variance at the broadcast model, then the client's work.

    Args:
      client: local training without rows, of one phase, whose weights are examples.
      loss: says which examples count, and has the gradients.
      plan: of the training.
      measure: see `precision_weighted`.
      floor: likewise.

    Example:
      >>> import fedjax_lite as fl
      >>> square = lambda w, e, key: 0.5 * (w - e["b"]) ** 2
      >>> local = fl.local_sgd(square, optax.sgd(0.5))
      >>> [phase.name for phase in precision_first(local, square, Plan(4), None, 0.1).step]
      ['variance', '']
    """
    train, gradients = step_of(client), gradients_of(loss)

    def values_of(params: Params, batch: Batch) -> PyTree:
        if measure is None:
            return gradients(params, batch.examples, batch.key)
        values = jnp.asarray(measure(params, batch.examples, batch.key))
        if values.shape != batch.mask.shape:
            raise ValueError(
                f"measure must return a number an example, {list(batch.mask.shape)}, got "
                f"{list(values.shape)}; a sum over the other axes makes it one"
            )
        return values.astype(jnp.result_type(float))

    def start(key: Key, row: PyTree, broadcast: Params, info: ClientInfo) -> Measured:
        info = info._replace(num_steps=info.main_steps)  # who only measures sends nothing
        zero = jnp.zeros((), jnp.result_type(float))
        mean = zero if measure else jax.tree.map(jnp.zeros_like, broadcast)
        return Measured(client.start(key, row, broadcast, info), Spread(zero, mean, zero), info)

    def on_data(broadcast: Params, carry: Measured, batch: Batch) -> Measured:
        counts = counted(loss, batch.examples, batch.mask)
        values = values_of(broadcast, batch)
        return carry._replace(spread=and_spread(carry.spread, values, counts))

    def on_model(broadcast: Params, carry: Measured, batch: Batch) -> Measured:
        return carry._replace(local=train(broadcast, carry.local, batch))

    def finish(broadcast: Params, carry: Measured) -> tuple[PyTree, Message, dict[str, Any]]:
        row, message, metrics = client.finish(broadcast, carry.local)
        count, _, squares = carry.spread
        variance = jnp.where(count > 1, squares / jnp.maximum(count - 1, 1), jnp.inf)
        known = jnp.isfinite(variance)
        weight = message.weight * jnp.where(known, 1 / jnp.maximum(variance, floor), 0)
        found = {"variance": Mean(jnp.where(known, variance, 0), known.astype(variance.dtype))}
        return row, message._replace(weight=weight), {**metrics, **found, "precision": weight}

    phases = (Phase(on_data, one_epoch(plan), "variance", stream=1), Phase(on_model, stream=0))
    return ClientUpdate(client.init, start, phases, finish, client.counts)


@made
def precise_server(server: ServerUpdate) -> ServerUpdate:
    """Moves the model by the aggregate, and notes the largest share of the weights.

    Args:
      server: moves the model; its state has `params` and `opt_state`.

    Example:
      >>> server = precise_server(optimizer_server(optax.sgd(1.0)))
      >>> state = server.init(jnp.array(0.0), Population.of([1, 1]))
      >>> cohort = Cohort(jnp.arange(3), jnp.array([True, True, False]))
      >>> metrics = {"precision": jnp.array([1.0, 3.0, 9.0])}
      >>> float(server.update(None, state, jnp.array(0.5), cohort, metrics).largest)
      0.75
    """

    def init(params: Params, population: Population) -> PreciseState:
        state = server.init(params, population)
        return PreciseState(state.params, state.opt_state, jnp.zeros((), jnp.result_type(float)))

    def update(
        key: Key, state: PreciseState, value: PyTree, cohort: Cohort, metrics: dict[str, Any]
    ) -> PreciseState:
        moved = server.update(key, state, value, cohort, metrics)
        weights = jnp.where(cohort.mask, metrics["precision"], 0)
        total = weights.sum()
        largest = weights.max() / jnp.where(total > 0, total, 1)
        return PreciseState(moved.params, moved.opt_state, largest.astype(state.largest.dtype))

    return ServerUpdate(init, lambda state: state.params, update)


def and_spread(seen: Spread, values: PyTree, mask: Array) -> Spread:
    """The spread with a batch more; no difference of large squares is taken.

    Args:
      seen: so far.
      values: leaves `[B, ...]`.
      mask: bool `[B]`, which of them count.

    Example:
      >>> none = Spread(jnp.array(0.0), jnp.array(0.0), jnp.array(0.0))
      >>> all_in = jnp.ones(2, bool)
      >>> both = and_spread(and_spread(none, jnp.array([1.0, 3.0]), all_in), jnp.zeros(2), all_in)
      >>> float(both.mean), float(both.squares)
      (1.0, 6.0)
    """
    count = mask.sum().astype(seen.count.dtype)
    whole = seen.count + count

    def over_batch(leaf: Array) -> Array:
        return jnp.where(mask.reshape(-1, *(1,) * (leaf.ndim - 1)), leaf, 0)

    mean = jax.tree.map(lambda leaf: over_batch(leaf).sum(0) / jnp.maximum(count, 1), values)
    inside = jax.tree.map(lambda leaf, m: (over_batch(leaf - m) ** 2).sum(), values, mean)
    apart = jax.tree.map(jnp.subtract, mean, seen.mean)
    between = jax.tree.map(lambda leaf: (leaf**2).sum(), apart)
    share = count / jnp.maximum(whole, 1)
    return Spread(
        whole,
        jax.tree.map(lambda m, d: m + (share * d).astype(m.dtype), seen.mean, apart),
        (
            seen.squares
            + sum(jax.tree.leaves(inside))
            + seen.count * share * sum(jax.tree.leaves(between))
        ).astype(seen.squares.dtype),
    )
