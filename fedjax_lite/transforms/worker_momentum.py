"""worker_momentum(): clients send a running mean of their updates."""

from __future__ import annotations

import jax

from fedjax_lite import trees
from fedjax_lite.checks.arguments import check_fraction
from fedjax_lite.checks.made import made
from fedjax_lite.transforms.error_feedback import finite_or_zero
from fedjax_lite.types import Array, Key, PyTree, Transform


@made
def worker_momentum(decay: float | Array) -> Transform:
    r"""Sends a running mean of a client's updates instead of the update.

    .. math::  m_i \leftarrow \beta m_i + (1 - \beta) \Delta_i, \qquad \text{send } m_i

    from :math:`m_i = 0`. It shrinks the variance among honest clients, behind which attacks on
    robust rules hide; the rows are kept per client, and rest while a client does not take part.

    Args:
      decay: `beta` in [0, 1], may be traced; 0 sends the update itself. The paper has 0.9.

    Returns:
      A `Transform` of kind "momentum", whose state is the running mean, in float32 or wider. It
      comes before compression and error feedback. An update that is not finite counts as zero, so
      it cannot spoil the mean.

    Raises:
      ValueError: if `decay` lies outside [0, 1].

    Example:
      >>> import jax.numpy as jnp
      >>> momentum = worker_momentum(0.9)
      >>> state, sent = momentum.update(jax.random.key(0), jnp.zeros(1), jnp.array([10.0]))
      >>> state, sent = momentum.update(jax.random.key(0), state, jnp.array([10.0]))
      >>> sent.round(4).tolist()
      [1.899999976158142]

    Reference: Karimireddy, He, Jaggi, "Learning from History for Byzantine Robust Optimization",
    2021, arXiv:2012.10333.
    """
    check_fraction(decay, "decay")

    def update(key: Key, state: PyTree, value: PyTree) -> tuple[PyTree, PyTree]:
        state = jax.tree.map(
            lambda m, x: (decay * m + (1 - decay) * x).astype(m.dtype),
            state,
            finite_or_zero(value),
        )
        return state, trees.cast_like(state, value)

    return Transform(trees.wide_zeros, update, kinds=("momentum",))
