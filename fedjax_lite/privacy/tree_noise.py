"""DP-FTRL: noise on prefix sums from a binary tree, private without sampling."""

from __future__ import annotations

import math
from typing import NamedTuple

import jax
import jax.numpy as jnp

from fedjax_lite import trees
from fedjax_lite.checks.arguments import check_count, check_non_negative, check_one, check_positive
from fedjax_lite.checks.made import made
from fedjax_lite.privacy.accounting.accountants import gdp_accountant, stated_noise
from fedjax_lite.privacy.accounting.analytic_gaussian import gdp_mu
from fedjax_lite.privacy.accounting.tree_sensitivity import tree_levels, tree_sensitivities
from fedjax_lite.privacy.arguments import check_clip, check_delta, shown
from fedjax_lite.privacy.clipping import clip_clients
from fedjax_lite.privacy.gaussian import add_rows, noise_stddev, zero_sum
from fedjax_lite.privacy.participation import epoch_rounds, once_an_epoch
from fedjax_lite.round.ledger import TREE
from fedjax_lite.transforms.noise import gaussian_like
from fedjax_lite.types import (
    Aggregator,
    Array,
    Cohort,
    Entry,
    Key,
    Mechanism,
    Message,
    Params,
    PyTree,
    RoundState,
)


class TreeNodes(NamedTuple):
    """The nodes that the present prefix is the sum of."""

    round: Array
    """int32: prefixes released so far."""
    nodes: PyTree
    """Noise of the open node of every level, leaves ``[levels, ...]``; zero where there is none."""


@made
def tree_noise(
    *,
    clip: float,
    num_clients: int,
    cohort_size: int,
    num_rounds: int,
    delta: float,
    epsilon: float | None = None,
    noise_multiplier: float | Array | None = None,
    per_layer: bool = False,
    seed: int = 0,
) -> Mechanism:
    r"""DP-FTRL with tree aggregation: a guarantee that needs no random sampling.

    Every completed dyadic block of rounds gets one noise :math:`\mathcal N(0, (z S)^2 I)`, drawn
    once. The prefix of `t` rounds is the sum of the blocks that the binary digits of `t` name, so
    its noise has variance ``popcount(t) (z S)^2`` instead of ``t (z S)^2``. A round hands on the
    difference of two prefixes,

    .. math::
        \bar\Delta_t = \frac 1m \Big( \sum_{i \in S_t} \mathrm{clip}(\Delta_i)
                       + \mathrm{tree}(t) - \mathrm{tree}(t-1) \Big),

    so plain SGD on the server is FTRL, :math:`x_t = x_0 - \eta (\sum_s \bar\Delta_s)` with one
    prefix's noise, and any other server optimizer is post-processing.

    Args:
      clip: `S`, the largest norm of an update; infinity only without noise.
      num_clients: `N`. A run on another population is refused.
      cohort_size: `m`; clients take turns, once in each ``ceil(N / m)`` rounds, always in the
        same order (`once_an_epoch`).
      num_rounds: `T`, fixed in advance; the run stops there, later rounds give NaN.
      delta: in `(0, 1)`.
      epsilon: the budget of the run; the noise is calibrated exactly.
      noise_multiplier: `z` instead (one of the two); 0 is NOT PRIVATE. May be traced.
      per_layer: see `clip_clients`.
      seed: of the order of turns.

    Returns:
      A `Mechanism`. The state holds `TreeNodes`: ``floor(log2 T) + 1`` copies of the model.

    Raises:
      ValueError: if an amount is out of range, or not exactly one of epsilon and noise is given.

    Guarantees:
      (epsilon, delta)-DP for adding or removing one client with all its data, to whoever sees all
      models, whatever the order: exactly Gaussian with ``mu = sensitivity / z``, the sensitivity
      being `tree_sensitivity`, ``sqrt(floor(log2 T) + 1)`` for one participation.
      As all mechanisms, with a secret key that serves one run, and where nothing but
      `state.server.params` is published: `TreeNodes` hold the noise itself (see
      `fedjax_lite.privacy`).

    Example:
      >>> dp = tree_noise(clip=1.0, num_clients=8, cohort_size=1, num_rounds=8, delta=1e-5,
      ...                 noise_multiplier=2.0)
      >>> round(dp.accountant.spent(8)["epsilon"], 6)
      4.377178

    Reference: Kairouz, McMahan, Song, Thakkar, Thakurta, Xu, "Practical and Private (Deep)
    Learning without Sampling or Shuffling", 2021, arXiv:2103.00039; vector contributions over
    several epochs: Choquette-Choo et al. 2022, arXiv:2211.06530.
    """
    check_count(num_rounds, "num_rounds", minimum=1)
    check_delta(delta, num_clients=num_clients)
    check_one(epsilon=epsilon, noise_multiplier=noise_multiplier)
    sampler = once_an_epoch(num_clients, cohort_size, seed=seed)
    apart = epoch_rounds(num_clients, cohort_size)
    by_round = tree_sensitivities(num_rounds, apart)
    sensitivity = float(by_round[-1])
    z = stated_noise(
        epsilon=epsilon,
        noise_multiplier=noise_multiplier,
        calibrate=lambda budget: sensitivity / gdp_mu(budget, delta),
    )
    check_clip(clip, z)
    return Mechanism(
        sampler=sampler,
        aggregator=tree_sum(
            clip=clip,
            noise_multiplier=z,
            denominator=float(cohort_size),
            num_rounds=num_rounds,
            per_layer=per_layer,
        ),
        accountant=gdp_accountant(
            lambda rounds: float(by_round[min(rounds, num_rounds) - 1]) / z if z else math.inf,
            delta=delta,
            max_rounds=num_rounds,
            noise_multiplier=z,
            what=f"DP-FTRL, tree of {tree_levels(num_rounds)} levels, per client (add or remove "
            f"one of {num_clients}, all its data): z={shown(z)}, sensitivity {sensitivity:.6g}, "
            f"every client once in {apart} rounds, {num_rounds} rounds in all",
            entry=Entry(TREE, (z, float(num_rounds), float(apart))),
            clock=noise_rounds,
            epsilon=epsilon,
        ),
    )


def noise_rounds(state: RoundState) -> Array:
    """Rounds that the noise in a state has seen, -1 where its turns do not agree.

    Example:
      >>> from fedjax_lite.privacy.participation import Turns
      >>> nodes = TreeNodes(jnp.int32(3), ())
      >>> noise_rounds(RoundState(jnp.int32(5), (), (), (), nodes, Turns(jnp.int32(3)))).item()
      3
    """
    seen = state.aggregator.round
    turns = getattr(state.sampler, "round", seen)  # a stream keeps the sampler's state elsewhere
    return jnp.where(turns == seen, seen, -1)


@made
def tree_sum(
    *,
    clip: float | Array,
    noise_multiplier: float | Array,
    denominator: float | Array,
    num_rounds: int,
    per_layer: bool = False,
) -> Aggregator:
    """The aggregator of `tree_noise`; `clip` and `noise_multiplier` may be traced.

    Args:
      clip: `S` > 0.
      noise_multiplier: `z` >= 0.
      denominator: `m`, fixed.
      num_rounds: `T`; rounds beyond it give NaN: their noise was not planned for.
      per_layer: see `clip_clients`.

    Returns:
      An `Aggregator` with the state `TreeNodes`.

    Raises:
      ValueError: if an amount is out of range.

    Example:
      >>> agg = tree_sum(clip=1.0, noise_multiplier=1.0, denominator=1.0, num_rounds=4)
      >>> agg.init_state(jnp.zeros(2)).nodes.shape
      (3, 2)
    """
    check_positive(clip, "clip")
    check_non_negative(noise_multiplier, "noise_multiplier")
    check_positive(denominator, "denominator")
    levels = tree_levels(num_rounds)

    def init_state(params: Params) -> TreeNodes:
        return TreeNodes(jnp.int32(0), trees.wide_zeros(params, levels))

    def add(acc: PyTree, messages: Message, slots: Array, mask: Array) -> PyTree:
        return add_rows(acc, clip_clients(messages.value, clip, per_layer=per_layer), mask)

    def finish(key: Key, state: TreeNodes, acc: PyTree, cohort: Cohort) -> tuple[TreeNodes, PyTree]:
        if jax.tree.structure(acc) != jax.tree.structure(state.nodes):
            raise ValueError(
                "privacy: tree noise needs messages with the structure of the parameters, got "
                f"{jax.tree.structure(acc)}; use a method that sends one update (FedAvg)"
            )
        now = state.round + 1
        fresh = gaussian_like(key, acc, noise_stddev(noise_multiplier, clip))
        # Counting up carries: the lowest zero digit becomes 1, and all below it 0.
        level = jnp.arange(levels)
        carried = (state.round >> level) & ~(now >> level) & 1
        opened = (now >> level) & ~(state.round >> level) & 1

        def turn(nodes: Array, new: Array) -> tuple[Array, Array]:
            shape = (levels,) + (1,) * new.ndim
            closed = jnp.where(carried.reshape(shape) == 1, nodes, 0).sum(0)
            kept = jnp.where(carried.reshape(shape) == 1, 0, nodes)
            return jnp.where(opened.reshape(shape) == 1, new, kept), new - closed

        pairs = jax.tree.map(turn, state.nodes, fresh)
        nodes, steps = jax.tree.transpose(
            jax.tree.structure(acc), jax.tree.structure((0, 0)), pairs
        )
        planned = now <= num_rounds
        value = jax.tree.map(
            lambda total, step: jnp.where(planned, (total + step) / denominator, jnp.nan),
            acc,
            steps,
        )
        return TreeNodes(now, nodes), value

    return Aggregator(init_state, zero_sum, add, finish)
