"""identity() and chain(): transforms compose like functions, from left to right."""

from __future__ import annotations

import jax

from fedjax_lite.types import Array, Key, PyTree, Transform


def identity() -> Transform:
    """Sends the value as it is.

    Example:
      >>> identity().update(jax.random.key(0), (), 3.0)
      ((), 3.0)
    """
    return Transform(lambda value: (), lambda key, state, value: (state, value))


def chain(*transforms: Transform) -> Transform:
    """Applies transforms one after the other, the first given first.

    Each gets its own key and its own state; the cost on the wire is that of the last transform
    that declares one, since it writes what is sent.

    Args:
      *transforms: any number; none is `identity()`.

    Raises:
      TypeError: if an argument is not a `Transform` (a factory that was not called, say).

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
            raise TypeError(f"chain takes Transforms, got {transform!r}; was a factory not called?")

    def init(value: PyTree) -> tuple[PyTree, ...]:
        states = []
        for transform in transforms:
            state = transform.init(value)
            states.append(state)
            value = jax.eval_shape(transform.update, jax.random.key(0), state, value)[1]
            value = jax.tree.map(lambda s: jax.numpy.zeros(s.shape, s.dtype), value)
        return tuple(states)

    def update(key: Key, states: tuple[PyTree, ...], value: PyTree) -> tuple[PyTree, PyTree]:
        new = []
        for i, (transform, state) in enumerate(zip(transforms, states, strict=True)):
            state, value = transform.update(jax.random.fold_in(key, i), state, value)
            new.append(state)
        return tuple(new), value

    costs = [transform.bits for transform in transforms if transform.bits is not None]

    def bits(value: PyTree) -> Array:
        return costs[-1](value)

    return Transform(init, update, bits if costs else None)
