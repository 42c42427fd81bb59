"""optimal(): all of a cohort train, those with the largest updates send them."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from fedjax_lite import trees
from fedjax_lite.aggregation.stacked import Stack, stacked
from fedjax_lite.aggregation.total import total
from fedjax_lite.checks.arguments import check_count
from fedjax_lite.checks.made import made, signed
from fedjax_lite.engine.phases import Step, around
from fedjax_lite.engine.prologue import Prefaced, Prologue
from fedjax_lite.round.compose import federated_algorithm
from fedjax_lite.selection.around import need_mean, server_behind, slots_of
from fedjax_lite.selection.probabilities import inclusion_scale
from fedjax_lite.selection.unbiased import reweighed
from fedjax_lite.types import (
    Aggregator,
    Array,
    Batch,
    ClientInfo,
    ClientUpdate,
    Cohort,
    FederatedAlgorithm,
    Key,
    Message,
    PyTree,
)

NORM, WEIGHT = "update_norm", "message_weight"
Choose = Callable[[Key, Cohort, dict[str, Any]], Cohort]


class Shares(NamedTuple):
    """What the server makes of the norms: two numbers, which those who send download."""

    scale: Array
    """`s` of :math:`\\pi_i = \\min(1, s\\,u_i)`."""
    weight: Array
    """The sum of the cohort's weights."""


@made
def optimal(algo: FederatedAlgorithm, *, cohort_size: int) -> FederatedAlgorithm:
    r"""Optimal client sampling: of those that trained, about `m` send their update.

    .. math::
        u_i = \|p_i \Delta_i\|, \quad \pi_i = \min(1, s\,u_i), \quad
        \textstyle\sum_i \pi_i = m, \qquad
        \bar\Delta = \sum_{i \in S} \frac{p_i}{\pi_i} \Delta_i

    All clients of the sampler's cohort train and send the norm of their update, one number; each
    then sends the update with its own probability :math:`\pi_i`, independently of the others. Of
    all such choices these probabilities have the least variance, and the aggregate has the
    expectation of the cohort's weighted mean, exactly.

    The simulation runs the training of those who send twice: a rehearsal with the same
    randomness tells the norms. It takes the norm before an `uplink`.

    Args:
      algo: wired from slots, whose clients keep no rows; without privacy and first pass; its
        aggregator must be `mean`.
      cohort_size: `m`, the expected number of clients that send.

    Returns:
      A `FederatedAlgorithm`: all of the cohort are billed the broadcast and 32 bits of uplink,
      those that send two numbers more and their update. Where `m` or fewer updates are not zero,
      all of those are sent.

    Raises:
      TypeError: if `algo` was not wired from slots.
      ValueError: if it is private, has a prologue or another aggregator, or (when a state is made)
        its clients keep rows.

    Example:
      >>> import optax, fedjax_lite as fl
      >>> data = fl.data.from_arrays({"b": jnp.array([0.0, 0.0, 6.0])}, [0, 1, 2])
      >>> plain = fl.fedavg(lambda w, e, key: 0.5 * (w - e["b"]) ** 2, optax.sgd(1.0),
      ...                   plan=fl.Plan(1), sampler=fl.everyone())
      >>> algo = optimal(plain, cohort_size=1)
      >>> state = algo.init(jax.random.key(0), jnp.array(0.0), data)
      >>> state, metrics = algo.round(jax.random.key(0), state, data)
      >>> float(state.server.params), int(metrics["num_clients"])  # the only one that moved
      (2.0, 1)

    Reference: Chen, Horvath, Richtarik, "Optimal Client Sampling for Federated Learning", 2020,
    arXiv:2010.13723.
    """
    slots = slots_of(algo, "optimal")
    need_mean(slots, "optimal")
    check_count(cohort_size, "cohort_size", minimum=1)
    client = slots.client
    first = Prologue(
        rehearsed(client),
        slots.plan,
        norm_shares(cohort_size),
        by_chance(cohort_size),
        rehearsal=True,
    )
    return federated_algorithm(
        **{
            **slots._asdict(),
            "client": sent_by_chance(client),
            "server": server_behind(slots.server),
            "aggregator": total(),
            "prologue": first,
        }
    )


@made
def rehearsed(client: ClientUpdate) -> ClientUpdate:
    """Training of which only the norm of the weighted update is sent.

    Example:
      >>> import optax
      >>> from fedjax_lite.round.local import local_sgd
      >>> client = rehearsed(local_sgd(lambda w, e, key: w @ e, optax.sgd(1.0)))
      >>> carry = client.start(None, (), jnp.zeros(2), ClientInfo(*map(jnp.int32, (0, 2, 1, 0))))
      >>> batch = Batch(jnp.array([[3.0], [4.0]]), jnp.ones(1, bool), None)
      >>> carry = client.step(jnp.zeros(2), carry, batch)
      >>> float(client.finish(jnp.zeros(2), carry)[1].value)  # 2 examples, norm 5
      10.0
    """

    def finish(broadcast: PyTree, carry: PyTree) -> tuple[PyTree, Message, dict[str, Any]]:
        _, message, _ = client.finish(broadcast, carry)
        weight = _scalar(message.weight)
        norm = weight * trees.global_norm(message.value)
        return (), Message(norm, weight), {NORM: norm, WEIGHT: weight}

    return client._replace(finish=finish)


@made
def norm_shares(cohort_size: int) -> Aggregator:
    """What the server makes of the norms: `Shares`.

    Example:
      >>> from fedjax_lite.aggregation import aggregate_stack
      >>> rule = norm_shares(2)
      >>> [float(x) for x in aggregate_stack(rule, jnp.array([1.0, 1.0, 2.0]))]
      [0.5, 3.0]
    """

    def rule(key: Key, state: PyTree, stack: Stack, cohort: Cohort) -> tuple[PyTree, Shares]:
        norms = jnp.where(stack.mask, stack.values, 0)
        return state, Shares(inclusion_scale(norms, cohort_size), stack.weights.sum())

    return stacked(rule, like_message=False)


def by_chance(cohort_size: int) -> Choose:
    """A prologue's `choose`: each client with its own probability, by the norms of all.

    Example:
      >>> choose, cohort = by_chance(2), Cohort(jnp.arange(3), jnp.ones(3, bool))
      >>> norms = {NORM: jnp.array([0.0, 1.0, 5.0]), WEIGHT: jnp.ones(3)}
      >>> choose(jax.random.key(0), cohort, norms).mask.tolist()
      [False, True, True]
    """

    def choose(key: Key, cohort: Cohort, measured: dict[str, Any]) -> Cohort:
        counts = cohort.mask & (measured[WEIGHT] > 0)
        norms = jnp.where(counts, measured[NORM], 0)
        chances = chance(inclusion_scale(norms, cohort_size), norms)
        # Keyed by client, so that it does not depend on the slot.
        draws = jax.vmap(lambda i: jax.random.uniform(jax.random.fold_in(key, i)))(cohort.ids)
        return cohort._replace(mask=counts & (draws < chances))

    return choose


def chance(scale: Array, norm: Array) -> Array:
    """``min(1, s u)``, and 0 where `u` is."""
    return jnp.where(norm > 0, jnp.minimum(1, scale * norm), 0)


def sent_by_chance(client: ClientUpdate) -> ClientUpdate:
    """Training whose message weighs ``p_i / pi_i``, of the prologue's `Shares` and its own norm.

    Example:
      >>> import optax
      >>> from fedjax_lite.round.local import local_sgd
      >>> client = sent_by_chance(local_sgd(lambda w, e, key: w @ e, optax.sgd(1.0)))
      >>> info = ClientInfo(*map(jnp.int32, (0, 2, 1, 0)), found={NORM: jnp.array(4.0)})
      >>> down = Prefaced(jnp.zeros(2), Shares(jnp.array(0.125), jnp.array(10.0)))
      >>> carry = client.start(None, (), down, info)
      >>> round(float(client.finish(down, carry)[1].weight), 4)  # 2 / 10 over 1 / 2
      0.4
    """

    def init(params: PyTree) -> PyTree:
        if jax.tree.leaves(client.init(params)):
            raise ValueError(
                "clients that optimal() chooses by their norm must keep nothing between rounds, "
                f"got rows of {client.made or 'your own'}: they train twice; take a method without "
                "(fedavg, fedprox, fedopt's family)"
            )
        return ()

    def start(key: Key, row: PyTree, broadcast: Prefaced, info: ClientInfo) -> PyTree:
        return client.start(key, row, broadcast.value, info), info.found[NORM]

    def wrap(inner_step: Step) -> Step:
        def step(broadcast: Prefaced, carry: PyTree, batch: Batch) -> PyTree:
            return inner_step(broadcast.value, carry[0], batch), carry[1]

        return step

    def finish(broadcast: Prefaced, carry: PyTree) -> tuple[PyTree, Message, dict[str, Any]]:
        inner, norm = carry
        row, message, metrics = client.finish(broadcast.value, inner)
        scale, everybody = broadcast.preface
        chances = chance(scale, norm)
        sent = (chances > 0) & (everybody > 0)
        share = _scalar(message.weight) / jnp.where(everybody > 0, everybody, 1)
        factor = jnp.where(sent, share / jnp.where(sent, chances, 1), 0)
        return row, Message(message.value, reweighed(message.weight, factor)), metrics

    wrapped = around(client.step, wrap)
    new = client._replace(init=init, start=start, step=wrapped, finish=finish)
    return signed(new, client.made)


def _scalar(weight: PyTree) -> Array:
    """The one weight of a message."""
    leaves = jax.tree.leaves(weight)
    if len(leaves) != 1 or jnp.shape(leaves[0]):
        raise ValueError(
            f"a message must have one scalar weight for its norm to count, got {len(leaves)} of "
            f"shapes {[list(jnp.shape(leaf)) for leaf in leaves]}; optimal() is for methods that "
            "send one model"
        )
    return jnp.asarray(leaves[0], jnp.float32)
