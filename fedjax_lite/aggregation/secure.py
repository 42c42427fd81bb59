"""secure_mean(): the mean by modular sums of fixed-point numbers, as in secure aggregation."""

from __future__ import annotations

import math
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from fedjax_lite import trees
from fedjax_lite.checks.arguments import check_count
from fedjax_lite.checks.made import made
from fedjax_lite.crypto.fixed_point import check_grid, check_ring, decode_mean, encode
from fedjax_lite.types import Aggregator, Array, Cohort, Key, Message, Params, PyTree

MASKS, WEIGHTINGS = ("none", "pairwise"), ("uniform", "message")


class SecureState(NamedTuple):
    """The state of `secure_mean`; `compose` adds `metrics` to those of the round."""

    seed: Array
    """uint32 `[2]`: this round's masks; drawn anew in every round."""
    metrics: dict[str, Array]


class SecureSums(NamedTuple):
    """The accumulator: elements of the ring of integers modulo 2**32."""

    values: PyTree
    """uint32: sums of codes times integer weights, under whatever masks have not cancelled yet."""
    weight: Array
    """uint32 scalar: the sum of weights, under masks as well."""
    present: Array
    """uint32 `[C]`: 1 in the slots whose message arrived."""
    clipped: Array
    """float32 scalar, outside of the ring and of the protocol, for the experimenter only: sum over
    clients of the share of entries outside the range."""


@made
def secure_mean(
    *,
    max_abs: float | Array,
    bits: int = 16,
    exact_zero: bool = False,
    weighting: str = "uniform",
    max_weight: int = 1,
    cohort_size: int | None = None,
    threshold: int = 1,
    masks: str = "none",
) -> Aggregator:
    r"""The mean of clipped fixed-point updates by sums modulo 2**32, inside jit.

    .. math::
        q_i = \operatorname{round}\!\Big(\frac{v_i + c}{2c}\,(2^r - 1)\Big), \qquad
        \bar v = \frac{2c}{2^r - 1}\,\frac{\sum_i w_i q_i \bmod 2^{32}}{\sum_i w_i} - c

    What the server computes is what the protocol of `fedjax_lite.crypto.secure_sum` reveals, bit
    for bit, under every pattern of drop-outs: a client that is masked in the cohort sends nothing.
    With ``masks="pairwise"`` every vector really enters the sum under the double mask

    .. math::  y_u = w_u q_u + b_u + \sum_{v > u} s_{uv} - \sum_{v < u} s_{uv} \pmod{2^{32}},

    `u`, `v` the slots of the cohort, and what the drop-outs leave behind is subtracted in the end,
    at O(C^2 x model) random words a round; the result is the same. Masks come from jax's
    generator, keyed by the round: a simulation of the arithmetic, not of the secrecy.

    Inside the range the mean is off by at most half a step, ``c / (2**bits - 1)``, and rounding of
    float32. Zero is no level of the formula above, so that a parameter which nobody moves drifts by
    half a step every round; `exact_zero` makes it one.

    Args:
      max_abs: `c` > 0; entries are clipped to `[-c, c]` one by one, infinities too; NaN is 0.
      bits: `r`, 1 to 24.
      exact_zero: use ``2**r - 2`` in place of ``2**r - 1``: one level less, and 0 stays 0.
      weighting: "uniform": every client with weight above 0 counts once; "message": the messages'
        weights, one number a client, rounded to integers and clipped to `[0, max_weight]`.
      max_weight: the largest weight; it costs ``log2(max_weight)`` bits of the ring.
      cohort_size: clients a round, at most, to be told of a wrap when this is built; the cohort's
        true size is checked in any case, before anything runs.
      threshold: fewer survivors abort the round: the aggregate is zero, ``secure_aborted`` 1. Of
        the whole cohort, like `min_survivors` of `fedjax_lite.crypto.secure_sum`.
      masks: "none" or "pairwise".

    Returns:
      An `Aggregator`; its state's metrics: ``secure_clipped``, the share of entries that lay
      outside the range (mean over survivors), and ``secure_aborted``. The former is for the
      experimenter only, who tunes `max_abs` in a simulation: a float sum in the clear, outside
      of the ring, reported even where the round aborts; no server of the protocol would see it,
      and no guarantee of privacy covers it.

    Raises:
      ValueError: if an option is unknown or out of range, if weights are not one number a client,
        if ``C * max_weight * (2**bits - 1) >= 2**32``: the sum could wrap, or if the threshold is
        above the cohort: every round would abort.

    Example:
      >>> aggregator = secure_mean(max_abs=1.0, bits=16)
      >>> messages = Message(jnp.array([[0.5, 1.0], [-0.5, 3.0]]), jnp.ones(2))
      >>> acc = aggregator.init(jax.tree.map(lambda leaf: leaf[0], messages), 2)
      >>> acc = aggregator.add(acc, messages, jnp.arange(2), jnp.ones(2, bool))
      >>> cohort = Cohort(jnp.arange(2), jnp.ones(2, bool))
      >>> state = aggregator.init_state(jnp.zeros(2))
      >>> state, value = aggregator.finish(jax.random.key(0), state, acc, cohort)
      >>> value.round(4).tolist(), float(state.metrics["secure_clipped"])
      ([0.0, 1.0], 0.25)

    Reference: Bonawitz et al., "Practical Secure Aggregation for Privacy-Preserving Machine
    Learning", CCS 2017, ePrint 2017/281.
    """
    check_grid(max_abs, bits, exact_zero)
    grid: dict[str, Any] = {"max_abs": max_abs, "bits": bits, "exact_zero": exact_zero}
    for value, name, known in ((masks, "masks", MASKS), (weighting, "weighting", WEIGHTINGS)):
        if value not in known:
            raise ValueError(f"{name} must be one of {known}, got {value!r}")
    check_count(max_weight, "max_weight", minimum=1)
    check_count(threshold, "threshold", minimum=1)
    if weighting == "uniform" and max_weight != 1:
        raise ValueError(
            f"max_weight must be 1 where weighting is 'uniform', got {max_weight}; "
            "weighting='message' takes the messages' weights"
        )
    if cohort_size is not None:
        check_count(cohort_size, "cohort_size", minimum=1)
        check_ring(cohort_size, max_weight=max_weight, bits=bits)
        check_threshold(threshold, cohort_size)
    masked = masks == "pairwise"

    def init_state(params: Params) -> SecureState:
        zero = jnp.float32(0)
        metrics = {"secure_clipped": zero, "secure_aborted": zero}
        return SecureState(jnp.zeros(2, jnp.uint32), metrics)

    def init(message: Message, cohort_size: int) -> SecureSums:
        check_ring(cohort_size, max_weight=max_weight, bits=bits)
        check_threshold(threshold, cohort_size)
        if weighting == "message":
            _check_scalar_weight(message)
        zeros = jax.tree.map(lambda leaf: jnp.zeros(leaf.shape, jnp.uint32), message.value)
        present = jnp.zeros(cohort_size, jnp.uint32)
        return SecureSums(zeros, jnp.uint32(0), present, jnp.float32(0))

    def integer_weights(weight: PyTree, num_lanes: int) -> Array:
        leaves = [leaf.reshape(num_lanes, -1) for leaf in jax.tree.leaves(weight)]
        if weighting == "uniform":
            return jnp.stack([(leaf > 0).any(1) for leaf in leaves]).any(0).astype(jnp.uint32)
        one = jnp.where(jnp.isnan(leaves[0][:, 0]), 0, leaves[0][:, 0])
        return jnp.clip(jnp.round(one), 0, max_weight).astype(jnp.uint32)

    def fold(
        seed: Any, acc: SecureSums, messages: Message, slots: Array, mask: Array
    ) -> SecureSums:
        weights = jnp.where(mask, integer_weights(messages.weight, mask.shape[0]), 0)
        codes = jax.tree.map(lambda v: encode(v, **grid), messages.value)
        sent = (jax.tree.map(lambda q: _align(weights, q) * q, codes), weights)
        if masked:
            like = (acc.values, acc.weight)
            num_slots, length = acc.present.shape[0], _length(like)
            words = lane_masks(seed, slots, num_slots=num_slots, length=length)
            # Who sends nothing sends no masks.
            words = jnp.where(mask[:, None], words, 0)
            sent = jax.tree.map(jnp.add, sent, _cut(words, like))
        values, weight = jax.tree.map(
            lambda total, part: total + part.sum(0, dtype=jnp.uint32),
            (acc.values, acc.weight),
            sent,
        )
        arrived = trees.scatter_rows(
            jnp.zeros_like(acc.present), slots, mask, jnp.ones_like(slots, jnp.uint32)
        )
        clipped = jnp.where(mask, clipped_share(messages.value, max_abs), 0).sum()
        return SecureSums(values, weight, acc.present + arrived, acc.clipped + clipped)

    def finish(
        key: Key, state: SecureState, acc: SecureSums, cohort: Cohort
    ) -> tuple[SecureState, PyTree]:
        total: Any = (acc.values, acc.weight)
        if masked:
            left = left_over_masks(state.seed, acc.present > 0, length=_length(total))
            total = jax.tree.map(jnp.subtract, total, _cut(left, total))
        values, weight = total
        survivors = acc.present.sum(dtype=jnp.uint32)
        # Below the threshold no secret is revealed, so that nobody learns the sum.
        weight = jnp.where(survivors >= threshold, weight, 0)
        value = jax.tree.map(lambda leaf: decode_mean(leaf, weight, **grid), values)
        metrics = {
            "secure_clipped": acc.clipped / jnp.maximum(survivors, 1),
            "secure_aborted": (survivors < threshold).astype(jnp.float32),
        }
        return SecureState(jax.random.bits(key, (2,), jnp.uint32), metrics), value

    def aggregator(seed: Any) -> Aggregator:
        def add(acc: SecureSums, messages: Message, slots: Array, mask: Array) -> SecureSums:
            return fold(seed, acc, messages, slots, mask)

        return Aggregator(init_state, init, add, finish)

    first = aggregator(np.zeros(2, np.uint32))
    return first._replace(at=lambda state: aggregator(state.seed)) if masked else first


def check_threshold(threshold: int, cohort_size: int) -> None:
    """Raises where no cohort of that size could reach the threshold.

    Example:
      >>> check_threshold(3, 3)
      >>> try:
      ...     check_threshold(10, 3)
      ... except ValueError as error:
      ...     print(str(error)[:61])
      threshold must be at most the cohort's size, got 10 of 3: eve
    """
    if threshold > cohort_size:
        raise ValueError(
            f"threshold must be at most the cohort's size, got {threshold} of {cohort_size}: every "
            "round would abort; sample more clients or lower it"
        )


def clipped_share(values: PyTree, max_abs: float | Array) -> Array:
    """The share of each client's entries `[L]` outside `[-c, c]`, NaN included.

    Example:
      >>> clipped_share(jnp.array([[0.5, -2.0, jnp.nan, 1.0]]), 1.0).tolist()
      [0.5]
    """
    leaves = [leaf.reshape(leaf.shape[0], -1) for leaf in jax.tree.leaves(values)]
    size = sum(leaf.shape[1] for leaf in leaves)
    outside = [(~(jnp.abs(leaf) <= max_abs)).sum(1, dtype=jnp.float32) for leaf in leaves]
    return sum(outside[1:], start=outside[0]) / max(size, 1)


def pair_mask(seed: Any, slot: Any, other: Any, *, length: int) -> Array:
    """What `slot` adds for its pair with `other`: the negative of what `other` adds.

    The pair of a slot with itself is its self mask.

    Args:
      seed: uint32 `[2]`, of the round.
      slot: who adds.
      other: for whom.
      length: words.

    Returns:
      uint32 `[length]`.

    Example:
      >>> seed = np.zeros(2, np.uint32)
      >>> both = pair_mask(seed, 1, 2, length=3) + pair_mask(seed, 2, 1, length=3)
      >>> both.tolist(), bool(pair_mask(seed, 1, 1, length=3).any())
      ([0, 0, 0], True)
    """
    key = jax.random.wrap_key_data(jnp.asarray(seed), impl="threefry2x32")
    key = jax.random.fold_in(key, jnp.minimum(slot, other))
    key = jax.random.fold_in(key, jnp.maximum(slot, other))
    words = jax.random.bits(key, (length,), jnp.uint32)
    return jnp.where(jnp.greater_equal(other, slot), words, jnp.zeros_like(words) - words)


def lane_masks(seed: Any, slots: Array, *, num_slots: int, length: int) -> Array:
    """All masks of the clients in some slots: its own, and one with every other slot.

    Args:
      seed: uint32 `[2]`, of the round.
      slots: `[L]`.
      num_slots: `C`.
      length: words.

    Returns:
      uint32 `[L, length]`.

    Example:
      >>> masks = lane_masks(np.zeros(2, np.uint32), jnp.arange(2), num_slots=2, length=3)
      >>> masks.shape, masks.dtype
      ((2, 3), dtype('uint32'))
    """

    def body(other: Array, total: Array) -> Array:
        return total + jax.vmap(lambda slot: pair_mask(seed, slot, other, length=length))(slots)

    zeros = jnp.zeros((slots.shape[0], length), jnp.uint32)
    return jax.lax.fori_loop(0, num_slots, body, zeros)


def left_over_masks(seed: Any, present: Array, *, length: int) -> Array:
    """What has not cancelled: self masks of those present, and their masks with those who are not.

    Args:
      seed: uint32 `[2]`, of the round.
      present: bool `[C]`.
      length: words.

    Returns:
      uint32 `[length]`.

    Example:
      >>> seed = np.zeros(2, np.uint32)
      >>> left = left_over_masks(seed, jnp.array([True, False]), length=3)
      >>> sent = lane_masks(seed, jnp.arange(1), num_slots=2, length=3)
      >>> left.tolist() == sent[0].tolist()
      True
    """
    num_slots = present.shape[0]

    def body(pair: Array, total: Array) -> Array:
        slot, other = pair // num_slots, pair % num_slots
        # A cond, not a select: the masks of two survivors are never drawn again.
        return jax.lax.cond(
            present[slot] & (~present[other] | (slot == other)),
            lambda t: t + pair_mask(seed, slot, other, length=length),
            lambda t: t,
            total,
        )

    zeros = jnp.zeros(length, jnp.uint32)
    return jax.lax.fori_loop(0, num_slots * num_slots, body, zeros)


def _length(tree: PyTree) -> int:
    return sum(math.prod(jnp.shape(leaf)) for leaf in jax.tree.leaves(tree))


def _cut(words: Array, like: PyTree) -> PyTree:
    """Words `[..., length]` in the shapes `[..., *shape]` of a tree's leaves."""
    leaves, structure = jax.tree.flatten(like)
    parts, low = [], 0
    for leaf in leaves:
        shape = jnp.shape(leaf)
        high = low + math.prod(shape)
        parts.append(words[..., low:high].reshape(*words.shape[:-1], *shape))
        low = high
    return jax.tree.unflatten(structure, parts)


def _align(weights: Array, leaf: Array) -> Array:
    return weights.reshape(weights.shape + (1,) * (leaf.ndim - 1))


def _check_scalar_weight(message: Message) -> None:
    shapes = [jnp.shape(leaf) for leaf in jax.tree.leaves(message.weight)]
    if shapes != [()]:
        raise ValueError(
            "weighting='message' needs one weight a client, got weights of shapes "
            f"{[list(shape) for shape in shapes]}; use weighting='uniform'"
        )
