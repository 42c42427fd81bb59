"""identity() and chain(): transforms compose like functions, from left to right."""

from __future__ import annotations

import jax
import jax.numpy as jnp

from fedjax_lite import trees
from fedjax_lite.checks.arguments import shown
from fedjax_lite.checks.made import made
from fedjax_lite.types import Key, PyTree, Transform, Wire


@made
def identity() -> Transform:
    """Sends the value as it is.

    Example:
      >>> identity().update(jax.random.key(0), (), 3.0)
      ((), 3.0)
    """
    return Transform(lambda value: (), lambda key, state, value: (state, value))


REFUSED = {
    ("noise", "clip"): "noise is added to a bounded value: clip first, then noise",
    ("feedback", "clip"): "error feedback would never learn of what clipping cut off: clip first",
    ("compress", "clip"): "decompressing can lengthen a value, but what is cut off afterwards was "
    "sent already: clip first (a privacy mechanism clips again by itself)",
    ("compress", "noise"): "noise is dense and undoes what compression saved: noise first",
    ("compress", "compress"): "the second codes numbers that the first has coded already: use "
    "top_k(k, values=...) or rotated(...)",
    ("compress", "feedback"): "what the first left out is not fed back: error_feedback around it",
    ("compress", "momentum"): "a running mean of what was compressed is dense again, and the bits "
    "that were counted are not those sent: momentum first",
    ("feedback", "compress"): "what the second leaves out is not fed back: put error_feedback "
    "around that one",
    ("feedback", "feedback"): "one memory of what was not sent is enough",
    (
        "feedback",
        "momentum",
    ): "the memory of what was not sent would miss what momentum holds back, "
    "and the mean is dense again: momentum first",
    ("feedback", "noise"): "noise is dense and undoes what compression saved: noise first",
}
"""Pairs (earlier, later) that make no sense, and why."""


@made
def chain(*transforms: Transform) -> Transform:
    """Applies transforms one after the other, the first given first.

    Each gets its own key and its own state; the cost on the wire is that of the last transform
    that declares one, since it writes what is sent.

    Args:
      *transforms: any number; none is `identity()`.

    Raises:
      TypeError: if an argument is not a `Transform` (a factory that was not called, say).
      ValueError: if an order makes no sense, such as clipping after noise.

    Example:
      >>> from fedjax_lite.transforms import clip
      >>> import jax.numpy as jnp
      >>> both = chain(clip(1.0), identity())
      >>> state = both.init(jnp.zeros(2))
      >>> both.update(jax.random.key(0), state, jnp.array([3.0, 4.0]))[1].round(3).tolist()
      [0.6000000238418579, 0.800000011920929]
    """
    for transform in transforms:
        if not isinstance(transform, Transform):
            several = isinstance(transform, list | tuple) and not hasattr(transform, "_fields")
            remedy = "give them one by one, chain(*transforms)" if several else ""
            raise TypeError(
                f"chain takes Transforms, got {shown(transform)}; "
                f"{remedy or 'was a factory not called?'}"
            )
    kinds = tuple(kind for transform in transforms for kind in transform.kinds)
    for later, kind in enumerate(kinds):
        for earlier in kinds[:later]:
            if (earlier, kind) in REFUSED:
                raise ValueError(
                    f"transforms must not put {earlier} before {kind}, got the order "
                    f"{' -> '.join(kinds)}: {REFUSED[earlier, kind]}"
                )

    def init(value: PyTree) -> tuple[PyTree, ...]:
        states = []
        for transform in transforms:
            state = transform.init(value)
            states.append(state)
            value = jax.eval_shape(transform.update, jax.random.key(0), state, value)[1]
            value = jax.tree.map(lambda s: jnp.zeros(s.shape, s.dtype), value)
        return tuple(states)

    def update(key: Key, states: tuple[PyTree, ...], value: PyTree) -> tuple[PyTree, PyTree]:
        states, value, _ = apply(key, states, value)
        return states, value

    def apply(
        key: Key, states: tuple[PyTree, ...], value: PyTree
    ) -> tuple[PyTree, PyTree, Wire | None]:
        new, wire = [], None
        for i, (transform, state) in enumerate(zip(transforms, states, strict=True)):
            state, value, own = _settled(transform, jax.random.fold_in(key, i), state, value)
            wire = wire if own is None else own
            new.append(state)
        return tuple(new), value, wire

    sends = any(transform.send is not None for transform in transforms)
    return Transform(init, update, apply if sends else None, kinds)  # type: ignore[arg-type]


def send(
    transform: Transform, key: Key, state: PyTree, value: PyTree
) -> tuple[PyTree, PyTree, Wire]:
    """Applies a transform and says what the result costs to send: all its bits, unless it knows.

    Args:
      transform: any.
      key: a typed key.
      state: the transform's.
      value: any pytree of arrays.

    Returns:
      The new state, the value as it is decoded, and its `Wire`.

    Example:
      >>> _, _, wire = send(identity(), jax.random.key(0), (), jnp.zeros(10))
      >>> float(wire.bits)
      320.0
    """
    state, value, wire = _settled(transform, key, state, value)
    if wire is not None:
        return state, value, Wire(*(jnp.asarray(bits, jnp.float32) for bits in wire))
    bits = jnp.float32(trees.num_bits(value))
    return state, value, Wire(bits, bits)


def _settled(
    transform: Transform, key: Key, state: PyTree, value: PyTree
) -> tuple[PyTree, PyTree, Wire | None]:
    """Applies a transform; what it reads, keeps and hands on are the same numbers for everyone."""
    acts = bool(transform.kinds or transform.send or jax.tree.leaves(state))
    value = trees.settled(value) if acts else value
    wire = None
    if transform.send is None:
        state, value = transform.update(key, state, value)
    else:
        state, value, wire = transform.send(key, state, value)
    if acts:
        state, value = trees.settled((state, value))
    return state, value, wire
