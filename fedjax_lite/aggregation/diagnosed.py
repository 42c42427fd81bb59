"""diagnosed(): how far the clients of a round drift apart, measured beside any aggregator."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from fedjax_lite import trees
from fedjax_lite.checks.made import made
from fedjax_lite.types import Aggregator, Array, Cohort, Key, Message, Params, PyTree

FIGURES = (
    "drift_variance",
    "drift_cosine_mean",
    "drift_cosine_min",
    "drift_diversity",
    "drift_norm_mean",
    "drift_norm_max",
    "drift_mean_norm",
)


class Diagnosed(NamedTuple):
    """The state of a `diagnosed` aggregator; `compose` adds `metrics` to those of the round."""

    inner: PyTree
    metrics: dict[str, Array]
    """Scalars of the last round, named as in `drift_figures`; 0 before the first."""


class Stacked(NamedTuple):
    """The accumulator: the inner one, and a place for every client of the cohort."""

    inner: PyTree
    values: PyTree
    """`[C, ...]`, zero where nobody wrote: slots are disjoint, so parts merge by ``+``."""
    weights: Array
    """`[C]`, 0 for who does not count."""


@made
def diagnosed(
    inner: Aggregator,
    *,
    weighting: str = "uniform",
    select: Callable[[PyTree], PyTree] | None = None,
) -> Aggregator:
    r"""Aggregates as `inner` does and measures the drift of the clients.

    The aggregate is that of `inner`, bit for bit. The figures of `drift_figures` are taken from
    the messages as the server receives them (after the uplink), and become metrics of the round
    where this is the outermost aggregator. Memory O(cohort x model), for the stack of messages.

    Args:
      inner: the aggregator that decides, e.g. ``mean()``.
      weighting: who counts how much in the figures: "uniform", or "message" for the messages'
        own weights, which must be one number a client then. Weight 0 (no step done) never counts.
      select: the part of a message to look at, for messages that hold more than the update;
        default all of it.

    Returns:
      An `Aggregator` whose state is ``Diagnosed(state of inner, metrics)``.

    Raises:
      TypeError: if `inner` is not an `Aggregator`.
      ValueError: if `weighting` is unknown, or (when it is traced) weights are not one number.

    Example:
      >>> from fedjax_lite.aggregation.mean import mean
      >>> aggregator = diagnosed(mean())
      >>> messages = Message(jnp.array([[3.0, 0.0], [0.0, 4.0]]), jnp.ones(2))
      >>> acc = aggregator.init(jax.tree.map(lambda leaf: leaf[0], messages), 2)
      >>> acc = aggregator.add(acc, messages, jnp.arange(2), jnp.ones(2, bool))
      >>> state = aggregator.init_state(jnp.zeros(2))
      >>> state, value = aggregator.finish(jax.random.key(0), state, acc, None)
      >>> value.tolist(), round(float(state.metrics["drift_cosine_min"]), 4)
      ([1.5, 2.0], 0.6)
    """
    if not isinstance(inner, Aggregator):
        raise TypeError(f"inner must be an Aggregator, got {inner!r}; was a factory not called?")
    if weighting not in ("uniform", "message"):
        raise ValueError(f"weighting must be 'uniform' or 'message', got {weighting!r}")
    part = (lambda value: value) if select is None else select

    def init_state(params: Params) -> Diagnosed:
        zeros = {name: jnp.float32(0) for name in FIGURES}
        return Diagnosed(inner.init_state(params), zeros)

    def init(message: Message, cohort_size: int) -> Stacked:
        if weighting == "message":
            _check_scalar_weight(message)
        values = trees.wide_zeros(jax.eval_shape(part, message.value), cohort_size)
        return Stacked(inner.init(message, cohort_size), values, jnp.zeros(cohort_size))

    def add(acc: Stacked, messages: Message, slots: Array, mask: Array) -> Stacked:
        weights = _client_weights(messages.weight, weighting, mask.shape[0])
        counts = mask & (weights > 0)
        values = jax.tree.map(
            lambda leaf, new: new.astype(leaf.dtype), acc.values, jax.vmap(part)(messages.value)
        )
        # A select, not a product: what a masked client sent may be NaN.
        values = trees.where(counts, values, jax.tree.map(jnp.zeros_like, values))
        table = trees.scatter_rows(
            (acc.values, acc.weights), slots, counts, (values, weights.astype(acc.weights.dtype))
        )
        return Stacked(inner.add(acc.inner, messages, slots, mask), *table)

    def finish(
        key: Key, state: Diagnosed, acc: Stacked, cohort: Cohort
    ) -> tuple[Diagnosed, PyTree]:
        inner_state, value = inner.finish(key, state.inner, acc.inner, cohort)
        figures = drift_figures(acc.values, weights=acc.weights)
        metrics = {name: figures[name].astype(jnp.float32) for name in FIGURES}
        return Diagnosed(inner_state, metrics), value

    return Aggregator(init_state, init, add, finish)


def drift_figures(updates: PyTree, *, weights: Any = None) -> dict[str, Array]:
    r"""How far the updates of a cohort lie apart.

    With shares :math:`p_i = w_i / \sum_j w_j`, the mean :math:`\bar\Delta = \sum_i p_i \Delta_i`
    and one l2 norm over the whole pytree:

    .. math::
        \text{variance} &= \textstyle\sum_i p_i \lVert \Delta_i - \bar\Delta \rVert^2, \qquad
        \cos_i = \langle \Delta_i, \bar\Delta \rangle
                 / (\lVert \Delta_i \rVert \lVert \bar\Delta \rVert), \\
        \text{diversity} &= \textstyle\sum_i p_i^2 \lVert \Delta_i \rVert^2
                 / \lVert \sum_i p_i \Delta_i \rVert^2

    (for equal weights :math:`\sum \lVert \Delta_i \rVert^2 / \lVert \sum \Delta_i \rVert^2`: `1/m`
    for `m` equal updates, 1 for orthogonal ones, large where clients pull against each other).

    Args:
      updates: leaves `[C, ...]`; the sign does not matter.
      weights: `[C]`, 0 leaves a client out (its values must be finite); default all 1.

    Returns:
      Scalars: ``drift_variance``, ``drift_cosine_mean`` (the p-weighted mean of the cosines),
      ``drift_cosine_min``, ``drift_diversity``, ``drift_norm_mean`` (p-weighted),
      ``drift_norm_max`` and ``drift_mean_norm`` (the norm of the mean). A zero vector's cosine
      is 0. The diversity of updates that cancel exactly is infinity; 0/0 := 0. Without a client
      all figures are 0.

    Example:
      >>> figures = drift_figures(jnp.array([[3.0, 0.0], [0.0, 4.0]]))
      >>> round(float(figures["drift_cosine_mean"]), 4), float(figures["drift_diversity"])
      (0.7, 1.0)

    Reference: Yin, Pananjady, Lam, Papailiopoulos, Ramchandran, Bartlett, "Gradient Diversity: a
    Key Ingredient for Scalable Distributed Learning", 2018, arXiv:1706.05699.
    """
    leaves = jax.tree.leaves(updates)
    weights = jnp.ones(leaves[0].shape[0]) if weights is None else jnp.asarray(weights)
    counts = weights > 0
    shares = _ratio(weights, weights.sum())
    average = jax.tree.map(lambda leaf: jnp.tensordot(shares.astype(leaf.dtype), leaf, 1), updates)
    norms = jnp.sqrt(_dot(updates, updates))
    mean_norm = trees.global_norm(average)
    apart = jax.tree.map(lambda leaf, center: leaf - center, updates, average)
    cosines = _ratio(_dot(updates, average), norms * mean_norm)
    squares, of_mean = (shares**2 * norms**2).sum(), mean_norm**2
    infinite = (of_mean == 0) & (squares > 0)
    figures = {
        "drift_variance": (shares * _dot(apart, apart)).sum(),
        "drift_cosine_mean": (shares * cosines).sum(),
        "drift_cosine_min": jnp.min(jnp.where(counts, cosines, jnp.inf)),
        "drift_diversity": jnp.where(infinite, jnp.inf, _ratio(squares, of_mean)),
        "drift_norm_mean": (shares * norms).sum(),
        "drift_norm_max": jnp.max(jnp.where(counts, norms, 0.0)),
        "drift_mean_norm": mean_norm,
    }
    return {name: jnp.where(counts.any(), figure, 0) for name, figure in figures.items()}


def _dot(left: PyTree, right: PyTree) -> Array:
    """Inner products `[C]` of rows `[C, ...]` with rows or with one tree, over all leaves."""

    def one(a: Array, b: Array) -> Array:
        product = a * b
        return product.reshape(product.shape[0], -1).sum(1)

    return sum(jax.tree.leaves(jax.tree.map(one, left, right)), start=jnp.float32(0))


def _ratio(numerator: Array, denominator: Array) -> Array:
    """``numerator / denominator`` with 0/0 := 0."""
    zero = denominator == 0
    return jnp.where(zero, 0, numerator / jnp.where(zero, 1, denominator))


def _client_weights(weights: PyTree, weighting: str, num_lanes: int) -> Array:
    """One weight a client, `[L]`: 0 where no part of its message counts."""
    leaves = [leaf.reshape(num_lanes, -1) for leaf in jax.tree.leaves(weights)]
    if weighting == "message":
        return leaves[0][:, 0]
    return jnp.stack([(leaf > 0).any(1) for leaf in leaves]).any(0).astype(jnp.float32)


def _check_scalar_weight(message: Message) -> None:
    shapes = [jnp.shape(leaf) for leaf in jax.tree.leaves(message.weight)]
    if shapes != [()]:
        raise ValueError(
            "weighting='message' needs one weight per client, got weights of shapes "
            f"{[list(shape) for shape in shapes]}; use weighting='uniform'"
        )
