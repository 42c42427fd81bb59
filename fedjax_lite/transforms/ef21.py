"""ef21(): the client sends how its update changed since its last message, compressed."""

from __future__ import annotations

import jax
import jax.numpy as jnp

from fedjax_lite import trees
from fedjax_lite.checks.made import made
from fedjax_lite.transforms.chain import send
from fedjax_lite.transforms.error_feedback import check_compressor
from fedjax_lite.transforms.flat import magnitude
from fedjax_lite.types import Key, PyTree, Transform, Wire


@made
def ef21(inner: Transform) -> Transform:
    r"""EF21: client and server keep the same estimate of the client's update, and correct it.

    .. math::  g \leftarrow g + C(\Delta - g), \qquad \text{what the server takes is } g

    with `g = 0` at the start. Only :math:`C(\Delta - g)` travels; the server adds it to its own
    copy of `g`, so it needs a copy for each client (memory population x model on both sides; the
    simulation keeps one, in the client's row). The aggregate is that of the `g` of the clients
    that take part; the paper's has everyone in every round.

    For `C` see `error_feedback`: it should be a contraction.

    Args:
      inner: a compressor, or a transform without kinds such as `identity` (which gives the plain
        update, to rounding).

    Returns:
      A `Transform` of kind "feedback"; its state is `(g, state of inner)`, `g` float32 or wider.
      For an update that is not finite nothing but `C(0)` is sent, and `g` stays.

    Raises:
      TypeError: if `inner` is not a `Transform`.
      ValueError: if `inner` clips, adds noise, keeps momentum or feeds back itself.

    Example:
      >>> from fedjax_lite.transforms.top_k import top_k
      >>> transform, update = ef21(top_k(1)), jnp.array([1.0, 0.75])
      >>> state = transform.init(update)
      >>> state, first = transform.update(jax.random.key(0), state, update)
      >>> state, second = transform.update(jax.random.key(0), state, update)
      >>> first.tolist(), second.tolist()
      ([1.0, 0.0], [1.0, 0.75])

    Reference: Richtárik, Sokolov, Fatkhullin, "EF21: A New, Simpler, Theoretically Better, and
    Practically Faster Error Feedback", 2021, arXiv:2106.05203.
    """
    check_compressor(inner, "ef21")

    def init(value: PyTree) -> tuple[PyTree, PyTree]:
        estimate = trees.wide_zeros(value)
        return estimate, inner.init(estimate)

    def one(key: Key, state: PyTree, value: PyTree) -> tuple[PyTree, PyTree, Wire]:
        estimate, inner_state = state
        ok, _ = magnitude(jax.tree.leaves(value))
        change = jax.tree.map(lambda v, g: jnp.where(ok, v.astype(g.dtype) - g, 0), value, estimate)
        inner_state, sent, wire = send(inner, key, inner_state, change)
        estimate = jax.tree.map(jnp.add, estimate, sent)
        return (estimate, inner_state), trees.cast_like(estimate, value), wire

    return Transform(init, lambda *args: one(*args)[:2], one, ("feedback",))
