"""power_of_choice(): many are asked for their loss, those with the highest train."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from fedjax_lite.checks.arguments import check_count, shown
from fedjax_lite.checks.made import made, signed
from fedjax_lite.data.population.counting import counts_of
from fedjax_lite.engine.batches import Plan
from fedjax_lite.engine.prologue import Prologue
from fedjax_lite.round.compose import federated_algorithm
from fedjax_lite.round.local import LossFn, add_loss, check_loss, mean_loss, no_loss
from fedjax_lite.selection.around import behind, server_behind, silent, slots_of
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
)

LOSS = "candidate_loss"


@made
def power_of_choice(
    algo: FederatedAlgorithm,
    loss: LossFn,
    *,
    cohort_size: int,
    batch_size: int | None = None,
    model: Callable[[Any], Params] | None = None,
) -> FederatedAlgorithm:
    r"""Power-of-choice: of `d` candidates the `m` with the highest loss train.

    The algorithm's own sampler draws the candidates, ``fl.weighted(d)`` in the paper. Each of them
    downloads the *current* model, computes the mean loss over its data and sends that one number;
    the `m` highest go on to train. Ties are broken by the slot, the lowest first. With ``m = d``
    this is the algorithm itself; the smaller `m` is, the stronger the bias towards clients that
    the model serves badly.

    Args:
      algo: any algorithm wired from slots, without a first pass of its own and without privacy.
      loss: ``(params, examples, key) -> [B]``, what clients compute.
      cohort_size: `m`, clients that train; at most the `d` slots of the sampler's cohort.
      batch_size: in what batches clients go through their data for it; default the plan's.
      model: ``(broadcast) -> params``; default its field ``params``, or the broadcast itself.

    Returns:
      A `FederatedAlgorithm`. Candidates are billed the broadcast, and 32 bits of uplink for their
      loss; the others only what they train. ``num_clients`` are those that trained.

    Raises:
      TypeError: if `algo` was not wired from slots, or `loss` is no function.
      ValueError: if `algo` is private or has a prologue, or (when a state is made) `m` is above
        the candidates.

    Example:
      >>> import optax, fedjax_lite as fl
      >>> data = fl.data.from_arrays({"b": jnp.array([0.0, 1.0, 4.0])}, [0, 1, 2])
      >>> loss = lambda w, e, key: 0.5 * (w - e["b"]) ** 2
      >>> plain = fl.fedavg(loss, optax.sgd(0.5), plan=fl.Plan(1), sampler=fl.everyone())
      >>> algo = power_of_choice(plain, loss, cohort_size=1)
      >>> state = algo.init(jax.random.key(0), jnp.array(1.0), data)
      >>> float(algo.round(jax.random.key(0), state, data)[0].server.params)  # client 2: 1 -> 4
      2.5

    Reference: Cho, Wang, Joshi, "Client Selection in Federated Learning: Convergence Analysis and
    Power-of-Choice Selection Strategies", 2020, arXiv:2010.01243.
    """
    slots = slots_of(algo, "power_of_choice")
    check_loss(loss)
    check_count(cohort_size, "cohort_size", minimum=1)
    size = slots.plan.batch_size if batch_size is None else batch_size
    if model is not None and not callable(model):
        raise TypeError(f"model must be a function (broadcast) -> params, got {shown(model)}")
    first = Prologue(
        loss_at(loss, model or model_of), Plan(size), silent(), highest(LOSS, cohort_size)
    )
    return federated_algorithm(
        **{
            **slots._asdict(),
            "client": behind(slots.client),
            "server": server_behind(slots.server),
            "sampler": candidates(slots.sampler, cohort_size),
            "prologue": first,
        }
    )


def model_of(broadcast: Any) -> Params:
    """The model in a broadcast: its field ``params``, or all of it.

    Example:
      >>> from fedjax_lite.algorithms.mime import Steered
      >>> model_of(Steered(1.0, 0.5)), model_of({"w": 2.0})
      (1.0, {'w': 2.0})
    """
    return getattr(broadcast, "params", broadcast)


def candidates(sampler: Sampler, cohort_size: int) -> Sampler:
    """A sampler whose cohorts have at least so many slots; others are refused.

    Example:
      >>> from fedjax_lite.round.sampling import uniform
      >>> candidates(uniform(3), 2).made
      uniform(cohort_size=3)
    """

    def sample(key: Key, state: PyTree, sizes: Array) -> tuple[PyTree, Cohort]:
        state, cohort = sampler.sample(key, state, sizes)
        if cohort.ids.shape[0] < cohort_size:
            raise ValueError(
                f"cohort_size must be at most the candidates, got {cohort_size} of the "
                f"{cohort.ids.shape[0]} that the sampler draws; sample more of them, "
                f"fl.weighted({3 * cohort_size})"
            )
        return state, cohort

    told = sampler.at
    at = None if told is None else lambda errand: candidates(told(errand), cohort_size)
    return signed(sampler._replace(sample=sample, at=at), sampler.made)


class Seen(NamedTuple):
    """The loss of what was gone through so far."""

    loss: Mean


@made
def loss_at(loss: LossFn, model: Callable[[Any], Params]) -> ClientUpdate:
    """A client that computes the mean loss over its data at the broadcast model, and sends it.

    Example:
      >>> client = loss_at(lambda w, e, key: w * e["x"], model_of)
      >>> carry = client.start(None, (), jnp.array(2.0), ClientInfo(0, 3, 2, 0))
      >>> for x, mask in (([1.0, 2.0], [True, True]), ([6.0, 9.0], [True, False])):
      ...     carry = client.step(2.0, carry, Batch({"x": jnp.array(x)}, jnp.array(mask), None))
      >>> float(client.finish(2.0, carry)[2]["candidate_loss"])
      6.0
    """

    def start(key: Key, row: PyTree, broadcast: PyTree, info: ClientInfo) -> Seen:
        return Seen(no_loss())

    def step(broadcast: PyTree, carry: Seen, batch: Batch) -> Seen:
        return Seen(add_loss(carry.loss, mean_loss(loss, model(broadcast), batch), batch))

    def finish(broadcast: PyTree, carry: Seen) -> tuple[PyTree, Message, dict[str, Any]]:
        value = carry.loss.total / jnp.maximum(carry.loss.count, 1)
        return (), Message(value, (carry.loss.count > 0).astype(jnp.float32)), {LOSS: value}

    return ClientUpdate(lambda params: (), start, step, finish, counts_of(loss))


def highest(name: str, count: int) -> Callable[[Key, Cohort, dict[str, Any]], Cohort]:
    """A prologue's `choose`: the so many clients with the highest of what they measured.

    Ties go to the lowest slot; NaN counts as the highest, for such a client needs help most.

    Example:
      >>> cohort = Cohort(jnp.arange(4), jnp.array([True, True, False, True]))
      >>> choose = highest("loss", 2)
      >>> choose(None, cohort, {"loss": jnp.array([1.0, 2.0, 9.0, 1.0])}).mask.tolist()
      [True, True, False, False]
    """

    def choose(key: Key, cohort: Cohort, measured: dict[str, Any]) -> Cohort:
        loss = jnp.where(jnp.isnan(measured[name]), jnp.inf, measured[name])
        _, first = jax.lax.top_k(jnp.where(cohort.mask, loss, -jnp.inf), count)
        chosen = jnp.zeros(cohort.mask.shape, bool).at[first].set(True)
        return cohort._replace(mask=cohort.mask & chosen)

    return choose
