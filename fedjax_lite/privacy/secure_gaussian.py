"""Central DP on a secure sum: integers of bounded norm are summed, the server adds noise."""

from __future__ import annotations

import math

import jax
import jax.numpy as jnp

from fedjax_lite.checks.arguments import (
    check_count,
    check_finite,
    check_non_negative,
    check_positive,
)
from fedjax_lite.checks.made import made
from fedjax_lite.privacy.accounting.accountants import (
    calibrated_noise,
    poisson_accountant,
    stated_noise,
)
from fedjax_lite.privacy.arguments import check_delta
from fedjax_lite.privacy.clipping import clip_clients
from fedjax_lite.privacy.gaussian import noise_stddev
from fedjax_lite.round.sampling import uniform
from fedjax_lite.transforms.noise import gaussian_like
from fedjax_lite.types import (
    Aggregator,
    Array,
    Cohort,
    Key,
    Mechanism,
    Message,
    PyTree,
    Sampler,
)

SLACK = 1e-5
"""Of the clip, left free for float32: norms and products of the client are off by less."""
MOST_LOST = 0.1
"""Of the clip, that rounding may take."""
MAX_BITS = 24


@made
def secure_gaussian(
    *,
    clip: float | Array,
    cohort_size: int,
    delta: float,
    epsilon: float | None = None,
    noise_multiplier: float | Array | None = None,
    num_rounds: int | None = None,
    bits: int = 20,
    sampler: Sampler | None = None,
) -> Mechanism:
    r"""DP-FedAvg on sums of integers: the server sees sums only, and its models hide each client.

    .. math::
        q_i = \operatorname{round}\big(\operatorname{clip}(\Delta_i, S') / \gamma\big), \qquad
        \gamma = \frac{S}{2^{b-1} - 1}, \qquad S' = S - \tfrac12 \gamma \sqrt d

    .. math::
        \bar\Delta = \frac1m \Big( \gamma \Big(\sum_i q_i \bmod 2^{32}\Big)
                     + \mathcal N(0, (z S)^2 I) \Big)

    The noise of `central_gaussian` on a sum as secure aggregation reveals it. The sum's integers
    are what has to be of bounded norm: rounding moves a coordinate by half a step at most, a
    vector by :math:`\gamma \sqrt d / 2`, so clients clip to a norm that is shorter by that. Each
    clips its own update; the server cannot see whether it did.

    Args:
      clip: `S`, the largest norm of what a client sends. May be traced.
      cohort_size: `m`: clients a round at most, and the fixed denominator.
      delta: of the guarantee.
      epsilon: the budget of the run. Without `noise_multiplier` the noise is calibrated for
        `num_rounds` rounds; with it the run stops after the last round within the budget.
      noise_multiplier: `z`, the noise on the sum over `clip`; 0 is NOT PRIVATE, and said so. May be
        traced.
      num_rounds: of the whole run, which stops there; needed to calibrate.
      bits: `b`, 2 to 24, of a coordinate. The sum needs ``m (2**(b-1) - 1) < 2**31``.
      sampler: who takes part; default ``uniform(cohort_size)``.

    Returns:
      A `Mechanism`; `fedjax_lite.deploy.secure_server` takes it.

    Raises:
      ValueError: if an amount is missing, doubly stated or out of range, or the sum could wrap;
        when it is initialised, if rounding would take a tenth of the clip or more.

    Guarantees:
      ``spent(T)``: (epsilon, delta)-DP for whoever sees every model of the run. The unit is one
      client, whose update is replaced by zeros: that moves the sum by `S` at most, whatever the
      others send, who drops out, and whatever the update is (NaN and infinity become zero). Of `S`
      1e-5 is left free for float32's rounding at the client. Every round is counted in full:
      nothing is gained by sampling, since in secure aggregation a round's clients know one
      another; so any sampler will do. The server is trusted with the sums, and with the noise: it
      adds it, from a key that no client may have. To hide clients from it, too, see
      `distributed_discrete_gaussian`. Sum and noise are float32 there, as of `central_gaussian`.

    Example:
      >>> dp = secure_gaussian(clip=1.0, cohort_size=100, delta=1e-5, noise_multiplier=4.0)
      >>> round(dp.accountant.spent(16)["epsilon"], 6)  # as one round with z = 1
      4.377178

    Reference: McMahan, Ramage, Talwar, Zhang, "Learning Differentially Private Recurrent Language
    Models", 2018, arXiv:1710.06963; Bonawitz et al., "Practical Secure Aggregation for
    Privacy-Preserving Machine Learning", CCS 2017, ePrint 2017/281.
    """
    if num_rounds is not None:
        check_count(num_rounds, "num_rounds", minimum=1)
    check_delta(delta)
    z = stated_noise(
        epsilon=epsilon,
        noise_multiplier=noise_multiplier,
        calibrate=lambda budget: calibrated_noise(
            epsilon=budget,
            delta=delta,
            sampling_rate=1.0,
            num_rounds=num_rounds,
            overflow=0.0,
            method="pld",
        ),
    )
    aggregator = secure_gaussian_sum(
        clip=clip, noise_multiplier=z, cohort_size=cohort_size, bits=bits
    )
    return Mechanism(
        sampler=uniform(cohort_size) if sampler is None else sampler,
        aggregator=aggregator,
        accountant=poisson_accountant(
            noise_multiplier=z,
            sampling_rate=1.0,
            overflow=0.0,
            delta=delta,
            method="pld",
            epsilon=epsilon,
            num_rounds=num_rounds,
            calibrated=noise_multiplier is None,
            what="central DP per client (its update replaced by zeros) on secure sums of integers, "
            "nothing gained by sampling",
        ),
    )


@made
def secure_gaussian_sum(
    *,
    clip: float | Array,
    noise_multiplier: float | Array,
    cohort_size: int,
    bits: int = 20,
    denominator: float | Array | None = None,
) -> Aggregator:
    """The aggregator of `secure_gaussian`: integers modulo 2**32 in, noise once, one denominator.

    Args:
      clip: `S` > 0, finite.
      noise_multiplier: `z` >= 0.
      cohort_size: clients at most.
      bits: of a coordinate.
      denominator: a number that does not depend on data; default `cohort_size`.

    Returns:
      An `Aggregator` without state.

    Raises:
      ValueError: if an amount is out of range, or the sum could wrap around.

    Example:
      >>> rows = Message(jnp.array([[3.0, 4.0], [0.0, 0.5]]), jnp.ones(2))
      >>> agg = secure_gaussian_sum(clip=1.0, noise_multiplier=0.0, cohort_size=2)
      >>> acc = agg.add(agg.init(Message(jnp.zeros(2), 1.0), 2), rows, jnp.arange(2),
      ...               jnp.ones(2, bool))
      >>> [round(x, 4) for x in agg.finish(jax.random.key(0), (), acc, None)[1].tolist()]
      [0.3, 0.65]
    """
    check_finite(clip, "clip")
    check_positive(clip, "clip")
    check_non_negative(noise_multiplier, "noise_multiplier")
    check_count(cohort_size, "cohort_size", minimum=1)
    levels = _levels(bits, cohort_size)
    share = cohort_size if denominator is None else denominator
    check_positive(share, "denominator")

    def init(message: Message, slots: int) -> PyTree:
        if slots > cohort_size:
            raise ValueError(
                f"cohort_size must be at least the sampler's {slots} slots, got {cohort_size}: "
                "more clients would not fit into the ring"
            )
        lost_by_rounding(_size(message.value), bits)
        return jax.tree.map(lambda leaf: jnp.zeros(leaf.shape, jnp.uint32), message.value)

    def add(acc: PyTree, messages: Message, slots: Array, mask: Array) -> PyTree:
        codes = bounded_codes(messages.value, clip, bits=bits)
        sent = jax.tree.map(
            lambda q: jnp.where(mask.reshape(mask.shape + (1,) * (q.ndim - 1)), q, 0), codes
        )
        return jax.tree.map(lambda total, q: total + q.sum(0, dtype=jnp.uint32), acc, sent)

    def finish(key: Key, state: PyTree, acc: PyTree, cohort: Cohort) -> tuple[PyTree, PyTree]:
        step = clip / levels
        total = jax.tree.map(lambda codes: codes.astype(jnp.int32) * jnp.asarray(step, float), acc)
        noise = gaussian_like(key, total, noise_stddev(noise_multiplier, clip))
        return state, jax.tree.map(lambda leaf, n: (leaf + n) / share, total, noise)

    return Aggregator(lambda params: (), init, add, finish)


def bounded_codes(values: PyTree, clip: float | Array, *, bits: int) -> PyTree:
    r"""Each client's value as integers `q`, of norm :math:`\gamma \lVert q \rVert \le S` for sure.

    Args:
      values: leaves `[L, ...]`.
      clip: `S`.
      bits: `b`; the step is :math:`\gamma = S / (2^{b-1} - 1)`.

    Returns:
      uint32, leaves of the same shapes: integers modulo 2**32.

    Example:
      >>> bounded_codes(jnp.array([[3.0, -4.0], [jnp.nan, 1.0]]), 1.0, bits=11).tolist()
      [[613, 4294966478], [0, 0]]
    """
    levels = 2 ** (bits - 1) - 1
    size = sum(math.prod(leaf.shape[1:]) for leaf in jax.tree.leaves(values))
    shorter = (1 - SLACK) * (1 - lost_by_rounding(size, bits))
    clipped = clip_clients(values, clip * shorter)
    scale = levels / jnp.asarray(clip, jnp.float32)
    return jax.tree.map(
        lambda leaf: jnp.round(leaf * scale).astype(jnp.int32).astype(jnp.uint32), clipped
    )


def lost_by_rounding(size: int, bits: int) -> float:
    r"""What of the clip rounding may take, :math:`\sqrt d / (2 (2^{b-1} - 1))`.

    Args:
      size: `d`, coordinates of an update.
      bits: `b`.

    Raises:
      ValueError: if it is a tenth or more.

    Example:
      >>> lost_by_rounding(100, 11)
      0.004887585532746823
    """
    lost = math.sqrt(size) / (2 * (2 ** (bits - 1) - 1))
    if lost >= MOST_LOST:
        enough = math.ceil(math.log2(math.sqrt(size) / (2 * MOST_LOST) + 1)) + 1
        raise ValueError(
            f"bits must be more for updates of {size} coordinates, got {bits}: rounding would take "
            f"{lost:.0%} of the clip; use at least {enough}"
        )
    return lost


def _levels(bits: int, cohort_size: int) -> int:
    """Steps of the grid in the clip."""
    check_count(bits, "bits", minimum=2)
    if bits > MAX_BITS:
        raise ValueError(f"bits must be at most {MAX_BITS}, got {bits}: values are float32")
    levels = 2 ** (bits - 1) - 1
    if cohort_size * levels >= 2**31:
        fitting = (2**31 - 1) // cohort_size + 1
        raise ValueError(
            f"bits must be fewer for {cohort_size} clients, got {bits}: their sum would wrap around"
            f" 2**32; use at most {fitting.bit_length()}, or a smaller cohort"
        )
    return levels


def _size(value: PyTree) -> int:
    return sum(math.prod(jnp.shape(leaf)) for leaf in jax.tree.leaves(value))
