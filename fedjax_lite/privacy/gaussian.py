"""Central DP-FedAvg: Poisson cohorts, clipped sums, noise once, a fixed denominator."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp

from fedjax_lite import trees
from fedjax_lite.checks.arguments import check_count, check_non_negative, check_one, check_positive
from fedjax_lite.checks.made import made
from fedjax_lite.privacy.accounting.accountants import (
    calibrated_noise,
    poisson_accountant,
    stated_noise,
)
from fedjax_lite.privacy.accounting.poisson import Method
from fedjax_lite.privacy.arguments import check_clip, check_delta, check_population, is_traced
from fedjax_lite.privacy.clipping import clip_clients
from fedjax_lite.privacy.participation import PoissonCohorts, poisson_cohorts
from fedjax_lite.transforms.noise import gaussian_like
from fedjax_lite.types import Aggregator, Array, Cohort, Key, Mechanism, Message, PyTree


@made
def central_gaussian(
    *,
    clip: float | Array,
    num_clients: int,
    delta: float,
    expected_cohort_size: float | None = None,
    sampling_rate: float | None = None,
    epsilon: float | None = None,
    noise_multiplier: float | Array | None = None,
    num_rounds: int | None = None,
    per_layer: bool = False,
    capacity: int | None = None,
    method: Method = "pld",
    unit: str = "client",
) -> Mechanism:
    r"""DP-FedAvg with a trusted server: every client's participation is hidden in noise.

    .. math::
        \bar\Delta = \frac{1}{q N} \Big( \sum_{i \in S} \Delta_i \min(1, S / \lVert\Delta_i\rVert)
                     + \mathcal N(0, (z S)^2 I) \Big),
        \qquad i \in S \text{ with probability } q .

    Each client counts with weight 1: the weights of the messages are not looked at. The
    denominator is the *expected* cohort; the realised one depends on who takes part and is never
    divided by. An empty cohort gives noise, like any other.

    Args:
      clip: `S`, the largest norm of an update; infinity only without noise. May be traced.
      num_clients: `N`. A run on another population is refused.
      delta: probability that the bound may fail, well below ``1 / N`` (from there on: a warning).
      expected_cohort_size: ``q N``; or state `sampling_rate`.
      sampling_rate: `q` in `(0, 1]`.
      epsilon: the budget of the run. Without `noise_multiplier` the noise is calibrated for
        `num_rounds` rounds; with it the run stops after the last round within the budget.
      noise_multiplier: `z`, the noise on the sum over `clip`; 0 is NOT PRIVATE, and said so. May
        be traced, for a sweep (`calibrate` turns budgets into a list of them).
      num_rounds: `T`, needed to calibrate. The run stops there, also where only the noise is given.
      per_layer: clip each of `n` leaves to ``S / sqrt(n)``; the whole is bounded by `S` again.
      capacity: slots of a cohort; see `poisson_cohorts`. What an overflow can cost is accounted
        for within delta.
      method: "pld" or "rdp".
      unit: what one row of the population is, for the description.

    Returns:
      A `Mechanism`, for ``privacy=`` of the algorithms whose server needs the aggregate only. Its
      `noise_multiplier` is the `z` that was stated or found.

    Raises:
      ValueError: if an amount is missing, doubly stated or out of range.
      TypeError: if an amount is traced that the accounting needs, as `epsilon`.
      ImportError: if dp-accounting is not installed.

    Guarantees:
      ``spent(T)``: (epsilon, delta)-DP for adding or removing one client with all its data, for
      whoever sees every model of the run, if the sampling is secret. Sensitivity of the sum: `S`
      for adding or removing (``2 S`` for replacing), up to float32 rounding, whatever the client
      sends: NaN and infinity become zero. The noise is float32 and from JAX's counter-based
      generator: no defence against attacks on floating-point noise or against who knows the key.
      The metrics of the rounds are exact and for the experimenter only.
      As all mechanisms, with a secret key that serves one run, and where nothing but
      `state.server.params` is published (see `fedjax_lite.privacy`).

    Example:
      >>> dp = central_gaussian(clip=1.0, num_clients=1000, expected_cohort_size=10,
      ...                       noise_multiplier=1.1, delta=1e-5)
      >>> round(dp.accountant.spent(1000)["epsilon"], 3)
      1.515

    Reference: McMahan, Ramage, Talwar, Zhang, "Learning Differentially Private Recurrent Language
    Models", 2018, arXiv:1710.06963.
    """
    if num_rounds is not None:
        check_count(num_rounds, "num_rounds", minimum=1)
    check_delta(delta, num_clients=num_clients)
    cohorts = stated_cohorts(num_clients, expected_cohort_size, sampling_rate, capacity)
    rate = declared_rate(num_clients, expected_cohort_size, sampling_rate)
    z = stated_noise(
        epsilon=epsilon,
        noise_multiplier=noise_multiplier,
        calibrate=lambda budget: calibrated_noise(
            epsilon=budget,
            delta=delta,
            sampling_rate=rate,
            num_rounds=num_rounds,
            overflow=cohorts.overflow,
            method=method,
            capacity=capacity,
        ),
    )
    if not is_traced(clip):
        check_clip(clip, z)
    return Mechanism(
        sampler=cohorts.sampler,
        aggregator=gaussian_sum(
            clip=clip, noise_multiplier=z, denominator=rate * num_clients, per_layer=per_layer
        ),
        accountant=poisson_accountant(
            noise_multiplier=z,
            sampling_rate=rate,
            overflow=cohorts.overflow,
            delta=delta,
            method=method,
            epsilon=epsilon,
            num_rounds=num_rounds,
            calibrated=noise_multiplier is None,
            what=f"central DP per {unit} (add or remove one of {num_clients}, all its data)",
        ),
    )


@made
def gaussian_sum(
    *,
    clip: float | Array,
    noise_multiplier: float | Array,
    denominator: float | Array,
    per_layer: bool = False,
) -> Aggregator:
    """The aggregator of `central_gaussian`: clipped sum, noise once, over a fixed denominator.

    Its arguments may be traced, so that a sweep over noise compiles once; privacy is accounted for
    by the `Mechanism` that it belongs to: ``mechanism._replace(aggregator=gaussian_sum(...))``.

    Args:
      clip: `S` > 0.
      noise_multiplier: `z` >= 0; 0 adds nothing, also where `clip` is infinite.
      denominator: a number that does not depend on data, as ``q N``.
      per_layer: see `clip_clients`.

    Returns:
      An `Aggregator` without state; sums in float32 or wider, noise drawn anew for every leaf and
      round.

    Raises:
      ValueError: if an amount is out of range.

    Example:
      >>> rows = Message(jnp.array([[3.0, 4.0], [0.3, 0.4], [0.0, -2.0]]), jnp.array([9.0, 1, 1]))
      >>> agg = gaussian_sum(clip=1.0, noise_multiplier=0.0, denominator=4.0)
      >>> acc = agg.add(agg.init(Message(jnp.zeros(2), 1.0), 3), rows, jnp.arange(3),
      ...               jnp.ones(3, bool))
      >>> [round(x, 4) for x in agg.finish(jax.random.key(0), (), acc, None)[1].tolist()]
      [0.225, 0.05]
    """
    check_positive(clip, "clip")
    check_non_negative(noise_multiplier, "noise_multiplier")
    check_positive(denominator, "denominator")

    def add(acc: PyTree, messages: Message, slots: Array, mask: Array) -> PyTree:
        return add_rows(acc, clip_clients(messages.value, clip, per_layer=per_layer), mask)

    def finish(key: Key, state: PyTree, acc: PyTree, cohort: Cohort) -> tuple[PyTree, PyTree]:
        noise = gaussian_like(key, acc, noise_stddev(noise_multiplier, clip))
        return state, jax.tree.map(lambda total, n: (total + n) / denominator, acc, noise)

    return Aggregator(lambda params: (), zero_sum, add, finish)


def zero_sum(message: Message, cohort_size: int) -> PyTree:
    """An empty sum of values, in float32 or wider.

    Example:
      >>> zero_sum(Message(jnp.ones(2, jnp.bfloat16), 1.0), 5).dtype
      dtype('float32')
    """
    return trees.wide_zeros(message.value)


def add_rows(acc: PyTree, values: PyTree, mask: Array) -> PyTree:
    """Adds rows `[L, ...]` with weight 1 where `mask` holds; the others leave no trace."""
    values = trees.where(mask, values, jax.tree.map(jnp.zeros_like, values))
    return jax.tree.map(
        lambda total, leaf: total + trees.sum_rows(leaf.astype(total.dtype)), acc, values
    )


def noise_stddev(noise_multiplier: Any, clip: Any) -> Array:
    """``z S``, and 0 without noise even where `clip` is infinite."""
    silent = jnp.asarray(noise_multiplier) == 0
    return jnp.where(silent, 0.0, noise_multiplier * jnp.where(silent, 1.0, clip))


def declared_rate(
    num_clients: int, expected_cohort_size: float | None, sampling_rate: float | None
) -> float:
    """`q` from the one of the two that is stated.

    Raises:
      ValueError: if both or neither are stated, or it is out of range.

    Example:
      >>> declared_rate(1000, 10, None)
      0.01
    """
    check_one(expected_cohort_size=expected_cohort_size, sampling_rate=sampling_rate)
    if sampling_rate is not None:
        check_population(num_clients, sampling_rate * num_clients, "sampling_rate * num_clients")
        return float(sampling_rate)
    assert expected_cohort_size is not None
    check_population(num_clients, expected_cohort_size, "expected_cohort_size")
    return float(expected_cohort_size) / num_clients


def stated_cohorts(
    num_clients: int,
    expected_cohort_size: float | None,
    sampling_rate: float | None,
    capacity: int | None,
) -> PoissonCohorts:
    """Poisson cohorts of the rate that is stated; see `declared_rate`."""
    rate = declared_rate(num_clients, expected_cohort_size, sampling_rate)
    return poisson_cohorts(num_clients, rate, capacity=capacity)
