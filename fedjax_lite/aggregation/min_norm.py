"""min_norm(): the shortest vector in the hull of the messages; it is bad for nobody."""

from __future__ import annotations

import jax
import jax.numpy as jnp

from fedjax_lite.aggregation.blocks import sum_blocks
from fedjax_lite.aggregation.geometric_median import measurable
from fedjax_lite.aggregation.stacked import Stack, stacked
from fedjax_lite.checks.arguments import check_bool, check_count, check_fraction
from fedjax_lite.checks.made import made
from fedjax_lite.types import Aggregator, Array, Cohort, Key, PyTree


@made
def min_norm(
    *, deviation: float | Array = 1.0, normalise: bool = True, iterations: int = 300
) -> Aggregator:
    r"""The point of least norm among mixtures of the messages that stay near the mean's weights.

    .. math::
        d = \sum_i \lambda_i u_i, \quad u_i = \Delta_i / \lVert \Delta_i \rVert, \quad
        \lambda = \arg\min \Bigl\{ \lVert \textstyle\sum_i \lambda_i u_i \rVert :
            \lambda \in \text{simplex}, \; |\lambda_i - p_i| \le \epsilon \Bigr\}

    with `p_i` the messages' weights as shares. Where ``epsilon = 1`` the inner product of `d` with
    every `u_i` is at least `|d|^2`: a short step along it raises nobody's loss, and `d = 0` says
    that none such exists (the model is Pareto-stationary). A client whose update is zero has
    nothing to gain, and then `d = 0`. With ``epsilon = 0`` and ``normalise=False`` it is `mean`.

    Solved by projected gradients with momentum and restarts, on the `[C, C]` inner products.

    Args:
      deviation: `epsilon` in [0, 1], may be traced: how far weights may go from `p_i`.
      normalise: whether lengths are taken out, so that large updates do not decide (FedMGDA+).
      iterations: steps of the solver.

    Returns:
      An `Aggregator`. Messages that are not finite count as absent. Memory O(cohort x model).

    Raises:
      ValueError: if `deviation` lies outside [0, 1].

    Example:
      >>> from fedjax_lite.aggregation.stacked import aggregate_stack
      >>> updates = jnp.array([[2.0, 0.0], [0.0, 1.0]])
      >>> shortest = aggregate_stack(min_norm(normalise=False), updates)  # .2 and .8 of them
      >>> [round(x, 4) for x in shortest.tolist()]
      [0.4, 0.8]

    Reference: Hu, Shaloudegi, Zhang, Yu, "Federated Learning Meets Multi-objective Optimization",
    2020, arXiv:2006.11489; Désidéri, "Multiple-gradient descent algorithm (MGDA) for multiobjective
    optimization", 2012.
    """
    check_fraction(deviation, "deviation")
    check_bool(normalise, "normalise")
    check_count(iterations, "iterations", minimum=1)

    def rule(key: Key, state: PyTree, stack: Stack, cohort: Cohort) -> tuple[PyTree, PyTree]:
        counts = stack.mask & measurable(stack.values)
        weights = jnp.where(counts, stack.weights, 0)
        shares = weights / jnp.where(weights.sum() == 0, 1, weights.sum())
        products = inner_products(stack.values, counts)
        shares = shares.astype(products.dtype)
        scale = jnp.ones_like(shares)
        if normalise:
            lengths = jnp.sqrt(jnp.diagonal(products))
            scale = jnp.where(lengths > 0, 1 / jnp.where(lengths > 0, lengths, 1), 0)
        products = products * scale * scale[:, None]
        low = jnp.where(counts, jnp.maximum(shares - deviation, 0), 0)
        high = jnp.where(counts, jnp.minimum(shares + deviation, 1), 0)
        mixture = least_square(products, shares, low, high, iterations) * scale

        def mix(rows: Array) -> Array:
            rows = jnp.where(counts.reshape((-1,) + (1,) * (rows.ndim - 1)), rows, 0)
            return jnp.tensordot(mixture.astype(rows.dtype), rows, 1)

        return state, jax.tree.map(mix, stack.values)

    return stacked(rule)


def inner_products(values: PyTree, counts: Array) -> Array:
    """Inner products `[C, C]` of rows over the whole tree; 0 with who does not count."""

    def one(rows: Array) -> Array:
        rows = jnp.where(counts[:, None], rows, 0)
        return jnp.matmul(rows, rows.T, precision=jax.lax.Precision.HIGHEST)

    return sum_blocks(one, values)


def least_square(products: Array, start: Array, low: Array, high: Array, iterations: int) -> Array:
    r"""The minimiser of :math:`\lambda^T G \lambda` where ``low <= lambda <= high`` sum to 1.

    Args:
      products: `G`, `[C, C]`, of inner products.
      start: `[C]`, within the bounds.
      low: `[C]`.
      high: `[C]`.
      iterations: accelerated projected gradient steps of length ``1 / |G|``.

    Example:
      >>> G, none, all = jnp.diag(jnp.array([1.0, 3.0])), jnp.zeros(2), jnp.ones(2)
      >>> least_square(G, all / 2, none, all, 100).round(4).tolist()
      [0.75, 0.25]
    """
    bound = jnp.abs(products).sum(1).max()  # at least the largest eigenvalue
    rate = 1 / jnp.where(bound > 0, bound, 1)

    def step(_: Array, carry: tuple[Array, Array, Array]) -> tuple[Array, Array, Array]:
        mixture, ahead, t = carry
        new = onto_bounds(ahead - rate * (products @ ahead), low, high)
        back = ((ahead - new) * (new - mixture)).sum() > 0  # momentum leads uphill: start anew
        t_new = jnp.where(back, 1.0, (1 + jnp.sqrt(1 + 4 * t * t)) / 2)
        push = jnp.where(back, 0.0, (t - 1) / t_new)
        return new, new + push * (new - mixture), t_new

    one = jnp.ones((), start.dtype)
    return jax.lax.fori_loop(0, iterations, step, (start, start, one))[0]


def onto_bounds(point: Array, low: Array, high: Array) -> Array:
    """The nearest point of sum 1 between bounds, exactly: shift by a number, then clip.

    The sum is piecewise linear in the shift, with kinks where an entry meets a bound.

    Args:
      point: `[C]`.
      low: `[C]`, of sum at most 1.
      high: `[C]`, of sum at least 1.

    Example:
      >>> onto_bounds(jnp.array([0.6, 0.6, -0.1]), jnp.zeros(3), jnp.ones(3)).tolist()
      [0.5, 0.5, 0.0]
    """
    kinks = jnp.sort(jnp.concatenate([point - high, point - low]))
    sums = jnp.clip(point - kinks[:, None], low, high).sum(1)  # falls along the kinks
    left = jnp.clip((sums >= 1).sum() - 1, 0, kinks.shape[0] - 2)
    drop = sums[left] - sums[left + 1]
    part = jnp.where(drop > 0, (sums[left] - 1) / jnp.where(drop > 0, drop, 1), 0)
    return jnp.clip(point - kinks[left] - part * (kinks[left + 1] - kinks[left]), low, high)
