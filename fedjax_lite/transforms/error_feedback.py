"""error_feedback(): what a compressor left out is added to the next message."""

from __future__ import annotations

import jax
import jax.numpy as jnp

from fedjax_lite import trees
from fedjax_lite.checks.made import made
from fedjax_lite.transforms.chain import send
from fedjax_lite.transforms.flat import magnitude
from fedjax_lite.types import Key, PyTree, Transform, Wire


@made
def error_feedback(inner: Transform) -> Transform:
    r"""Error feedback: the residual is kept by the client and sent later.

    .. math::
        \text{sent} = C(e + \Delta), \qquad e \leftarrow e + \Delta - \text{sent}

    so that at any time what was sent and `e` add up to all updates. The residual is a row of the
    client: it moves only in rounds in which the client takes part, and needs memory of
    population x model.

    `C` should be a contraction, :math:`\lVert C(v) - v \rVert < \lVert v \rVert`: `top_k`,
    `sparse_ternary`, `scaled_sign`, `powersgd`, ``random_k(..., unbiased=False)``,
    ``drive(unbiased=False)``; feedback around an unbiased compressor of large variance diverges.
    Clip before it, ``chain(clip(1.0), error_feedback(top_k(0.01)))``, not inside.

    Args:
      inner: a compressor, or a transform without kinds such as `identity`.

    Returns:
      A `Transform` of kind "feedback"; its state is `(e, state of inner)`, `e` float32 or wider.
      An update that is not finite counts as zero, so it cannot spoil the residual; the wire is
      that of `inner`.

    Raises:
      TypeError: if `inner` is not a `Transform`.
      ValueError: if `inner` clips, adds noise, keeps momentum or feeds back itself: the residual
        would hold what was cut off or held back on purpose, or take the noise back.

    Example:
      >>> from fedjax_lite.transforms.top_k import top_k
      >>> feedback, update = error_feedback(top_k(1)), jnp.array([1.0, 0.75])
      >>> state, sent = feedback.init(update), []
      >>> for _ in range(3):
      ...     state, out = feedback.update(jax.random.key(0), state, update)
      ...     sent.append(out.tolist())
      >>> sent, state[0].tolist()
      ([[1.0, 0.0], [0.0, 1.5], [2.0, 0.0]], [0.0, 0.75])

    Reference: Stich, Cordonnier, Jaggi, "Sparsified SGD with Memory", 2018, arXiv:1809.07599;
    Karimireddy, Rebjock, Stich, Jaggi, "Error Feedback Fixes SignSGD and other Gradient
    Compression Schemes", 2019, arXiv:1901.09847.
    """
    check_compressor(inner, "error_feedback")

    def init(value: PyTree) -> tuple[PyTree, PyTree]:
        residual = trees.wide_zeros(value)
        return residual, inner.init(residual)

    def one(key: Key, state: PyTree, value: PyTree) -> tuple[PyTree, PyTree, Wire]:
        residual, inner_state = state
        wanted = trees.settled(jax.tree.map(jnp.add, residual, finite_or_zero(value)))
        inner_state, sent, wire = send(inner, key, inner_state, wanted)
        sent = trees.cast_like(sent, value)
        residual = jax.tree.map(lambda w, s: w - s.astype(w.dtype), wanted, sent)
        return (residual, inner_state), sent, wire

    return Transform(init, lambda *args: one(*args)[:2], one, ("feedback",))


def check_compressor(inner: Transform, name: str) -> None:
    """Raises where `inner` is not something that only compresses.

    Example:
      >>> from fedjax_lite.transforms.top_k import top_k
      >>> check_compressor(top_k(1), "error_feedback")
    """
    if not isinstance(inner, Transform):
        raise TypeError(f"{name} wraps a Transform, got {inner!r}; was a factory not called?")
    if set(inner.kinds) - {"compress"}:
        raise ValueError(
            f"{name} wraps a compressor such as top_k(0.01), got a transform of kinds "
            f"{inner.kinds}; put the others before it: chain(clip(1.0), {name}(top_k(0.01)))"
        )


def finite_or_zero(value: PyTree) -> PyTree:
    """The value; zero where anything in it is NaN, infinite or beyond 2^100.

    Example:
      >>> finite_or_zero(jnp.array([1.0, jnp.nan])).tolist()
      [0.0, 0.0]
    """
    ok, _ = magnitude(jax.tree.leaves(value))
    return jax.tree.map(lambda leaf: jnp.where(ok, leaf, 0), value)
