"""over_tree(): a compressor of vectors as a transform of any pytree."""

from __future__ import annotations

from collections.abc import Callable

import jax
import jax.numpy as jnp

from fedjax_lite import trees
from fedjax_lite.transforms.wire import Code, transmit
from fedjax_lite.types import Array, Key, PyTree, Transform, Wire

Compress = Callable[[Key, Array], tuple[Array, Wire]]
"""``(key, vector [D]) -> (decoded vector [D], wire)``; ``C(a v) = a C(v)`` for powers of two."""
LARGEST = 2.0**100
"""A value with a larger number in it counts as not finite."""


def over_tree(
    compress: Compress,
    *,
    per_leaf: bool = False,
    pad_to: Callable[[int], int] | None = None,
) -> Transform:
    """Applies a compressor of vectors to a pytree.

    The leaves are laid end to end as one vector of float32 (or their widest dtype, if wider), and
    the decoded vector is cut up again. A value that holds NaN, infinity or a number beyond 2^100
    has no direction: it is compressed as zero. Other values are brought near 1 by a power of two,
    which is exact, so that no square overflows or vanishes.

    Args:
      compress: ``(key, vector) -> (vector, wire)``.
      per_leaf: a vector, and side information, for each leaf instead of one for all.
      pad_to: ``(D) -> length``: the vector is that long, with zeros at its end (padding it later
        would cost another pass).

    Returns:
      A stateless `Transform` of kind "compress".

    Example:
      >>> halve = over_tree(lambda key, v: (v / 2, Wire(jnp.float32(v.size), jnp.float32(0))))
      >>> value = {"a": jnp.ones(2), "b": jnp.ones((3, 1))}
      >>> _, out, wire = halve.send(jax.random.key(0), (), value)
      >>> out["b"].shape, float(wire.bits)
      ((3, 1), 5.0)
    """

    def send(key: Key, state: PyTree, value: PyTree) -> tuple[PyTree, PyTree, Wire]:
        leaves, treedef = jax.tree.flatten(value)
        ok, unit = magnitude(leaves)
        groups = [[leaf] for leaf in leaves] if per_leaf else [leaves]
        decoded: list[Array] = []
        bits, entropy = jnp.float32(0), jnp.float32(0)
        for i, group in enumerate(groups):
            if not any(leaf.size for leaf in group):
                decoded += group
                continue
            size = sum(leaf.size for leaf in group)
            vector = flatten(group, size=pad_to(size) if pad_to else size)
            step = jax.random.fold_in(key, i) if per_leaf else key
            vector, wire = compress(step, jnp.where(ok, vector, 0) * unit.astype(vector.dtype))
            decoded += unflatten(vector / unit.astype(vector.dtype), group)
            bits, entropy = bits + wire.bits, entropy + wire.entropy
        return state, jax.tree.unflatten(treedef, decoded), Wire(bits, entropy)

    return compressor(lambda value: (), send)


def by_code(code: Code) -> Compress:
    """The compressor that writes and reads by a `Code`.

    Example:
      >>> from fedjax_lite.transforms.sign import sign_code
      >>> by_code(sign_code())(jax.random.key(0), jnp.array([1.0, -3.0]))[0].tolist()
      [2.0, -2.0]
    """
    return lambda key, vector: transmit(code, key, vector)


def compressor(init: Callable, send: Callable) -> Transform:
    """A `Transform` of kind "compress" from its `init` and `send`.

    Example:
      >>> compressor(lambda value: (), lambda key, s, v: (s, v, Wire(0, 0))).kinds
      ('compress',)
    """
    return Transform(init, lambda *args: send(*args)[:2], send, ("compress",))


def magnitude(leaves: list[Array]) -> tuple[Array, Array]:
    """Whether a value can be compressed, and the power of two that brings it near 1.

    Args:
      leaves: floating-point arrays.

    Returns:
      A bool scalar, False where a number is NaN, infinite or beyond 2^100; and a float32 scalar:
      1 unless the largest number lies outside ``[2^-40, 2^40]``.

    Example:
      >>> ok, unit = magnitude([jnp.array([1.0, jnp.nan])])
      >>> bool(ok), float(unit)
      (False, 1.0)
    """
    wide = [trees.wide(jnp.abs(leaf)) for leaf in leaves]
    peaks = [jnp.max(leaf, initial=0.0) for leaf in wide]
    largest = jnp.max(jnp.stack(peaks)) if peaks else jnp.float32(0)
    ok = largest <= LARGEST  # NaN fails the comparison
    small, large = largest < 2.0**-40, largest > 2.0**40
    unit = jnp.where(ok & large, 2.0**-60, jnp.where(small, 2.0**80, 1.0))
    return ok, unit.astype(jnp.float32)


def flatten(leaves: list[Array], *, size: int | None = None) -> Array:
    """Leaves end to end, `[D]`, in float32 or wider; with zeros behind, up to `size`.

    Example:
      >>> flatten([jnp.ones(2), jnp.zeros((1, 2), jnp.bfloat16)]).tolist()
      [1.0, 1.0, 0.0, 0.0]
    """
    dtype = jnp.promote_types(jnp.result_type(*leaves), jnp.float32)
    total = sum(leaf.size for leaf in leaves)
    if len(leaves) == 1 and size in (None, total):
        return leaves[0].astype(dtype).ravel()
    # XLA:CPU fuses a concatenation into a loop with a branch an element, 20 times slower.
    vector, start = jnp.zeros(total if size is None else size, dtype), 0
    for leaf in leaves:
        vector = jax.lax.dynamic_update_slice(vector, leaf.astype(dtype).ravel(), (start,))
        start += leaf.size
    return vector


def unflatten(vector: Array, leaves: list[Array]) -> list[Array]:
    """Cuts a vector into leaves of the shapes and dtypes of `leaves`.

    Example:
      >>> [leaf.tolist() for leaf in unflatten(jnp.arange(3.0), [jnp.zeros(1), jnp.zeros((2, 1))])]
      [[0.0], [[1.0], [2.0]]]
    """
    cut, start = [], 0
    for leaf in leaves:
        part = jax.lax.slice_in_dim(vector, start, start + leaf.size)
        cut.append(part.reshape(leaf.shape).astype(leaf.dtype))
        start += leaf.size
    return cut
