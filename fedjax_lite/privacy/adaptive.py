"""Adaptive clipping: the clipping norm follows a quantile of the updates' norms, privately."""

from __future__ import annotations

import math
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from fedjax_lite.checks.arguments import (
    check_count,
    check_fraction,
    check_non_negative,
    check_positive,
)
from fedjax_lite.checks.made import made
from fedjax_lite.privacy.accounting.accountants import (
    calibrated_noise,
    poisson_accountant,
    stated_noise,
)
from fedjax_lite.privacy.accounting.poisson import Method
from fedjax_lite.privacy.arguments import check_clip, check_delta, is_traced
from fedjax_lite.privacy.clipping import clip_clients, within
from fedjax_lite.privacy.gaussian import (
    add_rows,
    declared_rate,
    noise_stddev,
    stated_cohorts,
    zero_sum,
)
from fedjax_lite.transforms.noise import gaussian_like
from fedjax_lite.types import Aggregator, Array, Cohort, Key, Mechanism, Message, Params, PyTree

RANGE = 1e10
"""The clipping norm stays within this factor of its first value."""


class AdaptiveClip(NamedTuple):
    """What the server keeps: it is private already, so it may be shown."""

    clip: Array
    """float32 scalar: the norm that the next round clips to."""
    metrics: dict[str, Array]
    """``clip`` that the last round clipped to, and its noisy ``unclipped_fraction``."""


class CountedSum(NamedTuple):
    """The accumulator."""

    total: PyTree
    count: Array
    """float32: sum of ``b_i - 1/2`` over the cohort."""


@made
def adaptive_clipping(
    *,
    num_clients: int,
    delta: float,
    expected_cohort_size: float | None = None,
    sampling_rate: float | None = None,
    epsilon: float | None = None,
    noise_multiplier: float | Array | None = None,
    num_rounds: int | None = None,
    target_quantile: float = 0.5,
    clip_learning_rate: float = 0.2,
    initial_clip: float = 0.1,
    count_noise_multiplier: float | None = None,
    capacity: int | None = None,
    method: Method = "pld",
    unit: str = "client",
) -> Mechanism:
    r"""`central_gaussian` whose clipping norm finds a quantile of the norms by itself.

    A round clips with the `C` that it begins with, and counts who was *not* clipped:

    .. math::
        b_i &= 1[\lVert \Delta_i \rVert \le C], \qquad
        \bar b = \frac 1m \Big( \sum_{i \in S} (b_i - \tfrac12) + \mathcal N(0, \sigma_b^2) \Big)
                 + \tfrac12, \\
        C &\leftarrow C \cdot e^{-\eta_C (\bar b - \gamma)}, \qquad
        z_\Delta = \big( z^{-2} - (2 \sigma_b)^{-2} \big)^{-1/2}.

    More clients below `C` than the quantile asks for shrink it, fewer let it grow, within ten
    orders of magnitude around `initial_clip`. The updates get the noise :math:`z_\Delta C`, a
    little more than `z C`, which pays for the count.

    Args:
      num_clients: see `central_gaussian`, as for the arguments not named here.
      delta: see there.
      expected_cohort_size: `m`, the fixed denominator of both means.
      sampling_rate: ``m / N`` instead.
      epsilon: see there.
      noise_multiplier: `z` of updates and count together; may be traced.
      num_rounds: see there.
      target_quantile: `gamma` in `[0, 1]`.
      clip_learning_rate: `eta_C` >= 0; 0 keeps the clip.
      initial_clip: `C` of the first round.
      count_noise_multiplier: `sigma_b`, the noise on the count; default ``m / 20``.
      capacity: see there.
      method: see there.
      unit: see there.

    Returns:
      A `Mechanism`; the round's metrics have ``clip`` and ``unclipped_fraction``, both private.

    Raises:
      ValueError: if an amount is out of range, or ``z >= 2 sigma_b``.

    Guarantees:
      As `central_gaussian` with noise multiplier `z`: a client moves the clipped sum, in units of
      `C`, by at most 1, and the count by at most 1/2.
      As all mechanisms, with a secret key that serves one run, and where nothing but
      `state.server.params` is published (see `fedjax_lite.privacy`).

    Example:
      >>> dp = adaptive_clipping(num_clients=1000, expected_cohort_size=100, noise_multiplier=1.0,
      ...                        delta=1e-5)
      >>> round(float(dp.aggregator.init_state(None).clip), 4)
      0.1

    Reference: Andrew, Thakkar, McMahan, Ramaswamy, "Differentially Private Learning with Adaptive
    Clipping", 2021, arXiv:1905.03871.
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
    check_clip(initial_clip, z, "initial_clip")
    expected = rate * num_clients
    count_noise = expected / 20 if count_noise_multiplier is None else count_noise_multiplier
    return Mechanism(
        sampler=cohorts.sampler,
        aggregator=adaptive_sum(
            noise_multiplier=update_noise(z, count_noise),
            count_noise_multiplier=count_noise,
            denominator=expected,
            target_quantile=target_quantile,
            clip_learning_rate=clip_learning_rate,
            initial_clip=initial_clip,
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
            what=f"central DP per {unit} (add or remove one of {num_clients}, all its data), "
            "clipping norm adapted within the same budget",
        ),
    )


def update_noise(noise_multiplier: Any, count_noise_multiplier: float) -> Any:
    """``z_Delta``: what is left for the updates when the count takes its share.

    Args:
      noise_multiplier: `z` of both; may be traced.
      count_noise_multiplier: `sigma_b`.

    Returns:
      ``(z^-2 - (2 sigma_b)^-2)^(-1/2)``; 0 for `z` = 0. Of a traced `z` that is too large: NaN.

    Raises:
      ValueError: if ``z >= 2 sigma_b``: the count alone would exceed the budget.

    Example:
      >>> round(update_noise(1.0, 5.0), 10)
      1.0050378153
    """
    check_non_negative(count_noise_multiplier, "count_noise_multiplier")
    check_non_negative(noise_multiplier, "noise_multiplier")
    if is_traced(noise_multiplier):
        share = noise_multiplier / (2 * jnp.asarray(count_noise_multiplier))
        return noise_multiplier / jnp.sqrt(1 - share**2)  # the same, and 0 for 0
    if noise_multiplier == 0:
        return 0.0
    if noise_multiplier >= 2 * count_noise_multiplier:
        raise ValueError(
            f"count_noise_multiplier must exceed noise_multiplier / 2, got "
            f"{count_noise_multiplier} for noise_multiplier={noise_multiplier}: the count alone "
            "would spend the budget; raise it, or expected_cohort_size, of which it is 1/20"
        )
    return 1 / math.sqrt(noise_multiplier**-2 - (2 * count_noise_multiplier) ** -2)


@made
def adaptive_sum(
    *,
    noise_multiplier: float | Array,
    count_noise_multiplier: float | Array,
    denominator: float | Array,
    target_quantile: float | Array = 0.5,
    clip_learning_rate: float | Array = 0.2,
    initial_clip: float | Array = 0.1,
) -> Aggregator:
    """The aggregator of `adaptive_clipping`; its arguments may be traced.

    Args:
      noise_multiplier: ``z_Delta``, see `update_noise`.
      count_noise_multiplier: `sigma_b`.
      denominator: `m`, fixed.
      target_quantile: `gamma`.
      clip_learning_rate: `eta_C`.
      initial_clip: `C` of the first round.

    Returns:
      An `Aggregator` with the state `AdaptiveClip`; a round asks ``at(state)`` for the one that
      clips to this round's norm.

    Raises:
      ValueError: if an amount is out of range.

    Example:
      >>> agg = adaptive_sum(noise_multiplier=0.0, count_noise_multiplier=0.0, denominator=10.0,
      ...                    initial_clip=1.0)
      >>> state, rows = agg.init_state(None), Message(jnp.arange(1.0, 11.0), jnp.ones(10))
      >>> now = agg.at(state)
      >>> acc = now.add(now.init(Message(jnp.zeros(()), 1.0), 10), rows, jnp.arange(10),
      ...               jnp.ones(10, bool))
      >>> round(float(now.finish(jax.random.key(0), state, acc, None)[0].clip), 5)
      1.08329
    """
    check_non_negative(noise_multiplier, "noise_multiplier")
    check_non_negative(count_noise_multiplier, "count_noise_multiplier")
    check_positive(denominator, "denominator")
    check_fraction(target_quantile, "target_quantile")
    check_non_negative(clip_learning_rate, "clip_learning_rate")
    check_positive(initial_clip, "initial_clip")

    def with_clip(clip: Any) -> Aggregator:
        def add(acc: CountedSum, messages: Message, slots: Array, mask: Array) -> CountedSum:
            total = add_rows(acc.total, clip_clients(messages.value, clip), mask)
            bits = jnp.where(mask, within(messages.value, clip) - 0.5, 0.0)
            return CountedSum(total, acc.count + bits.sum().astype(acc.count.dtype))

        return Aggregator(init_state, init, add, finish, lambda state: with_clip(state.clip))

    def init_state(params: Params) -> AdaptiveClip:
        clip = jnp.asarray(initial_clip, jnp.float32)
        return AdaptiveClip(clip, {"clip": clip, "unclipped_fraction": jnp.float32(0.5)})

    def init(message: Message, cohort_size: int) -> CountedSum:
        return CountedSum(zero_sum(message, cohort_size), jnp.float32(0))

    def finish(
        key: Key, state: AdaptiveClip, acc: CountedSum, cohort: Cohort
    ) -> tuple[AdaptiveClip, PyTree]:
        key_update, key_count = jax.random.split(key)
        noise = gaussian_like(key_update, acc.total, noise_stddev(noise_multiplier, state.clip))
        value = jax.tree.map(lambda total, n: (total + n) / denominator, acc.total, noise)
        count = acc.count + gaussian_like(key_count, acc.count, count_noise_multiplier)
        below = (count / denominator + 0.5).astype(jnp.float32)
        clip = state.clip * jnp.exp(-clip_learning_rate * (below - target_quantile))
        # Updates that are zero for ever, or huge, would drive it out of float32.
        clip = jnp.clip(clip, initial_clip / RANGE, initial_clip * RANGE).astype(jnp.float32)
        metrics = {"clip": state.clip, "unclipped_fraction": below}
        return AdaptiveClip(clip, metrics), value

    return with_clip(initial_clip)
